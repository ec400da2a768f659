"""Makes `names.json` of `../shared/data/tensorrt_names.json`: what the stand-in needs of each version.

`python -m tests.kit.tensorrt.make_names ../shared/data/tensorrt_names.json`
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.kit.tensorrt.surface import NAMES

__all__ = ["names_text"]

CLASSES = (
    "Builder",
    "INetworkDefinition",
    "IBuilderConfig",
    "OnnxParser",
    "ParserError",
    "Runtime",
    "ICudaEngine",
    "IExecutionContext",
    "ILogger",
    "Logger",
    "IInt8Calibrator",
    "IInt8EntropyCalibrator2",
    "IProgressMonitor",
    "IHostMemory",
    "ITimingCache",
    "IOptimizationProfile",
    "ITensor",
    "ILayer",
    "EngineInspector",
    "Dims",
)
ENUMS = (
    "BuilderFlag",
    "NetworkDefinitionCreationFlag",
    "DataType",
    "MemoryPoolType",
    "DeviceType",
    "TensorIOMode",
    "TensorLocation",
    "TensorFormat",
    "OnnxParserFlag",
    "ErrorCode",
    "LayerType",
    "ProfilingVerbosity",
    "QuantizationFlag",
    "CalibrationAlgoType",
    "ILogger.Severity",
    "ExecutionContextAllocationStrategy",
    "HardwareCompatibilityLevel",
    "EngineCapability",
    "LayerInformationFormat",
)


def names_text(source: Path) -> str:
    """The whole file; one class or enum a line, versions in order."""
    every: Mapping[str, Any] = json.loads(source.read_text())
    versions = sorted(every, key=lambda version: tuple(map(int, version.split("."))))
    return "{\n" + ",\n".join(f" {json.dumps(v)}: {_version_text(every[v])}" for v in versions) + "}\n"


def _version_text(names: Mapping[str, Any]) -> str:
    kept = {name: names["classes"][name] for name in CLASSES if name in names["classes"]}
    enums = {name: names["enums"][name] for name in ENUMS if name in names["enums"]}
    others = set(names["classes"]) | {name for name in names["enums"] if "." not in name} | set(names["aliases"])
    parts = {
        "classes": _listed(kept),
        "properties": _line({name: found for name, found in names["properties"].items() if name in kept}),
        "overloads": _line({key: found for key, found in names["overloads"].items() if key.split(".")[0] in kept}),
        "optional": _line({key: found for key, found in names["optional"].items() if key.split(".")[0] in kept}),
        "bases": _line({name: found for name, found in names["bases"].items() if name in kept}),
        "enums": _listed(enums),
        "constants": _line(names["constants"]),
        "functions": _line(names["functions"]),
        "others": _line(sorted(others - set(CLASSES) - set(ENUMS))),
    }
    return "{\n" + ",\n".join(f"  {json.dumps(name)}: {text}" for name, text in parts.items()) + "}"


def _listed(found: Mapping[str, Any]) -> str:
    return "{\n   " + ",\n   ".join(f"{json.dumps(name)}: {_line(found[name])}" for name in sorted(found)) + "}"


def _line(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


if __name__ == "__main__":
    NAMES.write_text(names_text(Path(sys.argv[1])))
