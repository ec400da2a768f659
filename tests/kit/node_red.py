"""Node-RED without its editor, running a flow of ours against a broker of the tests."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.kit.broker import free_port
from tests.kit.waiting import wait_until

__all__ = ["NODE", "NodeRed", "why_no_node_red"]

NODE = Path(__file__).parent / "node"
INSTALL = "npm install --ignore-scripts --prefix tests/kit/node"


def why_no_node_red() -> str:
    """Why it can't run here; empty where it can."""
    if shutil.which("node") is None:
        return "needs Node.js: apt install nodejs npm"
    if not (NODE / "node_modules" / "@node-red" / "runtime").is_dir():
        return f"needs Node-RED (80 MB): {INSTALL}"
    return ""


class NodeRed:
    """One process that runs a flow; a context manager.

    Args:
        folder: for its files.
        flow: the flow's nodes.
        broker_port: entered into the flow's brokers, on loopback.
    """

    def __init__(self, folder: Path, flow: list[dict[str, Any]], *, broker_port: int) -> None:
        self._folder = folder / "node-red"
        self._folder.mkdir()
        brokers = {"broker": "127.0.0.1", "port": str(broker_port)}
        nodes = [{**node, **brokers} if node["type"] == "mqtt-broker" else node for node in flow]
        # Every debug node shows what it gets, also those that a person switches on when wanted.
        nodes = [{**node, "active": True} if node["type"] == "debug" else node for node in nodes]
        (self._folder / "flow.json").write_text(json.dumps(nodes))
        self._port = free_port()
        self._lines: list[dict[str, Any]] = []
        self._log: list[str] = []
        self._process: subprocess.Popen[str] | None = None

    def shown(self, name: str) -> list[Any]:
        """What the debug node of this name has shown, as values."""
        lines = [line for line in list(self._lines) if line.get("node") == name]
        return [json.loads(line["msg"]) if line["format"].startswith("Object") else line["msg"] for line in lines]

    def get(self, path: str) -> tuple[str, bytes]:
        """Content type and body of a page that the flow serves."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}{path}", timeout=30) as answer:
            return answer.headers["content-type"], answer.read()

    def log(self) -> str:
        """What it has said besides."""
        return "\n".join([*self._log, *(str(line) for line in self._lines if "problem" in line)])

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                self._lines.append(json.loads(line))
            except ValueError:  # noqa: PERF203 - a line of its log
                self._log.append(line.rstrip())

    def _started(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"Node-RED ended: {self.log()}"
        return any("started" in line for line in list(self._lines))

    def __enter__(self) -> NodeRed:  # noqa: PYI034 - Self needs Python 3.11
        command = ["node", str(NODE / "flow.js"), str(self._folder), "flow.json", str(self._port)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._reader = threading.Thread(target=self._read, name="node-red", daemon=True)
        self._reader.start()
        wait_until(self._started, 60, what=f"Node-RED: {self.log()}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._reader.join(10)
            assert self._process.stdout is not None
            self._process.stdout.close()
