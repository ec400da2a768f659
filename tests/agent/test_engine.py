"""ONNX Runtime behind its door: what does not fit the manifest is refused at the start, in words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto

from agent.bundle import ClassSpec, InputSpec, Outputs
from agent.config import EngineConfig
from agent.engines import Engine, open_engine
from agent.engines.onnxrt import OnnxRuntimeEngine
from agent.errors import ConfigError, EngineError
from tests.kit.bundles import make_bundle
from tests.kit.models import classifier, constant_classifier

SPEC = InputSpec(width_px=32, height_px=32)
OUTPUTS = Outputs(logits="logits", embedding="embedding", cam="cam")


def engine(graph: bytes, *, spec: InputSpec = SPEC, outputs: Outputs = OUTPUTS, threads: int = 1) -> OnnxRuntimeEngine:
    return OnnxRuntimeEngine(graph, threads=threads, label="fp32", spec=spec, outputs=outputs)


def tensor(seed: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        (
            classifier(width=64, height=32),
            r"input image is \[1, 32, 64, 3\] tensor\(uint8\), expected \[1, 32, 32, 3\]",
        ),
        (classifier(input_type=TensorProto.FLOAT), r"tensor\(float\), expected \[1, 32, 32, 3\] tensor\(uint8\)"),
        (classifier(input_name="data"), r"inputs are \['data'\], expected \['image'\]"),
        (classifier(with_cam=False), r"no output cam \(cam\); it has \['embedding', 'logits'\]"),
        (constant_classifier((0.0, 1.0)), "no output embedding"),
    ],
)
def test_a_model_that_does_not_fit_the_manifest_is_refused(graph: bytes, words: str) -> None:
    """What it has and what is expected, before the first part."""
    with pytest.raises(EngineError, match=words) as caught:
        engine(graph)

    assert "rebuild the bundle" in str(caught.value.hint)


@pytest.mark.parametrize("graph", [b"", b"not a model", classifier()[:-200], classifier()[:40], bytes(1000)])
def test_a_model_that_is_broken_is_an_engine_error(graph: bytes) -> None:
    """onnxruntime's own exceptions stay behind the door."""
    with pytest.raises(EngineError, match="can't be loaded by onnxruntime"):
        engine(graph)


def test_a_class_too_many_in_the_manifest_is_noticed_at_the_start(tmp_path: Path) -> None:
    """The trial run finds it; the first part would have been too late."""
    classes = tuple(ClassSpec(name=name, severity="minor") for name in "abcd")
    bundle = make_bundle(tmp_path, classes=classes)

    with pytest.raises(EngineError, match=r"output logits has shape \(1, 3\), expected \(1, 4\)"):
        open_engine(bundle, EngineConfig())


def test_a_map_that_is_none_is_noticed_at_the_start(tmp_path: Path) -> None:
    """Roles mixed up: the embedding named as the map."""
    bundle = make_bundle(tmp_path, outputs=Outputs(logits="logits", cam="embedding"))

    with pytest.raises(EngineError, match=r"output cam has shape \(1, 6\), expected \(1, 3, h, w\)"):
        open_engine(bundle, EngineConfig())


def test_a_graph_that_the_bundle_has_not_is_the_users_mistake(tmp_path: Path) -> None:
    """`engine.graph: cpu` with a float-only bundle."""
    bundle = make_bundle(tmp_path, graphs={"fp32": "model.fp32.onnx"}, cpu_graph="fp32")

    with pytest.raises(ConfigError, match=r"engine\.graph: got cpu, .* has: fp32"):
        open_engine(bundle, EngineConfig(graph="cpu"))


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((1, 3, 32, 32), dtype=np.uint8),
        np.zeros((32, 32, 3), dtype=np.uint8),
        np.zeros((1, 32, 32, 3), dtype=np.float32),
    ],
)
def test_another_tensor_is_an_engine_error(wrong: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
    """Shape and dtype, got and expected."""
    with pytest.raises(EngineError, match=r"expected \(1, 32, 32, 3\) uint8"):
        engine(classifier()).infer(wrong)


def test_a_closed_engine_says_so() -> None:
    """And may be closed twice, as shutting down is often reached by two ways."""
    opened = engine(classifier())
    opened.close()
    opened.close()

    with pytest.raises(EngineError, match="is closed"):
        opened.infer(tensor())


def test_the_graph_is_the_one_that_was_asked_for(tmp_path: Path) -> None:
    """`auto` follows the bundle, `fp32` and `cpu` insist, and every verdict says which it was."""
    files = {"model.fp32.onnx": classifier(), "model.cpu.onnx": constant_classifier((1.0, 2.0, 3.0))}
    slow_int8 = make_bundle(tmp_path / "a.defect", files=files, cpu_graph="fp32", outputs=Outputs(logits="logits"))
    quick_int8 = make_bundle(tmp_path / "b.defect", files=files, cpu_graph="cpu", outputs=Outputs(logits="logits"))

    def precision(bundle: object, graph: str) -> str:
        opened = open_engine(bundle, EngineConfig(graph=graph))  # type: ignore[arg-type]
        constant = opened.infer(tensor())["logits"].tolist() == [[1.0, 2.0, 3.0]]
        assert constant == ("int8" in opened.name)
        return opened.name.split()[3].rstrip(",")

    assert precision(slow_int8, "auto") == "fp32"
    assert precision(quick_int8, "auto") == "int8"
    assert precision(slow_int8, "cpu") == "int8"
    assert precision(quick_int8, "fp32") == "fp32"


def test_the_name_tells_runtime_precision_and_threads(tmp_path: Path) -> None:
    """It stands in every verdict, for the day when two stations disagree."""
    bundle = make_bundle(tmp_path)
    one: Engine = open_engine(bundle, EngineConfig())
    two: Engine = open_engine(bundle, EngineConfig(threads=2, graph="fp32", kind="onnxruntime"))

    assert one.name == f"onnxruntime {onnxruntime.__version__} CPU int8, 1 thread"
    assert two.name == f"onnxruntime {onnxruntime.__version__} CPU fp32, 2 threads"
    assert one.kind == two.kind == "onnxruntime"


def test_outputs_come_by_role_as_the_runtime_gives_them() -> None:
    """Names in the graph are the builder's business; values are onnxruntime's, bit for bit."""
    session = onnxruntime.InferenceSession(classifier(), providers=["CPUExecutionProvider"])
    expected = dict(zip(["logits", "cam"], session.run(["logits", "cam"], {"image": tensor()}), strict=True))

    outputs = engine(classifier(), outputs=Outputs(logits="logits", cam="cam")).infer(tensor())

    assert outputs.keys() == {"logits", "cam"}
    for role, values in outputs.items():
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, expected[role])


def test_outputs_are_the_callers_own() -> None:
    """An inspection may be kept (its heatmap, its embedding) while the next part is inferred."""
    opened = engine(classifier())
    first = opened.infer(tensor(1))
    copies = {role: values.copy() for role, values in first.items()}
    opened.infer(tensor(2))

    for role, values in first.items():
        np.testing.assert_array_equal(values, copies[role])


def test_a_fixed_batch_may_be_symbolic() -> None:
    """Exporters leave the batch axis open; one picture at a time fits it."""
    import onnx

    model = onnx.load_from_string(classifier())
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"

    assert engine(model.SerializeToString()).infer(tensor())["logits"].shape == (1, 3)
