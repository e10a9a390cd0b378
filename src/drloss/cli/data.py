"""``drloss check-data`` and ``make-shapes``."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from drloss.cli.options import DEFAULT_PRESET, Command, default_preset, preset_name
from drloss.errors import UserError
from drloss.training.config import override
from drloss.training.presets import PRESETS


def add_check_data(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> Command:
    parser.add_argument("data", metavar="DATA", help="data set, as for train --data")
    model = parser.add_argument_group("model", "says whether the objects are large enough for the detector's anchors")
    names = f"{', '.join(PRESETS)} (default: {DEFAULT_PRESET})"
    model.add_argument("--preset", type=preset_name, metavar="NAME", help=names)
    short = "short side of the images in pixels (default: the preset's)"
    model.add_argument("--short-side", type=int, metavar="INT", help=short)
    run = parser.add_argument_group("run")
    run.add_argument("--report", type=Path, metavar="FILE.json", help="also write everything found to this file")
    return _check_data


def _check_data(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import Progress

    from drloss.data.inspection import check_data
    from drloss.io.atomic import write_json

    preset = options.preset or default_preset(options.data)
    size = _input_size(preset, options.short_side)

    with Progress(console=Console(stderr=True), transient=True) as progress:
        tasks: dict[str, Any] = {}

        def advance(split: str, done: int, total: int) -> None:
            if split not in tasks:
                tasks[split] = progress.add_task(f"images of {split}", total=total)
            progress.update(tasks[split], completed=done)

        result = check_data(options.data, size=size, progress=advance)
    print(result.text())
    if result.ok:
        print(f"next: drloss train --data {quote(options.data)} --preset {preset} --out runs/first")
    if options.report:
        write_json(options.report, result.to_json())
        print(f"all of it is in {options.report}")
    return 0 if result.ok else 1


def _input_size(preset: str, short_side: int | None) -> Any:
    """Sizes to which a training with this preset brings images, and its smallest anchor."""
    from drloss.data.checks.remarks import InputSize

    config = override(PRESETS[preset], {} if short_side is None else {"short_side": short_side}).detector
    smallest = config.strides[0] * config.anchor_scale
    name = preset if short_side is None else f"{preset} --short-side {short_side}"
    return InputSize(name, config.short_side, config.max_side, smallest, config.positive_iou)


def add_make_shapes(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> Command:
    parser.add_argument("folder", type=Path, help="folder to write")
    data = parser.add_argument_group("data")
    data.add_argument("--data", default="shapes", help="shapes:size=128,train=1024,... (default: shapes)")
    data.add_argument("--format", choices=("coco", "voc", "yolo"), default="coco", help="layout (default: coco)")
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
