"""torchvision's detectors with their own classification loss and with DR through the adapter, on one data set.

python -m benchmarks.hosts --data shapes --models retinanet fcos ssd --max-iters 300 --jobs 4

The record is a dated file in ``benchmarks/results/``. Backbones of random weights, images of 128 pixels: this shows
that the adapted detectors learn, and not how far DR is ahead. Both losses have the same initial weights but for the
classifier's bias, the same batches and the same budget.
"""

import argparse
import json
from collections.abc import Callable
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN, _resnet_fpn_extractor
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.models.detection.ssd import SSD

from benchmarks.loss import RESULTS
from benchmarks.measure import surroundings
from drloss import check
from drloss.adapters import adapt
from drloss.data.annotations import Annotations
from drloss.data.formats.opening import open_data
from drloss.evaluation.coco import evaluate
from drloss.io.atomic import write_text

SIDE, BATCH, LR = 128, 8, 1e-3


def pyramid() -> BackboneWithFPN:
    """ResNet-18 with group norm, levels of stride 8, 16 and 32."""
    backbone = resnet18(weights=None, norm_layer=lambda channels: nn.GroupNorm(8, channels))
    return _resnet_fpn_extractor(backbone, trainable_layers=5, returned_layers=[2, 3, 4])


def retinanet(classes: int) -> RetinaNet:
    """Anchors of 16 to 161 pixels, of the pyramid's three levels and the pooled one."""
    sizes = tuple((s, s * 2 ** (1 / 2)) for s in (16, 32, 64, 114))
    return RetinaNet(pyramid(), classes, anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 4), **_size())


def fcos(classes: int) -> FCOS:
    """Points of the same levels."""
    anchors = AnchorGenerator(((8,), (16,), (32,), (64,)), ((1.0,),) * 4)
    return FCOS(pyramid(), classes, anchor_generator=anchors, **_size())


def ssd(classes: int) -> SSD:
    """Default boxes on the same levels."""
    backbone = pyramid()
    backbone.out_channels = [backbone.out_channels] * 4
    boxes = DefaultBoxGenerator([[2]] * 4, scales=[0.12, 0.25, 0.45, 0.7, 0.95])
    return SSD(backbone, boxes, (SIDE, SIDE), classes)


def _size() -> dict[str, int]:
    return {"min_size": SIDE, "max_size": 2 * SIDE}


MODELS: dict[str, Callable[[int], nn.Module]] = {"retinanet": retinanet, "fcos": fcos, "ssd": ssd}


def targets_of(data: Annotations, index: int) -> tuple[Tensor, dict[str, Tensor]]:
    """An image in [0, 1] and its objects, as torchvision takes them."""
    own = data.boxes_of(index)
    image = torch.as_tensor(data.load_image(index)).float() / 255
    boxes, labels = torch.from_numpy(data.boxes[own]).float(), torch.from_numpy(data.labels[own]).long()
    return image, {"boxes": boxes, "labels": labels}


def train(model: nn.Module, data: Annotations, iterations: int, seed: int) -> None:
    """AdamW with a cosine to zero."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=iterations, pct_start=0.1)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(iterations):
        chosen = torch.randint(len(data), (BATCH,), generator=generator).tolist()
        images, targets = zip(*(targets_of(data, i) for i in chosen), strict=True)
        losses = model(list(images), list(targets))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        schedule.step()


@torch.no_grad()
def measure(model: nn.Module, data: Annotations) -> dict[str, float]:
    """COCO metrics in percent."""
    model.eval()
    found = []
    for index in range(len(data)):
        image, _ = targets_of(data, index)
        found += model([image])
    return evaluate(data, found).metrics


def run(data: str, name: str, loss: str, iterations: int, seed: int) -> dict[str, Any]:
    """Train and measure one detector; ``loss`` is ``"own"`` for torchvision's, or a name of ours."""
    torch.set_num_threads(1)
    source = open_data(data)
    train_data, val = (source.read(split)[0] for split in ("train", "val"))
    classes = len(train_data.class_names)
    torch.manual_seed(seed)
    model = MODELS[name](classes + 1)
    seen = ""
    if loss != "own":
        adapt(model, loss)
        images, targets = zip(*(targets_of(train_data, i) for i in range(4)), strict=True)
        report = check(model, (list(images), list(targets)), num_classes=classes)
        seen = "green" if report.ok else str(report)
    train(model, train_data, iterations, seed)
    metrics = measure(model, val)
    return {"model": name, "loss": loss, "AP": metrics["AP"], "AP50": metrics["AP50"], "check": seen}


def table(record: dict[str, Any]) -> list[str]:
    """A record's rows in Markdown, a model a line."""
    losses = list(dict.fromkeys(row["loss"] for row in record["rows"]))
    names = ["torchvision's own" if loss == "own" else loss for loss in losses]
    lines = [
        f"| model | {' | '.join(f'{name}: AP, AP50' for name in names)} | `check` |",
        f"|---|{'---:|' * len(losses)}---|",
    ]
    for model in dict.fromkeys(row["model"] for row in record["rows"]):
        rows = {row["loss"]: row for row in record["rows"] if row["model"] == model}
        cells = [f"{rows[loss]['AP']:.1f}, {rows[loss]['AP50']:.1f}" for loss in losses]
        seen = ", ".join(dict.fromkeys(row["check"] for row in rows.values() if row["check"]))
        lines.append(f"| {model} | {' | '.join(cells)} | {seen} |")
    about = ", ".join(f"{key} {value}" for key, value in record["surroundings"].items())
    return [
        *lines,
        "",
        f"{record['data']}: {record['iterations']} iterations of {BATCH}, seed {record['seed']}; {about}.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", default="shapes", help="as for drloss train")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--losses", nargs="+", default=["own", "dr"], help="own is torchvision's")
    parser.add_argument("--max-iters", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, a thread each")
    options = parser.parse_args()
    cases = [
        (options.data, model, loss, options.max_iters, options.seed)
        for model in options.models
        for loss in options.losses
    ]
    with get_context("spawn").Pool(options.jobs) as pool:
        rows = pool.starmap(run, cases, chunksize=1)
    record = {
        "data": Path(open_data(options.data).name).name,
        "iterations": options.max_iters,
        "seed": options.seed,
        "surroundings": surroundings("cpu"),
        "rows": rows,
    }
    print("\n".join(table(record)))
    write_text(RESULTS / f"{date.today()}-hosts-{record['data']}.json", json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
