"""The scorecard: counted by hand, bounds from tables, and no image ever dropped."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from agent.bundle import Bundle, ClassSpec
from agent.verdict import Decision
from optimize.dataset import read_dataset
from optimize.errors import DataError
from optimize.evaluate import Outcome, evaluate, score, upper_bound
from tests.kit.bundles import kit_manifest, make_bundle
from tests.kit.commands import run_command
from tests.kit.frames import plain_image

COMMAND = "optimize.cli.evaluate"
COLOURS = {"good": (255, 255, 255), "scratch": (0, 0, 0), "stain": (0, 0, 255)}  # BGR, as the kit's classifier sees it


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path)


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """Four good, three scratched and two stained parts; one scratched part looks good."""
    root = tmp_path / "parts"
    shown = {"good": ["good"] * 4, "scratch": ["scratch", "scratch", "good"], "stain": ["stain"] * 2}
    for label, looks in shown.items():
        (root / label).mkdir(parents=True)
        for i, look in enumerate(looks):
            cv2.imwrite(str(root / label / f"{i}.png"), plain_image(COLOURS[look], width=50, height=40))
    return root


def outcome(label: str, predicted: str | None, decision: Decision, ms: float = 2.0) -> Outcome:
    return Outcome(
        file=f"{label}.png",
        label=label,
        predicted=predicted,
        decision=decision,
        reason="because",
        ms=None if predicted is None else ms,
        severity="ok" if label == "good" else "major",
    )


@pytest.mark.parametrize(
    ("events", "n", "expected"),
    [
        # No event in n: 1 - 0.05 ** (1 / n); the rule of three.
        (0, 1, 0.95),
        (0, 59, 0.0495),
        (0, 149, 0.0199),
        (0, 299, 0.00997),
        # One-sided 95 % limits as in tables of the binomial distribution (for 1 of 10, 5 of 100: R's qbeta).
        (1, 10, 0.3942),
        (5, 100, 0.1023),
        (50, 100, 0.5864),
        (10, 10, 1.0),
    ],
)
def test_the_bound_is_the_one_in_the_tables(events: int, n: int, expected: float) -> None:
    """It is the number that a safety case rests on, and the code for it is our own."""
    assert upper_bound(events, n) == pytest.approx(expected, abs=5e-5 if expected > 0.01 else 5e-6)


@pytest.mark.parametrize(("events", "n"), [(0, 7), (3, 40), (17, 60), (199, 200)])
def test_at_the_bound_so_few_events_have_five_percent(events: int, n: int) -> None:
    """The definition itself, by summing the binomial distribution."""
    p = upper_bound(events, n)
    total = sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(events + 1))

    assert total == pytest.approx(0.05, abs=1e-9)


@pytest.mark.parametrize(("events", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_counts_that_cannot_be_are_refused(events: int, n: int) -> None:
    """A bound of nothing would be read as a bound."""
    with pytest.raises(ValueError, match="upper_bound"):
        upper_bound(events, n)


def test_images_with_wrong_labels_are_refused_before_any_work(bundle: Bundle, parts: Path) -> None:
    """Counting them as errors would look like a bad model."""
    (parts / "stain").rename(parts / "stains")

    with pytest.raises(DataError) as caught:
        evaluate(bundle, read_dataset(parts))

    assert "got the classes stains, the model knows good, scratch, stain" in caught.value.message


def test_images_without_labels_are_refused(tmp_path: Path, bundle: Bundle) -> None:
    """A flat folder has no truth to compare with."""
    (tmp_path / "flat").mkdir()
    cv2.imwrite(str(tmp_path / "flat" / "a.png"), np.zeros((8, 8, 3), np.uint8))

    with pytest.raises(DataError, match=r"1 images have no label, the first is a\.png"):
        evaluate(bundle, read_dataset(tmp_path / "flat"))


def test_a_picture_that_cannot_be_judged_counts_as_wrong_and_is_listed(bundle: Bundle, parts: Path) -> None:
    """A test set that shrinks unseen makes every number better than it is."""
    (parts / "scratch" / "0.png").write_bytes(b"")
    (parts / "good" / "0.png").write_bytes(b"no picture")

    card, _ = evaluate(bundle, read_dataset(parts))

    assert [entry.file for entry in card.unjudged] == ["good/0.png", "scratch/0.png"]
    assert "capture" in card.unjudged[0].reason
    assert card.n == 9
    assert card.accuracy == pytest.approx(6 / 9)
    assert card.decisions == {"ok": 4, "defect": 3, "review": 0, "error": 2}
    assert (card.escapes, card.defects, card.overkills, card.goods) == (1, 5, 0, 4)
    assert card.per_class["good"].support == 4
    assert card.per_class["good"].recall == pytest.approx(3 / 4)


def test_every_number_is_what_counting_by_hand_gives(bundle: Bundle, parts: Path) -> None:
    """Through the agent's own inspector and policy, with real pictures."""
    card, engine = evaluate(bundle, read_dataset(parts))

    assert "onnxruntime" in engine
    assert card.n == 9
    assert card.accuracy == pytest.approx(8 / 9)
    assert card.confusion == ((4, 0, 0), (1, 2, 0), (0, 0, 2))
    assert card.per_class["good"].precision == pytest.approx(4 / 5)
    assert card.per_class["scratch"].recall == pytest.approx(2 / 3)
    assert card.per_class["stain"].support == 2
    assert card.escape_rate == pytest.approx(1 / 5)
    assert card.escape_upper_95 == pytest.approx(upper_bound(1, 5))
    assert (card.overkill_rate, card.review_rate) == (0.0, 0.0)
    assert card.p50_ms is not None
    assert card.p99_ms is not None
    assert 0 < card.p50_ms <= card.p99_ms


def test_review_neither_escapes_nor_is_overkill() -> None:
    """A person looks at it: neither passed nor rejected."""
    card = score(
        [
            outcome("good", "good", Decision.REVIEW),
            outcome("scratch", "good", Decision.REVIEW),
            outcome("scratch", "good", Decision.OK),
            outcome("good", "stain", Decision.DEFECT),
        ],
        kit_manifest(),
    )

    assert (card.escapes, card.overkills, card.review_rate) == (1, 1, 0.5)


def test_a_rate_of_nothing_is_none_and_not_zero() -> None:
    """A set without good parts says nothing about overkill; a 0 would be read as perfect."""
    defects = score([outcome("scratch", "scratch", Decision.DEFECT)], kit_manifest())
    goods = score([outcome("good", "good", Decision.OK)], kit_manifest())

    assert defects.overkill_rate is None
    assert (goods.escape_rate, goods.escape_upper_95) == (None, None)
    assert goods.per_class["scratch"].recall is None
    assert goods.per_class["scratch"].precision is None


def test_without_an_ok_class_nothing_can_escape_as_everything_is_a_defect() -> None:
    """NEU steel has no good pictures at all."""
    classes = tuple(ClassSpec(name=name, severity="major") for name in ("good", "scratch", "stain"))
    card = score([outcome("good", "good", Decision.DEFECT)], kit_manifest(classes=classes))

    assert (card.defects, card.goods, card.escape_rate, card.overkill_rate) == (1, 0, 0.0, None)


def test_a_scorecard_is_true_only_when_its_gates_hold() -> None:
    """`if card:` is how a pipeline asks."""
    card = score([outcome("good", "good", Decision.OK), outcome("good", "stain", Decision.OK)], kit_manifest())

    assert card
    assert card.gated(min_accuracy=0.5)
    assert not card.gated(min_accuracy=0.51)
    assert card.gated(min_accuracy=0.51).failures == ("accuracy: got 0.5000, expected at least 0.5100",)


def test_the_command_prints_one_document_with_every_number(bundle: Bundle, parts: Path) -> None:
    """Other programs read it."""
    ran = run_command(COMMAND, bundle.path, "--data", parts, "--json")

    assert ran.code == 0
    document = ran.json
    assert document["n"] == 9
    assert document["classes"] == ["good", "scratch", "stain"]
    assert document["confusion"] == [[4, 0, 0], [1, 2, 0], [0, 0, 2]]
    assert document["per_class"]["stain"] == {"precision": 1.0, "recall": 1.0, "support": 2}
    assert document["bundle_digest"] == bundle.digest
    assert document["decisions"] == {"ok": 5, "defect": 4, "review": 0, "error": 0}
    assert document["errors"] == []
    assert set(document["latency_ms"]) == {"p50", "p99"}
    wanted = {"accuracy", "escape_rate", "escape_upper_95", "overkill_rate", "review_rate", "split", "engine"}
    assert wanted <= set(document)


def test_the_table_reads_without_json(bundle: Bundle, parts: Path) -> None:
    """For the person who trains."""
    ran = run_command(COMMAND, bundle.path, "--data", parts)

    assert ran.code == 0
    assert "accuracy   88.89%" in ran.out
    assert "1 of 5 defective parts (20.00%); with 95 % confidence under 65.74%" in ran.out
    assert " 1  scratch        1    2    ." in ran.out


def test_a_gate_that_does_not_hold_ends_with_one(bundle: Bundle, parts: Path) -> None:
    """The work ran, its result is not good enough: 1, and the document is there all the same."""
    ran = run_command(COMMAND, bundle.path, "--data", parts, "--min-accuracy", 0.95, "--json")

    assert ran.code == 1
    assert ran.json["failures"] == ["accuracy: got 0.8889, expected at least 0.9500"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--min-accuracy", "95"], "--min-accuracy: got 95, expected 0 to 1"),
        (["--threads", "0"], "--threads: got 0, expected 1 or more"),
        (["--split", "best"], "invalid choice"),
        (["--confusion", "/nowhere/c.png"], "can't be written"),
    ],
)
def test_a_mistake_is_one_sentence_and_a_two(bundle: Bundle, parts: Path, flags: list[str], expected: str) -> None:
    """No traceback for a typing error."""
    ran = run_command(COMMAND, bundle.path, "--data", parts, *flags)

    assert ran.code == 2
    assert expected in ran.err
    assert "Traceback" not in ran.err


def test_data_come_from_the_recipe_when_not_given(
    tmp_path: Path, bundle: Bundle, parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command after a build should need no more than the bundle."""
    (tmp_path / "defect-opt.yaml").write_text(f"data: {parts.name}\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    assert run_command(COMMAND, bundle.path, "--json").json["n"] == 9


def test_no_data_at_all_is_a_mistake(tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the way to give them."""
    monkeypatch.chdir(tmp_path)

    ran = run_command(COMMAND, bundle.path)

    assert (ran.code, "add --data DIR" in ran.err) == (2, True)


def test_each_command_takes_its_split(tmp_path: Path, bundle: Bundle, parts: Path) -> None:
    """Evaluating on training pictures by accident is the oldest mistake there is."""
    rows = [f"{label}/0.png,{label},test" for label in COLOURS] + ["scratch/1.png,scratch,train"]
    (parts / "splits.csv").write_text("file,class,split\n" + "\n".join(rows) + "\n", encoding="utf-8")

    assert run_command(COMMAND, bundle.path, "--data", parts, "--json").json["n"] == 3
    assert run_command(COMMAND, bundle.path, "--data", parts, "--split", "train", "--json").json["n"] == 1
    assert run_command(COMMAND, bundle.path, "--data", parts, "--split", "val").code == 2


def test_the_confusion_matrix_is_drawn(tmp_path: Path, bundle: Bundle, parts: Path) -> None:
    """A picture for the report."""
    path = tmp_path / "c.png"

    ran = run_command(COMMAND, bundle.path, "--data", parts, "--confusion", path)

    assert ran.code == 0
    image = cv2.imread(str(path))
    assert image is not None
    assert image.shape[0] > 3 * 50
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 3


def test_the_graph_can_be_chosen(bundle: Bundle, parts: Path) -> None:
    """FP32 and INT8 are compared on the test split with it."""
    engines = {
        graph: run_command(COMMAND, bundle.path, "--data", parts, "--graph", graph, "--json").json["engine"]
        for graph in ("fp32", "cpu")
    }

    assert "fp32" in engines["fp32"]
    assert "int8" in engines["cpu"]


def test_gates_keep_what_failed_before() -> None:
    """Two gates, two reasons."""
    card = dataclasses.replace(score([outcome("good", None, Decision.ERROR)], kit_manifest()), failures=("first",))

    assert len(card.gated(min_accuracy=0.5).failures) == 2


def test_a_bundle_that_can_pass_nothing_boasts_of_no_escapes(tmp_path: Path, parts: Path) -> None:
    """Its zero escapes are no merit, and a bound on them would be read as one."""
    classes = tuple(ClassSpec(name=name, severity="major") for name in ("good", "scratch", "stain"))

    ran = run_command(COMMAND, make_bundle(tmp_path, classes=classes).path, "--data", parts)

    assert "no class of this bundle is ok" in ran.out
    assert "with 95 % confidence" not in ran.out


def test_a_bundle_that_failed_its_gate_says_so(tmp_path: Path, parts: Path) -> None:
    """Its numbers may look fine on other pictures; whoever reads them must know."""
    failed = make_bundle(tmp_path, gate_passed=False, gate_reasons=("INT8 loses 7 points",))

    assert "failed its gate at the build: INT8 loses 7 points" in run_command(COMMAND, failed.path, "--data", parts).out
    assert run_command(COMMAND, failed.path, "--data", parts, "--json").json["gate_passed"] is False


def test_nothing_judged_has_no_latency() -> None:
    """A latency of 0 ms would be a very good one."""
    card = score([outcome("good", None, Decision.ERROR)], kit_manifest())

    assert (card.p50_ms, card.p99_ms, card.accuracy) == (None, None, 0.0)
    assert card.to_json()["latency_ms"] == {"p50": None, "p99": None}


def test_intervals_are_by_group(bundle: Bundle, parts: Path) -> None:
    """Four pictures of one good part are one part: the interval must not pretend that they are four."""
    files = sorted(path.relative_to(parts) for path in parts.rglob("*.png"))
    rows = [f"{file},{file.parts[0]},test,{'one' if file.parts[0] == 'good' else file}" for file in files]
    alone, _ = evaluate(bundle, read_dataset(parts))
    (parts / "splits.csv").write_text("\n".join(["file,class,split,group", *rows]))

    grouped, _ = evaluate(bundle, read_dataset(parts))

    assert (alone.groups, grouped.groups) == (9, 6)
    assert grouped.accuracy == alone.accuracy
    assert grouped.intervals_95["accuracy"][0] < alone.intervals_95["accuracy"][0] < alone.accuracy
    assert grouped.recall_95["good"] == (0.025, 1.0)  # all right, of one part
    assert grouped.intervals_95["escape_rate"][0] <= 1 / 5 <= grouped.intervals_95["escape_rate"][1]


def test_the_calibration_error_is_of_the_images_that_were_judged() -> None:
    """By hand: sure by 0.9 and right in two of four; one that could not be judged says nothing about that."""
    made = [
        dataclasses.replace(outcome("scratch", predicted, Decision.DEFECT), probability=0.9)
        for predicted in ("scratch", "scratch", "stain", "stain")
    ]

    card = score([*made, outcome("good", None, Decision.ERROR)], kit_manifest())

    assert card.ece == pytest.approx(0.4)
    assert card.accuracy == pytest.approx(2 / 5)
    assert card.balanced_recall == pytest.approx((0.5 + 0) / 2)


def test_each_judging_of_a_test_split_is_noted_and_told(tmp_path: Path, bundle: Bundle, parts: Path) -> None:
    """A test that was looked at thirty times has been trained on, by hand."""
    ledger = tmp_path / "ledger.jsonl"

    first, second = (
        run_command(COMMAND, bundle.path, "--data", parts, "--ledger", ledger, "--json").json for _ in range(2)
    )
    told = run_command(COMMAND, bundle.path, "--data", parts, "--ledger", ledger).out

    assert (first["test_uses"]["before"], first["test_uses"]["last"]) == (0, None)
    assert (second["test_uses"]["before"], len(second["test_uses"]["models"])) == (1, 1)
    assert "test of this data was judged 2 times before, last at 20" in told
    assert len(ledger.read_text().splitlines()) == 3


def test_judging_val_uses_no_test_up(tmp_path: Path, bundle: Bundle, parts: Path) -> None:
    """It is noted, but not counted."""
    files = sorted(path.relative_to(parts) for path in parts.rglob("*.png"))
    rows = [f"{file},{file.parts[0]},{'test' if i % 2 else 'val'}" for i, file in enumerate(files)]
    (parts / "splits.csv").write_text("\n".join(["file,class,split", *rows]))
    options = (bundle.path, "--data", parts, "--ledger", tmp_path / "ledger.jsonl", "--json")

    on_val = run_command(COMMAND, *options, "--split", "val")
    on_test = run_command(COMMAND, *options)

    assert on_val.json["test_uses"] is None
    assert on_test.json["test_uses"]["before"] == 0


def test_a_ledger_that_cannot_be_written_does_not_stop_judging(tmp_path: Path, bundle: Bundle, parts: Path) -> None:
    """A read-only working directory; the figures come, with a warning on standard error."""
    ran = run_command(COMMAND, bundle.path, "--data", parts, "--ledger", tmp_path, "--json")

    assert ran.code == 0
    assert ran.json["n"] == 9
    assert "so this run stands in no ledger" in ran.err
