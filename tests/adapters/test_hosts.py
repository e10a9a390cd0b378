"""What every adapter does to its host's detector: the same properties for each."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

import small_hosts
from adapted import adapt, as_list, classes_in, classification, for_check
from drloss import DRLoss, adapters, check, dr_loss
from drloss.adapters.classifier import is_untrained
from drloss.losses.call_log import record_calls
from small_hosts import CLASSES, HOSTS, LABELS, SIZE, Host

pytestmark = pytest.mark.filterwarnings("ignore")
"""Hosts warn of much that is their own."""


@pytest.fixture(params=HOSTS)
def host(request) -> Host:
    HOSTS[request.param].make()  # skips where the host is absent
    return HOSTS[request.param]


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


def test_each_positive_has_the_index_of_its_object(host):
    if isinstance(host.make(), small_hosts.OneHead):  # mmdetection's
        with pytest.raises(ValueError, match="must not need objects"):
            adapt(host, loss="dr:pos_prior=object")
        return
    model = adapt(host, loss="dr:pos_prior=object")
    with record_calls() as calls:
        host.step(model, host.batch())
    assert len(calls) == host.sets
    for call in calls:
        labels, objects = (torch.cat(as_list(x), dim=1) for x in (call.labels, call.options["objects"]))
        for image, own in enumerate(LABELS):
            pairs = {(int(y), int(index)) for y, index in zip(labels[image], objects[image], strict=True) if y > 0}
            assert sorted(y for y, _ in pairs) == sorted(c + 1 for c in own)  # as many objects as there are boxes
            assert len({index for _, index in pairs}) == len(own)


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
