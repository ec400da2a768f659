"""Write Ignition's tag list for stations: reference tags on what MQTT Engine makes of our JSON, from the message types.

usage: python tools/make_ignition_tags.py [--out FILE] [ROOT ...]

Without ROOT it writes configs/ignition/tags.json for the example station; with stations it writes a list for them.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools import message_schemas as schemas  # noqa: E402

__all__ = ["EXAMPLE", "OUT", "main", "tags_of"]

EXAMPLE = "acme/plant1/finishing/line3/cam1"
OUT = ROOT / "configs" / "ignition" / "tags.json"
PROVIDER = "[MQTT Engine]"
TOPICS = ("verdict", "status", "metrics")
BREAKS_PATHS = ".&%="
"""Characters of a topic that Ignition can't have in a tag path (Cirrus Link, MQTT Engine, string replacement)."""

TYPES = {"integer": "Int8", "number": "Float8", "string": "String", "boolean": "Boolean"}
"""Ignition's names; Int8 has eight bytes: `rec`, `time_ms` and `mono_ns` need them."""


def tags_of(stations: list[str]) -> dict[str, Any]:
    """Folders named after the levels of each ROOT, with a folder per topic and a tag per scalar."""
    tree: dict[str, Any] = {"name": "Inspection", "tagType": "Folder", "tags": []}
    for station in stations:
        folder = tree
        for level in station.split("/"):
            folder = _folder(folder, level)
        for kind in schemas.message_types():
            topic = schemas.topic_of(kind)
            if topic is not None and topic.path in TOPICS:
                folder["tags"].append(_topic(kind, station, topic.path))
    return tree


def main(words: list[str] | None = None) -> int:
    """Write the list."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("stations", nargs="*", metavar="ROOT", help=f"as in the agents' configs ({EXAMPLE})")
    parser.add_argument("--out", type=Path, metavar="FILE", help="(configs/ignition/tags.json)")
    args = parser.parse_args(words)
    for station in args.stations:
        if bad := sorted(set(station) & set(BREAKS_PATHS)):
            parser.error(f"{station}: Ignition can't have {' '.join(bad)} in a tag path; expected other characters")
    if args.stations and args.out is None:
        parser.error("say where to with --out FILE: the example in configs/ignition stays as it is")
    text = json.dumps(tags_of(args.stations or [EXAMPLE]), indent=2, ensure_ascii=False) + "\n"
    (args.out or OUT).write_text(text)
    return 0


def _folder(parent: dict[str, Any], name: str) -> dict[str, Any]:
    found = next((each for each in parent["tags"] if each["name"] == name), None)
    if found is None:
        found = {"name": name, "tagType": "Folder", "tags": []}
        parent["tags"].append(found)
    return found


def _topic(kind: type, station: str, path: str) -> dict[str, Any]:
    schema = schemas.payload_schema(kind)
    tags = []
    for name, each in schema["properties"].items():
        type_ = _scalar(each)
        if type_ is not None:
            tags.append(_tag(name, f"{station}/{path}/{name}", type_, each))
        elif each.get("allOf") == [{"$ref": "#/$defs/Milliseconds"}]:
            parts = next(part for part in schemas.parts_of(kind) if part.__name__ == "Milliseconds")
            inner = schemas.payload_schema(parts)["properties"].items()
            nested = [_tag(key, f"{station}/{path}/{name}/{key}", "Float8", value) for key, value in inner]
            tags.append({"name": name, "tagType": "Folder", "tags": nested})
    return {"name": path, "tagType": "Folder", "tags": tags}


def _scalar(schema: dict[str, Any]) -> str | None:
    """Ignition's type of a field that is one value; None for lists, objects and what may be an object or null."""
    found = schema.get("type")
    names = [found] if isinstance(found, str) else list(found or [])
    if not names and all(isinstance(each, str) for each in schema.get("enum", [None])):
        return "String"
    plain = [name for name in names if name != "null"]
    return TYPES.get(plain[0]) if len(plain) == 1 else None


def _tag(name: str, path: str, type_: str, schema: dict[str, Any]) -> dict[str, Any]:
    tag = {
        "name": name,
        "tagType": "AtomicTag",
        "valueSource": "reference",
        "sourceTagPath": f"{PROVIDER}{path}",
        "dataType": type_,
        "documentation": schema.get("description", ""),
        "readOnly": True,
    }
    return tag | ({"engUnit": schema["x-unit"]} if "x-unit" in schema else {})


if __name__ == "__main__":
    sys.exit(main())
