"""Share of the classification loss in a training step: Dr. Retina with ResNet-50 on one image of 800 × 1344.

    python -m benchmarks.share [--repeats 3] [--device cpu]

A step is forward, loss and backward of the detector as ``drloss train`` runs them, from random weights. The loss's
share is the time of its forward and backward alone, on the same maps and labels, over the time of the step.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.authors import torchvision_focal
from benchmarks.measure import step, surroundings, synchronize
from drloss import DRLoss, FocalLoss
from drloss.detector.config import DetectorConfig
from drloss.detector.model import RetinaNet
from drloss.detector.objective import Objective, assign_batch
from drloss.structures import Objects


class TorchvisionFocal(nn.Module):
    """torchvision's focal loss on levels joined as its own head joins them."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, maps: list[Tensor], labels: Tensor) -> Tensor:
        rows = [m.permute(0, 2, 3, 1).reshape(m.shape[0], -1, self.classes) for m in maps]
        return torchvision_focal(torch.cat(rows, dim=1), labels)


def seconds_of(run: Callable[[], None], like: Tensor, repeats: int) -> float:
    """Median time over the repeats, after a first run that does not count."""
    times = []
    for _ in range(repeats + 1):
        synchronize(like)
        began = time.perf_counter()
        run()
        synchronize(like)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    print(", ".join(f"{key} {value}" for key, value in surroundings(options.device).items()))
    torch.manual_seed(0)
    config = DetectorConfig(norm="frozen")
    model = RetinaNet(config, 80, 0.5).to(options.device)
    images = torch.randint(256, (1, 3, 800, 1344), dtype=torch.uint8, device=options.device)
    corners = torch.rand(8, 2, device=options.device) * torch.tensor([1000.0, 500.0], device=options.device)
    boxes = torch.cat([corners, corners + 40 + 200 * torch.rand(8, 2, device=options.device)], dim=1)
    classes = torch.randint(1, 81, (8,), device=options.device)
    objects = [Objects(boxes=boxes, labels=classes, ignore=torch.zeros_like(classes, dtype=torch.bool))]
    outputs = model(images)
    labels = assign_batch(outputs, objects, config).labels
    maps = [m.detach().requires_grad_() for m in outputs.maps]
    print(f"{sum(m.numel() for m in maps) / 1e6:.1f} million scores, {int((labels > 0).sum())} positive anchors")
    print(f"{'loss':<28}{'step, s':>9}{'loss, ms':>10}{'share':>8}")
    rows: dict[str, nn.Module] = {
        "DR": DRLoss(),
        "DR, definition": DRLoss(backend="torch"),
        "focal": FocalLoss(),
        "torchvision focal": TorchvisionFocal(80),
    }
    for name, loss in rows.items():
        objective = Objective(loss, config)

        def whole(objective: Objective = objective) -> None:
            model.zero_grad()
            objective(model(images), objects).total.backward()

        def alone(loss: nn.Module = loss) -> None:
            step(lambda: loss(maps, labels), maps[0])
            for m in maps:
                m.grad = None

        in_step = seconds_of(whole, images, options.repeats)
        in_loss = seconds_of(alone, images, options.repeats)
        print(f"{name:<28}{in_step:>9.2f}{in_loss * 1e3:>10.1f}{in_loss / in_step:>8.2%}")


if __name__ == "__main__":
    main()
