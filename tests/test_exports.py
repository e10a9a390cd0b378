"""What ``import drloss`` offers."""

import importlib
import subprocess
import sys

import pytest

import drloss
import drloss.losses


@pytest.mark.parametrize("name", [n for n in drloss.__all__ if n != "__version__"])
def test_an_export_is_what_its_module_has(name):
    assert getattr(drloss, name) is getattr(importlib.import_module(f"drloss.{drloss._EXPORTS[name]}"), name)
    assert name in dir(drloss)


def test_the_losses_are_all_there_as_an_editor_takes_it():
    assert {n for n, module in drloss._EXPORTS.items() if module == "losses"} == set(drloss.losses.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        drloss.nothing  # noqa: B018


def test_an_export_whose_extra_is_missing_names_it():
    code = """
import sys
sys.modules["torchvision"] = None
try:
    from drloss import Detector
except ModuleNotFoundError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert said.startswith("drloss.Detector: torchvision is missing: run pip install '.[detector]'")
