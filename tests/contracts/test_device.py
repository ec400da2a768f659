"""What every CUDA device promises, asked of each library: PyCUDA's stand-in, the real PyCUDA and the real cuda-python.

The real ones run over a stand-in `libcuda.so.1` (`tests/kit/libcuda/README.md` says how), and are skipped where a
compiler, CUDA's headers or the package is missing.
"""

from __future__ import annotations

import ctypes.util
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Literal, TypeVar

import numpy as np
import pytest

from agent.engines.device import Device, OutOfDeviceMemory, open_device
from agent.errors import EngineError
from tests.kit.gpus import KINDS, Machine, machine, why_not

T = TypeVar("T")
ENDS_CONTEXT = "cuDevicePrimaryCtxRelease"


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    reason = why_not(request.param)
    if reason is not None:
        pytest.skip(f"{request.param}: {reason}")
    return str(request.param)


@pytest.fixture
def gpu(kind: str) -> Iterator[Machine]:
    """A machine with one Orin; when the test is over nothing is held, and the driver had nothing to clear away."""
    with machine(kind) as made:
        yield made
        assert made.live == {}
        assert (made.n_reclaimed, made.torn) == (0, 0)


def in_thread(work: Callable[[], T]) -> T:
    """Run it on a thread of its own, and give what it gives or raises."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(timeout=60)
    if errors:
        raise errors[0]
    return results[0]


def there_and_back(device: Device, value: int = 7, n_bytes: int = 1000) -> int:
    """Copy a byte's pattern to the device and back; gives what came back."""
    stream, address = device.stream(), device.allocate(n_bytes)
    source, target = device.host(n_bytes), device.host(n_bytes)
    source.array[:] = value
    device.copy_in(address, source, stream)
    device.copy_out(target, address, stream)
    device.synchronize(stream)
    back = int(target.array[0]) if np.all(target.array == target.array[0]) else -1
    for buffer in (source, target):
        buffer.free()
    device.free(address)
    device.release_stream(stream)
    return back


def test_a_device_says_what_it_is(gpu: Machine) -> None:
    """The facts that an engine's key needs."""
    device = gpu.open()

    assert (device.name, device.compute_capability, device.memory_bytes) == ("Orin", (8, 7), 1 << 30)
    assert device.is_integrated
    assert device.can_map
    assert device.cuda.count(".") == device.driver_cuda.count(".") == 1
    assert device.library.startswith(gpu.prefer)
    device.close()


def test_bytes_go_to_the_device_and_come_back(gpu: Machine) -> None:
    """The two copies and the synchronization; what was taken is given back one by one."""
    device = gpu.open()

    assert there_and_back(device) == 7
    assert list(gpu.live.values()) == [1]  # the context
    device.close()


def test_mapped_memory_is_the_same_on_both_sides(gpu: Machine) -> None:
    """No copy: what the host writes lies at the device's address."""
    device = gpu.open()
    stream = device.stream()
    mapped, target = device.host(16, mapped=True), device.host(16)
    mapped.array[:] = 9
    assert mapped.device_address is not None
    device.copy_out(target, mapped.device_address, stream)
    device.synchronize(stream)

    assert target.device_address is None
    assert list(target.array) == [9] * 16
    device.close()


def test_every_call_works_from_every_thread(gpu: Machine) -> None:
    """Opened here, used there, freed elsewhere, closed on yet another thread."""
    device = gpu.open()
    address = in_thread(lambda: device.allocate(100))
    buffer = in_thread(lambda: device.host(100))
    stream = in_thread(device.stream)

    assert in_thread(lambda: there_and_back(device, 3)) == 3
    in_thread(lambda: device.copy_in(address, buffer, stream))
    in_thread(lambda: device.synchronize(stream))
    in_thread(lambda: device.free(address))
    in_thread(buffer.free)
    in_thread(lambda: device.release_stream(stream))
    in_thread(device.close)


def test_two_threads_at_once_do_not_disturb_one_another(gpu: Machine) -> None:
    """Each gets its own bytes back, again and again."""
    device = gpu.open()
    wrong: list[int] = []

    def work(value: int) -> None:
        wrong.extend(back for back in (there_and_back(device, value) for _ in range(50)) if back != value)

    threads = [threading.Thread(target=work, args=(value,)) for value in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)

    assert wrong == []
    device.close()


def test_the_context_is_current_only_inside_the_block(gpu: Machine) -> None:
    """TensorRT's own calls need it; afterwards, and after an exception, the thread is as it was."""
    device = gpu.open()

    with device.current():
        assert any("stack" in what for what in gpu.live)
    with pytest.raises(ZeroDivisionError), device.current(), device.current():
        raise ZeroDivisionError

    assert not any("stack" in what for what in gpu.live)
    device.close()


def test_another_user_of_the_context_keeps_it(gpu: Machine) -> None:
    """Its context stays current through our calls, and its memory survives our closing."""
    with gpu.other_user():
        before = gpu.live
        device = gpu.open()

        assert there_and_back(device) == 7
        device.allocate(1000)
        device.stream()
        in_thread(device.close)

        assert gpu.live == before


def test_what_was_forgotten_is_freed_on_closing(gpu: Machine) -> None:
    """By us, and not by the end of the context, which another user may hold; twice is fine."""
    device = gpu.open()
    buffers = [device.host(10, mapped=True), device.host(10)]
    for _ in range(3):
        device.allocate(10)
        device.stream()

    device.close()
    device.close()

    assert gpu.live == {}
    assert [buffer.array.size for buffer in buffers] == [0, 0]
    for buffer in buffers:
        buffer.free()


def test_closing_waits_for_what_is_under_way(gpu: Machine) -> None:
    """A copy that arrives in memory which is free again would be somebody else's memory."""
    device = gpu.open()
    address, buffer, stream = device.allocate(10), device.host(10), device.stream()
    device.copy_out(buffer, address, stream)

    device.close()

    assert gpu.torn == 0


def test_giving_back_twice_is_fine(gpu: Machine) -> None:
    """The second time finds nothing to do."""
    device = gpu.open()
    address, buffer, stream = device.allocate(10), device.host(10), device.stream()

    for _ in range(2):
        device.free(address)
        buffer.free()
        device.release_stream(stream)

    assert list(gpu.live.values()) == [1]
    device.close()


def test_a_closed_device_says_so(gpu: Machine) -> None:
    """And takes nothing."""
    device = gpu.open()
    device.close()

    for call in (lambda: device.allocate(1), lambda: device.host(1), device.stream, device.free_bytes):
        with pytest.raises(EngineError, match="Orin: is closed"):
            call()


def test_a_hundred_devices_in_a_row_leave_nothing(gpu: Machine) -> None:
    """Open, use, close."""
    for _ in range(100):
        device = gpu.open()
        assert there_and_back(device) == 7
        device.close()


def test_out_of_memory_says_how_much_was_asked_and_how_much_is_free(kind: str) -> None:
    """In megabytes, with the remedy; the device goes on."""
    with machine(kind, memory_bytes=64 << 20) as gpu:
        device = gpu.open()
        device.allocate(40 << 20)

        with pytest.raises(
            OutOfDeviceMemory, match=r"Orin: 30\.0 MB of device memory were asked for, 24\.0 MB is free"
        ) as caught:
            device.allocate(30 << 20)

        assert "smaller input" in str(caught.value)
        assert device.free_bytes() == 24 << 20
        assert there_and_back(device) == 7
        device.close()
        assert gpu.live == {}


def test_page_locked_memory_runs_out_in_the_same_words(gpu: Machine) -> None:
    """It has its own limit."""
    device = gpu.open()
    gpu.fail(call="cuMemHostAlloc", code=2)

    with pytest.raises(OutOfDeviceMemory, match=r"2\.0 MB of page-locked host memory were asked for, 1024\.0 MB"):
        device.host(2 << 20)

    gpu.fail()
    device.close()


def test_a_machine_without_a_gpu_is_refused_with_the_groups_to_check(kind: str) -> None:
    """A driver is there, and no device that this user may open."""
    with machine(kind, count=0) as gpu, pytest.raises(EngineError, match="finds no GPU") as caught:
        gpu.open()

    assert "video and render" in str(caught.value)


def test_a_gpu_beyond_the_last_is_refused_with_the_count(gpu: Machine) -> None:
    """The number and how many there are."""
    with pytest.raises(EngineError, match="GPU 1 is not there; this machine has 1"):
        gpu.open(1)


def whole_life(gpu: Machine) -> None:
    """Every call that a device has, with something left for `close` to free."""
    device = gpu.open()
    try:
        stream, address = device.stream(), device.allocate(64)
        buffer, mapped = device.host(64), device.host(64, mapped=True)
        with device.current():
            device.copy_in(address, buffer, stream)
        device.copy_out(buffer, address, stream)
        if device.can_capture:
            graph = device.capture(stream, lambda: device.copy_in(address, buffer, stream))
            device.launch(graph, stream)
            device.release_graph(graph)
            device.capture(stream, lambda: device.copy_in(address, buffer, stream))
        device.synchronize(stream)
        device.free_bytes()
        device.free(address)
        mapped.free()
        device.release_stream(stream)
        device.allocate(64)
        device.stream()
    finally:
        device.close()


def failure_of(gpu: Machine) -> EngineError | None:
    """What a life raises; any other exception goes through."""
    try:
        whole_life(gpu)
    except EngineError as error:
        return error
    return None


def calls_of_a_life(kind: str) -> int:
    with machine(kind) as gpu:
        whole_life(gpu)
        return gpu.n_calls


def test_whichever_call_fails_everything_is_given_back(kind: str) -> None:
    """Each call in turn: a failure is told in words, and nothing stays held, on no thread's stack either."""
    n_calls = calls_of_a_life(kind)
    told = 0
    for number in range(1, n_calls + 1):
        with machine(kind) as gpu:
            gpu.fail(at=number)
            if (error := failure_of(gpu)) is not None:
                told += 1
                assert "unspecified launch failure" in str(error), number
                assert error.hint, number
            assert gpu.live == {}, f"call {number} failed"

    assert told > n_calls // 2


def test_whichever_call_fails_another_user_loses_nothing(kind: str) -> None:
    """While it holds the context, its end frees nothing for us: all we took must have been given back."""
    n_calls = calls_of_a_life(kind)
    for number in range(1, n_calls + 1):
        with machine(kind) as gpu:
            with gpu.other_user():
                before = gpu.live
                gpu.fail(at=number)
                in_thread(functools.partial(failure_of, gpu))
                gpu.fail()
                assert gpu.live == before, f"call {number} failed"
            assert gpu.live == {}, f"call {number} failed"


@pytest.mark.parametrize("call", ["cuMemFree", "cuStreamDestroy", "cuMemFreeHost", "cuStreamSynchronize"])
def test_a_gpu_that_is_lost_is_still_let_go(kind: str, call: str) -> None:
    """A call that fails every time, as after an Xid error: closing goes through to the end."""
    with machine(kind) as gpu:
        gpu.fail(call=call)
        error = failure_of(gpu)

        assert error is None or "unspecified launch failure" in str(error)
        assert gpu.live == {}


@pytest.mark.gpu
@pytest.mark.parametrize("prefer", ["pycuda", "cuda-python"])
def test_a_gpu_that_is_really_here(prefer: Literal["pycuda", "cuda-python"]) -> None:
    """Bytes there and back, from other threads, mapped memory, and as much free memory after a hundred rounds."""
    if ctypes.util.find_library("cuda") is None:
        pytest.skip("no NVIDIA driver here")
    try:
        device = open_device(prefer)
    except EngineError as error:
        pytest.skip(error.message)
    there_and_back(device)
    before = device.free_bytes()

    assert [there_and_back(device, value % 256) for value in range(100)] == [value % 256 for value in range(100)]
    assert in_thread(lambda: there_and_back(device, 3, 1 << 20)) == 3
    if device.can_map:
        stream, mapped, target = device.stream(), device.host(16, mapped=True), device.host(16)
        mapped.array[:] = 9
        device.copy_out(target, mapped.device_address or 0, stream)
        device.synchronize(stream)
        assert list(target.array) == [9] * 16
    assert device.free_bytes() >= before - (8 << 20)  # others use the GPU, too
    device.close()
