"""What well-known detectors are fed, where the recipe leaves it out: said by their makers, never guessed from pixels.

```text
YOLOv5, v8, 11, v10   RGB 0 to 1, letterbox with the picture in the middle, padding 114     (Ultralytics' documentation)
YOLOX                 BGR 0 to 255, letterbox with the picture upper left, padding 114      (its README and demo)
SSD300                RGB 0 to 255, ImageNet's mean taken off, stretched                   (torchvision's documentation)
SSDlite320            RGB -1 to 1, stretched                                                (the same)
RetinaNet             RGB, ImageNet's mean and deviation                                    (the same)
```
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Mapping

from optimize.recipe import DetectorForm, PreprocessRecipe

__all__ = ["conventional_preprocess", "is_ultralytics"]

GREY = 114
"""The padding of YOLOs since v3's training code: about the mean of COCO's pictures."""

ULTRALYTICS = PreprocessRecipe(resize="letterbox", pad_value=GREY)

CONVENTIONS: Mapping[DetectorForm, PreprocessRecipe] = {
    "yolov5": ULTRALYTICS,
    "yolov8": ULTRALYTICS,
    "yolov10": ULTRALYTICS,
    "yolox": PreprocessRecipe(scale=1.0, colour="bgr", resize="letterbox", pad_value=GREY, anchor="corner"),
    "ssd": PreprocessRecipe(mean=(0.48235, 0.45882, 0.40784), std=(1 / 255,)),
    "ssdlite": PreprocessRecipe(mean=(0.5,), std=(0.5,)),
    "retinanet": PreprocessRecipe(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
}


def conventional_preprocess(
    form: DetectorForm, metadata: Mapping[str, str], *, is_open: bool
) -> tuple[PreprocessRecipe, str] | None:
    """What such a detector is fed.

    Args:
        form: the recipe's `detector.form`; `auto` asks the metadata.
        metadata: of the model.
        is_open: the model leaves its input's size open; the metadata may say it.

    Returns:
        What it is, and who says so; None where nobody does.
    """
    if form in CONVENTIONS:
        found, why = CONVENTIONS[form], f"as detector.form {form} is fed"
    elif is_ultralytics(metadata):  # `corners` and `centre` say how boxes are coded, and nothing of what it is fed
        found, why = ULTRALYTICS, "as the exporter that wrote its metadata (names, stride) feeds it"
    else:
        return None
    size = _size(metadata) if is_open else ()
    return (dataclasses.replace(found, size=size) if size else found), why


def is_ultralytics(metadata: Mapping[str, str]) -> bool:
    """Whether the metadata are those of Ultralytics' export of a detector: names by number, stride, no other task."""
    return (
        "stride" in metadata
        and metadata.get("names", "").startswith("{")
        and metadata.get("task", "detect") == "detect"
    )


def _size(metadata: Mapping[str, str]) -> tuple[int, ...]:
    """Width and height from `imgsz`, which is written height first."""
    try:
        found = ast.literal_eval(metadata.get("imgsz", ""))
    except (ValueError, SyntaxError):
        return ()
    if not isinstance(found, list) or len(found) != 2 or not all(isinstance(side, int) for side in found):
        return ()
    return found[1], found[0]
