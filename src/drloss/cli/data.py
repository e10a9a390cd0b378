"""``drloss check-data`` and ``make-shapes``."""

import argparse
from pathlib import Path
from typing import Any

from drloss.cli.options import Command
from drloss.errors import UserError


def add_check_data(parser: argparse.ArgumentParser) -> Command:
    parser.add_argument("data", metavar="DATA", help="as for train --data")
    parser.add_argument("--report", type=Path, metavar="FILE.json", help="also write everything found to this file")
    return _check_data


def _check_data(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import Progress

    from drloss.data.checks.inspection import check_data
    from drloss.io.atomic import write_json

    with Progress(console=Console(stderr=True), transient=True) as progress:
        tasks: dict[str, Any] = {}

        def advance(split: str, done: int, total: int) -> None:
            if split not in tasks:
                tasks[split] = progress.add_task(f"images of {split}", total=total)
            progress.update(tasks[split], completed=done)

        result = check_data(options.data, progress=advance)
    print(result.text())
    if options.report:
        write_json(options.report, result.to_json())
        print(f"all of it is in {options.report}")
    return 0 if result.ok else 1


def add_make_shapes(parser: argparse.ArgumentParser) -> Command:
    parser.add_argument("folder", type=Path, help="folder to write")
    parser.add_argument("--data", default="shapes", help="shapes:key=value,... (default: shapes)")
    parser.add_argument("--format", choices=("coco", "voc", "yolo"), default="coco", help="layout (default: coco)")
    return _make_shapes


def _make_shapes(options: argparse.Namespace) -> int:
    from drloss.data.formats import writing
    from drloss.data.formats.shapes import open_shapes

    write = {"coco": writing.write_coco, "voc": writing.write_voc, "yolo": writing.write_yolo}[options.format]
    if options.folder.exists() and any(options.folder.iterdir()):
        raise UserError(f"{options.folder} is not empty; name a new folder")
    if options.data.partition(":")[0] != "shapes":
        raise UserError(f"--data must be shapes or shapes:key=value,..., got {options.data}")
    source = open_shapes(options.data)
    for split in source.splits:
        annotations, _ = source.read(split)
        write(annotations, options.folder, split)
        print(f"{options.folder}: {split}, {len(annotations)} images, {len(annotations.boxes)} boxes")
    return 0
