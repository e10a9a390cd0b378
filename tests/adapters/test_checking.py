"""drloss.check: green on what is right, and the right words on each way to get it wrong."""

import random
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Thread
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.detection._utils import Matcher

from drloss import DRLoss, check, dr_loss
from drloss.adapters import adapt
from drloss.adapters.classifier import labels_of
from small_detectors import CLASSES, MODELS, batch, make
from small_hosts import needs


class Head(nn.Module):
    """A classifier over the cells of two pyramid levels, and one way to put the loss on it."""

    def __init__(self, wrong="", classes=3, prior=0.5):
        super().__init__()
        torch.manual_seed(0)
        self.wrong = wrong
        self.classes = classes
        self.layer = nn.Conv2d(3, classes, 8, stride=8)
        nn.init.normal_(self.layer.weight, std=0.01)
        nn.init.constant_(self.layer.bias, torch.logit(torch.tensor(prior)).item())
        self.loss = DRLoss(scope="pooled") if wrong == "pooled" else DRLoss()
        self.normaliser = 37.0

    def forward(self, images, targets):
        levels = [images, nn.functional.avg_pool2d(images, 2)]
        logits = [self.layer(x).flatten(2).transpose(1, 2) for x in levels]
        labels = [torch.zeros(x.shape[:2], dtype=torch.int64) for x in logits]
        first = 1 if self.wrong == "background" else 0
        for image, target in enumerate(targets):
            for index, label in enumerate(target["labels"]):
                labels[0][image, 5 + index] = label + first
                labels[0][image, 20 + index] = -1
        return {"loss_cls": self.put(logits, labels), "loss_box": self.layer.weight.sum() * 0}

    def put(self, logits, labels):
        joined, marks = torch.cat(logits, dim=1), torch.cat(labels, dim=1)
        positives = (marks > 0).sum()
        match self.wrong:
            case "sigmoid":
                return self.loss(joined.sigmoid().reshape(joined.shape), marks)
            case "softmax":
                return self.loss(torch.cat([x.softmax(dim=-1) for x in logits], dim=1), marks)
            case "not finite":
                return self.loss(joined / 0, marks)
            case "from zero":
                return self.loss(joined, (marks - 1).clamp(min=0))
            case "times 1.1":
                return self.loss(joined, marks) * 1.1
            case "function, divided":
                return 4 * dr_loss(joined, marks) / positives
            case "levels":
                return sum(self.loss(x, y) for x, y in zip(logits, labels, strict=True))
            case "divided":
                return self.loss(joined, marks) / positives
            case "divided by an image's":
                return self.loss(joined, marks) * len(joined) / positives
            case "running mean":
                return self.loss(joined, marks) / self.normaliser
            case "flattened":
                return self.loss(joined.reshape(1, -1, self.classes), marks.reshape(1, -1))
            case "detached":
                return self.loss(joined.detach().requires_grad_(), marks)
            case "not called":
                return joined.sigmoid().mean()
            case "sum":
                return 4 * dr_loss(joined, marks, reduction="sum")
        return self.loss(joined, marks)


def images_and_targets():
    images, targets = batch(3)
    targets[2] = {"boxes": torch.rand(3, 4), "labels": torch.tensor([2, 2, 1])}
    return torch.stack(images), targets


def verdicts(report):
    return {finding.name: finding.ok for finding in report.findings}


def test_a_right_plug_is_green_in_every_point():
    report = check(Head(), images_and_targets(), num_classes=3)
    assert all(ok is True for ok in verdicts(report).values()), str(report)
    assert {k: v for k, v in verdicts(check(Head(), images_and_targets())).items() if not v} == {
        "background channel": None  # which the number of classes alone can tell
    }


def test_an_adapted_model_is_believed_to_have_no_background_channel():
    model = adapt(make("retinanet"), background=False)
    images, targets = batch()  # no object of class 0
    assert check(model, (images, targets)).ok
    assert verdicts(check(model, (images, targets), num_classes=CLASSES - 1))["background channel"] is False


@pytest.mark.parametrize("name", MODELS)
def test_adapted_detectors_are_green(name):
    report = check(adapt(make(name)), batch(), num_classes=CLASSES - 1)
    assert report.ok, str(report)
    assert report.findings[0].ok


@pytest.mark.parametrize(
    ("wrong", "name", "words"),
    [
        ("divided", "normaliser", "it was divided by the number of positives, 7; divide it by nothing"),
        ("divided by an image's", "normaliser", "divided by the number of positives of an image, 2.33"),
        ("running mean", "normaliser", "counts 37 times too little: something divides it"),
        ("pooled", "per image", 'scope="pooled" ranks all images in one distribution'),
        ("flattened", "per image", "the loss saw 1 image(s) where the batch has 3"),
        ("levels", "called once", "called 2 times in one step, with 64, 16 anchors"),
        ("background", "background channel", "the logits have 4 channels for 3 classes"),
        ("detached", "gradient", "none arrives at the classifier"),
        ("not called", "called", "never called drloss.dr_loss or DRLoss"),
        ("sigmoid", "logits", "they come out of a sigmoid: give the loss what goes into it"),
        ("softmax", "logits", "they come out of a softmax"),
        ("not finite", "logits", "they are not finite"),
    ],
)
def test_each_wrong_way_is_told_in_words(wrong, name, words):
    report = check(Head(wrong, classes=4 if wrong == "background" else 3), images_and_targets(), num_classes=3)
    assert not report.ok
    assert [finding.name for finding in report.findings if finding.ok is False] == [name], str(report)
    assert words in str(report)
    assert f"WRONG  {name}: " in str(report)


@pytest.mark.parametrize("num_classes", [3, None])
def test_labels_from_zero_that_count_as_background_are_told(num_classes):
    # The head takes 0-based labels as they are, so that its first class is lost and the others are one off.
    images, targets = images_and_targets()
    targets = [{"labels": t["labels"] - 1} for t in targets]

    def step(model, batch):
        return model(batch[0], [{"labels": t["labels"] + 1} for t in batch[1]])

    assert check(Head(), (images, targets), step=step, num_classes=num_classes).ok
    report = check(Head("from zero"), (images, targets), step=step, num_classes=num_classes)
    assert verdicts(report)["background channel"] is False
    assert "objects with label 0 count as background" in str(report)


def test_a_factor_of_ones_own_is_a_question():
    report = check(Head("times 1.1"), images_and_targets())
    assert verdicts(report)["normaliser"] is None
    assert "4.4 times the mean over images: is that a weight of yours?" in str(report)


def test_what_one_batch_cannot_tell_is_a_question():
    class Four(Head):
        def __init__(self):
            super().__init__("function, divided")
            del self.loss

    images, targets = images_and_targets()
    four = (images, [{"labels": torch.tensor([k])} for k in (1, 2)] + [{"labels": torch.tensor([1, 3])}])
    assert "it was divided by the number of positives, 7" in str(check(Four(), (images, targets)))
    report = check(Four(), four)
    assert verdicts(report)["normaliser"] is None
    assert "divided by the number of positives, 4, this loss would be the same" in str(report)
    alone = check(Head("flattened"), (images[:1], targets[:1]))
    assert verdicts(alone)["per image"] is None


def test_a_sum_that_leaves_the_loss_out_is_told():
    def step(left_out):
        def run(model, batch):
            losses = model(*batch)
            total = losses["loss_box"] if left_out else sum(losses.values())
            return {"loss": total, **losses}

        return run

    assert check(Head(), images_and_targets(), step=step(False)).ok
    report = check(Head(), images_and_targets(), step=step(True))
    assert verdicts(report)["gradient"] is False
    assert "leaves the classification loss out" in str(report)


def test_a_loss_in_place_does_not_hide_the_first_score():
    class InPlace(Head):
        def forward(self, images, targets):
            labels = torch.zeros(len(images), 64, dtype=torch.int64)
            labels[:, 3:5] = 2
            return DRLoss(inplace=True)(self.layer(images), labels)

    assert check(InPlace(), images_and_targets()).ok
    report = check(InPlace(prior=0.01), images_and_targets())
    assert verdicts(report)["starting score"] is False


def test_the_images_of_a_batch_are_counted_wherever_they_are():
    images, targets = images_and_targets()

    def step(model, batch):
        return model(images, targets)

    for given in (
        {"batch_idx": torch.zeros(7), "img": images},
        {"inputs": list(images), "data_samples": [None] * 3},
        [{"file_name": "a", "image": image} for image in images],
        (torch.zeros(5, 2), images),
    ):
        assert verdicts(check(Head(), given, step=step))["per image"] is True, given
    assert verdicts(check(Head(), list(zip(images, targets, strict=True)), step=step))["per image"] is True
    assert verdicts(check(Head(), (torch.zeros(5, 3, 8, 8), torch.zeros(2)), step=step))["per image"] is False
    for untold in ((torch.zeros(5, 2), torch.zeros(2)), {"x": [np.zeros(3)]}, object()):
        assert verdicts(check(Head(), untold, step=step))["per image"] is None
    assert verdicts(check(Head(), {"ids": None}, step=step))["per image"] is None


def test_a_background_channel_is_told_from_the_number_of_classes():
    report = check(Head(classes=4), images_and_targets(), num_classes=3)
    assert "the logits have 4 channels for 3 classes" in str(report)
    assert not report.ok


def test_a_prior_of_a_hundredth_is_told_and_a_trained_classifier_is_not_blamed():
    report = check(Head(prior=0.01), images_and_targets())
    assert verdicts(report)["starting score"] is False
    assert re.search(r"starts from a score of 0\.0\d+: set its bias to 0", str(report))
    trained = Head(prior=0.01)
    nn.init.normal_(trained.layer.weight, std=0.1)
    assert verdicts(check(trained, images_and_targets()))["starting score"] is False  # wide weights, the first bias
    nn.init.normal_(trained.layer.bias, mean=-4)
    assert verdicts(check(trained, images_and_targets()))["starting score"] is None
    narrow = Head(prior=0.01)
    nn.init.normal_(narrow.layer.bias, mean=-4.6, std=0.05)  # too alike for one that has been trained
    assert verdicts(check(narrow, images_and_targets()))["starting score"] is False


def test_undecided_anchors_taken_as_background_are_told():
    model = adapt(make("retinanet"))
    head = model.head.classification_head
    head.BETWEEN_THRESHOLDS = -99  # no anchor has it, so that those between the thresholds count as background
    report = check(model, batch(), num_classes=CLASSES - 1)
    assert verdicts(report)["ignored anchors"] is False
    assert "the model's matcher leaves some undecided, between its two thresholds" in str(report)


def test_a_sum_over_images_is_a_question_and_no_fault():
    report = check(Head("sum"), images_and_targets())
    assert report.ok
    assert verdicts(report)["normaliser"] is None


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


def test_the_classification_loss_must_be_told_from_the_others():
    def step(model, batch):
        losses = model(*batch)
        return {"loss_cls": losses["loss_cls"], "loss_cls_2": losses["loss_box"]}

    with pytest.raises(ValueError, match="must name the classification loss, one of loss_cls, loss_cls_2"):
        check(Head(), images_and_targets(), step=step)
    assert check(Head(), images_and_targets(), step=step, classification="loss_cls").ok
    with pytest.raises(ValueError, match="classification must be one of loss_cls, loss_cls_2, got 'cls'"):
        check(Head(), images_and_targets(), step=step, classification="cls")
    with pytest.raises(ValueError, match="must return a tensor or a mapping of tensors, got NoneType"):
        check(Head(), images_and_targets(), step=lambda model, batch: model(*batch) and None)
    for wrong in (lambda model, batch: (model(*batch)["loss_cls"], {}), lambda model, batch: [list(model(*batch))]):
        with pytest.raises(ValueError, match="says how to get the losses"):
            check(Head(), images_and_targets(), step=wrong)


@pytest.mark.parametrize("own", ["loss_cls", "classification", "loss_ce", "ce_loss", "loss_vfl", "ce"])
def test_a_centreness_is_no_classification_loss(own):
    def step(model, batch):
        losses = model(*batch)
        return {own: losses["loss_cls"], "loss_centerness": losses["loss_box"], "centerness_loss": losses["loss_box"]}

    report = check(Head(), images_and_targets(), step=step)
    assert report.ok, str(report)


class Layers(Head):
    """Two decoder layers, each with candidates of its own, and an output like that of transformers."""

    def forward(self, images, targets):
        parts, labels = {}, torch.zeros(len(images), 64, dtype=torch.int64)
        for image, target in enumerate(targets):
            labels[image, : len(target["labels"])] = target["labels"]
        logits = self.layer(images).flatten(2).transpose(1, 2)
        for key in ("loss_ce", "loss_ce_0"):
            parts |= {key: self.put([logits], [labels]), key.replace("ce", "bbox"): logits.sum() * 0}
        return {"loss": sum(parts.values()), "loss_dict": parts, "enc_outputs_class": logits}


def test_a_call_for_each_candidate_set_is_right_where_the_model_says_how_many_it_has():
    report = check(Layers(), images_and_targets())
    assert verdicts(report)["called once"] is False
    assert "says how many in an attribute drloss_calls" in str(report)
    model = Layers()
    model.drloss_calls = 2
    report = check(model, images_and_targets())
    assert report.ok, str(report)
    assert "for each of 2 candidate sets" in str(report)
    assert verdicts(report)["normaliser"] is True
    assert check(model, images_and_targets(), classification="loss_ce").ok
    with pytest.raises(ValueError, match="must be one of loss_ce, loss_bbox, loss_ce_0, loss_bbox_0, got 'loss_cls'"):
        check(model, images_and_targets(), classification="loss_cls")
    model.drloss_calls = 3
    report = check(model, images_and_targets())
    assert "called 2 times in one step, with 64, 64 anchors: the model has 3 candidate sets" in str(report)
    divided = Layers("divided")
    divided.drloss_calls = 2
    assert "it was divided by the number of positives, 7" in str(check(divided, images_and_targets()))


def test_class_labels_from_zero_are_no_background_channel():
    def step(model, batch):
        return model(batch[0], [{"labels": t["class_labels"] + 1} for t in batch[1]])

    images, targets = images_and_targets()
    named = [{"class_labels": t["labels"].clamp(min=2) - 1} for t in targets]  # nothing of the first class
    assert verdicts(check(Head(), (images, named), step=step))["background channel"] is None


def test_maps_and_lists_of_levels_are_read_as_the_loss_reads_them():
    class Maps(Head):
        def forward(self, images, targets):
            levels = [self.layer(images), self.layer(nn.functional.avg_pool2d(images, 2))]
            labels = torch.zeros(len(images), 80, dtype=torch.int64)
            labels[:, 2:4], labels[:, 4] = 2, -1
            return self.loss(levels, labels)

    report = check(Maps(), images_and_targets(), num_classes=3)
    assert report.ok
    assert all(ok is True for ok in verdicts(report).values()), str(report)


def test_a_loss_may_be_made_in_the_step():
    class Made(Head):
        def put(self, logits, labels):
            return DRLoss()(logits, labels)

    assert check(Made(), images_and_targets(), num_classes=3).ok


class Loop(nn.Module):
    """A training loop of one's own: logits and labels of two levels go to a function that makes the loss of them."""

    def __init__(self, put, classes=3, **losses):
        super().__init__()
        torch.manual_seed(0)
        self.put = put
        self.layer = nn.Conv2d(3, classes, 8, stride=8)
        nn.init.normal_(self.layer.weight, std=0.01)
        nn.init.zeros_(self.layer.bias)
        for name, loss in losses.items():
            self.add_module(name, loss)

    def forward(self, images, targets):
        levels = [images, nn.functional.avg_pool2d(images, 2)]
        logits = [self.layer(x).flatten(2).transpose(1, 2) for x in levels]
        labels = [torch.zeros(x.shape[:2], dtype=torch.int64) for x in logits]
        for row, target in zip(labels[0], targets, strict=True):
            count = len(target["labels"])
            row[5 : 5 + count], row[20 : 20 + count] = target["labels"], -1
        return self.put(self, logits, labels)


def joined(levels):
    return torch.cat(levels, dim=1)


def loop(put, **kwargs):
    return Loop(put, loss=DRLoss(), **kwargs)


def divided_beside_a_box_loss(self, logits, labels):
    marks = joined(labels)
    return self.loss(joined(logits), marks) / (marks > 0).sum() + 2.0


def function_divided_beside_a_box_loss(self, logits, labels):
    marks = joined(labels)
    return 4 * dr_loss(joined(logits), marks) / (marks > 0).sum() + 1.0


def weighed_by_positives(self, logits, labels):
    marks = joined(labels)
    counts = (marks > 0).sum(dim=1)
    return 4 * (dr_loss(joined(logits), marks, reduction="none") * counts).sum() / counts.sum()


def rows_mixed(self, logits, labels):
    rows = torch.cat([x.reshape(-1, 3) for x in logits]).reshape(3, -1, 3)
    return self.loss(rows, torch.cat([x.reshape(-1) for x in labels]).reshape(3, -1))


def without_positives(self, logits, labels):
    return self.loss(joined(logits), torch.zeros_like(joined(labels)))


def background_last(self, logits, labels):
    marks = joined(labels)
    return self.loss(joined(logits), torch.where(marks > 0, marks - 1, torch.where(marks == 0, 3, -1)))


def clamped_scores(self, logits, labels):
    return self.loss(joined(logits).sigmoid().clamp(1e-4, 1 - 1e-4), joined(labels))


def scores_times_objectness(self, logits, labels):
    rows = joined(logits)
    return self.loss((rows.sigmoid() * rows[..., :1].sigmoid()).sqrt(), joined(labels))


class HalfOfTheGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient / 2


def halved_on_the_way_back(self, logits, labels):
    return HalfOfTheGradient.apply(self.loss(joined(logits), joined(labels)))


def divided_by_a_running_mean(self, logits, labels):
    if not hasattr(self, "mean"):
        self.register_buffer("mean", torch.zeros(()))
    self.mean.add_((joined(labels) > 0).sum() / 2)
    return self.loss(joined(logits), joined(labels)) / self.mean


def detached_beside_a_box_loss(self, logits, labels):
    rows = joined(logits)
    return self.loss(rows.detach().requires_grad_(), joined(labels)) + rows.pow(2).mean()


@pytest.mark.parametrize(
    ("put", "name", "words"),
    [
        (divided_beside_a_box_loss, "normaliser", "divided by the number of positives, 7"),
        (function_divided_beside_a_box_loss, "normaliser", "divided by the number of positives, 7"),
        (weighed_by_positives, "normaliser", "images count between 3.43 and 5.14 times"),
        (rows_mixed, "per image", "among the logits of image 0 are those of another"),
        (without_positives, "positives", "the targets have objects, but no candidate is a positive"),
        (background_last, "positives", "not 0..K-1 with K for background"),
        (clamped_scores, "logits", "they come out of a sigmoid"),
        (scores_times_objectness, "logits", "they come out of a sigmoid"),
        (halved_on_the_way_back, "normaliser", "counts 2 times too little"),
        (divided_by_a_running_mean, "normaliser", "counts 3.5 times too little"),
        (detached_beside_a_box_loss, "gradient", "none arrives at the classifier"),
    ],
)
def test_what_the_value_alone_does_not_show_is_told(put, name, words):
    report = check(loop(put), images_and_targets(), num_classes=3)
    assert [finding.name for finding in report.findings if finding.ok is False] == [name], str(report)
    assert words in str(report)


def test_a_sum_that_divides_or_forgets_the_loss_is_told():
    model = adapt(make("retinanet"))
    images, targets = batch()
    boxes = sum(len(t["labels"]) for t in targets)
    for factor, name in ((1 / boxes, "normaliser"), (0, "gradient")):

        def step(model, batch, factor=factor):
            losses = model(*batch)
            return {"loss": factor * losses["classification"] + losses["bbox_regression"], **losses}

        report = check(model, (images, targets), step=step, num_classes=CLASSES - 1)
        assert [finding.name for finding in report.findings if finding.ok is False] == [name], str(report)


def image_by_image(self, logits, labels):
    rows, marks = joined(logits), joined(labels)
    return sum(self.loss(rows[i : i + 1], marks[i : i + 1]) for i in range(len(rows))) / len(rows)


def with_another_look(self, logits, labels):
    with torch.no_grad():
        self.last = dr_loss(joined(logits), joined(labels), reduction="none")
    return self.loss(joined(logits), joined(labels))


def sum_divided_by_the_images(self, logits, labels):
    return 4 * dr_loss(joined(logits), joined(labels), reduction="sum") / len(logits[0])


def parts_logged(self, logits, labels):
    loss = self.loss(joined(logits), joined(labels))
    return {"loss": loss, "loss_cls": loss.detach(), "loss_box": loss.detach()}


def alone_in_a_mapping(self, logits, labels):
    return {"loss": self.loss(joined(logits), joined(labels)).expand(1)}


def scaled_by_a_gate(self, logits, labels):
    rows = joined(logits)
    return self.loss(rows * rows.mean(dim=1, keepdim=True).sigmoid(), joined(labels))


def ignored_at_minus_infinity(self, logits, labels):
    marks = joined(labels)
    return self.loss(joined(logits).masked_fill((marks < 0).unsqueeze(2), -torch.inf), marks)


RIGHT = [image_by_image, with_another_look, sum_divided_by_the_images, parts_logged, alone_in_a_mapping]


@pytest.mark.parametrize("put", [*RIGHT, scaled_by_a_gate, ignored_at_minus_infinity])
def test_what_is_right_in_another_way_is_not_blamed(put):
    report = check(loop(put), images_and_targets(), num_classes=3)
    assert all(ok is True for ok in verdicts(report).values()), str(report)
    assert verdicts(check(loop(put), images_and_targets()[0:2], num_classes=3))["called once"] is True


def test_a_weight_of_the_module_is_known_wherever_the_module_is():
    criterion = DRLoss(cls_weight=0.5)
    report = check(Loop(lambda self, x, y: criterion(joined(x), joined(y))), images_and_targets(), num_classes=3)
    assert verdicts(report)["normaliser"] is True, str(report)
    quarter = Loop(lambda self, x, y: DRLoss()(joined(x), joined(y)) / 4)
    assert "counts 4 times too little" in str(check(quarter, images_and_targets()))


def test_an_adapted_model_whose_batch_leaves_no_anchor_undecided_is_not_blamed():
    images = [torch.rand(3, 64, 64) for _ in range(2)]
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    report = check(adapt(make("retinanet")), (images, [empty, empty]))
    assert report.ok, str(report)
    assert verdicts(report)["ignored anchors"] is None


def test_models_that_mix_images_and_steps_that_write_into_them_are_not_blamed():
    class Mixing(Loop):
        def forward(self, images, targets):
            return super().forward(0.9 * images + 0.1 * images.flip(0), targets)

    def put(self, x, y):
        return self.loss(joined(x), joined(y))

    def written(model, batch):
        with torch.no_grad():
            batch[0].sub_(0.5)
        return model(*batch)

    mixing, norm = Mixing(put, loss=DRLoss()), nn.BatchNorm2d(3, track_running_stats=False)
    normed = nn.Sequential(norm, loop(put))
    for model, step in (
        (mixing, None),
        (normed, lambda m, b: m[1](m[0](b[0]), b[1])),
        (loop(put), written),
    ):
        report = check(model, images_and_targets(), step=step, num_classes=3)
        assert report.ok, str(report)


def test_labels_of_anchors_and_padding_are_no_labels_from_zero():
    images, targets = images_and_targets()
    model = loop(lambda self, x, y: self.loss(joined(x), joined(y)))
    padded = [{"labels": torch.cat([t["labels"].clamp(max=2), torch.zeros(2, dtype=torch.int64)])} for t in targets]
    report = check(model, (images, padded), step=lambda m, b: m(b[0], targets_of(b[1])))
    assert verdicts(report)["background channel"] is None, str(report)
    dense = [{"labels": torch.zeros(80, dtype=torch.int64)} for _ in targets]
    report = check(model, (images, dense), step=lambda m, b: m(b[0], targets), num_classes=3)
    assert report.ok, str(report)


def targets_of(padded):
    return [{"labels": t["labels"][t["labels"] > 0]} for t in padded]


def test_large_objects_and_images_of_several_sizes_make_questions():
    def half(self, x, y):
        marks = joined(y)
        marks[:, 10:70] = 1
        return self.loss(joined(x), marks)

    report = check(loop(half), images_and_targets(), num_classes=3)
    assert verdicts(report)["positives"] is None
    images = [torch.rand(3, 64, 64), torch.rand(3, 48, 64), torch.rand(3, 64, 72)]
    targets = images_and_targets()[1]
    model = loop(lambda self, x, y: self.loss(joined(x), joined(y)))

    def one_by_one(model, batch):
        return sum(model(x[None], [t]) for x, t in zip(*batch, strict=True)) / 3

    assert verdicts(check(model, (images, targets), step=one_by_one)) == {"called once": None, "logits": True}


def test_classes_that_the_batch_lacks_make_a_question_and_no_fault():
    def step(model, batch):
        return model(batch[0], [{"labels": t["labels"] + 1} for t in batch[1]])

    images, _ = images_and_targets()
    batch_without_class_0 = images, [{"labels": torch.tensor([1])}] * 3
    model = loop(lambda self, x, y: self.loss(joined(x), joined(y)))
    report = check(model, batch_without_class_0, step=step)
    assert verdicts(report)["background channel"] is None
    assert "is the background's if your labels begin at 1; num_classes would tell" in str(report)


@pytest.mark.filterwarnings("ignore")  # of the compiler
def test_a_compiled_step_is_seen_as_it_is():
    model = loop(lambda self, x, y: self.loss(joined(x), joined(y)))
    report = check(torch.compile(model, backend="aot_eager"), images_and_targets(), num_classes=3)
    assert all(ok is True for ok in verdicts(report).values()), str(report)


def test_batch_norm_does_not_mix_the_images():
    model = nn.Sequential(nn.BatchNorm2d(3), loop(lambda self, x, y: self.loss(joined(x), joined(y))))
    model[0].eval()  # frozen, and so it is to stay
    modes = []

    def step(model, batch):
        modes.append(model[0].training)
        return model[1](model[0](batch[0]), batch[1])

    report = check(model, images_and_targets(), step=step, num_classes=3)
    assert "a distribution each, with logits of its own" in str(report)
    assert not any(modes)
    assert not images_and_targets()[0].requires_grad


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


def test_another_loss_of_this_package_is_named():
    report = check(adapt(make("retinanet"), "focal"), batch())
    assert "the model has FocalLoss, and check looks at the DR loss alone" in str(report)


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


def test_a_batch_is_given_to_a_model_as_it_takes_it():
    images, targets = images_and_targets()

    def put(self, x, y):
        return self.loss(joined(x), joined(y))

    class One(Loop):
        def forward(self, batch):
            return super().forward(batch["images"], batch["targets"])

    class Images(Loop):
        def forward(self, images):
            return super().forward(images, targets)

    class Pairs(Loop):
        def forward(self, pairs):
            return super().forward(torch.stack([image for image, _ in pairs]), [target for _, target in pairs])

    class Item(Loop):
        def forward(self, item):
            return super().forward(item.images, item.targets)

    for kind, given in (
        (One, {"images": images, "targets": targets}),
        (Images, images),
        (Pairs, list(zip(images, targets, strict=True))),
        (Loop, {"images": images, "targets": targets}),
    ):
        report = check(kind(put, loss=DRLoss()), given, num_classes=3)
        assert all(ok is True for ok in verdicts(report).values()), str(report)
    report = check(Item(put, loss=DRLoss()), SimpleNamespace(images=images, targets=targets), num_classes=3)
    assert report.ok, str(report)
    with pytest.raises(AssertionError, match="targets should not be none"):
        check(adapt(make("retinanet")), [])  # torchvision's own words for a batch of nothing


def test_a_module_that_answers_to_every_name_declares_nothing():
    class Mimic(nn.Module):
        def __getattr__(self, name):
            try:
                return super().__getattr__(name)
            except AttributeError:
                return lambda *args: None

    model = loop(lambda self, x, y: self.loss(joined(x), joined(y)))
    model.other = Mimic()
    report = check(model, images_and_targets(), num_classes=3)
    assert all(ok is True for ok in verdicts(report).values()), str(report)


def test_steps_in_several_threads_do_not_see_each_other():
    class Trains(Thread):
        """Calls of a thread that had begun before."""

        def __init__(self):
            super().__init__(daemon=True)
            self.goes_on = True

        def run(self):
            while self.goes_on:
                DRLoss()(torch.zeros(1, 3, 2), torch.zeros(1, 3, dtype=torch.int64))

    def right(_):
        return check(loop(lambda self, x, y: self.loss(joined(x), joined(y))), images_and_targets(), num_classes=3)

    trains = Trains()
    trains.start()
    try:
        with ThreadPoolExecutor(3) as pool:
            for report in pool.map(right, range(6)):
                assert all(ok is True for ok in verdicts(report).values()), str(report)
    finally:
        trains.goes_on = False
        trains.join()


def test_a_step_may_have_threads_of_its_own():
    def put(self, x, y):
        with ThreadPoolExecutor(1) as pool:  # as DataParallel's replicas
            return pool.submit(self.loss, joined(x), joined(y)).result()

    report = check(loop(put), images_and_targets(), num_classes=3)
    assert all(ok is True for ok in verdicts(report).values()), str(report)
