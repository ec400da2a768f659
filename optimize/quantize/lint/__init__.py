"""What would make a graph slow or wrong in INT8, said before it is quantized; and what is wrong with a Q/DQ graph.

`lint` takes any float ONNX graph, also one from elsewhere, or a Q/DQ graph made by any tool. Nothing is run and nothing
is calibrated. Rules read the operators, shapes and weights; where a rule predicts what ONNX Runtime or TensorRT will
do, its module says from where that is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from optimize.quantize.lint import activations, borders, qdq_rules, shapes, structure, weights
from optimize.quantize.lint.finding import SEVERITIES, TARGETS, Finding, Severity, Target
from optimize.quantize.lint.network import Network

if TYPE_CHECKING:
    import onnx

__all__ = ["SEVERITIES", "TARGETS", "Finding", "Severity", "Target", "lint"]

Rule = Callable[[Network], Iterable[Finding]]

ALWAYS: tuple[Rule, ...] = (weights.non_finite, shapes.dynamic_shapes, shapes.opset)
FLOAT: tuple[Rule, ...] = (
    structure.head_concats,
    weights.unequal_channels,
    activations.slow_activations,
    borders.borders,
    structure.batch_norms,
    structure.concats,
    structure.squeezes,
    structure.resizes,
    structure.float_operators,
    shapes.widths,
    shapes.single_rows,
)
QUANTIZED: tuple[Rule, ...] = (
    qdq_rules.types,
    qdq_rules.scales,
    qdq_rules.weights,
    qdq_rules.activations,
    qdq_rules.loose_ends,
    qdq_rules.halves,
    qdq_rules.residuals,
    qdq_rules.saturation,
)


def lint(model: onnx.ModelProto, *, targets: tuple[Target, ...] = TARGETS) -> tuple[Finding, ...]:
    """Look for what would make a graph slow or wrong.

    Args:
        model: a float graph, or a Q/DQ graph for one of the targets.
        targets: which targets matter. A Q/DQ graph is made for one; for the other it is wrong by design.

    Returns:
        Findings by severity, errors first; within one severity by rule, and in graph order.
    """
    network = Network(model)
    rules = ALWAYS + (QUANTIZED if network.is_quantized else FLOAT)
    found = [f for rule in rules for f in rule(network) if f.target == "both" or f.target in targets]
    return tuple(sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)))
