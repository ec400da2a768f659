"""What every live camera promises, asked of a GenICam camera: Aravis's fake one, over GigE Vision on loopback."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contracts.test_live_camera_contract import *  # noqa: F403 - its cases, asked of the rig below
from tests.kit.aravis_cameras import gige_rig
from tests.kit.rigs import Rig, plugged_in


@pytest.fixture  # type: ignore[no-redef] # in place of the others
def rig() -> Iterator[Rig]:
    """A camera that runs freely, and answers no more when it is unplugged."""
    with gige_rig() as mine, plugged_in(mine) as plugged:
        yield plugged
