"""configs/asyncapi.yaml, configs/schemas and Ignition's tags: they are what the types say, and stay readable."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from agent.messages import EventMessage, VerdictMessage, to_json
from tests.conftest import ROOT
from tests.kit.contract import breaches
from tests.kit.node_red import INSTALL, NODE
from tests.kit.publishing import STATION, Line
from tools import make_asyncapi, make_ignition_tags, message_schemas

CONFIGS = ROOT / "configs"
SPECS = NODE / "node_modules" / "@asyncapi" / "specs" / "schemas" / "3.0.0-without-$id.json"
EARLIEST = frozenset(
    [
        "schema",
        "rec",
        "boot",
        "id",
        "part",
        "station",
        "time",
        "time_ms",
        "mono_ns",
        "clock",
        "decision",
        "code",
        "quality",
        "reason",
        "class",
        "score",
        "threshold",
        "uncertainty",
        "recipe",
        "bundle",
        "bundle_digest",
        "engine",
        "n_findings",
        "findings",
        "image",
        "ms",
        "chain",
        "replayed",
    ]
)
"""A verdict's fields in the first release: none of them may ever go."""


def _verdict(folder: Path) -> bytes:
    """As a real journal composes it."""
    with Line(folder) as line:
        line.flagged(64)
        row = next(row for row in line.journal.outbox.pending(limit=9) if row.kind == "verdict")
        return line.journal.outbox.payload(row) or b""


def test_what_is_committed_is_what_the_types_say() -> None:
    """Else: python tools/make_asyncapi.py, python tools/make_ignition_tags.py."""
    for path, text in make_asyncapi.files().items():
        assert path.read_text() == text, f"{path.name} differs from the types: python tools/make_asyncapi.py"
    assert {*(CONFIGS / "schemas").glob("*")} == {p for p in make_asyncapi.files() if p.parent.name == "schemas"}
    tags = make_ignition_tags.tags_of([make_ignition_tags.EXAMPLE])
    assert json.loads(make_ignition_tags.OUT.read_text()) == tags, "python tools/make_ignition_tags.py"


def test_every_field_is_described() -> None:
    """A field that nobody described is one that a consumer has to guess."""
    assert message_schemas.undocumented() == []


@pytest.mark.skipif(not SPECS.is_file(), reason=f"needs AsyncAPI's own schema: {INSTALL}")
def test_the_document_is_valid_to_asyncapis_own_schema() -> None:
    """The schema that the AsyncAPI project publishes for 3.0 takes it, and refuses an address of another type."""
    validator = jsonschema.Draft7Validator(json.loads(SPECS.read_text()))
    document = yaml.safe_load((CONFIGS / "asyncapi.yaml").read_text())
    assert [error.message for error in validator.iter_errors(document)] == []
    document["channels"]["verdict"]["address"] = 7
    assert not validator.is_valid(document)


def test_references_lead_somewhere() -> None:
    """Every `$ref` of the document is in the document."""
    document = yaml.safe_load((CONFIGS / "asyncapi.yaml").read_text())
    references = list(_references(document))
    for reference in references:
        found: Any = document
        for level in reference.removeprefix("#/").split("/"):
            found = found[level]

    assert len(references) > 20


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for each in value.values():
            yield from _references(each)
    elif isinstance(value, list):
        for each in value:
            yield from _references(each)


def test_a_consumer_written_today_takes_tomorrows_verdict(tmp_path: Path) -> None:
    """Fields are only added: with an unknown one, inside findings too, today's schema still takes the message."""
    schema = json.loads((CONFIGS / "schemas" / "verdict.json").read_text())
    verdict = json.loads(_verdict(tmp_path))
    verdict["added_later"] = {"a": 1}
    verdict["findings"] = [{"class": "scratch", "score": 0.9, "box": None, "added_later": 1}]
    jsonschema.Draft202012Validator(schema).validate(verdict)
    assert breaches(f"{STATION}/verdict", json.dumps(verdict).encode(), None, ()), "ours are held to the types"


def test_a_consumer_of_the_first_release_takes_todays_verdict(tmp_path: Path) -> None:
    """No field of the first release has gone, and none that came later is required of an older agent."""
    schema = json.loads((CONFIGS / "schemas" / "verdict.json").read_text())
    verdict = json.loads(_verdict(tmp_path))
    assert verdict.keys() >= EARLIEST
    assert set(schema["required"]) <= EARLIEST
    old = {name: value for name, value in verdict.items() if name in EARLIEST}
    jsonschema.Draft202012Validator(schema).validate(old)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("decision", "maybe"),
        ("code", 0),
        ("schema", 2),
        ("time", "2026-12-01 00:00"),
        ("score", "0.9"),
        ("rec", 0),
        ("findings", [{"class": "scratch"}]),
        ("image", {"id": "x"}),
        ("ms", None),
    ],
)
def test_what_is_no_verdict_is_told(tmp_path: Path, field: str, value: Any) -> None:
    """The schema has teeth."""
    verdict = json.loads(_verdict(tmp_path)) | {field: value}
    assert breaches(f"{STATION}/verdict", json.dumps(verdict).encode(), None, ())


def test_what_an_mqtt_5_message_says_of_itself_is_checked_too(tmp_path: Path) -> None:
    """Content type and user property are part of the contract; so is that a picture is a JPEG."""
    payload = _verdict(tmp_path)
    assert breaches(f"{STATION}/verdict", payload, "application/json", (("schema", "1"),)) == []
    assert breaches(f"{STATION}/verdict", payload, "application/json", ())
    assert breaches(f"{STATION}/verdict", payload, "text/plain", (("schema", "1"),))
    assert breaches(f"{STATION}/image/x", b"PNG", None, ())
    assert breaches("other/things", b"\x00", None, ()) == []


def test_events_carry_plain_values_only() -> None:
    """`data` of an event is names and scalars, so that every SCADA can show it."""
    event = EventMessage(
        station=STATION, event="x", severity="info", text="x", time="2026-12-01T00:00:00.000Z", time_ms=0, data={"a": 1}
    )
    assert breaches(f"{STATION}/event", to_json(event), None, ()) == []
    nested = json.loads(to_json(event)) | {"data": {"a": {"b": 1}}}
    assert breaches(f"{STATION}/event", json.dumps(nested).encode(), None, ())


def test_ignitions_tags_lead_to_fields_that_a_verdict_has(tmp_path: Path) -> None:
    """Every reference under `verdict` is a value of a real verdict at that place, of that type."""
    verdict = json.loads(_verdict(tmp_path))
    types: dict[str, Any] = {"Int8": int, "Float8": (int, float), "String": str, "Boolean": bool}
    tags = [tag for tag in _atoms(make_ignition_tags.tags_of([STATION])) if "/verdict/" in tag["sourceTagPath"]]
    for tag in tags:
        found: Any = verdict
        for level in tag["sourceTagPath"].partition("/verdict/")[2].split("/"):
            found = found[level]
        assert found is None or isinstance(found, types[tag["dataType"]]), tag
        assert tag["documentation"]
    scalars = {field.name.removesuffix("_") for field in dataclasses.fields(VerdictMessage)}
    scalars -= {"findings", "image", "views", "located", "ms"}
    assert scalars <= {tag["name"] for tag in tags}


def _atoms(tag: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if tag["tagType"] == "AtomicTag":
        yield tag
    for each in tag.get("tags", []):
        yield from _atoms(each)


def test_a_station_whose_name_ignition_cant_have_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A dot breaks tag paths; better told here than found as a tag without value."""
    with pytest.raises(SystemExit) as ended:
        make_ignition_tags.main(["acme/plant.1/cam1", "--out", str(tmp_path / "tags.json")])
    assert ended.value.code == 2
    assert "can't have ." in capsys.readouterr().err
