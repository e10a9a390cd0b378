"""The annotations of a data set are in memory once, however many processes load images."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, get_worker_info

from drloss.data.annotations import Annotations
from drloss.data.batches import EvaluationImages

ARRAYS = ("image_ids", "image_names", "sizes", "first_box", "boxes", "labels", "ignore", "areas")
BOXES_PER_IMAGE = 100
PAGE = os.sysconf("SC_PAGE_SIZE")
PAGEMAP = Path("/proc/self/pagemap")


def draw(index):
    return torch.zeros(3, 8, 8, dtype=torch.uint8)


def synthetic(boxes):
    """That many boxes, a hundred an image."""
    images = boxes // BOXES_PER_IMAGE
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 4, (boxes, 2))
    return Annotations(
        name="synthetic",
        class_names=("a", "b"),
        category_ids=np.array([1, 2]),
        image_ids=np.arange(images),
        image_names=np.array([b"%012d.jpg" % i for i in range(images)], dtype=np.bytes_),
        image_root=None,
        sizes=np.full((images, 2), 8, dtype=np.int32),
        first_box=np.arange(images + 1) * BOXES_PER_IMAGE,
        boxes=np.concatenate([corners, corners + 2], axis=1),
        labels=rng.integers(1, 3, boxes),
        ignore=np.zeros(boxes, dtype=np.bool_),
        areas=np.full(boxes, 4.0),
        draw=draw,
    )


def own_memory(annotations):
    """Bytes of the arrays in pages that are mapped by this process alone."""
    pages = 0
    with PAGEMAP.open("rb") as file:
        for name in ARRAYS:
            array = getattr(annotations, name)
            first, last = array.ctypes.data // PAGE, (array.ctypes.data + array.nbytes - 1) // PAGE
            file.seek(first * 8)
            entries = np.frombuffer(file.read((last - first + 1) * 8), dtype=np.uint64)
            pages += int((entries >> np.uint64(63) & entries >> np.uint64(56) & np.uint64(1)).sum())
    return pages * PAGE


def measured(_):
    """A worker's number, and what it has for itself once it has made a batch."""
    worker = get_worker_info()
    return worker.id, own_memory(worker.dataset.annotations)


@pytest.mark.soak
@pytest.mark.skipif(not PAGEMAP.exists(), reason="needs Linux's account of memory pages")
@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than this machine has cores
def test_workers_share_the_annotations(soak, figure):
    boxes, workers = (1_000_000, 8) if soak else (100_000, 2)
    annotations = synthetic(boxes)
    store = sum(getattr(annotations, name).nbytes for name in ARRAYS)
    assert own_memory(annotations) > 0.9 * store  # all is this process's as long as there is no other
    images = EvaluationImages(annotations, 8, 8)
    batches = images.batches(len(annotations) // (4 * workers))
    seen = dict(DataLoader(images, batch_sampler=batches, num_workers=workers, collate_fn=measured))
    assert len(seen) == workers
    added = sum(seen.values()) / store
    assert added < 0.1
    figure("T32", f"{workers} workers add {added:.2%} to the {store / 1e6:.0f} MB of {boxes:,} boxes")
