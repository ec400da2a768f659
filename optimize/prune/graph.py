"""Which channels of which layers are one: what must go together when a channel goes.

torch-pruning traces the network and follows each convolution's outputs through additions, joins, norms, filters per
channel and gates to all that read or share them (Fang et al., "DepGraph: towards any structural pruning", CVPR 2023).
From there on a network is a list of `ChannelGroup`s; torch-pruning changes nothing in it.

Protected, because their width means something: what leaves the network (classes, boxes, scores), the squeezes of
channel gates, and whatever shares channels with a convolution of several groups. The picture's channels are no
layer's output, so they are never asked.
"""

from __future__ import annotations

import dataclasses
import importlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agent.errors import MissingExtra
from optimize.errors import ModelError
from optimize.networks.attention import ChannelGate, SpatialGate
from optimize.networks.classifier import Classifier
from optimize.networks.detectors.detector import Detector

__all__ = ["ChannelGroup", "Part", "channel_groups", "removed", "torch_pruning_library", "traced_outputs"]

OPAQUE: tuple[type[nn.Module], ...] = (SpatialGate,)
"""Modules that give as many channels as they take and hold nothing per channel, whatever they compute inside: their
means over channels look to a tracer as if they kept them."""

Layer = nn.Conv2d | nn.Linear | nn.BatchNorm2d


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """Where one layer holds channels of a group.

    Attributes:
        name: of the layer.
        layer: itself.
        is_output: its outputs; else its inputs. Of a norm and a filter per channel both are one, called outputs.
        positions: (n,) among the layer's channels.
        channels: (n,) the group's channel at each position.
        decides: whether nothing of the group's comes behind it that would add a bias again: false of a norm that only
            feeds filters per channel, whose own norms decide.
    """

    name: str
    layer: Layer
    is_output: bool
    decides: bool
    positions: NDArray[np.int64]
    channels: NDArray[np.int64]

    def at(self, channels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the layer holds these channels."""
        return self.positions[np.isin(self.channels, channels)]

    def summed(self, values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
        """Values of the layer's channels, added up by the group's channel: (width,)."""
        found = np.bincount(self.channels, weights=values[self.positions], minlength=width)
        return found.astype(np.float64)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChannelGroup:
    """Channels that stay or go together in several layers.

    Attributes:
        name: of the layer that they are counted in.
        width: how many there are.
        parts: where they are.
        is_protected: whether all must stay.
    """

    name: str
    width: int
    parts: tuple[Part, ...]
    is_protected: bool

    @property
    def norms(self) -> tuple[Part, ...]:
        """The batch norms that decide what a channel is."""
        return tuple(part for part in self.parts if isinstance(part.layer, nn.BatchNorm2d) and part.decides)

    @property
    def producers(self) -> tuple[Part, ...]:
        """Convolutions and linear layers that make the channels."""
        return tuple(part for part in self.parts if part.is_output and not isinstance(part.layer, nn.BatchNorm2d))

    @property
    def readers(self) -> tuple[Part, ...]:
        """Convolutions and linear layers that read the channels, each across all its inputs."""
        return tuple(part for part in self.parts if not part.is_output)


def torch_pruning_library() -> Any:
    """The package, or how to get it.

    Raises:
        MissingExtra: torch-pruning is not installed.
    """
    try:
        return importlib.import_module("torch_pruning")
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"the Python package {error.name} is not installed, and pruning needs it",
            hint="pip install -e '.[train]' in the checkout of defect-agent",
        ) from error


def traced_outputs(network: nn.Module, images: Tensor) -> list[Tensor]:
    """What a network gives, as far as layers make it: behind its last layers nothing has channels of its own."""
    if isinstance(network, Detector):
        return [tensor for level in network.maps(images) for tensor in level]
    if isinstance(network, Classifier):
        return [network.head(torch.flatten(network.pool(network.features(images)), 1))]
    found = network(images)
    return [found] if isinstance(found, Tensor) else list(found)


def channel_groups(network: nn.Module, example: Tensor) -> tuple[ChannelGroup, ...]:
    """All channels that layers make, each in one group.

    Args:
        network: any; left as it is.
        example: (1, C, H, W) float32, what it takes.

    Raises:
        MissingExtra: torch-pruning is not installed.
        ModelError: the network can't be traced.
    """
    library = torch_pruning_library()
    names = {module: name for name, module in network.named_modules()}
    with _traceable(network), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its own defaults
        try:
            graph = library.DependencyGraph().build_dependency(network, example, forward_fn=traced_outputs)
            groups = [list(group) for group in graph.get_all_groups()]
        except (RuntimeError, ValueError, AttributeError, KeyError, TypeError, AssertionError) as error:
            raise ModelError(f"prune: {type(network).__name__} can't be traced ({error})") from error
    squeezes = set(_squeezes(network))
    return tuple(_group(found, names, graph, squeezes) for found in groups)


def removed(network: nn.Module, gone: Sequence[tuple[ChannelGroup, NDArray[np.int64]]]) -> dict[str, Tensor]:
    """The weights that are left without some channels, by name, for `optimize.trained.cut_to`.

    Args:
        network: that the groups are of.
        gone: groups, and their channels that go.
    """
    outputs: dict[str, list[NDArray[np.int64]]] = {}
    inputs: dict[str, list[NDArray[np.int64]]] = {}
    for group, channels in gone:
        for part in group.parts:
            (outputs if part.is_output else inputs).setdefault(part.name, []).append(part.at(channels))
    weights = {key: value.detach().clone() for key, value in network.state_dict().items()}
    for axis, places in ((0, outputs), (1, inputs)):
        for name, positions in places.items():
            for key in (f"{name}.{kind}" for kind in ("weight", "bias", "running_mean", "running_var")):
                if key in weights and weights[key].ndim > axis:
                    keep = np.setdiff1d(np.arange(weights[key].shape[axis]), np.concatenate(positions))
                    weights[key] = weights[key].index_select(axis, torch.from_numpy(keep))
    return weights


@contextmanager
def _traceable(network: nn.Module) -> Iterator[None]:
    """In evaluation mode, every weight with a gradient (that is what is followed), opaque modules out of the way."""
    was_training = {module: module.training for module in network.modules()}
    was_learning = {parameter: parameter.requires_grad for parameter in network.parameters()}
    places = [
        (parent, name, child)
        for parent in network.modules()
        for name, child in parent.named_children()
        if isinstance(child, OPAQUE)
    ]
    try:
        for parameter in was_learning:
            parameter.requires_grad_(True)
        for parent, name, _ in places:
            setattr(parent, name, nn.Identity())
        network.eval()
        with torch.enable_grad():
            yield
    finally:
        for parent, name, child in places:
            setattr(parent, name, child)
        for parameter, learns in was_learning.items():
            parameter.requires_grad_(learns)
        for module, trains in was_training.items():
            module.training = trains


def _squeezes(network: nn.Module) -> Iterator[nn.Module]:
    """The narrow layers inside channel gates, ours and torchvision's."""
    for module in network.modules():
        if isinstance(module, ChannelGate):
            yield module.squeeze
        elif type(module).__name__ == "SqueezeExcitation":
            yield module.get_submodule("fc1")


def _group(found: Sequence[Any], names: Mapping[nn.Module, str], graph: Any, squeezes: set[nn.Module]) -> ChannelGroup:
    """One group of torch-pruning's in our terms; whatever is not understood protects it."""
    root = found[0].dep.target.module
    width, parts, is_protected = len(found[0].idxs), [], False
    for item in found:
        node = item.dep.target
        layer, makes = node.module, graph.is_out_channel_pruning_fn(item.dep.handler)
        if not node.outputs and not (isinstance(layer, nn.Conv2d | nn.Linear) and not makes):
            is_protected = True  # it leaves the network
        if not list(layer.parameters() if isinstance(layer, nn.Module) else [layer]):
            continue
        if not isinstance(layer, nn.Conv2d | nn.Linear | nn.BatchNorm2d) or (layer in squeezes and makes):
            is_protected = True
            continue
        if item.root_idxs is None or len(item.root_idxs) != len(item.idxs) or None in item.root_idxs:
            is_protected = True
            continue
        is_filter = isinstance(layer, nn.Conv2d) and layer.groups == layer.out_channels == layer.in_channels > 1
        if isinstance(layer, nn.Conv2d) and layer.groups > 1 and not is_filter:
            is_protected = True
        parts.append(
            Part(
                name=names[layer],
                layer=layer,
                is_output=makes or is_filter or isinstance(layer, nn.BatchNorm2d),
                decides=not _feeds_filters_only(node),
                positions=np.asarray(item.idxs, dtype=np.int64),
                channels=np.asarray(item.root_idxs, dtype=np.int64),
            )
        )
    return ChannelGroup(name=names[root], width=width, parts=tuple(_once(parts)), is_protected=is_protected)


def _once(parts: Sequence[Part]) -> Iterator[Part]:
    """Each side of a layer once: a filter per channel is found from both sides."""
    seen: dict[tuple[str, bool], Part] = {}
    for part in parts:
        key = (part.name, part.is_output)
        if key in seen and np.array_equal(np.sort(seen[key].positions), np.sort(part.positions)):
            continue
        seen[key] = part
        yield part


def _feeds_filters_only(node: Any) -> bool:
    """Whether all that reads a norm, behind activations and additions, are filters per channel."""
    waiting, seen, is_one = list(node.outputs), {node}, False
    while waiting:
        reader = waiting.pop()
        if reader in seen:
            continue
        seen.add(reader)
        module = reader.module
        if isinstance(module, nn.Conv2d) and module.groups == module.out_channels > 1:
            is_one = True
        elif not isinstance(module, nn.Module) or list(module.parameters()) or not reader.outputs:
            return False
        else:
            waiting += reader.outputs
    return is_one
