"""What the adapters do to mmdetection's detectors alone."""

import copy

import pytest
import torch
from torch import nn

import small_hosts
from adapted import adapt, as_list, for_check
from drloss import DRLoss, check
from drloss.losses.call_log import record_calls
from small_hosts import CLASSES, HOSTS, LABELS

pytestmark = pytest.mark.filterwarnings("ignore")
"""Hosts warn of much that is their own."""


@pytest.mark.parametrize("name", ["mmdet-retina", "mmdet-atss", "mmdet-fcos"])
def test_mmdetections_init_weights_ends_at_the_losss_prior(name):
    model = adapt(HOSTS[name])
    model.bbox_head.init_weights()
    assert (HOSTS[name].layers(model)[0].bias == 0).all()


@pytest.mark.parametrize("name", ["mmdet-retina", "mmdet-atss", "mmdet-fcos"])
def test_mmdetections_init_weights_leaves_what_it_has_loaded(name, monkeypatch):
    model = adapt(HOSTS[name])
    (layer,) = HOSTS[name].layers(model)

    def load(head):
        with torch.no_grad():
            layer.bias.copy_(torch.linspace(-3, -2, len(layer.bias)))

    monkeypatch.setattr(type(model.bbox_head).__mro__[2], "init_weights", load)
    model.bbox_head.init_weights()
    assert torch.equal(layer.bias, torch.linspace(-3, -2, len(layer.bias)))


class Noted(nn.Module):
    """mmdetection's own loss, and what it is given."""

    def __init__(self, own):
        super().__init__()
        self.own, self.given = own, {}

    def forward(self, scores, labels, weight=None, **options):
        sure = torch.ones_like(labels) if weight is None else weight.reshape(-1) > 0
        for row, label, counts in zip(scores.tolist(), labels.tolist(), sure.tolist(), strict=True):
            self.given[tuple(row)] = ((label + 1) % (CLASSES + 1)) if counts else -1
        return self.own(scores, labels, weight, **options)


@pytest.mark.parametrize("name", ["mmdet-retina", "mmdet-atss", "mmdet-fcos"])
def test_each_candidate_has_the_label_that_mmdetection_gives_it_and_is_of_its_image(name):
    host = HOSTS[name]
    plain = host.make()
    adapted = adapt(host, copy.deepcopy(plain), reset=False)
    plain.bbox_head.loss_cls = noted = Noted(plain.bbox_head.loss_cls)
    host.step(plain, host.batch())
    with record_calls() as calls:
        host.step(adapted, host.batch())
    logits, labels = (torch.cat(as_list(part), dim=1) for part in (calls[0].logits, calls[0].labels))
    rows = [tuple(row) for row in logits.reshape(-1, CLASSES).tolist()]
    assert len(noted.given) == len(set(rows)) == len(rows)
    assert [noted.given[row] for row in rows] == labels.flatten().tolist()
    pixels, instances = host.batch()
    for i in range(len(LABELS)):
        with record_calls() as alone:
            adapted(pixels[i : i + 1], instances[i : i + 1])
        torch.testing.assert_close(torch.cat(as_list(alone[0].logits), dim=1)[0], logits[i])
        assert torch.equal(torch.cat(as_list(alone[0].labels), dim=1)[0], labels[i])


def test_a_step_of_mmdetection_that_fails_leaves_nothing_behind():
    host = HOSTS["mmdet-retina"]
    model = adapt(host)
    own, model.bbox_head.loss_bbox = model.bbox_head.loss_bbox, None
    with pytest.raises(TypeError):
        host.step(model, host.batch())
    assert model.bbox_head.loss_cls.given == []
    copy.deepcopy(model)
    model.bbox_head.loss_bbox = own
    assert host.step(model, host.batch())["loss_cls"].isfinite()


def test_settings_of_mmdetection_that_would_be_lost_are_refused():
    host = HOSTS["mmdet-retina"]
    model = host.make()
    with pytest.raises(ValueError, match="inplace must be False for this model"):
        adapt(host, model, DRLoss(inplace=True))
    model.bbox_head.train_cfg["pos_weight"] = 5
    with pytest.raises(ValueError, match=r"train_cfg.pos_weight must be -1, got 5"):
        adapt(host, model)


def test_check_takes_what_a_loader_of_mmdetection_gives():
    class Detector(small_hosts.OneHead):
        __module__ = "mmdet.models"

        def data_preprocessor(self, data, training):
            return {"inputs": torch.stack(data["inputs"]), "data_samples": data["data_samples"]}

        def forward(self, inputs, data_samples, mode):
            assert mode == "loss"
            return super().forward(inputs, data_samples)

    model = adapt(HOSTS["mmdet-atss"])
    model.__class__ = Detector
    pixels, instances = HOSTS["mmdet-atss"].batch()
    report = check(model, {"inputs": list(pixels), "data_samples": instances}, num_classes=CLASSES)
    assert report.ok, str(report)
    assert all(f.ok for f in report.findings if f.name != "ignored anchors"), str(report)


def test_mmdetections_undecided_anchors_are_ignored():
    host = HOSTS["mmdet-retina"]
    model = adapt(host)
    model.bbox_head.assigner.neg_iou_thr = 0.1
    with record_calls() as calls:
        host.step(model, host.batch())
    marks = torch.cat(as_list(calls[0].labels), dim=1)
    assert (marks[:2] == -1).any()
    assert not (marks[2] == -1).any()


class InTheSlot(nn.Module):
    """DRLoss where mmdetection's configuration would have it."""

    def __init__(self):
        super().__init__()
        self.loss = DRLoss()

    def forward(self, scores, labels, weight=None, avg_factor=1.0, **options):
        marks = torch.where(labels == CLASSES, 0, labels + 1)
        return self.loss(scores.unsqueeze(0), marks.unsqueeze(0)) / avg_factor


@pytest.mark.parametrize(("name", "words"), [("mmdet-retina", "called 2 times"), ("mmdet-fcos", "saw 1 image(s)")])
def test_a_loss_in_mmdetections_slot_is_told(name, words):
    host = HOSTS[name]
    model = host.make()
    model.bbox_head.loss_cls = InTheSlot()
    report = check(model, host.batch(), num_classes=CLASSES, step=for_check(host))
    assert not report.ok
    assert words in str(report)
    assert "the classifier starts from a score of 0.01" in str(report)


def test_a_softmax_head_of_mmdetection_is_refused():
    model = HOSTS["mmdet-retina"].make()
    model.bbox_head.use_sigmoid_cls = False
    with pytest.raises(ValueError, match="use_sigmoid must be True"):
        adapt(HOSTS["mmdet-retina"], model)
