"""The configuration of a run: one frozen dataclass, and how it is overridden, checked, read and written."""

import ast
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from drloss.detector.config import DetectorConfig, check_detector
from drloss.errors import UserError, nearest

if TYPE_CHECKING:
    from drloss.losses import ImageLoss

Auto = Literal["auto"]
"""The value of a setting that :func:`drloss.training.device.for_device` chooses."""


@dataclass(frozen=True)
class Config:
    """Everything that decides what a training run computes. The defaults are the paper's 1x run (§4.1).

    ``drloss train --help`` prints the text under each field, and ``drloss config PRESET`` the values of a preset.
    """

    loss: str = "dr"
    """Classification loss: dr, dr+, focal, ce, ohem, qfl or ap, with parameters if wanted, as in
    dr:neg_lambda=0.05,pairing=neg_only. Each brings its own prior probability, weight and normaliser."""
    weights: str = "imagenet"
    """Weights to start from: imagenet (from an installed package, or else downloaded by torchvision or timm), none,
    or the file of a backbone or a detector."""
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    """The detector's structure and its settings at test time."""
    batch_size: int = 16
    """Images of one optimiser step, over all devices. The paper: 16."""
    micro_batch: int | Auto = "auto"
    """Images that a device takes at a time; gradients are averaged over the device's share of the batch. The
    paper: 2. auto: 2 on a CPU and for losses that are pooled over these images, on a GPU up to 16, one for 4 GB of
    its memory, or for 8 GB in fp32."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Optimiser. The paper: sgd."""
    lr: float = 0.01
    """Learning rate for a batch of --reference-batch images. The paper: 0.01."""
    reference_batch: int = 16
    """Batch size that --lr, --max-iters and --steps are meant for."""
    scale_lr: bool = True
    """With another batch size, keep the number of epochs and scale the learning rate (Remark 2)."""
    momentum: float = 0.9
    """Momentum of sgd."""
    weight_decay: float = 1e-4
    """Weight decay of weights; biases and norm layers have none."""
    bias_lr: float = 2.0
    """Factor on the learning rate of biases."""
    backbone_lr: float = 1.0
    """Factor on the learning rate of the backbone. The paper: 1."""
    max_iters: int = 90_000
    """Number of optimiser steps. The paper: 90000 (1x), 135000 (1.5x) or 180000 (2x)."""
    schedule: Literal["step", "cosine"] = "step"
    """Decay of the learning rate: step (see --steps), or cosine to 0."""
    steps: tuple[int, ...] = (60_000, 80_000)
    """Iterations after which --schedule step divides the learning rate by 10. The paper: 60000,80000."""
    warmup_iters: int = 500
    """Iterations over which the learning rate rises linearly to its full value."""
    warmup_factor: float = 1 / 3
    """Share of the learning rate that the warm-up starts from."""
    clip_norm: float = 0.0
    """Largest norm of the gradient, which is scaled down to it; 0 for no limit."""
    ema: float = 0.0
    """Decay of a moving average of the weights, such as 0.999: evaluations and the exported detectors then have the
    averaged weights. After t steps it is at most (1 + t) / (10 + t). 0 for no average. The paper: none."""
    train_short_sides: tuple[int, ...] = (800, 800)
    """Range of the short side of training images in pixels (scale jitter). The paper: 800,800; in Table 4 640,800."""
    flip: float = 0.5
    """Probability of a horizontal flip in training."""
    zoom: tuple[float, ...] = (1.0, 1.0)
    """Range of a random zoom in training: above 1 a random part of the image is enlarged to the whole image's size,
    below 1 the image is shrunk and placed at random on a plain ground. The paper: 1,1."""
    keep_empty: bool = True
    """Train on images without objects, too. The paper's codebase leaves them out."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Numbers that the forward pass computes with (autocast); fp16 needs a GPU. auto: bf16 on a GPU that has it (from
    NVIDIA's Ampere on), else fp32. Evaluation takes them on a GPU only."""
    compile: bool = False
    """Compile the model with torch.compile."""
    channels_last: bool | Auto = "auto"
    """Keep images and convolution weights in channels-last order, which is faster on many machines. auto: on a
    GPU."""
    cache: Literal["none", "ram", "disk"] = "none"
    """Where decoded training images are kept for the next epochs: ram (at most a quarter of the free memory), disk
    (the user's cache folder, for later runs, too), or none. It changes no pixel."""
    workers: int | Auto = "auto"
    """Data-loading processes per device; 0 loads in the training process. auto: 2, on a GPU the cores of this machine
    for each process of the run, up to 12."""
    seed: int = 0
    """Seed of the initial weights, the order of the images and their augmentation."""
    log_every: int = 20
    """Iterations between two lines of metrics."""
    eval_every: int = 0
    """Iterations between two evaluations on the validation split; 0 evaluates at the end only."""
    eval_batch_size: int = 2
    """Images per device at a time in evaluation."""
    patience: int = 0
    """Evaluations in a row without a better AP after which the run ends; 0 for no such end. Needs --eval-every."""
    log_images: int = 4
    """Images of the validation split, always the same, that TensorBoard shows at each evaluation, with their boxes
    and beside that with what was detected; 0 for none."""
    checkpoint_every: int = 2_500
    """Iterations between two checkpoints."""
    expects: str = ""
    """What the run must reach, in words; it is printed and kept in config.json, and changes nothing."""


GROUPS: dict[str, tuple[str, ...]] = {
    "data": ("train_short_sides", "flip", "zoom", "keep_empty", "cache", "workers"),
    "model": ("weights", *(f.name for f in fields(DetectorConfig))),
    "loss": ("loss",),
    "schedule": (
        *("batch_size", "micro_batch", "optimizer", "lr", "reference_batch", "scale_lr", "momentum", "weight_decay"),
        *("bias_lr", "backbone_lr", "max_iters", "schedule", "steps", "warmup_iters", "warmup_factor", "clip_norm"),
        "ema",
    ),
    "run": (
        *("precision", "compile", "channels_last", "seed", "log_every", "eval_every", "eval_batch_size"),
        *("patience", "log_images", "checkpoint_every"),
    ),
}
"""Every setting by the group that ``--help`` shows it in."""
_TYPES: dict[str, Any] = {f.name: f.type for settings in (Config, DetectorConfig) for f in fields(settings)}
AUTO = tuple(name for name, kind in _TYPES.items() if Auto in get_args(kind))
"""Settings that are numbers or switches and may be ``auto``."""
OPTIONS: dict[str, Any] = {
    name: get_args(_TYPES[name])[0] if name in AUTO else _TYPES[name] for names in GROUPS.values() for name in names
}
"""Type of every setting by name, but for ``auto``; settings of the detector have no prefix."""

TRACKERS = ("wandb", "mlflow")
"""What a run can send its scalars to; an option of ``drloss train``, and no setting: it changes nothing."""
LATER = ("zoom", "cache", "frozen_stride", "image_mean", "image_std", "backbone_lr", "ema", "patience", "log_images")
"""Settings that configurations written by version 0.1.0 lack. Their defaults are what that version did."""
_MAY_BE_ZERO = (
    "warmup_iters",
    "clip_norm",
    "weight_decay",
    "momentum",
    "flip",
    "workers",
    "seed",
    "eval_every",
    "ema",
    "patience",
    "log_images",
)
_MOST_ZOOM = 8
_SHARES = ("flip", "warmup_factor", "score_threshold", "nms_threshold", "positive_iou", "negative_iou")


def descriptions() -> dict[str, str]:
    """The text under each field of :class:`Config` and :class:`DetectorConfig`, on one line, by setting."""
    found: dict[str, str] = {}
    for settings in (DetectorConfig, Config):
        body = ast.parse(inspect.getsource(settings)).body[0]
        assert isinstance(body, ast.ClassDef)
        for node, text in pairwise(body.body):
            if isinstance(node, ast.AnnAssign) and isinstance(text, ast.Expr):
                assert isinstance(node.target, ast.Name)
                found[node.target.id] = " ".join(str(ast.literal_eval(text.value)).split())
    return found


def override(config: Config, values: Mapping[str, object]) -> Config:
    """The configuration with some settings replaced, checked.

    Args:
        config: the preset.
        values: settings of :data:`OPTIONS`, already of the right type.
    Raises:
        UserError: if a name is unknown, a type is wrong or a value is out of range.

    With ``scale_lr``, another batch size keeps the number of epochs (Remark 2): unless ``max_iters`` is given, it
    scales with the old batch size over the new one. Unless they are given, ``steps`` and ``warmup_iters`` scale with
    ``max_iters``, and ``max_side`` and ``train_short_sides`` with ``short_side``.
    """
    for name, value in values.items():
        if name not in OPTIONS:
            raise UserError(f"unknown setting {name!r}{nearest(name, OPTIONS)}; allowed: {', '.join(OPTIONS)}")
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
    settings = flat(config)
    for name, kind in OPTIONS.items():
        if get_origin(kind) is Literal and settings[name] not in get_args(kind):
            allowed = ", ".join(map(str, get_args(kind)))
            raise UserError(f"{name} must be one of {allowed}, got {settings[name]!r}")
        if kind in (int, float) and (value := settings[name]) != "auto":
            if not isfinite(value) or value < 0 or (value == 0 and name not in _MAY_BE_ZERO):
                least = "not negative" if name in _MAY_BE_ZERO else "positive"
                raise UserError(f"{name} must be {least} and finite, got {value}")
            if name in _SHARES and value > 1:
                raise UserError(f"{name} must be at most 1, got {value}")
    check_detector(config.detector)
    sides = config.train_short_sides
    if len(sides) not in (1, 2) or sides[0] > sides[-1] or sides[0] < 1:
        raise UserError(f"train_short_sides must be one number or a range low,high of pixels, got {sides}")
    if len(config.zoom) != 2 or not 0 < config.zoom[0] <= config.zoom[1] <= _MOST_ZOOM:
        raise UserError(f"zoom must be a range low,high above 0 and at most {_MOST_ZOOM}, got {config.zoom}")
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
    if config.ema >= 1:
        raise UserError(f"ema must be below 1, got {config.ema}")
    if config.patience and not config.eval_every:
        raise UserError(f"patience {config.patience} needs evaluations on the way: set eval_every, which is 0")
    if list(config.steps) != sorted(config.steps):
        raise UserError(f"steps must rise, got {config.steps}")
    make_loss(config.loss)


def _check_type(name: str, value: object, kind: Any) -> None:
    if value == "auto" and name in AUTO:
        return
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        fits = isinstance(value, tuple) and all(type(v) is item or (item is float and type(v) is int) for v in value)
    elif get_origin(kind) is Literal:
        kind = type(get_args(kind)[0])
        fits = type(value) is kind
    else:
        fits = type(value) is kind or (kind is float and type(value) is int)
    if not fits:
        or_auto = " or auto" if name in AUTO else ""
        raise UserError(f"{name} must be of type {getattr(kind, '__name__', kind)}{or_auto}, got {value!r}")


def parse_value(name: str, text: str) -> object:
    """Parse the text of an option, such as ``64``, ``0.5`` or ``640,800``, as the value of a setting.

    Raises:
        UserError: if the text does not fit the setting's type.
    """
    kind = OPTIONS[name]
    if text == "auto" and name in AUTO:
        return text
    try:
        if get_origin(kind) is tuple:
            return tuple(get_args(kind)[0](part) for part in text.split(",") if part)
        if get_origin(kind) is Literal:
            kind = type(get_args(kind)[0])
        return kind(text)
    except ValueError:
        wanted = f"{get_args(kind)[0].__name__}s with commas" if get_origin(kind) is tuple else kind.__name__
        raise UserError(f"{name} must be {wanted}, got {text!r}") from None


def make_loss(spec: str) -> "ImageLoss":
    """The loss module of a run: :func:`drloss.losses.make_loss`, as a mean over images.

    Raises:
        UserError: if the loss or a parameter is unknown or a value does not fit.
    """
    from drloss.losses import LossSpec

    try:
        parsed = LossSpec.parse(spec)
        if "reduction" in parsed.parameters:
            raise UserError(f"loss {spec}: training needs the mean over images, reduction cannot be set")
        if "inplace" in parsed.parameters:
            raise UserError(f"loss {spec}: training looks at the logits after the loss, inplace cannot be set")
        return parsed.make()
    except ValueError as error:
        raise UserError(str(error)) from None


def is_pooled(loss: str) -> bool:
    """Whether a loss ranks the images of a micro-batch together, so that ``micro_batch`` changes what is learnt."""
    from drloss.losses.inputs import POOLED_SCOPES

    return getattr(make_loss(loss), "scope", "") in POOLED_SCOPES


def flat(config: Config) -> dict[str, Any]:
    """Value of every setting by name, with the detector's beside the others."""
    settings = {**vars(config), **vars(config.detector)}
    del settings["detector"]
    return settings


def later_settings() -> dict[str, Any]:
    """The defaults of the settings in :data:`LATER`, by name."""
    return {name: value for name, value in flat(Config()).items() if name in LATER}


def to_json(config: Config) -> dict[str, Any]:
    """The configuration in plain JSON types."""

    def plain(settings: Config | DetectorConfig) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(settings).items()}

    return plain(config) | {"detector": plain(config.detector)}


def from_json(plain: Mapping[str, Any], source: str) -> Config:
    """The configuration that :func:`to_json` wrote.

    Args:
        plain: the parsed JSON.
        source: name of the file, for messages.
    Raises:
        UserError: if a setting is unknown, missing or of a wrong type.
    """
    try:
        settings = dict(plain)
        expects = settings.pop("expects")
        settings |= settings.pop("detector")
        values = later_settings() | {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
        if missing := set(OPTIONS) - set(values):
            raise UserError(f"missing settings: {', '.join(sorted(missing))}")
        return replace(override(Config(), values), expects=expects)
    except (UserError, KeyError, TypeError) as error:
        raise UserError(f"{source}: not a configuration of this version of drloss: {error}") from None
