"""torchvision's detectors with our loss: what enters it, what stays as it was, and what it is equal to."""

import copy
import importlib
import pickle

import pytest
import torch
from torch import nn

from drloss import DRLoss, dr_loss
from drloss.adapters import adapt
from drloss.adapters.classifier import SILENT
from drloss.adapters.torchvision import log_odds
from drloss.detector.config import DetectorConfig
from drloss.detector.model import HeadOutputs
from drloss.detector.objective import Objective
from drloss.losses.call_log import record_calls
from drloss.structures import Objects
from small_detectors import CLASSES, MODELS, batch, make


def classifier_layers(model):
    classifier = model.head.classification_head
    return list(classifier.module_list) if hasattr(classifier, "module_list") else [classifier.cls_logits]


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_is_called_once_with_all_images_and_object_classes_alone(name):
    model = adapt(make(name))
    with record_calls() as calls:
        losses = model(*batch())
    (call,) = calls
    n, anchors, classes = call.logits.shape
    assert (n, classes) == (3, CLASSES - 1)
    assert call.labels.shape == (n, anchors)
    assert set(call.labels[0].tolist()) - {-1} == {0, 1, 3}
    assert set(call.labels[1].tolist()) - {-1} == {0, 2, 3}
    assert set(call.labels[2].tolist()) == {0}
    assert losses["classification"] == 4 * call.value
    assert losses["classification"].item() == pytest.approx(4 * dr_loss(call.logits, call.labels).item(), rel=1e-6)


def given_to_the_host(name, monkeypatch):
    """Logits (..., K + 1) and targets (..., K + 1), 0 or 1, that torchvision's own loss gets, call by call."""
    seen = []
    if name == "ssd":
        own = nn.functional.cross_entropy
        spy = lambda x, y, **o: seen.append((x, nn.functional.one_hot(y, CLASSES))) or own(x, y, **o)  # noqa: E731
        monkeypatch.setattr(nn.functional, "cross_entropy", spy)
    else:
        module = importlib.import_module(f"torchvision.models.detection.{name}")
        own = module.sigmoid_focal_loss
        spy = lambda x, y, **o: seen.append((x, y)) or own(x, y, **o)  # noqa: E731
        monkeypatch.setattr(module, "sigmoid_focal_loss", spy)
    make(name)(*batch())
    monkeypatch.undo()
    return seen


@pytest.mark.parametrize("name", MODELS)
def test_each_logit_has_the_label_that_torchvision_gives_it(name, monkeypatch):
    # torchvision's RetinaNet hands over image by image the anchors that count; the others all at once.
    given = given_to_the_host(name, monkeypatch)
    logits = torch.cat([x.reshape(-1, CLASSES) for x, _ in given])
    positive = torch.cat([y.reshape(-1, CLASSES) for _, y in given])[:, 1:] == 1
    with record_calls() as calls:
        adapt(make(name), reset=None if name == "ssd" else False)(*batch())
    labels = calls[0].labels.flatten()
    ours = calls[0].logits.reshape(-1, CLASSES - 1)[labels >= 0]
    assert positive.any()
    assert torch.equal(nn.functional.one_hot(labels[labels >= 0], CLASSES)[:, 1:] == 1, positive)
    if name == "ssd":
        torch.testing.assert_close(ours.sigmoid(), logits.softmax(dim=1)[:, 1:])
    else:
        torch.testing.assert_close(ours, logits[:, 1:])


@pytest.mark.parametrize("name", MODELS)
def test_the_box_losses_are_torchvisions(name):
    plain, adapted = make(name), adapt(make(name))
    wanted, found = plain(*batch()), adapted(*batch())
    assert wanted.keys() == found.keys()
    for key in set(wanted) - {"classification"}:
        torch.testing.assert_close(found[key], wanted[key])


@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_an_untrained_classifier_starts_from_the_losss_prior_with_the_background_silent(name):
    model = adapt(make(name))
    (layer,) = classifier_layers(model)
    bias = layer.bias.reshape(-1, CLASSES)
    assert (bias[:, 0] == SILENT).all()
    assert (bias[:, 1:] == 0).all()
    assert (layer.weight.reshape(-1, CLASSES, *layer.weight.shape[1:])[:, 0] == 0).all()
    model.eval()
    model.score_thresh = 0.3
    for found in model(batch()[0]):
        assert (found["labels"] > 0).all()
    focal = adapt(make(name), "focal")
    assert classifier_layers(focal)[0].bias[1].sigmoid().item() == pytest.approx(0.01)


@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_a_trained_classifier_stays_unless_a_reset_is_asked_for(name):
    model = make(name)
    (layer,) = classifier_layers(model)
    with torch.no_grad():
        layer.bias += torch.linspace(0, 1, len(layer.bias))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    adapt(model)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all((after[key] == value).all() for key, value in before.items())
    adapt(model, reset=True)
    assert (layer.bias.reshape(-1, CLASSES)[:, 1:] == 0).all()


@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_another_loss_gives_an_untrained_classifier_its_own_prior(name):
    model = adapt(adapt(make(name), "focal"), "dr")
    (layer,) = classifier_layers(model)
    assert (layer.bias.reshape(-1, CLASSES)[:, 1:] == 0).all()
    adapt(model, "focal")
    scores = layer.bias.reshape(-1, CLASSES)[:, 1:].sigmoid()
    torch.testing.assert_close(scores, torch.full_like(scores, 0.01))


@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_no_detection_is_of_the_background(name):
    model = make(name)
    (layer,) = classifier_layers(model)
    with torch.no_grad():
        layer.bias += torch.linspace(0, 1, len(layer.bias))  # as if trained
        layer.bias.reshape(-1, CLASSES)[:, 0] = 5
    model.score_thresh = 0.0
    assert any((found["labels"] == 0).any() for found in model.eval()(batch()[0]))
    assert all((found["labels"] > 0).all() for found in adapt(model)(batch()[0]))


@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_one_class_alone_is_reset_only_where_its_bias_is_one_that_classifiers_start_from(name):
    def one():
        model = make(name)
        head = model.head.classification_head
        head.num_classes, head.cls_logits = 1, nn.Conv2d(head.cls_logits.in_channels, 1, 3)
        return model

    for bias, kept in ((-4.5951, False), (-2.7, True), (0.3, True), (0.0, False)):
        model = one()
        (layer,) = classifier_layers(model)
        nn.init.constant_(layer.bias, bias)
        adapt(model, background=False)
        assert (layer.bias.item() == pytest.approx(bias)) if kept else (layer.bias.item() == 0)
    with pytest.raises(ValueError, match="the model has num_classes=1, and class 0 is the background"):
        adapt(one())


def test_an_ssd_keeps_its_weights_and_its_detections():
    plain, adapted = make("ssd"), adapt(make("ssd"))
    for key, value in plain.state_dict().items():
        assert (adapted.state_dict()[key] == value).all()
    for wanted, found in zip(plain.eval()(batch()[0]), adapted.eval()(batch()[0]), strict=True):
        torch.testing.assert_close(found, wanted)


def test_log_odds_are_those_of_the_softmax_and_finite_where_it_saturates():
    logits = torch.randn(50, 5, dtype=torch.float64) * 5
    torch.testing.assert_close(log_odds(logits).sigmoid(), logits.softmax(dim=-1))
    extreme = torch.tensor([[200.0, 0.0, 0.0], [0.0, 90.0, -90.0]], requires_grad=True)
    found = log_odds(extreme)
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert torch.isfinite(extreme.grad).all()
    assert log_odds(torch.zeros(2, 3, dtype=torch.float16)).dtype == torch.float32


def test_anchors_between_the_matchers_thresholds_are_ignored():
    model = adapt(make("retinanet"))
    model.proposal_matcher.low_threshold = 0.1
    with record_calls() as calls:
        model(*batch())
    labels = calls[0].labels
    assert (labels[:2] == -1).any()
    assert not (labels[2] == -1).any()


@pytest.mark.parametrize("name", MODELS)
def test_copies_and_pickles_are_adapted_too(name):
    model = adapt(make(name))
    wanted = model(*batch())["classification"]
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other(*batch())["classification"] == wanted


@pytest.mark.parametrize("name", MODELS)
def test_training_lowers_the_loss_and_adapting_twice_changes_the_loss_alone(name):
    model = adapt(adapt(make(name), "focal"), DRLoss(neg_lambda=0.1))
    assert sum(isinstance(m, DRLoss) for m in model.modules()) == 1
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    first = model(*batch())["classification"].item()
    for _ in range(300):
        losses = model(*batch())
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        if losses["classification"].item() < 0.8 * first:
            break
    assert losses["classification"].item() < 0.8 * first


@pytest.mark.parametrize("name", MODELS)
def test_labels_from_zero_are_refused(name):
    images, targets = batch()
    targets[0]["labels"] = torch.tensor([0, 2])
    with pytest.raises(ValueError, match="targets have label 0, which is the background in torchvision"):
        adapt(make(name))(images, targets)


@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_labels_from_zero_are_classes_where_that_is_said(name):
    images, targets = batch()
    targets[0]["labels"] = torch.tensor([0, 2])
    model = adapt(make(name), background=False)
    with record_calls() as calls:
        model(images, targets)
    assert calls[0].logits.shape[2] == CLASSES
    assert set(calls[0].labels[0].tolist()) - {-1, 0} == {1, 3}


def test_a_model_that_is_wrapped_for_several_processes_is_adapted_inside():
    model = make("fcos")
    wrapped = nn.DataParallel(model)
    assert adapt(wrapped, DRLoss(neg_lambda=0.1)) is wrapped
    assert model.head.drloss.neg_lambda == 0.1
    compiled = torch.compile(make("ssd"), backend="eager")
    assert adapt(compiled) is compiled
    assert isinstance(compiled._orig_mod.drloss, DRLoss)


def test_what_cannot_be_adapted_is_refused():
    with pytest.raises(TypeError, match=r"model must be a detector of torchvision, .*, got torch\.nn"):
        adapt(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="loss must be one of"):
        adapt(make("retinanet"), "best")
    with pytest.raises(ValueError, match="background must be True for an SSD"):
        adapt(make("ssd"), background=False)
    with pytest.raises(ValueError, match="reset must not be given for an SSD"):
        adapt(make("ssd"), reset=True)
    for loss, name in ((dr_loss, "dr_loss"), (DRLoss, "DRLoss"), (nn.BCELoss(), "BCELoss"), (None, "NoneType")):
        with pytest.raises(TypeError, match=f"loss must be a loss module, such as .*, got {name}$"):
            adapt(make("retinanet"), loss)
    plain = make("retinanet")
    with pytest.raises(TypeError):
        adapt(plain, dr_loss)
    assert type(plain.head.classification_head).__module__.startswith("torchvision.")
    model = make("retinanet")
    model.head.classification_head.__class__ = type("Own", (type(model.head.classification_head),), {})
    with pytest.raises(TypeError, match="adapt knows RetinaNetClassificationHead of torchvision, not Own"):
        adapt(model)


def test_the_adapted_retinanet_has_the_loss_of_our_detector():
    model = adapt(make("retinanet"))
    images, targets = batch()
    with record_calls() as calls:
        losses = model(images, targets)
    transformed, resized = model.transform(images, targets)
    anchors = model.anchor_generator(transformed, [model.backbone(transformed.tensors)])[0]
    config = DetectorConfig()
    assert (config.positive_iou, config.negative_iou) == (0.5, 0.4)
    objects = [Objects(t["boxes"], t["labels"], torch.zeros(len(t["labels"]), dtype=torch.bool)) for t in resized]
    logits = calls[0].logits.detach()
    ours = Objective(DRLoss(), config)(
        HeadOutputs([logits], [torch.zeros(*logits.shape[:2], 4)], [anchors], CLASSES - 1), objects
    )
    assert (ours.labels == calls[0].labels).all()
    assert losses["classification"].item() == pytest.approx(ours.cls.item(), rel=1e-6)
