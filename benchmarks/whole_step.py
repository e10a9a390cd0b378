"""A whole training step of our RetinaNet over torchvision's on a CPU, with the same backbone, batch and precision.

    python -m benchmarks.whole_step [--cases resnet18,4,256,256 ...] [--repeats 5] [--threads 1] [--record]

fp32, random weights, frozen norms, stem and first stage not trained, 80 classes, 13 objects an image. The two take
turns; the ratio is the median over the pairs. The profile says which share of each step is spent in convolutions and
matrix products, forward and backward: what no detector with this backbone and these heads can do without.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from benchmarks.measure import surroundings
from drloss.detector.config import DetectorConfig
from drloss.detector.model import RetinaNet
from drloss.detector.objective import Objective
from drloss.losses import DRLoss
from drloss.structures import Objects, PaddedObjects

RESULTS = Path(__file__).parent / "results"
CLASSES, OBJECTS = 80, 13
_PRODUCTS = ("convolution", "addmm", "mm", "bmm", "mkldnn")


def examples(n: int, height: int, width: int) -> tuple[Tensor, list[Objects]]:
    """Images uint8 (n, 3, H, W) and their objects."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (n, 3, height, width), generator=generator, dtype=torch.uint8)
    size = torch.tensor([width, height])
    found = []
    for _ in range(n):
        corner = 0.8 * torch.rand(OBJECTS, 2, generator=generator) * size
        side = 10 + torch.rand(OBJECTS, 2, generator=generator) * (0.2 * size - 10)
        labels = torch.randint(1, CLASSES + 1, (OBJECTS,), generator=generator)
        found.append(
            Objects(torch.cat([corner, corner + side], dim=1), labels, torch.zeros(OBJECTS, dtype=torch.bool))
        )
    return images, found


def own(backbone: str, images: Tensor, objects: list[Objects]) -> Callable[[], None]:
    """A step of ours with the DR loss."""
    config = DetectorConfig(backbone=backbone, norm="frozen")
    model, objective = RetinaNet(config, CLASSES, 0.5).train(), Objective(DRLoss(), config)
    return _step(model, lambda: objective(model(images), PaddedObjects.of(objects)).total)


def torchvisions(backbone: str, images: Tensor, objects: list[Objects]) -> Callable[[], None]:
    """A step of torchvision's with its focal loss."""
    pyramid = LastLevelP6P7(256, 256)
    body = resnet_fpn_backbone(
        backbone_name=backbone, weights=None, trainable_layers=3, returned_layers=[2, 3, 4], extra_blocks=pyramid
    )
    sizes = tuple(tuple(int(side * 2 ** (i / 3)) for i in range(3)) for side in (32, 64, 128, 256, 512))
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    height, width = images.shape[2:]
    model = TorchvisionRetinaNet(body, CLASSES, anchor_generator=anchors, min_size=height, max_size=2 * width).train()
    targets = [{"boxes": o.boxes, "labels": o.labels - 1} for o in objects]
    return _step(model, lambda: sum(model(list(images.float() / 255), targets).values()))


def _step(model: torch.nn.Module, loss: Callable[[], Any]) -> Callable[[], None]:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-6, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def products(step: Callable[[], None]) -> float:
    """Share of a step that is spent in convolutions and matrix products."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    times = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    inside = sum(value for name, value in times.items() if any(word in name for word in _PRODUCTS))
    return inside / sum(times.values())


def compare(backbone: str, n: int, height: int, width: int, repeats: int) -> dict[str, Any]:
    """Seconds of both, the ratio, and the shares of convolutions."""
    torch.manual_seed(0)
    images, objects = examples(n, height, width)
    steps = {"ours": own(backbone, images, objects), "torchvision": torchvisions(backbone, images, objects)}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(repeats + 1):
        for name, step in steps.items():
            began = time.process_time()  # the machine may be busy with other work
            step()
            if number:  # the first warms up
                seconds[name].append(time.process_time() - began)
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["torchvision"], strict=True)]
    return {
        "case": f"{backbone}, {n} x {height} x {width}",
        **{f"{name}_s": statistics.median(values) for name, values in seconds.items()},
        "ratio": statistics.median(ratios),
        "ratios": [round(ratio, 2) for ratio in ratios],
        "products": {name: products(step) for name, step in steps.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["resnet18,4,256,256", "resnet50,1,800,1344"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--record", action="store_true", help="keep the figures in benchmarks/results/")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    where, rows = surroundings("cpu"), []
    print(", ".join(f"{key} {value}" for key, value in where.items()))
    for case in options.cases:
        backbone, *sizes = case.split(",")
        n, height, width = map(int, sizes)
        rows.append(compare(backbone, n, height, width, options.repeats))
        row = rows[-1]
        print(
            f"{row['case']}: ours {row['ours_s']:.2f} s of CPU time, torchvision {row['torchvision_s']:.2f} s, "
            f"ratio {row['ratio']:.2f} (of the pairs {row['ratios']}); in convolutions and matrix products "
            f"{row['products']['ours']:.0%} and {row['products']['torchvision']:.0%}"
        )
    if options.record:
        path = RESULTS / f"{date.today()}-whole-step-cpu.json"
        path.write_text(json.dumps(where | {"rows": rows}, indent=1) + "\n")
        print(path)


if __name__ == "__main__":
    main()
