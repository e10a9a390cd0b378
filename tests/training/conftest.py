"""The small run that several files of this folder train."""

import io

import pytest
from rich.console import Console

from drloss.data.formats.shapes import open_shapes
from drloss.training.config import override
from drloss.training.fit import fit
from small_training import ALONE, SPEC, TINY


@pytest.fixture(scope="module")
def data():
    source = open_shapes(SPEC)
    return source.read("train")[0], source.read("val")[0]


@pytest.fixture
def run(tmp_path, data):
    """A function that trains in a folder of the test, and returns the folder and what was printed."""

    def train(name="run", resume=False, force=False, val=False, **settings):
        console = Console(width=200, file=io.StringIO())
        config = override(TINY, settings)
        how = {"resume": resume, "force": force}
        fit(config, data[0], data[1] if val else None, tmp_path / name, ALONE, **how, console=console)
        return tmp_path / name, console.file.getvalue()

    return train
