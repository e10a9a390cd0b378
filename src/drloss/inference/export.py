"""``drloss export --format onnx``: write an ONNX file, and keep it only if it finds what the detector finds."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from drloss.data.annotations import Annotations
from drloss.data.transforms import PAD_MULTIPLE, PAD_VALUES, input_sizes, resize
from drloss.detector.config import DetectorConfig
from drloss.detector.detections import detect, from_whole_input
from drloss.detector.exported import DetectorFile
from drloss.detector.model import RetinaNet
from drloss.detector.onnx_file import FORMAT, LARGEST_SIDE, OnnxDetector, require_onnx
from drloss.detector.onnx_graph import onnx_bytes
from drloss.errors import UserError
from drloss.io.atomic import write_atomic
from drloss.structures import Detection, Frame
from drloss.training.messages import warn
from drloss.training.trained import load_run

IMAGES = 8
"""Most images on which a file is checked."""
LARGEST_DRAWN = 512
"""Side up to which generated images are drawn for that; larger ones are enlarged."""


@dataclass(frozen=True)
class Tolerance:
    """How far a file's detections may be from those of torch.

    Attributes:
        boxes: largest difference of a coordinate, in shares of the longest side of the input.
        scores: largest difference of a score.
        share: share of the detections that may have no partner within these: where two scores or an overlap and its
            threshold are as good as equal, rounding decides which box NMS keeps.
    """

    boxes: float
    scores: float
    share: float


EXACT = Tolerance(boxes=1e-4, scores=1e-4, share=0.02)
HALF = Tolerance(boxes=1e-2, scores=2e-2, share=0.1)


@dataclass(frozen=True)
class Agreement:
    """How well two lists of detections agree.

    Attributes:
        compared: detections that should have a partner: not so near to the threshold that rounding may drop them.
        alone: those of them that have none within the tolerance.
        boxes: largest difference of a coordinate between partners, in pixels of the input.
        scores: largest difference of a score between partners.
    """

    compared: int
    alone: int
    boxes: float
    scores: float


def export_onnx(
    run: Path,
    out: Path,
    *,
    size: tuple[int, int] | None,
    suppress: bool,
    half: bool,
    annotations: Annotations | None,
    console: Console,
) -> None:
    """Write a detector to an ONNX file, which onnxruntime must run with the results of torch.

    Args:
        run: run folder or exported ``.safetensors`` file.
        out: file to write; there is none unless it agrees with torch.
        size: height and width of its input; None for any multiples of 32.
        suppress: whether NMS is part of it.
        half: whether it computes in float16.
        annotations: a split on whose first images it is compared; None for generated images.
        console: where to print how well they agree.
    Raises:
        UserError: if a package is missing, the run cannot be loaded, the file cannot be written, or it does not
            agree.
    """
    require_onnx("--format onnx", "onnx", "onnxscript", "onnxruntime")
    check_size(size)
    model, description = load_run(run)
    images = _images(annotations, model.config, size)
    tolerance = HALF if half else EXACT
    found: list[Agreement] = []

    def check(beside: Path) -> None:
        found.append(_agreement(OnnxDetector(beside), model, images, tolerance))
        require_agreement(found[0], tolerance, out)

    content = onnx_bytes(model, about(description, size, suppress, half), size=size, suppress=suppress, half=half)
    write_atomic(out, lambda beside: beside.write_bytes(content), check)
    source = "generated images" if annotations is None else f"images of {annotations.name}"
    (agreement,) = found
    console.print(
        f"{out}: as torch in onnxruntime on {len(images)} {source}: of {agreement.compared} detections "
        f"{agreement.alone} differ, the others by at most {agreement.boxes:.2g} pixels and {agreement.scores:.2g} in "
        "score",
        markup=False,
        soft_wrap=True,
    )
    if not agreement.compared:
        warn(console, "nothing was found on these images, so little was compared; name others with --data")


def check_size(size: tuple[int, int] | None) -> None:
    """Raise UserError unless an input can have this height and width."""
    if size is not None and any(side % PAD_MULTIPLE or not 0 < side <= LARGEST_SIDE for side in size):
        raise UserError(
            f"--size must be dynamic, or a height and a width that are multiples of {PAD_MULTIPLE} and at most "
            f"{LARGEST_SIDE}, got {size[0]} {size[1]}"
        )


def about(description: DetectorFile, size: tuple[int, int] | None, suppress: bool, half: bool) -> dict[str, Any]:
    """What the metadata of an ONNX file say, in JSON types; docs/deploy.md explains it."""
    return {
        "format": FORMAT,
        **asdict(description),
        "input": {
            "layout": "uint8 NCHW, RGB, 0..255; resized with its ratio kept, at the top left, padding behind",
            "size": None if size is None else list(size),
            "multiple_of": PAD_MULTIPLE,
            "padding": list(PAD_VALUES),
        },
        "outputs": "boxes left, top, right, bottom in pixels of the input; labels 1..K; score 0: nothing",
        "nms": suppress,
        "half": half,
    }


def _images(annotations: Annotations | None, config: DetectorConfig, size: tuple[int, int] | None) -> list[Tensor]:
    """Images uint8 (3, H, W) that fill the input: in a padding of one colour many scores would be equal."""
    if annotations is None:
        from drloss.data.formats.shapes import open_shapes

        side = min(max(size or (config.short_side,)), LARGEST_DRAWN)
        annotations, _ = open_shapes(f"shapes:train=1,val={IMAGES},test=1,size={side}").read("val")
    images = [annotations.load_image(index) for index in range(min(IMAGES, len(annotations)))]
    fixed = config.short_side, config.max_side, size
    return [resize(image, input_sizes((image.shape[1], image.shape[2]), *fixed)[1]) for image in images]


@torch.no_grad()
def _agreement(file: OnnxDetector, model: RetinaNet, images: Sequence[Tensor], tolerance: Tolerance) -> Agreement:
    """How well a file agrees with the detector that it was made of, image by image."""
    own, config = file.description.detector, model.config
    parts = []
    for image in images:
        frame = Frame((image.shape[1], image.shape[2]), (image.shape[1], image.shape[2]))
        batch = image.unsqueeze(0)
        (wanted,) = detect(model(batch), [frame], config)
        (got,) = from_whole_input(file(batch), [frame], own, suppressed=file.suppresses)
        parts.append(compare(wanted, got, config, tolerance, max(frame.original)))
    return Agreement(
        compared=sum(p.compared for p in parts),
        alone=sum(p.alone for p in parts),
        boxes=max((p.boxes for p in parts), default=0.0),
        scores=max((p.scores for p in parts), default=0.0),
    )


def compare(
    wanted: Detection, got: Detection, config: DetectorConfig, tolerance: Tolerance, longest: int
) -> Agreement:
    """How well two lists of detections of one image agree, in whatever order they come.

    Args:
        wanted, got: the detections.
        config: has the threshold and the number from which on detections are dropped.
        tolerance: how far partners may be apart.
        longest: longest side of the input in pixels.
    """
    compared, alone = 0, 0
    differences = [torch.zeros(2)]
    for these, others in ((wanted, got), (got, wanted)):
        full = len(these["scores"]) >= config.max_detections
        least = float(these["scores"].min()) if full else config.score_threshold
        some = these["scores"] > least + tolerance.scores
        apart = (these["boxes"][some, None] - others["boxes"][None]).abs().amax(dim=2)
        scores = (these["scores"][some, None] - others["scores"][None]).abs()
        same = these["labels"][some, None] == others["labels"][None]
        near = same & (apart <= tolerance.boxes * longest) & (scores <= tolerance.scores)
        compared += int(some.sum())
        alone += int((~near.any(dim=1)).sum())
        if near.any():
            best = torch.where(near, apart, torch.inf).min(dim=1)
            paired = best.values.isfinite()
            score = scores.gather(1, best.indices.unsqueeze(1)).squeeze(1)
            differences.append(torch.stack([best.values[paired].max(), score[paired].max()]))
    largest = torch.stack(differences).amax(dim=0)
    return Agreement(compared, alone, float(largest[0]), float(largest[1]))


def require_agreement(agreement: Agreement, tolerance: Tolerance, out: Path) -> None:
    """Raise UserError if more detections differ than rounding explains."""
    if agreement.alone > tolerance.share * agreement.compared:
        raise UserError(
            f"{out}: not written: of {agreement.compared} detections of torch and onnxruntime {agreement.alone} have "
            f"no partner of their class within {tolerance.boxes:g} of the image's side and {tolerance.scores:g} in "
            f"score; allowed are {tolerance.share:.0%}"
        )
