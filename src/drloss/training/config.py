"""The configuration of a run: one frozen dataclass, and how the command line overrides it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from math import isfinite
from typing import Any, get_args, get_origin

from torch import nn

from drloss import losses
from drloss.detector.config import DetectorConfig, check_detector
from drloss.errors import UserError


@dataclass(frozen=True)
class Config:
    """Everything that decides what a training run computes; the defaults are the paper's 1× run (§4.1).

    Attributes:
        loss: a name of :data:`drloss.losses.LOSSES`, with parameters if wanted:
        ``dr:neg_lambda=0.05,pairing=neg_only``. weights: ``"imagenet"`` (torchvision's, downloaded), ``"none"``, or a
        file of a backbone's or a detector's. detector: structure and test-time settings. batch_size: images of one
        optimiser step, over all devices. micro_batch: images that a device takes at a time; it accumulates gradients
        over its share of the batch. optimizer: ``"sgd"`` or ``"adamw"``. lr: learning rate for ``reference_batch``
        images. reference_batch: batch size that ``lr`` and the iterations are meant for. scale_lr: keep the epochs
        and scale the learning rate with the batch size (Remark 2). momentum: of SGD. weight_decay: on weights; biases
        and norms have none. bias_lr: factor on the learning rate of biases. max_iters: optimiser steps. schedule:
        ``"step"`` or ``"cosine"``. steps: iterations after which ``"step"`` divides the learning rate by 10.
        warmup_iters: iterations of linear warm-up ... warmup_factor: ... from this share of the learning rate.
        clip_norm: largest gradient norm, 0 for no limit. train_short_sides: range of the short side in training
        (scale jitter), in pixels. flip: probability of a horizontal flip. keep_empty: train on images without objects
        too; the paper's codebase leaves them out. precision: ``"fp32"``, ``"bf16"`` or ``"fp16"`` autocast. compile:
        compile the model with torch.compile. channels_last: channels-last memory format of the convolutions. workers:
        data-loading processes per device. seed: of the initial weights, the order and the augmentation. log_every:
        iterations between lines of metrics. eval_every: iterations between evaluations on the validation split, 0 for
        the end only. eval_batch_size: images per device in evaluation. checkpoint_every: iterations between
        checkpoints. expects: what the preset must reach, in words.
    """

    loss: str = "dr"
    weights: str = "imagenet"
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    batch_size: int = 16
    micro_batch: int = 2
    optimizer: str = "sgd"
    lr: float = 0.01
    reference_batch: int = 16
    scale_lr: bool = True
    momentum: float = 0.9
    weight_decay: float = 1e-4
    bias_lr: float = 2.0
    max_iters: int = 90_000
    schedule: str = "step"
    steps: tuple[int, ...] = (60_000, 80_000)
    warmup_iters: int = 500
    warmup_factor: float = 1 / 3
    clip_norm: float = 0.0
    train_short_sides: tuple[int, ...] = (800, 800)
    flip: float = 0.5
    keep_empty: bool = True
    precision: str = "fp32"
    compile: bool = False
    channels_last: bool = False
    workers: int = 2
    seed: int = 0
    log_every: int = 20
    eval_every: int = 0
    eval_batch_size: int = 2
    checkpoint_every: int = 2_500
    expects: str = ""


_CHOICES = {
    "optimizer": ("sgd", "adamw"),
    "schedule": ("step", "cosine"),
    "precision": ("fp32", "bf16", "fp16"),
    "norm": ("auto", "frozen", "group"),
}
_MAY_BE_ZERO = ("warmup_iters", "clip_norm", "weight_decay", "momentum", "flip", "workers", "seed", "eval_every")
_SHARES = ("flip", "warmup_factor", "score_threshold", "nms_threshold", "positive_iou", "negative_iou")

OPTIONS: dict[str, Any] = {f.name: f.type for f in fields(Config) if f.name not in ("detector", "expects")} | {
    f.name: f.type for f in fields(DetectorConfig)
}
"""Every setting by name with its type; a detector's setting needs no prefix."""


def override(config: Config, values: Mapping[str, object]) -> Config:
    """The configuration with some settings replaced, checked.

    Args:
        config: the preset.
        values: settings of :data:`OPTIONS`, already of the right type.
    Raises:
        UserError: if a name is unknown, a type is wrong or a value is out of range.

    With ``scale_lr``, a batch size of its own keeps the epochs (Remark 2): iterations and steps scale with
    ``reference_batch / batch_size``, unless they are given too. Steps and warm-up follow ``max_iters`` in proportion,
    unless they are given.
    """
    for name, value in values.items():
        if name not in OPTIONS:
            raise UserError(f"unknown setting {name!r}, allowed: {', '.join(OPTIONS)}")
        _check_type(name, value, OPTIONS[name])
    values = _follow(config, dict(values))
    own = {f.name for f in fields(DetectorConfig)}
    detector = replace(config.detector, **{k: v for k, v in values.items() if k in own})
    result = replace(config, detector=detector, **{k: v for k, v in values.items() if k not in own})
    check(result)
    return result


def _follow(config: Config, values: dict[str, Any]) -> dict[str, Any]:
    """Add the settings that follow from the given ones."""
    batch = values.get("batch_size", config.batch_size)
    if "max_iters" not in values and values.get("scale_lr", config.scale_lr) and batch >= 1:
        values["max_iters"] = max(1, round(config.max_iters * config.batch_size / batch))
    share = values.get("max_iters", config.max_iters) / config.max_iters
    values.setdefault("steps", tuple(round(s * share) for s in config.steps))
    values.setdefault("warmup_iters", round(config.warmup_iters * min(1.0, share)))
    if "short_side" in values:
        sides = config.detector
        values.setdefault("max_side", round(values["short_side"] * sides.max_side / sides.short_side))
        low, high = config.train_short_sides[0], config.train_short_sides[-1]
        ratio = values["short_side"] / sides.short_side
        values.setdefault("train_short_sides", (round(low * ratio), round(high * ratio)))
    return values


def check(config: Config) -> None:
    """Raise UserError for the first setting that is out of range."""
    settings = {**vars(config), **vars(config.detector)}
    for name, allowed in _CHOICES.items():
        if settings[name] not in allowed:
            raise UserError(f"{name} must be one of {', '.join(allowed)}, got {settings[name]!r}")
    for name, kind in OPTIONS.items():
        if kind in (int, float):
            value = settings[name]
            if not isfinite(value) or value < 0 or (value == 0 and name not in _MAY_BE_ZERO):
                least = "not negative" if name in _MAY_BE_ZERO else "positive"
                raise UserError(f"{name} must be {least} and finite, got {value}")
            if name in _SHARES and value > 1:
                raise UserError(f"{name} must be at most 1, got {value}")
    check_detector(config.detector)
    sides = config.train_short_sides
    if len(sides) not in (1, 2) or sides[0] > sides[-1] or sides[0] < 1:
        raise UserError(f"train_short_sides must be one number or a range low,high of pixels, got {sides}")
    if config.detector.negative_iou > config.detector.positive_iou:
        raise UserError(
            f"negative_iou must not exceed positive_iou, got {config.detector.negative_iou} "
            f"and {config.detector.positive_iou}"
        )
    if not config.detector.anchor_ratios or min(config.detector.anchor_ratios) <= 0:
        raise UserError(f"anchor_ratios must be positive numbers, got {config.detector.anchor_ratios}")
    if config.seed >= 2**63:
        raise UserError(f"seed must be below 2^63, got {config.seed}")
    if config.weights == "none" and config.detector.norm == "frozen":
        raise UserError("norm frozen needs weights: random ones would stay frozen for ever; use --norm group or auto")
    if list(config.steps) != sorted(config.steps):
        raise UserError(f"steps must rise, got {config.steps}")
    make_loss(config.loss)


def _check_type(name: str, value: object, kind: Any) -> None:
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        fits = isinstance(value, tuple) and all(type(v) is item or (item is float and type(v) is int) for v in value)
    else:
        fits = type(value) is kind or (kind is float and type(value) is int)
    if not fits:
        raise UserError(f"{name} must be of type {getattr(kind, '__name__', kind)}, got {value!r}")


def parse_value(name: str, text: str) -> object:
    """Turn the text of an option into a setting's value: ``64``, ``0.5``, ``640,800``.

    Raises:
        UserError: if the text does not fit the setting's type.
    """
    kind = OPTIONS[name]
    try:
        if get_origin(kind) is tuple:
            return tuple(get_args(kind)[0](part) for part in text.split(",") if part)
        return kind(text)
    except ValueError:
        wanted = f"{get_args(kind)[0].__name__}s with commas" if get_origin(kind) is tuple else kind.__name__
        raise UserError(f"{name} must be {wanted}, got {text!r}") from None


def make_loss(spec: str) -> nn.Module:
    """The loss module of a run: :func:`drloss.losses.make_loss`, as a mean over images.

    Raises:
        UserError: if the loss or a parameter is unknown or a value does not fit.
    """
    given = {option.partition("=")[0] for option in spec.partition(":")[2].split(",")}
    if "reduction" in given:
        raise UserError(f"loss {spec}: training needs the mean over images, reduction cannot be set")
    if "inplace" in given:
        raise UserError(f"loss {spec}: training looks at the logits after the loss, inplace cannot be set")
    try:
        return losses.make_loss(spec)
    except ValueError as error:
        raise UserError(str(error)) from None


def to_json(config: Config) -> dict[str, Any]:
    """The configuration in plain JSON types."""
    plain = {**vars(config), "detector": dict(vars(config.detector))}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()} | {
        "detector": {k: list(v) if isinstance(v, tuple) else v for k, v in plain["detector"].items()}
    }


def from_json(plain: Mapping[str, Any], source: str) -> Config:
    """The configuration that :func:`to_json` wrote.

    Args:
        plain: the parsed JSON.
        source: file it came from, for messages.
    Raises:
        UserError: if a setting is unknown, missing or of a wrong type.
    """
    try:
        settings = dict(plain)
        expects = settings.pop("expects")
        settings |= settings.pop("detector")
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
        if missing := set(OPTIONS) - set(values):
            raise UserError(f"missing settings: {', '.join(sorted(missing))}")
        return replace(override(Config(), values), expects=expects)
    except (UserError, KeyError, TypeError) as error:
        raise UserError(f"{source}: not a configuration of this version of drloss: {error}") from None
