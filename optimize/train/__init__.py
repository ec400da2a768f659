"""Train a classifier, so that the same seed gives the same weights, interrupted or not.

```text
pictures (uint8, in memory) ─ sample ─ augment ─ mix ─ network ─ weighted loss ─ SGD, warm-up and cosine
                                                 └ running average of the weights ─ val after each epoch ─ best kept
```

`config` says what is wanted, `training` is the whole run from files to an ONNX, `run` is one epoch after another;
`losses`, `sampling`, `batches`, `schedule` and `stages` (what is frozen, and who learns how fast) are its parts,
`processes` spreads it over several, `events` writes what TensorBoard reads.

Everything random in an epoch comes from (seed, epoch, image); the state after each epoch is in one checkpoint, written
whole or not at all. So a run that was killed goes on where it was, and ends with the same bytes.

What is kept is the running average of the weights at the best epoch on `val`: by balanced recall (the mean of the
classes' recalls: a rare defect counts as much as the many good parts); where that differs by one image only, which is
chance, by loss. `test` is never opened.
"""

from optimize.train.result import EpochRecord, Progress, TrainResult
from optimize.train.training import join, train
from optimize.train_config import TrainConfig

__all__ = ["EpochRecord", "Progress", "TrainConfig", "TrainResult", "join", "train"]
