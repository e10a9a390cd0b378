"""drloss.check leaves the model, its matcher and its modules as they were."""

import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.detection._utils import Matcher

from drloss import DRLoss, check
from drloss.adapters.classifier import labels_of
from small_hosts import needs
from small_plugs import Head, Loop, images_and_targets, joined, loop, verdicts


def test_nothing_is_changed_by_looking():
    torch.manual_seed(3)
    model = nn.Sequential(nn.BatchNorm2d(3), Head())
    model[1].layer.weight.grad = torch.ones_like(model[1].layer.weight)
    model.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    data = images_and_targets()
    state = torch.get_rng_state()

    model[1].seen = 0
    model[1].register_buffer("mean", torch.zeros(1))
    before["1.mean"] = torch.zeros(1)
    others = random.getstate(), np.random.get_state()[1].tolist()

    def step(model, batch):
        images, targets = batch
        model[1].seen += 1
        model[1].mean = model[1].mean + 1  # another tensor in its place
        model[1].criterion, model[1].part = [], nn.Linear(1, 1)
        noise = random.random() + np.random.rand()
        return model[1](model[0](images) + torch.randn(1) + noise, targets)

    check(model, data, step=step)
    assert model[1].seen == 0
    assert not hasattr(model[1], "criterion")
    assert not hasattr(model[1], "part")
    assert (random.getstate(), np.random.get_state()[1].tolist()) == others
    assert all((model.state_dict()[key] == value).all() for key, value in before.items())
    assert (torch.get_rng_state() == state).all()
    assert (model[1].layer.weight.grad == 1).all()
    assert not model.training


@pytest.mark.parametrize("trains", ["backward", "steps"])
def test_a_step_that_trains_is_refused_and_undone(trains):
    model = loop(lambda self, x, y: self.loss(joined(x), joined(y)))
    model.register_buffer("mean", torch.zeros(1).expand(3))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    kept = model.layer.weight.grad = torch.ones_like(model.layer.weight)
    before = model.layer.weight.detach().clone()

    def step(model, batch):
        loss = model(*batch)
        loss.backward()
        if trains == "steps":
            optimizer.step()
            optimizer.zero_grad()
        return loss

    with pytest.raises(ValueError, match="step must return the losses, and leave"):
        check(model, images_and_targets(), step=step)
    assert torch.equal(model.layer.weight, before)
    assert model.layer.weight.grad is kept
    assert (kept == 1).all()


MATCHER_CALL = Matcher.__call__


def monai_detector(matcher):
    """A 2-D RetinaNet of MONAI, whose classification loss is ours."""
    needs("monai")
    from monai.apps.detection.networks.retinanet_detector import RetinaNetDetector
    from monai.apps.detection.networks.retinanet_network import RetinaNet, resnet_fpn_feature_extractor
    from monai.apps.detection.utils.anchor_utils import AnchorGeneratorWithAnchorShape
    from monai.networks.nets import resnet

    class Detector(RetinaNetDetector):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.drloss = DRLoss()

        def compute_cls_loss(self, cls_logits, targets, matched_idxs):
            labels = [
                labels_of(m, t[self.target_label_key] + 1, ignored=-2)
                for m, t in zip(matched_idxs, targets, strict=True)
            ]
            return self.drloss(cls_logits, torch.stack(labels))

    torch.manual_seed(0)
    body = resnet.ResNet("basic", [1, 1, 1, 1], [8, 16, 32, 64], spatial_dims=2, n_input_channels=1, conv1_t_stride=2)
    pyramid = resnet_fpn_feature_extractor(body, 2, False, returned_layers=[1, 2], trainable_backbone_layers=None)
    shapes = AnchorGeneratorWithAnchorShape((1, 2, 4), ((8, 8), (16, 12), (12, 16)))
    network = RetinaNet(2, num_classes=3, num_anchors=3, feature_extractor=pyramid, size_divisible=16)
    nn.init.zeros_(network.classification_head.cls_logits.bias)
    model = Detector(network=network, anchor_generator=shapes)
    if matcher == "atss":
        model.set_atss_matcher(num_candidates=4)
    else:
        model.set_regular_matcher(0.5, 0.4)
    return model


@pytest.mark.filterwarnings("ignore")  # of the host
@pytest.mark.parametrize("matcher", ["regular", "atss"])
def test_a_detector_of_monai_that_asks_for_its_matchers_type_is_checked(matcher):
    model = monai_detector(matcher)
    model.set_target_keys(box_key="boxes", label_key="labels")
    images = [torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(k)) for k in range(2)]
    targets = [
        {"boxes": torch.tensor([[8.0, 8, 40, 40]]), "labels": torch.tensor([2])},
        {"boxes": torch.tensor([[4.0, 4, 20, 16], [30, 20, 60, 60]]), "labels": torch.tensor([0, 1])},
    ]
    report = check(model, (images, targets), num_classes=3)
    assert report.ok, str(report)
    assert verdicts(report)["ignored anchors"] is (True if matcher == "regular" else None)


class Subclassed(Matcher):
    pass


class Slots:
    __slots__ = ()
    BETWEEN_THRESHOLDS = -2

    def __call__(self, boxes):
        return torch.tensor([0, -1, -2])


class Overlaps(Slots):
    """As MONAI's: overlaps and indices."""

    def __call__(self, boxes):
        return torch.full((3,), -2.0), super().__call__(boxes)


class Layer(nn.Module):
    BETWEEN_THRESHOLDS = -2

    def forward(self, boxes):
        return torch.tensor([0, -1, -2])


@dataclass(frozen=True)
class Frozen:
    BETWEEN_THRESHOLDS: int = -2

    @staticmethod
    def __call__(boxes):
        return torch.tensor([0, -1, -2])


class Asking(Loop):
    """A host that looks at what its matcher is, as MONAI's does."""

    def __init__(self, matcher):
        super().__init__(lambda self, x, y: self.loss(joined(x), joined(y).clamp(min=0)), loss=DRLoss())
        self.proposal_matcher = matcher
        self.kind = type(matcher)

    def forward(self, images, targets):
        matcher = self.proposal_matcher
        assert type(matcher) is self.kind
        assert matcher.__class__.__name__ == self.kind.__name__
        if isinstance(matcher, Matcher):
            matcher(torch.tensor([[0.9, 0.1, 0.45]]))
        else:
            matcher(images)
        return super().forward(images, targets)


@pytest.mark.parametrize(
    "matcher",
    [Matcher(0.5, 0.4), Subclassed(0.5, 0.4), Slots(), Overlaps(), Layer(), Frozen()],
    ids=lambda matcher: type(matcher).__name__,
)
def test_a_watched_matcher_is_still_what_it_was(matcher):
    kind = type(matcher)
    before, own = dict(matcher.__dict__) if hasattr(matcher, "__dict__") else None, dict(vars(kind))
    model = Asking(matcher)
    report = check(model, images_and_targets(), num_classes=3)
    assert "the model's matcher leaves some undecided" in str(report)
    with pytest.raises(RuntimeError, match="in the middle"):
        check(model, images_and_targets(), step=failing)
    assert model.proposal_matcher is matcher
    assert before is None or matcher.__dict__.keys() == before.keys()
    assert vars(kind).keys() == own.keys()
    assert all(vars(kind)[name] is value for name, value in own.items())
    assert Matcher.__call__ is MATCHER_CALL


def failing(model, batch):
    model(*batch)
    raise RuntimeError("in the middle")


@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated
def test_the_model_is_as_it_was_where_a_step_raises():
    model = loop(lambda self, x, y: self.loss(joined(x), joined(y))).eval()
    model.scripted = torch.jit.script(nn.BatchNorm2d(3))
    model.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    bias, modes = model.layer.bias, [m.training for m in model.modules()]

    def step(model, batch):
        model.scripted(batch[0])
        with torch.no_grad():
            model.layer.weight.add_(1)
        model.layer.bias = nn.Parameter(torch.ones(3))
        model.loss = DRLoss(cls_weight=1)
        return failing(model, batch)

    criterion = model.loss
    with pytest.raises(RuntimeError, match="in the middle"):
        check(model, images_and_targets(), step=step)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    assert model.layer.bias is bias
    assert model.loss is criterion
    assert [m.training for m in model.modules()] == modes


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_step_is_one_of_training_whatever_the_caller_is_in(mode):
    model, data = loop(lambda self, x, y: self.loss(joined(x), joined(y))), images_and_targets()
    with mode():
        report = check(model, data, num_classes=3)
    assert all(ok is True for ok in verdicts(report).values()), str(report)


@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated
def test_parts_of_torchscript_are_left_as_they_were():
    body = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    for part in (torch.jit.script(body), torch.jit.trace(body, torch.rand(2, 3, 64, 64))):
        model = nn.Sequential(part, loop(lambda self, x, y: self.loss(joined(x), joined(y)))).eval()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        report = check(model, images_and_targets(), step=lambda m, b: m[1](m[0](b[0]), b[1]), num_classes=3)
        assert report.ok, str(report)
        assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
        assert not part.training
