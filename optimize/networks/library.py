"""The one door to torchvision, which only some networks need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent.errors import MissingExtra

if TYPE_CHECKING:
    from torch import nn

__all__ = ["first_convolution_for", "torchvision_models"]


def torchvision_models(arch: str) -> Any:
    """The module `torchvision.models`.

    Args:
        arch: who needs it, for the message.

    Raises:
        MissingExtra: torchvision is not installed.
    """
    try:
        import torchvision
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"the Python package {error.name} is not installed, and {arch} needs it",
            hint="pip install torchvision; resnet18 to 50, mobilenetv2, efficientnet-lite0 and tiny need torch alone",
        ) from error
    return torchvision.models


def first_convolution_for(conv: nn.Conv2d, in_channels: int) -> nn.Conv2d:
    """A fresh convolution like torchvision's first, which is for colour, for another number of channels."""
    from torch import nn

    padding = conv.padding
    assert not isinstance(padding, str)
    kernel, stride = conv.kernel_size, conv.stride
    return nn.Conv2d(in_channels, conv.out_channels, kernel, stride, padding, bias=conv.bias is not None)  # type: ignore[arg-type]
