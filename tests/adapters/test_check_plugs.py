"""drloss.check: losses that are put on a detector rightly and wrongly in less common ways."""

import pytest
import torch
from torch import nn

from drloss import DRLoss, check, dr_loss
from drloss.adapters import adapt
from small_detectors import CLASSES, batch, make
from small_plugs import Loop, images_and_targets, joined, loop, verdicts


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
