"""Running a detector over a split, on one process or many."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torchvision.ops import batched_nms

from drloss.data.annotations import Annotations
from drloss.data.batches import Batch, EvaluationImages
from drloss.data.workers import load_batches
from drloss.detector.config import DetectorConfig
from drloss.detector.detections import detect
from drloss.detector.model import HeadOutputs, RetinaNet
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
) -> list[Detection]:
    """Detections of every image of a split, in the order of the annotations, on every rank.

    The batches do not depend on the number of ranks, and no image is seen twice. What is found in one does not depend
    on the others of its batch, to float rounding.

    Args:
        model: on ``ranks.device``; it is put into evaluation mode and left as it was.
        annotations: the split.
        ranks: this process among its peers; each takes every ``ranks.size``-th batch.
        batch_size: most images of a batch.
        workers: data-loading processes.
        observe: called with each of this rank's batches, for statistics of its scores.
        progress: called with the number of images of each batch of this rank.
        compiled: whether the model is compiled at its first use.
    """
    training = model.training
    model.eval()
    images = EvaluationImages(annotations, model.config.short_side, model.config.max_side)
    batches = images.batches(batch_size)[ranks.rank :: ranks.size]
    own: list[tuple[int, Detection]] = []
    ranks.at("loading", slow=True)
    with load_batches(images, batches, workers, ranks.device) as loaded:
        for batch in loaded:
            ranks.at("detecting", slow=compiled)  # a compiler may begin at any new size
            outputs = model(batch.images.to(ranks.device, non_blocking=True), batch.sizes)
            detections = detect(outputs, batch.frames, model.config)
            own += [(i, {k: v.cpu() for k, v in d.items()}) for i, d in zip(batch.indices, detections, strict=True)]
            if observe is not None:
                observe(outputs, batch)
            if progress is not None:
                progress(len(batch.indices))
    model.train(training)
    everyone = dict(pair for part in ranks.gather(own) for pair in part)
    ranks.at("evaluating", slow=True)  # what rank 0 does next, while the others wait
    return [everyone[i] for i in range(len(annotations))]


def run_multi_scale(
    model: RetinaNet,
    annotations: Annotations,
    ranks: Ranks,
    short_sides: Sequence[int],
    *,
    batch_size: int,
    workers: int = 0,
    progress: Callable[[int], None] | None = None,
) -> list[Detection]:
    """Detections of every image of a split at several scales, merged, on every rank.

    Paper: the multi-scale test of Table 4. It states neither flips, of which there are none here, nor the merging,
    which is that of :func:`merge_detections`.

    Args:
        model, annotations, ranks, batch_size, workers, progress: as in :func:`run_detector`.
        short_sides: in pixels; the longest side allowed grows with them from the model's own.
    """
    config = model.config
    each = []
    try:
        for side in short_sides:
            longest = round(side * config.max_side / config.short_side)
            model.config = replace(config, short_side=side, max_side=longest)
            found = run_detector(model, annotations, ranks, batch_size=batch_size, workers=workers, progress=progress)
            each.append(found)
    finally:
        model.config = config
    return [merge_detections(image, config) for image in zip(*each, strict=True)]


def merge_detections(detections: Sequence[Detection], config: DetectorConfig) -> Detection:
    """One image's detections at several scales as one: NMS per class over all of them, and the best so many.

    Args:
        detections: of each scale.
        config: threshold of NMS, and how many detections stay.
    """
    boxes, scores, labels = (torch.cat([d[name] for d in detections]) for name in ("boxes", "scores", "labels"))
    keep = batched_nms(boxes, scores, labels, config.nms_threshold)[: config.max_detections]
    return {"boxes": boxes[keep], "scores": scores[keep], "labels": labels[keep]}
