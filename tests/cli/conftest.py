"""A folder with data and a finished run for the tests of the commands."""

import pytest

from drloss.cli import main
from small_training import QUICK


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A folder with generated data in COCO layout and a run trained on it."""
    folder = tmp_path_factory.mktemp("workshop")
    data = folder / "data"
    assert main(["make-shapes", str(data), "--data", "shapes:train=12,val=6,test=2,size=64"]) == 0
    train = [
        "train",
        "--data",
        str(data),
        "--preset",
        "cpu",
        "--out",
        str(folder / "run"),
        "--short-side",
        "64",
        *QUICK,
    ]
    assert main(train) == 0
    return folder
