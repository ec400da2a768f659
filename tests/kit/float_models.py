"""Small float classifiers that really classify, and pictures for them; made here, nothing is trained with torch.

Parts are grey noise; a `scratch` is a bright line across, a `spot` a dark blob. The network has two convolutions with
fixed random filters, and its linear head is solved by least squares on pictures of its own.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

__all__ = ["CLASSES", "SIDE", "conv_classifier", "picture", "write_model", "write_parts"]

CLASSES = ("ok", "scratch", "spot")
SIDE = 32
FIRST, SECOND = 8, 16


def picture(label: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    """One part, (SIDE, SIDE, 3) uint8 BGR."""
    grey = rng.normal(128, 8, (SIDE, SIDE)).clip(0, 255).astype(np.uint8)
    x, y = (int(v) for v in rng.integers(8, SIDE - 8, 2))
    if label == "scratch":
        cv2.line(grey, (x - 7, y - 6), (x + 7, y + 6), 250, 2)
    elif label == "spot":
        cv2.circle(grey, (x, y), 4, 10, cv2.FILLED)
    return np.ascontiguousarray(np.repeat(grey[:, :, None], 3, axis=2))


def write_parts(root: Path, counts: dict[str, int], *, seed: int = 0, classes: Sequence[str] = CLASSES) -> Path:
    """Write a labelled set with `splits.csv`.

    Args:
        root: the folder, made when absent.
        counts: split to number of pictures of each class.
        seed: other seeds give other pictures.
        classes: which classes.
    """
    rng = np.random.default_rng(seed)
    rows = ["file,class,split"]
    for split, count in counts.items():
        for label in classes:
            for i in range(count):
                file = f"images/{split}_{label}_{i:03d}.png"
                (root / "images").mkdir(parents=True, exist_ok=True)
                assert cv2.imwrite(str(root / file), picture(label, rng))
                rows.append(f"{file},{label},{split}")
    (root / "splits.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root


def write_model(path: Path, **options: Any) -> Path:
    """Write `conv_classifier(**options)` as a file."""
    path.write_bytes(conv_classifier(**options))
    return path


@functools.cache
def conv_classifier(
    *,
    normalization: str = "bytes",
    loudness: float = 1.0,
    with_classes: bool = True,
    head: str = "gemm",
) -> bytes:
    """A classifier of `CLASSES`: uint8 (1, SIDE, SIDE, 3) RGB in; logits, embedding and cam out.

    Args:
        normalization: `bytes` is (x - 128) / 128, which INT8 takes over exactly; `imagenet` differs by channel.
        loudness: the first convolution's first channel is so many times as large as the others, and the second
            convolution takes it back: the same function in float, and ruin for one scale per tensor when it is large.
        with_classes: name the classes in the metadata.
        head: `gemm`, or `conv` for a linear layer written as a convolution over one pixel.
    """
    rng = np.random.default_rng(3)
    first = rng.normal(0, 0.25, (FIRST, 3, 5, 5))
    first -= first.mean(axis=(1, 2, 3), keepdims=True)
    second = rng.normal(0, 0.2, (SECOND, FIRST, 3, 3))
    first[0] *= loudness
    second[:, 0] /= loudness
    weights = {"first": first, "second": second, "second.bias": np.full(SECOND, 0.05)}
    blind = _model(weights, np.zeros((3, SECOND)), np.zeros(3), normalization, head, with_classes=with_classes)
    kernel, bias = _solve_head(blind)
    model = _model(weights, kernel, bias, normalization, head, with_classes=with_classes)
    data = model.SerializeToString(deterministic=True)
    assert isinstance(data, bytes)
    return data


def _solve_head(blind: onnx.ModelProto) -> tuple[NDArray[Any], NDArray[Any]]:
    """Least squares from embeddings to one-hot labels: the head of a network whose features are fixed."""
    session = onnxruntime.InferenceSession(blind.SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(11)
    labels = np.repeat(np.arange(3), 150)
    rows = [session.run(["embedding"], {"image": picture(CLASSES[label], rng)[None]})[0][0] for label in labels]
    features = np.column_stack([np.array(rows), np.ones(len(rows))])
    solution, *_ = np.linalg.lstsq(features, np.eye(3)[labels] * 8, rcond=None)
    return solution[:-1].T, solution[-1]


def _model(
    weights: dict[str, NDArray[Any]],
    kernel: NDArray[Any],
    bias: NDArray[Any],
    normalization: str,
    head: str,
    *,
    with_classes: bool,
) -> onnx.ModelProto:
    constants: dict[str, Any] = {**weights, "bias": bias, "cam.kernel": kernel[:, :, None, None]}
    if normalization == "bytes":
        constants |= {"offset": 128.0, "scale": 1 / 128}
    else:
        constants |= {"offset": [[[[123.7]], [[116.3]], [[103.5]]]], "scale": [[[[0.017]], [[0.018]], [[0.0175]]]]}
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Sub", ["nchw", "offset"], ["centred"]),
        helper.make_node("Mul", ["centred", "scale"], ["normalized"]),
        helper.make_node("Conv", ["normalized", "first"], ["c1"], name="conv1", strides=[2, 2], pads=[2] * 4),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "second", "second.bias"], ["c2"], name="conv2", pads=[1] * 4),
        helper.make_node("Relu", ["c2"], ["r2"], name="relu2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["embedding"], name="flatten"),
        helper.make_node("Conv", ["r2", "cam.kernel"], ["cam"], name="cam_conv"),
    ]
    if head == "gemm":
        constants["kernel"] = kernel
        nodes.append(helper.make_node("Gemm", ["embedding", "kernel", "bias"], ["logits"], name="linear", transB=1))
    else:
        nodes.append(helper.make_node("Conv", ["pooled", "cam.kernel", "bias"], ["linear4"], name="linear"))
        nodes.append(helper.make_node("Flatten", ["linear4"], ["logits"], name="flatten_logits"))
    outputs = {"logits": [1, 3], "embedding": [1, SECOND], "cam": [1, 3, SIDE // 2, SIDE // 2]}
    graph = helper.make_graph(
        nodes,
        "conv_classifier",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, SIDE, SIDE, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(np.asarray(value, dtype=np.float32), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if with_classes:
        helper.set_model_props(model, {"classes": json.dumps(list(CLASSES)), "arch": "conv_classifier"})
    onnx.checker.check_model(model, full_check=True)
    return model
