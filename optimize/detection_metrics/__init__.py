"""Figures of detectors: average precision by the COCO protocol, missed defects, false boxes, and their intervals."""

from optimize.detection_metrics.found_boxes import (
    FALSE_PER_PICTURE,
    FOUND_IOU,
    STOPPED_IOU,
    BoxRecords,
    box_records,
    froc_curve,
    sensitivities,
)
from optimize.detection_metrics.matching import AREAS, IOUS, ImageBoxes, overlaps
from optimize.detection_metrics.precision import ClassPrecision, MeanPrecision, map50_statistic, mean_precision

__all__ = [
    "AREAS",
    "FALSE_PER_PICTURE",
    "FOUND_IOU",
    "IOUS",
    "STOPPED_IOU",
    "BoxRecords",
    "ClassPrecision",
    "ImageBoxes",
    "MeanPrecision",
    "box_records",
    "froc_curve",
    "map50_statistic",
    "mean_precision",
    "overlaps",
    "sensitivities",
]
