"""From a float ONNX to a bundle: what is refused, what is measured, and that the bytes follow from the inputs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from agent.bundle import open_bundle
from agent.config import EngineConfig
from agent.engines import open_engine
from optimize.build import BuildReport, build
from optimize.dataset import data_digest, read_dataset
from optimize.errors import DataError, ModelError, OptimizeError, RecipeError
from optimize.inputs import draft_manifest, gather, severity_by_name
from optimize.quantize.cache import read_cache
from optimize.recipe import ClassRecipe, PolicyRecipe, QuantizeRecipe, Recipe
from tests.kit.commands import Ran, run_command
from tests.kit.float_models import CLASSES, picture, write_model, write_parts

COMMAND = "optimize.cli.build"
SPLITS = {"train": 1, "calib": 20, "val": 12, "test": 4}
NAIVE = "quantize: {method: minmax, equalize: none, correction: none, max_float_layers: 0}\n"
"""What is left when all that would save a difficult network is switched off."""

INT8 = QuantizeRecipe(cpu_graph="int8")
"""The choice by measured speed would make these tests depend on the machine."""


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parts(tmp_path_factory.mktemp("parts"), SPLITS)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "m.onnx")


@pytest.fixture(scope="module")
def loud_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ruined by one scale per tensor: INT8 guesses."""
    return write_model(tmp_path_factory.mktemp("model") / "loud.onnx", loudness=3000.0)


@pytest.fixture(scope="module")
def report(parts: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> BuildReport:
    out = tmp_path_factory.mktemp("out") / "parts.defect"
    return build(gather(Recipe(model=model, data=parts, calib=parts, out=out, quantize=INT8)))


def run_build(tmp_path: Path, *arguments: object, recipe: str = "quantize: {cpu_graph: int8}\n") -> Ran:
    """The command in an empty folder with this recipe."""
    (tmp_path / "defect-opt.yaml").write_text(recipe, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        return run_command(COMMAND, "--int8", *arguments)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["--target", "abacus"],
            "--target: got 'abacus', expected some of cpu, jetson, tensorrt, trtexec\nTry: --target jetson",
        ),
        (["--target", ""], "--target: got '', expected some of cpu, jetson, tensorrt, trtexec\nTry: --target jetson"),
        (["--max-drop", "-1"], "--max-drop: got -1"),
        (["--seed", "-1"], "--seed: got -1"),
        (["--threads", "0"], "--threads: got 0"),
        (["--name", "a b"], "--name: got 'a b'"),
        ([], "model: not given"),
        (["--model", "none.onnx"], "none.onnx: no such file"),
        (["--max-drop", "much"], "invalid float value"),
    ],
)
def test_a_mistake_is_one_sentence_and_a_two(tmp_path: Path, arguments: list[str], expected: str) -> None:
    """Nothing is ignored silently, and nothing ends in a traceback."""
    ran = run_build(tmp_path, *arguments, recipe="")

    assert ran.code == 2
    assert expected in ran.err
    assert "Traceback" not in ran.err
    assert ran.out == ""


def test_without_int8_there_is_nothing_to_build() -> None:
    """A bundle that is FP32 because a flag was forgotten would be found out on the device."""
    ran = run_command(COMMAND, "--calib", "x")

    assert (ran.code, "nothing to do without --int8" in ran.err) == (2, True)


def test_calibration_is_never_guessed(parts: Path, model: Path, tmp_path: Path) -> None:
    """Val or training pictures in its place would make the drop too good."""
    (tmp_path / "data").mkdir()
    for label in CLASSES:
        (tmp_path / "data" / label).mkdir()
        cv2.imwrite(str(tmp_path / "data" / label / "0.png"), picture(label, np.random.default_rng(1)))

    with pytest.raises(DataError, match="calib: not given"):
        gather(Recipe(model=model, data=tmp_path / "data"))


def test_without_val_images_nothing_is_built(parts: Path, model: Path) -> None:
    """A bundle without a measured drop would have to be believed."""
    with pytest.raises(RecipeError, match="val or data: not given"):
        gather(Recipe(model=model, calib=parts))


def test_an_empty_calibration_folder_is_refused(parts: Path, model: Path, tmp_path: Path) -> None:
    """Named, with what to put there."""
    (tmp_path / "calib").mkdir()

    with pytest.raises(DataError, match="calib: no image found"):
        gather(Recipe(model=model, data=parts, calib=tmp_path / "calib"))


def test_a_single_calibration_image_is_refused(parts: Path, model: Path, tmp_path: Path) -> None:
    """Ranges of one picture clip nearly every other."""
    (tmp_path / "calib").mkdir()
    cv2.imwrite(str(tmp_path / "calib" / "one.png"), picture("ok", np.random.default_rng(1)))

    with pytest.raises(DataError, match="got 1 calibration image, expected at least 8"):
        gather(Recipe(model=model, data=parts, calib=tmp_path / "calib"))


def test_calibration_images_from_the_test_split_are_refused(parts: Path, model: Path, tmp_path: Path) -> None:
    """Copied by hand into a flat folder, as people do."""
    (tmp_path / "calib").mkdir()
    for i, path in enumerate(sorted((parts / "images").glob("test_*"))):
        (tmp_path / "calib" / f"{i}.png").write_bytes(path.read_bytes())

    with pytest.raises(DataError, match=r"12 of 12 calibration images are in the test split: 0\.png \(the same as"):
        gather(Recipe(model=model, data=parts, calib=tmp_path / "calib"))


def test_labels_that_the_model_does_not_know_are_refused(model: Path, tmp_path: Path) -> None:
    """They would count as errors of the model."""
    data = write_parts(tmp_path, SPLITS, classes=("ok", "spot"))
    text = (data / "splits.csv").read_text(encoding="utf-8").replace(",spot,", ",dent,")
    (data / "splits.csv").write_text(text, encoding="utf-8")

    with pytest.raises(DataError, match="got the classes dent, the model knows ok, scratch, spot"):
        gather(Recipe(model=model, data=data, calib=data))


def test_the_bundle_never_takes_the_place_of_the_model(parts: Path, model: Path, tmp_path: Path) -> None:
    """`--out model.onnx` is typed soon, and a training is not had back."""
    before = model.read_bytes()
    ran = run_build(tmp_path, "--model", model, "--data", parts, "--calib", parts, "--out", model)

    assert ran.code == 2
    assert "expected a file that ends in .defect" in ran.err
    assert model.read_bytes() == before


def test_an_output_folder_that_is_missing_is_found_out_before_the_work(
    parts: Path, model: Path, tmp_path: Path
) -> None:
    """Not after ten minutes of it."""
    with pytest.raises(OptimizeError, match="its folder does not exist"):
        gather(Recipe(model=model, data=parts, calib=parts, out=tmp_path / "none" / "a.defect"))
    with pytest.raises(OptimizeError, match="is a folder"):
        gather(Recipe(model=model, data=parts, calib=parts, out=tmp_path))


def test_a_model_without_class_names_needs_them_in_the_recipe(parts: Path, tmp_path: Path) -> None:
    """Sorted folder names would be a guess, and a wrong one swaps scratch and ok."""
    path = write_model(tmp_path / "m.onnx", with_classes=False)
    recipe = Recipe(model=path, data=parts, calib=parts)
    named = tuple(ClassRecipe(name=name, severity="critical") for name in CLASSES)

    with pytest.raises(RecipeError, match="does not say which classes its 3 outputs are"):
        gather(recipe)
    with pytest.raises(RecipeError, match="classes: got 2"):
        gather(dataclasses.replace(recipe, classes=named[:2]))
    assert [c.name for c in gather(dataclasses.replace(recipe, classes=named)).classes] == list(CLASSES)


def test_severities_come_from_the_recipe_or_from_the_name(parts: Path, model: Path) -> None:
    """Only a class that is called good may be passed as good."""
    recipe = Recipe(model=model, data=parts, calib=parts, classes=(ClassRecipe(name="spot", severity="minor"),))

    found = {c.name: c.severity for c in gather(recipe).classes}

    assert found == {"ok": "ok", "scratch": "major", "spot": "minor"}
    with pytest.raises(RecipeError, match="classes: got stain"):
        gather(dataclasses.replace(recipe, classes=(ClassRecipe(name="stain", severity="minor"),)))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, "ok") for name in ("ok", "OK", "No_Defect", "no defect", "Good", "normal")),
        *((name, "major") for name in ("not_ok", "okay-ish", "abnormal", "scratch", "")),
    ],
)
def test_only_names_that_plainly_mean_good_are_ok(name: str, expected: str) -> None:
    """A name that merely contains `ok` must never pass a part."""
    assert severity_by_name(name) == expected


def test_a_graph_that_onnx_runtime_cannot_run_is_said_in_words(parts: Path, tmp_path: Path) -> None:
    """A broken file in the model's place."""
    (tmp_path / "m.onnx").write_bytes(b"\x08\x08")

    with pytest.raises(ModelError, match="is no ONNX model"):
        gather(Recipe(model=tmp_path / "m.onnx", data=parts, calib=parts))


def test_the_bundle_is_whole_and_says_what_it_is(report: BuildReport, parts: Path, model: Path) -> None:
    """Opened as a device opens it."""
    bundle = open_bundle(report.bundle.path)

    manifest = bundle.manifest
    assert bundle.digest == report.bundle.digest
    assert (manifest.name, manifest.version, manifest.task) == ("parts", "1.0.0", "classify")
    assert manifest.class_names == CLASSES
    assert (manifest.cpu_graph, manifest.gate_passed, manifest.gate_reasons) == ("cpu", True, ())
    assert dict(manifest.graphs) == {
        "fp32": "model.fp32.onnx",
        "cpu": "model.cpu.onnx",
        "trt": "model.trt.onnx",
        "trt16": "model.trt16.onnx",
    }
    assert {"ranges.json", "sensitivity.json", "calib.cache"} <= set(bundle.entries)
    assert manifest.metrics["split"] == "val"
    assert manifest.metrics["int8"]["n"] == 3 * SPLITS["val"]
    assert manifest.provenance["data"]["calib"] == {
        "images": 3 * SPLITS["calib"],
        "sha256": data_digest(read_dataset(parts).take("calib")),
    }
    assert manifest.provenance["model"]["arch"] == "conv_classifier"
    assert "onnxruntime" in manifest.provenance["tools"]


def test_the_golden_inputs_replay_to_their_reference(report: BuildReport) -> None:
    """A device that computes something else is found out by them."""
    goldens = report.bundle.goldens()

    assert len(goldens) == 24
    assert {golden.label for golden in goldens} == set(CLASSES)
    for kind in ("fp32", "cpu"):
        engine = open_engine(report.bundle, EngineConfig(graph="fp32" if kind == "fp32" else "cpu"))
        for golden in goldens[:6]:
            outputs = engine.infer(golden.image[None])
            assert set(outputs) == {"logits", "embedding", "cam"}
            for role, expected in golden.outputs[kind].items():
                assert np.array_equal(outputs[role], expected)
        engine.close()


def test_int8_is_as_good_as_float_and_smaller(report: BuildReport) -> None:
    """On a network that quantizes well."""
    assert report.cards["fp32"].accuracy > 0.95
    assert report.drop_points <= 100 / 36
    assert report.size_bytes["int8"] < report.size_bytes["fp32"]
    fusion = report.fitted["cpu"].integer.fusion
    assert fusion is not None
    assert fusion.reads_bytes
    assert report.fitted["trt"].loss.drop_points <= 100 / 36
    assert report


def test_ranges_sensitivities_and_a_calibration_cache_lie_beside_the_graphs(report: BuildReport) -> None:
    """An auditor asks what was measured; DLA and TensorRT 8 ask for the cache, by the float graph's tensor names."""
    bundle = report.bundle
    float_graph = onnx.load_model_from_string(bundle.graph("fp32"))
    ranges = json.loads(bundle.read("ranges.json"))
    sensitivities = json.loads(bundle.read("sensitivity.json"))
    cache = read_cache(bundle.read("calib.cache"))

    assert {"cpu", "trt", "equalization"} <= set(ranges)
    assert {entry["layer"] for entry in sensitivities["cpu"]["layers"]} == {"conv1", "conv2"}
    made = {name for node in float_graph.graph.node for name in node.output}
    assert {"logits", "embedding", "cam"} <= set(cache) <= made
    assert all(scale > 0 for scale in cache.values())


def test_goldens_hold_what_an_engine_of_the_tensorrt_graph_must_come_near(report: BuildReport) -> None:
    """The device compiles it and replays them."""
    for golden in report.bundle.goldens():
        logits = {kind: outputs["logits"] for kind, outputs in golden.outputs.items()}
        assert set(logits) == {"fp32", "cpu", "trt"}
        assert logits["trt"].argmax() == logits["fp32"].argmax()
        assert not np.array_equal(logits["trt"], logits["fp32"])


def test_a_cpu_alone_may_be_asked_for(parts: Path, model: Path, tmp_path: Path) -> None:
    """Half the time, where no Jetson is in the plant."""
    ran = run_build(tmp_path, "--model", model, "--data", parts, "--calib", parts, "--target", "cpu", "--json")

    assert ran.code == 0
    bundle = open_bundle(tmp_path / "m-1.0.0.defect")
    assert set(bundle.manifest.graphs) == {"fp32", "cpu"}
    assert "calib.cache" not in bundle.entries


def test_two_builds_give_the_same_bytes(report: BuildReport, parts: Path, model: Path, tmp_path: Path) -> None:
    """The same inputs, recipe and seed: anybody can check what a bundle was made of."""
    recipe = Recipe(model=model, data=parts, calib=parts, out=tmp_path / "parts.defect", quantize=INT8)

    again = build(gather(recipe))

    assert again.bundle.path.read_bytes() == report.bundle.path.read_bytes()


def test_another_seed_takes_other_golden_inputs(report: BuildReport, parts: Path, model: Path, tmp_path: Path) -> None:
    """Or the seed would be a key that does nothing."""
    recipe = Recipe(model=model, data=parts, calib=parts, out=tmp_path / "parts.defect", quantize=INT8, seed=1)

    again = build(gather(recipe))

    assert [g.image.tolist() for g in again.bundle.goldens()] != [g.image.tolist() for g in report.bundle.goldens()]


def test_nothing_that_changes_from_build_to_build_is_in_the_bundle(report: BuildReport) -> None:
    """Times and paths would break byte equality on the next build, or the next machine."""
    text = report.bundle.read("manifest.json").decode()

    assert "latency" not in text
    assert "seconds" not in text
    assert str(report.bundle.path.parent) not in text


def test_an_int8_that_loses_too_much_is_packed_but_fails_its_gate(
    parts: Path, loud_model: Path, tmp_path: Path
) -> None:
    """The user sees what came out; the device sees that it failed; a script sees exit code 1."""
    ran = run_build(
        tmp_path, "--model", loud_model, "--data", parts, "--calib", parts, "--max-drop", 1, "--json", recipe=NAIVE
    )

    assert ran.code == 1
    manifest = open_bundle(tmp_path / "loud-1.0.0.defect").manifest
    assert not manifest.gate_passed
    assert manifest.gate_reasons == tuple(ran.json["gate"]["reasons"])
    assert "points of accuracy on val, allowed are 1" in manifest.gate_reasons[0]
    assert (manifest.cpu_graph, ran.json["cpu_graph_why"]) == ("fp32", "INT8 is not good enough")
    assert ran.json["drop_points"] > 50
    assert ran.json["gate"]["passed"] is False


def test_layers_go_back_to_float_until_the_budget_holds(parts: Path, loud_model: Path, tmp_path: Path) -> None:
    """The user says what may be lost, not which layer is to blame."""
    recipe = NAIVE.replace("max_float_layers: 0", "max_float_layers: 4")

    ran = run_build(
        tmp_path, "--model", loud_model, "--data", parts, "--calib", parts, "--max-drop", 1, "--json", recipe=recipe
    )

    assert ran.code == 0
    assert ran.json["targets"]["cpu"]["in_float_for_the_budget"]
    assert ran.json["drop_points"] <= 1
    sensitivities = json.loads(open_bundle(tmp_path / "loud-1.0.0.defect").read("sensitivity.json"))
    assert "cpu" in json.dumps(sensitivities)


def test_what_ruins_naive_int8_is_healed_without_labels(parts: Path, loud_model: Path, tmp_path: Path) -> None:
    """One channel is 3,000 times as loud as the others: equalization makes one scale fit them all."""
    ran = run_build(tmp_path, "--model", loud_model, "--data", parts, "--calib", parts, "--json")

    assert ran.code == 0
    assert ran.json["equalization"] > 0
    assert ran.json["drop_points"] <= 3


def test_labels_are_the_recipes_classes_in_the_models_order(tmp_path: Path) -> None:
    """Outputs are not in the order of the alphabet; a loss judged by wrong labels would decide the gate."""
    names = ("z_good", "b_scratch", "a_spot")
    data = write_parts(tmp_path / "data", SPLITS)
    table = data / "splits.csv"
    text = table.read_text(encoding="utf-8")
    for old, new in zip(CLASSES, names, strict=True):
        text = text.replace(f",{old},", f",{new},")
    table.write_text(text, encoding="utf-8")
    path = write_model(tmp_path / "m.onnx", with_classes=False)
    classes = tuple(ClassRecipe(name=name, severity="major") for name in names)

    found = build(gather(Recipe(model=path, data=data, calib=data, out=tmp_path / "a.defect", classes=classes)))

    for target, kind in (("cpu", "cpu"), ("trt", "fp32")):
        accuracy = found.fitted[target].loss.accuracy  # type: ignore[index]
        assert accuracy == pytest.approx(found.cards[kind].accuracy, abs=0.03)


def test_a_recipe_for_tensorrt_alone_keeps_the_cpus_graph(parts: Path, model: Path, tmp_path: Path) -> None:
    """Every device can fall back to its CPU; the template says so."""
    recipe = "quantize: {cpu_graph: int8}\ntargets: [trt]\n"

    ran = run_build(tmp_path, "--model", model, "--data", parts, "--calib", parts, "--json", recipe=recipe)

    assert ran.code == 0
    assert set(ran.json["targets"]) == {"cpu", "trt"}


def test_black_calibration_pictures_do_not_end_the_build_but_are_said(parts: Path, model: Path, tmp_path: Path) -> None:
    """Tensors that are always 0 exist in bought models too; pictures that are all alike are a mistake worth a word."""
    (tmp_path / "black").mkdir()
    for i in range(10):
        cv2.imwrite(str(tmp_path / "black" / f"{i}.png"), np.zeros((32, 32, 3), np.uint8))

    ran = run_build(tmp_path, "--model", model, "--data", parts, "--calib", tmp_path / "black", "--json")

    assert ran.code == 0
    assert any("the same picture" in warning for warning in ran.json["warnings"])
    assert any("dB" in warning for warning in ran.json["warnings"])


def test_a_tensor_name_that_no_cache_can_hold_costs_the_cache_alone(parts: Path, tmp_path: Path) -> None:
    """A name must not throw away minutes of work."""
    path = write_model(tmp_path / "m.onnx")
    named = onnx.load(path)
    for node in named.graph.node:
        for names in (node.input, node.output):
            for slot, name in enumerate(names):
                if name == "r1":
                    names[slot] = "r: 1"
    onnx.save(named, path)

    ran = run_build(tmp_path, "--model", path, "--data", parts, "--calib", parts, "--json")

    assert ran.code == 0
    assert any("calib.cache" in warning for warning in ran.json["warnings"])


def test_weights_that_are_no_numbers_are_named(parts: Path, tmp_path: Path) -> None:
    """Not blamed on the preprocessing."""
    path = write_model(tmp_path / "m.onnx")
    broken = onnx.load(path)
    weight = next(tensor for tensor in broken.graph.initializer if tensor.name == "second")
    value = onnx.numpy_helper.to_array(weight).copy()
    value.flat[0] = np.nan
    weight.CopyFrom(onnx.numpy_helper.from_array(value, "second"))
    onnx.save(broken, path)

    ran = run_build(tmp_path, "--model", path, "--data", parts, "--calib", parts)

    assert ran.code == 2
    assert "second: holds numbers that are not finite" in ran.err


def test_without_a_budget_no_gate_is_set(parts: Path, loud_model: Path, tmp_path: Path) -> None:
    """A gate that nobody asked for would stop a build for a reason that nobody knows."""
    recipe = Recipe(model=loud_model, data=parts, calib=parts, out=tmp_path / "a.defect", quantize=INT8)

    assert build(gather(recipe))


def test_the_recipe_may_insist_on_a_graph(report: BuildReport, parts: Path, model: Path, tmp_path: Path) -> None:
    """The device may have another CPU than the workstation that measures."""
    quantize = QuantizeRecipe(cpu_graph="fp32")

    other = build(gather(Recipe(model=model, data=parts, calib=parts, out=tmp_path / "a.defect", quantize=quantize)))

    assert (report.bundle.manifest.cpu_graph, other.bundle.manifest.cpu_graph) == ("cpu", "fp32")
    assert "the recipe says so" in report.cpu_graph_why
    assert "the recipe says so" in other.cpu_graph_why


def test_the_cpu_runs_int8_only_where_it_is_faster(parts: Path, model: Path, tmp_path: Path) -> None:
    """Slower and less exact would be a bad bargain; whichever way it falls, the reason must be the measurement."""
    found = build(gather(Recipe(model=model, data=parts, calib=parts, out=tmp_path / "a.defect")))

    assert found.bundle.manifest.cpu_graph == ("cpu" if found.speedup >= 1.1 else "fp32")
    assert f"{found.speedup:.2f} times as fast" in found.cpu_graph_why


def test_a_val_image_that_cannot_be_judged_counts_as_wrong_and_is_named(model: Path, tmp_path: Path) -> None:
    """Leaving it out would make the accuracy better than it is."""
    data = write_parts(tmp_path / "data", SPLITS)
    (data / "images" / "val_ok_003.png").write_bytes(b"")

    found = build(gather(Recipe(model=model, data=data, calib=data, out=tmp_path / "a.defect", quantize=INT8)))

    assert len(found.cards["fp32"].unjudged) == 1
    assert found.cards["fp32"].accuracy <= 35 / 36
    assert any("images/val_ok_003.png" in warning for warning in found.warnings)
    assert all(golden.file for golden in found.bundle.goldens())


def test_limits_come_from_the_recipe(parts: Path, model: Path) -> None:
    """The plant decides what goes to review."""
    policy = PolicyRecipe(defect_above=0.8, review_above=0.1)

    found = draft_manifest(gather(Recipe(model=model, data=parts, calib=parts, policy=policy))).policy

    assert (found.defect_above, found.review_above) == (0.8, 0.1)


def test_the_command_works_with_the_recipe_alone(parts: Path, model: Path, tmp_path: Path) -> None:
    """`defect-opt build --int8 --calib DIR`: everything else stands in defect-opt.yaml."""
    recipe = f"name: line3\nversion: 1.2.0\nmodel: {model}\ndata: {parts}\nquantize: {{cpu_graph: int8}}\n"

    ran = run_build(tmp_path, "--calib", parts, recipe=recipe)

    assert ran.code == 0
    assert (tmp_path / "line3-1.2.0.defect").is_file()
    for word in ("accuracy on 36 val", "latency, median", "times smaller", "a CPU runs: INT8", "gate: passed"):
        assert word in ran.out
    assert "Next: defect-opt evaluate line3-1.2.0.defect" in ran.out


def test_json_is_one_document_with_every_number_and_lies_beside_the_bundle(
    parts: Path, model: Path, tmp_path: Path
) -> None:
    """Other programs read it; the measured latency has no other place."""
    ran = run_build(tmp_path, "--model", model, "--data", parts, "--calib", parts, "--out", "p.defect", "--json")

    assert ran.code == 0
    document = ran.json
    assert json.loads((tmp_path / "p.build.json").read_text(encoding="utf-8")) == document
    assert set(document) >= {
        "bundle",
        "sha256",
        "metrics",
        "drop_points",
        "size_bytes",
        "latency_ms",
        "speedup",
        "float_layers",
        "escape_bound",
        "seconds",
        "cpu_graph",
        "gate",
        "warnings",
    }
    assert set(document["latency_ms"]) == {"fp32", "int8"}
    assert set(document["metrics"]) == {"fp32", "int8", "trt"}
    assert set(document["size_bytes"]) == {"fp32", "int8", "trt", "trt16"}
    assert document["metrics"]["int8"]["recall"].keys() == set(CLASSES)
    assert document["escape_bound"] is None
    assert any("escape_bound" in note for note in document["notes"])
    assert [layer["name"] for layer in document["float_layers"]] == ["cam_conv", "linear"]
