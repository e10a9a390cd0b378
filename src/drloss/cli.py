"""The command line: ``drloss train | eval | predict | export | compare | reproduce | check-data | ...``.

Heavy imports are inside the commands, so that ``--help`` answers at once. A user's error ends in a line or two and
exit code 2; only a fault of ours shows a traceback.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from drloss.errors import UserError

if TYPE_CHECKING:
    from drloss.studies.schematics import Ranking
    from drloss.training.config import Config

USER_ERROR = 2
INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    """Errors in two lines instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR, f"{self.prog}: error: {message}\n(see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        return _run(arguments)
    except UserError as error:
        print(f"drloss: error: {error}", file=sys.stderr)
        return USER_ERROR
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("drloss: interrupted", file=sys.stderr)
        return INTERRUPTED
    except ModuleNotFoundError as error:
        package = (error.name or "drloss").split(".")[0]
        if package == "drloss":
            raise
        print(f"drloss: error: {package} is missing: pip install 'drloss[detector]'", file=sys.stderr)
        return USER_ERROR


def _run(arguments: Sequence[str]) -> int:
    parser = _Parser(prog="drloss", description="Dense object detection with the DR loss.", allow_abbrev=False)
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, (describe, add) in _COMMANDS.items():
        sub = commands.add_parser(name, help=describe, description=describe, allow_abbrev=False)
        # Only the command that is asked for defines its options: train's need the configuration, and so torch.
        if name in arguments[:1]:
            sub.set_defaults(run=add(sub))
    options = parser.parse_args(arguments)
    if options.version:
        import drloss

        print(f"drloss {drloss.__version__}")
        return 0
    if options.command is None:
        parser.print_help()
        return 0
    code: int = options.run(options)
    return code


_Command = Callable[[argparse.Namespace], int]


def _data_option(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    parser.add_argument(
        "--data",
        required=required,
        help="shapes (generated; shapes:size=128,train=1024,...), a COCO, VOC or YOLO folder, or a .toml file",
    )
    parser.add_argument(
        "--skip-bad", action="store_true", help="read every image first; leave bad boxes and images out and list them"
    )


def _device_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda where there is one)")


# ---------------------------------------------------------------------- train


def _add_train(parser: argparse.ArgumentParser) -> _Command:
    from drloss.training.presets import PRESETS

    _data_option(parser)
    parser.add_argument("--preset", required=True, choices=list(PRESETS), metavar="NAME", help=", ".join(PRESETS))
    parser.add_argument("--out", required=True, type=Path, help="run folder to make")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --out")
    parser.add_argument("--train-split", default="train", metavar="SPLIT", help="split to train on (default: train)")
    parser.add_argument("--val-split", metavar="SPLIT", help="split to evaluate on (default: val, if there is one)")
    _device_option(parser)
    _settings_options(parser)
    return _train


def _settings_options(parser: argparse.ArgumentParser, *, without: Sequence[str] = ()) -> None:
    from drloss.training.config import OPTIONS

    settings = parser.add_argument_group("settings", "each replaces the preset's value; lists with commas")
    for name, kind in OPTIONS.items():
        if name in without:
            continue
        flag = "--" + name.replace("_", "-")
        if kind is bool:
            settings.add_argument(flag, action=argparse.BooleanOptionalAction, default=None)
        else:
            settings.add_argument(flag, metavar=_metavar(kind))


def _metavar(kind: Any) -> str:
    return {int: "INT", float: "NUMBER", str: "NAME"}.get(kind, "LIST")


def _configuration(options: argparse.Namespace) -> "Config":
    from drloss.training.config import override
    from drloss.training.presets import PRESETS

    return override(PRESETS[options.preset], _settings(options))


def _settings(options: argparse.Namespace) -> dict[str, object]:
    """The settings that were given, by name."""
    from drloss.training.config import OPTIONS, parse_value

    given = {name: getattr(options, name, None) for name in OPTIONS}
    return {n: parse_value(n, v) if isinstance(v, str) else v for n, v in given.items() if v is not None}


def _train(options: argparse.Namespace) -> int:
    from rich.console import Console

    from drloss.data.sources import open_data
    from drloss.ranks import join_ranks
    from drloss.training.fit import Stopped, fit

    config = _configuration(options)
    if options.out.exists() and not options.out.is_dir():
        raise UserError(f"--out {options.out}: is a file; name a folder")
    source = open_data(options.data)
    with join_ranks(options.device) as ranks:
        console = Console(quiet=not ranks.first, highlight=False)
        train, val = _read_splits(source, options, console, ranks.first)
        try:
            fit(config, train, val, options.out, ranks, resume=options.resume, console=console)
        except Stopped as stopped:
            console.print(str(stopped))
            return INTERRUPTED
        console.print(f"the run is in {options.out}; its weights are {options.out / 'model.safetensors'}")
    return 0


def _read_splits(source: Any, options: argparse.Namespace, console: Any, first: bool) -> tuple[Any, Any]:
    """Training split and, where there is one, validation split."""
    reports = options.out if first else None
    train = _read(source, options.train_split, options.skip_bad, console, reports)
    if options.val_split is None and "val" not in source.splits:
        console.print(f"{source.name} has no split val: training without evaluation (--val-split names one)")
        return train, None
    return train, _read(source, options.val_split or "val", options.skip_bad, console, reports)


def _read(source: Any, split: str, skip_bad: bool, console: Any, reports: Path | None) -> Any:
    """A split; what is left out of it is printed, and written to ``reports`` where that is a folder."""
    from drloss.data.images import check_images, require_images

    annotations, report = source.read(split, strict=not skip_bad)
    if skip_bad:
        annotations, report = check_images(annotations, report, strict=False)
    else:
        annotations, report = require_images(annotations, report)
    if report.problems and reports is not None:
        path = reports / f"data_{split}.json"
        report.write(path)
        console.print(report.text(path), markup=False, soft_wrap=True)
    return annotations


# ---------------------------------------------------------------------- eval, predict, export


def _add_eval(parser: argparse.ArgumentParser) -> _Command:
    parser.add_argument("run_or_file", metavar="RUN", type=Path, help="run folder or exported .safetensors file")
    _data_option(parser)
    parser.add_argument("--split", default="val", help="split to evaluate (default: val)")
    parser.add_argument("--out", type=Path, help="folder for results and plots (default: RUN/eval_SPLIT)")
    parser.add_argument("--batch-size", type=int, default=2, help="images at a time (default: 2)")
    parser.add_argument("--workers", type=int, default=2, help="data-loading processes (default: 2)")
    parser.add_argument("--score-threshold", type=float, help="drop detections below this score (default: the run's)")
    _device_option(parser)
    return _eval


def _eval(options: argparse.Namespace) -> int:
    from rich.console import Console

    from drloss.data.sources import open_data
    from drloss.ranks import join_ranks
    from drloss.studies.evaluate import evaluate_run

    with join_ranks(options.device) as ranks:
        console = Console(quiet=not ranks.first, highlight=False)
        out = options.out or _default_out(options.run_or_file, f"eval_{options.split}")
        reports = out if ranks.first else None
        annotations = _read(open_data(options.data), options.split, options.skip_bad, console, reports)
        evaluate_run(
            options.run_or_file,
            annotations,
            out,
            ranks,
            batch_size=_at_least("--batch-size", options.batch_size, 1),
            workers=_at_least("--workers", options.workers, 0),
            score_threshold=_share("--score-threshold", options.score_threshold),
            console=console,
        )
    return 0


def _default_out(run: Path, name: str) -> Path:
    return run / name if run.is_dir() else run.parent / f"{run.stem}_{name}"


def _at_least(option: str, value: int, least: int) -> int:
    if value < least:
        raise UserError(f"{option} must be at least {least}, got {value}")
    return value


def _share(option: str, value: float | None) -> float | None:
    if value is not None and not 0 <= value <= 1:
        raise UserError(f"{option} must lie in 0..1, got {value}")
    return value


def _add_predict(parser: argparse.ArgumentParser) -> _Command:
    parser.add_argument("run_or_file", metavar="RUN", type=Path, help="run folder or exported .safetensors file")
    parser.add_argument("images", metavar="IMAGE_OR_FOLDER", type=Path, help="an image, or a folder of images")
    parser.add_argument("--out", required=True, type=Path, help="folder for pictures and predictions.json")
    parser.add_argument(
        "--threshold", type=float, default=0.5, help="draw detections from this score on (default: 0.5)"
    )
    _device_option(parser)
    return _predict


def _predict(options: argparse.Namespace) -> int:
    from rich.console import Console

    from drloss.ranks import join_ranks
    from drloss.studies.predict import predict_images

    threshold = _share("--threshold", options.threshold)
    assert threshold is not None
    with join_ranks(options.device) as ranks:
        predict_images(
            options.run_or_file,
            options.images,
            options.out,
            ranks,
            threshold=threshold,
            console=Console(highlight=False),
        )
    return 0


def _add_export(parser: argparse.ArgumentParser) -> _Command:
    parser.add_argument("run_or_file", metavar="RUN", type=Path, help="run folder")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.safetensors", help="file to write")
    return _export


def _export(options: argparse.Namespace) -> int:
    from drloss.detector.weights import save_detector
    from drloss.training.checkpoints import load_run

    if options.out.suffix != ".safetensors":
        raise UserError(f"--out must end in .safetensors, got {options.out}")
    model, about = load_run(options.run_or_file)
    save_detector(options.out, model.state_dict(), about)
    print(f"{options.out}: {about.detector.backbone}, {len(about.class_names)} classes, loss {about.loss}")
    return 0


# ---------------------------------------------------------------------- compare


def _add_compare(parser: argparse.ArgumentParser) -> _Command:
    from drloss.training.presets import PRESETS

    _data_option(parser)
    losses = "losses, the one to beat first; with parameters if wanted: dr:neg_lambda=0.05 (default: focal dr)"
    parser.add_argument("--losses", nargs="+", default=["focal", "dr"], metavar="LOSS", help=losses)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="INT", help="default: 0 1 2")
    parser.add_argument("--preset", default="cpu", choices=list(PRESETS), metavar="NAME", help=", ".join(PRESETS))
    parser.add_argument("--out", required=True, type=Path, help="folder for runs and report; what is done is kept")
    parser.add_argument(
        "--jobs", type=int, metavar="INT", help="runs at a time (default: one per CUDA device, two on a CPU)"
    )
    parser.add_argument("--train-split", default="train", metavar="SPLIT", help="split to train on (default: train)")
    parser.add_argument("--val-split", default="val", metavar="SPLIT", help="split to compare on (default: val)")
    _device_option(parser)
    _settings_options(parser, without=("loss", "seed"))
    return _compare


def _compare(options: argparse.Namespace) -> int:
    from rich.console import Console

    from drloss.data.sources import open_data
    from drloss.ranks import join_ranks
    from drloss.studies.compare import run_compare
    from drloss.studies.farm import devices_for

    with join_ranks(options.device) as ranks:
        if ranks.size > 1:
            raise UserError("compare runs several trainings of its own: start it without torchrun")
        at_once = 2 if ranks.device.type == "cpu" else len(devices_for(ranks.device))
        jobs = at_once if options.jobs is None else _at_least("--jobs", options.jobs, 1)
        run_compare(
            open_data(options.data),
            options.losses,
            options.seeds,
            options.preset,
            _settings(options),
            _as_options(options),
            (options.train_split, options.val_split),
            options.out,
            ranks,
            at_once=jobs,
            skip_bad=options.skip_bad,
            console=Console(highlight=False),
        )
    return 0


def _as_options(options: argparse.Namespace) -> list[str]:
    """Data and settings as they were given, for a ``drloss train`` of its own."""
    from drloss.training.config import OPTIONS

    found = ["--data", options.data, "--train-split", options.train_split, "--val-split", options.val_split]
    found += ["--skip-bad"] if options.skip_bad else []
    for name in OPTIONS:
        value, flag = getattr(options, name, None), name.replace("_", "-")
        if isinstance(value, bool):
            found.append(f"--{'' if value else 'no-'}{flag}")
        elif value is not None and name not in ("loss", "seed"):
            found += [f"--{flag}", value]
    return found


# ---------------------------------------------------------------------- data and demo


def _add_check_data(parser: argparse.ArgumentParser) -> _Command:
    parser.add_argument("data", metavar="DATA", help="as for train --data")
    parser.add_argument("--report", type=Path, metavar="FILE.json", help="also write everything found to this file")
    return _check_data


def _check_data(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import Progress

    from drloss.data.check import check_data
    from drloss.files import write_json

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


def _add_make_shapes(parser: argparse.ArgumentParser) -> _Command:
    parser.add_argument("folder", type=Path, help="folder to write")
    parser.add_argument("--data", default="shapes", help="shapes:key=value,... (default: shapes)")
    parser.add_argument("--format", choices=("coco", "voc", "yolo"), default="coco", help="layout (default: coco)")
    return _make_shapes


def _make_shapes(options: argparse.Namespace) -> int:
    from drloss.data import writing
    from drloss.data.shapes import open_shapes

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


def _add_demo(parser: argparse.ArgumentParser) -> _Command:
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder to write (default: demo)")
    parser.add_argument("--data", default="shapes", help="as for train (default: shapes)")
    parser.add_argument("--max-iters", type=int, help="iterations of each run (default: the cpu preset's)")
    parser.add_argument("--seed", type=int, default=0, help="of both runs (default: 0)")
    _device_option(parser)
    return _demo


def _demo(options: argparse.Namespace) -> int:
    from rich.console import Console

    from drloss.data.sources import open_data
    from drloss.ranks import join_ranks
    from drloss.studies.demo import run_demo

    with join_ranks(options.device) as ranks:
        if ranks.size > 1:
            raise UserError("drloss demo runs in one process; torchrun is for drloss train")
        run_demo(
            open_data(options.data),
            options.out,
            ranks,
            max_iters=options.max_iters,
            seed=options.seed,
            console=Console(highlight=False),
        )
    return 0


# ---------------------------------------------------------------------- reproduce


def _add_reproduce(parser: argparse.ArgumentParser) -> _Command:
    from drloss.studies.paper import SCALES
    from drloss.studies.reproduce import WHAT
    from drloss.studies.schematics import POINTS

    parser.add_argument("what", nargs="+", choices=WHAT, metavar="WHAT", help=", ".join(WHAT))
    _data_option(parser, required=False)
    parser.add_argument(
        "--scale", choices=SCALES, default="laptop", help="the paper's presets, or the preset cpu (default: laptop)"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="INT", help="default: 0 1 2")
    parser.add_argument(
        "--out", type=Path, default=Path("reproduction"), help="folder; what is done is kept (default: reproduction)"
    )
    parser.add_argument("--shard", default="1/1", metavar="I/N", help="train every N-th run from the I-th on")
    parser.add_argument(
        "--jobs", type=int, metavar="INT", help="runs at a time (default: one per CUDA device, two on a CPU)"
    )
    parser.add_argument("--points", type=int, default=POINTS, metavar="INT", help=f"of figure2 (default: {POINTS})")
    parser.add_argument(
        "--scores-of", type=Path, metavar="RUN", help="trained run whose scores figure1 shows (split val of --data)"
    )
    _device_option(parser)
    _settings_options(parser, without=("loss", "seed"))
    return _reproduce


def _reproduce(options: argparse.Namespace) -> int:
    from drloss.studies.reproduce import FIGURES, choose_tables
    from drloss.studies.schematics import write_schematic

    given = _settings(options)
    tables = choose_tables(options.what, options.scale, given)
    figures = [name for name in FIGURES if name in options.what or "all" in options.what]
    points = _at_least("--points", options.points, 1)
    if tables and options.scale == "paper" and options.data is None:
        raise UserError("--data: the paper's scale needs the paper's data: a COCO folder, for table7 VOC2007")
    if options.scores_of is not None and (options.data is None or "figure1" not in figures):
        raise UserError(f"--scores-of {options.scores_of}: is for figure1, and needs --data with a split val")
    ranking = _ranking(options) if options.scores_of is not None else None
    for name in figures:
        for path in write_schematic(options.out, name, points, ranking):
            print(path)
    return _reproduce_tables(options, tables, given) if tables else 0


def _ranking(options: argparse.Namespace) -> "Ranking":
    from rich.console import Console

    from drloss.data.sources import open_data
    from drloss.ranks import join_ranks
    from drloss.studies.reproduce import scores_of

    with join_ranks(options.device) as ranks:
        annotations = _read(open_data(options.data), "val", options.skip_bad, Console(highlight=False), None)
        return scores_of(options.scores_of, annotations, ranks)


def _reproduce_tables(options: argparse.Namespace, tables: list[str], given: dict[str, object]) -> int:
    from rich.console import Console

    from drloss.data.sources import open_data
    from drloss.ranks import join_ranks
    from drloss.studies.farm import devices_for
    from drloss.studies.reproduce import reproduce_tables

    console = Console(highlight=False)
    source = open_data(options.data or "shapes")
    if twice := [seed for seed in options.seeds if options.seeds.count(seed) > 1]:
        raise UserError(f"--seeds: {twice[0]} is given twice")
    with join_ranks(options.device) as ranks:
        if ranks.size > 1:
            raise UserError("reproduce runs several trainings of its own: start it without torchrun")
        at_once = 2 if ranks.device.type == "cpu" else len(devices_for(ranks.device))
        reproduce_tables(
            tables,
            source.name,
            lambda split: _read(source, split, options.skip_bad, console, None),
            options.out,
            ranks,
            scale=options.scale,
            seeds=options.seeds,
            given=given,
            shard=options.shard,
            at_once=at_once if options.jobs is None else _at_least("--jobs", options.jobs, 1),
            skip_bad=options.skip_bad,
            console=console,
        )
    return 0


_COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], _Command]]] = {
    "train": ("Train a detector on images with boxes.", _add_train),
    "eval": ("Evaluate a trained detector: COCO metrics, results file, plots.", _add_eval),
    "predict": ("Detect objects in pictures and draw them.", _add_predict),
    "export": ("Write a run's weights and description to one safetensors file.", _add_export),
    "compare": ("Train several losses on your data and say in one page which is ahead.", _add_compare),
    "check-data": ("Read a data set once and say what is in it and what is wrong.", _add_check_data),
    "make-shapes": ("Write the generated data set to a folder.", _add_make_shapes),
    "demo": ("Train focal and DR on generated data and write a report.", _add_demo),
    "reproduce": ("Draw the paper's figures, rerun its tables and put both numbers on one page.", _add_reproduce),
}
