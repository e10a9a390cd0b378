"""transformers' detectors of the DETR family with our loss: one candidate set a decoder layer, the rest as it was."""

import copy
import pickle

import pytest
import torch
from torch import nn

for needed in ("transformers", "scipy", "PIL"):
    pytest.importorskip(needed, reason=f"{needed} is not installed: pip install '.[transformers]'")

import transformers as hf
from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher
from transformers.loss.loss_rt_detr import RTDetrHungarianMatcher

from drloss import DRLoss, check, dr_loss
from drloss.adapters import adapt
from drloss.adapters import transformers as adapter
from drloss.losses.call_log import record_calls
from small_detr import CLASSES, MODELS, RT_DETR, backbone, batch, make

STEM = {name: "loss_vfl" if name in RT_DETR else "loss_ce" for name in MODELS}


def step(model, data=None):
    """One step, with the same denoising noise each time, and its calls."""
    torch.manual_seed(5)
    with record_calls() as calls:
        return model(**(data or batch())), calls


def matched_labels(model, logits, boxes, targets):
    """Labels of the queries by transformers' own matching."""
    c = model.config
    if type(model) in adapter.RT_DETR:
        matcher = RTDetrHungarianMatcher(c)
    else:
        matcher = DeformableDetrHungarianMatcher(c.class_cost, c.bbox_cost, c.giou_cost)
    labels = torch.zeros(logits.shape[:2], dtype=torch.int64)
    for image, (queries, objects) in enumerate(matcher({"logits": logits, "pred_boxes": boxes}, targets)):
        for query, index in zip(queries.tolist(), objects.tolist(), strict=True):
            labels[image, query] = 1 + targets[image]["class_labels"][index]
    return labels


@pytest.mark.parametrize("name", MODELS)
def test_each_candidate_set_is_one_call_with_all_images(name):
    model = adapt(make(name))
    out, calls = step(model)
    assert len(calls) == model.drloss.drloss_calls == (2 + 1 + 2 if name in RT_DETR else 2)
    keys = [key for key in out.loss_dict if key.startswith(STEM[name])]
    assert len(keys) == len(calls)
    for key, call in zip(keys, calls, strict=True):
        assert call.logits.shape == (3, 12, CLASSES)
        assert call.labels.shape == (3, 12)
        assert set(call.labels[0].tolist()) == {0, 1, 3}
        assert set(call.labels[1].tolist()) - {-1} == {0, 2}
        assert not (call.labels[2] > 0).any()
        assert out.loss_dict[key].item() == pytest.approx(4 * dr_loss(call.logits, call.labels).item(), rel=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_the_last_layers_queries_have_the_labels_of_the_hosts_matching(name):
    model = adapt(make(name))
    out, calls = step(model)
    own = slice(-12, None)  # an RT-DETR's denoising queries come first
    logits, boxes = out.logits[:, own], out.pred_boxes[:, own]
    labels = matched_labels(model, logits, boxes, batch()["labels"])
    torch.testing.assert_close(calls[0].logits, logits)
    assert calls[0].labels.tolist() == labels.tolist()
    assert out.loss_dict[STEM[name]].item() == pytest.approx(4 * dr_loss(logits, labels).item(), rel=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_the_other_losses_are_transformers_and_the_sum_is_of_its_weights(name):
    plain, adapted = make(name), adapt(make(name), reset=False)
    wanted, found = step(plain)[0], step(adapted)[0]
    assert wanted.loss_dict.keys() == found.loss_dict.keys()
    others = [key for key in wanted.loss_dict if not key.startswith(STEM[name])]
    for key in others:
        torch.testing.assert_close(found.loss_dict[key], wanted.loss_dict[key])
    classes = [sum(v for k, v in out.loss_dict.items() if k not in others) for out in (wanted, found)]
    torch.testing.assert_close(found.loss - classes[1], wanted.loss - classes[0])
    for wanted_layer, found_layer in zip(wanted.auxiliary_outputs, found.auxiliary_outputs, strict=True):
        torch.testing.assert_close(found_layer, wanted_layer)


@pytest.mark.parametrize("name", MODELS)
def test_the_weight_of_the_classes_is_the_losss_own(name):
    options = {"weight_loss_vfl": 3.0} if name in RT_DETR else {}
    model = adapt(make(name, **options), "dr:cls_weight=2")
    out, calls = step(model)
    named = sum(v.item() for k, v in out.loss_dict.items() if k.startswith(STEM[name]))
    assert named == pytest.approx(sum(2 * call.value.item() for call in calls), rel=1e-6)


@pytest.mark.parametrize("name", ["deformable_detr", "conditional_detr", "dab_detr"])
def test_a_loss_in_place_is_refused_where_the_step_reads_the_logits(name):
    with pytest.raises(ValueError, match="inplace must be False for this model"):
        adapt(make(name), "dr:inplace=True")
    step(adapt(make("rt_detr"), "dr:inplace=True"))[0].loss.backward()


@pytest.mark.parametrize("name", RT_DETR)
def test_denoising_queries_are_sets_of_their_own_and_those_of_no_object_are_ignored(name):
    _, calls = step(adapt(make(name)))
    for call in calls[3:]:  # 3 groups, each with near and far queries for 2 objects, which the second image has not
        assert call.labels[0].tolist() == [1, 3, 0, 0] * 3
        assert call.labels[1].tolist() == [2, -1, 0, -1] * 3
        assert call.labels[2].tolist() == [-1] * 12
    _, calls = step(adapt(make(name, num_denoising=0)))
    assert len(calls) == 3
    assert all((call.labels >= 0).all() for call in calls)


@pytest.mark.parametrize("name", MODELS)
def test_without_auxiliary_losses_there_is_one_call(name):
    model = adapt(make(name, auxiliary_loss=False))
    out, calls = step(model)
    assert len(calls) == model.drloss.drloss_calls == 1
    assert out.auxiliary_outputs is None
    assert check(model, batch(), num_classes=CLASSES).ok


@pytest.mark.parametrize("name", MODELS)
def test_images_without_objects_and_evaluation_have_losses_too(name):
    model = adapt(make(name))
    empty = batch()
    empty["labels"] = [empty["labels"][2]] * 3
    out, calls = step(model, empty)
    assert all((call.labels == 0).all() for call in calls)
    assert len(calls) == (3 if name in RT_DETR else 2)  # no denoising without objects
    out.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    out, calls = step(model.eval())
    assert len(calls) == (3 if name in RT_DETR else 2)
    assert torch.isfinite(out.loss)
    with torch.no_grad():
        assert model(pixel_values=batch()["pixel_values"]).loss is None


@pytest.mark.parametrize("name", MODELS)
def test_an_untrained_classifier_starts_from_the_losss_prior_and_a_trained_one_stays(name):
    model = adapt(make(name))
    for layer in adapter.classifiers(model):
        assert (layer.bias == 0).all()
    for layer in adapter.classifiers(adapt(make(name), "focal")):
        assert layer.bias.sigmoid().tolist() == pytest.approx([0.01] * CLASSES)
    with torch.no_grad():
        for layer in adapter.classifiers(model):
            layer.bias += torch.linspace(0.1, 1, CLASSES)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    adapt(model, "focal")
    after = model.state_dict()
    assert before.keys() == after.keys() == make(name).state_dict().keys()
    assert all((after[key] == value).all() for key, value in before.items())
    adapt(model, reset=True)
    assert all((layer.bias == 0).all() for layer in adapter.classifiers(model))


@pytest.mark.parametrize("name", MODELS)
def test_one_class_alone_is_trained_where_its_bias_is_not_the_first(name):
    model = make(name, num_labels=1)
    layers = adapter.classifiers(model)
    kept = [1.5 + i for i in range(len(layers))]
    with torch.no_grad():
        for layer, value in zip(layers, kept, strict=True):
            layer.bias.fill_(value)
    kept = [layer.bias.item() for layer in layers]  # some are shared
    adapt(model)
    assert [layer.bias.item() for layer in layers] == kept
    model = adapt(make(name, num_labels=1), "focal")
    layers = adapter.classifiers(model)
    assert all(layer.bias.sigmoid().item() == pytest.approx(0.01) for layer in layers)
    adapt(model)
    assert all(layer.bias == 0 for layer in layers)


@pytest.mark.parametrize("name", ["rt_detr", "deformable_detr"])
def test_copies_and_pickles_are_adapted_and_other_instances_are_not(name):
    model = adapt(make(name))
    wanted = step(model)[0].loss
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert step(other)[0].loss == wanted
        other.drloss.drloss.cls_weight = 1.0
        assert step(other)[0].loss < wanted
        assert other.drloss.config is other.config
    assert step(model)[0].loss == wanted
    assert step(make(name))[1] == []


def test_a_saved_model_is_transformers_own(tmp_path):
    model = adapt(make("rt_detr")).eval()
    model.save_pretrained(tmp_path)
    loaded = hf.RTDetrForObjectDetection.from_pretrained(tmp_path).eval()
    images = batch()["pixel_values"]
    with torch.no_grad():
        torch.testing.assert_close(loaded(images).logits, model(images).logits)
    assert step(loaded)[1] == []


@pytest.mark.parametrize("name", ["rt_detr", "deformable_detr"])
def test_training_lowers_the_loss_and_adapting_twice_changes_the_loss_alone(name):
    model = adapt(adapt(make(name), "focal"), DRLoss(neg_lambda=0.1))
    assert [m.neg_lambda for m in model.modules() if isinstance(m, DRLoss)] == [0.1]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def classes(out):
        return sum(value.item() for key, value in out.loss_dict.items() if key.startswith(STEM[name]))

    lowest = first = classes(step(model)[0])
    for _ in range(60):
        out, _ = step(model)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        lowest = min(lowest, classes(out))
        if lowest < 0.8 * first:
            break
    assert lowest < 0.8 * first


@pytest.mark.parametrize("name", ["rt_detr", "deformable_detr"])
def test_autocast_changes_no_more_than_rounding(name):
    model = adapt(make(name))
    wanted = step(model)[0].loss_dict[STEM[name]]
    with torch.autocast("cpu", torch.bfloat16):
        out, calls = step(model)
    assert calls[0].value.dtype == torch.float32
    assert out.loss_dict[STEM[name]].item() == pytest.approx(wanted.item(), rel=0.1)


@pytest.mark.parametrize("name", MODELS)
def test_check_is_green(name):
    report = check(adapt(make(name)), batch(), num_classes=CLASSES)
    assert report.ok, str(report)
    found = {finding.name: finding.ok for finding in report.findings}
    assert all(found[key] for key in ("called once", "per image", "normaliser", "starting score", "gradient"))
    assert f"for each of {5 if name in RT_DETR else 2} candidate sets" in str(report)


class Wrong(DRLoss):
    """A DR loss called in a way that lies near in transformers' ``loss_labels``."""

    def __init__(self, way, cls_weight=4.0):
        super().__init__(cls_weight, scope="pooled" if way == "pooled" else "per_image")
        self.way = way

    def forward(self, logits, labels):
        match self.way:
            case "divided":  # by transformers' num_boxes
                return super().forward(logits, labels) / (labels > 0).sum()
            case "flattened":
                return super().forward(logits.flatten(0, 1).unsqueeze(0), labels.flatten().unsqueeze(0))
            case "in parts":
                whole = super()
                return sum(whole.forward(x, y) for x, y in zip(logits.split(6, 1), labels.split(6, 1), strict=True))
            case "detached":
                return super().forward(logits.detach().requires_grad_(), labels)
        return super().forward(logits, labels)


@pytest.mark.parametrize("name", ["rt_detr", "deformable_detr"])
@pytest.mark.parametrize(
    ("way", "point", "words"),
    [
        ("divided", "normaliser", "it was divided by the number of positives, 3"),
        ("pooled", "per image", 'scope="pooled" ranks all images in one distribution'),
        ("flattened", "per image", "the loss saw 1 image(s) where the batch has 3"),
        ("in parts", "called once", "candidate sets; hand each over in one call"),
        ("detached", "gradient", "none arrives at the classifier"),
    ],
)
def test_each_wrong_way_is_told_in_words(name, way, point, words):
    report = check(adapt(make(name), Wrong(way)), batch(), num_classes=CLASSES)
    assert [finding.name for finding in report.findings if finding.ok is False] == [point], str(report)
    assert words in str(report)


def test_the_prior_of_a_focal_loss_is_told():
    prior = {"initializer_bias_prior_prob": 0.01}
    for model in (make("rt_detr", **prior), make("rt_detr_v2", **prior), make("dab_detr", **prior)):
        report = check(adapt(model, reset=False), batch())
        assert [finding.name for finding in report.findings if finding.ok is False] == ["starting score"], str(report)
        assert "set its bias to 0, for 0.5" in str(report)


def test_what_cannot_be_adapted_is_refused():
    sizes = {"d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_layers": 1, "decoder_layers": 1}
    detr = hf.DetrForObjectDetection(hf.DetrConfig(backbone_config=backbone(), **sizes))
    with pytest.raises(TypeError, match=r"adapt knows RTDetrForObjectDetection, .*, not DetrForObjectDetection"):
        adapt(detr)
    model = make("rt_detr")
    model.__class__ = type("Own", (hf.RTDetrForObjectDetection,), {})
    with pytest.raises(TypeError, match="of transformers, not Own"):
        adapt(model)
    model = make("deformable_detr")
    model.loss_function = lambda *args: None
    with pytest.raises(TypeError, match="model has a loss function of its own beside that of DeformableDetr"):
        adapt(model)
    with pytest.raises(ValueError, match="loss must be one of"):
        adapt(make("rt_detr"), "best")
    with pytest.raises(TypeError, match="model must be a detector of"):
        adapt(nn.Linear(2, 2))
