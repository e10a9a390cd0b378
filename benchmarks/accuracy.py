"""Error of the DR loss in float32 at the size of an image, beside that of the authors' formula.

    python -m benchmarks.accuracy [--anchors 201600] [--classes 80]

Both are compared with float64 on the same logits, for logits as at the start, early and late in training.
"""

import argparse
import platform
from collections.abc import Callable

import torch
from torch import Tensor

import drloss
from benchmarks.authors import authors_dr_loss
from drloss import DRLoss
from drloss.training.records import commit

LOGITS = {"start, N(0, 0.1)": (0.0, 0.1), "early, N(-3, 1)": (-3.0, 1.0), "trained, N(-5, 1.5)": (-5.0, 1.5)}


def value_and_gradient(
    loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Tensor
) -> tuple[float, Tensor]:
    leaf = logits.clone().requires_grad_()
    value = loss(leaf, labels)
    value.backward()
    assert leaf.grad is not None
    return value.item(), leaf.grad


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--anchors", type=int, default=201_600)
    parser.add_argument("--classes", type=int, default=80)
    options = parser.parse_args()
    print(f"cpu ({platform.processor() or platform.machine()}), {torch.get_num_threads()} threads; torch", end=" ")
    print(f"{torch.__version__}, drloss {drloss.__version__} {commit()}")
    print(f"one image of {options.anchors} x {options.classes}, float32 against float64, relative errors")
    print(f"{'logits':<22}{'':<10}{'loss':>10}{'gradient (norm)':>18}")
    for name, (mean, deviation) in LOGITS.items():
        torch.manual_seed(0)
        logits = torch.randn(1, options.anchors, options.classes) * deviation + mean
        labels = torch.zeros(1, options.anchors, dtype=torch.int64)
        labels[0, :100] = torch.randint(1, options.classes + 1, (100,))
        wanted, exact = value_and_gradient(DRLoss(), logits.double(), labels)
        for loss_name, loss in (("authors'", authors_dr_loss), ("drloss", DRLoss())):
            value, gradient = value_and_gradient(loss, logits, labels)
            error = ((gradient - exact).norm() / exact.norm()).item()
            print(f"{name:<22}{loss_name:<10}{abs(value - wanted) / wanted:>10.1e}{error:>18.1e}")


if __name__ == "__main__":
    main()
