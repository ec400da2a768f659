"""Checks on single artefacts: the hostile net, the detector, TensorRT's plan, and building twice."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tools.bench_quantize import theirs
from tools.bench_quantize.figures import Figure, Resampling, absent, points
from tools.bench_quantize.hostile import hostile, unclipped
from tools.bench_quantize.ours import build_bundle, ours, ours_detector
from tools.bench_quantize.sessions import open_session, outputs_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from tools.bench_quantize.scoring import Scorer
    from tools.bench_quantize.sessions import Mode
    from tools.bench_quantize.views import Pictures

__all__ = ["deterministic_check", "hostile_checks", "trt_check", "yolo_checks"]

SAME_LOGITS = 1e-3
"""How far the hostile net's logits may be from the friendly one's, in parts of the largest: it is the same function."""


def hostile_checks(
    model: Path, tensors: Sequence[NDArray[np.uint8]], views: Pictures, scorer: Scorer, mode: Mode
) -> tuple[dict[str, Figure], dict[str, Any]]:
    """Naive and our drop on the hostile net; and a row about it.

    Naive is one scale per tensor with min-max ranges, 8 bits, in exact arithmetic: saturation has no part in it.
    """
    friendly = unclipped(model.read_bytes())
    planted = hostile(friendly)
    before, after = (outputs_of(open_session(g, "exact"), views.images[:20]) for g in (friendly, planted))
    apart = float(np.abs(before - after).max() / np.abs(before).max())
    if apart > SAME_LOGITS:
        raise ValueError(f"the hostile net is not the same function: its logits are {apart:.1e} apart")
    right = scorer.logits(planted, "here", "hostile: float").argmax(axis=1) == views.labels
    naive = theirs.ort_static(theirs.preprocessed(planted), tensors, reduce_range=False)
    resampling = Resampling(views.groups)

    def drop(graph: bytes, arithmetic: Mode, name: str) -> Figure:
        found = scorer.logits(graph, arithmetic, f"hostile: {name}").argmax(axis=1) == views.labels
        return resampling.mean(points(right, found))

    checks = {"hostile_naive_drop": drop(naive, "exact", "naive")}
    row: dict[str, Any] = {
        "net": "hostile",
        "maker": "float",
        "accuracy": round(float(right.mean()), 4),
        "logits_apart": apart,
    }
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        path = Path(folder) / "hostile.onnx"
        path.write_bytes(planted)
        try:
            checks["hostile_drop"] = drop(ours(path, tensors, "cpu"), mode, "ours cpu")
            row["drop_trt"] = drop(ours(path, tensors, "tensorrt"), "exact", "ours tensorrt").to_json()
        except theirs.Unavailable as error:
            checks.setdefault("hostile_drop", absent(str(error)))
    return checks, row


def yolo_checks(model: Path, data: Path, *, has_vnni: bool, limit: int | None) -> tuple[dict[str, Figure], list[Any]]:
    """Which share of its float detections naive INT8 and ours keep, on the test images.

    `kept` counts a float detection whose box (IoU 0.9), class and score INT8 still gives. `strict` compares after
    suppression on both sides: there, which of several boxes around one defect wins is chance when their scores differ
    by a thousandth. The last row says by how much: the float graph against itself on pictures with one grey level of
    noise.
    """
    from tools.bench_models.yolo_kept import boxes_and_scores, pictures, tensor_of

    floating = model.read_bytes()
    size_px = int(open_session(floating, "exact").get_inputs()[0].shape[2])
    found = pictures(data, "test", size_px)[:limit]
    calibration = pictures(data, "calib", size_px)
    wanted = list(boxes_and_scores(floating, found))
    feed = [tensor_of(image) for image in calibration]
    naive = theirs.ort_static(theirs.preprocessed(floating), feed, reduce_range=not has_vnni)
    kept: dict[str, dict[str, Figure]] = {"ORT per tensor (naive)": _kept(wanted, boxes_and_scores(naive, found))}
    for target in ("cpu", "tensorrt"):
        kept[f"ours {target}"] = _ours_kept(model, calibration, found, wanted, target)
    kept["float, +-1 grey level of noise"] = _kept(wanted, boxes_and_scores(floating, _noisy(found)))
    rows = [
        {"net": "yolo", "maker": name.split()[0], "name": name, **{key: f.to_json() for key, f in figures.items()}}
        for name, figures in kept.items()
    ]
    checks = {"yolo_naive_kept": kept["ORT per tensor (naive)"]["kept"], "yolo_kept": kept["ours cpu"]["kept"]}
    return checks, rows


def _ours_kept(
    model: Path,
    calibration: Sequence[NDArray[np.uint8]],
    found: Sequence[NDArray[np.uint8]],
    wanted: Sequence[Any],
    target: str,
) -> dict[str, Figure]:
    from tools.bench_models.yolo_kept import boxes_and_scores

    try:
        graph = ours_detector(model, calibration, target)
    except theirs.Unavailable as error:
        return dict.fromkeys(("kept", "strict"), absent(str(error)))
    return _kept(wanted, boxes_and_scores(graph, found, optimized=target == "cpu"))


def _noisy(images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    steps = (rng.integers(-1, 2, image.shape[:2])[:, :, None] for image in images)
    return [np.clip(image + step, 0, 255).astype(np.uint8) for image, step in zip(images, steps, strict=True)]


def _kept(wanted: Sequence[Any], got: Iterable[Any]) -> dict[str, Figure]:
    """The shares kept, resampled over pictures."""
    from optimize.quantize.kept import kept_share

    counted = [kept_share([ours], [others]) for ours, others in zip(wanted, got, strict=True)]
    total = np.array([share.total for share in counted], float)
    if not total.sum():
        return dict.fromkeys(("kept", "strict"), absent("the float detector finds nothing in these pictures"))
    figures = {}
    for name, kept in (
        ("kept", np.array([share.kept + share.swapped for share in counted], float)),
        ("strict", np.array([share.kept for share in counted], float)),
    ):
        figure = Resampling(np.arange(len(counted))).figure(lambda k, t: k / np.maximum(t, 1), kept, total)
        invented = sum(share.invented for share in counted)
        figures[name] = dataclasses.replace(figure, why=f"{int(kept.sum())} of {int(total.sum())}, {invented} invented")
    return figures


def trt_check(graphs: Mapping[str, bytes | str]) -> tuple[dict[str, Figure], list[Any]]:
    """Share of the layers meant to be INT8 that are, in TensorRT-RTX's plans of all nets."""
    rows: list[Any] = []
    counts = []
    for net, graph in graphs.items():
        if isinstance(graph, str):
            return {"trt_int8_convs": absent(f"{net}: {graph}")}, rows
        try:
            from tools.bench_models.trt_plan import int8_convs

            int8, meant = int8_convs(graph)
        except ModuleNotFoundError as error:
            return {"trt_int8_convs": absent(f"{error.name} is not installed (tools/setup --tensorrt)")}, rows
        except Exception as error:  # its own, and the parser's, which have no common root but this
            return {"trt_int8_convs": absent(f"{net}: {str(error).splitlines()[0][:300]}")}, rows
        counts.append((int8, meant))
        rows.append({"net": net, "maker": "ours", "name": "TensorRT-RTX plan", "int8_layers": int8, "meant": meant})
    share = sum(int8 for int8, _ in counts) / max(sum(meant for _, meant in counts), 1)
    return {"trt_int8_convs": Figure(value=share, low=share, high=share)}, rows


def deterministic_check(model: Path, data: Path) -> dict[str, Figure]:
    """Whether a bundle built with one thread and one built with two are byte-equal."""
    bundles = []
    for threads in (1, 2):
        print(f"bench: building a bundle with {threads} thread{'s' * (threads > 1)}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            try:
                bundles.append(build_bundle(model, data, Path(folder) / "bench.defect", threads=threads))
            except theirs.Unavailable as error:
                return {"deterministic": absent(str(error))}
    same = float(bundles[0] == bundles[1])
    return {"deterministic": Figure(value=same, low=same, high=same)}
