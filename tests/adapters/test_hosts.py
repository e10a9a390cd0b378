"""What every adapter does to its host's detector: the same properties for each."""

import copy
import logging
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

import small_hosts
from drloss import DRLoss, adapters, check, dr_loss
from drloss.adapters.classifier import is_untrained
from drloss.losses.call_log import record_calls
from small_hosts import CLASSES, HOSTS, LABELS, SIZE, Host

pytestmark = pytest.mark.filterwarnings("ignore")
"""Hosts warn of much that is their own."""


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.INFO)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(params=HOSTS)
def host(request) -> Host:
    HOSTS[request.param].make()  # skips where the host is absent
    return HOSTS[request.param]


def adapt(host, model=None, *args, **options):
    """A detector of the host, a new one by default, with our loss."""
    model = host.make() if model is None else model
    adapters.adapt(host.part(model), *args, **options)
    return model


def classification(host, losses):
    return {key: value for key, value in losses.items() if host.cls in key}


def for_check(host):
    """The step as ``check`` wants it: the host's losses, those of a DETR's layers summed up."""

    def step(model, batch):
        losses = host.step(model, batch)
        own = classification(host, losses)
        return losses if len(own) == 1 else {"cls": sum(own.values())}

    return step


def test_each_set_of_candidates_is_one_call_with_all_images_and_the_object_classes(host):
    model = adapt(host)
    with record_calls() as calls:
        losses = host.step(model, host.batch())
    assert len(calls) == host.sets
    values = classification(host, losses)
    for call in calls:
        logits = torch.cat([x.flatten(2) if x.ndim == 4 else x.transpose(1, 2) for x in as_list(call.logits)], dim=2)
        assert len(logits) == len(LABELS)
        present = classes_in(call)
        for image, own in enumerate(LABELS):
            assert present[image] == {c + 1 for c in own}
        assert all(x.shape[2] == CLASSES for x in as_list(call.logits) if x.ndim == 3)
    if host.sets == len(values):
        for call, value in zip(calls, values.values(), strict=True):
            assert value.item() == pytest.approx(4 * call.value.item(), rel=1e-5)
            again = dr_loss(call.logits, call.labels, **call.options)
            assert value.item() == pytest.approx(4 * again.item(), rel=1e-5)


def as_list(value):
    return [value] if isinstance(value, torch.Tensor) else list(value)


def classes_in(call):
    """Of each image the set of its positive candidates' classes, 1..K."""
    marks = torch.cat(as_list(call.labels), dim=1)
    if marks.ndim == 3:
        return [{int(c) + 1 for c in own.any(dim=0).nonzero().flatten()} for own in marks > 0]
    return [set(own[own > 0].tolist()) for own in marks]


def test_the_other_losses_are_the_hosts(host):
    plain = host.make()
    adapted = adapt(host, copy.deepcopy(plain), reset=False)
    torch.manual_seed(1)
    wanted = host.step(plain, host.batch())
    torch.manual_seed(1)
    found = host.step(adapted, host.batch())
    assert wanted.keys() == found.keys()
    others = wanted.keys() - classification(host, wanted).keys()
    assert others
    for key in others:
        torch.testing.assert_close(found[key], wanted[key], msg=key)


def test_the_gradient_of_the_others_is_the_hosts(host):
    """With our loss weighted 0, what remains is the host's boxes' loss."""
    plain = host.make()
    adapted = adapt(host, copy.deepcopy(plain), DRLoss(cls_weight=1e-20), reset=False)
    gradients = []
    for model in (plain, adapted):
        torch.manual_seed(1)
        losses = host.step(model, host.batch())
        if model is plain:
            losses = {k: v for k, v in losses.items() if host.cls not in k}
        sum(losses.values()).backward()
        gradients.append({n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    assert any(bool(g.any()) for g in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_an_untrained_classifier_starts_at_a_half_and_a_trained_one_stays(host):
    model = adapt(host)
    assert host.layers(model)
    assert all((layer.bias == 0).all() for layer in host.layers(model))
    trained = host.make()
    with torch.no_grad():
        for layer in host.layers(trained):
            layer.bias += torch.linspace(0, 1, len(layer.bias))
    before = {key: value.clone() for key, value in trained.state_dict().items()}
    adapt(host, trained)
    after = trained.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    adapt(host, trained, "focal", reset=True)
    assert all(layer.bias[0].sigmoid().item() == pytest.approx(0.01, rel=1e-4) for layer in host.layers(trained))


ONE_CLASS = [name for name in HOSTS if "detr" not in name]  # their layers are shared: test_transformers has them


@pytest.mark.parametrize("name", ONE_CLASS)
def test_one_class_alone_is_reset_only_where_its_bias_is_one_that_classifiers_start_from(name, monkeypatch):
    monkeypatch.setattr(small_hosts, "CLASSES", 1)
    host = HOSTS[name]
    model = adapt(host)
    if name.startswith("mmdet"):
        model.bbox_head.init_weights()  # as a runner does
    assert all((layer.bias == 0).all() for layer in host.layers(model))
    trained = host.make()
    with torch.no_grad():
        for layer in host.layers(trained):
            layer.bias.copy_(torch.linspace(-2.7, -2.6, len(layer.bias)))
    before = [layer.bias.clone() for layer in host.layers(trained)]
    adapt(host, trained)
    assert all(torch.equal(layer.bias, b) for layer, b in zip(host.layers(trained), before, strict=True))


def test_check_is_green(host):
    report = check(adapt(host), host.batch(), num_classes=CLASSES, step=for_check(host))
    assert report.ok, str(report)
    assert report.findings[0].ok, str(report)


def test_training_lowers_the_loss(host):
    model = adapt(host, None, DRLoss(neg_lambda=0.1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    seen = []
    for _ in range(40):
        losses = host.step(model, host.batch())
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        seen.append(float(sum(classification(host, losses).values())))
        if seen[-1] < 0.8 * seen[0]:
            return
    pytest.fail(f"{seen[0]} {seen[-1]}")


def test_adapting_again_changes_the_loss_alone(host):
    model = adapt(host, adapt(host, None, "focal"), DRLoss(neg_lambda=0.1))
    assert [m.neg_lambda for m in model.modules() if isinstance(m, DRLoss)] == [0.1]
    with record_calls() as calls:
        host.step(model, host.batch())
    assert len(calls) == host.sets


def test_copies_and_pickles_are_adapted_too(host):
    model = adapt(host)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert all(torch.equal(other.state_dict()[key], value) for key, value in model.state_dict().items())
        with record_calls() as calls:
            host.step(other, host.batch())
        assert len(calls) == host.sets


# ------------------------------------------------------------------------ mmdetection


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


# ------------------------------------------------------------------------ detectron2


def test_detectron2s_running_mean_is_told():
    host = HOSTS["detectron2-retinanet"]
    model = adapt(host)
    right = type(model).losses

    class Divided(type(model)):
        def losses(self, *args):
            losses = right(self, *args)
            return {**losses, "loss_cls": losses["loss_cls"] / self.loss_normalizer}

    model.__class__ = Divided
    report = check(model, host.batch(), num_classes=CLASSES, step=for_check(host))
    assert not report.ok
    assert "something divides it, such as a running mean of the number of positives" in str(report)


def test_check_takes_what_a_loader_of_detectron2_gives():
    model = adapt(HOSTS["detectron2-fcos"])
    report = check(model, HOSTS["detectron2-fcos"].batch()[0], num_classes=CLASSES)
    assert report.ok, str(report)
    before = model.loss_normalizer
    check(model, HOSTS["detectron2-fcos"].batch()[0])
    assert model.loss_normalizer == before


def test_detectron2s_neither_and_background_are_taken_as_such():
    host = HOSTS["detectron2-fcos"]
    model = adapt(host)
    with record_calls() as calls:
        host.step(model, host.batch())
    marks = torch.cat(as_list(calls[0].labels), dim=1)
    assert marks.shape == (3, 80)
    assert marks[0, [9, 66]].tolist() == [3, 3]
    assert marks[1, [9, 10, 66, 67]].tolist() == [1, 2, 1, 2]
    assert marks[:, 20].tolist() == [-1, -1, 0]
    assert (marks != 0).sum() == 8


# ------------------------------------------------------------------------ ultralytics


def test_ultralytics_multiplies_all_losses_by_the_images():
    host = HOSTS["yolov8"]
    model = adapt(host)
    with record_calls() as calls:
        loss, items = model(host.batch())
    assert loss[1].item() == pytest.approx(len(LABELS) * 4 * calls[0].value.item(), rel=1e-6)
    assert items["cls_loss"].item() == pytest.approx(4 * calls[0].value.item(), rel=1e-6)


@pytest.mark.parametrize("name", ["yolov8", "yolo26"])
def test_what_ultralytics_assigns_to_an_object_is_positive(name):
    host = HOSTS[name]
    plain = host.make()
    adapted = adapt(host, copy.deepcopy(plain), reset=False)
    plain.criterion = plain.init_criterion()
    assigned = []
    parts = [plain.criterion] if name == "yolov8" else [plain.criterion.one2many, plain.criterion.one2one]
    for part in parts:
        part.bce.register_forward_hook(lambda module, args, output: assigned.append(args))
    torch.manual_seed(0)
    host.step(plain, host.batch())
    torch.manual_seed(0)
    with record_calls() as calls:
        host.step(adapted, host.batch())
    assert len(calls) == len(assigned)
    for call, (scores, targets) in zip(calls, assigned, strict=True):
        torch.testing.assert_close(call.logits, scores)
        assert (targets[targets > 0] < 0.9 * targets.max()).any()  # soft ones are among them
        assert torch.equal(call.labels > 0, targets > 0)


def test_a_yolo_that_has_been_trained_with_its_own_loss_has_ours_from_then_on():
    host = HOSTS["yolov8"]
    model = host.make()
    host.step(model, host.batch())
    adapt(host, model)
    with record_calls() as calls:
        host.step(model, host.batch())
    assert len(calls) == 1


def test_class_weights_of_ultralytics_are_refused():
    host = HOSTS["yolov8"]
    model = adapt(host)
    model.class_weights = torch.ones(CLASSES)
    with pytest.raises(ValueError, match="cls_pw must be 0"):
        host.step(model, host.batch())


@pytest.mark.parametrize("name", ["yolov8", "yolo26"])
def test_check_takes_what_a_loader_of_ultralytics_gives_and_leaves_no_criterion(name):
    host = HOSTS[name]
    model = adapt(host)
    batch = host.batch()
    # Sorted as its loader sorts it, with more boxes than images.
    batch |= {key: torch.cat([batch[key], batch[key][-1:]]) for key in ("batch_idx", "cls", "bboxes")}
    report = check(model, dict(sorted(batch.items())), num_classes=CLASSES)
    assert report.ok, str(report)
    assert all(f.ok for f in report.findings if f.name != "ignored anchors"), str(report)
    assert model.criterion is None
    with pytest.raises(ValueError, match="says how to get the losses"):
        check(model, (batch,))


def test_ultralytics_trainer_trains_saves_and_goes_on(tmp_path):
    small_hosts.needs("ultralytics")
    from PIL import Image
    from ultralytics import YOLO
    from ultralytics.models.yolo.detect import DetectionTrainer

    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for index in range(4):
        image = Image.new("RGB", (SIZE, SIZE), "black")
        image.paste("white", (12, 10, 44, 40))
        image.save(tmp_path / "images" / f"{index}.png")
        (tmp_path / "labels" / f"{index}.txt").write_text(f"0 {28 / SIZE} {25 / SIZE} {32 / SIZE} {30 / SIZE}\n")
    (tmp_path / "data.yaml").write_text(f"path: {tmp_path}\ntrain: images\nval: images\nnames: {{0: square}}\n")
    starts = []

    class DRTrainer(DetectionTrainer):
        def get_model(self, *args, **kwargs):
            model = adapters.adapt(super().get_model(*args, **kwargs))
            starts.append([level[-1].bias.item() for level in model.model[-1].cv3])
            return model

    def train(weights, name):
        YOLO(weights).train(
            **{"data": tmp_path / "data.yaml", "imgsz": SIZE, "batch": 2, "epochs": 1, "workers": 0, "device": "cpu"},
            **{"project": tmp_path / "runs", "name": name, "plots": False, "amp": False, "verbose": False},
            trainer=DRTrainer,
        )
        return tmp_path / "runs" / name / "weights" / "last.pt"

    with record_calls() as calls:
        last = train("yolov8n.yaml", "first")
    assert [len(call.logits) for call in calls][:2] == [2, 2]
    with torch.no_grad():
        trained = YOLO(last).model
        for level in trained.model[-1].cv3:
            level[-1].bias.fill_(-2.7)
    saved = torch.load(last, weights_only=False)
    saved["model"] = trained
    torch.save(saved, last)
    train(last, "second")
    assert starts[0] == [0, 0, 0]
    assert starts[1] == pytest.approx([-2.7, -2.7, -2.7], abs=0.01)  # one class: that of a trained head stays


def test_a_trainer_of_ultralytics_can_set_its_settings_after_adapting():
    host = HOSTS["yolov8"]
    model = host.make()
    settings = model.args
    del model.args
    adapt(host, model)
    model.args = settings
    assert host.step(model, host.batch())["loss_cls"] > 0


# ------------------------------------------------------------------------ effdet


def test_effdets_neither_is_ignored():
    host = HOSTS["effdet"]
    bench = adapt(host)
    outputs = bench.model(host.batch()[0])
    levels = [x.shape[2:] for x in outputs[0]]
    anchors = outputs[0][0].shape[1] // CLASSES
    targets = [torch.full((3, *size, anchors), -1) for size in levels]
    targets[0][0, 1, 2, 3], targets[0][0, 3, 2, 1] = 1, -2
    boxes = [torch.zeros(3, *size, 4 * anchors) for size in levels]
    with record_calls() as calls:
        total, cls, box = bench.loss_fn(*outputs, targets, boxes, torch.ones(3))
    marks = calls[0].labels
    width = levels[0][1]
    assert marks[0, (width + 2) * anchors + 3] == 2
    assert marks[0, (3 * width + 2) * anchors + 1] == -1
    assert (marks != 0).sum() == 2
    torch.testing.assert_close(total, cls + bench.loss_fn.box_loss_weight * box)


def test_effdets_total_has_the_boxes_in_it():
    host = HOSTS["effdet"]
    plain = host.make()
    adapted = adapt(host, copy.deepcopy(plain), reset=False)
    wanted, found = plain(*host.batch()), adapted(*host.batch())
    assert found["box_loss"] > 0
    torch.testing.assert_close(found["loss"] - found["class_loss"], wanted["loss"] - wanted["class_loss"])
    assert check(adapt(host), host.batch(), num_classes=CLASSES).ok


# ------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("name", ["mmdet-retina", "detectron2-fcos", "yolov8", "effdet"])
def test_a_class_that_may_differ_is_refused(name):
    model = HOSTS[name].make()
    part = {"mmdet-retina": "bbox_head", "effdet": "loss_fn"}.get(name)
    holder = getattr(model, part) if part else model
    holder.__class__ = type("Own", (type(holder),), {"__module__": type(holder).__module__})
    with pytest.raises(TypeError, match="not Own, which may differ"):
        adapt(HOSTS[name], model)


def test_absent_hosts_are_said_with_what_to_install():
    hosts = [host for host in adapters.HOSTS if host != "torchvision"]
    code = f"""
import importlib, sys
for host in {hosts}:
    sys.modules[host] = None
    try:
        importlib.import_module(f"drloss.adapters.{{host}}")
    except ImportError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    said = done.stdout.splitlines()
    assert len(said) == len(hosts)
    for host, words in zip(hosts, said, strict=True):
        assert words.startswith(f"drloss.adapters.{host} needs ")
        assert "pip install " in words


def test_an_untrained_classifier_is_one_whose_biases_are_all_the_same():
    assert is_untrained([nn.Conv2d(2, SIZE, 1, bias=False)])
    layer = nn.Conv2d(2, SIZE, 1)
    assert not is_untrained([layer])
    nn.init.constant_(layer.bias, -4.6)
    assert is_untrained([layer])
