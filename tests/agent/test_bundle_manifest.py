"""The manifest: strict reading, so that nothing is guessed at on a device."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.bundle import ClassSpec, InputSpec, Manifest, Outputs, PolicySpec
from agent.bundle.manifest import Severity, manifest_from_json, manifest_to_json
from agent.errors import BundleError
from tests.kit.bundles import kit_manifest


def changed(path: str, value: Any) -> bytes:
    """The kit's manifest as JSON with one key (dots between levels) set."""
    raw = json.loads(manifest_to_json(kit_manifest()))
    *parents, key = path.split(".")
    place = raw
    for parent in parents:
        place = place[int(parent)] if parent.isdigit() else place[parent]
    place[key] = value
    return json.dumps(raw).encode()


def refusal(data: bytes) -> str:
    with pytest.raises(BundleError) as caught:
        manifest_from_json(data)
    return caught.value.message


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("schema", 2, "schema: got 2, this agent reads up to 1"),
        ("schema", "1", "schema: got '1', expected a whole number"),
        ("schema", True, "schema: got True, expected a whole number"),
        ("schema", 0, "schema: got 0"),
        ("colour", "red", "colour: unknown key"),
        ("name", 7, "name: got 7, expected str"),
        ("name", "", "name: got '', expected the form"),
        ("name", "../../etc/x", "name: got '../../etc/x', expected the form"),
        ("name", "a\nb", "expected the form"),
        ("version", "1.0 beta", "version: got '1.0 beta', expected the form"),
        ("task", "segment", "task: got 'segment', expected one of ['classify', 'detect']"),
        ("input.width_px", 7, "input.width_px: got 7, expected 8 to 4096"),
        ("input.width_px", 64.0, "input.width_px: got 64.0, expected int"),
        ("input.height_px", True, "input.height_px: got True, expected int"),
        ("input.pad_value", 256, "input.pad_value: got 256, expected 0 to 255"),
        ("input.resize", "crop", "input.resize: got 'crop', expected one of ['stretch', 'letterbox']"),
        ("input.depth", 3, "input.depth: unknown key"),
        ("classes", [], "classes: got 0, expected at least 2"),
        ("classes", {}, "classes: got {}, expected list"),
        ("classes.1.name", "good", "classes: names must differ"),
        ("classes.1.name", "", "1 to 80 printable characters"),
        ("classes.1.name", "a\x1b[2J", "1 to 80 printable characters"),
        ("classes.1.severity", "bad", "classes[1].severity: got 'bad'"),
        ("outputs.logits", None, "outputs.logits: missing, a classifier needs it"),
        ("outputs.logits", 3, "outputs.logits: got 3, expected str"),
        ("graphs", {"fp32": 1}, "graphs.fp32: got 1, expected str"),
        ("graphs", {}, "cpu_graph: got 'cpu', expected one of []"),
        ("cpu_graph", None, "cpu_graph: got None, expected str"),
        ("policy.defect_above", 1.5, "policy.defect_above: got 1.5, expected 0.0 to 1.0"),
        ("policy.review_above", 0.9, "policy.review_above: got 0.9, expected at most policy.defect_above (0.5)"),
        ("policy.defect_above", "high", "policy.defect_above: got 'high', expected a number"),
        ("temperature", 0, "temperature: got 0.0, expected 0.01 to 100"),
        ("temperature", float("nan"), "not JSON"),
        ("temperature", 10**400, "temperature: got a number with too many digits"),
        ("metrics", [], "metrics: got [], expected dict"),
        ("metrics", {"accuracy": float("inf")}, "not JSON"),
        ("gate_passed", "yes", "gate_passed: got 'yes', expected bool"),
        ("gate_reasons", [1], "gate_reasons[0]: got 1, expected str"),
        ("files", {"a": None}, "files.a: got None, expected str"),
    ],
)
def test_a_wrong_value_is_refused_by_its_key(path: str, value: Any, words: str) -> None:
    """The key, what it got and what it expects: nobody reads a manifest by eye."""
    assert words in refusal(changed(path, value))


@pytest.mark.parametrize("key", ["name", "version", "task", "input", "classes", "outputs", "graphs", "cpu_graph"])
def test_a_missing_key_is_named(key: str) -> None:
    """Nothing that decides has a silent default."""
    raw = json.loads(manifest_to_json(kit_manifest()))
    del raw[key]

    assert refusal(json.dumps(raw).encode()) == f"manifest.json: {key}: missing"


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"schema": 1e999}', b"{}", b'{"schema": 1}'],
)
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    """Half a file, another file, a nesting bomb."""
    assert refusal(data).startswith("manifest.json: ")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"cpu_graph": "cpu"', b'"cpu_graph": "cpu", "cpu_graph": "fp32"'),
        (b'"metrics": {}', b'"metrics": {"a": 1e999}'),
        (b'"metrics": {}', b'"metrics": {"a": "\\ud800"}'),
    ],
)
def test_json_that_two_readers_take_differently_is_refused(old: bytes, new: bytes) -> None:
    """A key that stands twice, a number that becomes infinite, half a surrogate pair that can't be printed."""
    data = manifest_to_json(kit_manifest())
    assert old in data

    assert "not JSON" in refusal(data.replace(old, new))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    path=st.sampled_from([*json.loads(manifest_to_json(kit_manifest())), "input.width_px", "classes.0.name"]),
    value=JSON,
)
def test_any_json_in_any_key_is_a_manifest_or_a_bundle_error(path: str, value: Any) -> None:
    """A hostile manifest must not bring the agent down with a TypeError."""
    try:
        manifest = manifest_from_json(changed(path, value))
    except BundleError:
        return

    assert manifest_from_json(manifest_to_json(manifest)) == manifest


NAMES = st.text(st.characters(codec="utf-8", categories=("L", "N", "P")), min_size=1, max_size=20)
UNIT = st.floats(0, 1)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    limits = sorted([draw(UNIT), draw(UNIT)])
    severities: st.SearchStrategy[Severity] = st.sampled_from(["ok", "minor", "major", "critical"])
    return kit_manifest(
        input=InputSpec(
            name=draw(NAMES),
            width_px=draw(st.integers(8, 4096)),
            height_px=draw(st.integers(8, 4096)),
            resize=draw(st.sampled_from(["stretch", "letterbox"])),
            pad_value=draw(st.integers(0, 255)),
        ),
        classes=tuple(
            ClassSpec(name=name, severity=draw(severities))
            for name in draw(st.lists(NAMES, min_size=2, max_size=9, unique=True))
        ),
        outputs=Outputs(logits=draw(NAMES), cam=draw(st.none() | NAMES)),
        policy=PolicySpec(defect_above=limits[1], review_above=limits[0]),
        temperature=draw(st.floats(0.01, 100)),
        gate_passed=draw(st.booleans()),
        gate_reasons=tuple(draw(st.lists(NAMES, max_size=2))),
        metrics=draw(st.dictionaries(NAMES, st.floats(allow_nan=False, allow_infinity=False), max_size=3)),
    )


@given(manifest=manifests())
def test_a_manifest_comes_back_as_it_was_written(manifest: Manifest) -> None:
    """And is written as the same bytes again, as its digest names the bundle."""
    data = manifest_to_json(manifest)

    assert manifest_from_json(data) == manifest
    assert manifest_to_json(manifest_from_json(data)) == data
