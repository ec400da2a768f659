"""defect-opt: from labelled images to a bundle that a device can be trusted with."""

from __future__ import annotations

__all__: list[str] = []
