"""Magnetic tiles: recall of each rare class through all rungs as counts, and a planted rung that loses one."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import numpy_helper

from optimize.files import write_atomically
from optimize.ladder import Budget, LadderOptions, RungFile, assess, climb, draw_ladder
from optimize.prune.files import PruneConfig
from tools.bench_frame import say
from tools.bench_ladder.neu import rows_of
from tools.bench_ladder.steps import int8_of, ladder_recipe, pruned, with_checkpoint
from tools.bench_methods.tile import OK, best_config
from tools.bench_quantize.figures import Figure

if TYPE_CHECKING:
    from pathlib import Path

    from optimize.dataset import Dataset
    from tools.bench_methods.trainings import Trainer

__all__ = ["tile_part"]

KEEP = (0.8,)


def tile_part(
    trainer: Trainer, tile: Dataset, weights: Path, work: Path, *, is_quick: bool
) -> tuple[dict[str, Figure], list[dict[str, Any]]]:
    """The rungs below the best network of `tools/bench methods`, and one from which a class was taken."""
    judge = dataclasses.replace(tile, samples=tuple(s for s in tile if s.split != "train"))
    top = RungFile(
        name="top",
        path=with_checkpoint(trainer("tile-best-0", best_config(weights, tile, 0, is_quick=is_quick), tile, judge)),
    )
    recipe = ladder_recipe(tile, OK)
    epochs = 1 if is_quick else None
    cuts = [pruned("top", PruneConfig(keep_macs=k, recover_epochs=epochs, threads=1), tile.root) for k in KEEP]
    files = climb(top, [*cuts, *int8_of(["top", *(cut.name for cut in cuts)], recipe)], work / "ladder-tile")
    files = [*files, _planted(top, _classes(top), work)]
    options = LadderOptions(budget=Budget(max_drop=2.0), split="test", seconds=20, with_sheets=False)
    say("judging the rungs on test")
    ladder = assess(files, tile, recipe, options)
    write_atomically(work / "ladder-tile.png", draw_ladder(ladder))
    planted = next(rung for rung in ladder.rungs if rung.name == "planted")
    # Of break, crack and fray the test split has one group each, which the top takes for other defects; val has more.
    say("judging the rungs on val")
    on_val = assess(files, tile, recipe, dataclasses.replace(options, split="val", seconds=1))
    return {
        "tile_planted_refused": Figure(
            value=float(not planted), low=None, high=None, why="; ".join(lost.sentence() for lost in planted.lost)
        ),
    }, [*rows_of("tile", ladder), *rows_of("tile-val", on_val)]


def _classes(rung: RungFile) -> tuple[str, ...]:
    """In the order of the logits."""
    told = {entry.key: entry.value for entry in onnx.load(rung.path).metadata_props}
    return tuple(json.loads(told["classes"]))


def _planted(top: RungFile, classes: tuple[str, ...], work: Path) -> RungFile:
    """The top with the logit of one class held down: its accuracy hardly falls, as the class is rare."""
    model = onnx.load(top.path)
    at = classes.index("blowhole")
    n_changed = 0
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if tensor.name.startswith("head") and values.shape == (len(classes),):
            lowered = values.copy()
            lowered[at] -= np.float32(50)
            tensor.CopyFrom(numpy_helper.from_array(lowered, tensor.name))
            n_changed += 1
    assert n_changed, f"{top.path} has no bias of its classes"
    path = work / "planted.onnx"
    write_atomically(path, model.SerializeToString(deterministic=True))
    return RungFile(name="planted", path=path, made_from="top")
