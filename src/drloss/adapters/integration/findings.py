"""The findings of :func:`drloss.check`: one function for each question about a training step."""

import inspect
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from drloss.adapters.integration.observed_sets import ObservedSet, parts_of
from drloss.losses.call_log import Call
from drloss.losses.dr import CLS_WEIGHT
from drloss.losses.inputs import POOLED_SCOPES

SPREAD = 0.5
"""Standard deviation of the logits up to which a classifier is considered untrained."""
CLOSE = 0.02
"""Relative difference up to which two weights are considered equal."""
SAME = re.compile(
    "View|Reshape|Permute|Transpose|Cat|Stack|Slice|Select|Index|Gather|Clone|Alias|Copy|Expand|Split|Unbind|squeeze|Pad|"
    "Clamp|Mul|Sqrt|Where|Fill"
)
"""Names of the functions in an autograd graph that move values, or that turn scores into scores."""


@dataclass(frozen=True)
class Finding:
    """The answer to one question.

    Attributes:
        name: the question, in a word or two.
        ok: whether it is right; None if that is not clear.
        words: what was found, and what to do if it is wrong.
    """

    name: str
    ok: bool | None
    words: str


@dataclass(frozen=True)
class Step:
    """A training step that has run.

    Attributes:
        model: the detector.
        calls: the calls of the loss.
        sets: the candidate sets of the calls.
        value: the classification loss.
        total: the total loss, which is differentiated; the classification loss if the step does not return it.
        images: number of images of the batch; None if it is not known.
        given: labels of the objects of each image; empty if they cannot be read.
        undecided: whether the model's matcher left anchors undecided in this step; None if it was not observed.
    """

    model: nn.Module
    calls: list[Call]
    sets: list[ObservedSet]
    value: Tensor
    total: Tensor
    images: int | None
    given: list[list[int]]
    undecided: bool | None


def findings_of(step: Step, num_classes: int | None) -> list[Finding]:
    """All findings, in the order in which to mend them; ``num_classes`` is K, or None if it is not known."""
    if _one_by_one(step):
        return [called(step), logits(step)]
    found = [called(step), per_image(step), logits(step)]
    if found[-1].ok is False:
        return found
    found += [positives(step), normaliser(step), starting_score(step), channels(step, num_classes), ignored(step)]
    return [*found, gradient(step)]  # comes last, because it may overwrite the logits


def declared(model: nn.Module, name: str) -> Any:
    """An attribute that an adapter declares: ``drloss_calls``, ``drloss_shares`` or ``drloss_start``; else None.

    ``drloss_calls`` is the number of candidate sets of an image, each with its own call, if there are several;
    ``drloss_shares`` is the weight of each; ``drloss_start`` is the score that the classifier starts from, if it is
    not 0.5.
    """
    # A module may have a __getattr__ that answers to every name: only attributes found without it count.
    owners = [m for m in model.modules() if inspect.getattr_static(m, name, None) is not None]
    return next((value for m in owners if (value := getattr(m, name)) is not None), None)


def is_adapted(model: nn.Module) -> bool:
    """Whether an adapter has put the loss into the model."""
    return any(type(m).__module__.startswith("drloss.adapters.") for m in model.modules())


def _one_by_one(step: Step) -> bool:
    """Whether there are as many calls as images, of several sizes: one for each image, or one for each level."""
    return 1 < len(step.sets) == step.images and all(len(s.logits) == 1 for s in step.sets)


def called(step: Step) -> Finding:
    """Whether each candidate set is one call: an image is one set, in a DETR each decoder layer of it."""
    name = "called once"
    wanted = declared(step.model, "drloss_calls") or 1
    if len(step.sets) == wanted:
        if wanted > 1:
            return Finding(name, True, f"for each of {wanted} candidate sets, as the model has it")
        by_image = "" if len(step.calls) == 1 else "for each image; "
        return Finding(name, True, f"{by_image}all pyramid levels are ranked together")
    if _one_by_one(step):
        words = (
            f"{len(step.sets)} times: for each image, or for as many levels? Give check images of one size to tell"
        )
        return Finding(name, None, words)
    sizes = ", ".join(str(s.logits.shape[1]) for s in step.sets)
    seen = f"the loss was called {len(step.calls)} times in one step, with {sizes} anchors"
    if wanted > 1 and not any(bool(s.positives.any()) for s in step.sets):
        return Finding(name, None, f"{seen}, and none has a positive: give check a batch with objects")
    if wanted > 1:
        words = f"{seen}: the model has {wanted} candidate sets; hand each over in one call, with all images"
        return Finding(name, False, words)
    return Finding(
        name,
        False,
        f"{seen}: an image is one distribution over all pyramid levels; hand them over in one call, as a list (a "
        "model whose decoder layers are candidate sets of their own says how many in an attribute drloss_calls)",
    )


def per_image(step: Step) -> Finding:
    """Whether each image has a distribution of its own."""
    name = "per image"
    if pooled := [s.scope for s in step.sets if s.scope in POOLED_SCOPES]:
        return Finding(
            name,
            False,
            f'scope="{pooled[0]}" ranks all images in one distribution: leave it at "per_image" or "per_class"',
        )
    images = step.images
    seen = next((len(s.logits) for s in step.sets if len(s.logits) != images), images)
    if images is None:
        return Finding(name, None, f"the loss saw {seen} image(s); the batch does not say how many it has")
    if images == 1:
        return Finding(name, None, "a batch of one image does not tell: give check two or more")
    if seen != images:
        return Finding(
            name,
            False,
            f"the loss saw {seen} image(s) where the batch has {images}: do not flatten it; logits are (N, A, K)",
        )
    return Finding(name, True, f"{seen} images, a distribution each")


def mixed(image: int | None, found: Finding) -> Finding:
    """The finding of :func:`per_image`, with the result of a second step (see :mod:`.check`)."""
    if image is None:
        return found
    if image < 0:
        return Finding(found.name, True, f"{found.words}, with logits of its own")
    return Finding(
        found.name,
        False,
        f"among the logits of image {image} are those of another: rows of several images are mixed, as by a reshape "
        "after levels were joined; logits are (N, A, K), N outermost",
    )


def logits(step: Step) -> Finding:
    """Whether the loss gets finite logits, not scores."""
    name = "logits"
    parts = [part for call in step.calls for part in parts_of(call.logits)]
    if not all(bool(torch.isfinite(s.logits[~s.ignored]).all()) for s in step.sets):
        return Finding(name, False, "they are not finite: look for the first step in which they were, and its loss")
    made = next(filter(None, (_squashed(part.grad_fn) for part in parts)), None)
    if made:
        return Finding(name, False, f"they come out of a {made}: give the loss what goes into it")
    return Finding(name, True, "they are finite, and no scores")


def _squashed(node: Any) -> str | None:
    """The sigmoid or softmax that values come from, possibly through the functions of :data:`SAME`; else None."""
    name = "" if node is None else node.name()
    if found := re.search(r"Sigmoid|Softmax", name):
        return found[0].lower()
    if not SAME.search(name):
        return None
    before = [_squashed(n) for n, _ in node.next_functions if n is not None]
    if name.startswith("Mul") and not all(before):
        return None  # logits that are scaled by a score
    return next(filter(None, before), None)


def positives(step: Step) -> Finding:
    """Whether there are positives, and only a few."""
    name = "positives"
    count = sum(int(s.positives.any(dim=2).sum()) for s in step.sets)
    decided = sum(int((~s.ignored).sum()) for s in step.sets)
    if not count:
        if any(step.given) and not is_adapted(step.model):
            words = "the targets have objects, but no candidate is a positive: labels are 1..K at anchors of objects"
            return Finding(name, False, words)
        return Finding(name, None, "no candidate is one: give check a batch with objects")
    if 2 * count > decided and not is_adapted(step.model):
        last = sum(int(s.positives[..., -1].sum()) for s in step.sets)
        words = "labels are 0 for background and 1..K for the classes, not 0..K-1 with K for background"
        wrong = 2 * last > decided and step.sets[0].logits.shape[2] > 1
        return Finding(name, False if wrong else None, f"{count} of {decided} candidates are positives: {words}")
    return Finding(name, True, f"{count} of {decided} candidates")


def channels(step: Step, num_classes: int | None) -> Finding:
    """Whether the logits have no background channel."""
    name = "background channel"
    classes, given, columns = step.sets[0].logits.shape[2], step.given, _columns(step.sets)
    zero = any(0 in own for own in given)
    if zero and not is_adapted(step.model) and columns == [{label - 1 for label in own if label} for own in given]:
        padding = all(own == sorted(own, key=lambda label: label == 0) for own in given)  # zeros at the end alone
        return Finding(
            name,
            None if padding else False,
            "objects with label 0 count as background: the loss takes 0 for background and 1..K for the classes, "
            "so add 1 to labels that begin at 0",
        )
    if num_classes == classes:
        return Finding(name, True, f"{classes} channels for {num_classes} classes")
    if num_classes is not None and num_classes > classes:
        words = "num_classes is the number of object classes, without a background"
        return Finding(name, False, f"the logits have {classes} channels for {num_classes} classes: {words}")
    if num_classes is not None:
        return Finding(
            name,
            False,
            f"the logits have {classes} channels for {num_classes} classes: leave a background channel out, "
            "it would be a negative everywhere",
        )
    if is_adapted(step.model):
        return Finding(name, True, f"{classes} channels")
    more = ""
    if any(given) and not zero and columns == [set(own) for own in given]:
        more = "channel 0 holds no class of this batch, and is the background's if your labels begin at 1; "
    return Finding(name, None, f"{classes} channels; {more}num_classes would tell")


def _columns(sets: list[ObservedSet]) -> list[set[int]]:
    """For each image, the channels that have a positive in any set."""
    marks = [s.positives.any(dim=1) for s in sets]
    if len({len(part) for part in marks}) != 1:
        return []
    return [set(row.nonzero().flatten().tolist()) for row in torch.stack(marks).any(dim=0)]


def normaliser(step: Step) -> Finding:
    """Whether the total loss has the mean over images, times the loss's weight; the slopes show it."""
    name = "normaliser"
    sets, n = step.sets, len(step.sets[0].logits)
    shares = declared(step.model, "drloss_shares")
    if shares is None or len(shares) != len(sets):
        shares = [1.0] * len(sets)
    if any(s.slopes is None or not bool(s.slopes.any()) for s in sets):
        return Finding(name, None, "no gradient arrives at the loss (see below)")
    slopes = [s.slopes / share for s, share in zip(sets, shares, strict=True) if s.slopes is not None]
    value = float(step.value.detach())
    for of_images in slopes:
        low, high = float(of_images.min()), float(of_images.max())
        if not _same(low, high):
            words = f"images count between {low:.3g} and {high:.3g} times: let each count the same, whatever is in it"
            return Finding(name, False, words)
    ratios = [float(of_images[0]) for of_images in slopes]
    weights = [{s.weight} if s.weight is not None else {CLS_WEIGHT, 1.0} for s in sets]
    counts = [max(float(s.positives.sum()), 1.0) for s in sets]
    divisors = {
        what: [count / parts for count in counts]
        for parts, what in ((1, "positives"), (n, "positives of an image"))
        if all(any(_same(r * c / parts, w) for w in ws) for r, c, ws in zip(ratios, counts, weights, strict=True))
    }
    ratio = ratios[0]
    if all(any(_same(r, w) for w in ws) for r, ws in zip(ratios, weights, strict=True)):
        if divisors and not is_adapted(step.model):
            what = next(iter(divisors))
            words = f"divided by the number of {what}, {_range(divisors[what])}, this loss would be the same"
            return Finding(name, None, f"{words}: give check other images")
        return Finding(
            name, True, f"the loss is {value:.4g}: {ratio:.3g} times the mean over images, divided by nothing else"
        )
    if any(s.reduction == "sum" for s in sets) and any(_same(ratio, weight * n) for weight in weights[0]):
        return Finding(name, None, f"a sum over {n} images: is the learning rate meant for that?")
    if divisors:
        what, numbers = next(iter(divisors.items()))
        words = f"it was divided by the number of {what}, {_range(numbers)}; divide it by nothing"
        return Finding(name, False, f"the loss is {value:.3g}: {words}")
    if ratio < min(weights[0]):
        words = f"the loss counts {min(weights[0]) / ratio:.3g} times too little: something divides it"
        more = (
            "such as a running mean of the number of positives; take that out (a weight of yours is cls_weight, and "
        )
        more += "steps whose gradients add up are divided after check)"
        return Finding(name, False, f"{words}, {more}")
    words = f"the loss counts {ratio:.3g} times the mean over images: is that a weight of yours?"
    return Finding(name, None, words)


def _range(numbers: list[float]) -> str:
    return " to ".join(f"{number:.3g}" for number in sorted({min(numbers), max(numbers)}))


def _same(one: float, other: float) -> bool:
    return abs(one - other) <= CLOSE * abs(other)


def starting_score(step: Step) -> Finding:
    """Whether the classifier starts from the score that suits the loss."""
    name = "starting score"
    values = torch.cat([s.logits.detach()[~s.ignored].float().flatten() for s in step.sets])
    if not len(values):
        return Finding(name, None, "there are no candidates")
    score, spread = float(values.sigmoid().mean()), float(values.std())
    wanted = declared(step.model, "drloss_start") or 0.5
    if wanted / 2 <= score <= (1 + wanted) / 2:
        return Finding(name, True, f"the mean score is {score:.2g}")
    if spread > SPREAD and _lowest_start(step.model, step.sets[0].logits.shape[2]) >= wanted / 2:
        return Finding(name, None, f"the mean score is {score:.2g}, of a classifier that seems to be trained already")
    how = "adapt(model, reset=True) sets" if is_adapted(step.model) else "set"
    words = f"{how} its bias to 0, for 0.5 (a focal loss wants 0.01)"
    return Finding(name, False, f"the classifier starts from a score of {score:.2g}: {words}")


def _lowest_start(model: nn.Module, classes: int) -> float:
    """Lowest score that a layer with a channel for each class starts from; 1 if all of them seem to be trained."""
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
    shared = [b[0] for b in biases if len(b) > 1 and len(b) % classes == 0 and torch.equal(b, b[:1].expand_as(b))]
    return min((float(bias.sigmoid()) for bias in shared), default=1.0)


def ignored(step: Step) -> Finding:
    """Whether anchors that the matcher left undecided are ignored."""
    name = "ignored anchors"
    count = sum(int(s.ignored.sum()) for s in step.sets)
    if count:
        return Finding(name, True, f"{count} anchors count as neither")
    if step.undecided:
        return Finding(
            name,
            False,
            "no anchor is ignored, but the model's matcher leaves some undecided, between its two thresholds: their "
            "label is -1, not 0",
        )
    return Finding(name, None, "none in this batch; right for a detector that decides on every anchor")


def gradient(step: Step) -> Finding:
    """Whether a finite gradient arrives at the classifier."""
    name = "gradient"
    none = Finding(name, False, "none arrives at the classifier: are the logits detached, or under no_grad?")
    parts = [part for call in step.calls for part in parts_of(call.logits)]
    parameters = [p for p in step.model.parameters() if p.requires_grad]
    if not all(tensor.requires_grad for tensor in (step.total, *(call.value for call in step.calls), *parts)):
        return none
    if any(s.slopes is None or not bool(s.slopes.any()) for s in step.sets):
        return Finding(name, False, "what is differentiated leaves the classification loss out")
    losses = torch.stack([call.value.sum() for call in step.calls]).sum()
    try:
        found = torch.autograd.grad(losses, [*parts, *parameters], allow_unused=True, retain_graph=True)
    except RuntimeError as error:  # such as a reentrant checkpoint
        return Finding(name, None, f"torch cannot follow it: {str(error).splitlines()[0]}")
    of_logits, of_parameters = found[: len(parts)], found[len(parts) :]
    if any(g is None for g in of_logits) or not any(g is not None and bool(g.any()) for g in of_parameters):
        return none
    if not all(bool(torch.isfinite(g).all()) for g in of_logits):
        return Finding(name, False, "it is not finite")
    return Finding(name, True, "it arrives at the classifier and is finite")
