"""The state of a training run on disk, so that one that was killed goes on where it was."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from optimize.errors import OptimizeError
from optimize.files import write_atomically

__all__ = ["Checkpoint", "read_checkpoint"]

FORMAT = 1
REMEDY = "add --fresh to start anew, or give another --workdir"


class Checkpoint:
    """One file of tensors and plain values, so that loading it runs no code.

    Args:
        path: the file.
        run_of: what makes a run this run (recipe, data), as text; a file of another run is refused.
    """

    def __init__(self, path: Path, run_of: Mapping[str, str]) -> None:
        self.path = path
        self._run_of = dict(run_of)

    def forget(self) -> None:
        """Remove the file, if there is one."""
        self.path.unlink(missing_ok=True)

    def save(self, state: Mapping[str, Any]) -> None:
        """Write the file; a crash leaves the one before.

        Raises:
            ModelError: it can't be written.
        """
        buffer = io.BytesIO()
        torch.save({"format": FORMAT, "run_of": self._run_of, "state": dict(state)}, buffer)
        write_atomically(self.path, buffer.getvalue())

    def load(self) -> dict[str, Any] | None:
        """The state that was saved, or None when there is no file.

        Raises:
            OptimizeError: the file is damaged, or of another run (what differs is named).
        """
        if not self.path.exists():
            return None
        run_of, state = read_checkpoint(self.path)
        for key in sorted({*self._run_of, *run_of}):
            if run_of.get(key) != self._run_of.get(key):
                raise OptimizeError(
                    f"{self.path}: is of a run with {key} {run_of.get(key)}, this one has {self._run_of.get(key)}",
                    hint=REMEDY,
                )
        return state


def read_checkpoint(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """What makes the run of a checkpoint this run, and its state; loading it runs no code.

    Raises:
        OptimizeError: the file is missing, damaged, or of another format.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        form, run_of, state = found["format"], dict(found["run_of"]), dict(found["state"])
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise OptimizeError(f"{path}: is damaged, or no checkpoint", hint=REMEDY) from error
    if form != FORMAT:
        raise OptimizeError(f"{path}: got format {form}, expected {FORMAT}", hint=REMEDY)
    return run_of, state
