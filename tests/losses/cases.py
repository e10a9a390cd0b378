"""Cases and measures that the tests of the losses share."""

from importlib.metadata import version
from importlib.util import find_spec

import pytest
import torch

import oracle
from drloss import dr_loss
from drloss.losses.fused import cpu

CPU = pytest.param("cpu", marks=pytest.mark.skipif(not cpu.available(), reason="there is no C compiler"))
NO_TRITON = "triton is not installed" if find_spec("triton") is None else ""
if not NO_TRITON and not torch.cuda.is_available() and tuple(map(int, version("triton").split(".")[:2])) < (3, 8):
    NO_TRITON = "the interpreter of triton before 3.8 reads numbers in a way that numpy has given up"
TRITON = pytest.param("triton", marks=pytest.mark.skipif(bool(NO_TRITON), reason=NO_TRITON))
BACKENDS = [CPU, TRITON, "chunked"]
"""The fused backends; without a CUDA device Triton's kernels are interpreted."""
ON_DEVICE = 4 if torch.cuda.is_available() else 1
"""Factor on the error that Triton's kernels may have. A device's ``div.full`` and ``ex2.approx`` are good to 2 units
in the last place, where the interpreter and a CPU round to half a unit. An error of v is 1/λ times as large in
exp(v/λ), 100 times in some cases, so that this is most of what is lost."""


def device_of(backend):
    """Where the tensors of a backend must be: Triton's on a CUDA device if there is one, all others on the CPU."""
    return "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"


def error_of(backend, error):
    """The error that a backend may have where the compiled kernels may have this one."""
    return error * (ON_DEVICE if backend == "triton" else 1)


def random_case(
    seed, *, n=2, a=30, k=3, scale=3.0, dtype=torch.float64, values=(-1, 0, 0, 0, 1, 2, 3), backend="cpu"
):
    """Logits (N, A, K), rounded to the dtype, and labels (N, A) of a seed, on the device of a backend."""
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(n, a, k, generator=generator, dtype=torch.float64) * scale).to(dtype)
    labels = torch.tensor(values)[torch.randint(len(values), (n, a), generator=generator)].clamp(max=k)
    return logits.to(device_of(backend)), labels.to(device_of(backend))


def with_masked_classes(logits, labels):
    """Logits whose first class is masked by -inf at three anchors if it is a negative, and +inf if it is ignored."""
    for n, a in ((0, 0), (0, 1), (1, 2)):
        if labels[n, a] != 1:
            logits[n, a, 0] = torch.inf if labels[n, a] == -1 else -torch.inf
    return logits


def gradient_of(logits, labels, loss=dr_loss, **options):
    """Gradient of the sum over images."""
    leaf = logits.detach().clone().requires_grad_()
    loss(leaf, labels, reduction="sum", **options).backward()
    return leaf.grad


def plain(prior):
    """A prior as the oracle takes it."""
    return prior.tolist() if isinstance(prior, torch.Tensor) else prior


def reference(logits, labels, *, scope="per_image", **options):
    """Losses (N,) or (1,), gradient (N, A, K) and the smallest |z| of the oracle, in float64."""
    options["surrogate_name"] = options.pop("surrogate", "logistic")
    images, rows = logits.double().clamp(-700, 700).tolist(), labels.tolist()
    priors = {name: plain(options.pop(name, None)) for name in ("pos_prior", "neg_prior")}

    def part(prior, i):
        return prior[i : i + 1] if isinstance(prior, list) else prior

    if scope.endswith("per_class"):
        return _by_class(images, rows, priors, pooled=scope.startswith("pooled"), **options)
    if scope == "pooled":
        found = [oracle.family(images, rows, **priors, **options)]
    else:
        found = [
            oracle.family([x], [y], **{name: part(p, i) for name, p in priors.items()}, **options)
            for i, (x, y) in enumerate(zip(images, rows, strict=True))
        ]
    losses = torch.tensor([loss for loss, _, _ in found], dtype=torch.float64)
    gradient = torch.tensor([image for _, g, _ in found for image in g], dtype=torch.float64)
    return losses, gradient.reshape(logits.shape), [z for _, _, zs in found for z in zs]


def _by_class(images, rows, priors, *, pooled, **options):
    """As :func:`reference`: each class is a case of one class, and so are the absent classes, in a row."""
    k = len(images[0][0])
    gradient = torch.zeros(len(images), len(rows[0]), k, dtype=torch.float64)
    losses, violations = [], []
    for group in [range(len(images))] if pooled else [[i] for i in range(len(images))]:
        rankings = []  # the (image, anchor, class) of the candidates of each, with its labels
        absent = []
        for c in range(k):
            places = [[(i, a, c) for a in range(len(rows[i]))] for i in group]
            labels = [[min(rows[i][a], 0) if rows[i][a] < 1 else int(rows[i][a] == c + 1) for _, a, _ in of_image]
                      for of_image in places for i in [of_image[0][0]]]  # fmt: skip
            weights = priors["pos_prior"] if isinstance(priors["pos_prior"], list) else None
            if any(
                y == 1 and (weights is None or weights[i][a][c] > 0)
                for row, of_image in zip(labels, places, strict=True)
                for y, (i, a, _) in zip(row, of_image, strict=True)
            ):
                rankings.append((places, labels))
            else:
                absent += [(place, min(y, 0)) for row, of_image in zip(labels, places, strict=True)
                           for place, y in zip(of_image, row, strict=True)
                           if rows[place[0]][place[1]] != c + 1]  # fmt: skip
        if len(rankings) < k:
            rankings.append(([[place for place, _ in absent]], [[y for _, y in absent]]))
        total = 0.0
        for places, labels in rankings:
            part = {
                name: [[[p[i][a][c]] for i, a, c in of_image] for of_image in places] if isinstance(p, list) else p
                for name, p in priors.items()
            }
            scores = [[[images[i][a][c]] for i, a, c in of_image] for of_image in places]
            loss, slopes, zs = oracle.family(scores, labels, **part, **options)
            total += loss / len(rankings)
            violations += zs
            for of_image, by_anchor in zip(places, slopes, strict=True):
                for (i, a, c), (slope,) in zip(of_image, by_anchor, strict=True):
                    gradient[i, a, c] += slope / len(rankings)
        losses.append(total)
    return torch.tensor(losses, dtype=torch.float64), gradient, violations
