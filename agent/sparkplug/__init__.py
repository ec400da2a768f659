"""The station as Sparkplug B 3.0 sees it: a second view of the same verdicts, over a connection of its own.

```text
node.py      EdgeNode: the sparkplug thread; connects, falls back to 3.1.1, comes back; never ends by itself
└ session.py one connection served: wait for the host, births, data, rebirths, goodbye
  ├ view.py  what outlives a connection: values, what was sent, the door of the commands
  │          tags.py the metrics by name   backlog.py which records are owed   memory.py what the disk keeps
  ├ commands.py NCMD and DCMD, hostile until decoded     primary_host.py STATE
  └ link.py  the publisher's link with another will      payload.py the bytes      names.py topics
```

Verdicts come from the journal by record number. What was recorded while no host listened goes out as historical, oldest
first and at a limited rate, beside what is live. Data are QoS 0: a host removes repeats by `Part/Record`. `README.md`
holds the table of metrics, `CONFORMANCE.md` the specification's assertions with the tests that show them.
"""

from __future__ import annotations

from agent.sparkplug.names import Topics, topics_of
from agent.sparkplug.node import EdgeNode
from agent.sparkplug.view import Door, OnCommand, Source

__all__ = ["Door", "EdgeNode", "OnCommand", "Source", "Topics", "topics_of"]
