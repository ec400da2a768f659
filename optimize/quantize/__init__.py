"""From a float ONNX graph to INT8 graphs: numpy, onnx and onnxruntime, no torch.

`read_model` opens and checks a float graph, `quantize_cpu` makes the INT8 graph for ONNX Runtime's CPU kernels. One
emitter per target, because targets want different graphs (symmetric activations for TensorRT, asymmetric ones for
CPUs). The CPU emitter is ONNX Runtime's own `quantize_static`.
"""

from __future__ import annotations

from optimize.quantize.emit import Method, Quantized, QuantizeOptions, WeightBits, quantize_cpu
from optimize.quantize.fusion import FloatLayer
from optimize.quantize.model import FloatModel, read_model

__all__ = [
    "FloatLayer",
    "FloatModel",
    "Method",
    "QuantizeOptions",
    "Quantized",
    "WeightBits",
    "quantize_cpu",
    "read_model",
]
