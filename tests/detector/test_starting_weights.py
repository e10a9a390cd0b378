"""Which weights a new detector loads from the files of other programs, and what it prints about them."""

import re
import urllib.error
from dataclasses import replace

import pytest
import torch
import torchvision
from torchvision.models import detection

from drloss.cli import main
from drloss.detector.config import DetectorConfig
from drloss.detector.exported import DetectorFile, save_detector
from drloss.detector.model import RetinaNet
from drloss.detector.starting_weights import PARTS, initialise, resolve_detector
from drloss.detector.weight_names import our_names
from drloss.errors import UserError
from faults import tiny_run

NAMES = ("cat", "dog")
SMALL = DetectorConfig(backbone="resnet18", norm="frozen", fpn_channels=32, head_depth=1, head_channels=32)
R50 = DetectorConfig(norm="frozen")


def marked(state):
    """Each weight filled with a different value, so that it can be found again."""
    return {name: torch.full_like(tensor, 2.0**-8 * i) for i, (name, tensor) in enumerate(state.items())}


@pytest.fixture(scope="module")
def torchvisions():
    """State dicts of torchvision's detectors by name."""
    models = {
        "retinanet": detection.retinanet_resnet50_fpn,
        "retinanet_v2": detection.retinanet_resnet50_fpn_v2,
        "fasterrcnn": detection.fasterrcnn_resnet50_fpn,
    }
    with torch.device("meta"):
        made = {name: make(weights=None, weights_backbone=None).state_dict() for name, make in models.items()}
    return {
        name: marked({k: torch.empty(v.shape, dtype=v.dtype) for k, v in state.items()})
        for name, state in made.items()
    }


def begin(folder, state, config=R50, names=NAMES):
    """A detector with weights loaded from a file with ``state``, its weights before, and the description."""
    path = folder / "weights.pth"
    torch.save(state, path)
    model = RetinaNet(config, len(names), 0.5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return model.state_dict(), before, initialise(model, str(path), names)


def is_as_before(after, before, part):
    return all(torch.equal(after[n], before[n]) for n in after if n.startswith(part))


def test_torchvisions_retinanet_gives_all_but_p6_p7_and_the_last_layers(torchvisions, tmp_path):
    theirs = torchvisions["retinanet"]
    after, before, start = begin(tmp_path, theirs)
    same = {
        "backbone.body.layer3.5.bn2.running_var": "backbone.body.layer3.5.bn2.running_var",
        "backbone.fpn.inner_blocks.0.0.weight": "backbone.fpn.inner_blocks.0.0.weight",
        "backbone.fpn.layer_blocks.2.0.bias": "backbone.fpn.layer_blocks.2.0.bias",
        "cls_head.tower.0.weight": "head.classification_head.conv.0.0.weight",
        "cls_head.tower.6.bias": "head.classification_head.conv.3.0.bias",
        "box_head.tower.4.weight": "head.regression_head.conv.2.0.weight",
    }
    for ours, name in same.items():
        assert torch.equal(after[ours], theirs[name]), ours
    taken = ("backbone.body", "backbone.fpn.inner", "backbone.fpn.layer", "cls_head.tower", "box_head.tower")
    known = {float(tensor.flatten()[0]) for tensor in theirs.values()}
    assert all(float(t.flatten()[0]) in known for n, t in after.items() if n.startswith(taken))
    for part in ("backbone.fpn.extra_blocks", "cls_head.predict", "box_head.predict"):
        assert is_as_before(after, before, part)
    said = "\n".join(start.details)
    assert start.words.startswith(f"detector weights of {tmp_path / 'weights.pth'}, but for P6 and P7")
    assert (
        "the backbone (265), the pyramid (12), the tower of the classifier (8), the tower of the box head (8)" in said
    )
    assert "P6 and P7 (backbone.fpn.extra_blocks.p6.weight: shape (256, 256, 3, 3), wanted (256, 2048, 3, 3))" in said
    # 4 of P6 and P7, 4 of the last layers, 53 counters of batch norm
    assert "not used of the file: 61 weights, backbone.fpn.extra_blocks.p6.weight" in said


def test_a_pyramid_from_p2_on_is_taken_from_p3_on(torchvisions, tmp_path):
    theirs = torchvisions["fasterrcnn"]
    after, before, start = begin(tmp_path, theirs)
    for level in range(3):
        for blocks in ("inner", "layer"):
            ours, name = (f"backbone.fpn.{blocks}_blocks.{n}.0.weight" for n in (level, level + 1))
            assert torch.equal(after[ours], theirs[name])
    assert is_as_before(after, before, ("cls_head", "box_head", "backbone.fpn.extra"))
    said = "\n".join(start.details)
    assert re.search(r"the tower of the classifier, the last layer of the classifier[^()]* \(not in the file\)", said)
    assert "backbone.fpn.inner_blocks.0.0.weight" in said.partition("not used")[2]


def test_a_tower_with_norms_is_another_tower(torchvisions, tmp_path):
    theirs = torchvisions["retinanet_v2"]
    after, before, start = begin(tmp_path, theirs)
    assert torch.equal(after["backbone.fpn.extra_blocks.p6.weight"], theirs["backbone.fpn.extra_blocks.p6.weight"])
    assert is_as_before(after, before, ("cls_head", "box_head"))
    assert "P6 and P7 (4)" in start.details[0]


@pytest.mark.parametrize("name", ["retinanet", "fasterrcnn"])
def test_norm_auto_is_frozen_for_torchvisions_detectors(torchvisions, tmp_path, name):
    torch.save(torchvisions[name], tmp_path / "a.pth")
    assert resolve_detector(DetectorConfig(), str(tmp_path / "a.pth")).norm == "frozen"


PREFIXES = ["", "module.", "_orig_mod.", "model.", "backbone.", "module._orig_mod.", "body.", "model.backbone.body."]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_prefix_of_a_backbone_is_known(prefix):
    names = [*torchvision.models.resnet18().state_dict()]
    assert our_names([prefix + name for name in names], "a file") == {
        f"backbone.body.{name}": prefix + name for name in names
    }


@pytest.mark.parametrize(
    ("key", "prefix"),
    [(None, ""), ("model", "module._orig_mod."), ("state_dict", "backbone."), ("model_state_dict", "body.")],
)
def test_wrappings_do_not_matter(tmp_path, prefix, key):
    state = marked(torchvision.models.resnet18(num_classes=7).state_dict())
    wrapped = {prefix + name: tensor for name, tensor in state.items()}
    after, _, start = begin(tmp_path, {key: wrapped, "epoch": 3} if key else wrapped, SMALL)
    for name, tensor in state.items():
        if not name.startswith("fc.") and not name.endswith("num_batches_tracked"):
            assert torch.equal(after[f"backbone.body.{name}"], tensor)
    assert start.words == f"backbone weights of {tmp_path / 'weights.pth'}"
    assert f"not used of the file: 22 weights, {prefix}fc.weight" in start.details[-1]


def test_every_part_of_a_detector_is_named(tmp_path):
    model = RetinaNet(R50, 2, 0.5)
    state = model.state_dict()
    _, _, start = begin(tmp_path, {"model": state, "class_names": list(NAMES)})
    assert start.words == f"detector weights of {tmp_path / 'weights.pth'}"
    assert all(part in start.details[0] for part in PARTS)
    assert len(start.details) == 1
    assert sum(int(part.rstrip(")").rpartition("(")[2]) for part in start.details[0].split(", ")) == len(state)


@pytest.mark.parametrize("said", [None, ["cat", "cow"]])
def test_a_classifier_of_other_or_unknown_classes_stays_at_its_prior(tmp_path, said):
    state = marked(RetinaNet(SMALL, 2, 0.5).state_dict())
    after, before, start = begin(tmp_path, {"model": state} | ({"class_names": said} if said else {}), SMALL)
    assert is_as_before(after, before, "cls_head.predict")
    assert torch.equal(after["cls_head.tower.0.weight"], state["cls_head.tower.0.weight"])
    assert "the last layer of the classifier (other classes, or not said which)" in start.details[1]


def test_a_detector_of_another_pyramid_gives_its_backbone(tmp_path):
    other = RetinaNet(replace(SMALL, fpn_channels=64), 2, 0.5)
    save_detector(tmp_path / "a.safetensors", other.state_dict(), DetectorFile(other.config, NAMES, (1, 2), "dr"))
    model = RetinaNet(SMALL, 2, 0.5)
    start = initialise(model, str(tmp_path / "a.safetensors"), NAMES)
    assert torch.equal(model.backbone.body.conv1.weight, other.backbone.body.conv1.weight)
    assert "the pyramid (backbone.fpn.inner_blocks.0.0.bias: shape (64,), wanted (32,))" in start.details[1]


def refused(folder, state, config=SMALL):
    with pytest.raises(UserError) as error:
        begin(folder, state, config)
    return str(error.value)


def test_what_contradicts_is_refused_by_name(tmp_path):
    own = RetinaNet(SMALL, 2, 0.5).state_dict()
    body = torchvision.models.resnet18().state_dict()
    said = refused(tmp_path, {f"backbone.bottom_up.res2.{n}": t for n, t in body.items()})
    assert "no weight fits: it has 122, backbone.bottom_up.res2.conv1.weight, " in said
    said = refused(tmp_path, torchvision.models.resnet34().state_dict())
    assert "its backbone is no resnet18 with norm frozen: unknown backbone.body.layer1.2.bn1.bias" in said
    assert "it fits --backbone resnet34 --norm frozen" in said
    said = refused(tmp_path, body, replace(SMALL, norm="group"))
    assert "it fits --backbone resnet18 --norm frozen" in said
    grey = {**body, "conv1.weight": torch.zeros(64, 1, 7, 7)}
    assert "backbone.body.conv1.weight: shape (64, 1, 7, 7), wanted (64, 3, 7, 7)" in refused(tmp_path, grey)
    said = refused(tmp_path, {**own, "backbone.body.bn1.bias": torch.full((64,), torch.nan)})
    assert "weight backbone.body.bn1.bias has values that are not finite" in said
    said = refused(tmp_path, {f"module.{n}": t.long() for n, t in own.items()})
    assert "weight module.backbone.body.conv1.weight is of type torch.int64, wanted torch.float32" in said
    said = refused(tmp_path, {**body, "module.conv1.weight": body["conv1.weight"]})
    assert "weights conv1.weight and module.conv1.weight have one place" in said
    assert "'epoch' is a int" in refused(tmp_path, {**body, "epoch": 3})
    assert "must hold tensors by name (a state dict), got Tensor" in refused(tmp_path, torch.zeros(3))


# ---------------------------------------------------------------------- from the network


FAILURES = {
    "offline": urllib.error.URLError("[Errno -3] Temporary failure in name resolution"),
    "forbidden": urllib.error.HTTPError("https://host/file", 403, "Forbidden", None, None),
    "slow": TimeoutError("The read operation timed out"),
    "other file": RuntimeError('invalid hash value (expected "0676ba61", got "00000000")'),
    "unwritable": PermissionError(13, "Permission denied", "/nowhere/hub/checkpoints"),
    "damaged": RuntimeError("PytorchStreamReader failed reading zip archive: no central directory\nframe"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_weights_that_cannot_be_fetched_are_two_lines_and_leave_no_folder(tmp_path, monkeypatch, capsys, failure):
    def fail(*_, **__):
        raise FAILURES[failure]

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    assert main(tiny_run(tmp_path / "run", weights="imagenet", backbone="resnet18")) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 2
    assert "weights imagenet: resnet18-f37072fd.pth could not be fetched or read: " in said[0]
    assert str(tmp_path / "cache" / "hub" / "checkpoints") in said[1]
    assert "--weights FILE or --weights none" in said[1]
    assert not (tmp_path / "run").exists()


def test_imagenet_weights_are_found_where_the_message_says(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "cache" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(torchvision.models.resnet18().state_dict(), folder / "resnet18-f37072fd.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    run = tiny_run(tmp_path / "run", weights="imagenet", backbone="resnet18", max_iters=1)
    assert main(run) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "from ImageNet weights of resnet18 (torchvision, IMAGENET1K_V1); loss dr weights taken of" in said
    assert "started_from" in (tmp_path / "run" / "environment.json").read_text()


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_weights_that_do_not_fit_leave_no_folder(tmp_path, capsys, resume):
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pth")
    assert main(tiny_run(tmp_path / "run", *resume, weights=tmp_path / "a.pth")) == 2
    assert "no weight fits" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
