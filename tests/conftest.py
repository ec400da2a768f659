"""What every test may ask for, and why a test that can't run here is skipped."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
settings.register_profile("here", deadline=None)
settings.load_profile("here")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--boot", action="store_true", help="boot a real systemd in a container (root)")


def _why_not(item: pytest.Item) -> str | None:
    """The reason why a marked test can't run here, or None."""
    if item.get_closest_marker("torch") and importlib.util.find_spec("torch") is None:
        return "needs PyTorch: pip install -e '.[train]'"
    if item.get_closest_marker("mosquitto") and not (shutil.which("mosquitto") and shutil.which("mosquitto_sub")):
        return "needs mosquitto: apt install mosquitto mosquitto-clients"
    if item.get_closest_marker("shared") and not SHARED.is_dir():
        return f"needs the images in {SHARED}"
    if item.get_closest_marker("systemd") and not shutil.which("systemd-analyze"):
        return "needs systemd-analyze: apt install systemd"
    if item.get_closest_marker("boot") and not item.config.getoption("--boot"):
        return "opt-in: tools/test --boot"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        reason = _why_not(item)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def neu() -> Path:
    """NEU steel with its splits; mark the test `shared`."""
    return SHARED / "neu-det"


@pytest.fixture(scope="session")
def magnetic_tile() -> Path:
    """Magnetic tiles with their splits; mark the test `shared`."""
    return SHARED / "magnetic-tile"
