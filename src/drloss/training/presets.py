"""Named configurations, each with the result it must reach."""

from dataclasses import replace

from drloss.detector.config import DetectorConfig
from drloss.errors import UserError, nearest
from drloss.training.config import Config

_R50 = DetectorConfig()
_R101 = replace(_R50, backbone="resnet101")
_X101 = replace(_R50, backbone="resnext101_32x8d")
_JITTER = (640, 800)
_NOT_IN_PAPER = "no number: the paper has no such run"

CPU = Config(
    weights="none",
    detector=DetectorConfig(
        backbone="resnet10",
        fpn_channels=64,
        top_level=5,
        head_depth=1,
        head_channels=64,
        anchor_scale=2.5,
        anchor_octaves=2,
        short_side=128,
        max_side=256,
    ),
    micro_batch=8,
    optimizer="adamw",
    lr=2e-3,
    max_iters=600,
    schedule="cosine",
    steps=(),
    warmup_iters=50,
    warmup_factor=0.05,
    clip_norm=10.0,
    train_short_sides=(128, 128),
    channels_last=True,
    log_every=10,
    eval_every=200,
    eval_batch_size=16,
    checkpoint_every=100,
    expects="AP50 of 50 or more on shapes val with DR, from random weights",
)
"""Settings for a few CPU cores and images of about 128 pixels; the code is the same."""

LAPTOP = replace(
    CPU,
    weights="imagenet",
    detector=replace(
        CPU.detector,
        backbone="tf_efficientnet_lite0",
        top_level=7,
        anchor_scale=2.0,
        short_side=256,
        max_side=448,
    ),
    micro_batch=16,
    lr=1e-3,
    max_iters=300,
    warmup_iters=30,
    train_short_sides=(256, 256),
    zoom=(0.7, 1.5),
    cache="ram",
    eval_every=100,
)
"""Settings for a few hundred photographs and a few CPU cores: good after some ten minutes."""

DEMO = replace(
    LAPTOP,
    detector=replace(LAPTOP.detector, short_side=128, max_side=256),
    train_short_sides=(128, 128),
    zoom=(1.0, 1.0),
    max_iters=100,
    warmup_iters=10,
    eval_every=25,
    expects="AP50 of 60 or more on shapes val with DR",
)
"""The preset "laptop" at the size of the generated images, for the minutes of ``drloss demo``."""

R50_1X = Config(expects="AP 37.4 on COCO minival (Tables 1-3 of the paper)")
R101_2X = Config(
    detector=_R101,
    max_iters=180_000,
    steps=(120_000, 160_000),
    train_short_sides=_JITTER,
    expects="AP 41.7 on COCO test-dev (Table 4)",
)
X101_15X = Config(
    detector=_X101,
    max_iters=135_000,
    steps=(90_000, 120_000),
    train_short_sides=_JITTER,
    expects="AP 43.1 on COCO test-dev (Table 4); the steps are scaled from 1x, the paper does not state them",
)
VOC07 = Config(
    lr=0.008,
    batch_size=8,
    reference_batch=8,
    max_iters=8_750,
    steps=(6_250,),
    expects="AP 41.2 on VOC2007 test (Table 7); the paper does not state the batch, 8 is read from its codebase",
)


def _authors(config: Config, score_threshold: float) -> Config:
    """The preset with the settings that the authors published: background below an IoU of 0.5, a score threshold."""
    return replace(config, detector=replace(config.detector, negative_iou=0.5, score_threshold=score_threshold))


def _scale(side: int) -> Config:
    detector = replace(_R50, short_side=side, max_side=round(side * 1333 / 800))
    expects = {400: 32.4, 500: 34.5, 600: 36.1, 700: 37.1}[side]
    return Config(
        detector=detector, train_short_sides=(side, side), expects=f"AP {expects} on COCO test-dev (Table 6)"
    )


PRESETS: dict[str, Config] = {
    "cpu": CPU,
    "laptop": LAPTOP,
    "demo": DEMO,
    "r18_1x": Config(detector=replace(_R50, backbone="resnet18"), expects=_NOT_IN_PAPER),
    "r34_1x": Config(detector=replace(_R50, backbone="resnet34"), expects=_NOT_IN_PAPER),
    "r50_1x": R50_1X,
    "r50_1x_authors": _authors(R50_1X, 0.2),
    "r50_1x_400": _scale(400),
    "r50_1x_500": _scale(500),
    "r50_1x_600": _scale(600),
    "r50_1x_700": _scale(700),
    "r101_1x": Config(detector=_R101, expects=_NOT_IN_PAPER),
    "r101_2x": R101_2X,
    "r101_2x_authors": _authors(R101_2X, 0.1),
    "x101_1.5x": X101_15X,
    "voc07": VOC07,
}
"""Presets by name. ``--loss focal`` makes any of them a focal-loss baseline, with that loss's prior and weight."""


def default_preset(data: str) -> str:
    """The preset for a newcomer's data, or for the generated ones."""
    return "cpu" if data.partition(":")[0] == "shapes" else "laptop"


def preset_of(name: str) -> Config:
    """The preset of a name.

    Raises:
        UserError: if there is none.
    """
    if name not in PRESETS:
        raise UserError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}{nearest(name, PRESETS)}")
    return PRESETS[name]
