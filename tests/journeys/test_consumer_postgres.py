"""configs/consumers/postgres as a plant would run it: a real agent's messages, a real broker, a real PostgreSQL."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from tests.conftest import ROOT as REPOSITORY
from tests.kit.broker import Listener, Mosquitto
from tests.kit.postgres import Postgres, why_no_postgres
from tests.kit.publishing import STATION, Line, decoded
from tests.kit.waiting import wait_until

pytestmark = [
    pytest.mark.mosquitto,
    pytest.mark.skipif(bool(why_no_postgres()), reason=why_no_postgres()),
    pytest.mark.skipif(not importlib.util.find_spec("psycopg"), reason="needs psycopg: pip install 'psycopg[binary]'"),
]
EXAMPLE = REPOSITORY / "configs" / "consumers" / "postgres"
LOUD = ["log_type all"]
COUNT = "SELECT count(*), count(DISTINCT rec), min(rec), max(rec), count(DISTINCT id) FROM verdicts"


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


@pytest.fixture
def database(server: Postgres) -> Postgres:
    """With the example's tables, empty."""
    server.psql("-c", "DROP TABLE IF EXISTS verdicts CASCADE", "-f", str(EXAMPLE / "schema.sql"))
    return server


@contextmanager
def filing(database: Postgres, port: int, log: Path, *args: str) -> Iterator[subprocess.Popen[bytes]]:
    """The example as a process; it is ended by SIGTERM and must end well."""
    command = [sys.executable, str(EXAMPLE / "file_verdicts.py"), "--port", str(port), "--retry-s", "0.1", *args]
    with log.open("ab") as out:
        process = subprocess.Popen([*command, "--database", database.conninfo], stdout=out, stderr=out)
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


@contextmanager
def sender(port: int) -> Iterator[mqtt.Client]:
    client = mqtt.Client(CallbackAPIVersion.VERSION2)
    client.connect("127.0.0.1", port)
    client.loop_start()
    yield client
    client.disconnect()
    client.loop_stop()


def _verdicts(folder: Path, count: int) -> list[bytes]:
    """Verdicts of a real journal, as the agent would publish them."""
    with Line(folder) as line:
        line.good(count)
        rows = line.journal.outbox.pending(limit=count)
        return [line.journal.outbox.payload(row) or b"" for row in rows]


def _send(client: mqtt.Client, payloads: list[bytes]) -> None:
    for payload in payloads:
        client.publish(f"{STATION}/verdict", payload, qos=1).wait_for_publish(30)


def _subscribed(broker: Mosquitto) -> bool:
    return "Sending SUBACK to verdict-filer" in broker.log()


def test_five_hundred_verdicts_with_repeats_and_a_gap_are_five_hundred_rows(tmp_path: Path, database: Postgres) -> None:
    """Repeats are one row; the gap is seen, asked for in the documented words, and closed by what is sent again."""
    payloads = _verdicts(tmp_path / "journal", 500)
    kept = payloads[:200] + payloads[230:]
    repeated = [payload for number, payload in enumerate(kept) for _ in range(2 if number % 5 == 0 else 1)]
    log = tmp_path / "filer.log"
    with (
        Mosquitto(tmp_path, LOUD) as broker,
        Listener(broker.port, documented=False) as plant,
        sender(broker.port) as agent,
        filing(database, broker.port, log, "--again-s", "600"),
    ):
        wait_until(lambda: _subscribed(broker), 30, what="the filer at the broker")
        _send(agent, repeated)
        wait_until(lambda: database.psql("-c", "SELECT count(*) FROM verdicts") == "470", 60, what="470 rows")
        asked = plant.wait_for(lambda ms: len(ms) >= 1, topic_end="/cmd/resend")
        gaps = database.psql("-c", "SELECT * FROM gaps")
        _send(agent, [b"no json"])
        _send(agent, payloads[195:235])
        wait_until(lambda: database.psql("-c", "SELECT count(*) FROM verdicts") == "500", 60, what="500 rows")

    assert gaps == f"{STATION}|201|230"
    assert [m.topic for m in asked] == [f"{STATION}/cmd/resend"]
    command = decoded(asked[0])
    assert (command["from"], command["to"]) == (201, 230)
    assert command["reply_to"] == f"{STATION}/reply/verdict-filer"
    assert database.psql("-c", COUNT) == "500|500|1|500|500"
    assert database.psql("-c", "SELECT * FROM gaps") == ""
    filed = json.loads(database.psql("-c", "SELECT message FROM verdicts WHERE rec = 321"))
    assert filed == json.loads(payloads[320])
    assert "no verdict on" in log.read_text()


def test_what_comes_while_the_database_or_the_filer_is_away_is_filed_afterwards(
    tmp_path: Path, database: Postgres
) -> None:
    """Nothing is acknowledged before it is committed: the broker keeps it, for a filer that was killed too."""
    payloads = _verdicts(tmp_path / "journal", 120)
    log = tmp_path / "filer.log"
    with Mosquitto(tmp_path, LOUD) as broker, sender(broker.port) as agent:
        with filing(database, broker.port, log):
            wait_until(lambda: _subscribed(broker), 30, what="the filer at the broker")
            _send(agent, payloads[:40])
            wait_until(lambda: database.psql("-c", "SELECT count(*) FROM verdicts") == "40", 60, what="40 rows")
            database.stop()
            _send(agent, payloads[40:80])
            wait_until(lambda: "can't be reached" in log.read_text(), 30, what="a word about the database")
            database.start()
            wait_until(lambda: database.psql("-c", "SELECT count(*) FROM verdicts") == "80", 60, what="80 rows")
        _send(agent, payloads[80:])  # nobody runs
        with filing(database, broker.port, log):
            wait_until(lambda: database.psql("-c", "SELECT count(*) FROM verdicts") == "120", 60, what="120 rows")

    assert database.psql("-c", COUNT) == "120|120|1|120|120"


def test_a_filer_that_is_killed_at_work_has_filed_every_record_once_afterwards(
    tmp_path: Path, database: Postgres
) -> None:
    """`kill -9` between any two steps: what was not committed was not acknowledged, and comes again."""
    payloads = _verdicts(tmp_path / "journal", 400)
    log = tmp_path / "filer.log"
    with Mosquitto(tmp_path, LOUD) as broker, sender(broker.port) as agent:
        with log.open("ab") as out:
            command = [sys.executable, str(EXAMPLE / "file_verdicts.py"), "--port", str(broker.port)]
            first = subprocess.Popen([*command, "--database", database.conninfo], stdout=out, stderr=out)
        wait_until(lambda: _subscribed(broker), 30, what="the filer at the broker")
        for payload in payloads:
            agent.publish(f"{STATION}/verdict", payload, qos=1)
        wait_until(lambda: database.psql("-c", "SELECT count(*) > 0 FROM verdicts") == "t", 30, what="a first row")
        first.kill()
        first.wait()
        with filing(database, broker.port, log):
            wait_until(lambda: database.psql("-c", "SELECT count(*) FROM verdicts") == "400", 60, what="400 rows")

    assert database.psql("-c", COUNT) == "400|400|1|400|400"


def test_a_gap_that_never_closes_is_given_up_and_said(tmp_path: Path, database: Postgres) -> None:
    """A journal keeps days, not for ever: after --tries the filer says so and looks no further back."""
    payloads = _verdicts(tmp_path / "journal", 10)
    log = tmp_path / "filer.log"
    with Mosquitto(tmp_path, LOUD) as broker, Listener(broker.port) as plant, sender(broker.port) as agent:
        with filing(database, broker.port, log, "--again-s", "0.1", "--tries", "2"):
            wait_until(lambda: _subscribed(broker), 30, what="the filer at the broker")
            _send(agent, payloads[:4] + payloads[6:])
            wait_until(
                lambda: "records 5 to 6 did not come in 2 tries; given up" in log.read_text(), 30, what="given up"
            )
        commands = plant.messages("/cmd/resend")

    assert [(decoded(m)["from"], decoded(m)["to"]) for m in commands] == [(5, 6)] * 2
    assert database.psql("-c", COUNT) == "8|8|1|10|8"


def test_the_example_says_what_it_wants() -> None:
    """It is a plain script: --help works without a broker and without a database."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLE / "file_verdicts.py"), "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "--database" in done.stdout
