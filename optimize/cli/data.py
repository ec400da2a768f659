"""`defect-opt data`: `check` says what is wrong with a data set before a model learns it, `split` divides it fairly."""

from __future__ import annotations

import argparse
from pathlib import Path

from agent.console import DONE, FAILED, Parser, number, print_json

__all__ = ["EPILOG", "HELP", "NAME", "add_arguments", "run"]

NAME = "data"
HELP = (
    "Look after a data set: `data check` finds leaks between splits, damaged files, wrong labels and thin classes; "
    "`data split` makes splits that do not leak."
)
EPILOG = """examples:
  defect-opt data check parts/
  defect-opt data check parts/ --contact-sheet sheet.png
  defect-opt data check parts/ --json > check.json
  defect-opt data split parts/ --out splits-1.csv
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
_SPLIT_EPILOG = """examples:
  defect-opt data split parts/ --out splits-1.csv
  defect-opt train --data splits-1.csv
  defect-opt data split parts/ --out splits-1.csv --contact-sheet links.png
  defect-opt data split parts/ --out splits-2.csv --seed 2 --fractions train=0.7,val=0.15,test=0.15 --force
  defect-opt data split parts/ --out splits-3.csv --keep test
  defect-opt data split parts/ --out splits-4.csv --by lot

Pictures that show one part form a group, and a group lies in one split. Two pictures are linked by one of
  copy          the same pixels
  near copy     the same surface in the same place
  exposure      the same scene under another light, shifted a little or not
  overlap       shifted crops that share a tenth of the picture or more
  frame number  neighbours in the number of the file name, where the pictures prove that these are bursts
  column        the data's own `group`, `part` or `lot` (--by)
Not looked for: crops that were rotated, mirrored or scaled, and (in large sets, unless --across-classes is given)
shifted crops in different classes. Splits that the set came with are overlooked, unless --keep names them.

The table has file,class,split,group and, when it does not lie in the data folder, root: the folder that its files are
in. Every command takes the table for its folder (--data splits-1.csv). The pictures stay where they are, and the data
folder may be read-only. Half a minute for 1,500 pictures in six classes.

exit code: 0 written; 1 written, but a class could not be told apart, so that the splits may leak; 2 nothing written.

--json: data, out, n, groups, group_sizes {size: groups}, largest {group, n}, seed, fractions {split: share}, kept[],
moved[], splits {split: {n, groups}}, classes {class: {split: {n, groups}}}, evidence {kind: pairs},
frame_rules[] (pattern, gap, near, near_linked, far, far_linked), alike[], across_classes,
links[] (files, evidence, shift_px [right, down], share, correlation), warnings[], seconds.
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
    add(
        "data",
        type=Path,
        metavar="DIR",
        help="a folder per class, splits.csv (file,class,split[,group]), a table of splits, or a set with boxes",
    )
    add(
        "--contact-sheet",
        type=Path,
        metavar="OUT.png",
        help="draw examples of each class, and the pairs that were found",
    )
    add("--json", action="store_true", help="one JSON document instead of lines")
    _add_split(verbs)


def _add_split(verbs: argparse._SubParsersAction[Parser]) -> None:
    split = verbs.add_parser(
        "split",
        help="make train, calib, val and test that do not leak",
        description="Divide a data set so that no part, strip or tile lies in two splits.",
        epilog=_SPLIT_EPILOG,
    )
    add = split.add_argument
    add("data", type=Path, metavar="DIR", help="a folder per class, splits.csv (file,class), a table, or boxes")
    add("--out", type=Path, metavar="FILE.csv", required=True, help="the table to write")
    add("--force", action="store_true", help="write over a table that exists")
    add(
        "--fractions",
        type=_fractions,
        metavar="SPLIT=SHARE,...",
        help="shares that add up to 1 (train=0.65,calib=0.05,val=0.12,test=0.18)",
    )
    add("--seed", type=number(int, 0, 2**32 - 1), default=0, metavar="N", help="decides between groups alike (0)")
    add(
        "--keep",
        action="append",
        default=[],
        choices=("train", "calib", "val", "test"),
        help="leave the pictures of this split in it; pictures of the same surfaces join them; may be given again",
    )
    add(
        "--by",
        metavar="COLUMN",
        help="the column that names a part or lot (the first of group, part, lot); none to overlook them",
    )
    add(
        "--across-classes",
        action=argparse.BooleanOptionalAction,
        help="look for shifted crops between classes too (by itself up to about 770 pictures)",
    )
    add("--contact-sheet", type=Path, metavar="OUT.png", help="draw pairs by evidence, and the largest group")
    add("--json", action="store_true", help="one JSON document instead of lines")


def _fractions(text: str) -> dict[str, float]:
    try:
        pairs = [part.split("=") for part in text.split(",")]
        shares = {name.strip(): float(share) for name, share in pairs}
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected train=0.7,val=0.15,test=0.15") from None
    if len(shares) < len(pairs):
        raise argparse.ArgumentTypeError(f"got {text!r}, which names a split twice")
    return shares


def run(args: argparse.Namespace) -> int:
    """Check or split."""
    return _split(args) if args.verb == "split" else _check(args)


def _check(args: argparse.Namespace) -> int:
    """Check, say what was found, and fail on what must not stay."""
    from optimize.box_readers import read_labels
    from optimize.data_check import check_data, report_json, report_lines, write_contact_sheet
    from optimize.progress import open_progress

    dataset = read_labels(args.data)
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


def _split(args: argparse.Namespace) -> int:
    """Group, deal, write, and say on what grounds."""
    from optimize.box_readers import read_labels
    from optimize.data_split import (
        SPLIT_FRACTIONS,
        check_out,
        group_pictures,
        plan_json,
        plan_lines,
        plan_splits,
        write_split_sheet,
        write_splits,
    )
    from optimize.dataset import check_fractions
    from optimize.errors import DataError
    from optimize.progress import open_progress

    fractions = args.fractions or SPLIT_FRACTIONS
    check_out(args.out, is_forced=args.force)
    check_fractions(fractions)
    if (
        args.data.exists()
        and args.out.exists()
        and args.out.resolve() in {args.data.resolve(), args.data.resolve() / "splits.csv"}
    ):
        raise DataError(
            f"{args.out}: is what the splits are made from", hint="give another name: its groups would be lost"
        )
    by = "" if args.by == "none" else args.by
    dataset = read_labels(args.data, has_splits=bool(args.keep), group_by=by)
    with open_progress() as progress:
        grouping = group_pictures(dataset, progress, is_across_classes=args.across_classes)
        plan = plan_splits(grouping, seed=args.seed, fractions=fractions, keep=args.keep)
        write_splits(plan, args.out, is_forced=args.force)
        if args.contact_sheet is not None:
            progress.step(f"drawing {args.contact_sheet}")
            write_split_sheet(plan, args.contact_sheet)
    if args.json:
        print_json(plan_json(plan, args.out))
    else:
        print("\n".join(plan_lines(plan, args.out)))
    return FAILED if grouping.alike else DONE
