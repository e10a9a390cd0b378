import dataclasses
import json

import pytest
import torch

from drloss.detector.config import DetectorConfig
from drloss.detector.model import RetinaNet
from drloss.errors import UserError
from drloss.losses import DRLoss, FocalLoss
from drloss.training.config import LATER, OPTIONS, Config, check, from_json, make_loss, override, parse_value, to_json
from drloss.training.presets import PRESETS
from drloss.training.resume import changed_settings
from drloss.training.schedule import build_optimizer, learning_rate, scaled_lr, set_learning_rate


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid_and_survives_json(name):
    check(PRESETS[name])
    assert from_json(json.loads(json.dumps(to_json(PRESETS[name]))), "config.json") == PRESETS[name]


def test_presets_are_the_papers():
    r50, r101, x101, voc = (PRESETS[n] for n in ("r50_1x", "r101_2x", "x101_1.5x", "voc07"))
    assert (r50.max_iters, r50.steps, r50.lr, r50.batch_size) == (90_000, (60_000, 80_000), 0.01, 16)
    assert (r101.max_iters, r101.steps, r101.train_short_sides) == (180_000, (120_000, 160_000), (640, 800))
    assert (x101.max_iters, x101.detector.backbone) == (135_000, "resnext101_32x8d")
    assert (voc.max_iters, voc.steps, voc.lr) == (8_750, (6_250,), 0.008)
    authors = PRESETS["r50_1x_authors"].detector
    assert (authors.negative_iou, authors.score_threshold) == (0.5, 0.2)


def test_configurations_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PRESETS["cpu"].lr = 1.0


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"learning_rate": 0.1}, "unknown setting 'learning_rate'"),
        ({"lr": "0.1"}, "lr must be of type float, got '0.1'"),
        ({"max_iters": 1.5}, "max_iters must be of type int"),
        ({"max_iters": True}, "max_iters must be of type int"),
        ({"compile": 1}, "compile must be of type bool"),
        ({"steps": [1, 2]}, "steps must be of type tuple"),
        ({"steps": (1.5,)}, "steps must be of type tuple"),
        ({"lr": -1.0}, "lr must be positive"),
        ({"lr": float("nan")}, "lr must be positive"),
        ({"max_iters": 0}, "max_iters must be positive"),
        ({"batch_size": 0}, "batch_size must be positive"),
        ({"workers": -1}, "workers must be not negative"),
        ({"flip": 1.5}, "flip must be at most 1"),
        ({"optimizer": "lion"}, "optimizer must be one of sgd, adamw"),
        ({"precision": "fp8"}, "precision must be one of auto, fp32, bf16, fp16"),
        ({"schedule": "poly"}, "schedule must be one of"),
        ({"norm": "batch"}, "norm must be one of"),
        ({"steps": (5, 2)}, "steps must rise"),
        ({"train_short_sides": (800, 640)}, "train_short_sides must be"),
        ({"train_short_sides": ()}, "train_short_sides must be"),
        ({"positive_iou": 0.3}, "negative_iou must not exceed positive_iou"),
        ({"anchor_ratios": ()}, "anchor_ratios must be"),
        ({"anchor_ratios": (1.0, -1.0)}, "anchor_ratios must be"),
        ({"seed": 2**63}, "seed must be below"),
        ({"weights": "none", "norm": "frozen"}, "norm frozen needs weights"),
        ({"loss": "dr:reduction=none"}, "reduction cannot be set"),
        ({"loss": "dr:margin=0.3,inplace=True"}, "inplace cannot be set"),
        ({"loss": "dr:margin=0.3,margin=0.4"}, "margin is given twice"),
        ({"loss": "hinge"}, "loss must be one of dr, dr\\+, focal, ce"),
        ({"loss": "dr:neg_lambda=-1"}, "neg_lambda must be positive"),
        ({"loss": "dr:lambda=1"}, "has no option 'lambda'"),
        ({"loss": "focal:alpha=x"}, "loss focal:alpha=x"),
    ],
)
def test_bad_settings_are_refused_in_words(values, words):
    with pytest.raises(UserError, match=words):
        override(PRESETS["r50_1x"], values)


def test_a_setting_of_the_detector_needs_no_prefix():
    config = override(PRESETS["cpu"], {"fpn_channels": 32, "lr": 0.5})
    assert config.detector.fpn_channels == 32
    assert config.lr == 0.5


def test_option_names_are_unique():
    assert not {f.name for f in dataclasses.fields(Config)} & {f.name for f in dataclasses.fields(DetectorConfig)}
    assert "detector" not in OPTIONS


def test_the_schedule_follows_max_iters_and_batch_size():
    r50 = PRESETS["r50_1x"]
    short = override(r50, {"max_iters": 900})
    assert (short.steps, short.warmup_iters) == ((600, 800), 5)
    half = override(r50, {"batch_size": 8})
    assert (half.max_iters, half.steps) == (180_000, (120_000, 160_000))
    assert scaled_lr(half) == pytest.approx(0.005)
    kept = override(r50, {"batch_size": 8, "scale_lr": False})
    assert (kept.max_iters, scaled_lr(kept)) == (90_000, 0.01)
    given = override(r50, {"batch_size": 8, "max_iters": 100, "steps": (10,)})
    assert (given.max_iters, given.steps) == (100, (10,))


def test_another_short_side_takes_the_other_sizes_along():
    config = override(PRESETS["r101_2x"], {"short_side": 400})
    assert (config.detector.max_side, config.train_short_sides) == (666, (320, 400))


def test_values_are_parsed_by_their_type():
    assert parse_value("lr", "1e-3") == 1e-3
    assert parse_value("steps", "10,20") == (10, 20)
    assert parse_value("train_short_sides", "640,800") == (640, 800)
    assert parse_value("loss", "focal") == "focal"
    for name, text in (("lr", "fast"), ("max_iters", "1.5"), ("steps", "1,x")):
        with pytest.raises(UserError, match=f"{name} must be"):
            parse_value(name, text)


def test_losses_take_parameters_in_their_name():
    assert make_loss("dr:neg_lambda=0.05,margin=0.4").neg_lambda == 0.05
    assert isinstance(make_loss("dr"), DRLoss)
    assert make_loss("focal:alpha=0.5,normalizer=none").normalizer == "none"
    assert isinstance(make_loss("focal"), FocalLoss)
    assert make_loss("focal").scope == make_loss("ce").scope == "pooled"  # as the codebases that it is from
    assert make_loss("focal:normalizer=none").scope == "per_image"  # a mean over images, whatever it is divided by
    assert make_loss("focal:scope=per_image").scope == make_loss("dr").scope == "per_image"
    assert make_loss("dr:pairing=neg_only,surrogate=hinge,neg_prior=100").options["neg_prior"] == 100
    assert make_loss("ap:interpolate=False").interpolate is False
    assert make_loss("ohem:ratio=4,cls_weight=2").cls_weight == 2
    with pytest.raises(UserError, match="loss dr:lam=1: DRLoss has no option 'lam'; it has cls_weight, pairing"):
        make_loss("dr:lam=1")
    with pytest.raises(UserError, match=r"loss dr:pairing=some: pairing must be one of 'dr', .* got 'some'"):
        make_loss("dr:pairing=some")


def test_a_configuration_of_another_version_is_refused():
    plain = to_json(PRESETS["cpu"])
    with pytest.raises(UserError, match=r"run/config\.json: .*unknown setting 'colour'"):
        from_json(plain | {"colour": 1}, "run/config.json")
    del plain["lr"]
    with pytest.raises(UserError, match="missing settings: lr"):
        from_json(plain, "run/config.json")


def test_a_configuration_of_version_0_1_means_what_it_meant():
    plain = to_json(PRESETS["r50_1x"])
    older = {k: v for k, v in plain.items() if k not in LATER}
    older["detector"] = {k: v for k, v in plain["detector"].items() if k not in LATER}
    assert len(older) + len(older["detector"]) == len(plain) + len(plain["detector"]) - len(LATER)
    assert from_json(older, "config.json") == PRESETS["r50_1x"]
    assert changed_settings(older, plain) == changed_settings(plain, older) == {}
    assert changed_settings(older, plain | {"zoom": [0.5, 2]}) == {"zoom": ([1.0, 1.0], [0.5, 2])}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"image_mean": (0.5, 0.5)}, "image_mean must be empty or three numbers from 0 to 1"),
        ({"image_std": (0.5, 0.0, 0.5)}, "image_std must not be 0"),
        ({"zoom": (2.0, 0.5)}, "zoom must be a range low,high above 0"),
        ({"zoom": (1.0,)}, "zoom must be a range low,high"),
        ({"zoom": (1.0, 9.0)}, "at most 8"),
        ({"frozen_stride": 3}, "frozen_stride must be one of 0, 2, 4, 8, 16, 32"),
        ({"backbone_lr": 0.0}, "backbone_lr must be positive"),
        ({"cache": "tape"}, "cache must be one of none, ram, disk"),
    ],
)
def test_settings_out_of_range_are_named(values, words):
    with pytest.raises(UserError, match=words):
        override(PRESETS["cpu"], values)


def test_step_schedule_by_hand():
    config = PRESETS["r50_1x"]
    rates = [learning_rate(config, t) for t in (0, 250, 500, 59_999, 60_000, 80_000, 89_999)]
    assert rates == pytest.approx([0.01 / 3, 0.01 * 2 / 3, 0.01, 0.01, 0.001, 0.0001, 0.0001])


def test_cosine_schedule_ends_near_zero():
    config = PRESETS["cpu"]
    assert learning_rate(config, config.max_iters // 2) == pytest.approx(config.lr / 2)
    assert learning_rate(config, config.max_iters - 1) < config.lr * 1e-4


def test_decay_and_bias_rates_are_the_recipes():
    config = dataclasses.replace(PRESETS["cpu"], optimizer="sgd")
    model = RetinaNet(dataclasses.replace(config.detector, norm="group"), 2, 0.5)
    optimizer = build_optimizer(model, config)
    set_learning_rate(optimizer, 0.5)
    by_parameter = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    assert len(by_parameter) == sum(p.requires_grad for p in model.parameters())
    weight, bias = by_parameter[id(model.cls_head.predict.weight)], by_parameter[id(model.cls_head.predict.bias)]
    norm = by_parameter[id(model.backbone.body.bn1.weight)]
    assert (weight["weight_decay"], weight["lr"]) == (1e-4, 0.5)
    assert (bias["weight_decay"], bias["lr"]) == (0.0, 1.0)
    assert (norm["weight_decay"], norm["lr"]) == (0.0, 0.5)
    assert isinstance(optimizer, torch.optim.SGD)


def test_the_backbone_may_have_a_rate_of_its_own_and_scales_have_no_decay():
    pytest.importorskip("timm", reason="timm is not installed")
    config = dataclasses.replace(PRESETS["cpu"], backbone_lr=0.1)
    detector = dataclasses.replace(config.detector, backbone="convnext_atto", norm="frozen", frozen_stride=0)
    model = RetinaNet(detector, 2, 0.5)
    optimizer = build_optimizer(model, config)
    set_learning_rate(optimizer, 0.5)
    by_parameter = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    assert len(by_parameter) == sum(1 for _ in model.parameters())
    body = dict(model.backbone.body.named_parameters())
    layer, scale = body["stages_0.blocks.0.conv_dw.weight"], body["stages_0.blocks.0.gamma"]
    norm, bias = body["stages_0.blocks.0.norm.weight"], body["stages_0.blocks.0.conv_dw.bias"]
    found = [(g["weight_decay"], g["lr"]) for g in (by_parameter[id(p)] for p in (layer, scale, norm, bias))]
    assert found == [(1e-4, 0.05), (0.0, 0.05), (0.0, 0.05), (0.0, 0.1)]
    assert by_parameter[id(model.cls_head.predict.weight)]["lr"] == 0.5


def test_adamw_scales_with_the_square_root():
    config = dataclasses.replace(PRESETS["cpu"], batch_size=64)
    assert scaled_lr(config) == pytest.approx(2 * config.lr)
