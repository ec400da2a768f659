"""What a large network knows, taught to a small one; and what a damaged one has forgotten, taught again.

```text
                       ┌ teacher (network, ONNX, ensemble, bundle) ─ logits, features ┐
augmented pictures ────┤                                                              ├ loss
                       └ student ─ logits, features ──────── labels, where known ─────┘
```

`teacher` and `onnx_teacher` say what a teacher is, `loss` what a student loses by not agreeing. `distilling` is a whole
training run of `optimize.train` with another lesson (`lesson`: the objective, and pictures that nobody labelled).
`recover` fine-tunes a given network until it agrees with its teacher, without labels; `rounded` does so while every
layer rounds as INT8 will.
"""

from optimize.distill.distilling import Comparison, DistillResult, Source, distill, distill_entry
from optimize.distill.lesson import TeacherLesson, read_unlabelled
from optimize.distill.loss import Shares, distillation_loss
from optimize.distill.onnx_teacher import FileTeacher, OnnxTeacher, open_teacher
from optimize.distill.recover import (
    Agreement,
    Recovered,
    RecoverProgress,
    RecoverRecord,
    agreement,
    recover,
    tell_epochs,
)
from optimize.distill.recover_config import RecoverConfig
from optimize.distill.rounded import recover_rounded
from optimize.distill.teacher import NetworkTeacher, Taught, Teacher

__all__ = [
    "Agreement",
    "Comparison",
    "DistillResult",
    "FileTeacher",
    "NetworkTeacher",
    "OnnxTeacher",
    "RecoverConfig",
    "RecoverProgress",
    "RecoverRecord",
    "Recovered",
    "Shares",
    "Source",
    "Taught",
    "Teacher",
    "TeacherLesson",
    "agreement",
    "distill",
    "distill_entry",
    "distillation_loss",
    "open_teacher",
    "read_unlabelled",
    "recover",
    "recover_rounded",
    "tell_epochs",
]
