"""The engine cache: what fits is found, what does not is compiled anew, and no end of a write does harm."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.engines.trt_cache import EngineCache, EngineKey
from agent.errors import EngineError
from tests.kit.users import NOBODY, without_root
from tests.kit.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
KEY = EngineKey(
    graph_sha256="ab" * 32,
    tensorrt="10.3.0",
    compute_capability=(8, 7),
    device="Orin",
    cuda="12.6",
    driver_cuda="12.6",
    driver="R36.4.3",
    precision="int8",
    options="workspace=1024",
)
OTHERS: dict[str, Any] = {
    "graph_sha256": "cd" * 32,
    "tensorrt": "10.3.1",
    "compute_capability": (8, 6),
    "device": "Orin NX",
    "cuda": "12.2",
    "driver_cuda": "12.2",
    "driver": "R36.4.0",
    "precision": "fp16",
    "options": "workspace=512",
}
PLENTY = 1_000_000_000


def cache(folder: Path, quota_bytes: int = PLENTY) -> EngineCache:
    return EngineCache(folder / "engines", quota_bytes)


def files(folder: Path, pattern: str = "*.plan") -> list[str]:
    return sorted(path.name for path in (folder / "engines").glob(pattern))


def other(n: int) -> EngineKey:
    """A key of its own per number."""
    return dataclasses.replace(KEY, graph_sha256=f"{n:064x}")


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 1 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip(f"can't mount a tmpfs here ({mount.stderr.decode().strip()}); run as root")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_what_was_kept_is_found_by_another_process_start(tmp_path: Path) -> None:
    """Minutes of compiling are not spent twice."""
    path = cache(tmp_path).keep(KEY, b"plan", {"seconds": 12.5})
    again = cache(tmp_path)

    assert again.find(KEY) == b"plan"
    assert path.read_bytes() == b"plan"
    assert again.facts(KEY)["seconds"] == 12.5


def test_every_part_of_the_key_is_tried() -> None:
    """A part that is added to the key has to be added here."""
    assert set(OTHERS) == {field.name for field in dataclasses.fields(EngineKey)}


def test_a_key_comes_back_from_an_engines_identity() -> None:
    """All texts, one for each part."""
    assert EngineKey.from_identity(KEY.identity()) == KEY
    assert KEY.identity()["compute_capability"] == "8.7"


@pytest.mark.parametrize("part", sorted(OTHERS))
def test_a_change_in_any_part_of_the_key_is_another_engine(tmp_path: Path, part: str) -> None:
    """An engine for another GPU, driver or graph must never be loaded."""
    changed = dataclasses.replace(KEY, **{part: OTHERS[part]})
    engines = cache(tmp_path)
    engines.keep(KEY, b"plan", {})

    assert changed.digest() != KEY.digest()
    assert engines.find(changed) is None

    engines.keep(changed, b"another", {})
    assert (engines.find(KEY), engines.find(changed)) == (b"plan", b"another")


def test_a_sidecar_of_another_key_under_our_name_is_not_believed(tmp_path: Path) -> None:
    """The name is 16 digits of a hash; the whole key is compared."""
    engines = cache(tmp_path)
    engines.keep(thor := dataclasses.replace(KEY, device="Thor"), b"plan", {})
    (engines.folder / f"{thor.digest()}.json").rename(engines.folder / f"{KEY.digest()}.json")

    assert engines.find(KEY) is None


@pytest.mark.parametrize("damage", ["cut", "bit", "gone", "empty"])
def test_a_damaged_plan_is_removed_and_told(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    """It would crash TensorRT, or worse; the caller compiles it anew."""
    engines = cache(tmp_path)
    path = engines.keep(KEY, bytes(range(200)), {})
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    damages: dict[str, Callable[[], object]] = {
        "cut": lambda: path.write_bytes(bytes(range(150))),
        "bit": lambda: path.write_bytes(data),
        "gone": path.unlink,
        "empty": lambda: path.write_bytes(b""),
    }
    damages[damage]()
    with caplog.at_level(logging.WARNING):
        found = engines.find(KEY)

    assert found is None
    assert "engine_dropped" in caplog.messages
    assert files(tmp_path) == files(tmp_path, "*.json") == []
    engines.keep(KEY, b"new", {})
    assert engines.find(KEY) == b"new"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"schema": 1}', '{"schema": 2, "plan": "x"}', "\x00\xff", "[" * 100_000]
)
def test_a_damaged_sidecar_is_no_engine(tmp_path: Path, text: str) -> None:
    """It is compiled anew, and its plan does not stay for ever."""
    engines = cache(tmp_path)
    engines.keep(KEY, b"plan", {})
    (engines.folder / f"{KEY.digest()}.json").write_text(text, encoding="latin-1")

    assert engines.find(KEY) is None
    engines.keep(KEY, b"new", {})
    assert engines.find(KEY) == b"new"
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize("fact", ["NaN", "Infinity", "1e999", '"\\ud800"', "[" * 3000 + "]" * 3000])
def test_facts_that_we_could_not_have_written_are_no_engine(tmp_path: Path, fact: str) -> None:
    """Nothing can be noted beside them: compiled anew, no traceback."""
    engines = cache(tmp_path)
    engines.keep(KEY, b"plan", {"typing": "weak"})
    sidecar = engines.folder / f"{KEY.digest()}.json"
    text = sidecar.read_text()
    assert '"weak"' in text
    sidecar.write_text(text.replace('"weak"', fact))

    assert engines.find(KEY) is None
    engines.note(KEY, failed=None)
    engines.mark_good(KEY)
    engines.keep(KEY, b"new", {})
    assert engines.find(KEY) == b"new"


@pytest.mark.parametrize("end", ["rebuilt", "dropped", "damaged"])
def test_the_choice_of_the_memory_outlives_the_plan(tmp_path: Path, end: str) -> None:
    """It was measured for the key: another plan of the same runs in the same way."""
    engines = cache(tmp_path)
    path = engines.keep(KEY, b"plan", {})
    assert engines.memory(KEY) is None
    engines.note_memory(KEY, "mapped")
    if end == "dropped":
        engines.drop(KEY, "for the test")
    elif end == "damaged":
        path.write_bytes(b"")
        assert engines.find(KEY) is None
    engines.keep(KEY, b"new", {})

    assert engines.memory(KEY) == "mapped"
    assert engines.memory(other(1)) is None


@pytest.mark.parametrize("data", [b"", b"fast", b"\xff\x00", b"mapped\ncopied"])
def test_a_damaged_choice_of_the_memory_is_none(tmp_path: Path, data: bytes) -> None:
    """Then pictures are copied, which always works."""
    engines = cache(tmp_path)
    engines.note_memory(KEY, "copied")
    (engines.folder / f"{KEY.digest()}.memory").write_bytes(data)

    assert engines.memory(KEY) is None


@pytest.mark.parametrize("name", ["x\0y", "../x", "", ".", "x" * 300, "caf\u00e9.plan", "a.plan\n"])
def test_a_sidecar_that_names_no_plan_of_ours_is_no_engine(tmp_path: Path, name: str) -> None:
    """Whatever a broken disk makes of the name: compiled anew, no traceback."""
    engines = cache(tmp_path)
    engines.keep(KEY, b"plan", {})
    sidecar = engines.folder / f"{KEY.digest()}.json"
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), "plan": name}))

    assert engines.find(KEY) is None
    assert engines.path(KEY) is None
    engines.keep(KEY, b"new", {})
    assert engines.find(KEY) == b"new"


def test_a_new_plan_for_the_same_key_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    """Nothing piles up."""
    engines = cache(tmp_path)
    engines.keep(KEY, b"old", {})
    engines.keep(KEY, b"new", {})

    assert engines.find(KEY) == b"new"
    assert len(files(tmp_path)) == 1


CHILD = """
import sys
from pathlib import Path
from agent.engines.trt_cache import EngineCache
from tests.agent.test_trt_cache import KEY, PLENTY
engines = EngineCache(Path(sys.argv[1]), PLENTY)
n = 0
while True:
    n += 1
    engines.keep(KEY, (b"%08d" % n) * 500_000, {"n": n})
    print(n, flush=True)
"""


def test_kill_9_in_the_middle_of_a_write_leaves_the_old_engine_or_the_new_one(tmp_path: Path) -> None:
    """The must-show, at the file's level: many kills, each at another moment of a write of 4 MB; never half a plan."""
    engines = cache(tmp_path)
    engines.keep(KEY, b"%08d" % 0 * 500_000, {"n": 0})
    for turn in range(8):
        with subprocess.Popen(
            [sys.executable, "-c", CHILD, str(engines.folder)], stdout=subprocess.PIPE, cwd=ROOT
        ) as child:
            assert child.stdout is not None
            for _ in range(1 + turn % 3):
                child.stdout.readline()
            wait_until(lambda: files(tmp_path, "*.partial") or child.poll() is not None, 60, what="a write")
            child.send_signal(signal.SIGKILL)
        plan = engines.find(KEY)
        assert plan is not None
        assert plan == plan[:8] * 500_000
        assert engines.facts(KEY)["n"] == int(plan[:8])
    engines.keep(KEY, b"after", {})

    assert engines.find(KEY) == b"after"
    assert files(tmp_path, "*.partial") == []
    assert len(files(tmp_path)) == 1


def test_on_a_full_disk_the_error_says_so_and_the_old_engine_stays(tiny_disk: Path) -> None:
    """The must-show: what, how much, how much is free, and what to do."""
    engines = cache(tiny_disk)
    engines.keep(KEY, b"old", {})
    with pytest.raises(EngineError, match=r"no room for the engine: it has 2\.0 MB, [01]\.\d MB are free") as caught:
        engines.keep(other(1), bytes(2_000_000), {})

    assert "cache_dir" in str(caught.value.hint)
    assert engines.find(KEY) == b"old"
    assert files(tiny_disk, "*.partial") == []


def test_a_disk_that_fills_up_while_the_plan_is_written_leaves_the_old_engine(tiny_disk: Path) -> None:
    """Another program may be faster: room that was there is gone at the write itself."""
    engines = cache(tiny_disk)
    engines.keep(KEY, b"old", {})
    state = os.statvfs(tiny_disk)
    with (tiny_disk / "ballast").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, state.f_bavail * state.f_frsize)
    with pytest.raises(EngineError, match=r"No space left on device.*untouched|no room for the engine"):
        engines.keep(KEY, b"new", {})

    assert engines.find(KEY) == b"old"
    assert files(tiny_disk, "*.partial") == []


LIMITED = """
import resource, signal, sys
from pathlib import Path
from agent.engines.trt_cache import EngineCache
from agent.errors import EngineError
from tests.agent.test_trt_cache import KEY, PLENTY
signal.signal(signal.SIGXFSZ, getattr(signal, sys.argv[2]))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    EngineCache(Path(sys.argv[1]), PLENTY).keep(KEY, bytes(300_000), {})
except EngineError as error:
    print(error)
"""
"""A write of 300 kB that ends after 100 kB: in an error (SIG_IGN), or in death (SIG_DFL)."""


def write_past_a_limit(engines: EngineCache, action: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LIMITED, str(engines.folder), action]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_a_write_that_fails_half_way_leaves_the_old_engine(tmp_path: Path) -> None:
    """After the look at the free space: a quota, another program, a limit of the process."""
    engines = cache(tmp_path)
    engines.keep(KEY, b"old", {})
    done = write_past_a_limit(engines, "SIG_IGN")

    assert "can't be written (File too large); the engines that were there before are untouched" in done.stdout
    assert "Try: " in done.stdout
    assert engines.find(KEY) == b"old"
    assert files(tmp_path, "*.partial") == []


def test_death_half_way_through_the_plan_leaves_the_old_engine(tmp_path: Path) -> None:
    """The kernel ends the process within the write; what it left is swept at the next one."""
    engines = cache(tmp_path)
    engines.keep(KEY, b"old", {})
    done = write_past_a_limit(engines, "SIG_DFL")

    assert done.returncode == -signal.SIGXFSZ
    (left,) = engines.folder.glob("*.partial")
    assert left.stat().st_size == 100_000
    assert engines.find(KEY) == b"old"
    engines.keep(KEY, b"new", {})
    assert engines.find(KEY) == b"new"
    assert files(tmp_path, "*.partial") == []


def test_the_quota_costs_the_least_recently_used_but_never_the_newest_nor_the_last_good_one(tmp_path: Path) -> None:
    """A new bundle that turns out to be bad must not have cost the engine of the old one."""
    engines = cache(tmp_path, quota_bytes=250)
    for n in (1, 2, 3):
        engines.keep(other(n), bytes([n]) * 100, {})
        os.utime(engines.folder / f"{other(n).digest()}.json", (n, n))
    assert engines.find(other(1)) is None  # went for the third

    engines.mark_good(other(2))
    engines.keep(other(4), bytes(200), {})
    assert engines.find(other(2)) is not None
    assert engines.find(other(3)) is None
    assert engines.find(other(4)) is not None

    engines.mark_good(other(4))
    engines.keep(other(5), bytes(300), {})
    assert [engines.find(other(n)) is not None for n in (2, 4, 5)] == [False, True, True]


def test_an_engine_that_was_found_counts_as_used(tmp_path: Path) -> None:
    """Least recently used is not first compiled."""
    engines = cache(tmp_path, quota_bytes=250)
    for n in (1, 2):
        engines.keep(other(n), bytes(100), {})
        os.utime(engines.folder / f"{other(n).digest()}.json", (n, n))
    engines.find(other(1))
    engines.keep(other(3), bytes(100), {})

    assert [engines.find(other(n)) is not None for n in (1, 2, 3)] == [True, False, True]


def test_the_timing_cache_holds_for_one_tensorrt_on_one_device(tmp_path: Path) -> None:
    """It shortens the next build there, whatever the graph; elsewhere it would be refused."""
    engines = cache(tmp_path)
    engines.keep_timing_cache(KEY, b"timings")

    assert engines.timing_cache(dataclasses.replace(KEY, graph_sha256="ee" * 32, precision="fp16")) == b"timings"
    for part in ("tensorrt", "compute_capability", "device"):
        assert engines.timing_cache(dataclasses.replace(KEY, **{part: OTHERS[part]})) is None


def test_a_damaged_timing_cache_is_none(tmp_path: Path) -> None:
    """It only saves time."""
    engines = cache(tmp_path)
    engines.keep_timing_cache(KEY, b"timings")
    (path,) = engines.folder.glob("timing-*.cache")
    path.write_bytes(path.read_bytes()[:-1])

    assert engines.timing_cache(KEY) is None


def test_a_timing_cache_without_room_costs_a_log_line_and_no_engine(
    tiny_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The engine is there already."""
    with caplog.at_level(logging.WARNING):
        cache(tiny_disk).keep_timing_cache(KEY, bytes(2_000_000))

    assert "timing_cache_not_kept" in caplog.messages


def test_facts_can_be_noted_later(tmp_path: Path) -> None:
    """What accept measures belongs to the engine."""
    engines = cache(tmp_path)
    engines.keep(KEY, b"plan", {"seconds": 1})
    engines.note(KEY, memory="mapped")
    engines.note(other(9), memory="mapped")

    assert engines.facts(KEY) == {"seconds": 1, "memory": "mapped"}
    assert engines.facts(other(9)) == {}
    assert engines.find(KEY) == b"plan"


def test_a_folder_that_is_not_ours_to_write_is_named_with_the_remedy(tmp_path: Path) -> None:
    """`build-engine` as another user than the agent's is the likely mistake."""
    tmp_path.chmod(0o755)
    (tmp_path / "engines").mkdir(mode=0o755)
    with without_root(), pytest.raises(EngineError, match=r"engines: can't be written to \(Permission denied\)") as e:
        cache(tmp_path).keep(KEY, b"plan", {})

    assert "sudo -u defect-agent" in str(e.value.hint)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can write for another user")
def test_what_root_writes_belongs_to_the_agents_user(tmp_path: Path) -> None:
    """`sudo defect-agent build-engine` is what people type; the agent must find, use and replace what it made."""
    tmp_path.chmod(0o755)
    os.chown(tmp_path, NOBODY, NOBODY)
    cache(tmp_path).keep(KEY, b"by root", {})

    assert {path.stat().st_uid for path in [tmp_path / "engines", *(tmp_path / "engines").iterdir()]} == {NOBODY}


def test_two_processes_may_write_at_the_same_time(tmp_path: Path) -> None:
    """`build-engine` beside a running agent: each finds its own, whole."""
    engines = cache(tmp_path)
    code = (
        "import sys\nfrom pathlib import Path\nfrom agent.engines.trt_cache import EngineCache\n"
        "from tests.agent.test_trt_cache import PLENTY, other\n"
        "engines = EngineCache(Path(sys.argv[1]), PLENTY)\nn = int(sys.argv[2])\n"
        "for _ in range(20):\n    engines.keep(other(n), bytes([n]) * 10_000, {})\n"
        "    assert engines.find(other(n)) == bytes([n]) * 10_000\n"
    )
    command = [sys.executable, "-c", code, str(engines.folder)]
    children = [subprocess.Popen([*command, str(n)], cwd=ROOT) for n in (1, 2)]

    assert [child.wait(120) for child in children] == [0, 0]
    assert [engines.find(other(n)) for n in (1, 2)] == [b"\1" * 10_000, b"\2" * 10_000]
