"""``drloss reproduce``: train and evaluate the runs behind the paper's tables, and write the page about them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from rich.console import Console

from drloss.data.annotations import Annotations
from drloss.detector.starting_weights import resolve_detector
from drloss.distributed.ranks import Ranks
from drloss.errors import UserError
from drloss.evaluation.densities import ScoreHistogram
from drloss.evaluation.detecting import run_detector
from drloss.inference.evaluate import METRICS_FILE, evaluate_run, observe_scores, require_same_classes
from drloss.io.atomic import write_text
from drloss.studies.compare.differences import TITLES
from drloss.studies.jobs import Job, job_of, run_folder, train_jobs
from drloss.studies.paper import scores
from drloss.studies.paper.names import FIGURES, TABLES
from drloss.studies.paper.numbers import NEEDS, Settings, expectation, figure_settings, rows_of, settings
from drloss.studies.paper.records import Records, read_metrics, read_of_run, read_runs, write_records
from drloss.studies.paper.tables import histograms, reproduction_page
from drloss.training.config import OPTIONS, Config, override, to_json
from drloss.training.device import for_device
from drloss.training.fingerprint import fingerprint
from drloss.training.presets import PRESETS
from drloss.training.resume import HOW_IT_RUNS, changed_settings
from drloss.training.run_folder import CONFIG, ENVIRONMENT, MODEL
from drloss.training.trained import load_run

PAGE, RECORDS = "reproduction.md", "records.json"


@dataclass(frozen=True)
class PlannedRun:
    """A training run that is wanted. Several rows may need the same one.

    Attributes:
        settings: settings of the rows.
        seed: seed of the run.
        given: the user's settings, which replace those of the rows.
    """

    settings: Settings
    seed: int
    given: Mapping[str, object]

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return f"{self.settings.name}-seed{self.seed}"

    @property
    def values(self) -> dict[str, object]:
        """All settings that differ from the preset's."""
        return {**self.settings.values, **self.given, "seed": self.seed}

    @property
    def expects(self) -> str:
        """What the run must reach, in words."""
        return expectation(self.settings)

    @property
    def config(self) -> Config:
        """Configuration of the run.

        Raises:
            UserError: if a setting is invalid.
        """
        config = override(PRESETS[self.settings.preset], self.values)
        return replace(config, detector=resolve_detector(config.detector, config.weights), expects=self.expects)


def chosen_settings(tables: Sequence[str], losses: Sequence[str], scale: str) -> list[Settings]:
    """The settings of all rows of the tables and of the figures' losses, each once, in the order of the rows."""
    rows = [settings(row, scale) for table in tables for row in rows_of(table)]
    found = [s for s in rows if isinstance(s, Settings)] + [figure_settings(loss, scale) for loss in losses]
    return list({s.key: s for s in found}.values())


def runs_of(chosen: Sequence[Settings], seeds: Sequence[int], given: Mapping[str, object]) -> list[PlannedRun]:
    """The runs of these settings, seed by seed. Settings that only differ in the evaluation share a run."""
    return [PlannedRun(s, seed, given) for s in {s.name: s for s in chosen}.values() for seed in seeds]


def choose_tables(what: Sequence[str], scale: str, given: Mapping[str, object]) -> list[str]:
    """The tables among ``what``, in the paper's order.

    Raises:
        UserError: if the tables cannot be run together or with the given settings.
    """
    tables = [table for table in TABLES if table in what or "all" in what]
    if scale == "paper" and "table7" in tables and len(tables) > 1:
        if "table7" in what:
            raise UserError("table7 needs VOC2007 and the others COCO: run it by itself, with the same --out")
        tables.remove("table7")
    for table in tables:
        if clash := sorted(_own_settings(table, scale) & set(given)):
            flag = clash[0].replace("_", "-")
            raise UserError(f"--{flag} cannot be set with {table}: it is what its rows differ in")
    return tables


def _own_settings(table: str, scale: str) -> set[str]:
    """Names of the settings that the rows of a table fix, or in which they differ."""
    rows = rows_of(table)
    chosen = [s for s in (settings(row, scale) for row in rows) if isinstance(s, Settings)]
    own = {name for s in chosen for name in s.values}
    configs = [override(PRESETS[s.preset], s.values) for s in chosen]
    flat = [vars(config) | vars(config.detector) for config in configs]
    own |= {name for name in OPTIONS if len({values[name] for values in flat}) > 1}
    if any(row.threshold is not None for row in rows):
        own.add("score_threshold")
    if any(s.test_scales for s in chosen):
        own.add("short_side")
    return own


def choose_shard(runs: Sequence[PlannedRun], text: str) -> list[PlannedRun]:
    """Every n-th run from the i-th on, for the text ``i/n``.

    Raises:
        UserError: if the text is not i/n with 1 <= i <= n.
    """
    first, slash, count = text.partition("/")
    if not (slash and first.isdecimal() and count.isdecimal() and 1 <= int(first) <= int(count)):
        raise UserError(f"--shard must be i/n with i from 1 to n, got {text!r}")
    return list(runs[int(first) - 1 :: int(count)])


def reproduce_runs(
    tables: Sequence[str],
    losses: Sequence[str],
    data: str,
    read_split: Callable[[str], Annotations],
    out: Path,
    ranks: Ranks,
    *,
    scale: str,
    seeds: Sequence[int],
    given: Mapping[str, object],
    shard: str,
    at_once: int,
    skip_bad: bool,
    console: Console,
) -> Path:
    """Train and evaluate the missing runs of some tables and figures; write page, records and figures.

    Args:
        tables: names of the tables, from :func:`choose_tables`.
        losses: losses whose scores the figures show.
        data: data set, as ``drloss train --data`` takes it.
        read_split: returns the annotations of a split of the data.
        out: folder for ``runs/``, ``reproduction.md``, ``records.json`` and Figures 1, 4 and 5; finished runs in it
            are kept.
        ranks: device of the runs.
        scale: ``"paper"`` or ``"laptop"``.
        seeds: seeds of the runs of each row.
        given: settings that replace those of the rows.
        shard: ``i/n`` trains every n-th run from the i-th on.
        at_once: number of runs at a time.
        skip_bad: whether to leave out bad images and boxes.
        console: where to print.
    Returns:
        Path of the page.
    Raises:
        UserError: if options, data or folder do not fit; or at the end, if a run failed. The others are on the page.
    """
    chosen = chosen_settings(tables, losses, scale)
    runs = choose_shard(runs_of(chosen, seeds, given), shard)
    configs = {run.name: run.config for run in runs}  # invalid settings are reported before anything is trained
    if scale == "paper":
        for table in tables:
            console.print(f"{table} needs {NEEDS[table]}", markup=False, soft_wrap=True)
    for name, expects in {run.settings.name: run.expects for run in runs}.items():
        console.print(f"{name}: {expects}", markup=False, soft_wrap=True)
    read_once = cache(read_split)

    @cache
    def fingerprint_of(split: str) -> str:
        return fingerprint(read_once(split))

    missing = [run for run in runs if not holds_finished_run(run, run_folder(out, run.name), data, fingerprint_of)]
    console.print(
        f"{len(runs)} run(s) for {', '.join(tables) or 'figures'}; {len(runs) - len(missing)} done already",
        soft_wrap=True,
    )
    failed: list[str] = []
    if missing:
        jobs = [_job(run, run_folder(out, run.name), data, skip_bad) for run in missing]
        failed = train_jobs(jobs, ranks.device, at_once, console, keep_going=True)
    for run in runs:
        folder = run_folder(out, run.name)
        if not holds_finished_run(run, folder, data, fingerprint_of):
            continue
        for wanted in (s for s in chosen if s.name == run.settings.name):
            split = wanted.splits[1]
            if _is_evaluated(folder, wanted, fingerprint_of(split)):
                continue
            console.print(f"evaluating {run.name}", markup=False, soft_wrap=True)
            evaluate_run(
                folder,
                read_once(split),
                folder / wanted.evaluation,
                ranks,
                batch_size=configs[run.name].eval_batch_size,
                workers=for_device(configs[run.name], ranks.device).workers,
                score_threshold=None,
                test_scales=wanted.test_scales,
                console=Console(quiet=True),
            )
    path = write_reproduction(out, scale)
    console.print(f"page: {path}", markup=False, soft_wrap=True)
    if failed:
        raise UserError("\n".join(failed))
    return path


def write_reproduction(out: Path, scale: str) -> Path:
    """Write the page, the records and Figures 1, 4 and 5 of all run folders in ``out`` at a scale.

    Returns:
        Path of the page.
    """
    records = read_runs(out, chosen_settings(list(TABLES), FIGURES["figure4"], scale))
    write_records(out / RECORDS, scale, records, [figure_settings(loss, scale).key for loss in FIGURES["figure4"]])
    write_text(out / PAGE, reproduction_page(scale, records))
    draw_figures(out, scale, records)
    return out / PAGE


def draw_figures(folder: Path, scale: str, records: Records) -> list[Path]:
    """Draw those of Figures 1, 4 and 5 that have runs, with all seeds of a loss together.

    Returns:
        The files written.
    """
    found = {loss: _together(loss, scale, records) for loss in FIGURES["figure4"]}
    shown = [histogram for histogram in found.values() if histogram is not None]
    paths = scores.save_densities(folder, shown) if len(shown) == len(found) else []
    if (dr := found["dr"]) is not None:
        paths += scores.save_separation(folder, dr)
        paths += scores.save_reweighting(folder, scores.reweight_scores(dr[3], dr[2]))
    return paths


def reweighting_of_runs(out: Path, scale: str) -> scores.Reweighting | None:
    """Data of Figure 1 from the DR runs in a folder; None if there are none."""
    found = _together("dr", scale, read_runs(out, [figure_settings("dr", scale)]))
    return None if found is None else scores.reweight_scores(found[3], found[2])


def _together(loss: str, scale: str, records: Records) -> scores.Histogram | None:
    """The scores of all seeds of a loss, added up; None if there is no run."""
    found = histograms(loss, scale, records)
    if not found:
        return None
    together = ScoreHistogram()
    for histogram in found.values():
        together.merge(histogram)
    source = f"{figure_settings(loss, scale).name}, seeds {', '.join(map(str, found))}"
    return TITLES[loss], loss, source, together


def holds_finished_run(run: PlannedRun, folder: Path, data: str, fingerprint_of: Callable[[str], str]) -> bool:
    """Whether a folder holds the run, trained to its end.

    Args:
        run: its configuration must be that of the folder.
        folder: folder of the run.
        data: name of the data, for the message.
        fingerprint_of: returns the fingerprint of a split; called only if there is a run.
    Raises:
        UserError: if the run was trained on other data, or the folder does not name its data.
    """
    ended = (folder / MODEL).is_file()
    if not (folder / CONFIG).is_file() or not (ended or (folder / ENVIRONMENT).is_file()):
        return False
    was, split = read_of_run(folder / ENVIRONMENT)[-1]["data"], run.settings.splits[0]
    if was["fingerprint"] != fingerprint_of(split):
        raise UserError(
            f"{folder}: was trained on {was['name']} as it was then, and {data} {split} is something else now; name "
            "another --out"
        )
    return ended and not changed_settings(read_of_run(folder / CONFIG), to_json(run.config), HOW_IT_RUNS)


def _is_evaluated(folder: Path, wanted: Settings, data: str) -> bool:
    """Whether the run was evaluated after training, on the data with this fingerprint."""
    metrics = folder / wanted.evaluation / METRICS_FILE
    if not metrics.is_file() or metrics.stat().st_mtime < (folder / MODEL).stat().st_mtime:
        return False
    found = read_metrics(metrics.parent)
    return found is not None and found.get("fingerprint") == data


def _job(run: PlannedRun, folder: Path, data: str, skip_bad: bool) -> Job:
    splits = ["--train-split", run.settings.splits[0], "--val-split", run.settings.splits[1]]
    return job_of(run.name, folder, run.config, ["--data", data, *splits, *(["--skip-bad"] if skip_bad else [])])


def reweighting_of_run(run: Path, annotations: Annotations, ranks: Ranks) -> scores.Reweighting:
    """Data of Figure 1 from a trained run and a split.

    Raises:
        UserError: if the run cannot be loaded, has other classes, or there is nothing to draw.
    """
    model, about = load_run(run)
    require_same_classes(about, annotations, run)
    model.to(ranks.device)
    histogram = ScoreHistogram()
    run_detector(
        model,
        annotations,
        ranks,
        batch_size=2,
        observe=lambda outputs, batch: observe_scores(histogram, model, outputs, batch),
    )
    return scores.reweight_scores(histogram, f"{run.name} ({about.loss}) on {annotations.name}")
