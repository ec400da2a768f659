"""What `accept` found, on disk: what may run, what may not, and what later replays compare with.

```text
acceptance.json                the last accepted one: verdicts of the goldens, times, the board
acceptance.previous.ID.json    those accepted before it, of other bundles and engines: the next bundle is accepted while
                               the line has the old one
acceptance.refused.ID.json     those refused, and not accepted since: `run` does not start with that bundle and engine
```

`ID` stands for one bundle on one engine: a hash of the bundle's digest and the engine's identity, without its plan: a
refusal does not end because the engine was compiled again. They are read strictly: one that is not as we write it is
refused with its name, never guessed at.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from agent.acceptance.measured import Measured, measured_to_json
from agent.config import AcceptanceConfig
from agent.engines import PLAN
from agent.errors import ConfigError
from agent.messages import rfc3339

__all__ = [
    "ACCEPTED",
    "ACCEPT_AGAIN",
    "Acceptance",
    "Damaged",
    "Records",
    "acceptances_in",
    "is_same_engine",
    "previous_name",
    "refusals_in",
    "refused_name",
    "write_acceptance",
]

SCHEMA = 2
ACCEPTED = "acceptance.json"
MAX_BYTES = 4 << 20
KEPT_BEFORE = 20
"""Acceptances of other bundles and engines that are kept; an older one is given again by `accept`."""

ACCEPT_AGAIN = "defect-agent accept --config FILE"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Acceptance:
    """What was accepted, or refused, as the file holds it.

    Attributes:
        accepted: whether it may run.
        bundle_digest: SHA-256 of the bundle's manifest.
        engine: the engine's name.
        kind: its runtime.
        graph: whose outputs at the build were the reference.
        identity: exactly which engine, as `OpenedEngine.identity` has it.
        p50_ms: median of one inference: of the warm and the cold one the slower; NaN in a refusal of an engine that
            did not run.
        p99_ms: 99th percentile of one inference, warm; NaN as before.
        changed: golden pictures that would be treated differently than at the build.
        verdicts: the verdict of each golden, by its file.
        problems: why it was refused.
        time: when, RFC 3339.
    """

    accepted: bool
    bundle_digest: str
    engine: str
    kind: str
    graph: str
    identity: Mapping[str, str]
    p50_ms: float
    p99_ms: float
    changed: int
    verdicts: Mapping[str, str]
    problems: tuple[str, ...]
    time: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Damaged:
    """A file that can't be read, or is not as we write it.

    Attributes:
        path: which.
        error: why, in words.
    """

    path: Path
    error: ConfigError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """The acceptances, or the refusals, of one state directory.

    Attributes:
        found: the last one first.
        damaged: files that say nothing.
    """

    found: tuple[Acceptance, ...]
    damaged: tuple[Damaged, ...]

    def of(self, bundle_digest: str) -> tuple[Acceptance, ...]:
        """Those of one bundle."""
        return tuple(one for one in self.found if one.bundle_digest == bundle_digest)


def is_same_engine(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether two identities are of one engine, whenever each was compiled."""
    return _without_plan(one) == _without_plan(other)


def acceptances_in(state_dir: Path) -> Records:
    """All that were accepted and are kept; raises nothing."""
    last = _records([state_dir / ACCEPTED], is_accepted=True)
    before = _records_like(state_dir, "acceptance.previous*.json", is_accepted=True)
    return Records(found=(*last.found, *before.found), damaged=(*last.damaged, *before.damaged))


def refusals_in(state_dir: Path) -> Records:
    """All that were refused and not accepted since; raises nothing.

    A folder that can't be listed is damaged as a whole: nobody knows what was refused.
    """
    return _records_like(state_dir, "acceptance.refused*.json", is_accepted=False)


def refused_name(bundle_digest: str, identity: Mapping[str, str]) -> str:
    """The file of a refusal of one bundle on one engine."""
    return f"acceptance.refused.{_id(bundle_digest, identity)}.json"


def previous_name(bundle_digest: str, identity: Mapping[str, str]) -> str:
    """The file of an earlier acceptance of one bundle on one engine."""
    return f"acceptance.previous.{_id(bundle_digest, identity)}.json"


def write_acceptance(
    state_dir: Path,
    measured: Measured,
    *,
    bundle: str,
    bundle_digest: str,
    limits: AcceptanceConfig,
    problems: Sequence[str],
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Write the result where `run` looks for it, whole or not at all.

    An acceptance ends an earlier refusal of the same bundle on the same engine, and no other. A refusal withdraws an
    earlier acceptance of the same, also when it can't be written itself.

    Args:
        state_dir: the station's; made when absent.
        measured: by the engine that will run.
        bundle: its name and version.
        bundle_digest: SHA-256 of its manifest.
        limits: that it was held to.
        problems: as `judge` found them.
        facts: more JSON values for people: what was compared to choose the memory, how the engine was compiled.

    Raises:
        ConfigError: it can't be written, or what it ends not be removed.
    """
    document = {
        "schema": SCHEMA,
        "accepted": not problems,
        "problems": list(problems),
        "time": rfc3339(time.time_ns() // 1_000_000),
        "bundle": bundle,
        "bundle_digest": bundle_digest,
        "limits": dataclasses.asdict(limits),
        **measured_to_json(measured),
        **(facts or {}),
    }
    refused = state_dir / refused_name(bundle_digest, measured.identity)
    if problems:
        try:
            _put(refused, document)
        finally:
            _withdraw(state_dir, bundle_digest, measured.identity)
        return refused
    path = state_dir / ACCEPTED
    _set_aside(path, bundle_digest, measured.identity)
    _put(path, document)
    # Only now: a power cut before leaves the refusal in force.
    gone = [refused, path.with_name(previous_name(bundle_digest, measured.identity))]
    # A file without an ID that says nothing may have refused anything, this engine too, which is now accepted.
    gone += [one.path for one in refusals_in(state_dir).damaged if not _has_id(one.path)]
    gone += [one.path for one in acceptances_in(state_dir).damaged]
    try:
        for file in gone:
            file.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(refused, error) from error
    _forget_old(state_dir)
    return path


def _id(bundle_digest: str, identity: Mapping[str, str]) -> str:
    words = json.dumps([bundle_digest, sorted(_without_plan(identity).items())])
    return hashlib.sha256(words.encode()).hexdigest()[:16]


def _without_plan(identity: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in identity.items() if name != PLAN}


def _is_about(one: Acceptance, bundle_digest: str, identity: Mapping[str, str]) -> bool:
    return one.bundle_digest == bundle_digest and is_same_engine(one.identity, identity)


def _has_id(path: Path) -> bool:
    """Whether a file's name says which bundle and engine it is about."""
    found = path.name.split(".")
    return len(found) == 4 and len(found[2]) == 16


def _files(state_dir: Path, form: str) -> list[Path]:
    if not state_dir.is_dir():  # a file in its place is the journal's to refuse
        return []
    with os.scandir(state_dir):  # glob hides a folder that can't be listed
        return sorted(state_dir.glob(form))


def _set_aside(path: Path, bundle_digest: str, identity: Mapping[str, str]) -> None:
    """The acceptance of another bundle or engine stays; one that says nothing is overwritten: nobody can use it."""
    found = _records([path], is_accepted=True).found
    if not found or _is_about(found[0], bundle_digest, identity):
        return
    try:
        path.replace(path.with_name(previous_name(found[0].bundle_digest, found[0].identity)))
    except OSError as error:
        raise _unwritable(path, error) from error


def _withdraw(state_dir: Path, bundle_digest: str, identity: Mapping[str, str]) -> None:
    """Take an acceptance away that is no longer true; a full disk can still forget."""
    last, before = state_dir / ACCEPTED, state_dir / previous_name(bundle_digest, identity)
    for path in (last, before):
        found = _records([path], is_accepted=True).found
        if found and _is_about(found[0], bundle_digest, identity):
            with contextlib.suppress(OSError):
                path.unlink()


def _forget_old(state_dir: Path) -> None:
    """Keep so many; what is lost has to be accepted again, which is no danger."""
    with contextlib.suppress(OSError):
        files = _files(state_dir, "acceptance.previous*.json")
        for path in sorted(files, key=lambda file: file.stat().st_mtime_ns)[:-KEPT_BEFORE]:
            path.unlink(missing_ok=True)


def _put(path: Path, document: Mapping[str, Any]) -> None:
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as file:
            if os.geteuid() == 0:  # sudo: the agent's user must be able to replace it
                owner = path.parent.stat()
                os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
            json.dump(document, file, indent=2, ensure_ascii=False, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise _unwritable(path, error) from error


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _unwritable(path: Path, error: OSError) -> ConfigError:
    hints = {
        errno.ENOSPC: f"free some space there, then accept again: df {path.parent}",
        errno.EDQUOT: f"free some space there, then accept again: df {path.parent}",
        errno.EROFS: f"the file system is mounted read-only: findmnt -T {path.parent}",
        errno.ENOTDIR: f"a file stands where a folder should: ls -ld {path.parent}",
        errno.EEXIST: f"a file stands where a folder should: ls -ld {path.parent}",
    }
    rights = f"run as the agent's user: sudo -u defect-agent defect-agent accept …; ls -ld {path.parent}"
    return ConfigError(f"{path}: can't be written ({error.strerror})", hint=hints.get(error.errno or 0, rights))


def _records_like(state_dir: Path, form: str, *, is_accepted: bool) -> Records:
    try:
        files = _files(state_dir, form)
    except OSError as error:
        problem = ConfigError(f"{state_dir}: can't be read ({error.strerror})", hint=f"ls -ld {state_dir}")
        return Records(found=(), damaged=(Damaged(path=state_dir, error=problem),))
    return _records(files, is_accepted=is_accepted)


def _records(paths: Sequence[Path], *, is_accepted: bool) -> Records:
    found, damaged = [], []
    for path in paths:
        try:
            one = _read(path, is_accepted=is_accepted)
        except ConfigError as error:
            damaged.append(Damaged(path=path, error=error))
            continue
        if one is not None:
            found.append(one)
    found.sort(key=lambda one: one.time, reverse=True)
    return Records(found=tuple(found), damaged=tuple(damaged))


def _read(path: Path, *, is_accepted: bool) -> Acceptance | None:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror})", hint=f"ls -l {path}") from error
    try:
        return _acceptance(json.loads(data, parse_constant=_no_number), is_accepted=is_accepted)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, ArithmeticError) as error:
        raise ConfigError(f"{path}: is damaged ({type(error).__name__}: {error})"[:300], hint=ACCEPT_AGAIN) from error


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _acceptance(raw: Any, *, is_accepted: bool) -> Acceptance:
    """Raises one of the exceptions above when the document is not ours."""
    if raw["schema"] != SCHEMA:
        raise ValueError(f"expected schema {SCHEMA}, got {raw['schema']!r}: of another release")
    if raw["accepted"] is not is_accepted:
        raise ValueError(f"accepted is {raw['accepted']!r}, expected {is_accepted}")
    answers, problems, identity = raw["goldens"]["answers"], raw["problems"], raw["identity"]
    texts = {name: raw[name] for name in ("bundle_digest", "engine", "kind", "graph", "time")}
    verdicts = {answer["file"]: answer["verdict"] for answer in answers}
    _check_texts([*texts.values(), *verdicts, *verdicts.values(), *problems, *identity, *identity.values()])
    is_whole = len(verdicts) == len(answers) == raw["goldens"]["n"]
    if not is_whole or (is_accepted and not verdicts):  # an engine that failed at once was asked nothing
        raise ValueError(f"{len(verdicts)} answers of {raw['goldens']['n']} golden pictures")
    if is_accepted and raw["fell_back"] is not False:
        raise ValueError(f"fell_back is {raw['fell_back']!r:.40}: such an engine is never accepted")
    if bool(problems) is is_accepted or not isinstance(problems, list):
        raise ValueError(f"{len(problems)} problems")
    if identity["kind"] != texts["kind"]:
        raise ValueError(f"kind is {texts['kind']}, of the engine {identity['kind']}")
    p50_ms = max(_milliseconds(raw["latency_ms"][how]["p50"], may_lack=not is_accepted) for how in ("warm", "cold"))
    p99_ms = _milliseconds(raw["latency_ms"]["warm"]["p99"], may_lack=not is_accepted)
    return Acceptance(
        accepted=is_accepted,
        identity=identity,
        p50_ms=p50_ms,
        p99_ms=p99_ms,
        changed=_changed(answers, raw["goldens"]["changed"]),
        verdicts=verdicts,
        problems=tuple(problems),
        **texts,
    )


def _changed(answers: Sequence[Mapping[str, Any]], told: Any) -> int:
    """How many answers are other ones than at the build; each says so itself, and the sum must be theirs."""
    for answer in answers:
        if not isinstance(answer["changed"], bool) or (answer["verdict"] != answer["expected"]) > answer["changed"]:
            raise ValueError(f"changed is {answer['changed']!r:.40} of {answer['verdict']!r:.40}")
    changed = sum(answer["changed"] for answer in answers)
    if isinstance(told, bool) or told != changed:
        raise ValueError(f"{told!r:.40} changed, of the answers {changed} are")
    return int(changed)


def _check_texts(values: Sequence[Any]) -> None:
    for text in values:
        if not isinstance(text, str):
            raise TypeError(f"expected text, got {text!r:.40}")
        text.encode()  # a half of a surrogate pair can be in JSON, and in no log or message


def _milliseconds(value: Any, *, may_lack: bool) -> float:
    if value is None and may_lack:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < float(value) < math.inf:
        raise ValueError(f"a time is {value!r:.40}, expected milliseconds")
    return float(value)
