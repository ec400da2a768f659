"""The bundle: the contract between the workbench and the device. One file, refused if one byte differs."""

from __future__ import annotations

from agent.bundle.manifest import ClassSpec, InputSpec, Manifest, Outputs, PolicySpec

__all__ = ["ClassSpec", "InputSpec", "Manifest", "Outputs", "PolicySpec"]
