"""`defect-opt init`: a project folder to begin with."""

from __future__ import annotations

import argparse
from pathlib import Path

from agent.console import DONE
from optimize.errors import OptimizeError

__all__ = ["EPILOG", "FOLDERS", "HELP", "NAME", "add_arguments", "run"]

NAME = "init"
HELP = "Make a project folder: a commented defect-opt.yaml, a README with the next commands, folders for images."
EPILOG = """examples:
  defect-opt init line3
"""

FOLDERS = ("data", "calib")

README = """\
# {name}

From labelled images to a bundle for the device. `defect-opt.yaml` says what is done; every key is explained there.

1. Put labelled images in `data/`: a folder per class (`data/ok/`, `data/scratch/`, ...), or a `splits.csv`
   (file,class,split[,group]). 1,000 to 5,000 images are a good start; 10,000 and more when safety depends on it.
   All pictures of one part belong in one group, and a group in one split.
2. Put 100 to 500 images from the line's own camera in `calib/`: good and bad parts, every class. A flat folder will
   do. None of them may be in the test split.
3. Then, in this folder:

```sh
defect-opt data check data
defect-opt train --data data --arch resnet18 --out model.onnx
defect-opt build --int8 --calib calib/
defect-opt evaluate {name}-1.0.0.defect --data data --split test
```

4. Copy `{name}-1.0.0.defect` to the device and run `defect-agent check`, then `defect-agent run`.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="the folder to make")


def run(args: argparse.Namespace) -> int:
    """Write the folder; nothing that is there already is touched."""
    from optimize.recipe import RECIPE_FILE, TEMPLATE, bundle_name

    folder: Path = args.folder
    name = bundle_name(folder.absolute().name) or "model"
    files = {
        folder / RECIPE_FILE: TEMPLATE.replace('name: ""', f"name: {name}", 1),
        folder / "README.md": README.format(name=name),
    }
    existing = [path for path in files if path.exists()]
    if existing:
        raise OptimizeError(f"{existing[0]}: is there already", hint="give a new folder, or move the file away")
    try:
        for below in FOLDERS:
            (folder / below).mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        raise OptimizeError(f"{error.filename or folder}: can't be made ({error.strerror})") from error
    print(f"{folder}: put labelled images in data/, calibration images in calib/; README.md has the next commands")
    return DONE
