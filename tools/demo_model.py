"""Make the demo's model again: parts, training, export, and the figures on parts that it has not seen.

    .venv/bin/python tools/demo_model.py --out /tmp/demo-model
    .venv/bin/python tools/demo_model.py                          # over configs/demo/

Needs the extra `train` (PyTorch). About ten minutes on two cores that do nothing else. The same machine and versions
give the same bytes; other processors and versions of PyTorch, NumPy and OpenCV differ in the last bits, and the figures
then differ by a part or two.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
# Threads that wait must not spin, see `optimize.cli.train`; to be set before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from agent.console import DONE, FAILED, Parser, run_program  # noqa: E402
from optimize.augment import Augmentation  # noqa: E402
from optimize.dataset import read_dataset  # noqa: E402
from optimize.synthetic import write_parts  # noqa: E402
from optimize.train import Progress, TrainConfig, train  # noqa: E402

TRAIN, VAL, CALIB, FRESH = 2_500, 300, 100, 1_000
TRAIN_SEED, FRESH_SEED = 1, 2
MIN_ACCURACY = 0.95
MODEL = "demo_parts.onnx"

RECIPE = TrainConfig(
    arch="tiny",
    epochs=26,
    batch=32,
    seed=1,
    threads=2,
    label_smoothing=0.05,
    # Blending, covering, small pictures and strong crops are for few pictures and large defects: here parts cost
    # nothing, and a pit of two pixels would be gone while its label stays.
    mixup=0.0,
    small_until=0.0,
    augmentation=Augmentation(min_area=0.8, light=0.5, blur=0.05, noise=0.1, cutout=0.0),
)


def main() -> int:
    """Read the arguments and make the model."""
    parser = Parser(prog="demo_model", description="Make configs/demo/demo_parts.onnx again.")
    parser.add_argument("--out", type=Path, default=ROOT / "configs" / "demo", metavar="DIR", help="configs/demo")
    return run_program(parser, lambda args: make(args.out))


def make(out: Path) -> int:
    """Train in a temporary folder; the model is replaced only by one that is good enough."""
    from optimize.card import write_card

    with tempfile.TemporaryDirectory(prefix="demo-model-") as name:
        folder = Path(name)
        say(f"making {TRAIN + VAL + CALIB} parts to learn from")
        write_parts(folder / "parts", {"train": TRAIN, "val": VAL, "calib": CALIB}, seed=TRAIN_SEED)
        result = train(RECIPE, read_dataset(folder / "parts"), folder / MODEL, show)
        card, _ = write_card(result)
        say(f"making {FRESH} fresh parts to judge by")
        write_parts(folder / "fresh", {"test": FRESH}, seed=FRESH_SEED)
        accuracy = accuracy_of(folder)
        if accuracy < MIN_ACCURACY:
            say(f"accuracy {accuracy:.4f} on fresh parts, expected at least {MIN_ACCURACY}: {out} stays as it is")
            return FAILED
        out.mkdir(parents=True, exist_ok=True)
        (out / MODEL).write_bytes((folder / MODEL).read_bytes())
        (out / card.name).write_text(shortened(card.read_text()))
    say(f"accuracy {accuracy:.4f} on {FRESH} fresh parts; {out / MODEL} has SHA-256 {result.sha256}")
    return DONE


def shortened(card: str) -> str:
    """The card without the names of the pictures: the seeds above say what they are."""
    facts = json.loads(card)
    facts["files"] = {split: len(files) for split, files in facts["files"].items()}
    return json.dumps(facts, indent=1, sort_keys=True) + "\n"


def accuracy_of(folder: Path) -> float:
    """Build a bundle and judge the fresh parts with its INT8 graph, as the demo does."""
    from agent.bundle import open_bundle
    from agent.config import EngineConfig
    from optimize.build import build
    from optimize.evaluate import evaluate
    from optimize.inputs import gather
    from optimize.recipe import read_recipe, with_flags

    data = folder / "parts"
    flags = {"model": folder / MODEL, "data": data, "calib": data, "out": folder / "demo.defect", "name": "demo"}
    recipe = with_flags(read_recipe(folder), {key: (f"--{key}", value) for key, value in flags.items()})
    report = build(gather(recipe))
    say(f"INT8 loses {report.drop_points:.2f} points on {report.fp32.n} val parts")
    fresh = read_dataset(folder / "fresh").take("test")
    scorecard, _ = evaluate(open_bundle(folder / "demo.defect"), fresh, EngineConfig(graph="cpu"))
    for name, score in scorecard.per_class.items():
        say(f"  {name:8} recall {score.recall:.3f}, precision {score.precision:.3f}")
    return scorecard.accuracy


def show(progress: Progress) -> None:
    """A line per epoch."""
    if progress.record is not None:
        record = progress.record
        what = f"loss {record.train_loss:.3f}, val accuracy {record.val_accuracy:.4f}"
        say(f"epoch {record.epoch}/{RECIPE.epochs}: {what}")


def say(text: str) -> None:
    """On standard error, at once."""
    print(f"demo_model: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
