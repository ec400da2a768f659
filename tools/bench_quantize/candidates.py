"""Which INT8 graphs are compared, by whom they are made, and making each once."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.bench_quantize import theirs
from tools.bench_quantize.ours import TARGETS, ours

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from tools.bench_quantize.sessions import Mode

__all__ = ["Candidate", "Maker", "Missing", "Peers"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidate:
    """One INT8 graph of one net.

    Attributes:
        maker: `ours`, `ort` or `nncf`.
        name: what tables call it.
        target: `cpu`, or `tensorrt` (ours only).
        reduced: whether weights have 7 bits, for CPUs without VNNI.
        graph: its bytes.
    """

    maker: str
    name: str
    target: str
    reduced: bool
    graph: bytes

    def modes(self) -> tuple[Mode, ...]:
        """In which arithmetic it makes sense: TensorRT's graph as it is written, 7 bits where 8 would saturate."""
        if self.target == "tensorrt":
            return ("exact",)
        return ("here",) if self.reduced else ("here", "exact")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """A candidate that could not be made."""

    maker: str
    name: str
    target: str
    why: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Peers:
    """How others' graphs are made here.

    Attributes:
        nncf: the Python of NNCF's environment, or why there is none.
        with_reduced: make each a second time with 7-bit weights; without VNNI alone.
    """

    nncf: Path | str
    with_reduced: bool


class Maker:
    """Makes the candidates of one net; others' graphs are kept in the work folder.

    Args:
        model: the float graph's file.
        tensors: calibration pictures, each (1, height_px, width_px, 3) uint8 RGB.
        peers: how others' graphs are made here.
        folder: the work folder.
    """

    def __init__(self, model: Path, tensors: Sequence[NDArray[np.uint8]], peers: Peers, folder: Path) -> None:
        self._model = model
        self._tensors = tensors
        self._peers = peers
        self._folder = folder / "graphs"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._float = model.read_bytes()
        pictures = hashlib.sha256(b"".join(tensor.tobytes() for tensor in tensors)).hexdigest()
        versions = [importlib.metadata.version(name) for name in ("onnx", "onnxruntime")]
        self._key = f"{hashlib.sha256(self._float).hexdigest()} {pictures} {versions}"

    def all(self) -> Iterator[Candidate | Missing]:
        """Ours for each target, then theirs."""
        for target in TARGETS:
            make = functools.partial(ours, self._model, self._tensors, target)
            yield self._made("ours", f"ours {target}", target, make)
        for reduced in (False, True) if self._peers.with_reduced else (False,):
            yield from self._ort(reduced=reduced)
            yield from self._nncf(reduced=reduced)

    def _ort(self, *, reduced: bool) -> Iterator[Candidate | Missing]:
        def per_channel(cut: bool) -> bytes:
            return theirs.ort_percentile(prepared(), self._tensors, reduce_range=reduced, cut=cut)

        def prepared() -> bytes:
            return theirs.preprocessed(self._float)

        makers: dict[str, Callable[[], bytes]] = {
            "ORT per tensor, min-max (default)": lambda: theirs.ort_static(
                prepared(), self._tensors, reduce_range=reduced
            ),
            "ORT per channel, min-max": lambda: per_channel(cut=False),
            "ORT per channel, percentile": lambda: per_channel(cut=True),
        }
        for name, make in makers.items():
            yield self._kept("ort", name, make, reduced=reduced, settings=str(reduced))

    def _nncf(self, *, reduced: bool) -> Iterator[Candidate | Missing]:
        overflow = "enable" if reduced else "default"
        choices = {
            "NNCF default": theirs.NncfSettings(overflow=overflow),
            "NNCF mixed, full bias correction, min-max": theirs.NncfSettings(
                overflow=overflow, fast=False, preset="mixed", ranges="minmax"
            ),
        }
        for name, settings in choices.items():
            python = self._peers.nncf
            if isinstance(python, str):
                yield Missing(maker="nncf", name=name, target="cpu", why=python)
                continue
            words = json.dumps(dataclasses.asdict(settings), sort_keys=True)

            def make(python: Path = python, settings: theirs.NncfSettings = settings) -> bytes:
                return theirs.quantize_nncf(python, self._float, self._tensors, settings)

            yield self._kept("nncf", name, make, reduced=reduced, settings=words)

    def _kept(
        self, maker: str, name: str, make: Callable[[], bytes], *, reduced: bool, settings: str
    ) -> Candidate | Missing:
        """The graph from the work folder where it lies there already."""
        key = hashlib.sha256(f"{self._key} {maker} {name} {settings}".encode()).hexdigest()[:32]
        path = self._folder / f"{key}.onnx"

        def once() -> bytes:
            if path.is_file():
                return path.read_bytes()
            data = make()
            path.with_suffix(".part").write_bytes(data)
            path.with_suffix(".part").replace(path)
            return data

        return self._made(maker, f"{name}{', 7 bits' if reduced else ''}", "cpu", once, reduced=reduced)

    def _made(
        self, maker: str, name: str, target: str, make: Callable[[], bytes], *, reduced: bool = False
    ) -> Candidate | Missing:
        started = time.monotonic()
        try:
            graph = make()
        except Exception as error:  # theirs may fail in any way; the table says how, and the rest goes on
            said: Any = getattr(error, "message", None) or str(error) or type(error).__name__
            print(f"bench: {self._model.stem}: {name}: {said}", file=sys.stderr, flush=True)
            return Missing(maker=maker, name=name, target=target, why=str(said).splitlines()[0][:300])
        print(
            f"bench: {self._model.stem}: {name} made in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True
        )
        return Candidate(maker=maker, name=name, target=target, reduced=reduced, graph=graph)
