"""A configuration says what we can do, or is refused with the place, the problem and the remedy."""

from __future__ import annotations

import dataclasses
import os
import re
import time
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from agent.config import (
    AgentConfig,
    FolderCameraConfig,
    FreeRunConfig,
    OpenCvCameraConfig,
    config_from_mapping,
    read_config,
    read_yaml,
)
from agent.errors import ConfigError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
REFERENCE = CONFIGS / "agent.reference.yaml"

MINIMAL = """\
station: acme/line1
state_dir: state
bundle: parts.defect
camera: {kind: folder, path: pictures}
"""


def refusal(tmp_path: Path, text: str | bytes) -> str:
    """What the user reads when this is the configuration."""
    path = tmp_path / "line1.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    message = caught.value.message
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(message) < 600
    return message.removeprefix(f"{path}: ")


# Files that are no configuration


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The most frequent mistake: a wrong path."""
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: can't be read \(No such file or directory\)") as caught:
        read_config(tmp_path / "nowhere.yaml")

    assert caught.value.hint is not None


def test_a_folder_is_refused(tmp_path: Path) -> None:
    """`--config /etc/defect-agent` instead of the file in it."""
    with pytest.raises(ConfigError, match="not a regular file"):
        read_config(tmp_path)


def test_a_named_pipe_without_a_writer_does_not_hang(tmp_path: Path) -> None:
    """Opening one waits for ever; the unit's start would time out without a word."""
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(ConfigError, match="not a regular file"):
        read_config(tmp_path / "pipe.yaml")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "empty"),
        (b"# only a comment\n", "empty"),
        (b"just words", "got 'just words', expected keys and values"),
        (b"- a\n- b\n", "expected keys and values"),
        (b"42", "got 42, expected keys and values"),
        (b"station: [unclosed\n", "not YAML"),
        (b"station: a\n\tbundle: b\n", "not YAML"),
        (b"\x00\x01\x02\xff\xfe", "not YAML"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "not YAML"),
        (b"station: \xff\xff\n", "not YAML"),
        (b"station: a\n---\nstation: b\n", "not YAML"),
        (b"station: !!python/object/apply:os.system ['true']\n", "not YAML"),
        (b"station: !!bool maybe\n", "not YAML"),
        (b"station: !!timestamp soon\n", "not YAML"),
        (b'station: !!int ""\n', "not YAML"),
        (b"? [a, b]\n: c\n", "not YAML"),
        (b"station: " + b"[" * 50_000, "not YAML"),
        (b"station: a\n" * 100_000, "larger than 1000000 bytes"),
    ],
)
def test_what_is_no_yaml_mapping_is_refused_in_one_sentence(tmp_path: Path, text: bytes, problem: str) -> None:
    """PyYAML leaves by KeyError, AttributeError, IndexError and RecursionError, too; none may reach the user."""
    assert problem in refusal(tmp_path, text)


def test_an_endless_device_is_not_read() -> None:
    """/dev/zero has no size to look at first."""
    with pytest.raises(ConfigError, match="not a regular file"):
        read_config(Path("/dev/zero"))


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{c}: &{c} [{', '.join(['*' + p] * 9)}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)),
        "a: &a {x: 1}\n"
        + "".join(
            f"{c}: &{c} {{<<: [{', '.join(['*' + p] * 9)}]}}\n" for p, c in zip("abcdefg", "bcdefgh", strict=True)
        ),
        "station: &a [*a]\n",
        "base: &base {kind: folder}\ncamera: *base\n",
    ],
    ids=["billion-laughs", "merge-bomb", "recursive", "harmless"],
)
def test_aliases_are_refused(tmp_path: Path, text: str) -> None:
    """300 bytes can stand for gigabytes as soon as something prints or merges them; one station has no use for them."""
    started = time.process_time()
    problem = refusal(tmp_path, text)

    assert "aliases" in problem
    assert time.process_time() - started < 10  # it takes milliseconds; the bombs take minutes or the memory


# Keys


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("recepi: a", "recepi: unknown key (did you mean recipe?)"),
        ("Recipe: a", "Recipe: unknown key (did you mean recipe?)"),
        ("mqtt: {prot: 1883}", "mqtt.prot: unknown key (did you mean mqtt.port?)"),
        (
            "journal: {evidence: {quota: 5}}",
            "journal.evidence.quota: unknown key (did you mean journal.evidence.quota_mb?)",
        ),
        ("mqtt: {tls: {ca: x}}", "mqtt.tls.ca: unknown key (did you mean mqtt.tls.ca_file?)"),
        ("watchdog: {xyzzy: 1}", "watchdog.xyzzy: unknown key (known here: stuck_s)"),
        ("1: a", "1: unknown key"),
        ("null: a", "None: unknown key"),
        ("<<: {recipe: a}", "not YAML"),
        ("recipe: a\nrecipe: b", "key 'recipe' stands twice"),
        ('recipe: a\n"recipe": b', "key 'recipe' stands twice"),
        ("mqtt: {port: 1, port: 2}", "key 'port' stands twice"),
    ],
)
def test_a_wrong_key_is_named_with_the_nearest_known_one(tmp_path: Path, change: str, problem: str) -> None:
    """A key that is silently left out is a limit that silently does not hold."""
    assert problem in refusal(tmp_path, MINIMAL + change + "\n")


@pytest.mark.parametrize("key", ["station", "state_dir", "bundle", "camera"])
def test_a_required_key_that_is_missing_is_named(tmp_path: Path, key: str) -> None:
    """There is no sensible default for what differs from plant to plant."""
    text = "".join(line for line in MINIMAL.splitlines(keepends=True) if not line.startswith(key))

    assert f"{key}: missing" in refusal(tmp_path, text)


# Values


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("recipe: 5", 'recipe: got 5, expected text (in quotes: "5")'),
        ("recipe: no", "recipe: got False, expected text (in quotes)"),
        ("recipe: 2026-11-24", "expected text (in quotes)"),
        ("recipe: null", "recipe: got None, expected text"),
        ("recipe: [a]", "recipe: got ['a'], expected text"),
        ("recipe: a b", "recipe: got 'a b', expected up to 64 letters"),
        ('recipe: "a\\n"', "recipe: got 'a\\n', expected up to 64 letters"),
        ("mqtt: no", "mqtt: got False, expected keys and values"),
        ("mqtt: 10.0.0.1", "mqtt: got '10.0.0.1', expected keys and values"),
        ("journal: []", "journal: got [], expected keys and values"),
        ("journal: null", "journal: got None, expected keys and values"),
        ("mqtt: {port: '1883'}", "mqtt.port: got '1883', expected a whole number"),
        ("mqtt: {port: 1883.0}", "mqtt.port: got 1883.0, expected a whole number"),
        ("mqtt: {port: true}", "mqtt.port: got True, expected a whole number"),
        ("mqtt: {port: yes}", "mqtt.port: got True, expected a whole number"),
        ("mqtt: {port: null}", "mqtt.port: got None, expected a whole number"),
        ("mqtt: {port: 0}", "mqtt.port: got 0, expected 1 to 65535"),
        ("mqtt: {port: 65536}", "mqtt.port: got 65536, expected 1 to 65535"),
        ("mqtt: {port: -1}", "mqtt.port: got -1, expected 1 to 65535"),
        (f"mqtt: {{port: {'9' * 4000}}}", "expected 1 to 65535"),
        (f"mqtt: {{port: 0x{'f' * 9000}}}", "expected 1 to 65535"),
        (f"mqtt: {{keepalive_s: {'9' * 9000}}}", ""),
        (f"watchdog: {{stuck_s: {'9' * 4000}}}", "watchdog.stuck_s: got 9999"),
        ("mqtt: {protocol: 5}", 'mqtt.protocol: got 5, expected one of auto, 5, 3.1.1 (in quotes: "5")'),
        ("mqtt: {protocol: 4}", "mqtt.protocol: got 4, expected one of auto, 5, 3.1.1"),
        ("mqtt: {protocol: [5]}", "mqtt.protocol: got [5], expected one of"),
        ("mqtt: {host: ''}", "mqtt.host: got '', expected a host name or address"),
        ("mqtt: {host: mqtt://10.0.0.1}", "mqtt.host: got 'mqtt://10.0.0.1', expected a host name or address"),
        ("mqtt: {password_file: ''}", "mqtt.password_file: got '', expected a path"),
        ("mqtt: {password_file: 7}", "mqtt.password_file: got 7, expected a path"),
        ("mqtt: {password_file: ~nobody-of-this-name/p}", "expected a path"),
        ('mqtt: {password_file: "a\\0b"}', "expected a path"),
        ("watchdog: {stuck_s: .nan}", "watchdog.stuck_s: got nan, expected a finite number"),
        ("watchdog: {stuck_s: .inf}", "watchdog.stuck_s: got inf, expected a finite number"),
        ("watchdog: {stuck_s: -.inf}", "watchdog.stuck_s: got -inf, expected a finite number"),
        ("watchdog: {stuck_s: 0.999}", "watchdog.stuck_s: got 0.999, expected 1 to 600"),
        ("policy: {defect_above: .nan}", "policy.defect_above: got nan, expected a finite number"),
        ("policy: {defect_above: 1.01}", "policy.defect_above: got 1.01, expected 0 to 1"),
        ("policy: {defect_above: 50%}", "policy.defect_above: got '50%', expected a number"),
        ("policy: {defect_above: 0.2, review_above: 0.6}", "policy.review_above: got 0.6, expected at most"),
        ("log: {level: verbose}", "log.level: got 'verbose', expected one of debug, info, warning, error"),
        ("log: {level: INFO}", "log.level: got 'INFO', expected one of debug, info, warning, error"),
        ("journal: {evidence: {keep: no}}", "journal.evidence.keep: got False, expected one of flagged, all, none"),
        ("trigger: {kind: plc}", "trigger.kind: got 'plc', expected one of frame, free"),
        ("trigger: {part_prefix: a}", "trigger.kind: got None, expected one of frame, free"),
        ("trigger: {kind: [free]}", "trigger.kind: got ['free'], expected one of frame, free"),
        ("trigger: {kind: {free: 1}}", "trigger.kind: got {'free': 1}, expected one of frame, free"),
        ("trigger: {kind: frame, part_prefix: a}", "trigger.part_prefix: unknown key"),
        ("trigger: free", "trigger: got 'free', expected keys and values"),
    ],
)
def test_a_wrong_value_is_refused_with_what_was_got_and_what_is_expected(
    tmp_path: Path, change: str, problem: str
) -> None:
    """The person at the device has this line and nothing else."""
    assert problem in refusal(tmp_path, MINIMAL + change + "\n")


@pytest.mark.parametrize(
    ("camera", "problem"),
    [
        ("null", "camera: got None, expected keys and values"),
        ("{}", "camera.kind: got None, expected one of folder, opencv"),
        ("{kind: gige}", "camera.kind: got 'gige', expected one of folder, opencv"),
        ("{kind: folder}", "camera.path: missing"),
        ("{kind: folder, source: '0'}", "camera.source: unknown key"),
        ("{kind: opencv}", "camera.source: missing"),
        ("{kind: opencv, source: 0}", 'camera.source: got 0, expected text (in quotes: "0")'),
        ("{kind: opencv, source: '0', open_timeout_ms: 60000}", "watchdog.stuck_s: got 10, expected at least 62"),
    ],
)
def test_a_wrong_camera_is_refused(tmp_path: Path, camera: str, problem: str) -> None:
    """Keys of one kind are unknown to the other; a camera may not keep the line longer than the watchdog allows."""
    assert problem in refusal(tmp_path, MINIMAL.replace("{kind: folder, path: pictures}", camera))


@pytest.mark.parametrize(
    "station", ["/acme", "acme/", "acme//line", "a/b/c/d/e/f", "acme/#", "acme/+/x", "$SYS/x", "''", "' a'", "a" * 70]
)
def test_a_station_that_is_no_topic_is_refused(tmp_path: Path, station: str) -> None:
    """It becomes the beginning of every topic: wildcards and empty levels would be refused by the broker, later."""
    assert "station: got" in refusal(tmp_path, MINIMAL.replace("acme/line1", station))


def test_free_run_may_wait_longer_for_its_camera_than_the_watchdog(tmp_path: Path) -> None:
    """There the camera has a thread of its own, and the line goes on stepping."""
    text = MINIMAL.replace("{kind: folder, path: pictures}", "{kind: opencv, source: '0', open_timeout_ms: 60000}")
    path = tmp_path / "line1.yaml"
    path.write_text(text + "trigger: {kind: free}\n")

    assert isinstance(read_config(path).trigger, FreeRunConfig)


@pytest.mark.parametrize(
    ("word", "value"), [("yes", True), ("no", False), ("on", True), ("true", True), ("Off", False)]
)
def test_switches_are_yaml_switches(tmp_path: Path, word: str, value: bool) -> None:
    """`loop: yes` is what people write, and means what it says."""
    path = tmp_path / "line1.yaml"
    path.write_text(MINIMAL.replace("path: pictures", f"path: pictures, loop: {word}"))
    camera = read_config(path).camera

    assert isinstance(camera, FolderCameraConfig)
    assert camera.loop is value


@pytest.mark.parametrize("word", ["1", "0", "'yes'", "y", "null"])
def test_what_only_looks_like_a_switch_is_refused(tmp_path: Path, word: str) -> None:
    """YAML reads `y` and `'yes'` as text; guessing would be worse than asking."""
    text = MINIMAL.replace("path: pictures", f"path: pictures, loop: {word}")

    assert "expected true or false" in refusal(tmp_path, text)


def test_relative_paths_start_at_the_configurations_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd starts the agent in another folder than the person who tried it by hand."""
    path = tmp_path / "line1.yaml"
    path.write_text(MINIMAL + "mqtt: {password_file: ../secret, tls: {ca_file: ~/ca.pem}}\n")
    monkeypatch.chdir("/")
    config = read_config(path)

    assert config.state_dir == tmp_path / "state"
    assert isinstance(config.camera, FolderCameraConfig)
    assert config.camera.path == tmp_path / "pictures"
    assert config.mqtt is not None
    assert config.mqtt.tls is not None
    assert config.mqtt.password_file == tmp_path / "../secret"
    assert config.mqtt.tls.ca_file == Path.home() / "ca.pem"


def test_a_relative_configuration_path_gives_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later change of the working directory must not move the journal."""
    (tmp_path / "line1.yaml").write_text(MINIMAL)
    monkeypatch.chdir(tmp_path)

    assert read_config(Path("line1.yaml")).state_dir == tmp_path / "state"


def test_without_a_broker_the_section_is_null(tmp_path: Path) -> None:
    """`mqtt: null` is a choice; leaving it out means the local broker."""
    path = tmp_path / "line1.yaml"
    path.write_text(MINIMAL + "mqtt: null\n")

    assert read_config(path).mqtt is None


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["kind", "path", "mqtt", "tls", "x"]), inner),
    )
)
def test_no_value_at_all_gets_past_as_anything_but_a_refusal(value: Any) -> None:
    """Whatever YAML can hold in the camera's place: it is refused, or it is a camera."""
    raw = {"station": "a", "state_dir": "s", "bundle": "b", "camera": value}
    try:
        config = config_from_mapping(AgentConfig, raw, source=Path("/etc/line1.yaml"))
    except ConfigError:
        return

    assert isinstance(config.camera, FolderCameraConfig | OpenCvCameraConfig)


# Shipped files


@pytest.mark.parametrize("path", sorted((CONFIGS / "stations").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_station_loads(path: Path) -> None:
    """People start from these."""
    assert read_config(path).station


def test_there_are_shipped_stations() -> None:
    """An empty folder would make the test above pass."""
    assert len(list((CONFIGS / "stations").glob("*.yaml"))) >= 2


@dataclasses.dataclass(frozen=True)
class Key:
    """One key as the types have it."""

    hint: Any
    field: dataclasses.Field[Any]


def keys_of(cls: Any, where: str = "") -> Iterator[tuple[str, Key]]:
    """Every key of a configuration type by its path; the kinds of a union stand in brackets."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        path = f"{where}{field.name}"
        yield path, Key(hints[field.name], field)
        for tag, option in _classes(hints[field.name]):
            yield from keys_of(option, f"{path}{tag}.")


def _classes(hint: Any) -> list[tuple[str, Any]]:
    options = get_args(hint) if get_origin(hint) in {Union, types.UnionType} else (hint,)
    classes = [option for option in options if dataclasses.is_dataclass(option)]
    return [(f"[{_kind(option)}]" if len(classes) > 1 else "", option) for option in classes]


def _kind(cls: Any) -> str:
    return str(get_args(typing.get_type_hints(cls)["kind"])[0])


@dataclasses.dataclass(frozen=True)
class Line:
    """One key as the reference file has it."""

    value: Any
    comment: str


def reference_texts() -> list[str]:
    """The file as it stands, then each `#|` block on its own."""
    text = REFERENCE.read_text()
    blocks = re.findall(r"(?:^#\|.*\n)+", text, re.MULTILINE)
    return [text, *(re.sub(r"^#\| ", "", block, flags=re.MULTILINE) for block in blocks)]


def keys_in(text: str) -> Iterator[tuple[str, Line]]:
    """Every key of a YAML text by its path, as `keys_of` writes them, with value and comment."""
    data = yaml.safe_load(text)
    stack: list[tuple[int, str, Any]] = [(-1, "", data)]
    for line in text.splitlines():
        match = re.fullmatch(r"( *)(\w+):([^#]*)(?:# (.*))?", line)
        if match is None:
            continue
        indent, name, _, comment = match.groups()
        while stack[-1][0] >= len(indent):
            stack.pop()
        _, where, parent = stack[-1]
        path, value = f"{where}{name}", parent[name]
        yield path, Line(value, comment or "")
        tagged = path in {"camera", "trigger"}
        stack.append((len(indent), f"{path}[{value['kind']}]." if tagged else f"{path}.", value))


TYPES = dict(keys_of(AgentConfig))
WRITTEN = {path: line for text in reversed(reference_texts()) for path, line in keys_in(text)}


def test_the_reference_file_holds_every_key_and_no_other() -> None:
    """It is what people look keys up in; one that is missing there does not exist for them."""
    assert set(WRITTEN) == set(TYPES)


@pytest.mark.parametrize("number", range(len(reference_texts())))
def test_the_reference_file_loads_with_each_of_its_choices(number: int) -> None:
    """What is written as an example must be one."""
    texts = reference_texts()
    raw = {**yaml.safe_load(texts[0]), **yaml.safe_load(texts[number])}

    assert config_from_mapping(AgentConfig, raw, source=REFERENCE).station


def scalars() -> list[str]:
    """Keys that are no sections."""
    return [path for path, key in TYPES.items() if not any(k.startswith((f"{path}.", f"{path}[")) for k in TYPES)]


@pytest.mark.parametrize("path", scalars())
def test_the_reference_file_tells_the_real_default(path: str) -> None:
    """The value that stands there is the one that holds when the key is left out; "required" means there is none."""
    default, line = TYPES[path].field.default, WRITTEN[path]

    assert line.comment.startswith("required") == (default is dataclasses.MISSING)
    if default is not dataclasses.MISSING:
        value = tuple(line.value) if isinstance(line.value, list) else line.value
        assert (type(value), value) == (type(default), default)


@pytest.mark.parametrize("path", [path for path in scalars() if TYPES[path].field.metadata.get("low") is not None])
def test_the_reference_file_tells_the_real_bounds(path: str) -> None:
    """Bounds live in the types; people read them here."""
    bounds = re.search(r"([\d.]+) to ([\d.]+)", WRITTEN[path].comment)
    meta = TYPES[path].field.metadata

    assert bounds is not None
    assert (float(bounds[1]), float(bounds[2])) == (meta["low"], meta["high"])


@pytest.mark.parametrize(
    "path", [p for p in scalars() if get_origin(TYPES[p].hint) is Literal or TYPES[p].hint is bool]
)
def test_the_reference_file_tells_every_choice(path: str) -> None:
    """A value that is not listed is not found."""
    section = re.sub(r"\[\w+\]\.kind$", "", path)
    if section != path:
        choices = {_kind(option) for _, option in _classes(TYPES[section].hint)}
    else:
        choices = {"true", "false"} if TYPES[path].hint is bool else set(get_args(TYPES[path].hint))
    listed = re.search(r"[\w.-]+(?: \| [\w.-]+)+", WRITTEN[path].comment)

    assert listed is not None
    assert set(listed[0].split(" | ")) == choices


UNITS = {"_px": "px", "_ms": "ms", "_s": "s", "_mb": "MB", "_kb": "kB", "_hz": "per second", "_days": "days"}


@pytest.mark.parametrize("path", [p for p in scalars() if any(p.endswith(u) for u in UNITS)])
def test_the_reference_file_tells_the_unit(path: str) -> None:
    """The name holds it; the comment spells it out."""
    unit = next(word for ending, word in UNITS.items() if path.endswith(ending))

    assert unit in WRITTEN[path].comment.split(",")[0]


def test_read_yaml_gives_plain_values(tmp_path: Path) -> None:
    """`defect-opt.yaml` is read by it as well."""
    path = tmp_path / "x.yaml"
    path.write_text("a: 1\nb: {c: [1, 2.5, text, null, true]}\n")

    assert read_yaml(path) == {"a": 1, "b": {"c": [1, 2.5, "text", None, True]}}
