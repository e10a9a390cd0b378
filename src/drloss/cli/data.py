"""``drloss data``, which is also called ``check-data``, and ``make-shapes``."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from drloss.cli.options import (
    DEFAULT_PRESET,
    VAL_FRACTION,
    Command,
    default_preset,
    input_size,
    preset_name,
)
from drloss.errors import UserError
from drloss.training.config import override
from drloss.training.presets import PRESETS


def add_data(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> Command:
    parser.add_argument("data", metavar="DATA", help="data set, as for train --data")
    parser.add_argument("--follow-links", action="store_true", help="take links that lead out of the data set")
    model = parser.add_argument_group("model", "says whether the objects are large enough for the detector's anchors")
    names = f"{', '.join(PRESETS)} (default: {DEFAULT_PRESET})"
    model.add_argument("--preset", type=preset_name, metavar="NAME", help=names)
    short = "short side of the images in pixels (default: the preset's)"
    model.add_argument("--short-side", type=int, metavar="INT", help=short)
    run = parser.add_argument_group("run")
    run.add_argument("--report", type=Path, metavar="FILE.json", help="also write everything found to this file")
    run.add_argument("--page", type=Path, metavar="FILE.html", help="also write a page with pictures and their boxes")
    toml = "also write a data file that says where everything is, to be edited"
    run.add_argument("--write", type=Path, metavar="FILE.toml", help=toml)
    convert = "also write the images and boxes to a new folder in format coco, voc or yolo"
    run.add_argument("--convert", nargs=2, metavar=("FORMAT", "OUT"), help=convert)
    return _data


def _data(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import Progress

    from drloss.data.formats.opening import open_data
    from drloss.data.inspection import check_data
    from drloss.io.atomic import write_json

    preset = options.preset or default_preset(options.data)
    size = _input_size(preset, options.short_side)
    if options.convert:
        _require_new(options.convert)
    source = open_data(options.data, follow_links=options.follow_links)

    with Progress(console=Console(stderr=True), transient=True) as progress:
        tasks: dict[str, Any] = {}

        def advance(split: str, done: int, total: int) -> None:
            if split not in tasks:
                tasks[split] = progress.add_task(f"images of {split}", total=total)
            progress.update(tasks[split], completed=done)

        result = check_data(source, size=size, progress=advance)
    print(result.text())
    if "val" not in source.splits and result.reports:
        share = f"{VAL_FRACTION:.0%}"
        print(f"no split val: drloss train holds out {share} of the images (--val-fraction, --val-split none)")
    if result.ok:
        print(f"next: drloss train --data {quote(options.data)} --preset {preset} --out runs/first")
    if options.report:
        write_json(options.report, result.to_json())
        print(f"all of it is in {options.report}")
    if options.page:
        _write_page(options.page, source, result)
    if options.write:
        from drloss.data.formats.toml_writing import write_data_toml

        write_data_toml(options.write, source)
        print(f"data file: {options.write}")
    if options.convert:
        _convert(source, result, *options.convert)
    return 0 if result.ok else 1


def _write_page(path: Path, source: Any, result: Any) -> None:
    from drloss.studies.report.data_page import write_data_page

    splits = {split: source.read(split, strict=False)[0] for split in result.reports}
    write_data_page(path, result, splits)
    print(f"page: {path}")


def _require_new(convert: Sequence[str]) -> None:
    kind, out = convert
    if kind not in ("coco", "voc", "yolo"):
        raise UserError(f"--convert {kind}: format; allowed: coco, voc, yolo")
    if Path(out).exists() and (Path(out).is_file() or any(Path(out).iterdir())):
        raise UserError(f"--convert {kind} {out}: is a file, or a folder that is not empty; name a new folder")


def _convert(source: Any, result: Any, kind: str, out: str) -> None:
    """Write every split that can be read, with its good images and boxes."""
    from drloss.data.checks.images import require_images
    from drloss.data.files.survey import WHOLE
    from drloss.data.formats import writing

    write = {"coco": writing.write_coco, "voc": writing.write_voc, "yolo": writing.write_yolo}[kind]
    for split in result.reports:
        annotations, report = require_images(*source.read(split, strict=False), strict=False)
        write(annotations, Path(out), "train" if split == WHOLE else split)
        print(f"{out}: {report.summary()}")


def _input_size(preset: str, short_side: int | None) -> Any:
    config = override(PRESETS[preset], {} if short_side is None else {"short_side": short_side})
    return input_size(f"--preset {preset}" + ("" if short_side is None else f" --short-side {short_side}"), config)


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
