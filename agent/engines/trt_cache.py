"""Compiled TensorRT engines on disk: one that fits is used again, one that does not is never loaded.

A plan fits one graph, one TensorRT, one GPU, one driver and one set of options, and all of that is its key. A key's
files are

```text
4f1c22a90b6e7d15.json            the key, the plan's name and SHA-256, and facts; renaming it into place is the commit
4f1c22a90b6e7d15-9ab1….plan      the plan, named by its own hash
4f1c22a90b6e7d15.memory          `copied` or `mapped`, as accept has measured it; it outlives the plan
9b0e5d7712f3ac48.threads         CPU threads of one inference, as a start has tested it; of ONNX Runtime, without a plan
timing-77aa01c2.cache            TensorRT's timing cache of one TensorRT on one device; hash first, then the data
good                             the key of the last engine that ran
lock                             held while something is written
```

So a build that is killed, or a disk that is full, leaves what was there before: a new plan has another name, and until
its JSON file is renamed nobody looks at it. What such an end leaves behind is swept at the next write.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from agent.errors import EngineError
from agent.log import log_event

__all__ = ["CacheUnusable", "EngineCache", "EngineKey", "user_cache_dir"]

SCHEMA = 1
_PLAN = re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}\.plan")
_DIGEST_BYTES = 32
_MEMORIES = frozenset({"copied", "mapped"})
_KEPT = "the engines that were there before are untouched"

log = logging.getLogger("agent.engines")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EngineKey:
    """All that an engine depends on; a difference in any part is another engine.

    Attributes:
        graph_sha256: of every graph that it may be compiled from.
        tensorrt: its version, `10.3.0`.
        compute_capability: of the GPU, `(8, 7)`.
        device: the GPU's name.
        cuda: the CUDA that the library which moves the pictures was built for, `12.6`.
        driver_cuda: the newest CUDA that the driver can do, `12.6`.
        driver: NVIDIA's driver, `535.129.03`; on a Jetson the release of Jetson Linux that it is a part of, `R36.4.3`;
            empty where nobody says.
        precision: `int8`, `fp16` or `fp32`.
        options: the builder's other options, as canonical text.
    """

    graph_sha256: str
    tensorrt: str
    compute_capability: tuple[int, int]
    device: str
    cuda: str
    driver_cuda: str
    driver: str
    precision: str
    options: str

    def digest(self) -> str:
        """Its name on disk: 16 hex digits, another one for every difference."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**dataclasses.asdict(self), "compute_capability": list(self.compute_capability)}

    def identity(self) -> dict[str, str]:
        """The same as texts, as `OpenedEngine.identity` has them."""
        capability = ".".join(map(str, self.compute_capability))
        return {"kind": "trt", **dataclasses.asdict(self), "compute_capability": capability}

    @classmethod
    def from_identity(cls, identity: Mapping[str, str]) -> EngineKey:
        """The way back."""
        texts: dict[str, Any] = {field.name: identity[field.name] for field in dataclasses.fields(cls)}
        major, minor = map(int, texts["compute_capability"].split("."))
        return cls(**{**texts, "compute_capability": (major, minor)})


class CacheUnusable(EngineError):  # noqa: N818 - says what it is
    """The folder can't be read or written: no room, no right. The engines that were there before are untouched."""


class EngineCache:
    """Engines in one folder; more than one process may use it.

    Args:
        folder: made when absent, for the agent's user alone: whoever may write there decides what the GPU runs.
        quota_bytes: of all plans together. The least recently used go first; the newest and the last good one stay,
            also beyond the quota.
    """

    def __init__(self, folder: Path, quota_bytes: int) -> None:
        self.folder = folder
        self._quota_bytes = quota_bytes

    def find(self, key: EngineKey) -> bytes | None:
        """The plan that was compiled for exactly this key, or None.

        A damaged one is removed, and that is logged; so the caller compiles it anew.

        Raises:
            CacheUnusable: the folder can't be read, or a damaged plan not be removed.
        """
        entry = self._entry(key)
        while entry is not None:
            plan = self._read(entry["plan"])
            if hashlib.sha256(plan).hexdigest() == entry["sha256"]:
                with contextlib.suppress(OSError):  # when it was used last; a read-only folder need not know
                    os.utime(self._sidecar(key))
                return plan
            before, entry = entry, self._entry(key)
            if entry == before:  # and not one that another process replaced while we read
                self.drop(key, "the plan is damaged: its SHA-256 is another one than when it was written", only=entry)
                return None
        return None

    def _read(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise CacheUnusable(
                f"{self.folder}: can't be read ({error.strerror})", hint=_rights(self.folder)
            ) from error

    def keep(self, key: EngineKey, plan: bytes, facts: Mapping[str, Any]) -> Path:
        """Put a plan on the disk, whole or not at all, in the place of an earlier one for the same key.

        Args:
            key: what it was compiled for.
            plan: its bytes.
            facts: JSON values that go with it: notes of the build, seconds.

        Returns:
            The plan's file.

        Raises:
            CacheUnusable: it can't be written.
        """
        sha256 = hashlib.sha256(plan).hexdigest()
        path = self.folder / f"{key.digest()}-{sha256[:16]}.plan"
        entry = {
            "schema": SCHEMA,
            "plan": path.name,
            "sha256": sha256,
            "bytes": len(plan),
            "built_at": int(time.time()),
            "key": key.to_json(),
            "facts": dict(facts),
        }
        with self._writing(len(plan)):
            self._put(path, plan)
            self._put(self._sidecar(key), _json(entry))
            self._sweep()
            self._evict(key)
        return path

    def path(self, key: EngineKey) -> Path | None:
        """The plan's file, where there is one for exactly this key."""
        entry = self._entry(key)
        return None if entry is None else self.folder / entry["plan"]

    def facts(self, key: EngineKey) -> dict[str, Any]:
        """What is known of an engine: the facts of its build, and what was noted since. Empty when it is not there."""
        entry = self._entry(key)
        return {} if entry is None else dict(entry["facts"])

    def note(self, key: EngineKey, **facts: Any) -> None:
        """Add facts to an engine that is there.

        Raises:
            CacheUnusable: they can't be written.
        """
        with self._writing(0):
            entry = self._entry(key)
            if entry is not None:
                self._put(self._sidecar(key), _json({**entry, "facts": {**entry["facts"], **facts}}))

    def memory(self, key: EngineKey) -> str | None:
        """Where pictures had better lie: `copied` or `mapped`, as `accept` has measured; None when nobody has.

        It belongs to the key, not to the plan: one that is compiled anew for the same key is run in the same way.
        """
        try:
            found = self._memory(key).read_text(encoding="ascii", errors="replace").strip()
        except OSError:
            return None
        return found if found in _MEMORIES else None

    def note_memory(self, key: EngineKey, memory: str) -> None:
        """Keep what `accept` has measured.

        Raises:
            CacheUnusable: it can't be written.
        """
        with self._writing(0):
            self._put(self._memory(key), f"{memory}\n".encode())

    def threads(self, name: str) -> int | None:
        """How many CPU threads were found best, as `ThreadTest` names what it asks; None when nobody has tested."""
        try:
            return int((self.folder / f"{name}.threads").read_text(encoding="ascii", errors="replace"))
        except (OSError, ValueError):
            return None

    def note_threads(self, name: str, threads: int) -> None:
        """Keep what a start has tested.

        Raises:
            CacheUnusable: it can't be written.
        """
        with self._writing(0):
            self._put(self.folder / f"{name}.threads", f"{threads}\n".encode())

    def mark_good(self, key: EngineKey) -> None:
        """This engine was loaded and has run: it outlives the quota until another one has. Never raises."""
        with contextlib.suppress(EngineError):
            if self._good() != key.digest():
                with self._writing(0):
                    self._put(self.folder / "good", f"{key.digest()}\n".encode())

    def drop(self, key: EngineKey, reason: str, *, only: Mapping[str, Any] | None = None) -> None:
        """Remove an engine that can't be used, and log why.

        Args:
            key: what it was compiled for.
            reason: for the log.
            only: this entry alone; one that another process has put in its place meanwhile stays.
        """
        log_event(log, "engine_dropped", logging.WARNING, engine=key.digest(), folder=str(self.folder), reason=reason)
        with self._writing(0):
            if only is None or self._entry(key) == only:
                self._sidecar(key).unlink(missing_ok=True)
            self._sweep()

    def timing_cache(self, key: EngineKey) -> bytes | None:
        """What TensorRT learned about this device in earlier builds; None when there is nothing, or it is damaged."""
        try:
            data = self._timing(key).read_bytes()
        except OSError:
            return None
        digest, content = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
        return content if content and hashlib.sha256(content).digest() == digest else None

    def keep_timing_cache(self, key: EngineKey, data: bytes) -> None:
        """Keep it for the next build; it only saves time, so that a disk without room is no error, but logged."""
        try:
            with self._writing(len(data)):
                self._put(self._timing(key), hashlib.sha256(data).digest() + data)
        except EngineError as error:
            log_event(log, "timing_cache_not_kept", logging.WARNING, reason=error.message)

    def check_room(self, n_bytes: int) -> None:
        """Refuse early what would not fit later.

        Raises:
            CacheUnusable: there is less room; the folder can't be made or written to.
        """
        with self._writing(n_bytes):
            pass

    def _sidecar(self, key: EngineKey) -> Path:
        return self.folder / f"{key.digest()}.json"

    def _memory(self, key: EngineKey) -> Path:
        return self.folder / f"{key.digest()}.memory"

    def _timing(self, key: EngineKey) -> Path:
        """One per TensorRT, compute capability and device: it holds for no other."""
        words = json.dumps([key.tensorrt, list(key.compute_capability), key.device])
        return self.folder / f"timing-{hashlib.sha256(words.encode()).hexdigest()[:8]}.cache"

    def _entry(self, key: EngineKey) -> dict[str, Any] | None:
        entry = _read_entry(self._sidecar(key))
        return entry if entry is not None and entry["key"] == key.to_json() else None

    def _good(self) -> str:
        try:
            return (self.folder / "good").read_text(encoding="ascii", errors="replace").strip()
        except OSError:
            return ""

    @contextlib.contextmanager
    def _writing(self, n_bytes: int) -> Iterator[None]:
        """Hold the folder's lock, with room for this many bytes; what the disk says becomes an EngineError."""
        try:
            self._make_folder()
            fd = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise CacheUnusable(
                f"{self.folder}: can't be written to ({error.strerror})", hint=_remedy(error, self.folder)
            ) from error
        try:
            self._hand_over(fd)
            fcntl.flock(fd, fcntl.LOCK_EX)
            self._sweep()
            state = os.fstatvfs(fd)
            free = state.f_bavail * state.f_frsize
            if n_bytes > free:
                raise CacheUnusable(
                    f"{self.folder}: no room for the engine: it has {_mb(n_bytes)}, {_mb(free)} are free; {_KEPT}",
                    hint=_make_room(self.folder),
                )
            yield
        except OSError as error:
            raise CacheUnusable(
                f"{self.folder}: the engine can't be written ({error.strerror}); {_KEPT}",
                hint=_remedy(error, self.folder),
            ) from error
        finally:
            os.close(fd)

    def _put(self, path: Path, data: bytes) -> None:
        """Write a file so that it is there whole or as before, also after a power cut.

        Raises:
            OSError: what the disk said; nothing of it is left.
        """
        partial = path.with_name(f"{path.name}.partial")
        try:
            fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:  # noqa: PTH123 - a descriptor has no path
                self._hand_over(fd)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            _sync(self.folder)
        except OSError:
            partial.unlink(missing_ok=True)
            raise

    def _make_folder(self) -> None:
        if self.folder.is_dir():
            return
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.geteuid() == 0:
            owner = self.folder.parent.stat()
            os.chown(self.folder, owner.st_uid, owner.st_gid, follow_symlinks=False)

    def _hand_over(self, fd: int) -> None:
        """What root writes (`sudo defect-agent build-engine`) belongs to the folder's owner, who runs the agent."""
        if os.geteuid() == 0:
            owner = self.folder.stat()
            os.fchown(fd, owner.st_uid, owner.st_gid)

    def _sweep(self) -> None:
        """Remove what no sidecar names: plans that were replaced, and what a killed build left."""
        named = {entry["plan"] for path in self.folder.glob("*.json") if (entry := _read_entry(path)) is not None}
        for path in [*self.folder.glob("*.plan"), *self.folder.glob("*.partial")]:
            if path.name not in named:
                path.unlink(missing_ok=True)

    def _evict(self, newest: EngineKey) -> None:
        """Keep the quota, at the cost of the engines that were used least recently."""
        stays = {newest.digest(), self._good()}
        entries = [(path, entry) for path in self.folder.glob("*.json") if (entry := _read_entry(path)) is not None]
        total = sum(entry["bytes"] for _, entry in entries)
        for path, entry in sorted(entries, key=lambda pair: pair[0].stat().st_mtime_ns):
            if total <= self._quota_bytes:
                break
            if path.stem not in stays:
                path.unlink(missing_ok=True)
                total -= entry["bytes"]
                log_event(log, "engine_evicted", engine=path.stem, bytes=entry["bytes"])
        self._sweep()


def user_cache_dir() -> Path:
    """Where engines are kept that belong to no station: XDG's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "defect-agent" / "engines"


def _read_entry(path: Path) -> dict[str, Any] | None:
    """A sidecar, or None when it is absent or not as we write it: its plan is then compiled anew.

    What we could not write again (NaN, a number beyond all, a half of a surrogate pair) is nothing that we wrote.
    """
    try:
        raw = json.loads(path.read_bytes())
        _json(raw)
    except (OSError, ValueError, RecursionError):
        return None
    wanted = {"schema": int, "plan": str, "sha256": str, "bytes": int, "key": dict, "facts": dict}
    fits = isinstance(raw, dict) and all(isinstance(raw.get(name), kind) for name, kind in wanted.items())
    if not fits or raw["schema"] != SCHEMA or not _PLAN.fullmatch(raw["plan"]):
        return None
    return dict(raw)


def _json(entry: Any) -> bytes:
    return (json.dumps(entry, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remedy(error: OSError, folder: Path) -> str:
    """What helps against what the disk said."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return _make_room(folder)
    if error.errno == errno.EROFS:
        return f"it is mounted read-only: set engine.tensorrt.cache_dir to another place; findmnt -T {folder}"
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return f"a file stands where a folder should: set engine.tensorrt.cache_dir to another place; ls -ld {folder}"
    if error.errno in (errno.EACCES, errno.EPERM):
        return _rights(folder)
    return f"see the message, and `dmesg` for the disk's own words; ls -ld {folder}"


def _make_room(folder: Path) -> str:
    return f"free some space there, or set engine.tensorrt.cache_dir to a larger disk: df {folder}"


def _rights(folder: Path) -> str:
    return f"run as the agent's user, who needs to read and write there: sudo -u defect-agent …; ls -ld {folder}"


def _mb(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.1f} MB"
