"""For a device that can't run the agent: graphs, calibration caches, and a `trtexec` command line per TensorRT.

JetPack 5 has Python 3.8, and its people have a program of their own around TensorRT. `trtexec` comes with every
TensorRT and compiles an engine; its flags differ from release to release, and a wrong one ends it. What each release
has is kept here as a table, and each command line is checked against it before it is written.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from agent.bundle import Bundle
from optimize.artifacts import CACHE
from optimize.files import write_atomically
from optimize.quantize.graph import opset_of
from optimize.quantize.onnx_file import model_from_bytes

__all__ = ["VERSIONS", "Trtexec", "TrtexecFiles", "command", "write_trtexec"]

WORKSPACE_MB = 1024
"""Scratch memory for one layer; an Orin Nano has 8 GB for everything."""

NEWEST_OPSET_OF_8 = 17
"""What the ONNX parsers of TensorRT 8.5 and 8.6 say that they read."""

_ALL = {"--onnx", "--saveEngine"}
_BUILD = {"--memPoolSize", "--timingCacheFile", "--sparsity", "--verbose", "--dumpLayerInfo", "--profilingVerbosity"}
_WEAK = {"--fp16", "--int8", "--best", "--calib", "--useDLACore", "--allowGPUFallback"}

Kind = Literal["trt", "trt16", "fp32"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Trtexec:
    """One release's `trtexec`.

    Attributes:
        name: as files here are called, `8.5`.
        jetpack: the JetPack that brings it, or None.
        banner: shell pattern of the number in its first line, `[TensorRT v8502]`.
        flags: those that it has, as far as they matter here.
        source: where they were read.
        build_only: the flag that ends it when the engine is written; None where none was found in the documents.
        typed: whether it takes the types that the graph states.
        cache_version: the TensorRT that its calibration cache must name; None where there is no calibration.
    """

    name: str
    jetpack: str | None
    banner: str
    flags: frozenset[str]
    source: str
    build_only: str | None
    typed: bool
    cache_version: str | None

    @property
    def engine_flags(self) -> tuple[str, ...]:
        """What makes it INT8 from the graph's Q/DQ pairs: nothing where the graph's types always decide."""
        if "--stronglyTyped" in self.flags:
            return ("--stronglyTyped",)
        return () if self.typed else ("--fp16", "--int8")


VERSIONS: tuple[Trtexec, ...] = (
    Trtexec(
        name="8.5",
        jetpack="5.1",
        banner="85[0-9][0-9]",
        flags=frozenset(_ALL | _BUILD | _WEAK | {"--buildOnly", "--heuristic", "--preview"}),
        source="what `trtexec --help` of 8.5 prints (in public notes; it has --heuristic and --preview, not yet "
        "--builderOptimizationLevel), and NVIDIA/TensorRT samples/common/sampleOptions.cpp at cabb42f0, just before it",
        build_only="--buildOnly",
        typed=False,
        cache_version="8.5.2",
    ),
    Trtexec(
        name="8.6",
        jetpack="6.0",
        banner="86[0-9][0-9]",
        flags=frozenset(
            _ALL
            | _BUILD
            | _WEAK
            | {"--buildOnly", "--skipInference", "--heuristic", "--preview"}
            | {"--builderOptimizationLevel"}
        ),
        source="NVIDIA/TensorRT samples/common/sampleOptions.cpp of 8.6 (`--buildOnly flag has been deprecated by "
        "--skipInference flag`)",
        build_only="--skipInference",
        typed=False,
        cache_version="8.6.2",
    ),
    Trtexec(
        name="10",
        jetpack="6.1, 6.2 and 7",
        banner="10[0-9][0-9][0-9][0-9]",
        flags=frozenset(
            _ALL | _BUILD | _WEAK | {"--skipInference", "--stronglyTyped", "--builderOptimizationLevel", "--preview"}
        ),
        source="what `trtexec --help` of 10.x prints (in public notes), and NVIDIA/TensorRT samples/trtexec/README.md: "
        "--int8 and --best are not allowed with --stronglyTyped",
        build_only="--skipInference",
        typed=True,
        cache_version="10.3.0",
    ),
    Trtexec(
        name="11",
        jetpack=None,
        banner="11[0-9][0-9][0-9][0-9]",
        flags=frozenset(_ALL),
        source="docs.nvidia.com, TensorRT 11.4.1, Migrating trtexec Usage from 10.x to 11.x: --fp16, --int8, --best "
        "and --calib are gone, typing is always strong; only the flags of its examples are used",
        build_only=None,
        typed=True,
        cache_version=None,
    ),
)
"""The releases that command lines are written for, oldest first."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrtexecFiles:
    """What was written.

    Attributes:
        folder: it holds all of it, and may be copied to the device as it is.
        files: their names, sorted.
        warnings: what the user should know, one sentence each.
    """

    folder: Path
    files: tuple[str, ...]
    warnings: tuple[str, ...]


def command(version: Trtexec, graph: str, engine: str, *more: str) -> tuple[str, ...]:
    """A command line's arguments, checked against what this release has.

    It ends when the engine is written where there is a flag for that; else the engine is timed, too.

    Args:
        version: the release.
        graph: the ONNX file.
        engine: the file to write.
        more: flags that say how.

    Raises:
        ValueError: a flag that this release does not have.
    """
    wanted = [f"--onnx={graph}", *more, f"--saveEngine={engine}"]
    if "--memPoolSize" in version.flags:
        wanted.append(f"--memPoolSize=workspace:{WORKSPACE_MB}")
    if "--timingCacheFile" in version.flags:
        wanted.append(f"--timingCacheFile=timing-{version.name}.cache")
    if version.build_only is not None:
        wanted.append(version.build_only)
    strange = sorted({flag.partition("=")[0] for flag in wanted} - version.flags)
    if strange:
        raise ValueError(f"trtexec of TensorRT {version.name} has no {', '.join(strange)}")
    return tuple(wanted)


def write_trtexec(bundle: Bundle, folder: Path) -> TrtexecFiles:
    """Write graphs, caches, one script per release, and a README; the same bundle gives the same files.

    Args:
        bundle: with the graph `trt`.
        folder: made where it is not there; files of these names in it are replaced.

    Raises:
        BundleError: the bundle can't be read.
        ModelError: the folder can't be written.
    """
    files, warnings = _files(bundle)
    for name, data in files.items():
        write_atomically(folder / name, data)
        if name.endswith(".sh"):
            (folder / name).chmod(0o755)
    return TrtexecFiles(folder=folder, files=tuple(sorted(files)), warnings=tuple(warnings))


def _files(bundle: Bundle) -> tuple[dict[str, bytes], list[str]]:
    manifest = bundle.manifest
    kinds = [kind for kind in ("trt", "trt16", "fp32") if kind in manifest.graphs]
    files = {manifest.graphs[kind]: bundle.graph(kind) for kind in kinds}
    cache = bundle.read(CACHE) if CACHE in bundle.entries else None
    if cache is not None:
        files.update({_cache_name(v): _cache_for(cache, v) for v in VERSIONS if v.cache_version is not None})
    for version in VERSIONS:
        files[f"build-tensorrt-{version.name}.sh"] = _script(bundle, version, has_cache=cache is not None)
    files["README.txt"] = _readme(bundle).encode()
    opset = opset_of(model_from_bytes(str(bundle.path), bundle.graph("trt")))
    if opset <= NEWEST_OPSET_OF_8:
        return files, []
    why = (
        f"the graph is opset {opset}, the parsers of TensorRT 8.5 and 8.6 read up to {NEWEST_OPSET_OF_8}: export the "
        f"float model with opset {NEWEST_OPSET_OF_8} for JetPack 5"
    )
    return files, [why]


def _cache_name(version: Trtexec) -> str:
    return f"calib-{version.cache_version}.cache"


def _cache_for(cache: bytes, version: Trtexec) -> bytes:
    """The cache with this release in its first line: TensorRT refuses one of another release."""
    major, minor, patch = (int(part) for part in str(version.cache_version).split("."))
    number = major * 10_000 + minor * 100 + patch if major >= 10 else major * 1000 + minor * 100 + patch
    return re.sub(rb"\ATRT-\d+-", f"TRT-{number}-".encode(), cache, count=1)


def _script(bundle: Bundle, version: Trtexec, *, has_cache: bool) -> bytes:
    name = f"{bundle.manifest.name}-{bundle.manifest.version}"
    lines = [
        "#!/bin/sh",
        f"# Compile {name} with the trtexec of TensorRT {version.name}"
        + (f" (JetPack {version.jetpack})" if version.jetpack else "")
        + ", on the device that is to run it.",
        f"# sh build-tensorrt-{version.name}.sh            the GPU; INT8 by the Q/DQ pairs of the graph",
    ]
    has_dla = has_cache and version.cache_version is not None
    if has_dla:
        lines.append(
            f"# sh build-tensorrt-{version.name}.sh dla N      DLA core N, what it can't on the GPU; INT8 by the cache"
        )
    lines += ["# What follows goes to trtexec, such as --verbose.", *_preamble(version)]
    if has_dla:
        lines += _dla(bundle, version, name)
    lines += [*_gpu(bundle, version, name), ""]
    return "\n".join(lines).encode()


def _preamble(version: Trtexec) -> Iterator[str]:
    yield "set -eu"
    yield 'cd "$(dirname "$0")"'
    yield 'trtexec="${TRTEXEC:-/usr/src/tensorrt/bin/trtexec}"'
    yield 'if [ ! -x "$trtexec" ]; then'
    yield '  echo "$trtexec: not there" >&2'
    yield '  echo "Try: sudo apt install tensorrt, or TRTEXEC=/path/to/trtexec sh $0" >&2'
    yield "  exit 2"
    yield "fi"
    yield (
        r'version="$("$trtexec" --help 2>&1 | sed -n '
        r"'s/.*\[TensorRT v\([0-9]*\)\].*/\1/p' | sed -n 1p)" + '"'
    )
    yield 'case "$version" in'
    yield f"  {version.banner}) ;;"
    yield "  *)"
    yield f'    echo "$trtexec is of TensorRT v$version, this script is for {version.name}" >&2'
    yield '    echo "Try: the build-tensorrt-*.sh of that release" >&2'
    yield "    exit 2"
    yield "    ;;"
    yield "esac"


def _dla(bundle: Bundle, version: Trtexec, name: str) -> Iterator[str]:
    arguments = command(
        version,
        bundle.manifest.graphs["fp32"],
        f"{name}.dla.engine",
        "--fp16",
        "--int8",
        f"--calib={_cache_name(version)}",
        '--useDLACore="$core"',
        "--allowGPUFallback",
    )
    yield 'if [ "${1:-}" = dla ]; then'
    yield '  core="${2:-0}"'
    yield "  shift"
    yield "  [ $# -eq 0 ] || shift"
    yield f"  exec {_line(arguments)}"
    yield "fi"


def _gpu(bundle: Bundle, version: Trtexec, name: str) -> Iterator[str]:
    graphs, engine = bundle.manifest.graphs, f"{name}.engine"
    if "--stronglyTyped" not in version.flags:
        graph = graphs["trt16"] if version.typed and "trt16" in graphs else graphs["trt"]
        yield f"exec {_line(command(version, graph, engine, *version.engine_flags))}"
        return
    weak = _line(command(version, graphs["trt"], engine, "--fp16", "--int8"))
    if "trt16" in graphs:
        yield f"if {_line(command(version, graphs['trt16'], engine, *version.engine_flags))}; then exit 0; fi"
        yield 'echo "not strongly typed (see above); once more, with the precision left to TensorRT" >&2'
    yield f"exec {weak}"


def _line(arguments: Sequence[str]) -> str:
    return " ".join(['"$trtexec"', *arguments, '"$@"'])


def _readme(bundle: Bundle) -> str:
    manifest, graphs = bundle.manifest, bundle.manifest.graphs
    spec = manifest.input
    rows = [
        f"{manifest.name} {manifest.version}: engines by trtexec, compiled on the device",
        "",
        "An engine is for one TensorRT and one GPU: compile it on the device that runs it. Copy this folder there,",
        "then",
        *(f"  sh build-tensorrt-{v.name}.sh" + (f"    JetPack {v.jetpack}" if v.jetpack else "") for v in VERSIONS),
        "",
        f"Input   {spec.name}: (1, {spec.height_px}, {spec.width_px}, 3) uint8 RGB; resize: {spec.resize}"
        + (f", padding {spec.pad_value}, {spec.anchor}" if spec.resize == "letterbox" else "")
        + "; normalization is in the graph",
        f"Classes {', '.join(manifest.class_names)}, in this order",
        *(f"Graph   {graphs[kind]}: {what}" for kind, what in _GRAPHS if kind in graphs),
        "",
        "Not run on hardware by its makers. What the engine must compute: golden/ in the bundle, kind `trt`.",
    ]
    return "\n".join(rows) + "\n"


_GRAPHS: tuple[tuple[Kind, str], ...] = (
    ("trt", "Q/DQ pairs, float32 elsewhere"),
    ("trt16", "Q/DQ pairs, FP16 elsewhere, for TensorRT 10 and 11"),
    ("fp32", "without quantizers; DLA takes it with a calibration cache"),
)
