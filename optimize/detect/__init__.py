"""Train a detector, so that the same seed gives the same weights, interrupted or not.

```text
pictures (uint8, in memory) and boxes ─ crop, turn, light ─ network ─ assign ─ loss ─ AdamW, warm-up and cosine
                                                              └ running average ─ mAP50 on val each epoch ─ best kept
```

`config` says what is wanted, `training` is the whole run from files to an ONNX, `run` is one epoch after another;
`pictures` and `losses` are its parts, `validation` counts through the agent's own decoding, `export` proves the file.

Everything random in an epoch comes from (seed, epoch, image); the state after each epoch is in one checkpoint, written
whole or not at all. What is kept is the running average of the weights at the best epoch on `val`; `test` is never
opened.
"""
