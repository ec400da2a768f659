"""The end of a classifier: which output holds the classes, and the logits behind its Softmax.

A bundle's graph gives logits, because a temperature is fitted to them. An activation at the end is cut off:

```text
Softmax, LogSoftmax      logits are what goes in
Sigmoid over C classes   the same; each class was judged by itself, and is now one of C that exclude one another
Sigmoid over one number  two classes, [0, z]: their softmax is exactly sigmoid(z) for the second
```
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from optimize.quantize.graph import Graph, shape_of
from optimize.quantize.onnx_file import EXPORT_HINT, add_constant, refuse, rename_tensor

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

__all__ = ["ACTIVATION_NOTES", "Activation", "Ending", "find_ending", "is_vector", "probabilities", "write_logits"]

Activation: TypeAlias = Literal["none", "softmax", "log_softmax", "sigmoid", "binary"]

ACTIVATION_NOTES: Mapping[Activation, str] = {
    "softmax": "the Softmax at the end was cut off: the output is logits",
    "log_softmax": "the LogSoftmax at the end was cut off: the output is logits",
    "sigmoid": "the Sigmoid at the end was cut off: the classes, each judged by itself, now exclude one another",
    "binary": "the Sigmoid of one number became two classes: the first is below one half, the second above",
}

PASSES = frozenset({"Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze"})
"""What may stand between an activation and the output: it moves values, and changes none."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """Where the classes are read.

    Attributes:
        output: the graph's output.
        activation: what it ends in.
        at: the activation's own output; empty where there is none.
        count: how many classes.
    """

    output: str
    activation: Activation
    at: str
    count: int


def is_vector(shape: tuple[int, ...]) -> bool:
    """Whether it holds one row of numbers: all sides but one are 1."""
    return len(shape) >= 2 and shape[0] == 1 and int(np.prod(shape)) == max(shape)


def find_ending(path: Path, model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> Ending:
    """Find the output that holds the classes, and the activation before it.

    A lone vector is it, whatever its name; among several, the one named `logits`. Logits beside their own softmax
    count as one.

    Raises:
        ModelError: no output, or more than one, may be meant; or there is but one class.
    """
    graph = Graph(model)
    vectors = [name for name, shape in shapes.items() if is_vector(shape) and name != "embedding"]
    found = [_ending(graph, name, max(shapes[name])) for name in vectors]
    if "logits" in shapes:
        found = [ending for ending in found if ending.output == "logits"]
    elif len({_source(graph, ending) for ending in found}) > 1:
        found = []
    if not found:
        refuse(
            path,
            f"outputs: got {_listed(shapes)}, expected one named logits, or a single one of [1, C]",
            "name the (1, classes) output `logits`",
        )
    ending = found[0]
    if ending.count < 2 and ending.activation != "binary":
        got = list(shapes[ending.output])
        refuse(path, f"output {ending.output}: got {got}, expected [1, C] with two classes or more", EXPORT_HINT)
    return ending


def _ending(graph: Graph, output: str, count: int) -> Ending:
    name, kinds = output, {"Softmax": "softmax", "LogSoftmax": "log_softmax", "Sigmoid": "sigmoid"}
    activation: Any = "none"
    while (node := graph.maker(name)) is not None:
        if node.op_type in kinds and _over_classes(graph, node, count):
            activation = "binary" if node.op_type == "Sigmoid" and count == 1 else kinds[node.op_type]
            return Ending(output=output, activation=activation, at=node.output[0], count=max(count, 2))
        if node.op_type not in PASSES:
            break
        name = node.input[0]
    return Ending(output=output, activation="none", at="", count=count)


def _over_classes(graph: Graph, node: onnx.NodeProto, count: int) -> bool:
    """Whether the activation works along the classes; a Sigmoid always does."""
    if node.op_type == "Sigmoid":
        return True
    if count < 2:
        return False
    axis = next((int(a.i) for a in node.attribute if a.name == "axis"), -1)
    shape = shape_of(graph.model, node.output[0])
    return axis in (-1, 1) if shape is None else shape[axis] == count


def _source(graph: Graph, ending: Ending) -> str:
    """The tensor that the logits are, for telling outputs apart."""
    name = ending.output
    if ending.at:
        maker = graph.maker(ending.at)
        assert maker is not None
        name = maker.input[0]
    while (node := graph.maker(name)) is not None and node.op_type in PASSES:
        name = node.input[0]
    return name


def write_logits(model: onnx.ModelProto, ending: Ending, shape: tuple[int, ...]) -> None:
    """Cut the activation off and name the output `logits`, (1, C); the graph is changed in place.

    Args:
        model: the graph; its outputs are declared by the caller.
        ending: what `find_ending` found in it.
        shape: of its output.
    """
    from onnx import helper

    tensor = ending.output
    if ending.at:
        activation = next(node for node in model.graph.node if ending.at in node.output)
        before = activation.input[0]
        tensor = before if tensor == ending.at else tensor
        for node in model.graph.node:
            node.input[:] = [before if name == ending.at else name for name in node.input]
        model.graph.node.remove(activation)
    if len(shape) != 2:
        model.graph.node.append(helper.make_node("Flatten", [tensor], ["logits.flat"], name="logits/flat", axis=1))
        tensor = "logits.flat"
    if ending.activation == "binary":
        pair = add_constant(model, "logits.pair", np.array([[0.0, 1.0]]))
        model.graph.node.append(helper.make_node("Mul", [tensor, pair], ["logits.two"], name="logits/two"))
        tensor = "logits.two"
    rename_tensor(model, tensor, "logits")


def probabilities(logits: NDArray[np.float64], activation: Activation) -> NDArray[np.float64]:
    """What the model gave as it came, from the logits (1, C); its shape is (1, C), or (1, 1) for `binary`."""
    if activation == "none":
        return logits
    if activation == "sigmoid":
        return 0.5 * (1 + np.tanh(0.5 * logits))  # sigmoid, without an overflow for large negative logits
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_softmax: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    if activation == "log_softmax":
        return log_softmax
    softmax: NDArray[np.float64] = np.exp(log_softmax)
    return softmax[:, 1:] if activation == "binary" else softmax


def _listed(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return str(list(shapes))
