"""Run a detector over a split, in one process or in several."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torchvision.ops import batched_nms

from drloss.data.annotations import Annotations
from drloss.data.batches import Batch, EvaluationImages
from drloss.data.workers import load_batches
from drloss.detector.config import DetectorConfig
from drloss.detector.detections import detect, from_whole_input
from drloss.detector.model import HeadOutputs, RetinaNet
from drloss.detector.onnx_file import OnnxDetector
from drloss.detector.precision import Precision, autocast
from drloss.distributed.ranks import Ranks
from drloss.structures import Detection


@torch.no_grad()
def run_detector(
    model: RetinaNet,
    annotations: Annotations,
    ranks: Ranks,
    *,
    batch_size: int,
    workers: int = 0,
    observe: Callable[[HeadOutputs, Batch], None] | None = None,
    progress: Callable[[int], None] | None = None,
    compiled: bool = False,
    precision: Precision = "fp32",
) -> list[Detection]:
    """Detections of every image of a split, in the order of the annotations, on every rank.

    The batches do not depend on the number of ranks, and each image is seen once. The detections of an image do not
    depend on the other images of its batch, except for float rounding.

    Args:
        model: detector on ``ranks.device``. It runs in evaluation mode and gets its own mode back.
        annotations: the split.
        ranks: this process and the others; each takes every ``ranks.size``-th batch.
        batch_size: most images in a batch.
        workers: data-loading processes.
        observe: called with the outputs and each batch of this rank.
        progress: called with the number of images in each batch of this rank.
        compiled: whether the model is compiled when it is first used.
        precision: numbers that the model computes with on a GPU; on a CPU it is float32.
    """
    training = model.training
    model.eval()

    def find(batch: Batch) -> list[Detection]:
        with autocast(ranks.device, precision if ranks.device.type == "cuda" else "fp32"):
            outputs = model(batch.images.to(ranks.device, non_blocking=True), batch.sizes)
        if observe is not None:
            observe(outputs, batch)
        return detect(outputs, batch.frames, model.config)

    images = EvaluationImages(annotations, model.config.short_side, model.config.max_side)
    options = {"batch_size": batch_size, "workers": workers}
    detections = _over_split(find, images, ranks, **options, progress=progress, compiled=compiled)
    model.train(training)
    return detections


def run_onnx(
    detector: OnnxDetector,
    annotations: Annotations,
    ranks: Ranks,
    *,
    config: DetectorConfig,
    batch_size: int,
    workers: int = 0,
    progress: Callable[[int], None] | None = None,
) -> list[Detection]:
    """Detections of every image of a split by an ONNX file, as by :func:`run_detector`.

    Boxes are clipped to the image after NMS, not before it, because the file knows its padded input only.

    Args:
        detector: the file.
        annotations, ranks, batch_size, workers, progress: as in :func:`run_detector`.
        config: the detector's, perhaps with a higher score threshold.
    """

    def find(batch: Batch) -> list[Detection]:
        found = detector(batch.images)
        return from_whole_input(found, batch.frames, config, suppressed=detector.suppresses)

    images = EvaluationImages(annotations, config.short_side, config.max_side, detector.size)
    return _over_split(find, images, ranks, batch_size=batch_size, workers=workers, progress=progress)


def _over_split(
    find: Callable[[Batch], list[Detection]],
    images: EvaluationImages,
    ranks: Ranks,
    *,
    batch_size: int,
    workers: int,
    progress: Callable[[int], None] | None,
    compiled: bool = False,
) -> list[Detection]:
    """What ``find`` finds in every image of a split, in the order of the annotations, on every rank."""
    batches = images.batches(batch_size)[ranks.rank :: ranks.size]
    own: list[tuple[int, Detection]] = []
    ranks.at("loading", slow=True)
    with load_batches(images, batches, workers, ranks.device) as loaded:
        for batch in loaded:
            ranks.at("detecting", slow=compiled)  # the compiler may run at any new size
            detections = find(batch)
            own += [(i, {k: v.cpu() for k, v in d.items()}) for i, d in zip(batch.indices, detections, strict=True)]
            if progress is not None:
                progress(len(batch.indices))
    everyone = dict(pair for part in ranks.gather(own) for pair in part)
    ranks.at("evaluating", slow=True)  # rank 0 does so next, while the others wait
    return [everyone[i] for i in range(len(images.annotations))]


def run_multi_scale(
    model: RetinaNet,
    annotations: Annotations,
    ranks: Ranks,
    short_sides: Sequence[int],
    *,
    batch_size: int,
    workers: int = 0,
    progress: Callable[[int], None] | None = None,
    precision: Precision = "fp32",
) -> list[Detection]:
    """Detections of every image of a split at several scales, merged, on every rank.

    Paper: the multi-scale test of Table 4. The paper says nothing of flips (there are none here) or of how detections
    are merged (see :func:`merge_detections`).

    Args:
        model, annotations, ranks, batch_size, workers, progress, precision: as in :func:`run_detector`.
        short_sides: in pixels. The longest side allowed grows in proportion to the model's own.
    """
    config, each = model.config, []
    options: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "progress": progress}
    try:
        for side in short_sides:
            longest = round(side * config.max_side / config.short_side)
            model.config = replace(config, short_side=side, max_side=longest)
            each.append(run_detector(model, annotations, ranks, **options, precision=precision))
    finally:
        model.config = config
    return [merge_detections(image, config) for image in zip(*each, strict=True)]


def merge_detections(detections: Sequence[Detection], config: DetectorConfig) -> Detection:
    """Merge the detections of one image at several scales: NMS per class over all, then the best ``max_detections``.

    Args:
        detections: one for each scale.
        config: has the NMS threshold and ``max_detections``.
    """
    boxes, scores, labels = (torch.cat([d[name] for d in detections]) for name in ("boxes", "scores", "labels"))
    keep = batched_nms(boxes, scores, labels, config.nms_threshold)[: config.max_detections]
    return {"boxes": boxes[keep], "scores": scores[keep], "labels": labels[keep]}
