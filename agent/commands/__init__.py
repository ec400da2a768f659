"""Commands over MQTT: what a plant may ask of a station, and how it is answered.

```text
broker ─▶ publisher's thread ─ as it came ─▶ Commands: decode ─ do ─▶ reply ─▶ publisher's thread ─▶ broker
           never waits: beyond 256                thread `commands`        kept for a repeat of the same id
           that wait, they are dropped
```

A command is JSON on `ROOT/cmd/NAME`; its reply goes to the MQTT 5 response topic, which lies under `ROOT/reply/`, or to
`ROOT/reply/CLIENT` where the JSON says `reply_to`. The same command with the same `id` within ten seconds gets the same
reply and does nothing twice; later a trigger is a part in `error`: whose it is nobody knows. What is retained, stale,
from the future, too large, or not exactly a command does nothing, and says why.
"""

from __future__ import annotations

from agent.commands.decode import Incoming
from agent.commands.door import Commands, Outgoing

__all__ = ["Commands", "Incoming", "Outgoing"]
