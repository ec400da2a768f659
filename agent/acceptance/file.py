"""What `accept` found, on disk: what may run, and what later replays compare with.

```text
acceptance.json            the last accepted one: verdicts of the goldens, times, the board
acceptance.previous.json   that of another bundle before it: the next bundle is accepted while the line has the old one
acceptance.refused.json    the last refused one: `run` does not start with that bundle and engine
```

They are read strictly: one that is not as we write it is refused with its name, never guessed at.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.acceptance.measured import Measured, measured_to_json
from agent.bundle import Bundle
from agent.config import AcceptanceConfig, AgentConfig
from agent.engines import Engine
from agent.errors import ConfigError
from agent.log import log_event
from agent.messages import rfc3339

__all__ = [
    "ACCEPTED",
    "ACCEPT_AGAIN",
    "PREVIOUS",
    "REFUSED",
    "Acceptance",
    "accepted_in",
    "accepted_of",
    "refuse_refused",
    "refused_in",
    "write_acceptance",
]

SCHEMA = 1
ACCEPTED, PREVIOUS, REFUSED = "acceptance.json", "acceptance.previous.json", "acceptance.refused.json"
MAX_BYTES = 4 << 20

ACCEPT_AGAIN = "defect-agent accept --config FILE"

log = logging.getLogger("agent.acceptance")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Acceptance:
    """What was accepted, or refused, as the file holds it.

    Attributes:
        accepted: whether it may run.
        bundle_digest: SHA-256 of the bundle's manifest.
        engine: the engine's name.
        kind: its runtime.
        p50_ms: median of one inference: of the warm and the cold one the slower.
        verdicts: the verdict of each golden, by its file.
        problems: why it was refused.
        time: when, RFC 3339.
    """

    accepted: bool
    bundle_digest: str
    engine: str
    kind: str
    p50_ms: float
    verdicts: Mapping[str, str]
    problems: tuple[str, ...]
    time: str


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
    """Write the result where `run` looks for it, whole or not at all; an acceptance ends an earlier refusal.

    Args:
        state_dir: the station's; made when absent.
        measured: by the engine that will run.
        bundle: its name and version.
        bundle_digest: SHA-256 of its manifest.
        limits: that it was held to.
        problems: as `judge` found them.
        facts: more JSON values for people: what was compared to choose the memory, how the engine was compiled.

    Raises:
        ConfigError: it can't be written.
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
    path = state_dir / (REFUSED if problems else ACCEPTED)
    partial = path.with_name(f"{path.name}.partial")
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as file:
            if os.geteuid() == 0:  # sudo: the agent's user must be able to replace it
                owner = state_dir.stat()
                os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
            json.dump(document, file, indent=2, ensure_ascii=False, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        if not problems:
            _make_way(state_dir, bundle_digest)
        partial.replace(path)
    except OSError as error:
        hint = "check state_dir, and run as the agent's user: sudo -u defect-agent defect-agent accept …"
        raise ConfigError(f"{path}: can't be written ({error.strerror})", hint=hint) from error
    return path


def _make_way(state_dir: Path, bundle_digest: str) -> None:
    """Before an acceptance is put in place: that of another bundle is set aside, and the own refusal is over.

    A file that is damaged is overwritten or removed: nobody can use it.
    """
    accepted, refused = state_dir / ACCEPTED, state_dir / REFUSED
    if _digest_in(accepted) not in {None, bundle_digest}:
        accepted.replace(state_dir / PREVIOUS)
    if _digest_in(refused) in {None, bundle_digest}:
        refused.unlink(missing_ok=True)


def _digest_in(path: Path) -> str | None:
    try:
        found = _read(path)
    except ConfigError:
        return None
    return None if found is None else found.bundle_digest


def accepted_in(state_dir: Path, bundle_digest: str) -> Acceptance | None:
    """The acceptance of a bundle; None when there is none.

    Args:
        state_dir: the station's.
        bundle_digest: SHA-256 of the bundle's manifest.

    Raises:
        ConfigError: a file can't be read, or is not as we write it.
    """
    found = (_read(state_dir / name) for name in (ACCEPTED, PREVIOUS))
    return next((one for one in found if one is not None and one.bundle_digest == bundle_digest), None)


def refused_in(state_dir: Path, bundle_digest: str) -> Acceptance | None:
    """The last refusal, where it is of this bundle and nobody accepted it since; else None.

    Raises:
        ConfigError: the file can't be read, or is not as we write it.
    """
    found = _read(state_dir / REFUSED)
    return found if found is not None and found.bundle_digest == bundle_digest else None


def _read(path: Path) -> Acceptance | None:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror})", hint=ACCEPT_AGAIN) from error
    try:
        return _acceptance(json.loads(data))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path}: is damaged ({type(error).__name__}: {error})"[:300], hint=ACCEPT_AGAIN) from error


def accepted_of(config: AgentConfig, bundle: Bundle) -> Acceptance | None:
    """What was accepted of the configured bundle on this device; None when nothing was.

    A file that can't be read counts as none, and is logged: it is no reason for a line to stand still, unless the
    configuration requires an acceptance.

    Raises:
        ConfigError: an acceptance is required, and there is none that can be read.
    """
    try:
        found = accepted_in(config.state_dir, bundle.digest)
    except ConfigError as error:
        if config.acceptance.required:
            raise
        log_event(log, "acceptance_unreadable", logging.WARNING, reason=error.message, hint=error.hint)
        return None
    if found is None and config.acceptance.required:
        raise ConfigError(
            f"{config.state_dir / ACCEPTED}: {bundle.path.name} was not accepted on this device, and "
            "acceptance.required says that it must be",
            hint=ACCEPT_AGAIN,
        )
    return found


def refuse_refused(config: AgentConfig, bundle: Bundle, engine: Engine) -> None:
    """Don't go live with an engine that `accept` has refused for this bundle.

    Raises:
        ConfigError: it was refused; the reasons and the remedy.
    """
    try:
        refused = refused_in(config.state_dir, bundle.digest)
    except ConfigError as error:
        log_event(log, "acceptance_unreadable", logging.WARNING, reason=error.message, hint=error.hint)
        return
    if refused is None or refused.engine != engine.name:
        return
    raise ConfigError(
        f"{bundle.path.name} on {engine.name} was refused on {refused.time[:10]}: {'; '.join(refused.problems)}",
        hint=f"put the earlier bundle back; or see {config.state_dir / REFUSED}, mend the cause or the limits, and "
        f"{ACCEPT_AGAIN}",
    )


def _acceptance(raw: Any) -> Acceptance:
    """Raises one of the exceptions above when the document is not ours."""
    if raw["schema"] != SCHEMA or type(raw["accepted"]) is not bool:
        raise ValueError(f"expected schema {SCHEMA}")
    texts = {name: raw[name] for name in ("bundle_digest", "engine", "kind", "time")}
    verdicts = {answer["file"]: answer["verdict"] for answer in raw["goldens"]["answers"]}
    strings = [*texts.values(), *verdicts, *verdicts.values(), *raw["problems"]]
    if not all(isinstance(text, str) for text in strings):
        raise TypeError("expected text")
    medians = [raw["latency_ms"][how]["p50"] for how in ("warm", "cold")]
    p50_ms = max((float(value) for value in medians if value is not None), default=math.nan)
    return Acceptance(
        accepted=raw["accepted"], p50_ms=p50_ms, verdicts=verdicts, problems=tuple(raw["problems"]), **texts
    )
