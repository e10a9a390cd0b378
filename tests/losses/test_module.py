"""What all loss modules share."""

import copy
import inspect
import io
import typing
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from drloss import LOSSES, DRLoss, FocalLoss, ImageLoss, dr_loss, focal_loss
from drloss.losses import make_loss
from drloss.losses.call_log import record_calls
from losses.cases import random_case


def test_a_subclass_takes_its_options_and_defaults_from_its_function():
    def scaled(logits, labels, *, ignore=None, quality=None, factor=2.0, reduction="mean"):
        if factor < 0:
            raise ValueError(f"factor must not be negative, got {factor}")
        assert logits.shape[2] == 1 or labels.numel()
        return factor * focal_loss(logits, labels, ignore=ignore, reduction=reduction)

    class Scaled(ImageLoss):
        function = staticmethod(scaled)
        prior_probability = 0.2

    assert Scaled.defaults == {"factor": 2.0, "reduction": "mean"}
    assert list(inspect.signature(Scaled).parameters) == ["cls_weight", "factor", "reduction"]
    assert inspect.signature(Scaled).parameters["cls_weight"].default == 1.0
    logits, labels = random_case(0)
    torch.testing.assert_close(Scaled(3.0)(logits, labels), 6 * focal_loss(logits, labels))
    torch.testing.assert_close(Scaled(factor=5.0)(logits, labels), 5 * focal_loss(logits, labels))
    with pytest.raises(ValueError, match="factor must not be negative, got -1"):
        Scaled(factor=-1)
    with pytest.raises(TypeError, match=r"^Scaled has no option 'size'; it has cls_weight, factor, reduction$"):
        Scaled(size=1)


def test_a_modules_signature_is_its_functions():
    parameters = inspect.signature(DRLoss).parameters
    assert parameters["cls_weight"].default == 4.0
    of_function = inspect.signature(dr_loss).parameters
    assert list(parameters)[1:] == [n for n in of_function if n not in ("logits", "labels", "ignore", "objects")]
    assert all(parameters[n].default == of_function[n].default for n in list(parameters)[1:])


@pytest.mark.parametrize("name", LOSSES)
def test_the_options_that_an_editor_shows_are_those_of_the_function(name):
    loss = LOSSES[name]
    shown = typing.get_type_hints(typing.get_args(inspect.get_annotations(loss.__init__)["options"])[0])
    parameters = inspect.signature(loss.function).parameters
    assert set(shown) == set(loss.defaults)
    assert all(parameters[n].annotation == kind for n, kind in shown.items())
    assert all(parameters[n].default == default for n, default in loss.defaults.items())


def test_options_are_attributes_that_may_be_scheduled():
    logits, labels = random_case(1)
    module = DRLoss(2.0, neg_lambda=0.2)
    assert module.neg_lambda == module.options["neg_lambda"] == 0.2
    module.neg_lambda = 0.4
    torch.testing.assert_close(module(logits, labels), 2 * dr_loss(logits, labels, neg_lambda=0.4))


def test_weights_of_a_prior_are_a_buffer_that_moves_and_is_not_saved():
    logits, labels = random_case(2)
    weights = torch.tensor([1.0, 0.5, 2.0])
    module = DRLoss(neg_prior=weights)
    assert dict(module.named_buffers())["neg_prior"] is weights
    assert module.state_dict() == {}
    assert module.double().neg_prior.dtype == torch.float64
    torch.testing.assert_close(module(logits, labels), 4 * dr_loss(logits, labels, neg_prior=weights))
    assert repr(DRLoss(neg_prior=weights)).count("neg_prior=(3,)") == 1
    with pytest.raises(ValueError, match="margin"):
        DRLoss(neg_prior=weights, margin="none")


def test_a_prior_may_come_with_each_batch():
    logits, labels = random_case(3)
    weights = torch.rand(2, 30, generator=torch.Generator().manual_seed(0))
    found = DRLoss()(logits, labels, pos_prior=weights, neg_prior=3)
    torch.testing.assert_close(found, 4 * dr_loss(logits, labels, pos_prior=weights, neg_prior=3))


@pytest.mark.parametrize("name", LOSSES)
def test_modules_are_copied_and_saved_whole(name):
    logits, labels = random_case(4)
    module = LOSSES[name](1.5)
    stored = io.BytesIO()
    torch.save(module, stored)
    stored.seek(0)
    for other in (copy.deepcopy(module), torch.load(stored, weights_only=False)):
        assert repr(other) == repr(module)
        assert other(logits, labels) == module(logits, labels)


def test_the_representation_names_what_is_set():
    assert repr(FocalLoss(alpha=0.3)) == (
        "FocalLoss(cls_weight=1, alpha=0.3, gamma=2, normalizer='positives', scope='per_image', reduction='mean', "
        "backend='auto', inplace=False)"
    )
    assert "neg_lambda=0.0798236, " in repr(DRLoss())
    assert "pos_radius" not in repr(DRLoss())
    assert "pos_radius=0.1" in repr(DRLoss(pos_radius=0.1))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_loss_may_be_recomputed_by_a_checkpoint(name, reentrant):
    logits, labels = random_case(5, dtype=torch.float32)
    options = [{}, {"pairing": "all_pairs"}] if name == "dr" else [{}]
    for module in (LOSSES[name](**own) for own in options):
        own, other = (logits.clone().requires_grad_() for _ in range(2))
        module(own, labels).backward()
        checkpoint(module, other, labels, use_reentrant=reentrant).backward()
        assert torch.equal(own.grad, other.grad)


@pytest.mark.parametrize("narrow", [torch.float16, torch.bfloat16])
def test_weights_of_a_prior_stay_as_wide_as_they_were(narrow):
    logits, labels = random_case(2, dtype=torch.float32)
    counts = torch.tensor([120_000.0, 1e-9, 317.0])  # infinity, 0 and 317 in float16
    model = torch.nn.Sequential(DRLoss(neg_prior=counts, pos_prior=torch.tensor([3, 1, 2])), torch.nn.Linear(1, 1))
    wanted = model[0](logits, labels)
    model.to(narrow)
    assert model[1].weight.dtype == narrow
    assert torch.equal(model[0].neg_prior, counts)
    assert torch.equal(model[0](logits, labels), wanted)
    assert model.to("meta")[0].neg_prior.device.type == "meta"


def test_weights_of_a_prior_may_be_given_by_level():
    logits, labels = random_case(2)
    levels = [torch.rand(2, 20, dtype=torch.float64), torch.rand(2, 10, dtype=torch.float64)]
    module = DRLoss(neg_prior=levels)
    assert module.neg_prior.shape == (2, 30)
    assert torch.equal(module(logits, labels), 4 * dr_loss(logits, labels, neg_prior=torch.cat(levels, dim=1)))
    with pytest.raises(TypeError, match="neg_prior must be a tensor or a non-empty list or tuple of tensors, got"):
        DRLoss(neg_prior=[1.0, 2.0, 3.0])


def test_numbers_of_numpy_are_numbers_and_a_tensor_for_one_is_named():
    logits, labels = random_case(2)
    module = DRLoss(np.float32(2), smoothness=np.int64(6), neg_lambda=np.float32(0.5), neg_prior=np.int32(4))
    assert (type(module.cls_weight), type(module.neg_lambda), type(module.neg_prior)) == (float, float, int)
    assert torch.equal(module(logits, labels), DRLoss(2.0, neg_lambda=0.5, neg_prior=4)(logits, labels))
    with pytest.raises(ValueError, match=r"^neg_lambda must be positive and finite, got tensor\(0.1000\)$"):
        DRLoss(neg_lambda=torch.tensor(0.1))


def test_a_name_with_spaces_is_read_and_one_that_is_none_is_refused():
    assert make_loss("dr: neg_lambda = 0.2, margin=0.3").options == make_loss("dr:neg_lambda=0.2,margin=0.3").options
    for other in (None, 3, DRLoss):
        with pytest.raises(TypeError, match="a loss must be named by a string such as 'dr', got"):
            make_loss(other)


def test_modules_of_several_threads_are_made_and_called_at_once():
    logits, labels = random_case(6, dtype=torch.float32)
    wanted = DRLoss(neg_lambda=0.2)(logits, labels)

    def work(_):
        return DRLoss(neg_lambda=0.2)(logits, labels)

    with record_calls(), ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(found, wanted) for found in pool.map(work, range(40)))
