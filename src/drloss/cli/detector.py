"""``drloss train``, ``config``, ``eval``, ``predict``, ``export`` and ``benchmark``."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from drloss.cli.options import (
    Command,
    at_least,
    configuration,
    data_choice,
    data_options,
    device_option,
    older_name,
    preset_name,
    preset_option,
    require_share,
    settings_options,
    split_options,
)
from drloss.errors import UserError
from drloss.training.config import TRACKERS, to_json
from drloss.training.presets import PRESETS

FORMATS = ("safetensors", "onnx")
"""What ``drloss export`` writes."""
PREDICTIONS = ("jsonl", "coco", "yolo", "csv")
"""What ``drloss predict`` writes."""


def add_train(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> Command:
    parser.usage = "%(prog)s --data DATA (--preset NAME | --config FILE.json) --out OUT [options and settings]"
    split_options(data_options(parser), val_default=None)
    preset_option(parser)
    run = parser.add_argument_group("run")
    run.add_argument("--out", required=True, type=Path, help="run folder to make")
    run.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --out")
    run.add_argument("--force", action="store_true", help="resume although the data or the settings have changed")
    words = "also log to this, offline unless WANDB_MODE or MLFLOW_TRACKING_URI is set; may be given twice"
    run.add_argument("--log", action="append", default=[], choices=TRACKERS, help=words)
    device_option(run)
    settings_options(parser, arguments)
    return _train


def _train(options: argparse.Namespace) -> int:
    from rich.console import Console

    from drloss.distributed.ranks import join_ranks
    from drloss.inference.fitting import fit_data
    from drloss.training.fit import Stopped

    config = configuration(options)
    if options.force and not options.resume:
        raise UserError("--force goes with --resume: it resumes although the data or the settings have changed")
    start = f"--preset {options.preset}" if options.config is None else f"--config {options.config}"
    with join_ranks(options.device) as ranks:
        console = Console(quiet=not ranks.first, highlight=False)
        how = {"resume": options.resume, "force": options.force, "console": console, "start": start}
        how["trackers"] = options.log
        try:
            fitted = fit_data(data_choice(options), config, options.out, ranks, **how)
        except Stopped as stopped:
            console.print(str(stopped), markup=False, soft_wrap=True)
            return 0
        if ranks.first:
            _close(options, fitted.val, ranks.device, console, trained=fitted.trained)
    return 0


def _close(options: argparse.Namespace, val: Any, device: Any, console: Any, *, trained: bool) -> None:
    """Say what the run reached, where everything is, and what to do next."""
    from drloss.evaluation.coco import percent
    from drloss.studies.report.run_page import last_evaluation, write_run_page
    from drloss.training.messages import warn
    from drloss.training.run_folder import MODEL, PAGE

    out = options.out
    if trained:
        try:
            write_run_page(out, val, device)
        except UserError as error:  # the run is whole without it
            warn(console, str(error))
    last = last_evaluation(out)
    reached = f"AP {percent(last['AP'])}, AP50 {percent(last['AP50'])} on {val.name}" if last and val else "trained"
    lines = {"weights": out / MODEL}
    lines |= {"page": out / PAGE} if (out / PAGE).is_file() else {}
    lines |= {"next": f"drloss predict {quote(str(out))} IMAGE_OR_FOLDER --out predictions"}
    if val is not None:
        split = options.val_split or "val"
        same = " --skip-bad" * options.skip_bad + " --follow-links" * options.follow_links
        lines["then"] = f"drloss eval {quote(str(out))} --data {quote(options.data)} --split {split}{same}"
    console.print(reached, markup=False, soft_wrap=True)
    for name, value in lines.items():
        console.print(f"  {name:8} {value}", markup=False, soft_wrap=True)


def add_config(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> Command:
    parser.add_argument("preset", metavar="PRESET", type=preset_name, help=", ".join(PRESETS))
    parser.set_defaults(config=None)
    settings_options(parser, arguments, default=next((a for a in arguments[1:] if a in PRESETS), None))
    return _config


def _config(options: argparse.Namespace) -> int:
    print(json.dumps(to_json(configuration(options)), indent=2))
    return 0


# ---------------------------------------------------------------------- eval, predict, export


def add_eval(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> Command:
    parser.add_argument(
        "run_or_file", metavar="RUN", type=Path, help="run folder, or exported .safetensors or .onnx file"
    )
    data = data_options(parser)
    data.add_argument("--split", default="val", help="split to evaluate on (default: val)")
    older_name(data, "--val-split", "--split")
    _splits_option(data)
    test = parser.add_argument_group("test")
    test.add_argument(
        "--score-threshold",
        type=float,
        metavar="NUMBER",
        help="drop detections below this score (default: the run's)",
    )
    scales = "short sides of a multi-scale test (default: the run's short side alone)"
    test.add_argument("--test-scales", type=int, nargs="+", default=[], metavar="PIXELS", help=scales)
    run = parser.add_argument_group("run")
    run.add_argument("--out", type=Path, help="folder for results, plots and report.html (default: RUN/eval_SPLIT)")
    words = (
        "write the threshold with the best F1 into the exported .safetensors file, from which predict takes it "
        "(default: if the file has none; a training with a validation split has written one)"
    )
    run.add_argument("--keep-threshold", action=argparse.BooleanOptionalAction, default=None, help=words)
    batch = "images per device at a time (default: 2)"
    run.add_argument("--eval-batch-size", type=int, default=2, metavar="INT", help=batch)
    older_name(run, "--batch-size", "--eval-batch-size", type=int)
    run.add_argument("--workers", type=int, default=2, metavar="INT", help="data-loading processes (default: 2)")
    device_option(run)
    return _eval


def _eval(options: argparse.Namespace) -> int:
    from rich.console import Console

    from drloss.distributed.ranks import join_ranks
    from drloss.inference.evaluate import evaluate_run, require_own_results
    from drloss.inference.reading import print_problems, read_split, report_name
    from drloss.studies.report.eval_page import write_eval_page

    with join_ranks(options.device) as ranks:
        console = Console(quiet=not ranks.first, highlight=False)
        out = options.out or default_out(options.run_or_file, f"eval_{options.split}")
        require_own_results(out)
        source = _evaluated(options)
        annotations, report = read_split(source, options.split, options.skip_bad)
        if getattr(source, "made", None):
            console.print(source.note(), markup=False, soft_wrap=True)
        left_out = out / report_name(options.split)
        if report.problems and ranks.first:
            report.write(left_out)
        print_problems(report, left_out, console)
        found = evaluate_run(
            options.run_or_file,
            annotations,
            out,
            ranks,
            batch_size=at_least("--eval-batch-size", options.eval_batch_size, 1),
            workers=at_least("--workers", options.workers, 0),
            score_threshold=require_share("--score-threshold", options.score_threshold),
            test_scales=[at_least("--test-scales", side, 1) for side in options.test_scales],
            keep_threshold=options.keep_threshold,
            console=console,
        )
        if found is not None:
            page = write_eval_page(out, annotations, found)
            console.print(f"page: {page}", markup=False, soft_wrap=True)
    return 0


def _splits_option(group: argparse._ActionsContainer) -> None:
    words = "the file of a run that says which images it held out (default: that in RUN, if there is one)"
    group.add_argument("--splits", type=Path, metavar="splits.json", help=words)


def _evaluated(options: argparse.Namespace) -> Any:
    """The data set; with the images that the run has held out, if it has, and never with others."""
    from drloss.data.formats.opening import open_data
    from drloss.data.held_out import SPLITS_FILE, with_val
    from drloss.training.run_folder import run_of

    if options.splits and not options.splits.is_file():
        raise UserError(f"--splits {options.splits}: no such file; allowed: {SPLITS_FILE} of a run")
    source = open_data(options.data)
    held_out = options.splits or (run_of(options.run_or_file) or options.run_or_file) / SPLITS_FILE
    if held_out.is_file():
        return with_val(source, splits=held_out)
    if options.split not in source.splits and options.run_or_file.is_file():
        raise UserError(
            f"{options.data}: split, got {options.split!r}; allowed: {', '.join(source.splits)}; if the images were "
            f"held out by the training, name its file: --splits RUN/{SPLITS_FILE}"
        )
    return source


def default_out(run: Path, name: str) -> Path:
    return run / name if run.is_dir() else run.parent / f"{run.stem}_{name}"


def add_predict(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> Command:
    parser.add_argument(
        "run_or_file", metavar="RUN", type=Path, help="run folder, or exported .safetensors or .onnx file"
    )
    words = "images, folders of images, patterns, videos, or .txt lists of paths, one a line; in any mix"
    parser.add_argument("sources", metavar="SOURCE", nargs="+", help=words)
    results = parser.add_argument_group("results")
    words = "folder for the results; a command that was stopped goes on there, and skips what is done"
    results.add_argument("--out", required=True, type=Path, help=words)
    words = "one line an image (always written), COCO results, a YOLO text file an image, CSV (default: jsonl)"
    results.add_argument("--format", nargs="+", choices=PREDICTIONS, default=["jsonl"], help=words)
    words = "leave out what scores less (default: the detector's own, and nothing else)"
    results.add_argument("--score-threshold", type=float, metavar="NUMBER", help=words)
    words = "draw and cut out what scores at least this (default: the detector's best, as drloss eval found, or 0.5)"
    results.add_argument("--draw-threshold", type=float, metavar="NUMBER", help=words)
    older_name(results, "--threshold", "--draw-threshold", type=float)
    results.add_argument("--no-pictures", action="store_true", help="draw no pictures and videos")
    results.add_argument("--crops", action="store_true", help="save each object as a picture, in a folder per class")
    results.add_argument("--overwrite", action="store_true", help="remove the results in --out, and begin anew")
    words = "exit with an error if a single image fails (default: if all fail); each is named and listed either way"
    results.add_argument("--strict", action="store_true", help=words)
    tiles = parser.add_argument_group("large images")
    words = "look at larger images also in tiles of this side, at their own resolution (default: no tiles)"
    tiles.add_argument("--tile", type=int, metavar="PIXELS", help=words)
    words = "share of a tile that the next one has too; more than the largest small object (default: 0.2)"
    tiles.add_argument("--overlap", type=float, default=0.2, metavar="NUMBER", help=words)
    run = parser.add_argument_group("run")
    words = "images, or tiles, at a time (default: 8)"
    run.add_argument("--batch-size", type=int, default=8, metavar="INT", help=words)
    run.add_argument("--workers", type=int, default=2, metavar="INT", help="image-reading processes (default: 2)")
    device_option(run)
    return _predict


def _predict(options: argparse.Namespace) -> int:
    from rich.console import Console

    from drloss.inference.predict import predict
    from drloss.inference.predicting.job import Wanted

    wanted = Wanted(
        formats=tuple(options.format),
        score_threshold=require_share("--score-threshold", options.score_threshold),
        draw_threshold=require_share("--draw-threshold", options.draw_threshold),
        pictures=not options.no_pictures,
        crops=options.crops,
        tile=options.tile,
        overlap=options.overlap,
        batch_size=at_least("--batch-size", options.batch_size, 1),
        workers=at_least("--workers", options.workers, 0),
        strict=options.strict,
        overwrite=options.overwrite,
    )
    predict(
        options.run_or_file,
        options.sources,
        options.out,
        wanted,
        device=options.device,
        console=Console(highlight=False),
        errors=Console(stderr=True, highlight=False),
    )
    return 0


def add_export(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> Command:
    parser.add_argument("run_or_file", metavar="RUN", type=Path, help="run folder, or exported .safetensors file")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="file to write")
    words = "safetensors: weights and description, for drloss; onnx: for other runtimes (default: by --out's suffix)"
    parser.add_argument("--format", choices=FORMATS, help=words)
    onnx = parser.add_argument_group("onnx")
    words = "height and width of the input, multiples of 32; or dynamic, any such (default: dynamic)"
    onnx.add_argument("--size", nargs="+", metavar="PIXELS", help=words)
    either = onnx.add_mutually_exclusive_group()
    either.add_argument("--nms", action="store_true", help="with NMS in the graph: the default")
    either.add_argument("--raw", action="store_true", help="without NMS: the best candidates of each pyramid level")
    onnx.add_argument("--half", action="store_true", help="weights and convolutions in float16")
    words = "data set on which the file is compared with torch (default: generated images); as in drloss train"
    onnx.add_argument("--data", help=words)
    onnx.add_argument("--skip-bad", action="store_true", help="leave bad boxes and images of --data out")
    onnx.add_argument("--split", default="val", help="split of --data (default: val)")
    _splits_option(onnx)
    return _export


def _export(options: argparse.Namespace) -> int:
    to_onnx = options.out.suffix == ".onnx" if options.format is None else options.format == "onnx"
    suffix = ".onnx" if to_onnx else ".safetensors"
    if options.out.suffix != suffix:
        other = " or .onnx" if options.format is None else ""
        raise UserError(f"--out must end in {suffix}{other}, got {options.out}")
    if to_onnx:
        return _export_onnx(options)
    for name in ("size", "nms", "raw", "half", "data"):
        if getattr(options, name):
            raise UserError(f"--{name} goes with --format onnx")
    from drloss.detector.exported import save_detector
    from drloss.training.trained import load_run

    model, description = load_run(options.run_or_file)
    save_detector(options.out, model.state_dict(), description)
    backbone, classes = description.detector.backbone, len(description.class_names)
    print(f"{options.out}: {backbone}, {classes} classes, loss {description.loss}")
    return 0


def _export_onnx(options: argparse.Namespace) -> int:
    from rich.console import Console

    from drloss.inference.export import export_onnx
    from drloss.inference.reading import read_split

    annotations = None
    size = _size(options.size)
    if options.data:
        annotations, _ = read_split(_evaluated(options), options.split, options.skip_bad)
    export_onnx(
        options.run_or_file,
        options.out,
        size=size,
        suppress=not options.raw,
        half=options.half,
        annotations=annotations,
        console=Console(highlight=False),
    )
    return 0


def _size(words: list[str] | None) -> tuple[int, int] | None:
    """Height and width of ``--size``; None for any."""
    if words in (None, ["dynamic"]):
        return None
    assert words is not None
    if len(words) > 2 or not all(word.isdecimal() and len(word) < 6 for word in words):
        raise UserError(f"--size must be dynamic, or a height and a width in pixels, got {' '.join(words)}")
    return int(words[0]), int(words[-1])


def add_benchmark(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> Command:
    parser.add_argument(
        "run_or_file", metavar="RUN", type=Path, help="run folder, or exported .safetensors or .onnx file"
    )
    parser.add_argument("--image", type=Path, metavar="FILE", help="a photograph of the usual kind (default: noise)")
    parser.add_argument("--batch-size", type=int, default=8, metavar="INT", help="images of a batch (default: 8)")
    words = "time for each engine and batch size (default: 5)"
    parser.add_argument("--seconds", type=float, default=5.0, metavar="NUMBER", help=words)
    parser.add_argument("--threads", type=int, metavar="INT", help="CPU threads (default: one for each core)")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write what was measured, and with what")
    device_option(parser)
    return _benchmark


def _benchmark(options: argparse.Namespace) -> int:
    from rich.console import Console

    from drloss.inference.speed import benchmark

    benchmark(
        options.run_or_file,
        image=options.image,
        batch_size=options.batch_size,
        seconds=options.seconds,
        threads=options.threads,
        device=options.device,
        out=options.out,
        console=Console(highlight=False),
    )
    return 0
