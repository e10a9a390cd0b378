"""What ``drloss predict`` is asked for, and what its work on images and on videos has in common."""

from dataclasses import dataclass

from rich.console import Console
from rich.progress import Progress

from drloss.evaluation.limits import is_full
from drloss.inference.detector import Detector
from drloss.inference.predicting.folder import Results
from drloss.inference.predicting.journal import Record
from drloss.inference.predicting.pictures import Drawing
from drloss.inference.predicting.sources import Source
from drloss.inference.views import Tiling
from drloss.structures import Detection


@dataclass(frozen=True)
class Wanted:
    """What ``drloss predict`` is to make.

    Attributes:
        formats: any of ``jsonl``, ``coco``, ``yolo`` and ``csv``.
        score_threshold: lowest score in the results; None for the detector's own.
        draw_threshold: lowest score that is drawn and cut out; None for the detector's ``threshold``.
        pictures: whether pictures and videos are drawn.
        crops: whether each object is cut out.
        tile: side of tiles in pixels; None for none.
        overlap: of the tiles.
        batch_size: most images that go through the network at once.
        workers: processes that read images.
        strict: whether a single failure is an error.
        overwrite: whether older results in the folder are removed.
    """

    formats: tuple[str, ...]
    score_threshold: float | None
    draw_threshold: float | None
    pictures: bool
    crops: bool
    tile: int | None
    overlap: float
    batch_size: int
    workers: int
    strict: bool
    overwrite: bool


@dataclass
class Job:
    """The command at work.

    Attributes:
        detector: finds.
        results: where lines are added.
        drawing: draws.
        wanted: what to make.
        tiling: how large images are cut.
        errors: where failures are printed.
        progress: shows how far it is.
        images, frames: number of images, and of frames of videos, that were looked at.
        shown: number of detections from the drawing's threshold on.
        full: number of images that are as full as the detector lets them be.
    """

    detector: Detector
    results: Results
    drawing: Drawing
    wanted: Wanted
    tiling: Tiling | None
    errors: Console
    progress: Progress
    images: int = 0
    frames: int = 0
    shown: int = 0
    full: int = 0

    def above(self, detection: Detection) -> Detection:
        """The detections that the results are to have."""
        least = self.wanted.score_threshold
        if least is None:
            return detection
        keep = detection["scores"] >= least
        return {name: tensor[keep] for name, tensor in detection.items()}

    def count(self, detection: Detection) -> None:
        """Count what was found in an image."""
        threshold, most = self.drawing.threshold, self.detector.description.detector.max_detections
        self.shown += int((detection["scores"] >= threshold).sum())
        self.full += self.tiling is None and is_full(detection, most, threshold)

    def add(self, records: list[Record]) -> None:
        """Add lines to the results, and the files that each has in other formats."""
        for record in records:
            self.results.write_label(record)
        if records:
            self.results.add(records)

    def fail(self, source: Source, problem: str) -> None:
        """Say that an image or a video failed, and list it."""
        self.errors.print(problem, markup=False, soft_wrap=True)
        self.results.fail(source.name, problem)
