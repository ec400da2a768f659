"""`defect-opt ladder` as a user types it: real files, real INT8, the agent's own code."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from agent.bundle import open_bundle
from agent.config import EngineConfig
from agent.profile import profile_graphs, write_profile
from optimize.cli.ladder_plan import Wanted, planned_rungs
from optimize.dataset import read_dataset
from optimize.evaluate import evaluate
from optimize.ladder import RungFile
from optimize.progress import SilentProgress
from optimize.recipe import LadderRecipe, Recipe
from tests.kit.bundles import make_bundle
from tests.kit.commands import Ran, run_command
from tests.kit.float_models import CLASSES, conv_classifier, write_model, write_parts
from tests.kit.rungs import blind_to, with_weights

COMMAND = "optimize.cli.ladder"
RECIPE = "targets: [cpu]\nquantize: {method: minmax, equalize: none, correction: none, max_float_layers: 0}\n"


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parts(tmp_path_factory.mktemp("parts"), {"train": 1, "calib": 8, "val": 10, "test": 4})


@pytest.fixture(scope="module")
def top(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("top") / "large.onnx")


def climbed(folder: Path, *flags: object, recipe: str = RECIPE) -> Ran:
    (folder / "defect-opt.yaml").write_text(recipe, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return run_command(COMMAND, "--seconds", "0.1", *flags)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "--top: not given"),
        (["--top", "none.onnx"], "--top: none.onnx: no such file"),
        (["--top", "TOP"], "--data: not given"),
        (["--top", "TOP", "--data", "none"], "none: no such folder"),
        (["--top", "TOP", "--data", "DATA", "--keep-macs", "1.5"], "expected a number from 0.01 to 0.99"),
        (["--top", "TOP", "--data", "DATA", "--max-drop", "-1"], "expected a number from 0 to 100"),
        (["--top", "TOP", "--data", "DATA", "--max-latency-ms", "fast"], "got 'fast'"),
        (["--top", "TOP", "--data", "DATA", "--rung", "small"], "--rung: got 'small', expected NAME=FILE"),
        (["--top", "TOP", "--data", "DATA", "--rung", "a/b=TOP"], "--rung: got 'a/b="),
        (["--top", "TOP", "--data", "DATA", "--rung", "small=none.onnx"], "--rung: none.onnx: no such file"),
        (["--top", "TOP", "--data", "DATA", "--rung", "top=TOP", "--keep-macs"], "a rung called top already"),
        (["--top", "TOP", "--data", "DATA", "--out", "x.zip"], "--out: x.zip can't be written"),
        (["--top", "TOP", "--data", "DATA", "--work", "defect-opt.yaml"], "--work: defect-opt.yaml can't be made"),
        (["--top", "TOP", "--data", "DATA/images"], "--calib: not given, and the data have no calib split"),
        (["--top", "TOP", "--data", "DATA", "--profile", "none.json"], "none.json: can't be read"),
        (["--top", "TOP", "--data", "DATA", "--split", "all"], "invalid choice: 'all'"),
        (["--top", "TOP", "--data", "DATA", "--keep-macs", "0.5", "0.5"], "--keep-macs: pruned-0.5 is asked for twice"),
        (["--top", "TOP", "--data", "DATA", "--prune", "--lr 'x"], "--prune: \"--lr 'x\" can't be taken apart"),
        (["--top", "TOP", "--data", "DATA", "--prune=--help"], "--prune: --keep-macs 0.7 --help asks for help"),
        (["--top", "TOP", "--data", "DATA", "--prune=--no-such 1"], "unrecognized arguments: --no-such"),
        (
            ["--top", "TOP", "--data", "DATA", "--student", "tiny", "--distill", "--seed '1", "--keep-macs"],
            "--distill: \"--seed '1\" can't be taken apart",
        ),
    ],
)
def test_a_mistake_is_one_sentence_and_a_two(
    tmp_path: Path, parts: Path, top: Path, flags: list[str], expected: str
) -> None:
    """Before anything is trained."""
    words = [flag.replace("TOP", str(top)).replace("DATA", str(parts)) for flag in flags]

    ran = climbed(tmp_path, *words)

    assert (ran.code, expected in ran.err, "Traceback" in ran.err, ran.out) == (2, True, False, "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ladder: {max_drp: 1}", "ladder.max_drp: unknown key"),
        ("ladder: {max_escape: 2}", "ladder.max_escape: got 2"),
        ("ladder: {keep_macs: [2]}", "ladder.keep_macs[0]: got 2"),
    ],
)
def test_a_recipe_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    """By its key."""
    ran = climbed(tmp_path, recipe=text)

    assert (ran.code, expected in ran.err) == (2, True)


def test_from_a_float_network_to_a_bundle_within_the_budget(tmp_path: Path, parts: Path, top: Path) -> None:
    """INT8 is made, judged, timed; a planted rung that lost a class is refused; the second run makes nothing again.

    Two structures on a real machine may be alike in speed, so which of the sound ones is taken is not asserted.
    """
    (tmp_path / "blind.onnx").write_bytes(blind_to("spot"))
    flags = ["--top", top, "--data", parts, "--work", tmp_path / "w", "--keep-macs"]
    flags += ["--rung", f"blind={tmp_path / 'blind.onnx'}", "--max-drop", "40"]

    ran = climbed(tmp_path, *flags)

    assert ran.code == 0, ran.err
    assert "refused: blind loses the class spot: 10 of 10 before, 0 now (none is left)" in ran.out
    assert "top-int8: from top" in ran.err
    told = json.loads((tmp_path / "w" / "ladder.json").read_text(encoding="utf-8"))
    assert [rung["name"] for rung in told["rungs"]] == ["top", "top-int8", "blind"]
    assert told["chosen"] in ("top", "top-int8")
    assert told["rungs"][1]["graph"] == "cpu"
    assert (tmp_path / "w" / "ladder.png").is_file()
    assert (tmp_path / "w" / "sheets" / "blind.png").is_file()
    bundle = open_bundle(tmp_path / "w" / "large-1.0.0.defect")
    assert bundle.manifest.cpu_graph == ("cpu" if told["chosen"] == "top-int8" else "fp32")
    card, _ = evaluate(bundle, read_dataset(parts).take("val"), EngineConfig())
    assert card.accuracy == next(r["accuracy"] for r in told["rungs"] if r["name"] == told["chosen"])

    again = climbed(tmp_path, *flags, "--json")
    assert again.code == 0
    assert "top-int8: is there already" in again.err
    assert again.json["bundle"] == str(tmp_path / "w" / "large-1.0.0.defect")


def test_a_budget_that_nothing_keeps_is_a_one_and_names_the_nearest(tmp_path: Path, parts: Path, top: Path) -> None:
    """With the limit that it breaks, and by how much; no bundle is written."""
    flags = ["--top", top, "--data", parts, "--work", tmp_path / "w", "--no-int8", "--keep-macs"]

    ran = climbed(tmp_path, *flags, "--max-size-mb", "0.001", "--json")

    assert ran.code == 1
    assert (ran.json["chosen"], ran.json["nearest"], ran.json["bundle"]) == (None, "top", None)
    assert [breach["limit"] for breach in ran.json["breaches"]] == ["max_size_mb"]
    assert not list((tmp_path / "w").glob("*.defect"))
    ran = climbed(tmp_path, *flags, "--max-escape", "0.001")
    assert ran.code == 1
    assert "NOT MET: no rung keeps every limit; the nearest is top: max_escape: 0 of 20 escape" in ran.out


@pytest.mark.parametrize("flags", [["--max-size-mb", "0.001"], ["--no-int8"]], ids=["no rung fits", "no bundle made"])
def test_a_bundle_of_an_earlier_run_is_put_out_of_the_way(
    tmp_path: Path, parts: Path, top: Path, flags: list[str]
) -> None:
    """It lies where this run's bundle would: somebody would ship it as if this run had taken it."""
    work = tmp_path / "w"
    common = ["--top", top, "--data", parts, "--work", work, "--keep-macs"]
    assert climbed(tmp_path, *common).code == 0
    earlier = (work / "large-1.0.0.defect").read_bytes()

    ran = climbed(tmp_path, *common, *flags)

    assert not list(work.glob("*.defect"))
    assert (work / "large-1.0.0.defect.old").read_bytes() == earlier
    assert f"set aside: {work / 'large-1.0.0.defect.old'}, the bundle of an earlier run" in ran.out
    told = json.loads((work / "ladder.json").read_text(encoding="utf-8"))
    assert (told["bundle"], told["set_aside"]) == (None, str(work / "large-1.0.0.defect.old"))


def test_what_fell_and_what_the_top_does_not_find_are_marked_in_the_table(tmp_path: Path, parts: Path) -> None:
    """`?` and `~`, each with a note; nothing of both is refused."""

    def shy(arrays: dict[str, Any]) -> None:
        arrays["bias"][CLASSES.index("spot")] -= 7

    def blind(arrays: dict[str, Any]) -> None:
        arrays["bias"][CLASSES.index("scratch")] = -100

    (tmp_path / "top.onnx").write_bytes(with_weights(blind))
    (tmp_path / "shy.onnx").write_bytes(with_weights(shy, with_weights(blind)))
    flags = ["--top", "top.onnx", "--data", parts, "--no-int8", "--keep-macs", "--rung", "shy=shy.onnx"]

    ran = climbed(tmp_path, *flags)

    assert ran.code == 0, ran.err
    rows = {line.split()[0]: line.split()[1:] for line in ran.out.splitlines() if line}
    assert rows["scratch"] == ["0/10~", "0/10"]
    assert rows["spot"] == ["10/10", "6/10?"]
    assert "note: the top finds 0 of 10 of scratch: this ladder says nothing of it" in ran.out
    assert "note: shy, not refused for it (`?` in the table): finds less of spot: 10 of 10 before, 6 now" in ran.out


@pytest.mark.parametrize("flag", ["--unlabelled", "--weights", "--teacher"])
def test_a_rung_knows_what_its_flags_name_by_content(tmp_path: Path, parts: Path, top: Path, flag: str) -> None:
    """Pictures that were added to a folder, or another file in its place, make the rung anew."""
    named = tmp_path / "named"
    if flag == "--unlabelled":
        named.mkdir()
        (named / "1.png").write_bytes(b"one")
    else:
        named.write_bytes(b"one")
    recipe = Recipe(data=parts, ladder=LadderRecipe(student="tiny", keep_macs=()))
    wanted = Wanted(recipe=recipe, distill=f"{flag} {named}", has_int8=False)

    def reads() -> dict[str, str]:
        plan = planned_rungs(RungFile(name="top", path=top), wanted, tmp_path / "w", SilentProgress())
        return dict(plan.rungs[0].reads)

    first = reads()
    assert reads() == first
    (named / "2.png" if named.is_dir() else named).write_bytes(b"two")

    assert reads() != first


def test_a_devices_profile_is_what_counts(tmp_path: Path, parts: Path, top: Path) -> None:
    """Made by the device's own command on files that defect-opt wrote."""
    import onnx

    from optimize.quantize.model import bytes_from_model

    stamped = tmp_path / "stamped.onnx"
    stamped.write_bytes(bytes_from_model(onnx.load_model_from_string(conv_classifier())))
    write_profile(tmp_path / "pi.json", profile_graphs([stamped], seconds=0.05))
    flags = ["--top", stamped, "--data", parts, "--work", tmp_path / "w", "--no-int8", "--keep-macs"]

    ran = climbed(tmp_path, *flags, "--profile", tmp_path / "pi.json", "--json")

    assert ran.code == 0
    assert ran.json["from_profile"] is True
    assert ran.json["chosen"] == "top"


def test_a_classifier_on_a_set_with_boxes_is_judged_by_its_labels(tmp_path: Path, top: Path) -> None:
    """NEU has both: what is outlined there says nothing of a network that gives no boxes."""
    own = write_parts(tmp_path / "own", {"val": 4})
    rows = [f"images/val_spot_{i:03d}.png,spot,1,1,9,9" for i in range(4)]
    (own / "boxes.csv").write_text("\n".join(["file,class,xmin,ymin,xmax,ymax", *rows]) + "\n", encoding="utf-8")
    (tmp_path / "blind.onnx").write_bytes(blind_to("spot"))

    ran = climbed(
        tmp_path, "--top", top, "--data", own, "--no-int8", "--keep-macs", "--rung", "blind=blind.onnx", "--json"
    )

    assert ran.code == 0, ran.err
    assert (ran.json["measure"], ran.json["chosen"]) == ("accuracy", "top")
    assert ran.json["rungs"][1]["recall"]["spot"] == {"hits": 0, "n": 4, "severity": "major"}
    assert ran.json["rungs"][1]["flipped"]["broke"] == 4


def test_without_pytorch_a_ruined_int8_rung_is_judged_as_it_is(
    tmp_path: Path, parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last resort needs it, and all rungs are made by then: it is named, and the ladder ends as it would have."""
    monkeypatch.setitem(sys.modules, "torch", None)
    write_model(tmp_path / "theirs.onnx", loudness=3000.0)

    ran = climbed(tmp_path, "--top", "theirs.onnx", "--data", parts, "--keep-macs", "--max-drop", "2", "--json")

    assert ran.code == 0, ran.err
    sentence = ran.json["rungs"][1]["recovery"]["sentence"]
    assert "the Python package torch is not installed, and recovering an INT8 network needs it" in sentence


@pytest.mark.parametrize("which", ["top", "rung"])
def test_the_bundle_is_not_written_over_what_it_is_made_from(tmp_path: Path, which: str) -> None:
    """Not over the top, not over a rung, and neither is renamed as if an earlier run had left it."""
    top = make_bundle(tmp_path, name="large").path
    rung = make_bundle(tmp_path, name="small").path
    out = top if which == "top" else rung
    before = out.read_bytes()

    ran = climbed(tmp_path, "--top", top, "--rung", f"small={rung}", "--work", tmp_path / "w", "--out", out)

    assert (ran.code, f"is the {which} itself" in ran.err) == (2, True)
    assert out.read_bytes() == before
