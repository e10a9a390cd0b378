"""Functions that tests run in every process of a group, whose processes are started as torchrun starts them."""

import hashlib
import io
import json
from dataclasses import replace

import numpy as np
import torch
from rich.console import Console

from faults import rank_processes

QUIET = {"console": Console(file=io.StringIO())}


def in_ranks(size, function, *arguments, seconds=1200):
    """Run ``function(ranks, *arguments)`` of this module in ``size`` processes; the first argument is a folder."""
    for child in rank_processes(arguments[0] / f"log{size}", size, _run, function.__name__, arguments):
        assert child.wait(seconds) == 0, child.said


def _run(name, arguments):
    from drloss.distributed.ranks import join_ranks

    torch.set_num_threads(1)
    with join_ranks("cpu") as ranks:
        globals()[name](ranks, *arguments)


def evaluate_splits(ranks, folder, detector, sizes):
    """Evaluate ``detector`` on splits of the given numbers of images, into ``folder/RANKS/IMAGES``."""
    from drloss.data.formats.shapes import open_shapes
    from drloss.inference import evaluate

    evaluate.save_evaluation_figures = lambda *args, **kwargs: None  # they take a second each
    for images in sizes:
        split = open_shapes(f"shapes:train=1,val={images},size=32").read("val")[0]
        out = folder / str(ranks.size) / str(images)
        evaluate.evaluate_run(
            detector, split, out, ranks, batch_size=2, workers=0, score_threshold=0.01, test_scales=(), **QUIET
        )


# ------------------------------------------------------------------------ images with nothing to learn


def train_patterns(ranks, folder, config, patterns):
    """Train on data in which the images of some ranks have no objects to learn.

    A pattern has a kind of image for each third of a batch: ``"objects"``, ``"none"`` or ``"ignored"``. The file
    ``folder/PATTERN.RANKS.json`` has the losses of a run, and the hash of each rank's weights and gradients.
    """
    from drloss.data.formats.shapes import open_shapes
    from drloss.data.order import TrainingOrder
    from drloss.data.transforms import Augmentation
    from drloss.training import fit, preparation
    from drloss.training.log import read_scalars
    from drloss.training.run_folder import METRICS_FILE

    made = []
    detector = preparation.RetinaNet
    preparation.RetinaNet = lambda *args, **kwargs: made.append(detector(*args, **kwargs)) or made[-1]
    data = open_shapes("shapes:train=36,val=1,size=32").read("train")[0]
    augmentation = Augmentation((config.train_short_sides[0], config.train_short_sides[-1]), config.detector.max_side)
    for number, pattern in enumerate(patterns):
        order = TrainingOrder(data, augmentation, config.batch_size, config.seed).batches()
        kinds = {}
        for _ in range(config.max_iters):
            for place, key in enumerate(next(order)):
                kinds[key.index] = pattern[place * len(pattern) // config.batch_size]
        out = folder / f"{number}.{ranks.size}"
        fit.fit(config, _with_kinds(data, kinds), None, out, ranks, **QUIET)
        tensors = [t for p in made[-1].parameters() for t in (p, p.grad)]
        assert all(t is not None and t.isfinite().all() for t in tensors), pattern
        digest = hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in tensors)).hexdigest()
        digests = ranks.gather(digest)
        if ranks.first:
            found = {"losses": read_scalars(out / METRICS_FILE)["loss"][1], "digests": digests}
            (folder / f"{number}.{ranks.size}.json").write_text(json.dumps(found))


def _with_kinds(data, kinds):
    """The data with the boxes of some images ignored, and of others removed."""
    owner = np.repeat(np.arange(len(data)), np.diff(data.first_box))
    kept = np.array([kinds.get(int(i)) != "none" for i in owner])
    ignored = np.array([kinds.get(int(i)) == "ignored" for i in owner])
    counts = np.bincount(owner[kept], minlength=len(data))
    return replace(
        data,
        first_box=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes=data.boxes[kept],
        labels=data.labels[kept],
        ignore=(data.ignore | ignored)[kept],
        areas=data.areas[kept],
    )
