"""Detections from the outputs of the heads: thresholds, decoding and non-maximum suppression (NMS)."""

from collections.abc import Sequence

import torch
from torchvision.ops import batched_nms, clip_boxes_to_image

from drloss.detector.boxes import decode
from drloss.detector.config import DetectorConfig
from drloss.detector.model import HeadOutputs
from drloss.structures import Detection, Frame


@torch.no_grad()
def detect(outputs: HeadOutputs, frames: Sequence[Frame], config: DetectorConfig) -> list[Detection]:
    """Detections of each image, best first.

    Paper: §C and [17]: per level the scores above ``score_threshold``, at most ``level_candidates`` of them; decode,
    clip to the image, NMS per class over all levels, and the best ``max_detections``. Boxes in the padding of the
    image are left out.

    Args:
        outputs: outputs for N images.
        frames: sizes of the N images.
        config: thresholds and numbers.
    """
    if len(frames) != len(outputs.maps[0]):
        raise ValueError(f"frames must be {len(outputs.maps[0])}, one for each image of outputs, got {len(frames)}")
    return [_detect_image(outputs, i, frame, config) for i, frame in enumerate(frames)]


def _detect_image(outputs: HeadOutputs, index: int, frame: Frame, config: DetectorConfig) -> Detection:
    """Decode, filter and suppress the candidates of one image; its boxes are scaled back to the original image."""
    boxes, scores, labels = [], [], []
    for logits, deltas, anchors in zip(outputs.logits, outputs.deltas, outputs.anchors, strict=True):
        num_classes = logits.shape[2]
        decoded = decode(deltas[index].float(), anchors)
        box = clip_boxes_to_image(decoded, frame.resized)
        solid = (box[:, 2] > box[:, 0]) & (box[:, 3] > box[:, 1])
        score = logits[index].float().sigmoid()
        kept = ((score > config.score_threshold) & solid[:, None]).flatten().nonzero().squeeze(1)
        best, order = score.flatten()[kept].topk(min(config.level_candidates, len(kept)))
        kept = kept[order]
        boxes.append(box[kept // num_classes])
        scores.append(best)
        labels.append(kept % num_classes + 1)
    box, score, label = torch.cat(boxes), torch.cat(scores), torch.cat(labels)
    keep = batched_nms(box, score, label, config.nms_threshold)[: config.max_detections]
    scale = box.new_tensor([o / r for o, r in zip(frame.original[::-1], frame.resized[::-1], strict=True)] * 2)
    return {"boxes": box[keep] * scale, "scores": score[keep], "labels": label[keep]}
