"""The durable record: verdicts, the messages that carry them, and the pictures of flagged parts.

One SQLite file, `STATE_DIR/journal.db` (WAL, `synchronous=FULL`), with the pictures as files in `STATE_DIR/images/`.
One thread, `journal`, writes; everybody else puts items into its queue, and it commits all that waits in one go.

```python
journal = Journal.open(config.journal, state_dir=..., station="acme/p1/l3/cam1", clock_state=clock_synced)
journal.trigger(part)                   # write-ahead: the part exists and must get a verdict
receipt = journal.record(verdict)       # queued; JournalError when the disk no longer takes anything
rec = receipt.wait(timeout_s=5)         # only who must know waits
journal.event("camera_lost", "alarm", "camera cam1: no frame for 2 s", camera="cam1")
journal.flush()                         # all that was put before is durable now
journal.close()                         # drains
```

What holds:

- A part is answered once. Its key is (boot, `part.sequence`), never the plant's part id, which may come again. A second
  `record()` for the same part writes nothing, gives the first `rec`, and becomes the event `verdict_repeated`.
- `rec` counts verdicts from 1 without a gap and is never used again, not even after retention.
- A part that was triggered and has no verdict when the agent dies gets an `error` verdict at the next `open()`, before
  anything else is written.
- Verdict, its messages and the removal of its trigger are one transaction.
- Every trigger is accounted for: `stats().ledger` closes at any time, `JournalReader.ledger_faults()` proves it.
- When the disk is full, pictures go first, then a reserve is given up; when that is gone too, every waiting and every
  later call raises `JournalError`.

Its own events: `verdict_repeated`, `parts_interrupted`, `clock_jumped`, `evidence_dropped` (many losses in one, at most
once a minute), `evidence_stuck`, `evidence_moved`, `message_set_aside`, `disk_full`, `disk_recovered`.

For the publisher's thread, `journal.outbox`:

```python
poll.register(journal.outbox.wake_fd, POLLIN)     # readable when new rows were committed
journal.outbox.drain_wake()                       # then look, and look again after every wake
for row in journal.outbox.pending(after=last_seq, limit=20):    # committed rows, in order
    payload = journal.outbox.payload(row)         # None: the picture is gone; acknowledge it and go on
    client.publish(row.topic, payload, row.qos, row.retain)     # row.content_type for MQTT 5
journal.outbox.acknowledge([row.seq, ...])        # after a PUBACK with a good reason code; never blocks on the disk
journal.outbox.set_aside(row.seq, "broker takes 64 kB, the message has 90 kB")  # reported as `message_set_aside`
journal.outbox.depth()                            # rows that still have to go out
```

Acknowledged rows leave `pending()` and `depth()` at once and the disk a little later: after a crash in between they are
sent again (at least once). `topic` is complete: `STATION/verdict`, `STATION/image/ID`, `STATION/event`.

`Journal.open_readonly(state_dir)` gives a `JournalReader` beside a running agent: `read(first=, last=, newest_first=)`
yields `StoredVerdict`s, `stats()` the same numbers, `image_path(rec)` the picture, `images(rec)` those of all views.
"""

from __future__ import annotations

from agent.journal.journal import Journal, Receipt
from agent.journal.ledger import Ledger
from agent.journal.outbox import Outbox, OutboxRow
from agent.journal.reader import JournalReader, JournalStats, StoredImage, StoredVerdict

__all__ = [
    "Journal",
    "JournalReader",
    "JournalStats",
    "Ledger",
    "Outbox",
    "OutboxRow",
    "Receipt",
    "StoredImage",
    "StoredVerdict",
]
