"""Makes `names.json`: names and arguments of picamera2, read from the source of each version; nothing of it is run.

`pip download picamera2==0.3.38 --no-deps`, the same for the others, unpack, then
`python -m tests.kit.picamera2.make_names 0.3.22=FOLDER 0.3.38=FOLDER`
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

__all__ = ["arguments", "names_text"]

NAMES = Path(__file__).with_name("names.json")
WANTED: dict[str, dict[str, tuple[str, ...]]] = {
    "picamera2.py": {
        "Picamera2": (
            "__init__",
            "global_camera_info",
            "camera_controls",
            "camera_properties",
            "create_still_configuration",
            "create_video_configuration",
            "configure",
            "camera_configuration",
            "start",
            "stop",
            "close",
            "set_controls",
            "cancel_all_and_flush",
            "wait",
            "capture_request",
        ),
    },
    "request.py": {
        "MappedArray": ("__init__", "__enter__", "__exit__", "array"),
        "CompletedRequest": ("__init__", "acquire", "release", "get_metadata"),
    },
    "job.py": {"Job": ("__init__", "execute", "signal", "get_result", "cancel")},
}


def arguments(function: ast.FunctionDef) -> list[str]:
    """`name` of each argument, `name=` where it has a default, `name=value` where that is a plain value."""
    spec = function.args
    defaults: list[ast.expr | None] = [None] * (len(spec.args) - len(spec.defaults)) + list(spec.defaults)
    shown = [_shown(arg.arg, default) for arg, default in zip(spec.args, defaults, strict=True)]
    return shown + [
        _shown(f"*{arg.arg}", default) for arg, default in zip(spec.kwonlyargs, spec.kw_defaults, strict=True)
    ]


def _shown(name: str, default: ast.expr | None) -> str:
    if default is None:
        return name
    try:
        return f"{name}={ast.literal_eval(default)!r}"
    except ValueError:
        return f"{name}="


def _table(package: Path) -> dict[str, list[str]]:
    table: dict[str, list[str]] = {}
    for file, classes in WANTED.items():
        tree = ast.parse((package / file).read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.name in classes:
                for function in node.body:  # the last of a name is the one that counts: overloads stand before it
                    if isinstance(function, ast.FunctionDef) and function.name in classes[node.name]:
                        table[f"{node.name}.{function.name}"] = arguments(function)
    return table


def names_text(sources: dict[str, Path]) -> str:
    """The file's text, for folders that hold the package `picamera2`, by version."""
    versions = {version: _table(folder / "picamera2") for version, folder in sources.items()}
    return json.dumps({"picamera2": versions}, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    pairs = (argument.split("=", 1) for argument in sys.argv[1:])
    NAMES.write_text(names_text({version: Path(folder) for version, folder in pairs}), encoding="utf-8")
