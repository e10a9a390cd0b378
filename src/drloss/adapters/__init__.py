"""The DR loss in detectors of other libraries, the hosts: one line for a ready model.

    model = adapt(torchvision.models.detection.retinanet_resnet50_fpn_v2(weights="DEFAULT"))

Each host has one file, named after its package and imported with the first model of that host. ``classifier`` has
what they share, and ``integration`` is ``drloss.check``. Of drloss these modules import the losses alone.
No other room imports them, although CONTRIBUTING.md lists rooms after this one.
"""

from importlib import import_module
from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from drloss.losses import ImageLoss

HOSTS = ("torchvision", "mmdet", "detectron2", "transformers", "ultralytics", "effdet", "monai", "libreyolo")
"""Libraries that have an adapter, by the name of their package."""


def adapt(model: nn.Module, loss: str | ImageLoss = "dr", **options: Any) -> nn.Module:
    """Replace a detector's own classification loss by a loss of drloss.

    The detector is changed in place. Its box loss, anchors and matching stay. So do its weights, except that
    a classifier that was never trained, or any classifier with ``reset=True``, is reset to the loss's own prior.

    Args:
        model: a detector of one of :data:`HOSTS`; it may be wrapped for several processes, or compiled.
        loss: a loss module, or its name, with or without parameters: ``"dr"``, ``"dr:neg_lambda=0.05"``, ``"focal"``.
        options: those of the host's ``adapt``; see its module.
    Returns:
        The same model.
    Raises:
        TypeError: if no adapter has the model, or the loss is not a loss of drloss.
        ValueError: if the loss or an option does not fit.
    """
    bare = unwrapped(model)
    host = host_of(bare)
    if host is None:
        kind = type(bare)
        raise TypeError(f"model must be a detector of {', '.join(HOSTS)}, got {kind.__module__}.{kind.__name__}")
    import_module(f"drloss.adapters.{host}").adapt(bare, loss, **options)
    return model


def host_of(model: nn.Module) -> str | None:
    """The host that defines a model's class or one of its bases; None if none of :data:`HOSTS` does."""
    roots = {kind.__module__.partition(".")[0] for kind in type(model).__mro__}
    return next((host for host in HOSTS if host in roots), None)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of ``DataParallel``, ``DistributedDataParallel`` or ``torch.compile``, or the model itself."""
    inner: nn.Module = model.module if isinstance(model, (DataParallel, DistributedDataParallel)) else model
    compiled: nn.Module | None = getattr(inner, "_orig_mod", None)
    return inner if compiled is None else unwrapped(compiled)
