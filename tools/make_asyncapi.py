"""Write configs/asyncapi.yaml and configs/schemas/ from the message types; `--check` only says whether they are so.

usage: python tools/make_asyncapi.py [--check]
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools import message_schemas as schemas  # noqa: E402

__all__ = ["document", "files", "main"]

CONFIGS = ROOT / "configs"
COMPONENTS = "#/components/schemas/"
DESCRIPTION = """\
What an inspection station says over MQTT. ROOT is the station's own path of at most five levels, for example
acme/plant1/finishing/line3/cam1; `ROOT/#` is one station, `acme/plant1/+/+/+/verdict` all verdicts of a plant.
Fields are only ever added; a consumer must ignore those that it does not know. Everything works with MQTT 3.1.1;
content types and user properties come with MQTT 5. Delivery is at least once and in order: remove repeats by `rec`."""
USER_PROPERTIES = {
    "type": "object",
    "description": "MQTT 5 user properties; absent with MQTT 3.1.1.",
    "properties": {"schema": {"type": "string", "const": "1", "description": "which set of messages this is"}},
}
ROOT_PARAMETER = {"description": "The station's path, one to five levels."}


class _Plain(yaml.SafeDumper):
    """Without YAML's aliases: readers of such documents are not all YAML readers."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - PyYAML asks so
        """Write everything out."""
        return True


def document() -> dict[str, Any]:
    """The AsyncAPI 3.0 document."""
    channels, operations, messages, components = {}, {}, {}, {}
    for kind in schemas.message_types():
        topic = schemas.topic_of(kind)
        assert topic is not None
        name = _name(topic.path)
        channels[name] = _channel(topic.path, name, schemas.payload_schema(kind, COMPONENTS)["description"])
        messages[name] = _message(kind)
        operations[f"{_verb(topic.path)}{name[0].upper()}{name[1:]}"] = _operation(topic, name)
        for part in (kind, *schemas.parts_of(kind)):
            components[part.__name__] = schemas.payload_schema(part, COMPONENTS)
    for name, (path, message) in _other_channels().items():
        channels[name] = _channel(path, name, message["summary"])
        messages[name] = message
        operations[f"send{name[0].upper()}{name[1:]}"] = _operation(schemas.Topic(path=path, qos=1, retain=False), name)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "defect-agent",
            "version": "1.0.0",
            "description": DESCRIPTION,
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {"plant": {"host": "broker.example:8883", "protocol": "mqtts", "description": "The plant's."}},
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages, "schemas": components},
    }


def files() -> dict[Path, str]:
    """Every file that is made, and what belongs in it."""
    text = yaml.dump(document(), Dumper=_Plain, sort_keys=False, width=110, allow_unicode=True)
    made = {CONFIGS / "asyncapi.yaml": f"# Made by tools/make_asyncapi.py from the message types; do not edit.\n{text}"}
    for kind in schemas.message_types():
        schema = schemas.standalone_schema(kind)
        name = schema["$id"].rpartition(":")[2]
        made[CONFIGS / "schemas" / f"{name}.json"] = json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
    return made


def main(words: list[str] | None = None) -> int:
    """Write what differs; with `--check` write nothing and end with 1 when something would be."""
    parser = argparse.ArgumentParser(prog="tools/make_asyncapi.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 when a file is not as it should be")
    check = parser.parse_args(words).check
    made = files()
    stale = [path for path in (CONFIGS / "schemas").glob("*.json") if path not in made]
    wrong = [path for path, text in made.items() if not path.is_file() or path.read_text() != text]
    for path in (*wrong, *stale):
        print(f"{path.relative_to(ROOT)}: {'differs from the types' if check else 'written'}")
    if check:
        return 1 if wrong or stale else 0
    for path in wrong:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(made[path])
    for path in stale:
        path.unlink()
    return 0


def _name(path: str) -> str:
    """`cmd/thresholds` as `cmdThresholds`."""
    words: list[str] = re.findall(r"[A-Za-z]+", path)
    return words[0] + "".join(word.capitalize() for word in words[1:])


def _verb(path: str) -> str:
    return "receive" if path.startswith("cmd/") else "send"


def _channel(path: str, name: str, words: str) -> dict[str, Any]:
    address = re.sub(r"\b([A-Z]{2,})\b", lambda found: "{" + found[1].lower() + "}", path)
    parameters: dict[str, Any] = {"root": ROOT_PARAMETER}
    for each in re.findall(r"\{(\w+)\}", address):
        parameters[each] = {"description": "The picture's id." if path.startswith("image/") else f"The {each}."}
    return {
        "address": f"{{root}}/{address}",
        "description": words,
        "parameters": parameters,
        "messages": {name: {"$ref": f"#/components/messages/{name}"}},
    }


def _message(kind: type) -> dict[str, Any]:
    return {
        "title": kind.__name__,
        "contentType": "application/json",
        "headers": USER_PROPERTIES,
        "payload": {"$ref": f"{COMPONENTS}{kind.__name__}"},
    }


def _operation(topic: schemas.Topic, name: str) -> dict[str, Any]:
    return {
        "action": _verb(topic.path),
        "channel": {"$ref": f"#/channels/{name}"},
        "messages": [{"$ref": f"#/channels/{name}/messages/{name}"}],
        "bindings": {"mqtt": {"qos": topic.qos, "retain": topic.retain, "bindingVersion": "0.2.0"}},
    }


def _other_channels() -> dict[str, tuple[str, dict[str, Any]]]:
    """What is no JSON: pictures, and the empty message of `defect-agent check`."""
    picture = {
        "title": "Picture",
        "summary": "The JPEG of a flagged part, raw bytes; its SHA-256 stands in the verdict that names it.",
        "contentType": "image/jpeg",
        "headers": USER_PROPERTIES,
        "payload": {"type": "string", "format": "binary"},
    }
    check = {
        "title": "Check",
        "summary": "An empty message: somebody ran `defect-agent check` on the device.",
        "contentType": "application/octet-stream",
        "payload": {"type": "string", "maxLength": 0},
    }
    return {"image": ("image/ID", picture), "check": ("check", check)}


if __name__ == "__main__":
    sys.exit(main())
