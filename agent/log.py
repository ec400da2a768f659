"""The log: one line per part on standard output, text for people, JSON for collectors.

Standard output only: journald (or whatever starts us) keeps time, rotation and retention. Event names are constants,
data are fields.
"""

from __future__ import annotations

import functools
import json
import logging
import sys
import time
from typing import Any, TextIO

from agent.config import LogConfig

__all__ = ["JsonFormatter", "TextFormatter", "log_event", "start_logging"]


def start_logging(config: LogConfig, *, stream: TextIO = sys.stdout) -> None:
    """Send every logger of this process to one stream in the configured form."""
    as_json = config.format == "json" or (config.format == "auto" and not stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter())
    # What no line of ours shows needs not be found out for each (logging HOWTO, "Optimization").
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # noqa: SLF001 - the documented way
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(config.level.upper())


def log_event(logger: logging.Logger, event: str, level: int = logging.INFO, **fields: Any) -> None:
    """Log one event with its fields: `log_event(log, "verdict", part="A1", decision="ok")`."""
    logger.log(level, event, extra={"fields": fields})


class TextFormatter(logging.Formatter):
    """`09:14:03.127 info  verdict part=A1 decision=ok …`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line; a traceback follows on its own lines."""
        moment = time.strftime("%H:%M:%S", time.localtime(record.created))
        fields = " ".join(f"{key}={_quoted(value)}" for key, value in _fields(record).items())
        line = f"{moment}.{int(record.msecs):03d} {record.levelname.lower():7} {record.getMessage()} {fields}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """One line; a traceback is the field `traceback`."""
        moment = _second(int(record.created))
        line: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return _ENCODER.encode(line)


@functools.lru_cache(maxsize=4)
def _second(utc_s: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(utc_s))


_ENCODER = json.JSONEncoder(ensure_ascii=False, default=str)
"""Made once: `json.dumps` with arguments of its own makes one for each line."""


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = getattr(record, "fields", {})
    return fields


def _quoted(value: Any) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    plain = text and all(c.isprintable() and c not in ' "=' for c in text)
    return text if plain else json.dumps(text, ensure_ascii=False)
