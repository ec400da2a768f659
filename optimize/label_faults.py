"""Label faults: images whose label the folds disagree with, the most suspicious first.

Confident learning (Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", Journal
of Artificial Intelligence Research 70, 2021), on probabilities from networks that never saw the image:

- a class's threshold is the mean probability that its own images get (equation 2): a class that is hard to be sure of
  asks for less;
- an image counts for the most probable of the classes whose threshold it reaches (equation 1, the confident joint);
- where that is not its label, the label is suspicious.

Where the fold names another class without reaching that class's threshold, the label is only doubted: on a hard set
most of these are the network's mistakes. Each kind is ranked by p(label) - p(most probable other), lowest first (the
normalized margin); the suspicious ones come first.

A suspicion is not a verdict: an image may be odd, or show two defects. A person looks at the sheet and decides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from optimize.dataset import Sample, read_image
from optimize.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MANY", "LabelFault", "confident_joint", "draw_label_sheet", "find_label_faults"]

MANY = 0.2
"""Beyond this share of disagreement it is the networks that are wrong: real sets have some percent of wrong labels
(Northcutt, Athalye and Mueller, "Pervasive Label Errors in Test Sets", NeurIPS 2021: 0.2 to 10 %)."""

MOST = 96
"""Images on one sheet: more nobody looks at in one go; the rest stands in the report."""

COLUMNS, CELL_PX, CAPTION_PX = 8, 144, 66
_BACK, _INK, _GIVEN, _SAID = (30, 30, 30), (235, 235, 235), (150, 190, 255), (150, 235, 170)
_FONT = cv2.FONT_HERSHEY_SIMPLEX


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LabelFault:
    """An image whose label the fold that never saw it disagrees with.

    Attributes:
        sample: the image.
        given: its label.
        suggested: what the fold says.
        probability: of `suggested`.
        probability_given: of the label.
        is_suspicious: the confident joint counts it for the other class; else the fold only doubts the label.
    """

    sample: Sample
    given: str
    suggested: str
    probability: float
    probability_given: float
    is_suspicious: bool

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "file": self.sample.file,
            "group": self.sample.group,
            "given": self.given,
            "suggested": self.suggested,
            "probability": round(self.probability, 4),
            "probability_given": round(self.probability_given, 4),
            "suspicious": self.is_suspicious,
        }


def confident_joint(probabilities: NDArray[np.float64], targets: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each image the class that it counts for.

    Args:
        probabilities: (N, C), out of fold.
        targets: (N,) given labels as class numbers.

    Returns:
        (N,) class numbers; -1 for images that reach no class's threshold, which count for none.
    """
    n_classes = probabilities.shape[1]
    thresholds = np.full(n_classes, np.inf)  # a class without images suggests nothing
    for i in range(n_classes):
        of_class = targets == i
        if of_class.any():
            thresholds[i] = probabilities[of_class, i].mean()
    reached = np.where(probabilities >= thresholds, probabilities, -1.0)
    return np.asarray(np.where(reached.max(axis=1) < 0, -1, reached.argmax(axis=1)), dtype=np.int64)


def find_label_faults(
    samples: Sequence[Sample], probabilities: NDArray[np.float64], targets: NDArray[np.int64], classes: Sequence[str]
) -> tuple[LabelFault, ...]:
    """Rank the images whose label is suspicious.

    Args:
        samples: (N,) the images.
        probabilities: (N, C) of the networks that never saw them, each row sums to 1.
        targets: (N,) given labels as class numbers.
        classes: names, by class number.

    Returns:
        The suspicious ones, then those that are only doubted, each the worst first; empty when the folds agree with
        every label. Folds that disagree with more than `MANY` of the labels suspect none.
    """
    counted = confident_joint(probabilities, targets)
    rows = np.arange(len(targets))
    given = probabilities[rows, targets]
    others = probabilities.copy()
    others[rows, targets] = -1.0
    margins = given - others.max(axis=1)
    is_suspicious = (counted >= 0) & (counted != targets)
    disagreed = is_suspicious | (probabilities.argmax(axis=1) != targets)
    if disagreed.sum() > MANY * len(targets):
        is_suspicious[:] = False  # networks this poor accuse nobody; what they say is listed as doubt
    said = np.where(is_suspicious, counted, probabilities.argmax(axis=1))
    listed = sorted(
        (int(i) for i in np.flatnonzero(said != targets)),
        key=lambda i: (not is_suspicious[i], margins[i], samples[i].file),
    )
    return tuple(
        LabelFault(
            sample=samples[i],
            given=classes[targets[i]],
            suggested=classes[said[i]],
            probability=float(probabilities[i, said[i]]),
            probability_given=float(given[i]),
            is_suspicious=bool(is_suspicious[i]),
        )
        for i in listed
    )


def draw_label_sheet(faults: Sequence[LabelFault]) -> bytes:
    """Draw the suspicious images: picture, given label, what the fold says, how sure, which file.

    Args:
        faults: the most suspicious first; at most `MOST` are drawn.

    Returns:
        A PNG file; with nothing to show it says so.

    Raises:
        DataError: the sheet can't be encoded.
    """
    shown = faults[:MOST]
    certain = sum(fault.is_suspicious for fault in faults)
    title = f"{certain} suspicious labels, then {len(faults) - certain} that are only doubted; the worst first"
    if faults and not certain:
        title = f"{len(faults)} labels are doubted; none is suspicious, or the folds disagree too often to accuse one"
    if len(shown) < len(faults):
        title += f" ({len(shown)} shown)"
    rows = [_title(title if faults else "no label that the folds disagree with")]
    for start in range(0, len(shown), COLUMNS):
        row = np.full((CELL_PX + CAPTION_PX, COLUMNS * CELL_PX, 3), _BACK, np.uint8)
        for column, fault in enumerate(shown[start : start + COLUMNS]):
            row[:, column * CELL_PX : (column + 1) * CELL_PX] = _cell(fault)
        rows.append(row)
    done, data = cv2.imencode(".png", np.vstack(rows))
    if not done:
        raise DataError("labels.png: can't be encoded")
    return bytes(data.tobytes())


def _title(text: str) -> NDArray[np.uint8]:
    head = np.full((26, COLUMNS * CELL_PX, 3), _BACK, np.uint8)
    cv2.putText(head, text, (6, 18), _FONT, 0.5, _INK, 1, cv2.LINE_AA)
    return head


def _cell(fault: LabelFault) -> NDArray[np.uint8]:
    """One picture in its aspect ratio, with its labels below."""
    cell = np.full((CELL_PX + CAPTION_PX, CELL_PX, 3), _BACK, np.uint8)
    image, room = read_image(fault.sample.path), CELL_PX - 6
    scale = room / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    left, top = (CELL_PX - size[0]) // 2, (CELL_PX - size[1]) // 2
    cell[top : top + size[1], left : left + size[0]] = small
    lines = (
        (f"label: {fault.given}", _GIVEN),
        (f"{'folds' if fault.is_suspicious else 'doubt'}: {fault.suggested}", _SAID),
        (f"{fault.probability:.0%} against {fault.probability_given:.0%}", _INK),
        (Path(fault.sample.file).name, _INK),
    )
    for i, (text, colour) in enumerate(lines):
        cv2.putText(cell, _short(text), (4, CELL_PX + 12 + 15 * i), _FONT, 0.36, colour, 1, cv2.LINE_AA)
    return cell


def _short(text: str) -> str:
    """ASCII, as OpenCV's font has nothing else; the end of a name tells files apart."""
    plain = text.encode("ascii", "replace").decode()
    return plain if len(plain) <= 22 else f"{plain[:9]}..{plain[-11:]}"
