"""Run inside NNCF's environment: FLOAT.onnx CALIB.npy INT8.onnx SETTINGS, a JSON object. Imports nothing of ours."""

from __future__ import annotations

import json
import sys

import nncf
import numpy as np
import onnx
import onnxruntime
from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix
from nncf.quantization.range_estimator import RangeEstimatorParametersSet


class _Options(onnxruntime.SessionOptions):
    """Basic optimizations: NNCF 3.4 asks for outputs that ONNX Runtime's Conv+Add fusion takes away, and then fails."""

    def __init__(self) -> None:
        super().__init__()
        self.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC


def main() -> None:
    onnxruntime.SessionOptions = _Options
    source, data, target, text = sys.argv[1:]
    settings = json.loads(text)
    model = onnx.load(source)
    name = model.graph.input[0].name
    tensors = np.load(data)
    advanced = AdvancedQuantizationParameters()
    if settings["overflow"] != "default":
        advanced.overflow_fix = OverflowFix[settings["overflow"].upper()]
    if settings["ranges"] == "minmax":
        advanced.activations_range_estimator_params = RangeEstimatorParametersSet.MINMAX
    quantized = nncf.quantize(
        model,
        nncf.Dataset(list(tensors), lambda tensor: {name: tensor}),
        preset=nncf.QuantizationPreset[settings["preset"].upper()],
        subset_size=len(tensors),
        fast_bias_correction=settings["fast"],
        ignored_scope=nncf.IgnoredScope(names=settings["ignored"]) if settings["ignored"] else None,
        advanced_parameters=advanced,
    )
    onnx.save(quantized, target)


if __name__ == "__main__":
    main()
