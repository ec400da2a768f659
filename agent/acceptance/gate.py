"""What may go live: the engine that runs is held to what `accept` said of exactly this bundle on exactly this engine.

```text
                          accepted      refused       neither of the two
                          ────────      ───────       ──────────────────
this engine                 runs       stays out      runs, and is told; not where an acceptance is required, nor where
                                                      this bundle was only ever refused on this runtime
the refusals can't be read  runs       stays out      stays out: what was refused must not run for want of a file
```

The engine that was accepted and compiled anew since is neither of the two: the same key may get other kernels. A
refusal holds for it all the same. Where an acceptance is required it must also be one of all the bundle's golden
pictures, within the limits of the station's configuration, whatever limits `accept` was given.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping

from agent.acceptance.file import (
    ACCEPT_AGAIN,
    ACCEPTED,
    Acceptance,
    Damaged,
    acceptances_in,
    is_same_engine,
    refusals_in,
    refused_name,
)
from agent.acceptance.replay import goldens_for
from agent.binomial import upper_bound
from agent.bundle import Bundle
from agent.config import AgentConfig
from agent.engines import PLAN, OpenedEngine
from agent.errors import ConfigError
from agent.log import log_event

__all__ = ["Admission", "admit", "check_admission", "differences", "require_acceptance"]

log = logging.getLogger("agent.acceptance")

_SHOWN = {
    "kind": "runtime",
    "tensorrt": "TensorRT",
    "onnxruntime": "ONNX Runtime",
    "compute_capability": "compute capability",
    "device": "GPU",
    "cuda": "CUDA library",
    "driver_cuda": "the driver's CUDA",
    "driver": "driver",
    "graph_sha256": "graph",
    "stands_in_for": "stands in for",
}
"""What an identity's parts are called; others as they are."""


_COMPILED = {
    (True, True): "it was compiled anew since it was accepted, which may choose other kernels",
    (True, False): "it is to be compiled anew, which may choose other kernels than were accepted",
    (False, True): "which build of it was accepted is not known",
}
"""What is said of the plan, by whether it was known at acceptance and is now."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """An engine that may go live.

    Attributes:
        accepted: what later replays compare with: the acceptance of this engine, else the last one of this bundle; None
            when nothing was accepted of it.
        differs: in what this engine is another one than the accepted; empty when it is the same, or none was.
    """

    accepted: Acceptance | None
    differs: tuple[str, ...]


def require_acceptance(config: AgentConfig, bundle: Bundle) -> None:
    """Before minutes are spent on an engine: where an acceptance is required there must be one of this bundle.

    Raises:
        ConfigError: there is none that can be read.
    """
    if not config.acceptance.required:
        return
    known = acceptances_in(config.state_dir)
    if not known.of(bundle.digest):
        raise known.damaged[0].error if known.damaged else _none_accepted(config, bundle)


def admit(config: AgentConfig, bundle: Bundle, engine: OpenedEngine) -> Admission:
    """Let an engine go live, or don't.

    An acceptance that can't be read counts as none, and is logged: it is no reason for a line to stand still, unless
    the configuration requires one. A refusal that can't be read keeps out whatever was not accepted.

    Raises:
        ConfigError: it was refused, or an acceptance is required and this engine has none; reasons and remedy.
    """
    for one in acceptances_in(config.state_dir).damaged:
        log_event(log, "acceptance_unreadable", logging.WARNING, reason=one.error.message, hint=one.error.hint)
    return check_admission(config, bundle, engine.identity)


def check_admission(config: AgentConfig, bundle: Bundle, identity: Mapping[str, str]) -> Admission:
    """The same for an engine that is not open, by its identity alone; logs nothing.

    Raises:
        ConfigError: as `admit`.
    """
    known, refusals = acceptances_in(config.state_dir), refusals_in(config.state_dir)
    refused = refusals.of(bundle.digest)
    exact = next((one for one in refused if is_same_engine(one.identity, identity)), None)
    if exact is not None:
        raise _was_refused(config, bundle, exact)
    standing = [one for one in known.of(bundle.digest) if not any(_is_same(one, other) for other in refused)]
    own = next((one for one in standing if dict(one.identity) == dict(identity)), None)
    if own is not None and config.acceptance.required:
        _check_sufficient(config, bundle, own)
    for damaged in refusals.damaged:
        if own is None or damaged.path.name == refused_name(bundle.digest, identity):
            raise _unreadable(damaged)
    if own is not None:
        return Admission(accepted=own, differs=())
    like = [one for one in standing if _is_kin(one, identity)]
    rebuilt = [one for one in standing if is_same_engine(one.identity, identity)]
    nearest = next(iter([*rebuilt, *like, *standing]), None)
    if config.acceptance.required:
        if nearest is None:
            raise known.damaged[0].error if known.damaged else _none_accepted(config, bundle)
        if is_same_engine(nearest.identity, identity):
            (words,) = differences(nearest.identity, identity)
            raise ConfigError(
                f"{bundle.path.name}: its engine is not accepted, and acceptance.required says that it must be: "
                f"{words}",
                hint=ACCEPT_AGAIN,
            )
        raise ConfigError(
            f"{bundle.path.name} was accepted on another engine than the one that would run, and acceptance.required "
            f"says that it must be this one: {'; '.join(differences(nearest.identity, identity))}",
            hint=ACCEPT_AGAIN,
        )
    kin = next((one for one in refused if _is_kin(one, identity)), None)
    if kin is not None and not like:
        raise _was_refused(config, bundle, kin, differences(kin.identity, identity))
    return Admission(accepted=nearest, differs=() if nearest is None else differences(nearest.identity, identity))


def _check_sufficient(config: AgentConfig, bundle: Bundle, own: Acceptance) -> None:
    """Hold an acceptance to the configuration's limits: those of `accept`'s flags may have been others.

    Raises:
        ConfigError: it is not enough where one is required.
    """
    limits, n, whole = config.acceptance, len(own.verdicts), {golden.file for golden in goldens_for(bundle, own.graph)}
    problems = []
    if not whole or not whole <= own.verdicts.keys():
        problems.append(f"{n} of its {len(whole)} golden pictures were replayed")
    if own.changed > limits.max_changed:
        problems.append(f"{own.changed} golden verdicts changed, allowed are {limits.max_changed}")
    if limits.max_changed_bound is not None and (bound := upper_bound(own.changed, n)) > limits.max_changed_bound:
        problems.append(f"up to {bound:.1%} of the verdicts may change, allowed are {limits.max_changed_bound:.1%}")
    if limits.max_p99_ms is not None and own.p99_ms > limits.max_p99_ms:
        problems.append(f"p99 was {own.p99_ms:.2f} ms, allowed are {limits.max_p99_ms:g} ms")
    if problems:
        raise ConfigError(
            f"{bundle.path.name}: what was accepted on {own.time[:10]} is not enough with acceptance.required: "
            f"{'; '.join(problems)}",
            hint=f"{ACCEPT_AGAIN}, by the configuration's limits or with others there",
        )


def differences(then: Mapping[str, str], now: Mapping[str, str]) -> tuple[str, ...]:
    """In what one engine is another than before, each in words: `TensorRT is 10.13.3, was 10.3.0`."""
    names = [name for name in dict.fromkeys([*then, *now]) if then.get(name) != now.get(name)]
    if "kind" in names:  # of another runtime nothing can be compared
        names = ["kind"]
    elif names != [PLAN]:  # of another engine it is another one anyway
        names = [name for name in names if name != PLAN]
    found = [words for name in names for words in _differs(name, then.get(name, ""), now.get(name, ""))]
    return tuple(dict.fromkeys(found))  # the precision is an option, too


def _differs(name: str, then: str, now: str) -> list[str]:
    if name == PLAN:
        return [_COMPILED[bool(then), bool(now)]]
    if name == "options":
        before, after = (dict(part.partition("=")[::2] for part in text.split(",")) for text in (then, now))
        if len(before) > 1 and before.keys() == after.keys():
            return [f"{key} is {after[key]}, was {before[key]}" for key in before if before[key] != after[key]]
    if name == "graph_sha256":
        then, now = then[:12], now[:12]
    return [f"{_SHOWN.get(name, name)} is {now or 'unknown'}, was {then or 'unknown'}"]


def _is_same(one: Acceptance, other: Acceptance) -> bool:
    return one.bundle_digest == other.bundle_digest and is_same_engine(one.identity, other.identity)


def _is_kin(one: Acceptance, identity: Mapping[str, str]) -> bool:
    """The same runtime in the same part; the CPU that was asked for is not the CPU that stands in."""
    return all(one.identity.get(name) == identity.get(name) for name in ("kind", "stands_in_for"))


def _none_accepted(config: AgentConfig, bundle: Bundle) -> ConfigError:
    return ConfigError(
        f"{config.state_dir / ACCEPTED}: {bundle.path.name} was not accepted on this device, and "
        "acceptance.required says that it must be",
        hint=ACCEPT_AGAIN,
    )


def _was_refused(
    config: AgentConfig, bundle: Bundle, refused: Acceptance, differs: tuple[str, ...] = ()
) -> ConfigError:
    other = f"; this engine is another one ({'; '.join(differs)}), which nobody has accepted" if differs else ""
    path = config.state_dir / refused_name(refused.bundle_digest, refused.identity)
    return ConfigError(
        f"{bundle.path.name} on {refused.engine} was refused on {refused.time[:10]}: "
        f"{'; '.join(refused.problems)}{other}",
        hint=f"put the earlier bundle back; or see {path}, mend the cause or the limits, and {ACCEPT_AGAIN}",
    )


def _unreadable(damaged: Damaged) -> ConfigError:
    return ConfigError(
        f"{damaged.error.message}: what was refused can't be known, so only what was accepted may run",
        hint=f"accept the engine that is to run: {ACCEPT_AGAIN}; if that does not help, rm {damaged.path} after it",
    )
