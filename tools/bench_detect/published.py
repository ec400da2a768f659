"""What others report on NEU-DET, to stand beside our figures, with what makes them not comparable."""

from __future__ import annotations

from typing import Any

__all__ = ["PUBLISHED", "WARNING"]

WARNING = (
    "their splits are random, and over half of NEU's pictures overlap another one: the same steel is in train and test "
    "(here a random split was worth 8.3 points of accuracy, tools/bench methods); they also start from COCO or VOC "
    "detectors and train on a GPU at up to 640 px"
)

PUBLISHED: tuple[dict[str, Any], ...] = (
    {
        "model": "SSD300",
        "map50": 0.714,
        "split": "random",
        "source": "Kou et al., Measurement 182 (2021) 109454, as quoted in github.com/annsonic/Steel_defect",
    },
    {
        "model": "YOLOv3, improved",
        "map50": 0.722,
        "split": "random",
        "source": "Kou et al., Measurement 182 (2021) 109454, as quoted in github.com/annsonic/Steel_defect",
    },
    {"model": "YOLOv5s", "map50": 0.750, "split": "random 80:20, val", "source": "github.com/annsonic/Steel_defect"},
    {
        "model": "YOLO11n at 640 px, 5 seeds",
        "map50": 0.783,
        "split": "random 80:10:10",
        "source": "huggingface.co/hazemaaa/steel-defect-yolo11n",
    },
)
