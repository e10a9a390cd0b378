"""A loss by its name and parameters."""

import pytest

from drloss import LOSSES, LossSpec, make_loss

SPECS = [
    "dr",
    "focal:alpha=0.5,normalizer=none",
    "dr:neg_prior=100,pairing=neg_only",
    "ap:interpolate=False",
    "ohem:",
]


@pytest.mark.parametrize("text", SPECS)
def test_what_is_written_is_what_was_read(text):
    spec = LossSpec.parse(text)
    assert str(spec) == text.removesuffix(":")
    assert LossSpec.parse(str(spec)) == spec
    assert len({spec, LossSpec.parse(text)}) == 1
    assert repr(spec.make()) == repr(make_loss(text))


def test_values_are_numbers_where_they_can_be():
    assert LossSpec.parse("x: a = 1, b=1e-3,c=True,d=one").parameters == {"a": 1, "b": 0.001, "c": True, "d": "one"}


def test_a_complete_specification_makes_the_same_loss():
    for name in LOSSES:
        assert repr(LossSpec(name).complete().make()) == repr(make_loss(name))
    assert str(LossSpec("focal", {"alpha": 0.5}).complete()) == "focal:scope=pooled,alpha=0.5"
    assert str(LossSpec("focal", {"normalizer": "none"}).complete()) == "focal:normalizer=none"


def test_a_name_that_is_nearly_right_is_answered_by_the_right_one():
    with pytest.raises(
        ValueError, match=r"loss must be one of dr, dr\+, focal, .* got 'focl', did you mean 'focal'\?"
    ):
        make_loss("focl")
    with pytest.raises(ValueError, match=r"DRLoss has no option 'neg_lamda', did you mean 'neg_lambda'\?; it has"):
        make_loss("dr:neg_lamda=0.1")
