"""A journal alone: verdicts as fast as they get durable; driven over a pipe.

Run as `python -m tools.bench_line.journal_worker FOLDER FD`: the folder is where its database comes to be.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from agent.config import JournalConfig
from agent.frame import Frame, Part, Stamp
from agent.health import clock_synced
from agent.inspection import BundleRef, Finding, Inspection, StageMs
from agent.journal import Journal
from agent.verdict import Decision, Verdict
from tools.bench_line.frames import frames_of
from tools.bench_line.process_facts import facts_of_process

FINDINGS = (
    Finding(class_name="good", severity="ok", score=0.98),
    Finding(class_name="scratch", severity="major", score=0.015),
    Finding(class_name="stain", severity="minor", score=0.005),
)


def main() -> None:
    """Answer orders until standard input ends."""
    answers = int(sys.argv[2])

    def answer(values: dict[str, Any]) -> None:
        os.write(answers, (json.dumps(values) + "\n").encode())

    with Journal.open(
        JournalConfig(), state_dir=Path(sys.argv[1]), station="acme/plant1/line3/cam1", clock_state=clock_synced
    ) as journal:
        answer({"ready": True, **facts_of_process()})
        done = 0
        for line in sys.stdin:
            parts = int(json.loads(line)["parts"])
            verdicts = [_verdict(done + i + 1) for i in range(parts)]
            started, cpu = time.monotonic(), time.process_time()
            for verdict in verdicts:
                journal.trigger(verdict.inspection.part)
                journal.record(verdict)
            journal.flush(60)
            seconds = time.monotonic() - started
            done += parts
            answer({
                "seconds": seconds,
                "cpu_s": time.process_time() - cpu,
                "commit_ms": journal.stats().commit_ms,
                "last_rec": journal.last_rec,
            })  # fmt: skip


IMAGE = frames_of(64, 64, 1)[0]


def _verdict(number: int) -> Verdict:
    """A good part's, as a classifier gives it."""
    now = Stamp.now()
    part = Part(id=f"cam1-20261130T120000000-{number}", trigger="frame", sequence=number, triggered=now)
    frame = Frame(part=part, image=IMAGE, camera="cam1", source="memory", sequence=number, captured=now)
    inspection = Inspection(
        part=part,
        frame=frame,
        fault=None,
        findings=FINDINGS,
        defect_score=0.02,
        uncertainty=0.1,
        ms=StageMs(preprocess=0.1, infer=1.0, decode=0.05),
        bundle=BundleRef(name="bench-line-1.0.0", digest="0" * 64),
        engine="onnxruntime 1.32.0 CPU int8, 1 thread",
    )
    return Verdict(
        decision=Decision.OK,
        reason="good: defect score 0.02 under 0.40",
        inspection=inspection,
        findings=FINDINGS,
        top=FINDINGS[0],
        score=0.02,
        threshold=0.4,
        decided=now,
    )


if __name__ == "__main__":
    main()
