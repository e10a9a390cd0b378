import json
import pickle
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models

from drloss.detector.config import DetectorConfig
from drloss.detector.exported import DetectorFile, load_detector, parse_description, read_description, save_detector
from drloss.detector.model import RetinaNet
from drloss.detector.starting_weights import initialise, resolve_detector
from drloss.errors import UserError

SMALL = DetectorConfig(
    backbone="resnet10", norm="group", fpn_channels=32, top_level=5, head_depth=1, head_channels=32, anchor_scale=2.0
)

NAMES = ("cat", "dog")


def about(config=SMALL, names=("cat", "dog")):
    return DetectorFile(config, tuple(names), tuple(range(1, len(names) + 1)), "dr")


def exported(folder, names=("cat", "dog"), config=SMALL):
    model = RetinaNet(config, len(names), 0.5)
    path = folder / "model.safetensors"
    save_detector(path, model.state_dict(), about(config, names))
    return path, model


def test_an_exported_detector_comes_back_the_same(tmp_path):
    path, model = exported(tmp_path)
    loaded, description = load_detector(path)
    assert description == about()
    assert not loaded.training
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    for ours, theirs in zip(loaded(images).logits, model.eval()(images).logits, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("names", [("a", "b", "c", "d", "e"), ("cat", "cow")])
def test_a_detector_can_start_one_with_other_classes(tmp_path, names):
    path, old = exported(tmp_path)
    torch.manual_seed(1)
    new = RetinaNet(SMALL, len(names), 0.5)
    fresh = new.cls_head.predict.weight.clone()
    said = initialise(new, str(path), names).words
    assert "last layer" in said
    assert torch.equal(new.cls_head.predict.weight, fresh)
    assert torch.equal(new.box_head.predict.weight, old.box_head.predict.weight)
    assert torch.equal(new.backbone.body.conv1.weight, old.backbone.body.conv1.weight)


def test_a_detector_with_the_same_classes_starts_whole(tmp_path):
    path, old = exported(tmp_path)
    new = RetinaNet(SMALL, 2, 0.5)
    assert "last layer" not in initialise(new, str(path), NAMES).words
    assert torch.equal(new.cls_head.predict.weight, old.cls_head.predict.weight)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_backbone_weights_of_a_classifier_file_are_used(tmp_path, suffix):
    torch.manual_seed(0)
    classifier = models.resnet18()
    path = tmp_path / f"resnet18{suffix}"
    save_file(classifier.state_dict(), path) if suffix == ".safetensors" else torch.save(
        classifier.state_dict(), path
    )
    config = replace(SMALL, backbone="resnet18", norm="auto")
    config = resolve_detector(config, str(path))
    assert config.norm == "frozen"
    model = RetinaNet(config, 2, 0.5)
    initialise(model, str(path), NAMES)
    assert torch.equal(model.backbone.body.layer4[1].conv2.weight, classifier.layer4[1].conv2.weight)
    assert torch.equal(model.backbone.body.bn1.running_mean, classifier.bn1.running_mean)


def test_norm_follows_the_weights(tmp_path):
    auto = replace(SMALL, norm="auto")
    path, _ = exported(tmp_path)
    assert resolve_detector(auto, "none").norm == "group"
    assert resolve_detector(auto, "imagenet").norm == "frozen"
    assert resolve_detector(auto, str(path)).norm == "group"
    assert resolve_detector(replace(SMALL, norm="frozen"), "none").norm == "frozen"


def test_weights_that_do_not_fit_are_named(tmp_path):
    torch.save(models.resnet18().state_dict(), tmp_path / "r18.pth")
    with pytest.raises(
        UserError,
        match=r"r18\.pth: its backbone is no resnet10 .* fits --backbone resnet18 --norm fro",
    ):
        initialise(RetinaNet(SMALL, 2, 0.5), str(tmp_path / "r18.pth"), NAMES)
    with pytest.raises(UserError, match="none for resnet10"):
        initialise(RetinaNet(SMALL, 2, 0.5), "imagenet", NAMES)


class Harmful:
    def __reduce__(self):
        return (open, ("harmed", "w"))


def test_a_pickle_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Harmful()}, "evil.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Harmful(), protocol=2))
    for name in ("evil.pth", "raw.pth"):
        with pytest.raises(UserError, match=name):
            initialise(RetinaNet(SMALL, 2, 0.5), name, NAMES)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("content", [b"", b"not a safetensors file", b"\xff" * 100])
def test_a_damaged_file_is_named(tmp_path, content):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.safetensors"):
        load_detector(path)


def test_other_safetensors_files_are_not_taken_for_detectors(tmp_path):
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="not a detector exported by drloss"):
        load_detector(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="no such file"):
        load_detector(tmp_path / "missing.safetensors")


def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch):
    path, _ = exported(tmp_path)
    before = path.read_bytes()

    def fail(tensors, target, metadata):
        target.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("drloss.detector.exported.save_file", fail)
    with pytest.raises(UserError, match="no space"):
        save_detector(path, RetinaNet(SMALL, 2, 0.5).state_dict(), about())
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_how_long_a_detector_was_trained_comes_back(tmp_path):
    model = RetinaNet(SMALL, 2, 0.5)
    trained = replace(about(), iteration=300, ap=41.5)
    save_detector(tmp_path / "a.safetensors", model.state_dict(), trained)
    assert read_description(tmp_path / "a.safetensors") == trained
    plain = json.loads(json.dumps(asdict(trained)))
    for wrong in ({"iteration": -1}, {"iteration": True}, {"iteration": "3"}, {"ap": "high"}, {"ap": float("nan")}):
        with pytest.raises(UserError, match=f"description cannot be read: {next(iter(wrong))} must be null or"):
            parse_description(plain | wrong, tmp_path / "a.safetensors")
