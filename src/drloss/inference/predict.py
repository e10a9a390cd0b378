"""``drloss predict``: detect objects in images and videos, draw them, and list them line by line."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from drloss.errors import UserError, printable
from drloss.evaluation.limits import full_message
from drloss.inference.detector import Detector
from drloss.inference.predicting.folder import COCO, CSV, FAILED, LABELS, PREDICTIONS, Classes, open_results
from drloss.inference.predicting.formats import unique_stems
from drloss.inference.predicting.job import Job, Wanted
from drloss.inference.predicting.over_images import over_images
from drloss.inference.predicting.over_videos import over_video
from drloss.inference.predicting.pictures import Drawing
from drloss.inference.predicting.sources import Sources, find_sources
from drloss.inference.predicting.videos import require_videos
from drloss.inference.views import checked_tiling
from drloss.training.messages import warn

WRITTEN = {"coco": COCO, "csv": CSV, "yolo": f"{LABELS}/"}
"""What the formats write beside the lines."""


def predict(
    run: Path,
    words: Sequence[str],
    out: Path,
    wanted: Wanted,
    *,
    device: str | None,
    console: Console,
    errors: Console,
) -> None:
    """Detect objects in images and videos. A command that was stopped goes on where it was.

    Each image and each frame is one line of ``predictions.jsonl``, which is added once all its files are written.

    Args:
        run: run folder, or exported ``.safetensors`` or ``.onnx`` file.
        words: images, folders, patterns, lists and videos; see
            :func:`~drloss.inference.predicting.sources.find_sources`.
        out: folder of the results.
        wanted: what to make.
        device: of the detector; see :meth:`~drloss.inference.detector.Detector.load`.
        console: where to print.
        errors: where to print progress and failures.
    Raises:
        UserError: if there is nothing to look at, the run cannot be loaded, or ``out`` holds other things; and at the
            end, if all failed, or one and ``strict``.
        NoSpaceError: if the disk is full. What was done is kept.
    """
    sources = find_sources(words, out)
    for word, counts in sources.passed.items():
        for kind, count in counts.items():
            console.print(f"{printable(word)}: {count:,} x {kind}", markup=False, soft_wrap=True)
    if sources.videos:
        require_videos(printable(str(sources.videos[0].path)))
    detector = Detector.load(run, device=device)
    about = detector.description
    tiling = checked_tiling(wanted.tile, wanted.overlap, detector.fixed_size)
    threshold = detector.threshold if wanted.draw_threshold is None else wanted.draw_threshold
    drawing = Drawing(out, about.class_names, threshold, wanted.pictures, wanted.crops, unit=wanted.tile)
    settings = _settings(detector, sources, drawing, wanted)
    classes = Classes(about.class_names, about.category_ids)
    with open_results(out, settings, wanted.formats, classes, overwrite=wanted.overwrite) as results:
        before, began = len(results.stems), time.monotonic()
        with _progress(errors) as progress:
            job = Job(detector, results, drawing, wanted, tiling, errors, progress)
            _over(job, sources)
        seconds = time.monotonic() - began
        names = [source.name for source in (*sources.images, *sources.videos)]
        results.finish(names)
        _close(job, before, seconds, len(names), console)


def _settings(detector: Detector, sources: Sources, drawing: Drawing, wanted: Wanted) -> dict[str, Any]:
    """What decides the results, in JSON types."""
    return {
        "detector": detector.digest,
        "images in": os.path.realpath(sources.root),
        "score_threshold": wanted.score_threshold,
        "draw_threshold": drawing.threshold if wanted.pictures or wanted.crops else None,
        "tile": wanted.tile,
        "overlap": None if wanted.tile is None else wanted.overlap,
        "pictures": wanted.pictures,
        "crops": wanted.crops,
    }


def _over(job: Job, sources: Sources) -> None:
    """Look at everything that is not done."""
    done = job.results.stems
    images, videos = ([s for s in kind if s.name not in done] for kind in (sources.images, sources.videos))
    stems = unique_stems((source.name for source in (*images, *videos)), done)
    if images:
        over_images(job, images, stems)
    for video in videos:
        over_video(job, video, stems[video.name])


def _progress(console: Console) -> Progress:
    """A bar on a terminal, and nothing elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)


def _close(job: Job, before: int, seconds: float, asked: int, console: Console) -> None:
    """Say what was done.

    Args:
        job: the work.
        before: number of images and videos that were done before.
        seconds: that the work took.
        asked: number of images and videos that were named.
        console: where to print.
    Raises:
        UserError: if all failed, or one and that is an error.
    """
    results, threshold = job.results, job.drawing.threshold
    said = f"{job.images:,} image(s)" + (f" and {job.frames:,} frame(s)" if job.frames else "")
    if before:
        said += f", and {before:,} that were done before"
    looked = job.images + job.frames
    speed = f", {looked / max(seconds, 1e-9):.3g} images/s" if looked else ""
    also = "".join(f", {WRITTEN[name]}" for name in results.formats if name in WRITTEN)
    own = job.detector.description.detector.score_threshold
    least = own if job.wanted.score_threshold is None else max(own, job.wanted.score_threshold)
    said += (
        f"; {job.shown:,} detection(s) of score {threshold:.3g} or more{speed}: {results.out} ({PREDICTIONS}{also}, "
        f"with all of score {least:g} or more)"
    )
    console.print(said, markup=False, soft_wrap=True)
    most = job.detector.description.detector.max_detections
    if job.tiling is None and (problem := full_message(job.full, looked, most, threshold)):
        warn(console, problem)
    if not results.failed:
        return
    message = f"{results.failed:,} of {asked:,} failed, and are listed in {results.out / FAILED}"
    if job.wanted.strict or not results.records:
        raise UserError(message)
    warn(job.errors, message)
