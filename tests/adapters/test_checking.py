"""drloss.check: green on what is right, and the right words on each way to get it wrong."""

import re
from concurrent.futures import ThreadPoolExecutor
from threading import Thread
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from drloss import DRLoss, check
from drloss.adapters import adapt
from small_detectors import CLASSES, MODELS, batch, make
from small_plugs import Head, Layers, Loop, images_and_targets, joined, loop, verdicts


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


def test_a_hosts_detector_that_is_not_adapted_is_told_how():
    model = make("retinanet")
    how = "; drloss.adapt(model) does that in the detectors of torchvision that it knows"
    assert str(check(model, batch())).endswith(f"put it where the classification loss is computed{how}")
    adapt(model)
    report = check(model, batch(), step=lambda model, batch: next(model.parameters()).sum())
    assert str(report).endswith("put it where the classification loss is computed")


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


def test_a_batch_that_a_model_cannot_take_asks_for_the_step():
    images, targets = images_and_targets()
    with pytest.raises(TypeError) as raised:
        check(Head(), {"pictures": images, "targets": targets})
    assert "step=lambda model, batch: ... says how else" in raised.value.__notes__[0]
    with pytest.raises(ZeroDivisionError) as raised:
        check(Head(), (images, targets), step=lambda model, batch: 1 / 0)
    assert not hasattr(raised.value, "__notes__")


def test_a_number_of_classes_that_counts_the_background_is_told():
    report = check(Head(classes=3), images_and_targets(), num_classes=4)
    assert verdicts(report)["background channel"] is False
    assert "num_classes is the number of object classes, without a background" in str(report)


def test_a_classifier_that_was_not_reset_is_told_how():
    model = make("retinanet")
    nn.init.normal_(model.head.classification_head.cls_logits.weight, std=0.01)
    report = check(adapt(model, reset=False), batch())
    assert "adapt(model, reset=True) sets its bias to 0" in str(report)


def test_another_loss_of_this_package_is_named():
    report = check(adapt(make("retinanet"), "focal"), batch())
    assert "the model has FocalLoss, and check looks at the DR loss alone" in str(report)


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
