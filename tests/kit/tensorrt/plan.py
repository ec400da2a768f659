"""The stand-in's plan: a sealed ONNX graph, and on what and with which options it was built."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

__all__ = ["Build", "read_plan", "seal", "unseal"]

MAGIC = b"ftrt-stand-in\x00"
DIGEST_BYTES = 32


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """What one `build_serialized_network` was asked for.

    Attributes:
        version: TensorRT's, such as `10.3.0`.
        compute_capability: of the GPU, such as (8, 7).
        device: the GPU's name.
        flags: names of the builder flags that were set; `TF32` is set unless it was cleared.
        network_flags: names of the network's flags.
        typing: `strong` or `weak`.
        workspace_bytes: the workspace limit.
        optimization_level: the builder's, 3 unless set.
        profiling_verbosity: its name.
        device_type: `GPU` or `DLA`.
        dla_core: which, -1 for none.
        calibration: the cache that the calibrator gave, or "".
        timing_entries: how many timings the cache had at the start.
        is_watched: whether a progress monitor was set.
        graph_sha256: of the ONNX bytes.
    """

    version: str
    compute_capability: tuple[int, int]
    device: str
    flags: tuple[str, ...]
    network_flags: tuple[str, ...]
    typing: str
    workspace_bytes: int
    optimization_level: int
    profiling_verbosity: str
    device_type: str
    dla_core: int
    calibration: str
    timing_entries: int
    is_watched: bool
    graph_sha256: str


def seal(build: Build, graph: bytes) -> bytes:
    """Write a plan."""
    facts = json.dumps(dataclasses.asdict(build), sort_keys=True).encode()
    body = MAGIC + len(facts).to_bytes(4, "big") + facts + graph
    return body + hashlib.sha256(body).digest()


def unseal(plan: bytes) -> tuple[Build, bytes]:
    """Read a plan.

    Raises:
        ValueError: it is none, or is damaged.
    """
    body, digest = plan[:-DIGEST_BYTES], plan[-DIGEST_BYTES:]
    if not body.startswith(MAGIC) or hashlib.sha256(body).digest() != digest:
        raise ValueError("no plan of the stand-in, or a damaged one")
    at = len(MAGIC) + 4
    end = at + int.from_bytes(body[len(MAGIC) : at], "big")
    facts: dict[str, Any] = json.loads(body[at:end])
    for name in ("compute_capability", "flags", "network_flags"):
        facts[name] = tuple(facts[name])
    return Build(**facts), body[end:]


def read_plan(plan: bytes) -> Build:
    """With which options a plan was built.

    Raises:
        ValueError: it is none, or is damaged.
    """
    return unseal(plan)[0]
