"""Whole training steps at the paper's size: torchvision's RetinaNet, the same with the DR loss, and ours.

All have a ResNet-50 with frozen norms and random weights, whose stem and first stage are not trained, 80 classes and
images of 800 x 1333 with a few objects each. A step is everything from the images in the host's memory to the new
weights.
"""

import gc
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu import clock
from benchmarks.gpu.notes import Notes, failure, words

CLASSES, OBJECTS = 80, 8
BATCH, SIZE = 16, (800, 1333)
SMALL_BATCH, SMALL_SIZE = 2, (64, 96)
PRECISIONS = {"fp32": (torch.float32, False), "bf16, channels_last": (torch.bfloat16, True)}
WORKERS = (2, 8, 12)

Run = Callable[[], Tensor | float]
"""A step, which returns its loss."""


def run(notes: Notes) -> None:
    """Note it; see :mod:`benchmarks.gpu`."""
    found: dict[str, Any] = {}
    models: dict[str, Callable[..., Run]] = {"ours": own, "torchvision": torchvisions, "torchvision, DR": adapted}
    for precision in reversed(PRECISIONS):
        for name, make in models.items():
            if notes.small and (name == "ours") != (precision == "bf16, channels_last"):
                continue
            _add(found, notes, f"{name}, {precision}", lambda make=make, p=precision: make(notes, p))
    notes.attempt("loading", lambda: loading(notes))
    if notes.small or notes.left < 40:
        why = "only on a GPU" if notes.small else f"{notes.left:.0f} s were left"
        notes.note("compiled", {"not_run": why})
        return
    _add(
        found, notes, "ours, compiled, bf16, channels_last", lambda: own(notes, "bf16, channels_last", compiled=True)
    )


def _add(found: dict[str, Any], notes: Notes, name: str, make: Callable[[], Run]) -> None:
    try:
        found[name] = _measure(make(), notes)
    except Exception as error:
        found[name] = failure(error)
    if notes.device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
    row = found[name]
    said = f"{row['images_per_s']:.1f} images/s" if "images_per_s" in row else words(row)
    notes.note("steps", found, say=f"{name}: {said}")


def _measure(step: Run, notes: Notes) -> dict[str, Any]:
    n = SMALL_BATCH if notes.small else BATCH
    if notes.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    (seconds,), (host,) = clock.times([lambda _: step()], notes.device, 2 if notes.small else 10, most_s=6)
    peak = torch.cuda.max_memory_allocated() if notes.device == "cuda" else 0
    found: dict[str, Any] = {"images_per_s": n / seconds, "step_s": seconds, "host_s": host, "peak_gb": peak / 1e9}
    found["loss"] = float(step())
    found["waits"] = waits(step) if notes.device == "cuda" else None
    every = clock.kernels(step, notes.device, most=1_000_000)
    return found | {"kernels_s": sum(us for _, us, _ in every) / 1e6, "kernels": every[:10]}


def waits(step: Run) -> int:
    """How often a step waits for the device, as far as torch sees it."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            torch.cuda.set_sync_debug_mode("warn")
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(warning.message) for warning in seen)


def _size(notes: Notes) -> tuple[int, int]:
    return SMALL_SIZE if notes.small else SIZE


def images_and_objects(notes: Notes) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """uint8 images (3, H, W), and boxes and labels 1..K of each; the images are in page-locked memory of the host."""
    generator = torch.Generator().manual_seed(0)
    n, (h, w) = SMALL_BATCH if notes.small else BATCH, _size(notes)
    images = torch.randint(0, 256, (n, 3, h, w), generator=generator, dtype=torch.uint8)
    corners = torch.rand(n, OBJECTS, 2, generator=generator) * torch.tensor([w, h]) * 0.6
    sides = (0.05 + 0.3 * torch.rand(n, OBJECTS, 2, generator=generator)) * h
    boxes = torch.cat([corners, corners + sides], dim=2)
    images = images.pin_memory() if notes.device == "cuda" else images
    return list(images), list(boxes), list(torch.randint(1, CLASSES + 1, (n, OBJECTS), generator=generator))


def own(notes: Notes, precision: str, *, compiled: bool = False) -> Run:
    """A step of ``drloss train``, all images at once."""
    from drloss.data.batches import collate
    from drloss.data.transforms import pad, padded_size
    from drloss.detector.config import DetectorConfig
    from drloss.detector.model import RetinaNet
    from drloss.detector.objective import Objective
    from drloss.distributed.ranks import Ranks
    from drloss.structures import Frame, Objects
    from drloss.training.config import Config, make_loss
    from drloss.training.schedule import build_optimizer
    from drloss.training.step import take_step

    dtype, channels_last = PRECISIONS[precision]
    detector = DetectorConfig(norm="frozen")
    config = Config(detector=detector, lr=1e-6, precision="fp32" if dtype == torch.float32 else "bf16")
    torch.manual_seed(0)
    model = RetinaNet(detector, CLASSES, 0.5).to(notes.device).train()
    if channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    trainer: Any = SimpleNamespace(
        config=config,
        model=model,
        parallel=torch.compile(model) if compiled else model,
        objective=Objective(make_loss("dr"), detector),
        optimizer=build_optimizer(model, config),
        scaler=torch.amp.GradScaler(notes.device, enabled=False),
        ranks=Ranks(0, 1, torch.device(notes.device)),
        stop=SimpleNamespace(received=False),
        average=None,
        iteration=1000,
    )
    size = _size(notes)
    batch: Any = collate(
        [
            (pad(x, padded_size(size)), Objects(b, c, torch.zeros(len(c), dtype=torch.bool)), Frame(size, size), i)
            for i, (x, b, c) in enumerate(zip(*images_and_objects(notes), strict=True))
        ]
    )
    batch = batch.pin_memory() if notes.device == "cuda" else batch
    return lambda: take_step(trainer, [batch], logged=False).loss


def torchvisions(notes: Notes, precision: str) -> Run:
    """A step of torchvision's RetinaNet with its focal loss."""
    return _of_torchvision(_torchvisions_model(notes), notes, precision)


def adapted(notes: Notes, precision: str) -> Run:
    """A step of torchvision's RetinaNet with the DR loss."""
    from drloss import adapt

    return _of_torchvision(adapt(_torchvisions_model(notes)), notes, precision)


def _torchvisions_model(notes: Notes) -> nn.Module:
    from torchvision.models.detection import retinanet_resnet50_fpn

    torch.manual_seed(0)
    h, w = _size(notes)
    model: nn.Module = retinanet_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=CLASSES + 1, min_size=(h,), max_size=w
    )
    freeze_norms(model)
    for name, parameter in model.backbone.body.named_parameters():
        if not name.startswith(("layer2", "layer3", "layer4")):
            parameter.requires_grad_(False)
    return model


def freeze_norms(model: nn.Module) -> None:
    """Put torchvision's frozen norms in place of batch norms, as its models with pretrained weights have them."""
    from torchvision.ops import FrozenBatchNorm2d

    for name, child in model.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(model, name, FrozenBatchNorm2d(child.num_features))
        else:
            freeze_norms(child)


def _of_torchvision(model: nn.Module, notes: Notes, precision: str) -> Run:
    dtype, channels_last = PRECISIONS[precision]
    model = model.to(notes.device).train()
    if channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images, boxes, classes = images_and_objects(notes)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-6, momentum=0.9)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        floats = [image.to(notes.device, non_blocking=True).float() / 255 for image in images]
        targets = [
            {"boxes": b.to(notes.device), "labels": c.to(notes.device)} for b, c in zip(boxes, classes, strict=True)
        ]
        with torch.autocast(notes.device, dtype=torch.bfloat16, enabled=dtype != torch.float32):
            losses = model(floats, targets)
        total: Tensor = sum(losses.values())
        total.backward()
        optimizer.step()
        return total.detach()

    return step


def loading(notes: Notes) -> dict[str, float]:
    """Images a second that the loading processes bring, of JPEG files of 480 x 640 resized to the paper's size."""
    from time import perf_counter

    from benchmarks.step import photographs
    from drloss.data.batches import TrainingImages
    from drloss.data.order import TrainingOrder
    from drloss.data.transforms import Augmentation
    from drloss.data.workers import load_batches

    side, longest = min(_size(notes)), max(_size(notes))
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        data = photographs(Path(folder))
        augmentation = Augmentation((side, side), longest, 0.5, (1.0, 1.0))
        images = TrainingImages(data, augmentation, 0)
        for workers in (0,) if notes.small else WORKERS:
            batches = TrainingOrder(data, augmentation, BATCH, 0).batches()
            with load_batches(images, batches, workers, torch.device(notes.device)) as loaded:
                for _ in range(1 if notes.small else max(2, 2 * workers // 4)):
                    next(loaded)
                began, seen = perf_counter(), 0
                while seen < (1 if notes.small else 6) or (perf_counter() - began < 3 and not notes.small):
                    next(loaded)
                    seen += 1
                found[str(workers)] = round(BATCH * seen / (perf_counter() - began), 1)
    return found
