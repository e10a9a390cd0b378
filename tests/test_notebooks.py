"""The notebooks of the docs run as they stand."""

import os
import sys
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of Jupyter's own
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_to_its_end(path, tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    client = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("timm", reason="timm is not installed")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    notebook = nbformat.read(path, 4)
    client.NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "drloss: error" in output.get("text", "") or "Traceback" in output.get("text", "")
    ]
    assert not said


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_and_names_no_path_of_the_machine_that_ran_it(path):
    text = path.read_text(encoding="utf-8")
    assert len(text) < 300_000
    assert "site-packages" not in text
    assert "/tmp/" not in text


def test_there_is_a_notebook():
    assert NOTEBOOKS
