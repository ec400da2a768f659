"""OpenVINO Model API as its user would run it, in an environment of its own; driven over a pipe as the agent is.

Nothing of ours is imported: this file runs where only openvino, openvino-model-api, OpenCV, numpy and paho are. Frames
come from a file; each is given to `ClassificationModel`, and its answer goes to the broker with QoS 1. Nothing is kept
on a disk. Run as `python peer_worker.py MODEL FRAMES.npy PORT PRECISION THREADS FD`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as mqtt
from model_api.adapters import OpenvinoAdapter, create_core  # type: ignore[import-not-found]
from model_api.models import ClassificationModel  # type: ignore[import-not-found]
from paho.mqtt.enums import CallbackAPIVersion


def main() -> None:
    """Answer orders until standard input ends."""
    path, frames, port, precision, threads, answers = sys.argv[1:]
    plugin: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if precision != "shipped":
        plugin |= {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": int(threads)}
    adapter = OpenvinoAdapter(create_core(), path, device="CPU", plugin_config=plugin)
    labels = ["good", "scratch", "stain", "dent", "crack", "pit"]
    configuration = {
        "labels": labels, "scale_values": [255.0] * 3, "reverse_input_channels": True, "resize_type": "standard",
        "confidence_threshold": 0.0, "topk": 1,
    }  # fmt: skip
    model = ClassificationModel(adapter, configuration=configuration, preload=True)
    images = list(np.load(frames))
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=f"peer-{os.getpid()}")
    client.max_inflight_messages_set(100)
    client.connect("127.0.0.1", int(port))
    client.loop_start()
    answer = _Answers(int(answers))
    answer.give({"ready": True, "top": _top(model(images[0]))})
    for line in sys.stdin:
        answer.give(_round(model, images, client, int(json.loads(line)["parts"])))


def _round(model: Any, images: list[Any], client: mqtt.Client, parts: int) -> dict[str, Any]:
    started, cpu, sent, times = time.monotonic(), time.process_time(), [], []
    for i in range(parts):
        began = time.perf_counter()
        label, score = _top(model(images[i % len(images)]))
        payload = json.dumps({"part": f"part-{i}", "class": label, "score": score, "time": time.time()})
        sent.append(client.publish("peer/verdict", payload, qos=1))
        times.append(time.perf_counter() - began)
    for message in sent:
        message.wait_for_publish(30)
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return {
        "seconds": time.monotonic() - started,
        "cpu_s": time.process_time() - cpu,
        "ms": [round(1e3 * took, 4) for took in times],
        "rss_kb": int(status.partition("VmRSS:")[2].split()[0]),
    }


def _top(result: Any) -> tuple[str, float]:
    best = result.top_labels[0]
    return str(best.name), round(float(best.confidence), 4)


class _Answers:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def give(self, values: dict[str, Any]) -> None:
        os.write(self._descriptor, (json.dumps(values) + "\n").encode())


if __name__ == "__main__":
    main()
