"""`defect-opt compare` over real bundles: real graphs, real pictures, the agent's own code."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from agent.bundle import Bundle, ClassSpec
from agent.bundle.manifest import Severity
from optimize.compare import CompareOptions, compare_bundles
from optimize.dataset import read_dataset
from optimize.errors import OptimizeError
from optimize.ledger import prior_uses
from tests.kit.bundles import make_bundle
from tests.kit.commands import Ran, run_command
from tests.kit.frames import plain_image
from tests.kit.models import constant_classifier

COMMAND = "optimize.cli.compare"
COLOURS = {"good": (255, 255, 255), "scratch": (0, 0, 0), "stain": (0, 0, 255)}  # BGR, as the kit's classifier sees it


def classes(scratch: Severity = "critical") -> tuple[ClassSpec, ...]:
    kinds: dict[str, Severity] = {"good": "ok", "scratch": scratch, "stain": "minor"}
    return tuple(ClassSpec(name=name, severity=severity) for name, severity in kinds.items())


def bundle(path: Path, name: str, **more: object) -> Bundle:
    return make_bundle(path, **{"name": name, "classes": classes(), **more})  # type: ignore[arg-type]


def blind(path: Path, name: str = "blind", **more: object) -> Bundle:
    """Says the same of every part, so no limit tells a good one from a scratched one."""
    return bundle(path, name, graph=constant_classifier((2.0, 0.0, 0.0)), outputs=_only_logits(), **more)


def _only_logits() -> object:
    from agent.bundle import Outputs

    return Outputs(logits="logits")


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Bundle, Bundle]:
    return bundle(tmp_path, "seeing"), blind(tmp_path)


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """In val and in test ten good parts, eight scratched and two stained ones; each looks a little different."""
    root, rng = tmp_path / "parts", np.random.default_rng(1)
    for split in ("val", "test"):
        for label, count in {"good": 10, "scratch": 8, "stain": 2}.items():
            (root / split / label).mkdir(parents=True)
            for i in range(count):
                noise = rng.integers(0, 40, (40, 50, 3))
                shown = plain_image(COLOURS[label], width=50, height=40).astype(int)
                shown += np.where(shown > 128, -noise, noise)
                cv2.imwrite(str(root / split / label / f"{i}.png"), shown.clip(0, 255).astype(np.uint8))
    return root


def compared(bundles: tuple[Bundle, ...], parts: Path, *flags: object) -> Ran:
    return run_command(COMMAND, *(b.path for b in bundles), "--data", parts, *flags)


def test_one_bundle_is_nothing_to_compare(pair: tuple[Bundle, Bundle], parts: Path) -> None:
    """Said in one sentence, not by a division by nothing."""
    ran = compared(pair[:1], parts)

    assert (ran.code, "got 1 bundle, expected two or more" in ran.err) == (2, True)


def test_the_same_bundle_twice_is_a_mistake(pair: tuple[Bundle, Bundle], parts: Path) -> None:
    """Whoever types one name twice would read that there is no difference."""
    ran = compared((pair[0], pair[0]), parts)

    assert (ran.code, "has the same content as" in ran.err) == (2, True)


def test_bundles_that_call_another_defect_critical_are_refused(tmp_path: Path, parts: Path) -> None:
    """They would not miss the same."""
    ran = compared((bundle(tmp_path, "a"), bundle(tmp_path, "b", classes=classes("major"))), parts)

    assert ran.code == 2
    assert "the class scratch is critical in a-1.0.0 and major in b-1.0.0" in ran.err


def test_a_classifier_without_an_ok_class_is_refused(tmp_path: Path, pair: tuple[Bundle, Bundle], parts: Path) -> None:
    """It stops every part, so it misses none: it must not be recommended for that."""
    all_bad = tuple(ClassSpec(name=c.name, severity="critical" if c.name == "scratch" else "minor") for c in classes())

    ran = compared((pair[0], bundle(tmp_path, "stops", classes=all_bad)), parts)

    assert ran.code == 2
    assert "stops-1.0.0: no class of this classifier is ok" in ran.err


def test_a_set_without_critical_parts_is_refused(pair: tuple[Bundle, Bundle], parts: Path) -> None:
    """Nought of nought missed would read as perfect."""
    for path in (parts / "test" / "scratch").iterdir():
        path.unlink()

    ran = compared(pair, parts)

    assert ran.code == 2
    assert "none of 12 images shows a critical defect" in ran.err
    assert "good 10, stain 2" in ran.err


def test_a_set_without_labels_is_refused(tmp_path: Path, pair: tuple[Bundle, Bundle]) -> None:
    """Nobody knows what was missed there."""
    (tmp_path / "flat").mkdir()
    cv2.imwrite(str(tmp_path / "flat" / "a.png"), plain_image((9, 9, 9)))

    ran = compared(pair, tmp_path / "flat")

    assert (ran.code, "1 images have no label" in ran.err) == (2, True)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--overkill", "5"], "expected a number from 0 to 1"),
        (["--out", "/nowhere/c.png"], "does its folder exist"),
        (["--out", "c.jpg"], "does it end in .png?"),
        (["--false-boxes", "0.5"], "parts are compared here, not boxes"),
        (["--limits-from", "calib"], "no image is in the split 'calib'"),
    ],
)
def test_a_mistake_is_one_sentence_and_a_two(
    pair: tuple[Bundle, Bundle], parts: Path, flags: list[str], expected: str
) -> None:
    """No traceback for a typing error."""
    ran = compared(pair, parts, *flags)

    assert ran.code == 2
    assert expected in ran.err
    assert "Traceback" not in ran.err


def test_limits_from_a_split_need_splits(pair: tuple[Bundle, Bundle], parts: Path) -> None:
    """Overlooked, it would be read as if val had been used."""
    assert compared(pair, parts / "test", "--limits-from", "val").code == 2
    assert compared(pair, parts / "test", "--json").json["limits_from"] == "the same images"


def test_a_bundle_that_can_judge_nothing_is_no_safe_one(
    tmp_path: Path, pair: tuple[Bundle, Bundle], parts: Path
) -> None:
    """It stops every part and so misses none: it must not be recommended for that."""
    mad = bundle(tmp_path, "mad", graph=constant_classifier((float("nan"), 0.0, 0.0)), outputs=_only_logits())

    ran = compared((pair[0], mad), parts)

    assert (ran.code, "mad-1.0.0: could judge none of 20 images" in ran.err) == (2, True)


def test_the_one_that_sees_the_scratches_is_deployed(pair: tuple[Bundle, Bundle], parts: Path) -> None:
    """Through the agent's own inspector, at equal overkill: the blind one can stop none without stopping all."""
    ran = compared(pair, parts, "--overkill", 0.1, "--json")

    assert ran.code == 0
    document = ran.json
    assert document["recommended"] == "seeing-1.0.0"
    assert document["reason"].startswith("deploy seeing-1.0.0: 0 of 8 critical parts missed against 8, p = 0.0078")
    assert [(m["n"], m["missed"], m["task"], m["map50"]) for m in document["models"]] == [
        (8, 0, "classify", None),
        (8, 8, "classify", None),
    ]
    assert (document["unit"], document["severity"], document["p_value"]) == ("part", "critical", 2 / 2**8)
    assert document["models"][1]["overkill_rate"] <= 0.1
    assert all(m["latency_ms"] > 0 for m in document["models"])


def test_limits_are_chosen_on_val_where_there_is_one(pair: tuple[Bundle, Bundle], parts: Path) -> None:
    """The honest way; without it the note says so."""
    chosen, same = (
        compared(pair, parts, "--json", *flags).json for flags in ((), ("--limits-from", "test", "--split", "test"))
    )

    assert (chosen["limits_from"], same["limits_from"]) == ("val", "test")
    assert any("the limits were chosen on val" in note for note in chosen["notes"])
    assert any("the misses are a little too few" in note for note in same["notes"])


def test_the_table_the_sentence_and_the_picture_are_there(
    tmp_path: Path, pair: tuple[Bundle, Bundle], parts: Path
) -> None:
    """For the person who decides."""
    ran = compared(pair, parts, "--overkill", 0.1, "--out", tmp_path / "c.png")

    assert ran.code == 0
    assert ran.out.startswith(
        "8 critical parts of test, 8 groups\n"
        "Each model's limit is set so that both reject the same share of good parts: "
        "at most 1 of 10 good parts of val.\n"
    )
    assert "deploy seeing-1.0.0" in ran.out
    assert "8 of 8" in ran.out
    picture = cv2.imread(str(tmp_path / "c.png"))
    assert picture is not None
    assert picture.shape == (600, 1440, 3)


def test_without_critical_classes_all_defects_count(tmp_path: Path, parts: Path) -> None:
    """And the output says so: a stain then weighs as much as a crack."""
    ran = compared(
        (bundle(tmp_path, "a", classes=classes("major")), blind(tmp_path, classes=classes("major"))), parts, "--json"
    )

    assert (ran.json["severity"], ran.json["models"][0]["n"]) == ("all", 10)
    assert any("no class is critical in these bundles" in note for note in ran.json["notes"])


def test_classifiers_without_good_parts_stand_at_their_own_limits(pair: tuple[Bundle, Bundle], parts: Path) -> None:
    """Overkill can't be made equal where there is none, and the sentence says so."""
    for path in parts.glob("*/good/*.png"):
        path.unlink()

    ran = compared(pair, parts, "--json")

    assert ran.json["limits_from"] == "own"
    assert "without good parts equal overkill can't be had" in ran.json["reason"]
    assert [(m["limit"], m["overkill_rate"]) for m in ran.json["models"]] == [(0.2, None), (0.2, None)]
    assert compared(pair, parts, "--overkill", 0.1).code == 2


def test_a_picture_that_cannot_be_read_is_stopped_and_said(pair: tuple[Bundle, Bundle], parts: Path) -> None:
    """It is nobody's escape, and nobody's merit."""
    (parts / "test" / "scratch" / "0.png").write_bytes(b"no picture")

    document = compared(pair, parts, "--overkill", 0.1, "--json").json

    assert [(m["n"], m["missed"], m["unjudged"]) for m in document["models"]] == [(8, 0, 1), (8, 7, 1)]
    assert (
        "images that could not be judged (1 by seeing-1.0.0, 1 by blind-1.0.0) count as stopped" in document["reason"]
    )


def test_groups_are_read_from_the_table(pair: tuple[Bundle, Bundle], parts: Path) -> None:
    """Eight pictures of one scratched part are one part."""
    files = sorted(path.relative_to(parts) for path in parts.rglob("*.png"))
    rows = [f"{f},{f.parts[1]},{f.parts[0]},{f.parts[0] + '-one' if f.parts[1] == 'scratch' else f}" for f in files]
    (parts / "splits.csv").write_text("\n".join(["file,class,split,group", *rows]))

    document = compared(pair, parts, "--overkill", 0.1, "--json").json

    assert (document["groups"], document["p_value"], document["smallest_difference"]) == (1, 1.0, None)
    assert document["is_shown"] is False


def test_the_run_stands_in_the_ledger(tmp_path: Path, pair: tuple[Bundle, Bundle], parts: Path) -> None:
    """A model that was chosen by this test split has seen it: the next reader must know."""
    ledger = tmp_path / "ledger.jsonl"

    first = compared(pair, parts, "--json", "--ledger", ledger).json
    second = compared(pair, parts, "--json", "--ledger", ledger).json

    assert (first["test_uses"]["before"], second["test_uses"]["before"]) == (0, 1)
    assert "seeing-1.0.0" in second["test_uses"]["models"][0]
    assert prior_uses("0" * 64, ledger).before == 0


def test_bundles_of_one_name_are_called_by_their_files(tmp_path: Path, parts: Path) -> None:
    """Two builds of one model are compared more often than anything else."""
    old = bundle(tmp_path / "old.defect", "kit")
    new = bundle(tmp_path / "new.defect", "kit", temperature=2.0)

    found = compare_bundles([old, new], read_dataset(parts), CompareOptions())

    assert [m.name for m in found.models] == ["old", "new"]
    with pytest.raises(OptimizeError, match="has the same content as"):
        compare_bundles([old, old], read_dataset(parts), CompareOptions())
