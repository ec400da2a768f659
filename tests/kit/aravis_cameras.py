"""Aravis's fake GigE Vision camera over loopback: real packets, real control, in a process of its own or in the test's.

It listens at the one GigE Vision port of 127.0.0.1, so there is one at a time on a machine: a lock file sees to that.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import shutil
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from agent.cameras.gi_door import gi_modules
from agent.config import GenicamCameraConfig
from agent.errors import CameraError
from tests.kit.rigs import PATIENT, SMALL, SMALLER, Size
from tests.kit.waiting import wait_until

__all__ = ["ADDRESS", "CameraProcess", "GigeRig", "HandGigE", "aravis", "camera_process", "gige_rig", "hand_gige"]

ADDRESS = "127.0.0.1"
PROGRAM = "arv-fake-gv-camera-0.8"
LOCK = Path(tempfile.gettempdir()) / "defect-agent-fake-gige.lock"
PATIENCE_S = 30.0
FILL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint32)


def aravis() -> Any:
    """The module; the test is skipped where it is not installed."""
    try:
        return gi_modules({"Aravis": "0.8"}, packages="gir1.2-aravis-0.8")[0]
    except CameraError as error:
        pytest.skip(f"needs Aravis: apt install python3-gi gir1.2-aravis-0.8 ({error.message})")


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    gc.collect()  # what a failed test still holds would talk to the next camera: they all have one address
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class CameraProcess:
    """`arv-fake-gv-camera-0.8`, which can be killed and started again.

    Args:
        serial: its serial number.
        lost_per_mille: packets of a thousand that it loses.
    """

    def __init__(self, serial: str, *, lost_per_mille: int = 0) -> None:
        self.serial = serial
        self.lost_per_mille = lost_per_mille
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Switch it on; returns when it answers."""
        loses = ["-r", str(self.lost_per_mille)] if self.lost_per_mille else []
        command = [PROGRAM, "-i", "lo", "-s", self.serial, *loses]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        module = aravis()

        def answers() -> bool:
            module.update_device_list()
            return bool(module.get_n_devices())

        wait_until(answers, PATIENCE_S, what="the fake camera's answer")

    def kill(self) -> None:
        """Cut its power."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE_S)
            self._process = None


@contextlib.contextmanager
def camera_process(serial: str = "EXT1", *, lost_per_mille: int = 0) -> Iterator[CameraProcess]:
    """A fake camera that is switched on, in a process of its own."""
    aravis()
    if shutil.which(PROGRAM) is None:
        pytest.skip(f"needs {PROGRAM}: apt install aravis-tools")
    with _alone():
        process = CameraProcess(serial, lost_per_mille=lost_per_mille)
        process.start()
        try:
            yield process
        finally:
            process.kill()


class HandGigE:
    """A fake camera in this process whose pictures the test shows, one per exposure.

    While nothing is shown an exposure does not end, and the camera answers nothing.

    Attributes:
        exposures: how many have ended.
    """

    def __init__(self) -> None:
        self._aravis = aravis()
        self.exposures = 0
        self._shown: deque[NDArray[Any]] = deque()
        self._changed = threading.Condition()
        self._over = False
        self._library = ctypes.CDLL("libaravis-0.8.so.0")
        self._library.arv_buffer_get_data.restype = ctypes.c_void_p
        self._library.arv_buffer_get_data.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        self._library.arv_fake_camera_set_fill_pattern.argtypes = [ctypes.c_void_p, FILL, ctypes.c_void_p]
        self._server = self._aravis.GvFakeCamera.new("lo", "HAND1")
        assert self._server.is_running(), "the GigE Vision port of 127.0.0.1 is taken"
        self._camera = self._server.get_fake_camera()
        self._fill = FILL(self._expose)  # kept: C holds no reference
        self._library.arv_fake_camera_set_fill_pattern(hash(self._camera), self._fill, None)

    def show(self, *pictures: NDArray[Any]) -> None:
        """Let the next exposures give these, as they go over the wire."""
        with self._changed:
            self._shown.extend(pictures)
            self._changed.notify_all()

    def register(self, name: str) -> int:
        """What stands in the camera, such as `EXPOSURE_TIME_US`."""
        address = getattr(self._aravis, f"FAKE_CAMERA_REGISTER_{name}")
        good, value = self._camera.read_register(address)
        assert good, name
        return int(value)

    def pulse(self) -> None:
        """Give an electrical pulse on the line that triggers it."""
        # The fake's line is not connected; to the sensor, its software register is as good.
        self._camera.write_register(self._aravis.FAKE_CAMERA_REGISTER_TRIGGER_SOURCE, 1)
        self._camera.write_register(self._aravis.FAKE_CAMERA_REGISTER_TRIGGER_SOFTWARE, 1)

    def release(self) -> None:
        """Let exposures end without pictures, so that it answers."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def close(self) -> None:
        """Switch it off."""
        self.release()
        self._library.arv_fake_camera_set_fill_pattern(hash(self._camera), FILL(), None)
        self._camera = self._server = None

    def _expose(self, buffer: int, _data: int, _exposure: int, _gain: int, _format: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._shown or self._over)
            picture = np.ascontiguousarray(self._shown.popleft()) if self._shown else None
            self.exposures += 1
        if picture is not None:
            target = self._library.arv_buffer_get_data(buffer, None)
            ctypes.memmove(target, picture.ctypes.data, picture.nbytes)


@contextlib.contextmanager
def hand_gige() -> Iterator[HandGigE]:
    """A fake camera in this process."""
    aravis()
    with _alone():
        camera = HandGigE()
        try:
            yield camera
        finally:
            camera.close()


class GigeRig:
    """A fake camera in this process that runs freely, with moving stripes; unplugged, nobody answers at its port."""

    size, other_size = SMALL, SMALLER

    def __init__(self) -> None:
        self._aravis = aravis()
        self._server: Any = None
        self.config = GenicamCameraConfig(kind="genicam", device=ADDRESS, **PATIENT)

    def plug_in(self, size: Size) -> None:
        """Answer, with this size as the factory's."""
        self._server = self._aravis.GvFakeCamera.new("lo", "RIG1")
        assert self._server.is_running(), "the GigE Vision port of 127.0.0.1 is taken"
        sensor = self._server.get_fake_camera()
        sensor.write_register(self._aravis.FAKE_CAMERA_REGISTER_WIDTH, size[0])
        sensor.write_register(self._aravis.FAKE_CAMERA_REGISTER_HEIGHT, size[1])

    def unplug(self) -> None:
        """Answer no more."""
        self._server = None


@contextlib.contextmanager
def gige_rig() -> Iterator[GigeRig]:
    """A rig, with the port of this machine to itself."""
    rig = GigeRig()
    with _alone():
        yield rig
