"""The limit: `InferenceSession.run` in a loop over tensors that are ready; driven over a pipe as the agent is.

Run as `python -m tools.bench_line.bare_worker MODEL WIDTH HEIGHT KIND FD`. With KIND `frames` it is the loop that a
first script would be: each frame is fitted with `cv2.resize` and `cv2.cvtColor`, then run.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import cv2
import numpy as np
import onnxruntime

from tools.bench_line.frames import frames_of
from tools.bench_line.process_facts import facts_of_process


def main() -> None:
    """Answer orders until standard input ends."""
    path, width, height, kind, answers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], int(sys.argv[5])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    source = session.get_inputs()[0]
    names = [output.name for output in session.get_outputs()]
    size = (source.shape[2], source.shape[1])
    frames = frames_of(width, height)
    tensors = [_fitted(frame, size) for frame in frames]

    def answer(values: dict[str, Any]) -> None:
        os.write(answers, (json.dumps(values) + "\n").encode())

    session.run(names, {source.name: tensors[0]})
    answer({"ready": True, **facts_of_process()})
    for line in sys.stdin:
        parts = int(json.loads(line)["parts"])
        started, cpu, times = time.monotonic(), time.process_time(), []
        for i in range(parts):
            began = time.perf_counter()
            at = i % len(frames)
            session.run(names, {source.name: _fitted(frames[at], size) if kind == "frames" else tensors[at]})
            times.append(time.perf_counter() - began)
        answer({
            "seconds": time.monotonic() - started,
            "cpu_s": time.process_time() - cpu,
            "ms": [round(1e3 * took, 4) for took in times],
            **facts_of_process(),
        })  # fmt: skip


def _fitted(frame: Any, size: tuple[int, int]) -> Any:
    return np.ascontiguousarray(cv2.cvtColor(cv2.resize(frame, size), cv2.COLOR_BGR2RGB)[None])


if __name__ == "__main__":
    main()
