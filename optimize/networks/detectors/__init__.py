"""Detectors that become one clean ONNX and quantize well: YOLO and SSD on the backbones of the classifiers.

```text
picture ─ backbone's stages ─ features of stride 8, 16, 32 ─ pyramid ─ a head per level ─ boxes, scores
```

Convolution, ReLU, Add and nearest upsampling only: all of it INT8, but for the heads' last convolutions.

`DETECTORS` and `detector_card` need no torch; `optimize.networks.detectors.detector` does.
"""

from optimize.networks.detectors.cards import DETECTORS, DetectorCard, Family, detector_card

__all__ = ["DETECTORS", "DetectorCard", "Family", "detector_card"]
