"""The one door to Aravis: finding a GenICam camera, setting it up, and its stream of buffers.

Aravis is reached through `gi`, is not imported before a camera is opened, and its errors end here. Its objects are
untyped; what leaves this module is not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

from agent.cameras.genicam_features import Settings
from agent.cameras.gi_door import gi_modules
from agent.config import GenicamCameraConfig
from agent.errors import CameraError
from agent.log import log_event

__all__ = ["Arrival", "GenicamDevice"]

PACKAGES = "gir1.2-aravis-0.8"

BUFFERS, FEWEST_BUFFERS, BUFFER_BYTES = 8, 3, 256 << 20
"""Buffers that the stream fills in turn; fewer of large pictures, so that they stay within `BUFFER_BYTES`."""

SETTLE_S = 0.1
"""After a stop, packets of a frame may still be in the network, and Aravis waits so long for those that lack."""

log = logging.getLogger("agent.cameras.genicam")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One buffer that the stream has filled, whole or not.

    Attributes:
        problem: why it is no picture, in words; the fields below mean nothing then.
        arrived_ns: CLOCK_MONOTONIC.
        data: the payload, a copy.
        pixel_format: PFNC code.
        width: in pixels.
        height: in pixels.
        row_padding: bytes behind each row.
        number: the camera's count of its frames.
        camera_ns: timestamp in nanoseconds of the camera's clock; 0 when it gives none.
    """

    arrived_ns: int
    problem: str | None = None
    data: bytes = b""
    pixel_format: int = 0
    width: int = 0
    height: int = 0
    row_padding: int = 0
    number: int = 0
    camera_ns: int = 0


class GenicamDevice:
    """One camera under our control, with a running stream, until `close`.

    Aravis runs three kinds of threads of its own: one receives the stream, one keeps the control of the camera by a
    heartbeat (GigE Vision), one reads USB events. None of them calls into Python but the heartbeat, once, when control
    is lost; that takes Aravis up to eight seconds (seen with 0.8.26: five tries of half a second each, and more).

    Args:
        config: which camera, and how it is to be set.

    Raises:
        CameraError: Aravis is not installed; no such camera, with those that are there; another program controls it; a
            setting that it has not, or does not take.
    """

    def __init__(self, config: GenicamCameraConfig) -> None:
        self._aravis, self._glib = gi_modules({"Aravis": "0.8", "GLib": "2.0"}, packages=PACKAGES)
        self.shown = config.device or "genicam"
        self._gone = threading.Event()
        with self._door("can't be opened"):
            self._camera: Any = self._found(config.device)
            self._device: Any = self._camera.get_device()
        self.shown = f"{self._camera.get_model_name()} {self._camera.get_device_id()}"
        self._handler = self._device.connect("control-lost", lambda _device: self._gone.set())
        self._stream: Any = None
        with contextlib.ExitStack() as on_refusal:
            on_refusal.callback(self.close)
            self._require_control()
            with self._door("can't be set up"):
                Settings(self._aravis, self._camera, self.shown).apply(config)
                self._stream = self._started(config)
            on_refusal.pop_all()

    @property
    def control_lost(self) -> bool:
        """The camera no longer obeys: it was unplugged, switched off, or taken by another program."""
        return self._gone.is_set()

    def expose(self) -> None:
        """Trigger by software.

        Returns at once, or after up to five seconds with an error when the camera no longer answers.

        Raises:
            CameraError: it does not take the trigger.
        """
        with self._door("does not take the trigger"):
            self._camera.software_trigger()

    def restart(self) -> int:
        """Stop the camera, which breaks off what it exposes, forget what was on its way, and start it again.

        Returns:
            How many frames were forgotten.

        Raises:
            CameraError: it does not obey.
        """
        with self._door("can't be started again"):
            self._camera.stop_acquisition()
            dropped = 0
            while self.wait(SETTLE_S) is not None:
                dropped += 1
            self._camera.start_acquisition()
            return dropped

    def drop_waiting(self) -> int:
        """Forget the frames that have arrived and were not taken; how many there were."""
        dropped = 0
        while (buffer := self._stream.try_pop_buffer()) is not None:
            self._stream.push_buffer(buffer)
            dropped += 1
        return dropped

    def wait(self, timeout_s: float) -> Arrival | None:
        """Wait for the next buffer; None when none came in time."""
        stream = self._stream
        buffer = stream.timeout_pop_buffer(max(0, int(timeout_s * 1e6))) if stream is not None else None
        if buffer is None:
            return None
        arrived_ns = time.monotonic_ns()
        try:
            return self._arrival(buffer, arrived_ns)
        finally:
            stream.push_buffer(buffer)

    def counters(self) -> dict[str, int]:
        """Aravis's counts of this stream by its names, such as `n_resent_packets`, `n_underruns`; for USB fewer."""
        stream = self._stream
        if stream is None:
            return {}
        names = {stream.get_info_name(i): stream.get_info_type(i).name for i in range(stream.get_n_infos())}
        return {name: int(stream.get_info_uint64_by_name(name)) for name, kind in names.items() if kind == "guint64"}

    def close(self) -> None:
        """Stop the stream and give the control back; takes seconds when the camera no longer answers."""
        if self._camera is None:
            return
        self._device.disconnect(self._handler)
        if not self._gone.is_set():
            with contextlib.suppress(self._glib.Error):
                if self._stream is not None:
                    self._camera.stop_acquisition()
                if self._camera.is_gv_device() and self._device.is_controller():
                    self._device.leave_control()
        self._stream = self._device = self._camera = None  # the last references: Aravis closes by being freed

    @contextlib.contextmanager
    def _door(self, what: str) -> Iterator[None]:
        try:
            yield
        except self._glib.Error as error:
            raise CameraError(f"{self.shown}: {what}: {error.message}", hint=_HINT) from error

    def _found(self, wanted: str) -> Any:
        """The camera by its id or address, or the only one there is."""
        if not wanted:
            present = self._present()
            if len(present) != 1:
                how_many = f"{len(present)} cameras are here" if present else "no GenICam camera answers"
                raise CameraError(f"{how_many}, expected one; present: {_listed(present)}", hint=_hint_for(present))
            return self._aravis.Camera.new(present[0][0])
        try:
            return self._aravis.Camera.new(wanted)
        except self._glib.Error as error:
            present = self._present()
            raise CameraError(
                f"{wanted}: no such camera answers ({error.message}); present: {_listed(present)}",
                hint=_hint_for(present),
            ) from error

    def _present(self) -> list[tuple[str, str]]:
        """Id and address of each camera that answers within a second."""
        aravis = self._aravis
        aravis.update_device_list()
        return [(aravis.get_device_id(i), aravis.get_device_address(i)) for i in range(aravis.get_n_devices())]

    def _require_control(self) -> None:
        if self._camera.is_gv_device() and not self._device.is_controller():
            raise CameraError(
                f"{self.shown}: another program controls it",
                hint="end that program (a viewer, another station), or wait for its heartbeat to run out (seconds)",
            )

    def _started(self, config: GenicamCameraConfig) -> Any:
        """A running stream with its buffers."""
        camera, aravis = self._camera, self._aravis
        is_network = camera.is_gv_device()
        if is_network and config.packet_bytes:
            camera.gv_set_packet_size(config.packet_bytes)
        elif is_network:
            camera.gv_auto_packet_size()
        stream = camera.create_stream(None, None)
        if is_network:
            stream.set_property("socket-buffer", aravis.GvStreamSocketBuffer.AUTO)
        payload = camera.get_payload()
        for _ in range(max(FEWEST_BUFFERS, min(BUFFERS, BUFFER_BYTES // max(1, payload)))):
            stream.push_buffer(aravis.Buffer.new_allocate(payload))
        packet = {"packet_bytes": camera.gv_get_packet_size()} if is_network else {}
        camera.start_acquisition()
        log_event(log, "camera_opened", camera=config.name, device=self.shown, payload_bytes=payload, **packet)
        return stream

    def _arrival(self, buffer: Any, arrived_ns: int) -> Arrival:
        aravis = self._aravis
        status = buffer.get_status()
        if status != aravis.BufferStatus.SUCCESS:
            return Arrival(arrived_ns=arrived_ns, problem=_why_torn(status.value_nick))
        kinds = (aravis.BufferPayloadType.IMAGE, aravis.BufferPayloadType.EXTENDED_CHUNK_DATA)
        if buffer.get_payload_type() not in kinds:
            return Arrival(arrived_ns=arrived_ns, problem=f"sends {buffer.get_payload_type().value_nick}, no picture")
        return Arrival(
            arrived_ns=arrived_ns,
            data=buffer.get_data(),  # with chunks behind the picture, where the camera sends them
            pixel_format=buffer.get_image_pixel_format(),
            width=buffer.get_image_width(),
            height=buffer.get_image_height(),
            row_padding=buffer.get_image_padding()[0],
            number=buffer.get_frame_id(),
            camera_ns=buffer.get_timestamp(),
        )


_TORN = {
    "missing-packets": "torn: packets of this frame did not arrive",
    "timeout": "torn: this frame stopped arriving",
    "wrong-packet-id": "torn: packets of this frame do not follow each other",
    "size-mismatch": "this frame is not as large as the camera said it would be",
    "aborted": "this frame was cut off by a stop",
}

_HINT = "`arv-tool-0.8` lists the cameras and `arv-tool-0.8 features` what one has (apt install aravis-tools-cli)"


def _listed(present: list[tuple[str, str]]) -> str:
    return ", ".join(f"{device} ({address})" for device, address in present) or "none"


def _hint_for(present: list[tuple[str, str]]) -> str:
    if present:
        return "set camera.device to one of those"
    return (
        "check its power and cable; a network camera must be in this computer's subnet and the firewall must let UDP "
        "through; a USB camera needs the right to be opened (udev rule of Aravis)"
    )


def _why_torn(status: str) -> str:
    return _TORN.get(status, f"this frame is not whole (Aravis says {status})")
