"""How layers are joined: batch norms, squeeze-and-excite, Concat, resizing, norms and attention."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from optimize.quantize.layers import attribute
from optimize.quantize.lint.finding import Finding
from optimize.quantize.lint.network import CONVOLUTIONS, Network, name_of

if TYPE_CHECKING:
    import onnx

__all__ = [
    "batch_norms",
    "concats",
    "float_operators",
    "head_concats",
    "is_foldable",
    "resizes",
    "squeeze_gates",
    "squeezes",
]

KEEPS_RANGE = frozenset({"MaxPool", "Relu"})
BOUNDED = frozenset({"Sigmoid", "Softmax", "HardSigmoid"})
GATES = frozenset({"Sigmoid", "HardSigmoid"})
FOLDS_INTO = CONVOLUTIONS | {"Gemm"}
NORMS = frozenset({"LayerNormalization", "InstanceNormalization", "GroupNormalization", "LpNormalization", "LRN"})


def batch_norms(network: Network) -> Iterator[Finding]:
    """`batch-norm-not-folded`: a batch norm that can't be folded into the convolution before it."""
    for node in network.graph.nodes:
        if node.op_type != "BatchNormalization" or is_foldable(network, node):
            continue
        maker = network.graph.maker(node.input[0])
        if maker is not None and maker.op_type in FOLDS_INTO:
            why = f"{name_of(maker)} before it has another reader"
        else:
            why = f"it follows {maker.op_type if maker is not None else 'the input'}, not a convolution"
        yield Finding(
            rule="batch-norm-not-folded",
            severity="warning",
            target="both",
            layer=name_of(node),
            message=f"this batch norm can't be folded into a convolution ({why}): it stays a float layer of its own",
            remedy="put each batch norm right behind a convolution that nothing else reads",
        )


def is_foldable(network: Network, node: onnx.NodeProto) -> bool:
    """Whether a batch norm disappears in the weights of the layer before it."""
    tensor = node.input[0]
    maker = network.graph.maker(tensor)
    is_private = len(network.graph.readers(tensor)) == 1 and tensor not in network.graph.outputs
    return node.op_type == "BatchNormalization" and maker is not None and maker.op_type in FOLDS_INTO and is_private


def squeezes(network: Network) -> Iterator[Finding]:
    """`squeeze-excite`: the gate of a squeeze-and-excite block."""
    for gate in squeeze_gates(network):
        yield Finding(
            rule="squeeze-excite",
            severity="note",
            target="both",
            layer=name_of(gate),
            message="squeeze-and-excite: its two small layers stay float on TensorRT, where INT8 gains nothing over "
            "one pixel, and become INT8 on the CPU, where a float island would break the channels-last chain",
            remedy="nothing to do; without such blocks the network is a little faster on both",
        )


def squeeze_gates(network: Network) -> Iterator[onnx.NodeProto]:
    """The Sigmoid or HardSigmoid of each squeeze-and-excite block: over one pixel, from a pool, into a Mul."""
    for node in network.graph.nodes:
        if node.op_type not in GATES or node.output[0] in network.head:
            continue
        feeds_mul = any(r.op_type == "Mul" for r in network.readers_through(node.output[0]))
        if feeds_mul and _comes_from_a_pool(network, node.input[0]):
            yield node


def _comes_from_a_pool(network: Network, tensor: str) -> bool:
    """Whether a global pool, and small layers only, lie before a tensor."""
    seen_layer = False
    for _ in range(12):
        node = network.graph.maker(tensor)
        if node is None:
            return False
        if node.op_type == "GlobalAveragePool" or (node.op_type == "ReduceMean" and seen_layer):
            return seen_layer
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            seen_layer = True
        tensor = node.input[0]
    return False


def concats(network: Network) -> Iterator[Finding]:
    """`concat-rescale`: a Concat whose inputs have ranges of their own."""
    for node in network.body:
        if node.op_type != "Concat":
            continue
        sources = {network.source(name, also=KEEPS_RANGE) for name in node.input}
        if len(sources) > 1 and not _is_mixed(network, node):
            yield Finding(
                rule="concat-rescale",
                severity="note",
                target="trt",
                layer=name_of(node),
                message=f"its {len(node.input)} inputs come from {len(sources)} layers with ranges of their own: "
                "TensorRT rescales each before it can join them",
                remedy="fewer branches; one range for all of them is faster, and less accurate",
            )


def head_concats(network: Network) -> Iterator[Finding]:
    """`head-mixed-scales`: boxes and scores joined in one Concat, as YOLO exports do."""
    for node in network.graph.nodes:
        if node.op_type == "Concat" and _is_mixed(network, node) and _leads_out(network, node.output[0]):
            yield Finding(
                rule="head-mixed-scales",
                severity="warning",
                target="both",
                layer=name_of(node),
                message="it joins scores (0 to 1) with values of another size, such as boxes in pixels: quantized, "
                "they share one step, 640/255 = 2.5 for boxes up to 640, and every score becomes 0",
                remedy="keep everything behind the last convolutions in float, as `defect-opt build` does, or give "
                "boxes and scores as two outputs",
            )


def _is_mixed(network: Network, node: onnx.NodeProto) -> bool:
    """Whether some inputs are bounded by a Sigmoid or Softmax, and others are not."""
    makers = [network.graph.maker(network.source(name)) for name in node.input]
    bounded = [maker is not None and maker.op_type in BOUNDED for maker in makers]
    return any(bounded) and not all(bounded)


def _leads_out(network: Network, tensor: str) -> bool:
    """Whether no layer with weights computes from it any more: it belongs to the head."""
    layers = {layer.node.output[0] for layer in network.layers}
    return not layers & network.graph.downstream([tensor])


def resizes(network: Network) -> Iterator[Finding]:
    """`resize-mode` and `upsample-deprecated`."""
    for node in network.graph.nodes:
        if node.op_type == "Upsample":
            yield Finding(
                rule="upsample-deprecated",
                severity="warning",
                target="both",
                layer=name_of(node),
                message="Upsample left the standard with opset 10, so the graph can't be converted to one that INT8 "
                "needs as long as it is there",
                remedy="export it again with opset_version=17; it becomes Resize",
            )
        elif node.op_type == "Resize" and (mode := attribute(node, "mode", b"nearest")) != b"nearest":
            yield Finding(
                rule="resize-mode",
                severity="note",
                target="both",
                layer=name_of(node),
                message=f"{mode.decode()} interpolation makes new values: ONNX Runtime computes them in float, "
                "TensorRT rounds them once more; nearest passes INT8 values on as they are",
                remedy="use mode nearest where the accuracy allows it",
            )


def float_operators(network: Network) -> Iterator[Finding]:
    """`conv-transpose`, `norm-stays-float` and `attention-matmul`."""
    constant = network.graph.constant
    for node in network.graph.nodes:
        if node.op_type == "ConvTranspose":
            yield Finding(
                rule="conv-transpose",
                severity="note",
                target="cpu",
                layer=name_of(node),
                message="ONNX Runtime has no INT8 kernel for ConvTranspose: it computes in float",
                remedy="use Resize (nearest) and a convolution",
            )
        elif node.op_type in NORMS:
            yield Finding(
                rule="norm-stays-float",
                severity="note",
                target="both",
                layer=name_of(node),
                message=f"{node.op_type} computes its statistics from each picture and stays float",
                remedy="use batch norm, which is folded into the convolution before it",
            )
        elif node.op_type == "MatMul" and not any(constant(n) is not None for n in node.input):
            yield Finding(
                rule="attention-matmul",
                severity="note",
                target="both",
                layer=name_of(node),
                message="it multiplies two activations, as attention does; it and its Softmax stay float",
                remedy="nothing to do; networks of convolutions gain more from INT8",
            )
