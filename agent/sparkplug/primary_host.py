"""Whether the primary host, for whom the data are, is there: what its STATE messages say."""

from __future__ import annotations

import json
import math
from typing import Literal

__all__ = ["PrimaryHost"]


class PrimaryHost:
    """What one connection has heard of the host; unknown at its beginning.

    Args:
        form: `3.0` is JSON with `online` and `timestamp`, `2.2` the text `ONLINE` or `OFFLINE`.

    Attributes:
        is_online: True, False, or None as long as nothing valid has come.
    """

    def __init__(self, form: Literal["3.0", "2.2"]) -> None:
        self._form = form
        self._timestamp_ms: float = -1
        self.is_online: bool | None = None

    def hear(self, payload: bytes) -> None:
        """Take one STATE message; one that is older than the one before, or broken, changes nothing.

        A will is published late: the host's old one may come after its new birth, with the older time.
        """
        if self._form == "2.2":
            self.is_online = {b"ONLINE": True, b"OFFLINE": False}.get(payload, self.is_online)
            return
        try:
            state = json.loads(payload)
        except (ValueError, RecursionError):
            return
        if not isinstance(state, dict):
            return
        online, timestamp_ms = state.get("online"), state.get("timestamp")
        if not isinstance(online, bool) or isinstance(timestamp_ms, bool) or not isinstance(timestamp_ms, (int, float)):
            return
        if self._timestamp_ms <= timestamp_ms < math.inf:
            self._timestamp_ms, self.is_online = timestamp_ms, online
