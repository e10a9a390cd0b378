"""Doctests: where pytest does not look for them (in the adapters of hosts that may be absent), and what they find."""

import pytest

HOSTS = ("detectron2", "effdet", "mmdet", "transformers", "ultralytics", "monai", "libreyolo")
collect_ignore = [*(f"src/drloss/adapters/{host}.py" for host in HOSTS), "tests/support/small_detr.py"]


@pytest.fixture(autouse=True)
def files_of_the_pages(request, tmp_path_factory, monkeypatch):
    """The examples of the pages run in a folder that has the detector and the photograph they name."""
    if request.node.name in ("README.md", "using.md"):
        from PIL import Image

        from random_detector import random_detector

        folder = tmp_path_factory.mktemp("readme")
        (folder / "runs" / "first").mkdir(parents=True)
        for file in ("detector.safetensors", "runs/first/model.safetensors"):
            random_detector(folder / file)
        Image.effect_noise((80, 60), 90).save(folder / "photo.jpg")
        monkeypatch.chdir(folder)
