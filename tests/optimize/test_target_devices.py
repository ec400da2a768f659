"""`defect-opt build --target jetson|tensorrt|trtexec`: what lies beside the bundle, and what is said about it.

trtexec is no program here: a stand-in prints the release that it is told to be, refuses any flag that the release does
not have, and writes the engine that it was asked for. Its flags are listed here by hand, from the sources that
`optimize/trtexec.py` names.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest

from agent.bundle import Bundle, open_bundle
from optimize.build import build
from optimize.devices import serve_devices
from optimize.errors import ModelError
from optimize.inputs import gather
from optimize.quantize.cache import read_cache
from optimize.recipe import QuantizeRecipe, Recipe
from optimize.trtexec import VERSIONS, Trtexec, command, write_trtexec
from tests.kit.bundles import make_bundle
from tests.kit.commands import run_command
from tests.kit.float_models import write_model, write_parts
from tests.kit.models import classifier
from tests.kit.pycuda import installed as pycuda_installed
from tests.kit.tensorrt import VERSIONS as TENSORRTS
from tests.kit.tensorrt import installed as tensorrt_installed

SPLITS = {"calib": 8, "val": 8}
QUICK = QuantizeRecipe(method="minmax", equalize="none", correction="none", cpu_graph="int8")

BANNERS = {"8.5": "8502", "8.6": "8602", "10": "100300", "11": "110400"}

GONE = {
    "8.5": ("--skipInference", "--stronglyTyped", "--builderOptimizationLevel"),
    "8.6": ("--stronglyTyped",),
    "10": ("--buildOnly", "--workspace", "--minTiming", "--heuristic"),
    "11": ("--fp16", "--int8", "--calib", "--best", "--buildOnly"),
}
"""Flags that a release lacks (yet, or again): by the help of 8.5 and of 10.x, and the migration guides of 10 and 11."""

TRTEXEC = """#!/bin/sh
# A stand-in: VERSION's first line, and no flag that is not in FLAGS.
echo "&&&& RUNNING TensorRT.trtexec [TensorRT v$VERSION] # $0 $*"
for flag in "$@"; do
  case " $FLAGS --help " in
    *" ${flag%%=*} "*) ;;
    *) echo "[E] Unknown option: $flag" >&2; exit 1 ;;
  esac
done
for flag in "$@"; do
  case "$flag" in
    --stronglyTyped) if [ -n "${NO_TYPING:-}" ]; then echo "[E] no INT8 here" >&2; exit 1; fi ;;
    --onnx=*) [ -s "${flag#*=}" ] || exit 1 ;;
    --calib=*) [ -s "${flag#*=}" ] || exit 1 ;;
    --saveEngine=*) echo "$*" > "${flag#*=}" ;;
  esac
done
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    parts = write_parts(tmp_path_factory.mktemp("parts"), SPLITS)
    model = write_model(tmp_path_factory.mktemp("model") / "m.onnx")
    out = tmp_path_factory.mktemp("out") / "parts-1.0.0.defect"
    recipe = Recipe(model=model, data=parts, calib=parts, out=out, quantize=QUICK, name="parts")
    return build(gather(recipe)).bundle


@pytest.fixture
def bundle(built: Bundle, tmp_path: Path) -> Bundle:
    """A copy in a folder of its own: what is made lies beside it."""
    path = tmp_path / built.path.name
    path.write_bytes(built.path.read_bytes())
    return open_bundle(path)


def version(name: str) -> Trtexec:
    return next(entry for entry in VERSIONS if entry.name == name)


def run_script(folder: Path, name: str, *arguments: str, banner: str | None = None, **more: str) -> tuple[int, str]:
    """A script of the folder, on a device that has the trtexec of its release."""
    program = folder / "trtexec"
    program.write_text(TRTEXEC)
    program.chmod(0o755)
    known = {"VERSION": banner or BANNERS[name], "FLAGS": " ".join(version(name).flags), "TRTEXEC": str(program)}
    done = subprocess.run(
        ["sh", folder / f"build-tensorrt-{name}.sh", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **known, **more},
    )
    return done.returncode, done.stderr


# trtexec


def test_flags_that_a_release_does_not_have_are_not_in_its_table() -> None:
    """A wrong flag ends trtexec on a device that nobody here has."""
    assert {entry.name for entry in VERSIONS} == set(GONE)
    for entry in VERSIONS:
        assert not entry.flags & set(GONE[entry.name])
        assert entry.source


@pytest.mark.parametrize("name", [entry.name for entry in VERSIONS])
def test_a_command_line_with_a_flag_of_another_release_is_refused(name: str) -> None:
    """Before it is written."""
    with pytest.raises(ValueError, match=f"trtexec of TensorRT {name} has no {GONE[name][0]}"):
        command(version(name), "m.onnx", "m.engine", GONE[name][0])


@pytest.mark.parametrize("name", [entry.name for entry in VERSIONS])
def test_each_release_gets_a_script_that_its_trtexec_takes(name: str, bundle: Bundle, tmp_path: Path) -> None:
    """INT8 and FP16 by flags in 8, by types in 10, by nothing but the graph in 11."""
    made = write_trtexec(bundle, tmp_path / "made")
    code, told = run_script(made.folder, name)
    arguments = (made.folder / "parts-1.0.0.engine").read_text()
    precision = {
        "8.5": "--onnx=model.trt.onnx --fp16 --int8",
        "8.6": "--onnx=model.trt.onnx --fp16 --int8",
        "10": "--onnx=model.trt16.onnx --stronglyTyped",
        "11": "--onnx=model.trt16.onnx --saveEngine",
    }

    ends = {"8.5": {"--buildOnly"}, "8.6": {"--skipInference"}, "10": {"--skipInference"}, "11": set[str]()}

    assert (code, told) == (0, "")
    assert arguments.startswith(precision[name])
    assert {"--buildOnly", "--skipInference"} & set(arguments.split()) == ends[name]
    assert "--calib" not in arguments


def test_where_strong_typing_fails_the_precision_is_left_to_tensorrt(bundle: Bundle, tmp_path: Path) -> None:
    """As TensorRT 10.3 does on an Orin (NVIDIA/TensorRT#4832), and as the agent's own builder does then."""
    made = write_trtexec(bundle, tmp_path / "made")
    code, told = run_script(made.folder, "10", NO_TYPING="yes")

    assert code == 0
    assert "once more, with the precision left to TensorRT" in told
    assert "--onnx=model.trt.onnx --fp16 --int8" in (made.folder / "parts-1.0.0.engine").read_text()


@pytest.mark.parametrize("name", ["8.5", "8.6", "10"])
def test_dla_takes_the_float_graph_and_a_cache_of_its_own_release(name: str, bundle: Bundle, tmp_path: Path) -> None:
    """TensorRT refuses a cache that names another release; DLA takes no Q/DQ pairs."""
    made = write_trtexec(bundle, tmp_path / "made")
    code, told = run_script(made.folder, name, "dla", "1", "--verbose")
    arguments = (made.folder / "parts-1.0.0.dla.engine").read_text().split()
    cache = next(flag for flag in arguments if flag.startswith("--calib=")).removeprefix("--calib=")
    data = (made.folder / cache).read_bytes()
    header = {"8.5": b"TRT-8502-", "8.6": b"TRT-8602-", "10": b"TRT-100300-"}

    assert (code, told) == (0, "")
    assert {"--onnx=model.fp32.onnx", "--useDLACore=1", "--allowGPUFallback", "--verbose"} <= set(arguments)
    assert data.startswith(header[name])
    assert read_cache(data) == read_cache(bundle.read("calib.cache"))


def test_a_script_of_another_release_refuses_to_begin(bundle: Bundle, tmp_path: Path) -> None:
    """With the release that is there; and without any, with what to install."""
    made = write_trtexec(bundle, tmp_path / "made")
    code, told = run_script(made.folder, "8.5", banner="100300")
    without = run_script(made.folder, "8.5", TRTEXEC="/nowhere/trtexec")

    assert code == 2
    assert "is of TensorRT v100300, this script is for 8.5" in told
    assert without[0] == 2
    assert "Try: sudo apt install tensorrt" in without[1]
    assert not list(made.folder.glob("*.engine"))


def test_without_an_fp16_graph_and_a_cache_scripts_do_with_what_there_is(tmp_path: Path) -> None:
    """No attempt at strong typing in float32, no DLA, and no name of a file that is not there."""
    graphs = {"fp32": "model.fp32.onnx", "cpu": "model.cpu.onnx", "trt": "model.trt.onnx"}
    made = write_trtexec(make_bundle(tmp_path, graphs=graphs), tmp_path / "made")
    texts = [(made.folder / name).read_text() for name in made.files if name.endswith((".sh", ".txt"))]

    for name, precision in (("8.5", "--fp16 --int8"), ("10", "--fp16 --int8"), ("11", "--saveEngine")):
        assert run_script(made.folder, name) == (0, "")
        engine = (made.folder / "kit-1.0.0.engine").read_text()
        assert engine.startswith(f"--onnx=model.trt.onnx {precision}")
    assert len(texts) == len(VERSIONS) + 1
    assert not [text for text in texts if "trt16" in text or "dla" in text or "stronglyTyped" in text]
    assert not [name for name in made.files if name.endswith(".cache")]


@pytest.mark.parametrize(("opset", "is_told"), [(17, False), (18, True)])
def test_a_graph_that_jetpack_5_can_not_read_is_told(opset: int, is_told: bool, tmp_path: Path) -> None:
    """Its scripts are there all the same: who has another TensorRT loses nothing."""
    model = onnx.load_model_from_string(classifier())
    model.opset_import[0].version = opset
    graphs = {"fp32": "model.fp32.onnx", "cpu": "model.cpu.onnx", "trt": "model.trt.onnx"}
    bundle = make_bundle(tmp_path, graph=model.SerializeToString(), graphs=graphs)

    served = serve_devices(bundle, ["trtexec"])

    told = [line for line in served.lines if "warning" in line]
    assert len(told) == len(served.report["trtexec"]["warnings"]) == is_told
    assert not is_told or f"the graph is opset {opset}, the parsers of TensorRT 8.5 and 8.6 read up to 17" in told[0]
    assert "build-tensorrt-8.5.sh" in served.report["trtexec"]["files"]


def test_the_same_bundle_gives_the_same_files(bundle: Bundle, tmp_path: Path) -> None:
    """And a second time into the same folder, too."""
    first, second = write_trtexec(bundle, tmp_path / "a"), write_trtexec(bundle, tmp_path / "b")
    write_trtexec(bundle, tmp_path / "a")

    assert first.files == second.files
    assert sorted(path.name for path in first.folder.iterdir()) == list(first.files)
    for name in first.files:
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes()


# tensorrt: an engine for this machine


def test_without_tensorrt_the_bundle_is_whole_and_one_sentence_says_what_to_install(bundle: Bundle) -> None:
    """A workstation need not have a GPU."""
    served = serve_devices(bundle, ["tensorrt"])

    assert served
    assert len(served.lines) == 1
    assert served.lines[0].startswith("tensorrt: no engine was built here, the bundle is whole without: ")
    assert "pip install tensorrt" in served.lines[0]
    assert not list(bundle.path.parent.glob("*.plan"))


def test_without_a_gpu_it_is_the_same(bundle: Bundle) -> None:
    """TensorRT alone builds nothing."""
    with tensorrt_installed("10.3.0"):
        served = serve_devices(bundle, ["tensorrt"])

    assert served
    assert len(served.lines) == 1
    assert served.lines[0].startswith("tensorrt: no engine was built here, the bundle is whole without: ")
    assert served.report["tensorrt"]["why"]


@pytest.mark.parametrize("release", TENSORRTS)
def test_with_both_an_engine_is_built_and_measured_for_this_machine_alone(release: str, bundle: Bundle) -> None:
    """By the agent's own code, on every TensorRT; the stand-in computes what the graph says."""
    with tensorrt_installed(release), pycuda_installed():
        served = serve_devices(bundle, ["tensorrt"])
    made = served.report["tensorrt"]["engine"]

    assert served
    assert "for this machine alone" in served.lines[0]
    assert Path(made["path"]).is_file()
    assert release in Path(made["path"]).name
    assert made["graph"] == ("trt" if release.startswith("8") else "trt16")
    assert (made["goldens"], made["changed"]) == (24, 0)
    assert 0 < made["p50_ms"] <= made["p95_ms"]


def test_everything_that_was_taken_from_the_gpu_is_given_back(bundle: Bundle) -> None:
    """defect-opt goes on after it."""
    with tensorrt_installed("10.3.0") as tensorrt, pycuda_installed() as gpu:
        serve_devices(bundle, ["tensorrt"])

        assert tensorrt.live() == {}
        assert gpu.live == {}


def test_a_plan_that_can_not_be_written_leaves_no_gpu_taken(bundle: Bundle) -> None:
    """One sentence with the file, and the device is closed."""
    plan = bundle.path.with_suffix(".tensorrt-10.3.0.sm87.Orin.plan")
    plan.mkdir()
    with tensorrt_installed("10.3.0"), pycuda_installed() as gpu:
        with pytest.raises(ModelError, match=f"{plan.name}: can't be written"):
            serve_devices(bundle, ["tensorrt"])

        assert gpu.calls
        assert gpu.live == {}


# The command


@pytest.fixture(scope="module")
def in_project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("project")
    parts, model = write_parts(folder / "parts", SPLITS), write_model(folder / "m.onnx")
    (folder / "defect-opt.yaml").write_text(
        f"model: {model}\ndata: {parts}\ncalib: {parts}\nname: parts\n"
        "quantize: {method: minmax, equalize: none, correction: none, cpu_graph: int8}\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def test_the_command_says_for_each_device_what_it_made(in_project: Path) -> None:
    """Three devices in one build, exit code 0 without a GPU."""
    ran = run_command("optimize.cli.build", "--int8", "--target", "jetson,tensorrt,trtexec")

    assert ran.code == 0
    assert "jetson: no engine is in the bundle; the device compiles it" in ran.out
    assert "tensorrt: no engine was built here" in ran.out
    assert "build-tensorrt-8.5.sh" in ran.out
    assert "INT8 + FP16 for TensorRT 10 and 11: " in ran.out
    assert (in_project / "parts-1.0.0.trtexec" / "build-tensorrt-8.5.sh").is_file()


def test_where_tensorrt_is_here_and_builds_nothing_the_command_fails(in_project: Path) -> None:
    """Exit code 1, for an engine was asked for and could be had; the bundle is there, whole."""
    with tensorrt_installed("10.3.0", build_out_of_memory=True), pycuda_installed() as gpu:
        ran = run_command("optimize.cli.build", "--int8", "--target", "tensorrt", "--out", "failed-1.0.0.defect")

        assert gpu.live == {}

    assert ran.code == 1
    assert "tensorrt: no engine came of it: " in ran.out
    assert open_bundle(in_project / "failed-1.0.0.defect").manifest.gate_passed
    assert not list(in_project.glob("failed*.plan"))


def test_json_tells_the_same(in_project: Path) -> None:
    """One document; a CPU alone gets nothing for TensorRT."""
    ran = run_command("optimize.cli.build", "--int8", "--target", "trtexec", "--json")
    cpu = run_command("optimize.cli.build", "--int8", "--target", "cpu", "--json")
    found, alone = json.loads(ran.out), json.loads(cpu.out)

    assert set(found["devices"]) == {"trtexec"}
    assert found["trt16"]["made"] is True
    assert "devices" not in alone
    assert alone["trt16"] is None
    assert "trt16" not in alone["size_bytes"]
