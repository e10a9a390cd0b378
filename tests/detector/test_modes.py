"""The detector in every way that torch can run a module: traced, exported, without gradients, in any dtype."""

import copy
import pickle

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from drloss.detector.backbone import IMAGENET
from drloss.detector.config import DetectorConfig
from drloss.detector.detections import detect
from drloss.detector.exported import DetectorFile, load_detector, save_detector
from drloss.detector.model import HeadOutputs, RetinaNet
from drloss.detector.objective import Objective
from drloss.losses import DRLoss
from drloss.structures import Frame, Objects

TINY = DetectorConfig(
    backbone="resnet10", norm="group", fpn_channels=32, top_level=5, head_depth=1, head_channels=32, anchor_octaves=1
)
FRAMES = [Frame((64, 96), (64, 96))] * 2
OBJECTS = [Objects(torch.tensor([[10.0, 10, 50, 50]]), torch.tensor([1]), torch.tensor([False]))] * 2


@pytest.fixture
def model():
    torch.manual_seed(0)
    return RetinaNet(TINY, 3, prior_probability=0.5).eval()


@pytest.fixture
def images():
    return torch.randint(256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def tensors(outputs):
    return [*outputs.maps, *outputs.deltas, *outputs.anchors]


def require_same(found, wanted):
    assert found.num_classes == wanted.num_classes
    for a, b in zip(tensors(found), tensors(wanted), strict=True):
        torch.testing.assert_close(a, b)


def learn(model, images):
    """One training step, whose loss equals that of any other new model."""
    terms = Objective(DRLoss(), TINY)(model(images), OBJECTS)
    terms.total.backward()
    assert terms.cls.item() == pytest.approx(2.03, abs=0.1)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


# ---------------------------------------------------------------------- tracing


def test_an_exported_program_says_what_the_model_says(model, images):
    exported = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("n", max=64)},)).module()
    require_same_detections(exported, model, [images, torch.cat([images, images.flip(2)])])


@pytest.mark.slow
def test_a_program_for_any_size_can_be_kept_in_a_file(model, tmp_path):
    rows, columns = (32 * torch.export.Dim(name, min=5, max=40) for name in ("rows", "columns"))
    image = torch.randint(256, (1, 3, 192, 160), dtype=torch.uint8)
    program = torch.export.export(model, (image,), dynamic_shapes=({2: rows, 3: columns},))
    torch.export.save(program, tmp_path / "program.pt2")
    require_same_detections(torch.export.load(tmp_path / "program.pt2").module(), model, [image, image.mT])


def require_same_detections(exported, model, batches):
    for images in batches:
        found, wanted = exported(images), model(images)
        assert isinstance(found, HeadOutputs)
        require_same(found, wanted)
        frames = [Frame((40, 60), (images.shape[2] - 9, images.shape[3]))] * len(images)
        for a, b in zip(detect(found, frames, TINY), detect(wanted, frames, TINY), strict=True):
            assert len(b["scores"]) > 0
            for name in a:
                torch.testing.assert_close(a[name], b[name])


def test_the_forward_pass_compiles_as_one_graph(model, images):
    torch._dynamo.reset()
    require_same(torch.compile(model, backend="eager", fullgraph=True)(images), model(images))


class Refused(torch.nn.Module):
    """A model around the detector that cannot be exported: its way depends on what is found."""

    def __init__(self, detector):
        super().__init__()
        self.detector = detector

    def forward(self, images):
        outputs = self.detector(images)
        return outputs.maps if outputs.maps[0].sum() > 0 else outputs.deltas


def fail_to_export(model, images):
    with pytest.raises(Exception, match=r"data-dependent|control flow"):
        torch.export.export(Refused(model), (images,), strict=False)


def make_up(model, images):
    with FakeTensorMode():
        RetinaNet(TINY, 3, prior_probability=0.5)(torch.zeros(2, 3, 64, 96))


def trace(model, images):
    make_fx(lambda x: model(x).maps, tracing_mode="real")(images)


def without_memory(model, images):
    with torch.device("meta"):
        RetinaNet(TINY, 3, prior_probability=0.5)(torch.zeros(2, 3, 64, 96))


def infer(model, images):
    with torch.inference_mode():
        model(images)


@pytest.mark.parametrize("first", [fail_to_export, make_up, trace, without_memory, infer])
def test_what_ran_before_leaves_nothing_behind(model, images, first):
    wanted = tensors(copy.deepcopy(model)(images))
    first(model, images)
    found = model(images)
    assert [type(t) for t in tensors(found)] == [type(t) for t in wanted]
    assert not any(t.is_inference() for t in tensors(found))
    assert all(torch.equal(a, b) for a, b in zip(tensors(found), wanted, strict=True))
    assert len(detect(found, FRAMES, TINY)) == 2
    learn(model, images)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_says_the_same(model, images, copied):
    model(images)
    require_same(copied(model)(images), model(images))


# ---------------------------------------------------------------------- dtypes, layouts and devices


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_model_runs_in_any_dtype(model, images, dtype):
    wanted = model(images)
    found = model.to(dtype)(images)
    assert {m.dtype for m in found.maps + found.deltas} == {dtype}
    assert all(torch.equal(a, b) for a, b in zip(found.anchors, wanted.anchors, strict=True))  # float32, exact
    for a, b in zip(found.maps + found.deltas, wanted.maps + wanted.deltas, strict=True):
        torch.testing.assert_close(a.float(), b, atol=0.02 if dtype != torch.float64 else 1e-5, rtol=0)
    for d in detect(found, FRAMES, TINY):
        assert len(d["scores"]) == 100
        assert d["boxes"].dtype == d["scores"].dtype == torch.float32
    learn(model, images[:, :, :32, :32])


def test_a_frozen_norm_runs_in_half_precision(images):
    config = DetectorConfig(backbone="resnet18", norm="frozen", fpn_channels=16, head_depth=1, head_channels=16)
    model = RetinaNet(config, 3, prior_probability=0.5).eval()
    for dtype in (torch.float16, torch.bfloat16):
        outputs = model.to(dtype)(images)
        assert all(m.dtype == dtype and m.isfinite().all() for m in outputs.maps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_there_and_back_leaves_the_constants_exact(model, images, dtype):
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.to(dtype).float()
    assert before.keys() >= {"mean", "std", "shapes"}
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert model.mean.flatten().tolist() == torch.tensor(IMAGENET[0]).tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_images_may_have_any_dtype_that_holds_their_values(model, images, dtype):
    require_same(model(images.to(dtype)), model(images))


def test_channels_last_says_the_same(model, images):
    wanted = model(images)
    require_same(model.to(memory_format=torch.channels_last)(images), wanted)


def test_a_model_without_memory_is_filled_by_its_weights_alone(model, images):
    with torch.device("meta"):
        empty = RetinaNet(TINY, 3, prior_probability=0.5)
    assert all(t.is_meta for t in tensors(empty(images.to("meta"))))
    empty.to_empty(device="cpu").load_state_dict(model.state_dict())
    require_same(empty.eval()(images), model(images))


def test_no_image_gives_no_detection(model, images):
    outputs = model(images[:0])
    assert [m.shape[0] for m in outputs.logits] == [0] * 3
    assert detect(outputs, [], TINY) == []


def test_sizes_that_are_not_those_of_the_outputs_are_refused(model, images):
    with pytest.raises(ValueError, match="frames must be 2, one for each image of outputs, got 1"):
        detect(model(images), FRAMES[:1], TINY)


# ---------------------------------------------------------------------- the default configuration


def test_the_default_norm_is_group_norm_where_weights_are_random(tmp_path):
    config = DetectorConfig(backbone="resnet18", fpn_channels=16, head_depth=1, head_channels=16)
    assert config.norm == "auto"
    model = RetinaNet(config, 3, 0.5)
    assert model.config.norm == "group"
    assert isinstance(model.backbone.body.bn1, torch.nn.GroupNorm)
    about = DetectorFile(config, ("a", "b", "c"), (1, 2, 3), "dr")
    save_detector(tmp_path / "detector.safetensors", model.state_dict(), about)
    again, _ = load_detector(tmp_path / "detector.safetensors")
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    require_same(again(image), model.eval()(image))


def test_the_default_configuration_makes_a_model():
    with torch.device("meta"):
        model = RetinaNet(DetectorConfig(), 3, 0.5)
        assert sum(len(a) for a in model(torch.zeros(1, 3, 800, 1344)).anchors) == 201_600
