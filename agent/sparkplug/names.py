"""How the station is called in the plant's Sparkplug tree, and the topics that follow from it."""

from __future__ import annotations

import dataclasses

from agent.config import SparkplugConfig

__all__ = ["NAMESPACE", "Topics", "topics_of"]

NAMESPACE = "spBv1.0"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Topics:
    """All topics of one edge node with one device.

    Attributes:
        group: group id.
        node: edge node id.
        device: device id.
        state: of the primary host, or None where we wait for none.
    """

    group: str
    node: str
    device: str
    state: str | None

    def of_node(self, kind: str) -> str:
        """`NBIRTH`, `NDATA`, `NDEATH`, `NCMD`."""
        return f"{NAMESPACE}/{self.group}/{kind}/{self.node}"

    def of_device(self, kind: str) -> str:
        """`DBIRTH`, `DDATA`, `DCMD`."""
        return f"{NAMESPACE}/{self.group}/{kind}/{self.node}/{self.device}"


def topics_of(config: SparkplugConfig, station: str) -> Topics:
    """Topics as configured; names that are left empty come from the station's path.

    `acme/plant1/finishing/line3/cam1` is node `cam1` of the group `acme-plant1-finishing-line3`: two stations never
    share a node, which would be a storm of rebirths.
    """
    *path, last = station.split("/")
    state = None
    if config.primary_host_id:
        form = "STATE" if config.primary_host_form == "2.2" else f"{NAMESPACE}/STATE"
        state = f"{form}/{config.primary_host_id}"
    return Topics(
        group=config.group_id or "-".join(path) or "defect-agent",
        node=config.edge_node_id or last,
        device=config.device_id,
        state=state,
    )
