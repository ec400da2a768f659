"""The ledger: lines that stay, whoever writes at the same time, whatever was damaged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from optimize.errors import OptimizeError
from optimize.ledger import DataUse, Entry, ledger_path, prior_uses, read_ledger, record
from tests.kit.commands import run_command

ROOT = Path(__file__).resolve().parents[2]


def judged(digest: str = "d" * 64, model: str = "neu-1.0.0 (abc)") -> Entry:
    return Entry(
        command="evaluate",
        data=(DataUse(path="NEU", sha256=digest, splits={"test": 12}),),
        figures={"accuracy": 0.5},
        model=model,
    )


def test_a_ledger_that_cannot_be_written_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The work was done; to fail now would throw it away."""
    (tmp_path / "file").write_text("")

    assert not record(judged(), tmp_path / "file" / "ledger.jsonl")
    assert not record(judged(), tmp_path)

    assert capsys.readouterr().err.count("so this run stands in no ledger") == 2


def test_a_ledger_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """A folder is no ledger."""
    with pytest.raises(OptimizeError, match="can't be read"):
        read_ledger(tmp_path)


@pytest.mark.parametrize(
    "rubbish", [b"{", b"\xff\xfe\n", b"[1]\n", b'{"command": 3, "time": "x"}\n', b"[" * 9999 + b"\n"]
)
def test_a_damaged_line_is_counted_and_the_others_are_read(tmp_path: Path, rubbish: bytes) -> None:
    """A power cut in the middle of a line must not take the history with it."""
    path = tmp_path / "ledger.jsonl"
    record(judged(), path)
    path.write_bytes(path.read_bytes() + rubbish)
    record(judged(), path)

    found = read_ledger(path)

    assert [line["command"] for line in found.lines] == ["evaluate", "evaluate"]
    assert found.damaged == (2,)
    assert "1 damaged lines" in prior_uses("d" * 64, path).sentence()


def test_a_line_that_was_cut_stays_on_a_line_of_its_own(tmp_path: Path) -> None:
    """The next one must not be glued to it."""
    path = tmp_path / "ledger.jsonl"
    record(judged(), path)
    path.write_bytes(path.read_bytes()[:-20])

    record(judged(), path)

    assert (len(read_ledger(path).lines), read_ledger(path).damaged) == (1, (1,))


def test_a_line_says_when_what_and_with_which_versions(tmp_path: Path) -> None:
    """UTC, plain JSON, one line."""
    path = tmp_path / "ledger.jsonl"
    assert record(judged(model="naïve\n"), path)

    assert path.read_bytes().count(b"\n") == 1
    line = json.loads(path.read_text("utf-8"))
    assert line["time"].endswith("Z")
    assert line["data"] == [{"path": "NEU", "sha256": "d" * 64, "splits": {"test": 12}}]
    assert line["model"] == "naïve\n"
    assert {"defect-opt", "python", "numpy"} <= set(line["versions"])


def test_earlier_uses_of_a_test_split_are_counted_with_their_models(tmp_path: Path) -> None:
    """Of this data only, and each model once."""
    path = tmp_path / "ledger.jsonl"
    for model in ("a-1", "b-1", "a-1"):
        record(judged(model=model), path)
    record(judged(digest="e" * 64), path)
    record(Entry(command="train", data=judged().data), path)

    uses = prior_uses("d" * 64, path)

    assert (uses.before, uses.models) == (3, ("a-1", "b-1"))
    assert "was judged 3 times before, last at 20" in uses.sentence()
    assert "choose nothing by it" in uses.sentence()
    assert prior_uses("f" * 64, path).before == 0
    assert prior_uses("f" * 64, tmp_path / "none.jsonl").last is None


def test_two_commands_at_once_lose_no_line(tmp_path: Path) -> None:
    """Two bundles are judged in two terminals."""
    code = (
        "import sys; from pathlib import Path; from optimize.ledger import Entry, record\n"
        "for i in range(50): record(Entry(command='evaluate', model='x' * 3000), Path(sys.argv[1]))"
    )
    path = tmp_path / "ledger.jsonl"
    running = [subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT) for _ in range(2)]
    assert [process.wait(timeout=120) for process in running] == [0, 0]

    assert (len(read_ledger(path).lines), read_ledger(path).damaged) == (100, ())


def test_the_flag_goes_before_the_environment(tmp_path: Path) -> None:
    """What was typed is meant."""
    assert ledger_path(tmp_path / "mine") == tmp_path / "mine"
    assert ledger_path() == Path(os.environ["DEFECT_OPT_LEDGER"])


@pytest.mark.parametrize("arguments", [("--last", 0), ("--last", -3)])
def test_the_command_refuses_what_makes_no_sense(tmp_path: Path, arguments: tuple[object, ...]) -> None:
    """One sentence, exit 2."""
    assert run_command("optimize.cli.ledger", "--ledger", tmp_path / "none", *arguments).code == 2


def test_the_command_shows_lines_and_what_is_damaged(tmp_path: Path) -> None:
    """Also what another version wrote, or a hand."""
    path = tmp_path / "ledger.jsonl"
    record(judged(), path)
    with path.open("a") as file:
        file.write('{"command": "odd", "time": "then", "data": 3, "figures": [1]}\nrubbish\n')
    record(judged(model="other"), path)

    shown = run_command("optimize.cli.ledger", "--ledger", path).out
    document = run_command("optimize.cli.ledger", "--ledger", path, "--last", 1, "--json").json

    assert [line.split()[1] for line in shown.splitlines()[1:4]] == ["evaluate", "odd", "evaluate"]
    assert "warning: line 3" in shown
    assert [entry["model"] for entry in document["entries"]] == ["other"]
    assert document["damaged_lines"] == [3]


def test_an_empty_ledger_says_so(tmp_path: Path) -> None:
    """It is no error: nothing was done yet."""
    ran = run_command("optimize.cli.ledger", "--ledger", tmp_path / "none.jsonl")

    assert ran.code == 0
    assert "nothing was noted yet" in ran.out
