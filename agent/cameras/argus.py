"""The pipeline of a Jetson's CSI camera, as text for GStreamer.

```text
nvarguscamerasrc ─ NV12 in NVMM ─▶ nvvidconv ─ BGRx in main memory ─▶ videoconvert ─ BGR ─▶ appsink
sensor, ISP                        hardware: flip, copy out           CPU: drops the fourth byte
```

NVMM is memory that only NVIDIA's hardware blocks map: `memory:NVMM` in the caps. What the sensor and its image
processor (ISP) give lies there as NV12, and no element of GStreamer's own can read it; linking one fails with "could
not link". `nvvidconv` takes it out: it converts on the VIC, a hardware block, and writes to main memory. It can't write
BGR, so BGRx is the last step in hardware, and `videoconvert` drops the padding byte on the CPU: one pass over the
picture.

Properties and their units are those that `gst-inspect-1.0 nvarguscamerasrc` prints and that NVIDIA's source of the
element defines (`gstnvarguscamerasrc.cpp` of L4T's public sources): `sensor-id`, `sensor-mode` (-1: the best match),
`exposuretimerange` (two numbers of nanoseconds in one string), `gainrange` and `ispdigitalgainrange` (two numbers),
`aelock`. Written after these texts, tested as text; run on no Jetson yet.
"""

from __future__ import annotations

from fractions import Fraction

from agent.config import ArgusCameraConfig

__all__ = ["argus_pipeline"]

LARGEST_DENOMINATOR = 1001
"""As in 30000/1001; caps have no decimals."""


def argus_pipeline(config: ArgusCameraConfig) -> str:
    """Elements from the sensor to BGRx in main memory; a sink has to follow.

    A fixed exposure or gain is a range whose ends are equal. With both fixed nothing is left to the automatic, so it is
    locked, and the ISP's own gain is held at 1: it would go on brightening the picture behind the sensor's back. With
    one of them fixed the automatic works through the other. White balance stays automatic: with a pipeline of your own
    (kind `gstreamer`), `wbmode` and `awblock` hold it.

    Size and rate are of the sensor: a `flip` that is odd (a quarter turn, or mirrored along a diagonal) gives a frame
    of `height_px` by `width_px`.
    """
    source = [f"nvarguscamerasrc sensor-id={config.sensor}", *_fixed(config)]
    rate = Fraction(config.fps).limit_denominator(LARGEST_DENOMINATOR)
    size = f"width={config.width_px},height={config.height_px}"
    turned = f"width={config.height_px},height={config.width_px}" if config.flip % 2 else size
    return " ! ".join(
        [
            " ".join(source),
            f"video/x-raw(memory:NVMM),{size},format=NV12,framerate={rate.numerator}/{rate.denominator}",
            f"nvvidconv flip-method={config.flip}",
            f"video/x-raw,{turned},format=BGRx",
        ]
    )


def _fixed(config: ArgusCameraConfig) -> list[str]:
    fixed: list[str] = []
    if config.sensor_mode is not None:
        fixed.append(f"sensor-mode={config.sensor_mode}")
    if config.exposure_us is not None:
        nanoseconds = round(config.exposure_us * 1000)
        fixed.append(f'exposuretimerange="{nanoseconds} {nanoseconds}"')
    if config.gain is not None:
        fixed.append(f'gainrange="{config.gain:g} {config.gain:g}" ispdigitalgainrange="1 1"')
    if config.exposure_us is not None and config.gain is not None:
        fixed.append("aelock=true")
    return fixed
