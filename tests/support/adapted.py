"""Detectors of other hosts with our loss, and what the tests ask of their steps."""

import torch

from drloss import adapters


def adapt(host, model=None, *args, **options):
    """A detector of the host, a new one by default, with our loss."""
    model = host.make() if model is None else model
    adapters.adapt(host.part(model), *args, **options)
    return model


def classification(host, losses):
    return {key: value for key, value in losses.items() if host.cls in key}


def for_check(host):
    """The step as ``check`` wants it: the host's losses, those of a DETR's layers summed up."""

    def step(model, batch):
        losses = host.step(model, batch)
        own = classification(host, losses)
        return losses if len(own) == 1 else {"cls": sum(own.values())}

    return step


def as_list(value):
    return [value] if isinstance(value, torch.Tensor) else list(value)


def classes_in(call):
    """Of each image the set of its positive candidates' classes, 1..K."""
    marks = torch.cat(as_list(call.labels), dim=1)
    if marks.ndim == 3:
        return [{int(c) + 1 for c in own.any(dim=0).nonzero().flatten()} for own in marks > 0]
    return [set(own[own > 0].tolist()) for own in marks]
