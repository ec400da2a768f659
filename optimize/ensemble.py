"""The networks of all folds as one: one ONNX, one input, the mean of what they say.

```text
image ─ normalization ┬ fold 1 ─ logits / T1 ┐
                      ├ …                    ├ mean ─ logits (1, C)      cam: the mean; embedding: one after the other
                      └ fold K ─ logits / TK ┘
```

Each fold's logits are divided by its own temperature first, fitted on the images it never saw: a fold that is too sure
of itself would outvote the others. What all folds share is computed once: the normalization, and the early layers
where they were frozen.

Every image outside test was trained on by all folds but one, so no figure on `val` says how good the ensemble is; the
cross-validation says how good one fold is, and the test split, once, how good the ensemble is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optimize.errors import ModelError
from optimize.quantize.graph import metadata_of
from optimize.quantize.interpret import session_of
from optimize.quantize.onnx_file import load_unchecked, onnx_library
from optimize.structure import stamp_structure

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

__all__ = ["OUT_OF_FOLD", "Ensemble", "cross_validation_of", "is_out_of_fold", "merge_folds"]

OUT_OF_FOLD = "out-of-fold"
"""Value of the metadata key `calibrated` in a model whose logits carry temperatures of images that it never saw."""

ROLES = ("logits", "embedding", "cam")
MAX_RELATIVE_DIFFERENCE = 1e-3
PARITY_PICTURES = 4


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ensemble:
    """One file that says what all folds say.

    Attributes:
        onnx: the file.
        sha256: of it.
        size_bytes: of it.
        members: how many networks it holds.
        temperatures: what each member's logits are divided by.
        shared: operators that the members share, computed once.
        nodes: operators in all.
        parity_max_relative: how far it is from the mean of its members, in parts of the largest value.
    """

    onnx: Path
    sha256: str
    size_bytes: int
    members: int
    temperatures: tuple[float, ...]
    shared: int
    nodes: int
    parity_max_relative: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self) | {"onnx": str(self.onnx), "temperatures": list(self.temperatures)}

    def lines(self) -> Iterator[str]:
        """For a person."""
        yield (
            f"ensemble of {self.members}: {self.onnx}  {self.size_bytes / 1e6:.2f} MB, sha256 {self.sha256[:16]}…; "
            f"it takes {self.members} times the time of one network on the device"
        )
        yield (
            "note: all folds but one were trained on each image of val, so val says nothing about the ensemble: "
            "judge it on test, once"
        )


def is_out_of_fold(model: onnx.ModelProto) -> bool:
    """Whether a model is an ensemble of folds, with temperatures from images that its members never saw."""
    return metadata_of(model).get("calibrated") == OUT_OF_FOLD


def cross_validation_of(model: onnx.ModelProto) -> dict[str, Any] | None:
    """What the cross-validation found that an ensemble is made of; None where a model does not say."""
    try:
        found = json.loads(metadata_of(model).get("cross_validation", ""), parse_constant=_no_number)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def merge_folds(
    members: Sequence[Path], out: Path, temperatures: Sequence[float], figures: Mapping[str, Any] | None = None
) -> Ensemble:
    """Write one ONNX that gives the mean of its members, and prove that it does.

    Args:
        members: at least two ONNX files with the same input and classes, as `train` writes them.
        out: the file to write, whole or not at all.
        temperatures: what each member's logits are divided by.
        figures: what the cross-validation found, plain values; they go along in the file, and into its bundles.

    Raises:
        ModelError: the members do not go together, the file can't be written, or computes something else.
    """
    from optimize.files import write_atomically

    models = [load_unchecked(path) for path in members]
    _check(members, models)
    merged = _Merged(models[0])
    values = [merged.add(f"fold{i}", model) for i, model in enumerate(models, start=1)]
    for role in [name for name in ROLES if all(name in found for found in values)]:
        merged.combine(role, [found[role] for found in values], temperatures)
    metadata = metadata_of(models[0])
    said = _said_of(len(models), metadata, temperatures)
    if figures is not None:
        said["cross_validation"] = json.dumps(dict(figures), sort_keys=True, ensure_ascii=False, allow_nan=False)
    proto = merged.model({**metadata, **said})
    data = proto.SerializeToString(deterministic=True)
    difference = _difference(data, models, temperatures)
    if not difference <= MAX_RELATIVE_DIFFERENCE:  # also refuses NaN
        raise ModelError(
            f"{out}: differs from the mean of its {len(models)} members by {difference:.2g} of the largest value, "
            f"expected at most {MAX_RELATIVE_DIFFERENCE:g}",
            hint="report it with the architecture's name; the file was not written",
        )
    write_atomically(out, data)
    return Ensemble(
        onnx=out,
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        members=len(models),
        temperatures=tuple(temperatures),
        shared=merged.shared,
        nodes=len(proto.graph.node),
        parity_max_relative=difference,
    )


def _said_of(count: int, metadata: dict[str, str], temperatures: Sequence[float]) -> dict[str, str]:
    return {
        "arch": f"ensemble of {count} {metadata.get('arch', 'networks')}",
        "calibrated": OUT_OF_FOLD,
        "temperatures": json.dumps(list(temperatures)),
    }


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")


def _check(paths: Sequence[Path], models: Sequence[onnx.ModelProto]) -> None:
    if len(models) < 2:
        raise ModelError(f"ensemble: got {len(models)} networks, expected at least two")
    for path, model in zip(paths[1:], models[1:], strict=True):
        for key in ("classes", "input"):
            first, other = (metadata_of(m).get(key) for m in (models[0], model))
            if first != other:
                raise ModelError(f"{path}: has {key} {other}, {paths[0]} has {first}", hint="merge folds of one run")


class _Merged:
    """A graph in which equal operators on equal values stand once."""

    def __init__(self, first: onnx.ModelProto) -> None:
        self._first = first
        self._input = first.graph.input[0].name
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._known: dict[bytes, list[str]] = {}
        self._outputs: list[onnx.ValueInfoProto] = []
        self._shapes: list[dict[str, list[int]]] = []
        self.shared = 0

    def add(self, prefix: str, model: onnx.ModelProto) -> dict[str, str]:
        """Take a member in; gives the name of each of its outputs in the merged graph."""
        name_of = {"": "", model.graph.input[0].name: self._input}
        for tensor in model.graph.initializer:
            name_of[tensor.name] = self._constant(f"{prefix}/{tensor.name}", tensor)
        for node in model.graph.node:
            inputs = [name_of[name] for name in node.input]
            key = _key(node, inputs)
            if key in self._known:
                self.shared += 1
            else:
                self._nodes.append(_renamed(node, prefix, inputs))
                self._known[key] = list(self._nodes[-1].output)
            name_of.update(zip(node.output, self._known[key], strict=True))
        self._shapes.append({value.name: _shape(value) for value in model.graph.output})
        return {value.name: name_of[value.name] for value in model.graph.output}

    def combine(self, role: str, values: Sequence[str], temperatures: Sequence[float]) -> None:
        """Make one output of the members' outputs: embeddings one after the other, else the mean."""
        onnx_ = onnx_library()
        shape = self._shapes[0][role]
        if role == "embedding":
            self._nodes.append(
                onnx_.helper.make_node("Concat", list(values), [role], name="ensemble/embedding", axis=1)
            )
            shape = [1, sum(found[role][1] for found in self._shapes)]
        else:
            self._mean(role, values, [1 / (len(values) * t) for t in temperatures])
        self._outputs.append(onnx_.helper.make_tensor_value_info(role, onnx_.TensorProto.FLOAT, shape))

    def model(self, metadata: dict[str, str]) -> onnx.ModelProto:
        """The whole, checked."""
        onnx_ = onnx_library()
        graph = onnx_.helper.make_graph(
            self._nodes, "ensemble", list(self._first.graph.input), self._outputs, list(self._constants.values())
        )
        model: onnx.ModelProto = onnx_.helper.make_model(
            graph,
            producer_name="defect-opt",
            opset_imports=list(self._first.opset_import),
            ir_version=self._first.ir_version,
        )
        onnx_.helper.set_model_props(model, metadata)
        stamp_structure(model)
        onnx_.checker.check_model(model, full_check=True)
        return model

    def _mean(self, role: str, values: Sequence[str], shares: Sequence[float]) -> None:
        onnx_, total = onnx_library(), ""
        for i, (value, share) in enumerate(zip(values, shares, strict=True), start=1):
            scale = onnx_.numpy_helper.from_array(np.float32(share), f"ensemble/{role}/share{i}")
            scaled = f"ensemble/{role}/scaled{i}"
            inputs = [value, self._constant(scale.name, scale)]
            self._nodes.append(onnx_.helper.make_node("Mul", inputs, [scaled], name=scaled))
            if i > 1:
                summed = role if i == len(values) else f"ensemble/{role}/sum{i}"
                name = f"ensemble/{role}/add{i}"
                self._nodes.append(onnx_.helper.make_node("Add", [total, scaled], [summed], name=name))
            total = scaled if i == 1 else summed

    def _constant(self, name: str, tensor: onnx.TensorProto) -> str:
        """The name under which a constant of these values stands."""
        array = onnx_library().numpy_helper.to_array(tensor)
        key = repr((array.dtype.str, array.shape)).encode() + hashlib.sha256(array.tobytes()).digest()
        if key not in self._known:
            kept = onnx_library().TensorProto()
            kept.CopyFrom(tensor)
            kept.name = name
            self._constants[name], self._known[key] = kept, [name]
        return self._known[key][0]


def _key(node: onnx.NodeProto, inputs: Sequence[str]) -> bytes:
    """What an operator computes; two with one key compute the same."""
    attributes = sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute)
    return repr((node.domain, node.op_type, list(inputs), len(node.output), attributes)).encode()


def _renamed(node: onnx.NodeProto, prefix: str, inputs: Sequence[str]) -> onnx.NodeProto:
    renamed: onnx.NodeProto = onnx_library().NodeProto()
    renamed.CopyFrom(node)
    renamed.name = f"{prefix}/{node.name or node.output[0]}"
    del renamed.input[:], renamed.output[:]
    renamed.input.extend(inputs)
    renamed.output.extend(f"{prefix}/{name}" if name else "" for name in node.output)
    return renamed


def _shape(value: onnx.ValueInfoProto) -> list[int]:
    return [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]


def _difference(data: bytes, models: Sequence[onnx.ModelProto], temperatures: Sequence[float]) -> float:
    """How far the merged graph is from the mean of its members on noise, in parts of the largest value."""
    merged = session_of(data, is_optimized=True)
    members = [session_of(model.SerializeToString(), is_optimized=True) for model in models]
    source, random = merged.get_inputs()[0], np.random.default_rng(0)
    worst = 0.0
    for _ in range(PARITY_PICTURES):
        picture: NDArray[np.uint8] = random.integers(0, 256, source.shape, dtype=np.uint8)
        found = merged.run(["logits"], {source.name: picture})[0]
        each = [s.run(["logits"], {s.get_inputs()[0].name: picture})[0] for s in members]
        wanted = np.mean([logits / t for logits, t in zip(each, temperatures, strict=True)], axis=0)
        worst = max(worst, float(np.abs(found - wanted).max() / max(float(np.abs(wanted).max()), 1e-6)))
    return worst
