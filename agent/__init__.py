"""defect-agent: judges every part that a camera sees, and never passes one because software failed."""

from __future__ import annotations

import os

# From 1.29 on, ONNX Runtime's wheels send usage data to their maker, unless this is set before the first import. A
# plant's network is nobody else's business; whoever wants it sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = ["__version__"]

__version__ = "0.1.0"
