"""`defect-opt init`: a folder to begin with, and nothing that was there touched."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from optimize.recipe import RECIPE_FILE, read_recipe
from tests.kit.commands import run_command

COMMAND = "optimize.cli.init"


@pytest.mark.parametrize("there", [RECIPE_FILE, "README.md"])
def test_what_is_there_is_never_overwritten(tmp_path: Path, there: str) -> None:
    """A recipe is work; losing it to a second `init` would be unforgivable."""
    (tmp_path / there).write_text("mine", encoding="utf-8")

    ran = run_command(COMMAND, tmp_path)

    assert ran.code == 2
    assert f"{there}: is there already" in ran.err
    assert [path.name for path in tmp_path.iterdir()] == [there]
    assert (tmp_path / there).read_text(encoding="utf-8") == "mine"


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    """A file stands in the way."""
    (tmp_path / "file").write_bytes(b"")

    ran = run_command(COMMAND, tmp_path / "file" / "line3")

    assert ran.code == 2
    assert "can't be made" in ran.err


def test_the_folder_has_a_recipe_that_loads_and_carries_its_name(tmp_path: Path) -> None:
    """`cd line3 && defect-opt build --int8` must find everything."""
    folder = tmp_path / "line 3"

    assert run_command(COMMAND, folder).code == 0

    recipe = read_recipe(folder)
    assert recipe.name == "line_3"
    assert (recipe.data, recipe.calib, recipe.model) == (folder / "data", folder / "calib", folder / "model.onnx")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "calib", "data", RECIPE_FILE]


def test_the_readme_names_commands_that_exist(tmp_path: Path) -> None:
    """A newcomer types them as they stand."""
    run_command(COMMAND, tmp_path / "line3")
    from optimize.cli import PROGRAM

    text = (tmp_path / "line3" / "README.md").read_text(encoding="utf-8")
    commands = set(re.findall(r"^defect-opt (\w+)", text, re.MULTILINE))

    assert commands == {"data", "train", "build", "evaluate"}
    assert commands <= {name.rpartition(".")[2] for name in PROGRAM.commands}
    assert "line3-1.0.0.defect" in text
