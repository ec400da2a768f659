"""Bundles that somebody or something changed: each is refused in words, and no other exception gets out."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.bundle import open_bundle
from agent.bundle.archive import MAX_FILES, Entry, archive_parts
from agent.bundle.manifest import manifest_to_json
from agent.errors import BundleError
from tests.kit.bundles import kit_manifest, make_bundle
from tests.kit.models import classifier

END_BYTES = 22


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_bundle(tmp_path_factory.mktemp("good")).path.read_bytes()


@pytest.fixture(scope="module")
def contents(good: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch") / "kit.defect"


def refusal(path: Path, data: bytes) -> str:
    """The message with which these bytes are refused."""
    path.write_bytes(data)
    with pytest.raises(BundleError) as caught:
        open_bundle(path)
    assert str(path) in caught.value.message
    assert caught.value.hint is not None
    return caught.value.message


def container(files: Mapping[str, bytes]) -> bytes:
    return b"".join(archive_parts(files))


def foreign_zip(files: Mapping[str, bytes], **changes: Callable[[zipfile.ZipInfo], None]) -> bytes:
    """A ZIP written by Python's zipfile, entries as a bundle has them but for what `changes` does by name."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o100644 << 16
            if name.replace(".", "_") in changes:
                changes[name.replace(".", "_")](info)
            archive.writestr(info, data)
    return buffer.getvalue()


def test_every_single_changed_byte_is_refused(good: bytes, contents: dict[str, bytes], scratch: Path) -> None:
    """The law of the bundle, tried on each byte of headers, names, manifest, directory and end, and on some of the
    graphs, which are all alike.
    """
    graph = contents["model.cpu.onnx"]
    alike = {place for i in (good.index(graph), good.rindex(graph)) for place in range(i, i + len(graph)) if place % 40}
    passed = []
    for position in sorted(set(range(len(good))) - alike):
        data = bytearray(good)
        data[position] ^= 1 << position % 8
        scratch.write_bytes(data)
        with contextlib.suppress(BundleError):
            open_bundle(scratch)
            passed.append(position)

    assert passed == []


@given(data=st.data())
def test_random_damage_is_always_a_bundle_error(good: bytes, scratch: Path, data: st.DataObject) -> None:
    """Several bytes at once, as bad flash and bad cables do it; no struct.error, no MemoryError, no silence."""
    damaged = bytearray(good)
    for _ in range(data.draw(st.integers(1, 8))):
        # Half of the hits in the last 250 bytes, where the directory is: the part that is parsed.
        low = data.draw(st.sampled_from([0, len(good) - 250]))
        damaged[data.draw(st.integers(low, len(good) - 1))] = data.draw(st.integers(0, 255))
    scratch.write_bytes(damaged)
    if damaged == good:
        assert open_bundle(scratch).manifest.name == "kit"
        return

    with pytest.raises(BundleError):
        open_bundle(scratch)


@given(junk=st.binary(max_size=300))
def test_random_bytes_are_always_a_bundle_error(scratch: Path, junk: bytes) -> None:
    """Also those that begin and end as a ZIP does."""
    for data in (junk, b"PK\x03\x04" + junk, b"PK\x03\x04" + junk + b"PK\x05\x06" + junk[:18].ljust(18, b"\0")):
        if data:
            refusal(scratch, data)


def test_a_truncated_bundle_is_refused_at_every_length(good: bytes, scratch: Path) -> None:
    """A copy that was interrupted."""
    for length in range(1, len(good), 11):
        refusal(scratch, good[:length])

    assert "was cut off" in refusal(scratch, good[:-1])
    assert "was cut off" in refusal(scratch, good[: len(good) // 2])


@pytest.mark.parametrize("tail", [b"\n", b"\0" * 22, b"#!/bin/sh\n"])
def test_bytes_after_the_end_are_refused(good: bytes, scratch: Path, tail: bytes) -> None:
    """Nothing rides along."""
    assert "something was added to its end" in refusal(scratch, good + tail)


def test_bytes_before_the_start_are_refused(good: bytes, scratch: Path) -> None:
    """ZIP tools accept a prefix (self-extracting archives); a bundle has none."""
    refusal(scratch, b"#!/bin/sh\n" + good)
    refusal(scratch, b"PK\x03\x04" + good)


def test_a_comment_is_refused(good: bytes, scratch: Path) -> None:
    """The end record's comment is a place to hide bytes."""
    refusal(scratch, good[:-2] + struct.pack("<H", 5) + b"hello")


def test_a_file_replaced_with_a_right_crc_is_refused_by_its_hash(contents: dict[str, bytes], scratch: Path) -> None:
    """A ZIP tool that swaps a graph makes a valid ZIP; SHA-256 is what notices."""
    swapped = {**contents, "model.cpu.onnx": classifier(cell=8)}

    assert "model.cpu.onnx is not what the manifest says" in refusal(scratch, container(swapped))


def test_a_missing_file_is_named(contents: dict[str, bytes], scratch: Path) -> None:
    """Which one, so that the builder knows where to look."""
    left = {name: data for name, data in contents.items() if name != "model.cpu.onnx"}

    assert "model.cpu.onnx is missing" in refusal(scratch, container(left))


def test_an_extra_file_is_named(contents: dict[str, bytes], scratch: Path) -> None:
    """What the manifest does not know, nobody vouches for."""
    more = {**contents, "zz/notes.txt": b"hi"}

    assert "zz/notes.txt is not in the manifest" in refusal(scratch, container(more))


def test_a_newer_schema_is_refused_in_words(contents: dict[str, bytes], scratch: Path) -> None:
    """An old agent must not guess at what a new field means."""
    manifest = contents["manifest.json"].replace(b'"schema": 1', b'"schema": 2')
    scratch.write_bytes(container({**contents, "manifest.json": manifest}))

    with pytest.raises(BundleError, match="schema: got 2, this agent reads up to 1") as caught:
        open_bundle(scratch)

    assert "update defect-agent" in str(caught.value.hint)


def test_a_graph_that_no_file_holds_is_refused(contents: dict[str, bytes], scratch: Path) -> None:
    """Noticed at the door, not when the engine opens."""
    manifest = kit_manifest(graphs={"cpu": "gone.onnx"})
    files = {"manifest.json": manifest_to_json(manifest)}

    assert "graphs.cpu: no file gone.onnx" in refusal(scratch, container(files))


@pytest.mark.parametrize(
    "name", ["../evil.sh", "a/../../evil.sh", "/etc/cron.d/evil", "..\\evil", "C:\\evil", "\\evil"]
)
def test_a_path_that_climbs_out_is_refused(contents: dict[str, bytes], scratch: Path, name: str) -> None:
    """Zip slip."""
    assert "climbs out of the bundle" in refusal(scratch, foreign_zip({name: b"x", **contents}))


@pytest.mark.parametrize("name", ["a//b", "./a", "a b", "a\nb", "café.txt", ".hidden", "a" * 121, "nul\x01"])
def test_an_odd_name_is_refused(contents: dict[str, bytes], scratch: Path, name: str) -> None:
    """Names go into logs, shells and other file systems."""
    assert "got the file name" in refusal(scratch, foreign_zip({name: b"x", **contents}))


def test_a_folder_entry_is_refused(contents: dict[str, bytes], scratch: Path) -> None:
    """ZIP tools add them; defect-opt does not."""
    assert "golden/ is a folder" in refusal(scratch, foreign_zip({"golden/": b"", **contents}))


def test_a_link_is_refused(contents: dict[str, bytes], scratch: Path) -> None:
    """A link to /etc/shadow in a graph's place."""

    def link(info: zipfile.ZipInfo) -> None:
        info.external_attr = (stat.S_IFLNK | 0o777) << 16

    assert "model.cpu.onnx is a link" in refusal(scratch, foreign_zip(contents, model_cpu_onnx=link))


def test_an_encrypted_entry_is_refused(contents: dict[str, bytes], scratch: Path) -> None:
    """Bit 0 of the flags, in the directory."""
    data = bytearray(container(contents))
    record = data.index(b"PK\x01\x02")
    data[record + 8] |= 1

    assert "manifest.json is encrypted" in refusal(scratch, bytes(data))


def test_a_repacked_bundle_is_refused_in_words(contents: dict[str, bytes], scratch: Path) -> None:
    """Unpacked and zipped again: the content is right, but it is not the file that was released."""

    def deflate(info: zipfile.ZipInfo) -> None:
        info.compress_type = zipfile.ZIP_DEFLATED

    changes = {name.replace(".", "_"): deflate for name in contents}

    assert "manifest.json is compressed" in refusal(scratch, foreign_zip(contents, **changes))


def test_a_bomb_is_refused_before_anything_is_unpacked(contents: dict[str, bytes], scratch: Path) -> None:
    """64 MB of zeros in 64 kB."""

    def deflate(info: zipfile.ZipInfo) -> None:
        info.compress_type = zipfile.ZIP_DEFLATED

    bomb = foreign_zip({"bomb.bin": bytes(64 << 20), **contents}, bomb_bin=deflate)

    assert len(bomb) < 1 << 20
    assert "bomb.bin is compressed" in refusal(scratch, bomb)


@pytest.mark.parametrize("claimed", [0, 1, 1 << 20, 0xFFFFFFFF])
@pytest.mark.parametrize("place", ["local", "directory", "both"])
def test_a_lying_size_is_refused(contents: dict[str, bytes], scratch: Path, claimed: int, place: str) -> None:
    """Headers that claim more or less than there is."""
    data = bytearray(container(contents))
    local, record = data.index(b"PK\x03\x04"), data.index(b"PK\x01\x02")
    if place in ("local", "both"):
        data[local + 18 : local + 26] = struct.pack("<LL", claimed, claimed)
    if place in ("directory", "both"):
        data[record + 20 : record + 28] = struct.pack("<LL", claimed, claimed)

    refusal(scratch, bytes(data))


def test_an_end_that_claims_a_huge_directory_is_refused(good: bytes, scratch: Path) -> None:
    """No memory is taken on a header's word."""
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, 0xFFFFFFF0, 0, 0)

    assert "holds 65535 files" in refusal(scratch, good[:-END_BYTES] + end)


def test_too_many_files_are_refused(contents: dict[str, bytes], scratch: Path) -> None:
    """Ten thousand empty files cost inodes and time."""
    many = {f"f{i:05d}": b"" for i in range(MAX_FILES)}

    assert f"holds {MAX_FILES + len(contents)} files" in refusal(scratch, foreign_zip({**many, **contents}))


def test_a_huge_manifest_is_refused_unread(scratch: Path) -> None:
    """The one file that is held in memory."""
    assert "at most 4 MiB" in refusal(scratch, container({"manifest.json": b" " * (5 << 20)}))


def hand_made(entries: list[tuple[Entry, bytes]], gap: bytes = b"") -> bytes:
    """A container whose entries are where they say, with `gap` before each header."""
    body = b"".join(gap + entry.header + data for entry, data in entries)
    directory = b"".join(entry.record for entry, _ in entries)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, len(entries), len(entries), len(directory), len(body), 0)
    return body + directory + end


def placed(files: list[tuple[str, bytes]], gap: int = 0) -> list[tuple[Entry, bytes]]:
    entries, offset = [], 0
    for name, data in files:
        entry = Entry(name=name, size=len(data), crc=zlib.crc32(data), offset=offset + gap)
        entries.append((entry, data))
        offset = entry.end
    return entries


def test_a_name_that_stands_twice_is_refused(contents: dict[str, bytes], scratch: Path) -> None:
    """Of two entries with one name, one tool reads the first and another the second."""
    files = [("manifest.json", contents["manifest.json"]), *contents.items()]

    assert "manifest.json stands there twice" in refusal(scratch, hand_made(placed(files)))


def test_entries_out_of_order_are_refused(contents: dict[str, bytes], scratch: Path) -> None:
    """One content, one file: the digest of a release is that of its bytes."""
    files = list(contents.items())[::-1]

    assert "is not in the order of the names" in refusal(scratch, hand_made(placed(files)))


def test_the_hand_made_container_is_good_without_a_fault(contents: dict[str, bytes], scratch: Path) -> None:
    """Else the tests around it would prove nothing."""
    scratch.write_bytes(hand_made(placed(list(contents.items()))))

    assert open_bundle(scratch).manifest.name == "kit"


def test_bytes_hidden_between_entries_are_refused(contents: dict[str, bytes], scratch: Path) -> None:
    """Every ZIP tool would skip them; here nothing is not accounted for."""
    hidden = b"hidden"
    entries, offset = [], 0
    for name, data in contents.items():
        entry = Entry(name=name, size=len(data), crc=zlib.crc32(data), offset=offset + len(hidden))
        entries.append((entry, data))
        offset = entry.end

    refusal(scratch, b"PK\x03\x04"[:4] + hand_made(entries, hidden)[4:])


def test_overlapping_entries_are_refused(contents: dict[str, bytes], scratch: Path) -> None:
    """Two records for the same bytes: how small ZIPs become huge."""
    entries = placed(list(contents.items()))
    first, second = entries[1], entries[2]
    entries[2] = (dataclasses.replace(second[0], offset=first[0].offset), second[1])

    refusal(scratch, hand_made(entries))


def test_bytes_hidden_before_the_directory_are_refused(contents: dict[str, bytes], scratch: Path) -> None:
    """Where signing blocks of other ZIP formats live."""
    good = hand_made(placed(list(contents.items())))
    at = good.index(b"PK\x01\x02")
    count, length, offset = struct.unpack_from("<HLL", good, len(good) - END_BYTES + 10)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, length, offset + 6, 0)

    assert "odd directory" in refusal(scratch, good[:at] + b"hidden" + good[at:-END_BYTES] + end)
