"""The learning rate of each iteration, and the optimiser."""

from math import cos, pi
from typing import Any

import torch
from torch import nn

from drloss.detector.model import RetinaNet
from drloss.training.config import Config


def scaled_lr(config: Config) -> float:
    r"""Learning rate after warm-up, before any decay.

    Paper: Theorem 1 and Remark 2, §3.2: with the batch m' = m / α and the same epochs, η' = η / α. The rule is
    derived for SGD. AdamW's steps depend on the noise of the gradient in another way: its rate scales with the
    square root.
    """
    if not config.scale_lr:
        return config.lr
    ratio = config.batch_size / config.reference_batch
    return config.lr * (ratio if config.optimizer == "sgd" else ratio**0.5)


def learning_rate(config: Config, iteration: int) -> float:
    """Learning rate of ``iteration``, from 0: warm-up, then steps or a half cosine to 0."""
    rate = scaled_lr(config)
    if config.schedule == "cosine":
        rate *= 0.5 * (1 + cos(pi * iteration / config.max_iters))
    else:
        rate *= 0.1 ** sum(iteration >= step for step in config.steps)
    if iteration < config.warmup_iters:
        rate *= config.warmup_factor + (1 - config.warmup_factor) * iteration / config.warmup_iters
    return rate


def build_optimizer(model: RetinaNet, config: Config) -> torch.optim.Optimizer:
    """Optimiser of the trainable parameters; biases and norms have no weight decay.

    Each group has an ``lr_factor``, by which :func:`set_learning_rate` multiplies the rate: ``bias_lr`` for biases,
    ``backbone_lr`` for the backbone. On a GPU the optimiser is fused: few kernels, and no wait for the scaler.
    """
    fused = True if next(model.parameters()).device.type == "cuda" else None
    body = set(model.backbone.body.parameters())
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {
        (kind, in_body): [] for in_body in (False, True) for kind in ("weight", "bias", "norm")
    }
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                of_norm = "Norm" in type(module).__name__  # GroupNorm, and timm's and torch's others
                scale = parameter.ndim < 2 and name != "bias"  # such as ConvNeXt's layer scale
                kind = "norm" if of_norm or scale else "bias" if name == "bias" else "weight"
                groups[kind, parameter in body and config.backbone_lr != 1].append(parameter)
    factors = {"weight": 1.0, "bias": config.bias_lr, "norm": 1.0}
    of_optimizer: list[dict[str, Any]] = [
        {
            "params": parameters,
            "weight_decay": config.weight_decay if kind == "weight" else 0.0,
            "lr_factor": factors[kind] * (config.backbone_lr if in_body else 1.0),
        }
        for (kind, in_body), parameters in groups.items()
        if parameters
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(of_optimizer, lr=config.lr, momentum=config.momentum, fused=fused)
    return torch.optim.AdamW(of_optimizer, lr=config.lr, fused=fused)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the moments and counts of a saved optimiser; the learning rate and other settings are not loaded.

    Raises:
        ValueError: if the saved state belongs to other parameters or another kind of optimiser.
    """
    own = optimizer.state_dict()["param_groups"]
    if [g["params"] for g in state["param_groups"]] != [g["params"] for g in own]:
        raise ValueError("the optimiser's groups of parameters differ")
    kept = {name for values in state["state"].values() for name in values}
    if kept and ("exp_avg" in kept) != isinstance(optimizer, torch.optim.AdamW):
        raise ValueError(f"the optimiser's state ({', '.join(sorted(kept))}) is that of another optimiser")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, values in state["state"].items():
        for name, value in values.items():
            if not isinstance(value, torch.Tensor):
                raise ValueError(f"the optimiser's {name} {number} is no tensor")
            if value.dim() and value.shape != parameters[number].shape:
                raise ValueError(f"the optimiser's {name} {number} has the shape {tuple(value.shape)}")
    optimizer.load_state_dict({"state": state["state"], "param_groups": own})


def weights_size(model: nn.Module) -> int:
    """Approximate bytes of an exported detector."""
    return sum(t.numel() * t.element_size() for t in model.state_dict().values())


def state_size(model: nn.Module, config: Config) -> int:
    """Approximate bytes of a checkpoint: the model, its average, and the optimiser's moments of trainable weights."""
    kept = 2 if config.optimizer == "adamw" else 1
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    size: int = kept * trained + weights_size(model) * (2 if config.ema else 1)
    return size


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group to ``rate`` times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_factor"]
