"""What is set on a GenICam camera before it starts.

Everything is read back: a camera that rounds is told of, one that does not take a value is refused.
"""

from __future__ import annotations

import difflib
import logging
import re
from typing import Any

from agent.config import GenicamCameraConfig
from agent.errors import CameraError
from agent.log import log_event

__all__ = ["Settings"]

ROUNDED, REFUSED = 0.001, 0.05
"""Parts of the asked value: beyond the first the difference is logged, beyond the second the value was not taken."""

SMALLEST = 20.0
"""Exposures move in steps of a row (tens of µs), gains in steps of the amplifier: no larger steps are expected."""

log = logging.getLogger("agent.cameras.genicam")


class Settings:
    """The settings of one camera.

    Args:
        aravis: the module.
        camera: Aravis's camera.
        shown: what messages call it.
    """

    def __init__(self, aravis: Any, camera: Any, shown: str) -> None:
        self._aravis = aravis
        self._camera = camera
        self._shown = shown

    def apply(self, config: GenicamCameraConfig) -> None:
        """Set it all: first `features` in their order, so that the keys of the configuration have the last word.

        Raises:
            CameraError: a feature that it has not, or a value that it does not take.
            GLib.Error: the camera does not obey.
        """
        for feature in config.features:
            name, _, value = feature.partition("=")
            self._feature(name, value)
        if config.pixel_format:
            self._pixel_format(config.pixel_format)
        self._region(config.width_px, config.height_px)
        self._trigger(config)
        self._amounts(config)

    def _pixel_format(self, wanted: str) -> None:
        known = self._camera.dup_available_pixel_formats_as_strings()
        if wanted not in known:
            raise self._refusal("pixel_format", wanted, f"it has {', '.join(known)}")
        self._camera.set_pixel_format_from_string(wanted)
        self._require("pixel_format", wanted, self._camera.get_pixel_format_as_string())

    def _region(self, width: int, height: int) -> None:
        camera = self._camera
        if not width and not height:
            return
        now = camera.get_region()
        sides = [
            ("width_px", width, now.width, camera.get_width_bounds(), camera.get_width_increment()),
            ("height_px", height, now.height, camera.get_height_bounds(), camera.get_height_increment()),
        ]
        for key, wanted, _, bounds, step in sides:
            if wanted and not (bounds.min <= wanted <= bounds.max and (wanted - bounds.min) % max(1, step) == 0):
                limits = f"it takes {bounds.min} to {bounds.max} in steps of {max(1, step)}"
                raise self._refusal(key, wanted, limits)
        camera.set_region(now.x, now.y, *(wanted or present for _, wanted, present, _, _ in sides))
        then = camera.get_region()
        for (key, wanted, _, _, _), got in zip(sides, (then.width, then.height), strict=True):
            if wanted:
                self._require(key, wanted, got)

    def _trigger(self, config: GenicamCameraConfig) -> None:
        camera = self._camera
        if camera.is_feature_available("AcquisitionMode"):
            camera.set_acquisition_mode(self._aravis.AcquisitionMode.CONTINUOUS)
        if config.trigger == "off":
            camera.clear_triggers()
            if config.fps:
                camera.set_frame_rate(config.fps)
                self._require_near("fps", config.fps, camera.get_frame_rate())
            return
        source = "Software" if config.trigger == "software" else config.trigger
        known = camera.dup_available_trigger_sources()
        if source not in known:
            raise self._refusal("trigger", config.trigger, f"it has {', '.join(known) or 'none'}")
        camera.set_trigger(source)
        self._require("trigger", source, camera.get_trigger_source())
        if config.trigger_delay_us:
            self._trigger_delay(config.trigger_delay_us)

    def _trigger_delay(self, wanted_us: float) -> None:
        camera = self._camera
        name = next((n for n in ("TriggerDelay", "TriggerDelayAbs") if camera.is_feature_available(n)), None)
        if name is None:
            raise self._refusal("trigger_delay_us", wanted_us, "it has no TriggerDelay")
        camera.set_float(name, wanted_us)
        self._require_near("trigger_delay_us", wanted_us, camera.get_float(name))

    def _amounts(self, config: GenicamCameraConfig) -> None:
        camera, off = self._camera, self._aravis.Auto.OFF
        if config.exposure_us is not None:
            if camera.is_exposure_auto_available():
                camera.set_exposure_time_auto(off)
            self._require_within("exposure_us", config.exposure_us, camera.get_exposure_time_bounds())
            camera.set_exposure_time(config.exposure_us)
            self._require_near("exposure_us", config.exposure_us, camera.get_exposure_time())
        if config.gain is not None:
            if camera.is_gain_auto_available():
                camera.set_gain_auto(off)
            self._require_within("gain", config.gain, camera.get_gain_bounds())
            camera.set_gain(config.gain)
            self._require_near("gain", config.gain, camera.get_gain())

    def _feature(self, name: str, value: str) -> None:
        """Set one feature by its own type."""
        aravis, camera = self._aravis, self._camera
        key = f"features {name}"
        node = camera.get_device().get_feature(name)
        if node is None:
            raise self._refusal(key, value, f"it has no such feature{self._similar(name)}")
        if isinstance(node, aravis.GcCommand):
            camera.execute_command(name)
        elif isinstance(node, aravis.GcBoolean):
            wanted = self._parsed(key, value, {"true": True, "1": True, "false": False, "0": False})
            camera.set_boolean(name, wanted)
            self._require(key, wanted, camera.get_boolean(name))
        elif isinstance(node, aravis.GcEnumeration):
            known = camera.dup_available_enumerations_as_strings(name)
            if value not in known:
                raise self._refusal(key, value, f"it has {', '.join(known)}")
            camera.set_string(name, value)
            self._require(key, value, camera.get_string(name))
        elif isinstance(node, aravis.GcFloat):
            camera.set_float(name, self._number(key, value))
            self._require_near(key, self._number(key, value), camera.get_float(name))
        elif isinstance(node, aravis.GcInteger):
            camera.set_integer(name, int(self._number(key, value)))
            self._require(key, int(self._number(key, value)), camera.get_integer(name))
        else:
            camera.set_string(name, value)
            self._require(key, value, camera.get_string(name))

    def _similar(self, name: str) -> str:
        xml = str(self._camera.get_device().get_genicam_xml()[0])
        near = difflib.get_close_matches(name, sorted(set(re.findall(r'Name="(\w+)"', xml))), n=1)
        return f"; did you mean {near[0]}?" if near else ""

    def _parsed(self, key: str, value: str, known: dict[str, bool]) -> bool:
        if value.lower() not in known:
            raise self._refusal(key, value, f"expected {' or '.join(known)}")
        return known[value.lower()]

    def _number(self, key: str, value: str) -> float:
        try:
            return float(value)
        except ValueError as error:
            raise self._refusal(key, value, "expected a number") from error

    def _require(self, key: str, wanted: object, got: object) -> None:
        if got != wanted:
            raise self._refusal(key, wanted, f"it has {got} after it was set")

    def _require_within(self, key: str, wanted: float, bounds: Any) -> None:
        if not bounds.min <= wanted <= bounds.max:
            raise self._refusal(key, wanted, f"it takes {bounds.min:g} to {bounds.max:g}")

    def _require_near(self, key: str, wanted: float, got: float) -> None:
        off = abs(got - wanted)
        if off > max(REFUSED * wanted, SMALLEST if "_us" in key else 0.5):
            raise self._refusal(key, wanted, f"it has {got:g} after it was set")
        if off > ROUNDED * wanted:
            log_event(log, "camera_rounded", camera=self._shown, key=key, asked=wanted, got=round(got, 3))

    def _refusal(self, key: str, wanted: object, why: str) -> CameraError:
        return CameraError(
            f"{self._shown}: {key} can't be {wanted}: {why}", hint="change it in the configuration, or leave it out"
        )
