"""``drloss data``, which is also called ``check-data``, and ``make-shapes``."""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from drloss.cli.options import (
    DEFAULT_PRESET,
    Command,
    preset_name,
)
from drloss.errors import UserError
from drloss.training.config import override
from drloss.training.presets import PRESETS, default_preset

_FORMATS = """\
folders that are recognised:
  COCO         a .json file with images, annotations and categories, its images beside it or below
  PASCAL VOC   Annotations + JPEGImages, or .xml files beside the images or in a folder of their own
  YOLO         data.yaml; or .txt files of labels, with or without classes.txt, obj.names, ...
  CSV          a row for each box: TensorFlow, Roboflow, keras-retinanet, Open Images
  LabelMe      a .json file for each image
  CreateML     a .json list of images
  CVAT         annotations.xml, "CVAT for images"
  imagefolder  metadata.jsonl beside the images (Hugging Face)
splits are told from names: train, val, valid, validation, test; docs/data.md has the rules"""


def add_data(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> Command:
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, _FORMATS
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
    from drloss.data.formats.toml_writing import require_new_toml, write_data_toml
    from drloss.data.held_out import with_val
    from drloss.data.inspection import check_data
    from drloss.data.splitting import VAL_FRACTION
    from drloss.io.atomic import write_json

    preset = options.preset or default_preset(options.data)
    size = _input_size(preset, options.short_side)
    if options.convert:
        _require_new(options.convert)
    if options.write:
        require_new_toml(options.write)
    source = open_data(options.data)

    with Progress(console=Console(stderr=True), transient=True) as progress:
        tasks: dict[str, Any] = {}

        def advance(split: str, done: int, total: int) -> None:
            if split not in tasks:
                tasks[split] = progress.add_task(f"images of {split}", total=total)
            progress.update(tasks[split], completed=done)

        result = check_data(source, size=size, progress=advance)
    print(result.text())
    if "val" not in with_val(source).splits:
        print("no split val, and none to hold one out from: drloss train does not evaluate")
    elif "val" not in source.splits and source.format != "shapes":
        share = f"{VAL_FRACTION:.0%}"
        print(f"no split val: drloss train holds out {share} of the images (--val-fraction, --val-split none)")
    if result.ok:
        side = "" if options.short_side is None else f" --short-side {options.short_side}"
        print(f"next: drloss train --data {quote(options.data)} --preset {preset}{side} --out runs/first")
    if options.report:
        write_json(options.report, result.to_json())
        print(f"all of it is in {options.report}")
    if options.page:
        _write_page(options.page, source, result)
    if options.write:
        write_data_toml(options.write, source)
        print(f"data file: {options.write}")
    if options.convert:
        _convert(source, result, *options.convert)
    return 0 if result.ok else 1


def _good(source: Any, result: Any) -> dict[str, Any]:
    """Split to its annotations without what is bad, and their report, of every split that can be read."""
    from drloss.data.checks.images import check_images

    return {s: check_images(*source.read(s, strict=False), strict=False) for s in result.reports}


def _write_page(path: Path, source: Any, result: Any) -> None:
    from drloss.studies.report.data_page import write_data_page

    write_data_page(path, result, {split: good for split, (good, _) in _good(source, result).items()})
    print(f"page: {path}")


def _require_new(convert: Sequence[str]) -> None:
    kind, out = convert
    if kind not in ("coco", "voc", "yolo"):
        raise UserError(f"--convert {kind}: format; allowed: coco, voc, yolo")
    if Path(out).exists() and (Path(out).is_file() or any(Path(out).iterdir())):
        raise UserError(f"--convert {kind} {out}: is a file, or a folder that is not empty; name a new folder")


def _convert(source: Any, result: Any, kind: str, out: str) -> None:
    """Write every split that can be read, without what is bad, into a folder that is there when it is whole."""
    from drloss.data.files.survey import WHOLE
    from drloss.data.formats import writing

    write = {"coco": writing.write_coco, "voc": writing.write_voc, "yolo": writing.write_yolo}[kind]
    whole = "train" if "train" not in result.reports else WHOLE
    part = Path(out).absolute().with_name(f"{Path(out).name}.unfinished")
    shutil.rmtree(part, ignore_errors=True)
    lines = []
    try:
        for split, (annotations, report) in _good(source, result).items():
            write(annotations, part, whole if split == WHOLE else split)
            lines.append(f"{out}: {report.summary()}")
        if Path(out).exists():
            Path(out).rmdir()
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    print("\n".join(lines))


def _input_size(preset: str, short_side: int | None) -> Any:
    from drloss.inference.fitting import input_size

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
