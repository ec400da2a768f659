"""One consumer of a shared subscription: which records came, and how old they were.

usage: consumer.py PORT FILTER; prints "ready", prints how many came for every line, and all it knows after "stop".
"""

from __future__ import annotations

import collections
import json
import sys
import time
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion


class Consumer:
    """A subscriber that keeps record numbers by station and the age of each in milliseconds."""

    def __init__(self, port: int, topic: str) -> None:
        self.recs: dict[str, list[int]] = collections.defaultdict(list)
        self.ages_ms: list[float] = []
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        self.client.on_connect = lambda client, *_: client.subscribe(topic, qos=1)
        self.client.on_subscribe = lambda *_: print("ready", flush=True)
        self.client.on_message = self._received
        self.client.connect("127.0.0.1", port, keepalive=60)
        self.client.loop_start()

    def _received(self, _client: Any, _data: Any, message: mqtt.MQTTMessage) -> None:
        verdict = json.loads(message.payload)
        self.ages_ms.append((time.monotonic_ns() - verdict["mono_ns"]) / 1e6)
        self.recs[verdict["station"]].append(verdict["rec"])


def main() -> None:
    consumer = Consumer(int(sys.argv[1]), sys.argv[2])
    for line in sys.stdin:
        if line.strip() == "stop":
            break
        print(len(consumer.ages_ms), flush=True)
    print(json.dumps({"recs": consumer.recs, "ages_ms": [round(age, 3) for age in consumer.ages_ms]}), flush=True)
    consumer.client.disconnect()
    consumer.client.loop_stop()


if __name__ == "__main__":
    main()
