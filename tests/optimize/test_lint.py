"""The lint: each rule finds the graph that was planted for it, and says nothing about its clean twin."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from optimize.quantize.lint import Finding, Severity, Target, lint
from tests.kit.commands import run_command
from tests.kit.qdq_models import MISTAKES, initializer, qdq_net, set_initializer

COMMAND = "optimize.cli.inspect"
CHANNELS = 32


class Net:
    """Nodes one behind the other; `here` is the last tensor."""

    def __init__(self, channels: int = CHANNELS, side: int | str = 8, batch: int | str = 1, opset: int = 17) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, NDArray[Any]] = {}
        self.shape: list[int | str] = [batch, channels, side, side]
        self.opset = opset
        self.here = "x"
        self.rng = np.random.default_rng(1)

    def op(self, kind: str, *more: str, name: str = "", data: str | None = None, **attributes: Any) -> str:
        name = name or f"{kind.lower()}{len(self.nodes)}"
        inputs = [self.here if data is None else data, *more]
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        self.here = name
        return name

    def constant(self, name: str, value: Any) -> str:
        self.constants[name] = np.asarray(value)
        return name

    def conv(
        self,
        name: str,
        outputs: int = CHANNELS,
        inputs: int = CHANNELS,
        kernel: int = 3,
        group: int = 1,
        data: str | None = None,
        weights: NDArray[Any] | None = None,
    ) -> str:
        value = self.rng.normal(0, 0.1, (outputs, inputs // group, kernel, kernel)) if weights is None else weights
        self.constant(f"{name}.weight", value.astype(np.float32))
        return self.op(
            "Conv",
            f"{name}.weight",
            name=name,
            data=data,
            group=group,
            pads=[kernel // 2] * 4,
            kernel_shape=[kernel] * 2,
        )

    def relu(self) -> str:
        return self.op("Relu")

    def pool(self) -> str:
        return self.op("GlobalAveragePool", name="pool")

    def model(self, *outputs: str) -> onnx.ModelProto:
        names = outputs or (self.here,)
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        return onnx.shape_inference.infer_shapes(model)


def found(model: onnx.ModelProto, rule: str, *targets: Target) -> list[Finding]:
    return [f for f in lint(model, targets=targets or ("cpu", "trt")) if f.rule == rule]


def rules(model: onnx.ModelProto, *severities: Severity, targets: tuple[Target, ...] = ("cpu", "trt")) -> set[str]:
    return {f.rule for f in lint(model, targets=targets) if f.severity in (severities or ("error", "warning"))}


def between_convs(add: Callable[[Net], object], **options: Any) -> onnx.ModelProto:
    """conv1, relu, what `add` adds, conv2, pool."""
    net = Net(**options)
    net.conv("conv1")
    net.relu()
    add(net)
    net.conv("conv2")
    net.pool()
    return net.model()


CLEAN = between_convs(Net.relu)


def test_a_clean_network_has_no_errors_and_no_warnings() -> None:
    """Else nobody reads them."""
    assert rules(CLEAN) == set()


def silu(net: Net) -> None:
    before = net.here
    gate = net.op("Sigmoid", name="gate")
    net.op("Mul", gate, data=before, name="silu")


def hard_swish_by_hand(net: Net) -> None:
    before = net.here
    net.op("Add", net.constant("three", np.float32(3)), name="plus")
    net.op("Clip", net.constant("low", np.float32(0)), net.constant("high", np.float32(6)), name="clip")
    net.op("Mul", before, name="mul")
    net.op("Div", net.constant("six", np.float32(6)), name="div")


def hard_swish_in_two(net: Net) -> None:
    before = net.here
    net.op("Mul", net.op("HardSigmoid", name="gate"), data=before, name="swish")


def mish(net: Net) -> None:
    before = net.here
    net.op("Softplus", name="plus")
    net.op("Tanh", name="tanh")
    net.op("Mul", before, name="mish")


def gelu(net: Net) -> None:
    before = net.here
    net.op("Div", net.constant("root", np.float32(1.4142)), name="div")
    net.op("Erf", name="erf")
    net.op("Add", net.constant("one", np.float32(1)), name="add")
    net.op("Mul", before, name="gelu")


@pytest.mark.parametrize(
    ("add", "layer", "kind"),
    [
        (silu, "silu", "SiLU"),
        (hard_swish_in_two, "swish", "HardSwish"),
        (hard_swish_by_hand, "mul", "HardSwish"),
        (lambda net: net.op("HardSwish", name="h"), "h", "HardSwish"),
        (lambda net: net.op("HardSigmoid", name="h"), "h", "HardSigmoid"),
        (mish, "mish", "Mish"),
        (gelu, "erf", "GELU"),
        (lambda net: net.op("Softplus", name="s"), "s", "Softplus"),
    ],
)
def test_an_activation_without_an_int8_kernel_is_named_once(
    add: Callable[[Net], object], layer: str, kind: str
) -> None:
    """However the exporter wrote it; the remedy is a ReLU."""
    findings = found(between_convs(add), "no-int8-activation")

    assert [(f.layer, f.target, f.severity) for f in findings] == [(layer, "cpu", "warning")]
    assert kind in findings[0].message
    assert "ReLU" in findings[0].remedy or "Sigmoid" in findings[0].remedy
    assert not found(between_convs(add), "no-int8-activation", "trt")


@pytest.mark.parametrize(
    "add",
    [
        Net.relu,
        lambda net: net.op("Clip", net.constant("low", np.float32(0)), net.constant("high", np.float32(6))),
        lambda net: net.op("LeakyRelu"),
        lambda net: net.op("Sigmoid"),
    ],
)
def test_an_activation_with_an_int8_kernel_is_fine(add: Callable[[Net], object]) -> None:
    """ReLU6 above all, which is the remedy."""
    assert rules(between_convs(add)) == set()


def test_an_activation_behind_the_last_convolution_costs_nothing() -> None:
    """The head stays float anyway."""
    net = Net()
    net.conv("conv1")
    net.pool()
    net.op("HardSwish")

    assert not found(net.model(), "no-int8-activation")


@pytest.mark.parametrize(
    ("widths", "expected"),
    [
        ((3, 24, 32), {}),
        ((3, 20, 32), {"conv0": "warning", "conv1": "warning"}),
        ((3, 32, 33), {"conv1": "warning"}),
        ((3, 8, 8), {"conv1": "note"}),
        ((3, 8, 16), {}),
    ],
)
def test_widths_that_are_no_multiples_of_8_are_named(widths: tuple[int, ...], expected: dict[str, str]) -> None:
    """A camera's 3 channels can't be chosen; all others can. Two narrow sides gain nothing."""
    net = Net(channels=3)
    for i, (before, behind) in enumerate(itertools.pairwise(widths)):
        net.conv(f"conv{i}", outputs=behind, inputs=before)
        net.relu()
    net.pool()
    model = net.model()

    findings = [*found(model, "width-not-multiple-of-8"), *found(model, "narrow-conv")]

    assert {f.layer: f.severity for f in findings} == expected
    assert {f.target for f in findings} <= {"trt"}


def test_the_number_of_classes_is_no_width_to_complain_about() -> None:
    """Six classes are six classes."""
    net = Net()
    net.conv("conv1")
    net.relu()
    net.conv("scores", outputs=6, kernel=1)
    net.op("Sigmoid")

    assert not found(net.model(), "width-not-multiple-of-8")


@pytest.mark.parametrize(
    ("outputs", "kernel", "group", "expected"),
    [
        (32, 3, 32, {"depthwise-no-gain"}),
        (32, 3, 4, set()),
        (32, 3, 1, set()),
        (32, 1, 4, {"grouped-conv"}),
        (36, 3, 4, {"grouped-conv"}),
    ],
)
def test_grouped_convolutions_have_limits_on_a_gpu(outputs: int, kernel: int, group: int, expected: set[str]) -> None:
    """From the rules by which NVIDIA's own tool leaves convolutions in float."""
    net = Net()
    net.conv("conv1")
    net.relu()
    net.conv("grouped", outputs=outputs, kernel=kernel, group=group)
    net.relu()
    net.pool()

    names = {f.rule for f in lint(net.model()) if f.layer == "grouped"}

    assert names == expected


@pytest.mark.parametrize(
    ("options", "rule", "severity"),
    [
        ({"batch": "n"}, "dynamic-batch", "note"),
        ({"side": "s"}, "dynamic-shape", "warning"),
        ({"opset": 12}, "opset-too-old", "warning"),
        ({"opset": 21}, "opset-too-new", "warning"),
    ],
)
def test_shapes_and_versions_that_targets_do_not_take_are_named(
    options: dict[str, Any], rule: str, severity: str
) -> None:
    """Before a build of minutes ends in a foreign error."""
    findings = found(between_convs(Net.relu, **options), rule)

    assert [f.severity for f in findings] == [severity]
    assert not found(CLEAN, rule)


def batch_norm(net: Net) -> None:
    values = [net.constant(f"bn{i}", np.full(CHANNELS, 0.5, np.float32)) for i in range(4)]
    net.op("BatchNormalization", *values, name="bn")


def test_a_batch_norm_that_can_not_be_folded_is_named() -> None:
    """Behind a ReLU, or behind a convolution that something else reads too."""
    shared, clean = Net(), Net()
    for net in (shared, clean):
        conv = net.conv("conv1")
        batch_norm(net)
        if net is shared:
            net.op("Add", conv, name="add")
        net.relu()
        net.conv("conv2")
        net.pool()

    assert [f.layer for f in found(between_convs(batch_norm), "batch-norm-not-folded")] == ["bn"]
    assert "conv1 before it has another reader" in found(shared.model(), "batch-norm-not-folded")[0].message
    assert rules(clean.model()) == set()


def squeeze_excite(net: Net) -> None:
    before = net.here
    net.pool()
    net.conv("squeeze", kernel=1)
    net.relu()
    net.conv("excite", kernel=1)
    net.op("Sigmoid", name="gate")
    net.op("Mul", before, name="scaled")


def test_squeeze_and_excite_is_told_about_and_is_no_island() -> None:
    """It is treated differently on the two targets, and right on both."""
    model = between_convs(squeeze_excite)

    assert [(f.layer, f.severity) for f in found(model, "squeeze-excite")] == [("gate", "note")]
    assert rules(model) == set()
    assert not found(CLEAN, "squeeze-excite")


def two_branches(net: Net) -> None:
    before = net.here
    left = net.conv("left", outputs=16)
    net.conv("right", outputs=16, data=before)
    net.op("Concat", left, name="concat", axis=1)


def pooled_branches(net: Net) -> None:
    before = net.conv("half", outputs=16)
    net.op("MaxPool", kernel_shape=[3, 3], pads=[1] * 4)
    net.op("Concat", before, name="concat", axis=1)


def test_a_concat_of_different_ranges_is_told_about() -> None:
    """Unless all inputs are one tensor and its maxima, as in SPP blocks: those share a range."""
    assert [f.layer for f in found(between_convs(two_branches), "concat-rescale")] == ["concat"]
    assert not found(between_convs(pooled_branches), "concat-rescale")


def head(*, is_mixed: bool) -> onnx.ModelProto:
    """A small detector: boxes in pixels and scores in one output, or both scores."""
    net = Net()
    net.conv("conv1")
    body = net.relu()
    net.conv("boxes", outputs=8, kernel=1)
    if is_mixed:
        net.op("Mul", net.constant("stride", np.float32(8)), name="pixels")
    else:
        net.op("Sigmoid", name="pixels")
    net.conv("scores", outputs=8, kernel=1, data=body)
    net.op("Sigmoid", name="chances")
    net.op("Concat", "pixels", name="joined", axis=1)
    net.op("Reshape", net.constant("flat", np.array([1, 16, -1], np.int64)))
    return net.model()


def test_boxes_and_scores_in_one_concat_are_named() -> None:
    """Quantized, every score would be 0."""
    findings = found(head(is_mixed=True), "head-mixed-scales")

    assert [(f.layer, f.severity, f.target) for f in findings] == [("joined", "warning", "both")]
    assert not found(head(is_mixed=False), "head-mixed-scales")


def test_float_operators_between_int8_layers_are_counted_as_borders() -> None:
    """Where, and how many: the question that users of TensorRT ask most."""
    model = between_convs(lambda net: net.op("InstanceNormalization", *norm(net), name="norm"))

    islands = found(model, "float-island")

    assert [(f.layer, f.target) for f in islands] == [("norm", "cpu"), ("norm", "trt")]
    assert "2 borders with INT8 (behind relu1; before conv2), and about 2 transposes" in islands[0].message
    assert "transposes" not in islands[1].message
    assert "4 reformats" in found(model, "int8-borders", "trt")[0].message
    assert "2 reformats" in found(CLEAN, "int8-borders", "trt")[0].message
    assert not found(CLEAN, "float-island")


@pytest.mark.parametrize(("mode", "expected"), [("nearest", []), ("linear", ["cpu"])])
def test_resizing_is_an_island_where_onnxruntime_computes_it_in_float(mode: str, expected: list[str]) -> None:
    """It drops the Q/DQ pairs around nearest, and keeps them around linear."""
    scales = np.array([1, 1, 2, 2], np.float32)
    model = between_convs(lambda net: net.op("Resize", "", net.constant("s", scales), name="up", mode=mode))

    assert [f.target for f in found(model, "float-island")] == expected


def norm(net: Net) -> list[str]:
    return [net.constant(name, np.ones(CHANNELS, np.float32)) for name in ("gain", "offset")]


@pytest.mark.parametrize(
    ("add", "rule", "layer"),
    [
        (lambda net: net.op("InstanceNormalization", *norm(net), name="norm"), "norm-stays-float", "norm"),
        (
            lambda net: net.op(
                "Resize", "", net.constant("scales", np.array([1, 1, 2, 2], np.float32)), name="up", mode="linear"
            ),
            "resize-mode",
            "up",
        ),
        (
            lambda net: net.op(
                "ConvTranspose", net.constant("w", np.ones((CHANNELS, CHANNELS, 2, 2), np.float32) / 99), name="up"
            ),
            "conv-transpose",
            "up",
        ),
        (lambda net: net.op("MatMul", net.here, name="mm"), "attention-matmul", "mm"),
    ],
)
def test_operators_that_stay_float_are_told_about(add: Callable[[Net], object], rule: str, layer: str) -> None:
    """A note: they may be worth their price."""
    assert [(f.layer, f.severity) for f in found(between_convs(add), rule)] == [(layer, "note")]
    assert not found(CLEAN, rule)


def test_nearest_resize_is_fine() -> None:
    """It passes INT8 values on."""
    scales = np.array([1, 1, 2, 2], np.float32)
    model = between_convs(lambda net: net.op("Resize", "", net.constant("s", scales), mode="nearest"))

    assert not found(model, "resize-mode")
    assert rules(model) == set()


def test_upsample_is_named_for_it_can_not_be_converted() -> None:
    """Opset 9 exports have it."""
    scales = np.array([1, 1, 2, 2], np.float32)
    model = between_convs(lambda net: net.op("Upsample", net.constant("s", scales), name="up"), opset=9)

    assert [f.layer for f in found(model, "upsample-deprecated")] == ["up"]


def weights(**changes: float) -> NDArray[Any]:
    value = np.random.default_rng(2).uniform(0.05, 0.1, (CHANNELS, CHANNELS, 3, 3))
    for channel, factor in changes.items():
        value[int(channel.removeprefix("c"))] *= factor
    return value


@pytest.mark.parametrize(
    ("changes", "rule", "severity", "says"),
    [
        ({"c3": 0.0, "c7": 1e-7}, "dead-channel", "warning", "2 output channels have no weights to speak of (3, 7)"),
        ({"c3": 1e-3}, "channel-disparity", "note", "times its smallest's"),
        ({"c3": float("nan")}, "non-finite-weights", "error", "288 of the 9216 values of conv1.weight"),
        ({"c3": float("inf")}, "non-finite-weights", "error", "no range can be found"),
    ],
)
def test_weights_that_quantization_can_not_take_are_named(
    changes: dict[str, float], rule: str, severity: str, says: str
) -> None:
    """A dead channel overflows an int32 bias; a small one vanishes beside a large one."""
    net, clean = Net(), Net()
    net.conv("conv1", weights=weights(**changes))
    clean.conv("conv1", weights=weights(c3=0.5))

    (finding,) = found(net.model(), rule)

    assert (finding.layer, finding.severity, finding.target) == ("conv1", severity, "both")
    assert says in finding.message
    assert rules(clean.model(), "error", "warning") | {"channel-disparity"} == {"channel-disparity"}
    assert not found(clean.model(), rule)


def test_a_product_with_one_row_is_told_about() -> None:
    """It uses no tensor core."""
    models = {}
    for rows in (1, 16):
        net = Net()
        net.shape = [rows, 64]
        net.op("Gemm", net.constant("w", np.ones((64, 64), np.float32)), name="linear")
        models[rows] = net.model()

    assert [f.layer for f in found(models[1], "matmul-one-row")] == ["linear"]
    assert not found(models[16], "matmul-one-row")


def test_a_good_qdq_graph_for_tensorrt_has_no_errors_and_no_warnings() -> None:
    """The twin of all planted mistakes."""
    assert lint(qdq_net(), targets=("trt",)) == ()


@pytest.mark.parametrize("name", MISTAKES)
def test_planted_mistakes_are_found_before_tensorrt_sees_them(name: str) -> None:
    """TensorRT refuses some with a riddle, and takes others without a word and computes in float."""
    model = qdq_net()
    MISTAKES[name].plant(model)

    findings = lint(model, targets=("trt",))

    assert (MISTAKES[name].rule, MISTAKES[name].severity) in {(f.rule, f.severity) for f in findings}
    assert all(f.remedy and f.layer for f in findings)


@pytest.mark.parametrize("name", ["zero point of an activation", "U8 around 128", "int32 bias", "tiny scale"])
def test_what_only_tensorrt_refuses_is_no_finding_for_cpus(name: str) -> None:
    """Each graph is judged for the target it was made for."""
    model = qdq_net()
    MISTAKES[name].plant(model)

    assert not [f for f in lint(model, targets=("cpu",)) if f.severity == "error"]


def as_cpu_graph(*, largest: int) -> onnx.ModelProto:
    """The Q/DQ network with U8 activations, and weights up to `largest`."""
    model = qdq_net()
    for name in ("x", "relu1", "skip", "relu2", "relu3"):
        set_initializer(model, f"{name}.zero", np.uint8(0))
    for name in ("conv1", "conv2", "pointwise"):
        values = initializer(model, f"{name}.weight.int8").clip(-largest, largest)
        set_initializer(model, f"{name}.weight.int8", values)
    return model


def test_signed_activations_are_slow_on_cpus() -> None:
    """The TensorRT graph in ONNX Runtime is 0.3 to 0.8 times as fast as float."""
    (finding,) = found(qdq_net(), "symmetric-s8", "cpu")

    assert finding.message.startswith("5 of 5 activations are S8")
    assert not found(as_cpu_graph(largest=127), "symmetric-s8", "cpu")


def test_pairs_of_weights_that_saturate_without_vnni_are_counted() -> None:
    """7-bit weights never do: two of them add up to 128 at most."""
    assert {f.layer for f in found(as_cpu_graph(largest=127), "avx2-saturation")} == {"conv1", "conv2", "pointwise"}
    assert lint(as_cpu_graph(largest=64), targets=("cpu",)) == ()


def test_one_scale_for_all_weights_is_a_note_on_cpus_and_worse_for_depthwise_convolutions() -> None:
    """It costs accuracy, not speed."""
    model = as_cpu_graph(largest=64)
    MISTAKES["one convolution per tensor"].plant(model)
    MISTAKES["depthwise per tensor"].plant(model)

    found_on_cpu = {f.layer: f.severity for f in found(model, "per-tensor-weights", "cpu")}

    assert found_on_cpu == {"conv2": "note", "depthwise": "warning"}


def test_the_command_says_what_is_wrong_and_fails_on_errors(tmp_path: Path) -> None:
    """For a script before the build."""
    model = qdq_net()
    MISTAKES["int32 bias"].plant(model)
    onnx.save(model, tmp_path / "m.onnx")

    ran = run_command(COMMAND, tmp_path / "m.onnx", "--lint", "--target", "trt")
    document = run_command(COMMAND, tmp_path / "m.onnx", "--lint", "--target", "trt", "--json").json
    for_cpu = run_command(COMMAND, tmp_path / "m.onnx", "--lint", "--target", "cpu", "--json")

    assert ran.code == 1
    assert "1 error, 0 warnings, 0 notes" in ran.out
    assert "int32-bias (trt)\n           conv2: its bias bias.int32" in ran.out
    assert "Try: leave biases in float" in ran.out
    assert (set(document), document["errors"], document["warnings"]) == (
        {"file", "findings", "errors", "warnings"},
        1,
        0,
    )
    assert set(document["findings"][0]) == {"graph", "rule", "severity", "target", "layer", "message", "remedy"}
    assert (for_cpu.code, for_cpu.json["errors"]) == (0, 0)


def test_the_same_rule_on_many_layers_is_said_once(tmp_path: Path) -> None:
    """Thirty activations are one paragraph."""
    net = Net()
    for i in range(9):
        net.conv(f"conv{i}")
        net.op("HardSwish", name=f"swish{i}")
    net.conv("last")
    onnx.save(net.model(), tmp_path / "m.onnx")

    text = run_command(COMMAND, tmp_path / "m.onnx", "--lint", "--target", "cpu").out

    assert "no-int8-activation (cpu), 9 times" in text
    assert "also swish1, swish2, swish3, swish4, swish5, swish6, and 2 more" in text


@pytest.mark.parametrize("options", [{"opset": 11}, {"batch": "n", "side": "s"}, {"opset": 21}])
def test_models_from_elsewhere_are_opened(tmp_path: Path, options: dict[str, Any]) -> None:
    """Float NCHW, old and new operators, dynamic sides: the lint is there to say what is to be done about them."""
    onnx.save(between_convs(Net.relu, **options), tmp_path / "m.onnx")

    ran = run_command(COMMAND, tmp_path / "m.onnx", "--lint", "--json")

    assert ran.code == 0
    assert ran.json["findings"]


@pytest.mark.parametrize("targets", ["gpu", "", "cpu,", "cpu,gpu"])
def test_a_target_that_is_none_is_refused(tmp_path: Path, targets: str) -> None:
    """One sentence."""
    ran = run_command(COMMAND, tmp_path / "m.onnx", "--lint", "--target", targets)

    assert ran.code == 2
    assert "expected cpu, trt or cpu,trt" in ran.err
