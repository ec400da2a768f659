"""Normalization written into a graph: bytes in, and as little arithmetic before the first convolution as is exact.

What a foreign model was fed is `(byte * scale - mean) / std`, in its own channel order. With a = scale / std and
z = mean / scale, both per channel, that is `a * (M x - z)`: M is the 3 x 3 identity for RGB, its mirror for BGR, and
rows of luma weights for grey. Every row of M sums to 1, so a z that is the same for all channels may be taken off
before M. What then follows from where the picture goes:

```text
it goes into convolutions only                         → a and M go into their weights: always exact
  and z is one whole number from 0 to 255              → (byte - z) * s: the bytes are the first layer's input
  and they don't pad                                   → (byte - 128) * s, and the rest of z goes into their bias
  else                                                 → (byte - z) * s in float, z per channel: a padded zero stands
                                                         for z, and no byte is z
it goes elsewhere first, or into groups of channels    → all of it in front, in float
```
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from optimize.quantize.graph import Graph
from optimize.quantize.onnx_file import add_constant
from optimize.recipe import PreprocessRecipe

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

__all__ = ["LUMA", "write_front"]

LUMA = (0.299, 0.587, 0.114)
"""Grey from red, green, blue: ITU-R BT.601-7, 2.5.1; OpenCV and Pillow compute the same, and round it."""

WHOLE = 1e-3
"""How far z may lie from a whole grey level: a mean that was written with a few digits."""

BYTES_NOTE = "the first convolution reads the camera's bytes"
FLOAT_NOTE = "so the picture is normalized in float before the first convolution, and quantized after that"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Affine:
    """`gain * (mix @ rgb - zero)`: gain and zero (C,), mix (C, 3), float64, in the model's channel order."""

    gain: NDArray[np.float64]
    zero: NDArray[np.float64]
    mix: NDArray[np.float64]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Front:
    """What stands before the model: `(mix(rgb) - zero) * gain`, per channel or for all.

    Attributes:
        mix: None leaves RGB as it is.
        zero: (1,) or (C,).
        gain: (1,) or (C,).
    """

    mix: NDArray[np.float64] | None
    zero: NDArray[np.float64]
    gain: NDArray[np.float64]


def write_front(
    model: onnx.ModelProto, *, source: str, tensor: str, channels: int, layout: str, how: PreprocessRecipe
) -> tuple[str, ...]:
    """Put Cast, Transpose and normalization between the bytes and the model; the graph is changed in place.

    Args:
        model: reads `tensor`, which nothing makes yet.
        source: the uint8 input, (1, H, W, 3) RGB.
        tensor: what the model was fed, float32.
        channels: of the model, 1 or 3.
        layout: `nchw` or `nhwc`, the model's.
        how: the normalization that it was trained with.

    Returns:
        What was done, one sentence each.
    """
    affine = _affine(how, channels)
    axis = 1 if layout == "nchw" else 3
    convolutions = _first_convolutions(Graph(model), tensor, axis)
    front, note = _plan(model, affine, convolutions)
    _write(model, source, tensor, axis, front)
    colour = {"rgb": "RGB", "bgr": "BGR", "grey": "grey"}[how.colour]
    return f"input: {colour}, {_numbers(affine.gain)} * (byte - {_numbers(affine.zero)}), {layout.upper()}", note


def _affine(how: PreprocessRecipe, channels: int) -> _Affine:
    mean, std = (np.broadcast_to(np.asarray(v, np.float64), (channels,)) for v in (how.mean, how.std))
    mixes = {"rgb": np.eye(3), "bgr": np.eye(3)[::-1], "grey": np.tile(LUMA, (channels, 1))}
    return _Affine(gain=how.scale / std, zero=mean / how.scale, mix=mixes[how.colour])


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Convolution:
    """One that reads the picture: its node, weights (O, C, kh, kw) and bias (O,), or None where it has none."""

    node: onnx.NodeProto
    weights: NDArray[Any]
    bias: NDArray[Any] | None

    @property
    def pads(self) -> bool:
        """Whether it reads zeros beyond the picture's edges."""
        attributes = {a.name: a for a in self.node.attribute}
        if "auto_pad" in attributes and attributes["auto_pad"].s not in (b"NOTSET", b"VALID"):
            return True
        return "pads" in attributes and any(attributes["pads"].ints)

    @property
    def groups(self) -> int:
        return next((int(a.i) for a in self.node.attribute if a.name == "group"), 1)


def _first_convolutions(graph: Graph, tensor: str, axis: int) -> list[_Convolution]:
    """The convolutions that the picture goes into, if it goes nowhere else; empty when weights can't take it over."""
    found: list[_Convolution] = []
    waiting = [(tensor, axis)]
    while waiting:
        name, channel_axis = waiting.pop()
        if name in graph.outputs:
            return []
        for node in graph.readers(name):
            if node.op_type == "Identity":
                waiting.append((node.output[0], channel_axis))
            elif node.op_type == "Transpose":
                perm = next((list(a.ints) for a in node.attribute if a.name == "perm"), [3, 2, 1, 0])
                waiting.append((node.output[0], perm.index(channel_axis)))
            else:
                convolution = _convolution(graph, node, name) if channel_axis == 1 else None
                if convolution is None:
                    return []
                found.append(convolution)
    return found


def _convolution(graph: Graph, node: onnx.NodeProto, tensor: str) -> _Convolution | None:
    if node.op_type != "Conv" or node.input[0] != tensor or tensor in node.input[1:]:
        return None
    weights = graph.constant(node.input[1])
    has_bias = len(node.input) > 2 and bool(node.input[2])
    bias = graph.constant(node.input[2]) if has_bias else None
    if weights is None or weights.ndim != 4 or (has_bias and bias is None):
        return None
    return _Convolution(node=node, weights=weights, bias=bias)


def _plan(model: onnx.ModelProto, affine: _Affine, convolutions: list[_Convolution]) -> tuple[_Front, str]:
    """Decide what stands in front, change the convolutions to go with it, and say why."""
    is_one = bool(np.ptp(affine.zero) < WHOLE)
    whole = float(np.round(affine.zero[0]))
    is_whole = is_one and abs(affine.zero[0] - whole) < WHOLE and 0 <= whole <= 255
    same = np.ptp(affine.gain) == 0 and np.array_equal(affine.mix, np.eye(3)) and is_whole
    if not convolutions or (not same and any(convolution.groups > 1 for convolution in convolutions)):
        note = f"no first convolution can take the colours over, {FLOAT_NOTE}"
        gain = affine.gain[:1] if np.ptp(affine.gain) == 0 else affine.gain
        zero = affine.zero[:1] if is_one else affine.zero
        mix = None if np.array_equal(affine.mix, np.eye(3)) else affine.mix
        return _Front(mix=mix, zero=zero, gain=gain), note
    step = affine.gain[:1] if np.ptp(affine.gain) == 0 else np.array([affine.gain.mean()])
    fold = (affine.gain / step)[:, None] * affine.mix
    if is_whole:
        _fold(model, convolutions, fold)
        return _Front(mix=None, zero=np.array([whole]), gain=step), BYTES_NOTE
    if not any(convolution.pads for convolution in convolutions):
        _fold(model, convolutions, fold, offset=affine.gain * (128 - affine.zero))
        return _Front(mix=None, zero=np.array([128.0]), gain=step), f"{BYTES_NOTE}, its bias takes the mean over"
    if is_one:
        _fold(model, convolutions, fold)
        note = (
            f"a padded zero stands for {affine.zero[0]:g}, which is no whole byte, {FLOAT_NOTE}; "
            "a mean that is moved to the next whole byte would let the first convolution read bytes"
        )
        return _Front(mix=None, zero=affine.zero[:1], gain=step), note
    note = f"the mean differs by channel and the first convolution pads, {FLOAT_NOTE}"
    if np.ptp(affine.mix, axis=0).max() == 0:  # grey on three channels: no offset of RGB gives these of grey
        return _Front(mix=affine.mix, zero=affine.zero, gain=affine.gain), note
    _fold(model, convolutions, fold)
    return _Front(mix=None, zero=affine.mix.T @ affine.zero, gain=step), note


def _fold(
    model: onnx.ModelProto,
    convolutions: list[_Convolution],
    fold: NDArray[np.float64],
    *,
    offset: NDArray[np.float64] | None = None,
) -> None:
    """Let the weights take a channel mix (C, 3) over, and the biases a constant (C,) that is added to every pixel."""
    for i, convolution in enumerate(convolutions):
        node, weights = convolution.node, convolution.weights.astype(np.float64)
        mixed = np.einsum("ockl,cr->orkl", weights, fold)
        if not np.array_equal(fold, np.eye(3)):
            node.input[1] = add_constant(model, f"preprocess.weights{i or ''}", mixed)
        if offset is not None:
            bias = np.zeros(len(weights)) if convolution.bias is None else convolution.bias.astype(np.float64)
            name = add_constant(model, f"preprocess.bias{i or ''}", bias + np.einsum("ockl,c->o", weights, offset))
            node.input[:] = [*node.input[:2], name]


def _write(model: onnx.ModelProto, source: str, tensor: str, axis: int, front: _Front) -> None:
    """Append the nodes in front; every tensor of ours is called `preprocess.…`."""
    from onnx import TensorProto, helper

    steps: list[tuple[str, list[str], dict[str, Any]]] = [("Cast", [], {"to": TensorProto.FLOAT})]
    if axis == 1:
        steps.append(("Transpose", [], {"perm": [0, 3, 1, 2]}))
    if front.mix is not None:
        steps += _mix(model, front.mix, axis)
    if front.zero.any():
        steps.append(("Sub", [add_constant(model, "preprocess.zero", _along(front.zero, axis))], {}))
    if not (front.gain == 1).all() or len(front.gain) > 1:
        steps.append(("Mul", [add_constant(model, "preprocess.gain", _along(front.gain, axis))], {}))
    nodes, last = [], source
    for i, (kind, constants, attributes) in enumerate(steps):
        out = tensor if i == len(steps) - 1 else f"preprocess.{kind.lower()}{i}"
        nodes.append(helper.make_node(kind, [last, *constants], [out], name=f"preprocess/{kind}_{i}", **attributes))
        last = out
    body = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *body])


def _mix(model: onnx.ModelProto, mix: NDArray[np.float64], axis: int) -> list[tuple[str, list[str], dict[str, Any]]]:
    """The nodes of a channel mix: a Gather for another order, a weighted sum for grey."""
    if np.isin(mix, (0, 1)).all():
        order = add_constant(model, "preprocess.order", np.argmax(mix, axis=1))
        return [("Gather", [order], {"axis": axis})]
    luma = add_constant(model, "preprocess.luma", _along(mix[0], axis))
    axes = add_constant(model, "preprocess.axes", np.array([axis]))
    return [("Mul", [luma], {}), ("ReduceSum", [axes], {"keepdims": 1})]


def _along(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """A scalar for one value; else shaped so that it differs along the channels' axis."""
    if len(values) == 1:
        return values.reshape(())
    return values.reshape([-1 if i == axis else 1 for i in range(4)])


def _numbers(values: NDArray[np.float64]) -> str:
    texts = [f"{value:.6g}" for value in values]
    return texts[0] if len(set(texts)) == 1 else f"[{', '.join(texts)}]"
