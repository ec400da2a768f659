"""The classes of the stand-in."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.kit.picamera2.sensor import Sensor

__all__ = ["CompletedRequest", "Job", "MappedArray", "Picamera2", "using"]

Stage = Callable[[], tuple[bool, Any]]
TRANSFORM, COLOUR_SPACE = object(), object()
STRIDE = 64
"""Rows in memory begin at multiples of this."""

_sensors: list[Sensor] = []
_in_use: set[int] = set()


@contextmanager
def using(sensor: Sensor) -> Iterator[None]:
    """Put this sensor behind every camera that is opened."""
    _sensors.append(sensor)
    _in_use.clear()
    try:
        yield
    finally:
        _sensors.remove(sensor)


class Job:
    """Stages that the event loop goes through, one after the other, until each has said that it is done."""

    def __init__(self, functions: list[Stage], signal_function: Any = None) -> None:
        self._left = functions
        self._future: Future[Any] = Future()
        self._signal_function = signal_function
        self._result: Any = None

    def execute(self) -> bool:
        try:
            while self._left:
                done, self._result = self._left[0]()
                if not done:
                    return False
                self._left.pop(0)
        except Exception as error:  # as the real one: the error is the result
            self._left = []
            self._future.set_exception(error)
        return True

    def signal(self) -> None:
        if not self._future.done():
            self._future.set_result(self._result)
        if self._signal_function:
            self._signal_function(self)

    def get_result(self, timeout: float | None = None) -> Any:
        return self._future.result(timeout=timeout)

    def cancel(self) -> None:
        self._future.set_exception(CancelledError())


class CompletedRequest:
    """A filled buffer, which goes back to the camera when nobody holds it any more."""

    def __init__(self, request: Any, picam2: Any) -> None:
        self.request: Any = request
        self.ref_count = 1
        self.lock = picam2.request_lock
        self.picam2 = picam2
        self.stop_count = picam2.stop_count
        self.config = picam2.camera_config.copy()

    def acquire(self) -> None:
        with self.lock:
            if self.ref_count == 0:
                raise RuntimeError("CompletedRequest: acquiring lock with ref_count 0")
            self.ref_count += 1

    def release(self) -> None:
        with self.lock:
            self.ref_count -= 1
            if self.ref_count < 0:
                raise RuntimeError("CompletedRequest: lock now has negative ref_count")
            if self.ref_count == 0:
                if self.stop_count == self.picam2.stop_count:
                    self.picam2.free.append(self.request["buffer"])
                self.request = None

    def get_metadata(self) -> dict[str, Any]:
        assert self.request is not None
        return dict(self.request["metadata"])


class MappedArray:
    """The pixels of a request where the camera has put them."""

    def __init__(self, request: Any, stream: str, reshape: bool = True, write: bool = True) -> None:
        self._buffer = request.request["buffer"]
        self._config = request.config[stream]
        self._reshape = reshape
        self._array: NDArray[np.uint8] | None = None

    def __enter__(self) -> MappedArray:  # noqa: PYI034 - Python 3.10 has no Self
        self._array = self._buffer
        if self._reshape:
            width, height = self._config["size"]
            rows = self._buffer.reshape(height, self._config["stride"])[:, : width * 3]
            self._array = np.lib.stride_tricks.as_strided(rows, (height, width, 3), (rows.strides[0], 3, 1))
        return self

    def __exit__(self, exc_type: object, exc_value: object, exc_traceback: object) -> None:
        self._array = None

    @property
    def array(self) -> NDArray[np.uint8] | None:
        return self._array


class Picamera2:
    """The camera."""

    @staticmethod
    def global_camera_info() -> list[dict[str, Any]]:
        models = _sensors[-1].models
        return [
            {"Model": model, "Location": 2, "Rotation": 0, "Id": f"/base/i2c@{i}/{model}", "Num": i}
            for i, model in enumerate(models)
        ]

    def __init__(
        self, camera_num: int = 0, verbose_console: Any = None, tuning: Any = None, allocator: Any = None
    ) -> None:
        self.sensor = _sensors[-1]
        if camera_num >= len(self.global_camera_info()):
            hint = 'use "rpicam-hello --list-cameras" to check connected cameras'
            raise RuntimeError(f"No camera number {camera_num} found - {hint}")
        if camera_num in _in_use:
            raise RuntimeError("Camera __init__ sequence did not complete.")
        _in_use.add(camera_num)
        self.sensor.opened += 1
        self.camera_idx = camera_num
        self.is_open = True
        self.started = False
        self.stop_count = 0
        self.camera_config: dict[str, Any] = {}
        self.free: list[NDArray[np.uint8]] = []
        self.request_lock = threading.Lock()
        self.lock = threading.Lock()
        self.completed_requests: list[CompletedRequest] = []
        self._requests: list[CompletedRequest] = []
        self._job_list: list[Job] = []
        self._max_queue_len = 0
        self._prodded = threading.Event()
        self._abort = threading.Event()
        self._loop: threading.Thread | None = None

    @property
    def camera_controls(self) -> dict[str, tuple[Any, Any, Any]]:
        return dict(self.sensor.controls)

    @property
    def camera_properties(self) -> dict[str, Any]:
        return {"Model": self.sensor.models[self.camera_idx], "ColorFilterArrangement": 0}

    def create_still_configuration(  # noqa: PLR0917 - the real one's
        self,
        main: Any = {},  # noqa: B006 - the real one's
        lores: Any = None,
        raw: Any = {},  # noqa: B006
        transform: Any = TRANSFORM,
        colour_space: Any = COLOUR_SPACE,
        buffer_count: int = 1,
        controls: Any = {},  # noqa: B006
        display: Any = None,
        encode: Any = None,
        queue: bool = True,
        sensor: Any = {},  # noqa: B006
        use_case: str = "still",
    ) -> dict[str, Any]:
        durations = {"NoiseReductionMode": 2, "FrameDurationLimits": (100, 1_000_000_000)}
        full = {"format": "BGR888", "size": self.sensor.largest}
        return self._configuration(full | main, buffer_count, durations | controls, queue, raw, use_case)

    def create_video_configuration(  # noqa: PLR0917 - the real one's
        self,
        main: Any = {},  # noqa: B006 - the real one's
        lores: Any = None,
        raw: Any = {},  # noqa: B006
        transform: Any = TRANSFORM,
        colour_space: Any = None,
        buffer_count: int = 6,
        controls: Any = {},  # noqa: B006
        display: Any = "main",
        encode: Any = "main",
        queue: bool = True,
        sensor: Any = {},  # noqa: B006
        use_case: str = "video",
    ) -> dict[str, Any]:
        durations = {"NoiseReductionMode": 1, "FrameDurationLimits": (33_333, 33_333)}
        full = {"format": "XBGR8888", "size": (1280, 720)}
        return self._configuration(full | main, buffer_count, durations | controls, queue, raw, use_case)

    def configure(self, camera_config: Any = None) -> None:
        if self.started:
            raise RuntimeError("Camera must be stopped before configuring")
        if not isinstance(camera_config, dict):
            raise TypeError("Invalid type for `camera_config` given")
        main = dict(camera_config["main"])
        if main["format"] not in ("RGB888", "BGR888"):
            raise RuntimeError(f"Bad format {main['format']} in stream main (the stand-in has 24-bit formats only)")
        main["size"] = tuple(min(*sides) for sides in zip(main["size"], self.sensor.largest, strict=True))
        main["stride"] = -(-main["size"][0] * 3 // STRIDE) * STRIDE
        for name in camera_config["controls"]:
            if name not in self.sensor.controls:
                raise RuntimeError(f"Control {name} is not advertised by libcamera")
        self.camera_config = camera_config | {"main": main}
        self._max_queue_len = int(camera_config["queue"] and camera_config["buffer_count"] > 1)

    def camera_configuration(self) -> dict[str, Any]:
        return self.camera_config

    def start(self, config: Any = None, show_preview: Any = False) -> None:
        if config is not None:
            self.configure(config)
        if not self.camera_config:
            raise RuntimeError("Camera has not been configured")
        main = self.camera_config["main"]
        size = main["stride"] * main["size"][1]
        self.free = [np.zeros(size, np.uint8) for _ in range(self.camera_config["buffer_count"])]
        self.sensor.settings = dict(self.camera_config["controls"])
        self.started = True
        self._abort.clear()
        self._loop = threading.Thread(target=self._run, name="picamera2", daemon=True)
        self._loop.start()
        self.sensor.started(self._deliver, lambda: bool(self._job_list))

    def stop(self) -> None:
        if not self.started:
            return
        if self._loop is not None:
            self.dispatch_functions([self._stop], wait=True, immediate=True)
        else:
            self._stop()

    def close(self) -> None:
        if not self.is_open:
            return
        if self._loop is not None:  # the preview is stopped first, so that the rest runs in the caller's thread
            self._abort.set()
            self._prodded.set()
            self._loop.join()
            self._loop = None
        self.stop()
        self.is_open = False
        _in_use.discard(self.camera_idx)

    def set_controls(self, controls: Any) -> None:
        self.sensor.settings.update(controls)

    def cancel_all_and_flush(self) -> None:
        with self.lock:
            for job in self._job_list:
                job.cancel()
            self._job_list = []

    def wait(self, job: Job, timeout: float | None = None) -> Any:
        return job.get_result(timeout=timeout)

    def dispatch_functions(
        self, functions: list[Stage], wait: Any, signal_function: Any = None, immediate: bool = False
    ) -> Any:
        if wait is None:
            wait = signal_function is None
        job = Job(functions, signal_function)
        with self.lock:
            self._job_list.append(job)
            if len(self._job_list) == 1 and (self.completed_requests or immediate):
                self._prodded.set()
        self.sensor.look()
        return job.get_result(timeout=None if wait is True else wait) if wait else job

    def capture_request(self, wait: Any = None, signal_function: Any = None, flush: Any = None) -> Any:
        if flush is True:
            flush = time.monotonic_ns()
        return self.dispatch_functions([partial(self._flushed, flush), self._captured], wait, signal_function)

    def _configuration(
        self, main: dict[str, Any], buffer_count: int, controls: dict[str, Any], queue: bool, raw: Any, use_case: str
    ) -> dict[str, Any]:
        width, height = main["size"]
        main["size"] = (width - width % 2, height - height % 2)
        parts = {"buffer_count": buffer_count, "queue": queue, "raw": raw, "use_case": use_case}
        return {"main": main, "lores": None, "controls": controls, **parts}

    def _deliver(self, image: NDArray[np.uint8], metadata: dict[str, Any]) -> bool:
        main = self.camera_config["main"]
        width, height = main["size"]
        with self.request_lock:
            buffer = self.free.pop(0) if self.free else None
        if buffer is None:
            return False
        # DRM names a format by its bits from the highest: RGB888 has blue in the first byte, BGR888 has red there.
        as_stored = image if main["format"] == "RGB888" else image[:, :, ::-1]
        rows = buffer.reshape(height, main["stride"])
        rows[:, : width * 3] = as_stored.reshape(height, width * 3)
        rows[:, width * 3 :] = 255
        self._requests.append(CompletedRequest({"buffer": buffer, "metadata": metadata}, self))
        self._prodded.set()
        return True

    def _run(self) -> None:
        while not self._abort.is_set():
            self._prodded.wait()
            self._prodded.clear()
            self._process()

    def _process(self) -> None:
        finished = []
        with self.lock:
            new, self._requests = self._requests, []
            self.completed_requests += new
            while self._job_list and self._job_list[0].execute():
                finished.append(self._job_list.pop(0))
            while len(self.completed_requests) > self._max_queue_len:
                self.completed_requests.pop(0).release()
        for job in finished:
            job.signal()

    def _flushed(self, since_ns: int | None) -> tuple[bool, None]:
        while since_ns and self.completed_requests:
            said = self.completed_requests[0].get_metadata()
            if said["SensorTimestamp"] - 1000 * said["ExposureTime"] >= since_ns:
                return True, None
            self.completed_requests.pop(0).release()
        return not since_ns, None

    def _captured(self) -> tuple[bool, Any]:
        return (True, self.completed_requests.pop(0)) if self.completed_requests else (False, None)

    def _stop(self) -> tuple[bool, None]:
        if self.started:
            self.stop_count += 1
            self.sensor.stopped()
            self.started = False
            for request in [*self._requests, *self.completed_requests]:
                request.release()
            self._requests, self.completed_requests = [], []
        return True, None
