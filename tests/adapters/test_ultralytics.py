"""What the adapter does to ultralytics' detectors alone."""

import copy

import pytest
import torch

import small_hosts
from adapted import adapt
from drloss import adapters, check
from drloss.losses.call_log import record_calls
from small_hosts import CLASSES, HOSTS, LABELS, SIZE

pytestmark = pytest.mark.filterwarnings("ignore")
"""Hosts warn of much that is their own."""


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
