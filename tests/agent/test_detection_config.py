"""Zones and pixel pitch in the configuration: each mistake is named, with the key and what was expected."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from agent.bundle import Tiling
from agent.bundle.detection import detection_from_json
from agent.cli import main
from agent.config import ZoneConfig, read_config
from agent.errors import ConfigError
from tests.kit.frames import plain_image
from tests.kit.spots import SPEC, make_detector
from tests.kit.station import make_parts, make_station

REFERENCE = Path(__file__).resolve().parents[2] / "configs" / "agent.reference.yaml"


def configuration(tmp_path: Path, policy: str) -> Path:
    path = tmp_path / "line1.yaml"
    path.write_text(
        "station: acme/line1\nstate_dir: state\nbundle: b.defect\ncamera: {kind: folder, path: .}\n"
        f"policy: {policy}\n"
    )
    return path


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("{pixel_mm: 0}", "policy.pixel_mm: got 0, expected 1e-06 to 1000"),
        ("{pixel_um: 5}", "policy.pixel_um: unknown key (did you mean policy.pixel_mm?)"),
        ("{zones: {name: seal}}", "policy.zones: got {'name': 'seal'}, expected a list"),
        ("{zones: [seal]}", "policy.zones[0]: got 'seal', expected keys and values"),
        ("{zones: [{box: [0, 0, 5, 5]}]}", "policy.zones[0].name: missing"),
        ("{zones: [{name: a b, box: [0, 0, 5, 5]}]}", "policy.zones[0].name: got 'a b', expected 1 to 40 letters"),
        ("{zones: [{name: seal, bax: [0, 0, 5, 5]}]}", "bax: unknown key (did you mean policy.zones[0].box?)"),
        ("{zones: [{name: seal}]}", "policy.zones: seal: box, polygon: got neither, expected one of them"),
        ("{zones: [{name: seal, box: [0, 0, 5, 5], polygon: [[0, 0], [5, 0], [5, 5]]}]}", "both, expected one of them"),
        ("{zones: [{name: seal, box: [0, 0, 5]}]}", "seal: box: got [0.0, 0.0, 5.0], expected x, y, width and height"),
        ("{zones: [{name: seal, box: [0, 0, 0, 5]}]}", "the last two over 0"),
        ("{zones: [{name: seal, box: [0, 0, -5, 5]}]}", "policy.zones[0].box[2]: got -5, expected 0 to 65535"),
        ("{zones: [{name: seal, box: [0, 0, .nan, 5]}]}", "policy.zones[0].box[2]: got nan, expected a finite number"),
        ("{zones: [{name: seal, box: [0, 0, '5', 5]}]}", "policy.zones[0].box[2]: got '5', expected a number"),
        ("{zones: [{name: seal, polygon: []}]}", "seal: polygon: got 0 corners, expected 3 to 64 of the form [x, y]"),
        ("{zones: [{name: seal, polygon: [[0, 0], [5, 0]]}]}", "seal: polygon: got 2 corners, expected 3 to 64"),
        ("{zones: [{name: seal, polygon: [[0, 0], [5, 0], [5]]}]}", "of the form [x, y]"),
        ("{zones: [{name: seal, box: [0, 0, 5, 5], defect_above: 2}]}", "defect_above: got 2, expected 0 to 1"),
        ("{zones: [{name: seal, box: [0, 0, 5, 5], min_size_mm: -1}]}", "min_size_mm: got -1, expected 0 to 100000"),
        ("{zones: [{name: seal, box: [0, 0, 5, 5], ignore: true, defect_above: 0.1}]}", "ignore: got true beside"),
        (
            "{zones: [{name: a, box: [0, 0, 5, 5]}, {name: a, box: [0, 0, 5, 5]}]}",
            "policy.zones: got a, a, expected at most 50 different names",
        ),
    ],
)  # fmt: skip
def test_a_zone_that_is_none_is_refused(tmp_path: Path, policy: str, words: str) -> None:
    """Read as something else, it would let defects pass where nobody wanted it."""
    with pytest.raises(ConfigError) as caught:
        read_config(configuration(tmp_path, policy))

    assert words in caught.value.message


def test_zones_are_read(tmp_path: Path) -> None:
    """Whole numbers do; empty keys keep what holds around the zone."""
    text = "{pixel_mm: 0.05, zones: [{name: seal, box: [10, 20, 30, 40], defect_above: 0.3}]}"

    policy = read_config(configuration(tmp_path, text)).policy

    assert policy.pixel_mm == 0.05
    assert policy.zones == (ZoneConfig(name="seal", box=(10.0, 20.0, 30.0, 40.0), defect_above=0.3),)


@pytest.mark.parametrize("key", [field.name for field in dataclasses.fields(ZoneConfig)])
def test_the_reference_file_tells_every_key_of_a_zone(key: str) -> None:
    """One that is missing there does not exist for people."""
    text = REFERENCE.read_text()

    assert key in text[text.index("# Zones:") : text.index("# The durable record.")]


@pytest.mark.parametrize("policy", [{"pixel_mm": 0.1}, {"zones": [{"name": "seal", "box": [0, 0, 9, 9]}]}])
def test_a_station_with_a_classifier_refuses_to_start_with_zones(
    tmp_path: Path, policy: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 2 with one sentence, before the first part is triggered."""
    make_parts(tmp_path / "parts", 1)

    code = main(["run", "--config", str(make_station(tmp_path, port=None, policy=policy))])

    assert code == 2
    assert "this bundle is a classifier" in capsys.readouterr().err
    assert not list(tmp_path.glob("state/images/*"))


def test_inspect_tells_what_a_detector_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As JSON, with its box; a picture that shows nothing of interest is good."""
    import cv2

    bundle = make_detector(tmp_path)
    image = plain_image((0, 0, 0), width=128, height=128)
    (tmp_path / "good.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
    image[32:64, 64:96] = (0, 0, 255)
    (tmp_path / "bad.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())

    code = main(["inspect", str(tmp_path / "good.png"), str(tmp_path / "bad.png"), "--bundle", str(bundle.path)])

    lines = capsys.readouterr().out.splitlines()
    assert code == 0
    assert lines[0].startswith("ok ")
    assert lines[0].endswith("good: no finding")
    assert lines[1].endswith("scratch 1.00: reaches the limit 0.50")


def test_inspect_judges_by_a_stations_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With its zones: what an ignored one holds is no defect, and one that does not fit the picture is an error."""
    import cv2

    bundle = make_detector(tmp_path)
    image = plain_image((0, 0, 0), width=128, height=128)
    image[32:64, 64:96] = (0, 0, 255)
    (tmp_path / "bad.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
    make_parts(tmp_path / "station" / "parts", 1)

    for width, code, said in ((80, 0, "ok"), (200, 1, "error")):
        policy = {"zones": [{"name": "label", "box": [40, 10, width, 80], "ignore": True}]}
        station = make_station(tmp_path / "station", port=None, policy=policy)
        words = ["inspect", str(tmp_path / "bad.png"), "--bundle", str(bundle.path), "--config", str(station)]
        assert main(words) == code
        assert capsys.readouterr().out.startswith(f"{said} ")


def test_bundle_show_tells_how_boxes_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a line for people; the JSON has every key."""
    spec = dataclasses.replace(SPEC, pixel_mm=0.05, tiling=Tiling(tile_px=640))
    bundle = make_detector(tmp_path, detection=spec)

    assert main(["bundle", "show", str(bundle.path)]) == 0
    text = capsys.readouterr().out
    assert main(["bundle", "show", str(bundle.path), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)

    assert "corners, scores as probability, from 0.05 up, 0.05 mm per pixel, larger pictures in tiles of 640 px" in text
    assert detection_from_json(shown["detection"]) == spec
