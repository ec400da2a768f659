"""Every error the agent raises, as a tree.

```text
AgentError                 message + hint: what, where, got, expected, and what to do next
├── UserError              the user's mistake: one sentence and a hint, exit 2, no traceback
│   ├── ConfigError        a key, a type or a value in the configuration
│   ├── BundleError        a bundle that is damaged, tampered with, too new or not one at all
│   ├── ImageError         a picture that can't be decoded
│   └── MissingExtra       a library that is not installed, and how to install it
├── CameraError            a camera can't be opened, or will never deliver again
├── EngineError            a model can't be loaded or run
├── JournalError           the journal can't be opened, read or written
│   └── NotDurable         a verdict can't be made durable any more: the station stops, exit 1
└── PublishError           a broker refused us for a reason that trying again won't mend
```

A foreign exception (sqlite3, onnxruntime, OpenCV, paho, OSError) is translated at the door of the module that owns the
library; nothing above that door catches it.
"""

from __future__ import annotations

__all__ = [
    "AgentError",
    "BundleError",
    "CameraError",
    "ConfigError",
    "EngineError",
    "ImageError",
    "JournalError",
    "MissingExtra",
    "NotDurable",
    "PublishError",
    "UserError",
]


class AgentError(Exception):
    """The root: what went wrong and where, and what to do next.

    Args:
        message: what, where, got, expected, in one sentence.
        hint: the remedy, as a command or an instruction.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\nTry: {self.hint}"


class UserError(AgentError):
    """The user's mistake: shown as one sentence and a hint, exit code 2."""


class ConfigError(UserError):
    """A configuration file that does not say what we can do."""


class BundleError(UserError):
    """A bundle that can't be trusted; nothing of it is used."""


class ImageError(UserError):
    """A picture that can't be decoded into pixels."""


class MissingExtra(UserError):
    """A library that is not installed; the hint says how to get it."""


class CameraError(AgentError):
    """A camera that can't be opened or will not deliver."""


class EngineError(AgentError):
    """A model that can't be loaded, or an inference that failed."""


class JournalError(AgentError):
    """A journal that can't be opened, read or written."""


class NotDurable(JournalError):
    """The disk no longer takes verdicts: the station has stopped, and what it could not record was not judged ok."""


class PublishError(AgentError):
    """A broker's refusal that trying again won't mend."""
