"""`defect-agent inspect`: what the agent would decide about a picture, and why; or what of it the model would see."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.console import DONE, FAILED, number, print_json
from agent.errors import ConfigError, ImageError

if TYPE_CHECKING:
    from agent.config import AgentConfig
    from agent.roi import Roi

__all__ = ["EPILOG", "HELP", "NAME", "add_arguments", "run"]

NAME = "inspect"
HELP = "Judge pictures with a bundle, exactly as the line would (--overlay draws it); or save what it would see."
EPILOG = """examples:
  defect-agent inspect part.jpg --bundle neu-1.0.0.defect
  defect-agent inspect part.jpg --bundle neu-1.0.0.defect --overlay seen.png
  defect-agent inspect parts/*.jpg --bundle neu-1.0.0.defect --overlay seen/ --json
  defect-agent inspect part.jpg --bundle neu-1.0.0.defect --config agent.yaml
  defect-agent inspect pictures/ --config agent.yaml --save-roi regions/
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "images", type=Path, nargs="+", metavar="IMAGE", help="picture files; with --save-roi folders too"
    )
    parser.add_argument("--bundle", type=Path, metavar="B", help="the .defect file; needed to judge")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="C",
        help="agent.yaml: judge by its policy (limits, zones, pixel_mm), in its region of interest",
    )
    parser.add_argument("--view", metavar="NAME", help="whose region and zones, where --config has several cameras")
    parser.add_argument(
        "--save-roi", type=Path, metavar="DIR", help="judge nothing: write the regions of interest as PNG files"
    )
    parser.add_argument("--overlay", type=Path, metavar="OUT", help="OUT.png, or a folder when there are several")
    parser.add_argument("--graph", choices=("auto", "cpu", "fp32"), default="auto", help="which graph of the bundle")
    parser.add_argument(
        "--threads", type=number(int, 1, 256), default=1, metavar="N", help="CPU threads of one inference (1)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document instead of lines")


def run(args: argparse.Namespace) -> int:
    """Judge each picture, or save its region; exit 1 when one of them could not be judged, or shows no part."""
    from agent.config import read_config

    config = None if args.config is None else read_config(args.config)
    if args.view is not None and config is None:
        raise ConfigError(f"--view: got {args.view}, but no configuration has views", hint="--config agent.yaml")
    return _judge(args, config) if args.save_roi is None else _save_regions(args, config)


def _judge(args: argparse.Namespace, config: AgentConfig | None) -> int:
    from agent.bundle import open_bundle
    from agent.cameras.decode import read_image
    from agent.config import EngineConfig
    from agent.engines import open_engine
    from agent.frame import Fault, Frame, Part, Stamp
    from agent.inspection import Inspector
    from agent.verdict import Verdict, policy_from_config

    if args.bundle is None:
        raise ConfigError("--bundle: missing: nothing else can judge a picture", hint="--bundle FILE.defect")
    _check_overlay(args)
    bundle = open_bundle(args.bundle)
    rules, roi = _view(config, args.view)
    policy = policy_from_config(rules, bundle.manifest)
    engine = open_engine(bundle, EngineConfig(threads=args.threads, graph=args.graph))
    inspector = Inspector(bundle, engine, pixel_mm=rules.pixel_mm, roi=roi)

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


def _view(config: AgentConfig | None, name: str | None) -> tuple[Any, Roi | None]:
    """The policy and the region of one view; of the first camera when none is named."""
    from agent.config import PolicyConfig
    from agent.roi import Roi
    from agent.views import view_settings

    if config is None:
        return PolicyConfig(), None
    settings = view_settings(config)
    if name is not None and name not in settings:
        raise ConfigError(f"--view: got {name}, expected one of {', '.join(settings)}")
    chosen = settings[name or config.camera.name]
    return chosen.policy, None if chosen.roi is None else Roi(chosen.roi)


def _save_regions(args: argparse.Namespace, config: AgentConfig | None) -> int:
    from agent.cameras.decode import read_image
    from agent.roi import NotFound

    _, roi = _view(config, args.view)
    if roi is None:
        raise ConfigError("--save-roi: there is no region of interest", hint="--config FILE, with `roi:` in it")
    report = []
    for source, target in _targets(args.images, args.save_roi):
        problem = ""
        try:
            region = roi.take(read_image(source))
            if isinstance(region, NotFound):
                problem = region.reason
            else:
                _write_png("--save-roi", target, region.image)
        except ImageError as error:
            problem = error.message
        report.append({"image": str(source), "region": None if problem else str(target), "problem": problem or None})
    if args.json:
        print_json(report)
    else:
        for each in report:
            print(f"{each['region'] or 'nothing'}  {each['problem'] or each['image']}")
    return FAILED if any(each["problem"] for each in report) else DONE


def _targets(images: Sequence[Path], folder: Path) -> list[tuple[Path, Path]]:
    """Each picture with its place in the folder; pictures below a folder keep their paths, as classes are folders."""
    from agent.cameras import PICTURE_SUFFIXES

    pairs: list[tuple[Path, Path]] = []
    for image in images:
        files = sorted(path for path in image.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES)
        inside = [(path, folder / path.relative_to(image).with_suffix(".png")) for path in files]
        pairs += inside if image.is_dir() else [(image, folder / f"{image.stem}.png")]
    taken: dict[Path, Path] = {}
    for source, target in pairs:
        if target in taken or target.resolve() == source.resolve():
            other = taken.get(target, source)
            raise ConfigError(f"--save-roi: {source} would be written over by, or over, {other} as {target}")
        taken[target] = source
    return pairs


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
    _write_png("--overlay", path, draw_overlay(verdict))
    return path


def _write_png(option: str, path: Path, image: Any) -> None:
    import cv2

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
    except OSError as error:
        raise ConfigError(f"{option}: {path}: can't be written ({error.strerror})") from error


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
        "located": _located(inspection.located),
        "findings": [dataclasses.asdict(f) for f in verdict.findings],
        "ms": dataclasses.asdict(inspection.ms),
        "bundle": inspection.bundle.name,
        "bundle_digest": inspection.bundle.digest,
        "engine": inspection.engine,
        "overlay": str(overlay) if overlay else None,
    }


def _located(located: Any) -> dict[str, Any] | None:
    if located is None:
        return None
    return {"score": located.score, "shift_px": located.shift_px, "turn_deg": located.turn_deg}
