#!/usr/bin/env python3
"""File verdicts of stations into PostgreSQL: every record once, gaps noticed and asked for again.

An example to start from: it needs nothing of the agent's own code. A message is acknowledged to the broker only after
the transaction that holds it is committed, so neither a crash of this script nor one of the database loses any; what
comes twice is one row by (station, rec). When a record number is skipped, the missing range is asked for on
STATION/cmd/resend; a range is asked for again only after --again-s, and a range that the station no longer has (its
journal keeps days, not for ever) is given up after --tries, with a line on standard error.

    pip install -r requirements.txt
    psql "$DATABASE" -f schema.sql
    python file_verdicts.py --broker broker.example --database "$DATABASE"

The password of the broker is read from the file that --password-file names, never from the command line.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import queue
import signal
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import psycopg
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

COLUMNS = (
    *("station", "rec", "id", "boot", "part", "time", "decision", "code", "quality"),  # never null
    *("bundle", "bundle_digest", "reason", "class", "score", "threshold", "recipe"),
)
NEVER_NULL = 12
INSERT = (
    f"INSERT INTO verdicts ({', '.join(COLUMNS)}, image_id, message) "  # noqa: S608 - our own names
    f"VALUES ({', '.join(['%s'] * len(COLUMNS))}, %s, %s) ON CONFLICT (station, rec) DO NOTHING"
)
GAPS = """
SELECT rec + 1, next_rec - 1
FROM (SELECT rec, lead(rec) OVER (ORDER BY rec) AS next_rec FROM verdicts WHERE station = %s AND rec >= %s) AS pairs
WHERE next_rec > rec + 1 ORDER BY rec LIMIT 100
"""
HIGHEST = "SELECT max(rec) FROM verdicts WHERE station = %s"
BATCH = 200
RESEND_LIMIT = 500
"""Records asked for at once: half of what mosquitto queues for one subscriber by default (1,000)."""


@dataclasses.dataclass
class Asked:
    """What a station was asked for, of one gap: records `first` to `to`; `first` moves as they come."""

    first: int
    to: int
    tries: int
    at: float


class Filer:
    """Takes messages, files them in groups, and asks for what is missing."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.stopping = False
        self.waiting: queue.SimpleQueue[mqtt.MQTTMessage] = queue.SimpleQueue()
        self.asked: dict[tuple[str, int], Asked] = {}
        self.news: set[str] = set()  # stations that were heard since their gaps were looked for
        self.open: set[str] = set()  # stations with a gap
        self.whole_to: dict[str, int] = {}
        self.me = args.client_id
        self.client = self.make_client()

    def make_client(self) -> mqtt.Client:
        """A client whose session the broker keeps while we are away."""
        args, five = self.args, self.args.protocol == "5"
        version = MQTTProtocolVersion.MQTTv5 if five else MQTTProtocolVersion.MQTTv311
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=args.client_id,
            protocol=version,
            clean_session=None if five else False,
            manual_ack=True,
        )
        if args.user:
            password = args.password_file.read_text().strip() if args.password_file else None
            client.username_pw_set(args.user, password)
        if args.ca or args.cert:
            client.tls_set(args.ca, args.cert, args.key)
        client.on_connect = self.on_connect
        client.on_message = lambda _client, _data, message: self.waiting.put(message)
        return client

    def on_connect(self, client: mqtt.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        """Subscribe again: a broker that lost its sessions would stay silent."""
        if reason.is_failure:
            tell(f"the broker refused us: {reason}")
            return
        client.subscribe(self.args.topic, qos=1)

    def connect(self) -> None:
        """Start the client; it comes back by itself when the broker does."""
        options: dict[str, Any] = {}
        if self.args.protocol == "5":
            kept = Properties(PacketTypes.CONNECT)
            kept.SessionExpiryInterval = self.args.session_s
            options = {"clean_start": False, "properties": kept}
        self.client.connect_async(self.args.broker, self.args.port, keepalive=30, **options)
        self.client.loop_start()

    def run(self) -> None:
        """File until stopped; a database that goes away is waited for, and nothing is acknowledged meanwhile."""
        self.connect()
        batch: list[mqtt.MQTTMessage] = []
        while not self.stopping:
            try:
                with psycopg.connect(self.args.database, autocommit=True) as database:
                    while not self.stopping:
                        batch = batch or self.take()
                        self.file(database, batch)
                        batch = []
                        self.ask_for_gaps(database)
            except psycopg.OperationalError as error:  # noqa: PERF203 - a lost connection is rare
                tell(f"the database can't be reached, trying again: {str(error).splitlines()[0]}")
                time.sleep(self.args.retry_s)
        self.client.disconnect()
        self.client.loop_stop()

    def take(self) -> list[mqtt.MQTTMessage]:
        """What waits, after at most half a second."""
        batch: list[mqtt.MQTTMessage] = []
        try:
            batch.append(self.waiting.get(timeout=0.5))
            while len(batch) < BATCH:
                batch.append(self.waiting.get_nowait())
        except queue.Empty:
            pass
        return batch

    def file(self, database: psycopg.Connection, batch: list[mqtt.MQTTMessage]) -> None:
        """One transaction for all, then the acknowledgements in the order in which they came."""
        rows = []
        for message in batch:
            row = row_of(message)
            if row is None:
                tell(f"no verdict on {message.topic}, left out: {bytes(message.payload[:80])!r}")
            else:
                rows.append(row)
        if rows:
            try:
                with database.transaction(), database.cursor() as cursor:
                    cursor.executemany(INSERT, rows)
            except (psycopg.DataError, psycopg.IntegrityError):  # one can't be stored: the others must be
                for row in rows:
                    self.file_alone(database, row)
            self.news.update(row[0] for row in rows)
        for message in batch:
            self.client.ack(message.mid, message.qos)

    def file_alone(self, database: psycopg.Connection, row: tuple[Any, ...]) -> None:
        """One row; what the table refuses is told and left out."""
        try:
            with database.transaction():
                database.execute(INSERT, row)
        except (psycopg.DataError, psycopg.IntegrityError) as error:
            tell(f"{row[0]}: record {row[1]} left out: {str(error).splitlines()[0]}")

    def ask_for_gaps(self, database: psycopg.Connection) -> None:
        """Look for skipped records above the last one under which all are there, per station with news or a gap."""
        for station in sorted(self.news | self.open):
            with database.transaction():
                gaps = database.execute(GAPS, (station, self.whole_to.get(station, 0))).fetchall()
                highest = database.execute(HIGHEST, (station,)).fetchone()
            left = [gap for gap in gaps if not self.given_up(station, *gap)]
            self.whole_to[station] = left[0][0] - 1 if left else highest[0]
            if left:
                self.open.add(station)
                self.ask(station, *left[0])
            else:
                self.open.discard(station)
                self.asked = {key: asked for key, asked in self.asked.items() if key[0] != station}
        self.news.clear()

    def given_up(self, station: str, first: int, last: int) -> bool:
        """Whether this gap was asked for often enough, without an answer; says so once."""
        asked = self.asked.get((station, last))
        if asked is None or first > asked.first or asked.tries < self.args.tries:
            return False
        if time.monotonic() - asked.at < self.args.again_s:
            return False
        tell(f"{station}: records {first} to {last} did not come in {self.args.tries} tries; given up")
        del self.asked[station, last]
        return True

    def ask(self, station: str, first: int, last: int) -> None:
        """Ask for the first RESEND_LIMIT of a gap; for the next ones when they have come, for the same after a time."""
        now, to = time.monotonic(), min(last, first + RESEND_LIMIT - 1)
        asked = self.asked.get((station, last))
        if asked is not None and asked.first < first <= asked.to:  # they are coming
            asked.first, asked.tries, asked.at = first, 1, now
            return
        if asked is None or first > asked.to:
            asked = self.asked[station, last] = Asked(first=first, to=to, tries=0, at=now)
        elif now - asked.at < self.args.again_s:
            return
        asked.tries, asked.at = asked.tries + 1, now
        # `id` and `reply_to` stand in the JSON, so that it works with MQTT 3.1.1 too.
        command = {"id": str(uuid.uuid4()), "from": first, "to": to, "reply_to": f"{station}/reply/{self.me}"}
        tell(f"{station}: records {first} to {to} are missing, asked for")
        self.client.publish(f"{station}/cmd/resend", json.dumps(command), qos=1)

    def stop(self, *_: Any) -> None:
        """After the transaction that runs now."""
        self.stopping = True


def row_of(message: mqtt.MQTTMessage) -> tuple[Any, ...] | None:
    """The values for one verdict; None for what is none. Unknown fields are kept in `message`."""
    try:
        verdict = json.loads(message.payload)
        if verdict["schema"] != 1 or message.topic != f"{verdict['station']}/verdict":
            return None
        image = verdict.get("image") or {}
        values = [verdict.get(name) for name in COLUMNS]
        uuid.UUID(verdict["id"])
        whole = int(verdict["rec"]) > 0 and verdict["decision"] in {"ok", "defect", "review", "error"}
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    # PostgreSQL's text can't hold U+0000.
    clean = [value.replace("\0", "") if isinstance(value, str) else value for value in values]
    whole = whole and None not in clean[:NEVER_NULL]
    return (*clean, image.get("id"), json.dumps(verdict).replace("\\u0000", "")) if whole else None


def tell(text: str) -> None:
    """A line for the journal of whoever runs this."""
    print(f"file_verdicts: {text}", file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--broker", default="127.0.0.1", metavar="HOST", help="the MQTT broker (127.0.0.1)")
    add("--port", type=int, default=1883, metavar="N", help="its port (1883; with TLS usually 8883)")
    add("--topic", default="+/+/+/+/+/verdict", metavar="FILTER", help="whose verdicts (+/+/+/+/+/verdict)")
    add("--protocol", choices=("5", "3.1.1"), default="5", help="MQTT version (5)")
    add("--client-id", default="verdict-filer", metavar="ID", help="must not change: the session belongs to it")
    add("--session-s", type=int, default=86_400, metavar="S", help="how long the broker keeps it (MQTT 5; a day)")
    add("--user", metavar="NAME")
    add("--password-file", type=Path, metavar="FILE")
    add("--ca", metavar="FILE", help="certificate authority: switches TLS on")
    add("--cert", metavar="FILE", help="our certificate, where the broker wants one")
    add("--key", metavar="FILE", help="its key")
    add("--database", required=True, metavar="CONNINFO", help="as libpq takes it: postgresql://user@host/plant")
    add("--again-s", type=float, default=30.0, metavar="S", help="ask for the same gap again after this time (30)")
    add("--tries", type=int, default=5, metavar="N", help="then give a gap up (5)")
    add("--retry-s", type=float, default=2.0, metavar="S", help="between tries to reach the database (2)")
    return parser.parse_args()


def main() -> int:
    """Run until SIGTERM or Ctrl-C."""
    filer = Filer(arguments())
    signal.signal(signal.SIGTERM, filer.stop)
    signal.signal(signal.SIGINT, filer.stop)
    filer.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
