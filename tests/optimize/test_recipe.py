"""defect-opt.yaml: what is refused, what is left out, and what goes before it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from optimize.errors import RecipeError
from optimize.recipe import RECIPE_FILE, TEMPLATE, ClassRecipe, Recipe, bundle_name, read_recipe, with_flags


def write(folder: Path, text: str) -> Path:
    (folder / RECIPE_FILE).write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("modle: a.onnx", "modle: unknown key (did you mean model?)"),
        ("quantize: {methode: minmax}", "quantize.methode: unknown key (did you mean quantize.method?)"),
        ("max_drop_points: lots", "max_drop_points: got 'lots', expected a number"),
        ("max_drop_points: -1", "max_drop_points: got -1"),
        ("quantize: {weight_bits: 4}", "quantize.weight_bits: got 4, expected one of 7, 8"),
        ("classes: [{name: ok, severity: fine}]", "classes[0].severity: got 'fine'"),
        ("classes: [{name: a, severity: ok}, {name: a, severity: major}]", "classes: 'a' stands twice"),
        ("policy: {review_above: 0.9}", "policy.review_above: got 0.9, expected at most policy.defect_above (0.5)"),
        ("name: 'a b'", "name: got 'a b', expected the form"),
        ("model: [", "not YAML"),
        ("- model", "expected keys and values"),
    ],
)
def test_a_recipe_that_cannot_be_meant_is_refused_by_its_key(tmp_path: Path, text: str, expected: str) -> None:
    """A key that is silently ignored is a build that is not what its file says."""
    write(tmp_path, text)

    with pytest.raises(RecipeError) as caught:
        read_recipe(tmp_path)

    assert expected in caught.value.message
    assert caught.value.hint is not None
    assert "defect-opt init" in caught.value.hint


@pytest.mark.parametrize("text", [None, "", "# nothing yet\n\n"])
def test_an_absent_or_empty_recipe_has_every_default(tmp_path: Path, text: str | None) -> None:
    """`defect-opt build` with flags only needs no file."""
    if text is not None:
        write(tmp_path, text)

    assert read_recipe(tmp_path) == Recipe()


def test_relative_paths_start_at_the_recipe(tmp_path: Path) -> None:
    """A recipe that is copied with its folder still works."""
    write(tmp_path, "model: nets/a.onnx\nclasses:\n  - {name: ok, severity: ok}\n")

    recipe = read_recipe(tmp_path)

    assert recipe.model == tmp_path / "nets" / "a.onnx"
    assert recipe.classes == (ClassRecipe(name="ok", severity="ok"),)


def test_the_template_holds_every_key_with_its_default(tmp_path: Path) -> None:
    """It is the reference: a key that is not in it can't be found, a wrong default there misleads."""
    recipe = read_recipe(write(tmp_path, TEMPLATE))

    assert recipe == Recipe(model=tmp_path / "model.onnx", data=tmp_path / "data", calib=tmp_path / "calib")
    assert keys(yaml.safe_load(TEMPLATE)) == keys(dataclasses.asdict(Recipe()))


def keys(values: dict[str, Any]) -> dict[str, Any]:
    return {key: keys(value) if isinstance(value, dict) else None for key, value in values.items()}


def test_the_command_line_goes_before_the_recipe() -> None:
    """A flag that loses against a file is a flag that lies."""
    recipe = with_flags(Recipe(seed=1, name="a"), {"seed": ("--seed", 2), "name": ("--name", None)})

    assert (recipe.seed, recipe.name) == (2, "a")


def test_a_flag_out_of_bounds_is_refused_by_its_own_name() -> None:
    """The user typed --max-drop and knows no max_drop_points."""
    with pytest.raises(RecipeError) as caught:
        with_flags(Recipe(), {"max_drop_points": ("--max-drop", -1.0)})

    assert caught.value.message.startswith("--max-drop: got -1")
    assert "expected 0 to 100" in caught.value.message


@pytest.mark.parametrize(
    ("stem", "expected"), [("neu", "neu"), ("line 3", "line_3"), ("Größe", "Gr__e"), ("..a", "a"), ("", "")]
)
def test_a_bundle_is_named_with_what_its_name_can_hold(stem: str, expected: str) -> None:
    """The name becomes a field of every message; other letters would be refused by the manifest."""
    assert bundle_name(stem) == expected
