"""`defect-opt data check`: what is wrong with a data set, before a model learns it."""

from __future__ import annotations

import argparse
from pathlib import Path

from agent.console import DONE, FAILED, Parser, print_json

__all__ = ["EPILOG", "HELP", "NAME", "add_arguments", "run"]

NAME = "data"
HELP = "Look after a data set: `data check` finds leaks between splits, damaged files, wrong labels and thin classes."
EPILOG = """examples:
  defect-opt data check parts/
  defect-opt data check parts/ --contact-sheet sheet.png
  defect-opt data check parts/ --json > check.json
"""
_CHECK_EPILOG = """examples:
  defect-opt data check parts/
  defect-opt data check parts/ --contact-sheet sheet.png
  defect-opt data check parts/ --json > check.json

A picture in `test` that a model has seen in `train`, be it as a copy, as another exposure or as an overlapping crop of
the same surface, makes every number better than it is. Each line says ok, warn or fail, and what to do. Half a minute
for 1,500 pictures in six classes; it grows with the square of the largest class.

exit code: 1 when a line says fail (a leak across splits, an unreadable file, one picture with two classes), else 0.

--json: data, verdict (ok, warn, fail), checks[] (name, verdict, text, remedy), n, ignored, splits {split: n},
classes {class: {split: n, all: n}}, sizes[] (width_px, height_px, n), colour {grey, colour},
unreadable[] (file, reason), exact_duplicates[] (files, classes, splits, leak),
near_duplicates[] (files, classes, splits, correlation, leak),
overlaps[] (files, class, splits, shift_px [right, down], share, correlation, peak, leak), seconds.
`leak` is true where the pictures lie in different splits, one of which is used to choose or to judge (val, test).
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=Parser)
    check = verbs.add_parser(
        "check",
        help="find leaks, duplicates, damaged files, wrong labels and thin classes",
        description="Check a data set before a model learns it.",
        epilog=_CHECK_EPILOG,
    )
    add = check.add_argument
    add("data", type=Path, metavar="DIR", help="a folder per class, or splits.csv (file,class,split[,group])")
    add(
        "--contact-sheet",
        type=Path,
        metavar="OUT.png",
        help="draw examples of each class, and the pairs that were found",
    )
    add("--json", action="store_true", help="one JSON document instead of lines")


def run(args: argparse.Namespace) -> int:
    """Check, say what was found, and fail on what must not stay."""
    from optimize.data_check import check_data, report_json, report_lines, write_contact_sheet
    from optimize.dataset import read_dataset
    from optimize.progress import open_progress

    dataset = read_dataset(args.data)
    with open_progress() as progress:
        found = check_data(dataset, progress)
        if args.contact_sheet is not None:
            progress.step(f"drawing {args.contact_sheet}")
            write_contact_sheet(found, args.contact_sheet)
    if args.json:
        print_json(report_json(found))
    else:
        print("\n".join(report_lines(found)))
    return FAILED if found.verdict == "fail" else DONE
