"""Whether an adopted graph computes what the model computed before: shown on real pictures, not believed.

The model as it came is run on floats that numpy makes of the picture, written here a second time and apart from
`normalize`; the adopted graph is run on the picture's bytes.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from optimize.errors import ModelError
from optimize.quantize.adopt import Adoption
from optimize.quantize.detector_forms import separated
from optimize.quantize.endings import probabilities
from optimize.quantize.model import FloatModel, bytes_from_model
from optimize.quantize.onnx_file import open_session, run_session
from optimize.recipe import PreprocessRecipe

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MAX_RELATIVE", "AdoptionCheck", "as_fed", "check_adoption", "floats_from_picture"]

MAX_RELATIVE = 1e-3
"""Float32 sums in another order differ by some 1e-6 of the largest value; a wrong mean or colour order by over 1e-2."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AdoptionCheck:
    """How far the adopted graph lies from the model as it came.

    Attributes:
        max_relative: the largest difference, as a share of the largest value of that output over all pictures.
        n: pictures that were compared.
    """

    max_relative: float
    n: int


def check_adoption(model: FloatModel, images: Sequence[NDArray[np.uint8]]) -> AdoptionCheck | None:
    """Compare the adopted graph with the model as it came.

    Args:
        model: what `read_model` gave.
        images: real pictures, each (1, height_px, width_px, 3) uint8 RGB, fitted as the device fits them.

    Returns:
        What was found; None for a model that was not changed.

    Raises:
        ModelError: they differ by more than `MAX_RELATIVE`, or ONNX Runtime can't run the model as it came.
    """
    adoption = model.adoption
    if adoption is None:
        return None
    if not images:
        raise ValueError("check_adoption: needs a picture at least")
    relative = _largest_share(model, adoption, images)
    if relative > MAX_RELATIVE:
        raise ModelError(
            f"{model.path}: adopted, it differs from the model as it came by {relative:.2g} of the largest value on "
            f"{len(images)} pictures, allowed are {MAX_RELATIVE:g}",
            hint="export it again with opset 17 and batch 1; if that does not help, please report it with the file",
        )
    return AdoptionCheck(max_relative=relative, n=len(images))


def _largest_share(model: FloatModel, adoption: Adoption, images: Sequence[NDArray[np.uint8]]) -> float:
    """The largest difference of any output, as a share of that output's largest value; infinity for NaN."""
    as_it_came, adopted = f"{model.path} (as it came)", f"{model.path} (adopted)"
    before = open_session(as_it_came, adoption.original)
    after = open_session(adopted, bytes_from_model(model.proto))
    names = [value.name for value in before.get_outputs()]
    differences: dict[str, float] = defaultdict(float)
    largest: dict[str, float] = defaultdict(float)
    for picture in images:
        floats = {adoption.input: as_fed(adoption, picture)}
        wanted = _wanted(adoption, run_session(as_it_came, before, names, floats))
        if not all(np.isfinite(values).all() for values in wanted.values()):
            raise ModelError(
                f"{as_it_came}: gives NaN or infinity on a calibration image",
                hint="check preprocess: a wrong scale or std makes values that the model never saw",
            )
        got = _got(adoption, run_session(adopted, after, model.heads, {model.input.name: picture}))
        for name, expected in wanted.items():
            differences[name] = max(differences[name], _difference(adoption, expected, got[name]))
            largest[name] = max(largest[name], float(np.abs(expected).max(initial=0)))
    return max(differences[name] / max(largest[name], 1e-12) for name in differences)


def floats_from_picture(picture: NDArray[np.uint8], how: PreprocessRecipe, *, channels: int) -> NDArray[np.float64]:
    """What the model was trained to be fed, by the recipe's own words.

    Args:
        picture: (..., 3) uint8 RGB.
        how: the recipe.
        channels: of the model, 1 or 3.

    Returns:
        (..., channels) float64: `(byte * scale - mean) / std`, in the model's channel order.
    """
    values = picture.astype(np.float64)
    if how.colour == "bgr":
        values = values[..., ::-1]
    elif how.colour == "grey":
        grey = 0.299 * values[..., 0] + 0.587 * values[..., 1] + 0.114 * values[..., 2]
        values = np.stack([grey] * channels, axis=-1)
    normalized: NDArray[np.float64] = (values * how.scale - np.array(how.mean)) / np.array(how.std)
    return normalized


def as_fed(adoption: Adoption, picture: NDArray[np.uint8]) -> NDArray[Any]:
    """The picture as the model took it, once for each place in its batch."""
    if adoption.preprocess is None:
        return picture
    floats = floats_from_picture(picture, adoption.preprocess, channels=adoption.channels)
    if adoption.layout == "nchw":
        floats = np.moveaxis(floats, 3, 1)
    return np.ascontiguousarray(np.repeat(floats, adoption.batch, axis=0), dtype=np.float32)


def _wanted(adoption: Adoption, outputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float64]]:
    """The model's own outputs for one picture, by the adopted graph's roles."""
    if adoption.detector is not None:
        return separated(adoption.detector, {name: value[:1] for name, value in outputs.items()})
    assert adoption.ending is not None
    return {"logits": np.asarray(outputs[adoption.ending.output][:1], np.float64).reshape(1, -1)}


def _got(adoption: Adoption, outputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float64]]:
    values = {name: np.asarray(value, np.float64) for name, value in outputs.items()}
    if adoption.detector is not None:
        return values
    assert adoption.ending is not None
    (logits,) = values.values()
    with np.errstate(invalid="ignore"):  # NaN is seen by the comparison
        return {"logits": probabilities(logits, adoption.ending.activation)}


def _difference(adoption: Adoption, expected: NDArray[np.float64], got: NDArray[np.float64]) -> float:
    if expected.shape != got.shape or not np.isfinite(got).all():
        return float("inf")
    if adoption.detector is not None and adoption.detector.form == "final":
        # Rows whose scores are nearly the same may change places: each is compared with the one that is nearest.
        apart = np.abs(expected[0][:, None, :] - got[0][None, :, :]).max(axis=2)
        return float(np.maximum(apart.min(axis=0).max(), apart.min(axis=1).max()))
    return float(np.abs(expected - got).max(initial=0))
