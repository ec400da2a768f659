"""From a float ONNX graph to INT8 graphs: numpy, onnx and onnxruntime, no torch.

`read_model` opens and checks a float graph, `Quantizer` calibrates it once and makes the integer graph of each target:
asymmetric activations for CPUs, symmetric Q/DQ for TensorRT. `lint` says before any of it what would go wrong.
"""

from __future__ import annotations

from optimize.quantize.fusion import FloatLayer
from optimize.quantize.model import FloatModel, read_model
from optimize.quantize.place import Target
from optimize.quantize.quantizer import IntegerGraph, QuantizeOptions, Quantizer

__all__ = ["FloatLayer", "FloatModel", "IntegerGraph", "QuantizeOptions", "Quantizer", "Target", "read_model"]
