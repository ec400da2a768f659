"""defect-agent: judges every part that a camera sees, and never passes one because software failed."""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
