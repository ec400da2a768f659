"""`defect-agent inspect`: what the agent would decide about a picture, and why."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from agent.console import DONE, FAILED, number, print_json
from agent.errors import ConfigError, ImageError

__all__ = ["EPILOG", "HELP", "NAME", "add_arguments", "run"]

NAME = "inspect"
HELP = "Judge pictures with a bundle, exactly as the line would; draws what was found with --overlay."
EPILOG = """examples:
  defect-agent inspect part.jpg --bundle neu-1.0.0.defect
  defect-agent inspect part.jpg --bundle neu-1.0.0.defect --overlay seen.png
  defect-agent inspect parts/*.jpg --bundle neu-1.0.0.defect --overlay seen/ --json
  defect-agent inspect part.jpg --bundle neu-1.0.0.defect --config agent.yaml
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="picture files")
    parser.add_argument("--bundle", type=Path, required=True, metavar="B", help="the .defect file")
    parser.add_argument(
        "--config", type=Path, metavar="C", help="agent.yaml: judge by its policy (limits, zones, pixel_mm)"
    )
    parser.add_argument("--overlay", type=Path, metavar="OUT", help="OUT.png, or a folder when there are several")
    parser.add_argument("--graph", choices=("auto", "cpu", "fp32"), default="auto", help="which graph of the bundle")
    parser.add_argument(
        "--threads", type=number(int, 1, 256), default=1, metavar="N", help="CPU threads of one inference (1)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document instead of lines")


def run(args: argparse.Namespace) -> int:
    """Judge each picture; exit 1 when one of them could not be judged."""
    from agent.bundle import open_bundle
    from agent.cameras.decode import read_image
    from agent.config import EngineConfig, PolicyConfig, read_config
    from agent.engines import open_engine
    from agent.frame import Fault, Frame, Part, Stamp
    from agent.inspection import Inspector
    from agent.verdict import Verdict, policy_from_config

    _check_overlay(args)
    bundle = open_bundle(args.bundle)
    rules = PolicyConfig() if args.config is None else read_config(args.config).policy
    policy = policy_from_config(rules, bundle.manifest)
    engine = open_engine(bundle, EngineConfig(threads=args.threads, graph=args.graph))
    inspector = Inspector(bundle, engine, pixel_mm=rules.pixel_mm)

    def judge(path: Path, sequence: int) -> Verdict:
        part = Part(id=str(path), trigger="inspect", sequence=sequence, triggered=Stamp.now())
        try:
            image = read_image(path)
        except ImageError as error:
            return policy.judge(inspector.inspect(Fault(part=part, stage="capture", reason=error.message)))
        frame = Frame(
            part=part, image=image, camera="inspect", source=str(path), sequence=sequence, captured=Stamp.now()
        )
        return policy.judge(inspector.inspect(frame))

    verdicts = [judge(path, i) for i, path in enumerate(args.images, start=1)]
    overlays = [_overlay(v, args.overlay, many=len(verdicts) > 1) for v in verdicts]
    if args.json:
        print_json([_as_json(v, o) for v, o in zip(verdicts, overlays, strict=True)])
    else:
        for verdict, overlay in zip(verdicts, overlays, strict=True):
            print(f"{verdict.decision.value:7} {verdict.inspection.part.id}  {verdict.reason}")
            if overlay is not None:
                print(f"        {overlay}")
    engine.close()
    return FAILED if any(v.decision.value == "error" for v in verdicts) else DONE


def _check_overlay(args: argparse.Namespace) -> None:
    target: Path | None = args.overlay
    if target is None or not target.suffix:
        return
    if len(args.images) > 1:
        raise ConfigError(f"--overlay: got the file {target} for {len(args.images)} pictures, expected a folder")
    if target.suffix.lower() != ".png" or target.resolve() == args.images[0].resolve():
        raise ConfigError(
            f"--overlay: got {target}, expected a .png file that is not the picture itself", hint="--overlay seen.png"
        )


def _overlay(verdict: Any, target: Path | None, *, many: bool) -> Path | None:
    if target is None or verdict.inspection.frame is None:
        return None
    from agent.overlay import draw_overlay

    source = Path(verdict.inspection.part.id)
    is_folder = many or not target.suffix
    path = target / f"{source.stem}.overlay.png" if is_folder else target
    _write_png(path, draw_overlay(verdict))
    return path


def _write_png(path: Path, image: Any) -> None:
    import cv2

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
    except OSError as error:
        raise ConfigError(f"--overlay: {path}: can't be written ({error.strerror})") from error


def _as_json(verdict: Any, overlay: Path | None) -> dict[str, Any]:
    inspection = verdict.inspection
    return {
        "image": inspection.part.id,
        "decision": verdict.decision.value,
        "code": verdict.decision.code,
        "reason": verdict.reason,
        "class": verdict.top.class_name if verdict.top else None,
        "score": verdict.score,
        "threshold": verdict.threshold,
        "uncertainty": inspection.uncertainty,
        "findings": [dataclasses.asdict(f) for f in verdict.findings],
        "ms": dataclasses.asdict(inspection.ms),
        "bundle": inspection.bundle.name,
        "bundle_digest": inspection.bundle.digest,
        "engine": inspection.engine,
        "overlay": str(overlay) if overlay else None,
    }
