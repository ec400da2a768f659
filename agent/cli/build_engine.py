"""`defect-agent build-engine`: compile a bundle for this device's GPU, before the line needs it."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.console import DONE, number, print_json
from agent.errors import UserError

if TYPE_CHECKING:
    from agent.config import EngineConfig
    from agent.engines.trt_cache import EngineCache
    from agent.engines.trt_open import Prepared

__all__ = ["EPILOG", "HELP", "NAME", "add_arguments", "run"]

NAME = "build-engine"
HELP = "Compile a bundle with TensorRT for this device's GPU, and keep the engine where `run` finds it."
EPILOG = """examples:
  defect-agent build-engine --config /etc/defect-agent/line3.yaml
  defect-agent build-engine --config line3.yaml --bundle parts-2.0.0.defect      the next bundle, while the line runs
  defect-agent build-engine --bundle parts-1.0.0.defect --precision fp16 --json

An engine fits this GPU, this TensorRT, this driver and these options; `run` compiles it itself when it finds none that
fits, and then the line waits (minutes). With --config the options are those of the configuration: flags that differ
make another engine than the one that `run` takes.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--bundle", type=Path, metavar="B", help="the .defect file; without it the configuration's")
    parser.add_argument("--config", type=Path, metavar="FILE", help="the station's YAML file: options and place")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="where to keep it (the station's, else ~/.cache)")
    parser.add_argument("--precision", choices=("auto", "int8", "fp16", "fp32"), help="auto: INT8 where the bundle can")
    parser.add_argument(
        "--workspace-mb", type=number(int, 16, 1_000_000), metavar="MB", help="GPU memory while it compiles (1024)"
    )
    parser.add_argument(
        "--optimization-level", type=number(int, 0, 5), metavar="N", help="0 compiles fast, 5 runs fastest (3)"
    )
    parser.add_argument("--version-compatible", action="store_true", help="the next TensorRT may run it, too")
    parser.add_argument("--dla-core", type=number(int, 0, 7), metavar="N", help="for this deep learning accelerator")
    parser.add_argument("--sparse", action="store_true", help="2:4 sparse kernels where the weights are so")
    parser.add_argument("--calibration-cache", action="store_true", help="INT8 by calibration, not by the Q/DQ graph")
    parser.add_argument("--rebuild", action="store_true", help="compile, even where an engine that fits is kept")
    parser.add_argument("--json", action="store_true", help="one JSON document")


def run(args: argparse.Namespace) -> int:
    """Compile or find the engine, load it, and run it once."""
    from agent.bundle import open_bundle
    from agent.cli.bar import Bar
    from agent.engines import open_engine
    from agent.engines.device import open_device
    from agent.engines.trt_api import load_tensorrt
    from agent.engines.trt_open import FAILED, NOT_RUN, prepare

    path, config, cache = _asked(args)
    bundle = open_bundle(path)
    bar = Bar()
    api = load_tensorrt()
    device = open_device(config.tensorrt.cuda)
    try:
        found = prepare(
            bundle, config, api=api, device=device, cache=cache, building=bar, must_keep=True, rebuild=args.rebuild
        )
    finally:
        bar.done()
        device.close()
    if found.built is not None:  # one that fails now must not be compiled a second time
        cache.note(found.key, **{FAILED: NOT_RUN})
    engine = open_engine(bundle, config, cache=cache, building=bar)  # the proof: it is found, loaded, and runs
    name = engine.name
    engine.close()
    facts = _facts(found, cache, name)
    if args.json:
        print_json(facts)
        return DONE
    built = found.built
    how = "was there already" if built is None else f"compiled in {built.seconds:.1f} s ({built.typing} typing)"
    print(f"{name}: {how}")
    for note in built.notes if built is not None else ():
        print(f"note: {note}")
    print(f"{facts['engine']}  {len(found.plan):,} bytes")
    return DONE


def _asked(args: argparse.Namespace) -> tuple[Path, EngineConfig, EngineCache]:
    """The bundle, the options and the place."""
    from agent.config import EngineConfig, TensorRtConfig, read_config
    from agent.engines import open_cache
    from agent.engines.trt_cache import EngineCache, user_cache_dir

    if args.bundle is None and args.config is None:
        raise UserError("build-engine: nothing to compile", hint="defect-agent build-engine --config FILE")
    own, path, station = TensorRtConfig(), args.bundle, None
    if args.config is not None:
        station = read_config(args.config)
        own, path = station.engine.tensorrt, path or station.bundle
    if station is None or args.cache is not None:
        cache = EngineCache(args.cache or user_cache_dir(), own.cache_mb * 1_000_000)
    else:
        cache = open_cache(station)
    changes: dict[str, Any] = {
        name: value
        for name in ("precision", "workspace_mb", "optimization_level", "dla_core")
        if (value := getattr(args, name)) is not None
    }
    changes |= {name: True for name in ("version_compatible", "sparse", "calibration_cache") if getattr(args, name)}
    return path, EngineConfig(kind="trt", tensorrt=dataclasses.replace(own, **changes)), cache


def _facts(found: Prepared, cache: EngineCache, name: str) -> dict[str, Any]:
    facts = cache.facts(found.key)
    return {
        "engine": str(cache.path(found.key)),
        "name": name,
        "bytes": len(found.plan),
        "built": found.built is not None,
        "digest": found.key.digest(),
        "key": found.key.to_json(),
        **{key: facts.get(key) for key in ("typing", "graph", "notes", "seconds")},
    }
