"""Images per second of a whole training step of the presets, and the share of each part, on one device.

    python -m benchmarks.step [--presets cpu laptop] [--data DATA] [--repeats 5] [--device cpu] [--threads N]

The parts of what ``drloss train`` does for one batch in fp32, without clipping the gradient: decode and augment the
images, forward, matching, both losses, backward, optimiser. They run one after the other, so the sum is the time
without loading processes. Three ways take their turn in each round, and medians over the rounds are shown:

- ``now``: the preset as it is, with the images in the cache;
- ``first epoch``: the same without the cache, and without writing to it;
- ``plain``: without a cache, JPEG files decoded at full size, and frozen norms as layers of their own. This is what
  every preset did before version 0.2.

Without ``--data``, 32 pictures of the generated set are enlarged to 480 x 640 and saved as JPEG files.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image

from benchmarks.measure import surroundings
from drloss.data.annotations import Annotations
from drloss.data.batches import TrainingImages, collate, image_cache, size_of
from drloss.data.formats.opening import open_data
from drloss.data.formats.shapes import open_shapes
from drloss.data.order import TrainingOrder
from drloss.data.transforms import Augmentation
from drloss.detector import backbone
from drloss.detector.model import RetinaNet
from drloss.detector.objective import Objective, assign_batch, box_loss, options_of_batch
from drloss.detector.starting_weights import resolve_detector
from drloss.training.config import Config, make_loss
from drloss.training.device import for_device
from drloss.training.presets import PRESETS
from drloss.training.schedule import build_optimizer

HEIGHT, WIDTH = 480, 640
PARTS = ("images", "forward", "matching", "classification loss", "box loss", "backward", "optimiser")
WAYS = ("plain", "first epoch", "now")


def photographs(folder: Path) -> Annotations:
    """Generated pictures as JPEG files of the usual size of a photograph for detection."""
    drawn = open_shapes("shapes:train=32,val=1").read("train")[0]
    names = []
    for index in range(len(drawn)):
        picture = Image.fromarray(drawn.load_image(index).permute(1, 2, 0).numpy())
        names.append(f"{index}.jpg")
        picture.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(folder / names[-1], quality=90)
    height, width = drawn.sizes[0].tolist()
    boxes = drawn.boxes * np.array([WIDTH / width, HEIGHT / height] * 2)
    sizes = np.tile(np.array([[HEIGHT, WIDTH]], dtype=np.int32), (len(drawn), 1))
    image_names = np.array([name.encode() for name in names])
    return replace(drawn, image_root=folder, image_names=image_names, sizes=sizes, boxes=boxes, draw=None)


class Step:
    """The parts of a preset's step, in one of :data:`WAYS`."""

    def __init__(self, config: Config, data: Annotations, device: torch.device, way: str) -> None:
        config = replace(config, detector=resolve_detector(config.detector, config.weights))
        sides = config.train_short_sides
        self.augmentation = Augmentation(
            (sides[0], sides[-1]), config.detector.max_side, config.flip, (config.zoom[0], config.zoom[1])
        )
        cache = image_cache("ram", data, self.augmentation, Path()) if way == "now" else None
        self.images = TrainingImages(data, self.augmentation, config.seed, cache)
        if way == "now":
            for index in range(len(data)):
                data.load_image(index, self.augmentation.needed_size(size_of(data, index)), cache)
        order = TrainingOrder(data, self.augmentation, config.batch_size, config.seed)
        self.batches = order.batches()
        self.way = way
        torch.manual_seed(0)
        with mock.patch.object(backbone, "fold_norms") if way == "plain" else nullcontext():
            self.model = RetinaNet(config.detector, len(data.class_names), 0.5).to(device).train()
        config = for_device(config, device)
        if config.channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.config, self.device = config, device
        self.objective = Objective(make_loss(config.loss), config.detector)
        self.optimizer = build_optimizer(self.model, config)

    def run(self) -> dict[str, float]:
        """Seconds of each part of one step, all micro-batches together."""
        seconds = dict.fromkeys(PARTS, 0.0)
        keys = next(self.batches)
        size = min(self.config.micro_batch, self.config.batch_size)
        self.optimizer.zero_grad(set_to_none=True)
        for first in range(0, len(keys), size):
            clock = _clock(seconds, self.device)
            with mock.patch.object(Augmentation, "needed_size", _whole) if self.way == "plain" else nullcontext():
                batch = collate([self.images[key] for key in keys[first : first + size]])
            assert not isinstance(batch, Exception), batch
            clock("images")
            objects = batch.objects.to(self.device)
            outputs = self.model(batch.images.to(self.device), batch.sizes)
            clock("forward")
            targets = assign_batch(outputs, objects, self.config.detector)
            clock("matching")
            deltas = torch.cat(outputs.deltas, dim=1)
            of_batch = options_of_batch(self.objective.loss, targets, deltas, torch.cat(outputs.anchors))
            loss = self.objective.loss(outputs.maps, targets.labels, **of_batch)
            clock("classification loss")
            box = box_loss(deltas, targets.deltas, targets.labels).mean()
            clock("box loss")
            (loss + box).backward()
            clock("backward")
        clock = _clock(seconds, self.device)
        self.optimizer.step()
        clock("optimiser")
        return seconds


def _clock(seconds: dict[str, float], device: torch.device) -> Callable[[str], None]:
    """Adds the time since the last call to a part."""
    last = time.perf_counter()

    def stop(part: str) -> None:
        nonlocal last
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        now = time.perf_counter()
        seconds[part] += now - last
        last = now

    return stop


def _whole(_: Augmentation, size: tuple[int, int]) -> tuple[int, int]:
    return size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", choices=tuple(PRESETS), default=["cpu", "laptop"])
    parser.add_argument("--data", help="data set whose split train is used (default: generated pictures)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="threads of torch (default: its own choice)")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    print(", ".join(f"{key} {value}" for key, value in surroundings(options.device).items()))
    with tempfile.TemporaryDirectory() as folder:
        data = open_data(options.data).read("train")[0] if options.data else photographs(Path(folder))
        print(f"{len(data)} images, the first {data.sizes[0, 0]} x {data.sizes[0, 1]}")
        for name in options.presets:
            _show(name, PRESETS[name], data, options)


def _show(name: str, config: Config, data: Annotations, options: argparse.Namespace) -> None:
    steps = {way: Step(config, data, torch.device(options.device), way) for way in WAYS}
    rounds: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for number in range(options.repeats + 1):
        for way, step in steps.items():
            found = step.run()
            if number:  # the first warms up
                rounds[way].append(found)
    medians = {way: {p: statistics.median(r[p] for r in rounds[way]) for p in PARTS} for way in WAYS}
    totals = {way: statistics.median(sum(r.values()) for r in rounds[way]) for way in WAYS}
    images = config.batch_size
    print(f"\npreset {name}: {config.detector.backbone}, short side {config.detector.short_side}, batch {images}")
    print(f"{'ms per image (share of the step)':<34}" + "".join(f"{way:>20}" for way in WAYS))
    for part in PARTS:
        cells = (f"{1e3 * medians[w][part] / images:.2f} ({medians[w][part] / totals[w]:.0%})" for w in WAYS)
        print(f"{part:<34}" + "".join(f"{cell:>20}" for cell in cells))
    print(f"{'whole step':<34}" + "".join(f"{1e3 * totals[w] / images:>20.2f}" for w in WAYS))
    print(f"{'images per second':<34}" + "".join(f"{images / totals[w]:>20.1f}" for w in WAYS))
    print(f"{'times as fast as plain':<34}" + "".join(f"{totals['plain'] / totals[w]:>20.2f}" for w in WAYS))


if __name__ == "__main__":
    main()
