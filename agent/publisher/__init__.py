"""outbox → MQTT: the publisher's thread, and a probe for `defect-agent check`. The only door to paho.

```text
thread.py    Publisher: connects, falls back to 3.1.1, pauses and comes back; never ends by itself
└ session.py one connection served: birth, messages, status, metrics, goodbye
  ├ drain.py what goes next, what is under way, what an answer means     lanes.py  refused: wait, hold or set aside
  │                                                                      pace.py   live at once, backlog slowly
  ├ link.py  one connection, one paho client, no thread of paho's        words.py  trouble in plain words
  └ face.py  status and metrics                                          access.py client id, password, TLS
```

```python
publisher = Publisher(config.mqtt, journal.outbox, station=..., status=..., metrics=..., tell_event=journal.event)
publisher.start()               # a broker that is away keeps nothing from starting
publisher.status_changed()      # from any thread: publish the retained status now
publisher.link                  # connected, since, error, problem, counters
publisher.stop(timeout_s=3)     # sends what it can, says `offline`, leaves
```

What a PUBACK means: the broker had the message in its memory. It is neither delivery nor durability (measured; shared
notes on MQTT, section 0). So rows stay in the journal, numbered by `rec`, and a consumer that misses one asks for it.
"""

from __future__ import annotations

from agent.publisher.access import client_id_for
from agent.publisher.probe import ProbeResult, probe
from agent.publisher.report import LinkState
from agent.publisher.thread import Publisher

__all__ = ["LinkState", "ProbeResult", "Publisher", "client_id_for", "probe"]
