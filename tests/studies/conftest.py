from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from drloss.data.formats.shapes import open_shapes
from drloss.evaluation.coco import evaluate
from drloss.evaluation.densities import ScoreHistogram
from drloss.evaluation.matching import match_detections
from drloss.evaluation.thresholds import threshold_sweep
from drloss.studies import jobs
from drloss.studies.compare.differences import Contender
from drloss.studies.compare.measure import RunResult
from faults import Subprocess

HARD_NAMES = (
    "resistor <0402> & its pads",
    "信号機と横断歩道の標識",
    "Rindfleischetikettierungsüberwachungsaufgabenübertragungsgesetz",
    "a $price$ in 'quotes' and \"more\"",
    *(f"electrolytic capacitor number {n}" for n in range(36)),
)
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
        labels = np.concatenate([annotations.labels[own][keep], rng.integers(1, len(annotations.class_names) + 1, 2)])
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


def fake_histogram(rng, *, found):
    labels = torch.from_numpy(rng.choice([-1, 0, 1, 2, 3, 4], (2, 4000), p=[0.02, 0.9, 0.02, 0.02, 0.02, 0.02]))
    logits = torch.from_numpy(rng.normal(-5, 1.5, (2, 4000, 4))).float()
    hit = (labels > 0).unsqueeze(2) & (labels.unsqueeze(2) == torch.arange(1, 5))
    logits[hit] += 8 * found
    histogram = ScoreHistogram()
    histogram.update([logits], labels)
    return histogram


def fake_curves(rng, *, found, iterations):
    steps = np.arange(1, iterations + 1, 3)
    falling = np.exp(-steps / 200)

    def curve(values):
        return steps.tolist(), (values + rng.normal(0, 0.03, len(steps)) * (0.3 + values)).tolist()

    return {
        "loss": curve(3 * falling + 0.8),
        "loss_cls": curve(2 * falling + 0.5),
        "loss_box": curve(falling + 0.3),
        "expected_pos": curve(0.6 * found * (1 - falling) + 0.05),
        "expected_neg": curve(0.1 + 0.2 * falling),
        "AP50": ([300, 600, 900], [20 * found, 45 * found, 60 * found]),
    }


@pytest.fixture(scope="session")
def hard_data():
    """The shapes, sorted into forty classes whose names are hard to set; those of the last ones have no object."""
    annotations = read_shapes()
    labels = np.arange(len(annotations.labels)) % (len(HARD_NAMES) - 4) + 1
    ids = np.arange(1, len(HARD_NAMES) + 1)
    return replace(annotations, class_names=HARD_NAMES, category_ids=ids, labels=labels)


def fake_result(annotations, *, seed, shift, found, iterations=900):
    rng = np.random.default_rng(seed)
    detections = noisy_detections(annotations, rng, shift=shift, found=found)
    sweep = threshold_sweep(annotations, detections, (0.05, 0.2, 0.5))
    return RunResult(
        folder=Path(f"seed{seed}"),
        seed=seed % 10,
        evaluation=evaluate(annotations, detections),
        sweep=[r | {"candidates": 4000 * 0.01 / r["threshold"], "postprocess_ms": 12.3} for r in sweep],
        histogram=fake_histogram(rng, found=found),
        detections=detections,
        matches=match_detections(annotations, detections),
        curves=fake_curves(rng, found=found, iterations=iterations),
        seconds=613.4,
        iterations=iterations,
        cost={"step_ms": 1840.0, "loss_ms": 77.0, "peak_mb": 2210.0, "images": 4.0},
    )


@pytest.fixture(scope="module")
def warm():
    """Runs that a study starts are forked from a process that has imported everything: each starts 4 s sooner."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "subprocess", Subprocess)
        yield


@pytest.fixture(scope="session")
def two_runs():
    """A better run (DR) and a worse one (focal), as a page shows them."""
    data, levels = read_shapes(), {"dr": (1, 0.05, 0.95), "focal": (2, 0.09, 0.6)}
    return [
        Contender(spec, [fake_result(data, seed=seed, shift=shift, found=found)])
        for spec, (seed, shift, found) in levels.items()
    ]


@pytest.fixture(scope="session")
def contenders(hard_data):
    """Focal, a better DR and a worse DR with a parameter; three seeds each."""
    levels = {"focal": (0.06, 0.75), "dr": (0.05, 0.95), "dr:neg_lambda=0.05": (0.09, 0.6)}
    return [
        Contender(spec, [fake_result(hard_data, seed=10 * i + s, shift=shift, found=found) for s in range(3)])
        for i, (spec, (shift, found)) in enumerate(levels.items())
    ]
