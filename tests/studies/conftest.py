import io

import numpy as np
import pytest
import torch

from drloss.data.shapes import open_shapes
from drloss.evaluation.coco import evaluate
from drloss.evaluation.densities import ScoreHistogram
from drloss.evaluation.drawing import draw_detections, mosaic
from drloss.evaluation.thresholds import threshold_sweep
from drloss.studies.report import RunSummary

SPEC = "shapes:train=1,val=24,test=1,size=96"


def read_shapes(split="val"):
    read = open_shapes(SPEC).read(split)
    return read[0] if isinstance(read, tuple) else read


def noisy_detections(annotations, rng, *, shift, found):
    """The truth, shifted by a share of the objects' sides and with some boxes missing or made up."""
    detections = []
    for index in range(len(annotations)):
        own = annotations.boxes_of(index)
        boxes = annotations.boxes[own]
        sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
        boxes = boxes + rng.normal(0, shift, boxes.shape) * sides
        keep = rng.random(len(boxes)) < found
        made_up = rng.uniform(0, 50, (2, 2))
        boxes = np.concatenate([boxes[keep], np.concatenate([made_up, made_up + 30], axis=1)])
        labels = np.concatenate([annotations.labels[own][keep], rng.integers(1, 5, 2)])
        scores = np.concatenate([rng.beta(6 * found, 2, keep.sum()), rng.beta(1, 6, 2)])
        order = np.argsort(-scores)
        detections.append(
            {
                "boxes": torch.from_numpy(boxes[order]).float(),
                "scores": torch.from_numpy(scores[order]).float(),
                "labels": torch.from_numpy(labels[order]).long(),
            }
        )
    return detections


def fake_run(name, loss, *, seed, shift, found, iterations=900):
    annotations = read_shapes()
    rng = np.random.default_rng(seed)
    detections = noisy_detections(annotations, rng, shift=shift, found=found)
    labels = torch.from_numpy(rng.choice([-1, 0, 1, 2, 3, 4], (2, 4000), p=[0.02, 0.9, 0.02, 0.02, 0.02, 0.02]))
    logits = torch.from_numpy(rng.normal(-5, 1.5, (2, 4000, 4))).float()
    hit = (labels > 0).unsqueeze(2) & (labels.unsqueeze(2) == torch.arange(1, 5))
    logits[hit] += 8 * found
    histogram = ScoreHistogram()
    histogram.update([logits], labels)
    steps = np.arange(1, iterations + 1, 3)
    falling = np.exp(-steps / 200)

    def curve(values):
        return steps.tolist(), (values + rng.normal(0, 0.03, len(steps)) * (0.3 + values)).tolist()

    curves = {
        "loss": curve(3 * falling + 0.8),
        "loss_cls": curve(2 * falling + 0.5),
        "loss_box": curve(falling + 0.3),
        "expected_pos": curve(0.6 * found * (1 - falling) + 0.05),
        "expected_neg": curve(0.1 + 0.2 * falling),
        "AP50": ([300, 600, 900], [20 * found, 45 * found, 60 * found]),
    }
    run = RunSummary(
        name=name,
        loss=loss,
        evaluation=evaluate(annotations, detections),
        sweep=threshold_sweep(annotations, detections),
        histogram=histogram,
        curves=curves,
        settings={
            "loss": "DRLoss(pairing=dr, surrogate=logistic, smoothness=6, cls_weight=4)" if loss == "dr" else loss,
            "prior probability": "0.01",
            "backbone": "resnet18, group norm, random weights",
            "optimiser": "sgd, learning rate 0.01, cosine",
            "seed": "0",
        },
        seconds=613.4,
        iterations=iterations,
    )
    return run, detections


def fake_mosaic(all_detections, images=3):
    annotations = read_shapes()
    tiles = []
    for index in range(images):
        own = annotations.boxes_of(index)
        count = own.stop - own.start
        truth = {
            "boxes": torch.from_numpy(annotations.boxes[own]).float(),
            "scores": torch.ones(count),
            "labels": torch.from_numpy(annotations.labels[own]),
        }
        image = annotations.load_image(index)
        for detection in [truth, *(d[index] for d in all_detections)]:
            tiles.append(draw_detections(image, detection, annotations.class_names, threshold=0.3))
    file = io.BytesIO()
    mosaic(tiles, 1 + len(all_detections)).save(file, format="PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def two_runs():
    """A better run (DR) and a worse one (focal), and a mosaic of their detections."""
    dr, dr_found = fake_run("DR", "dr", seed=1, shift=0.05, found=0.95)
    focal, focal_found = fake_run("Focal", "focal", seed=2, shift=0.09, found=0.6)
    return [dr, focal], fake_mosaic([focal_found, dr_found])
