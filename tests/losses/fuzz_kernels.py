"""The C file under gcc's sanitizers: run by test_transforms.py, with the sanitizer loaded before Python."""

import random
import sys

import torch

from drloss.losses.fused import cpu

LABELS = [-1, 0, 1, 2, 3, 4, 255, 10**6, 10**12, 2**62, -(2**63), 2**63 - 1]


def one(seed: int) -> None:
    """One problem of random shapes, layouts, labels, weights and first passes."""
    random.seed(seed)
    torch.manual_seed(seed)
    n, k, dtype = random.randint(0, 2), random.choice([1, 3, 17, 33, 80]), random.choice(cpu.DTYPES)
    levels = []
    for _ in range(random.randint(1, 3)):
        h, w, b = random.randint(0, 9), random.choice([1, 3, 16, 700]), random.randint(1, 2)
        x = torch.randn(n, b * k, h, w).to(dtype) * random.choice([1, 1e30])
        x[torch.rand(x.shape) < 0.02] = random.choice([torch.inf, -torch.inf, torch.nan])
        kind = random.choice(["planes", "last", "rows"])
        if kind == "rows":
            x = x.permute(0, 2, 3, 1).reshape(n, h * w * b, k).contiguous()
        levels.append((x.contiguous(memory_format=torch.channels_last) if kind == "last" else x, h * w * b))
    anchors = sum(a for _, a in levels)
    logits = [x for x, _ in levels]
    labels = torch.tensor(LABELS)[torch.randint(len(LABELS), (n, anchors))]
    dense = torch.randint(0, 256, (n, anchors, k), dtype=torch.uint8) % 4 if random.random() < 0.3 else None
    narrow = [(1, 1, k), (n, anchors, 1)]
    weights = [
        None if random.random() < 0.5 else torch.rand(random.choice(narrow)).expand(n, anchors, k) for _ in range(2)
    ]
    first_pass = torch.randn(n, 2, 4) if random.random() < 0.3 else None
    numbers = torch.tensor([1.0, 12.0, 0.5, 6.0], dtype=torch.float64)
    kind, pooled = random.choice(["dr", "focal"]), random.random() < 0.3
    by_class = kind == "dr" and random.random() < 0.5
    ending = ("positives", "") if kind == "focal" else ("logistic", "exact")
    rest = (labels, dense, *weights, first_pass, numbers)
    losses, coefficients = torch.ops.drloss.losses(logits, *rest, k, kind, "cpu", *ending, by_class, pooled)
    factors = torch.ones_like(losses)
    torch.ops.drloss.gradients(factors, coefficients, logits, *rest, k, kind, "cpu")
    torch.ops.drloss.gradients_in_place(factors, coefficients, logits, *rest, k, kind, "cpu")


if __name__ == "__main__":
    import drloss  # noqa: F401 - registers the operators

    assert cpu.available()
    for number in range(int(sys.argv[1])):
        one(number)
    print("done")
