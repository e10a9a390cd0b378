import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import page
from benchmarks.gpu import cases, correctness, pages
from benchmarks.gpu.notes import Notes
from benchmarks.gpu.parts import PARTS, run_parts
from benchmarks.gpu.table import table
from drloss import dr_loss

ROOT = Path(__file__).parents[1]
FAKES = {
    "good": "def run(notes): notes.note('device', [notes.device, notes.left > 0])",
    "raises": "def run(notes):\n    notes.note('first', 1)\n    raise RuntimeError('CUDA error: as if')",
    "dies": "import os\ndef run(notes):\n    notes.note('first', 1)\n    os.kill(os.getpid(), 9)",
    "hangs": "import subprocess, sys, time\ndef run(notes):\n    notes.note('first', 1)\n"
    "    subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n    time.sleep(600)",
    "broken": "def run(notes:",
}
HIDDEN = "timm faster_coco_eval pycocotools triton rich tensorboard msgspec jinja2 matplotlib safetensors yaml scipy"
OURS = "ours, bf16, channels_last"
HIDE = """
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, path=None, target=None: (
    None if name.split(".")[0] in HIDDEN.split() else find(name, path, target)
)
"""


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    """Parts that end in every way."""
    for name, code in FAKES.items():
        (tmp_path / f"fake_{name}.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return {name: (f"fake_{name}", 1 if name == "hangs" else 10) for name in FAKES}


def test_a_part_that_fails_leaves_the_others_alone(fakes, tmp_path, capfd):
    out = tmp_path / "record.json"
    record = run_parts(out, list(fakes), "cpu", 40, fakes)
    assert record == json.loads(out.read_text())
    parts = record["parts"]
    endings = {name: part["status"] for name, part in parts.items()}
    assert endings == {
        "good": "done",
        "raises": "failed",
        "dies": "failed",
        "hangs": "timed out",
        "broken": "failed",
    }
    assert parts["good"]["found"] == {"device": ["cpu", True]}
    assert all(parts[name]["found"] == {"first": 1} for name in ("raises", "dies", "hangs"))
    assert "RuntimeError: CUDA error: as if" in parts["raises"]["error"]
    assert "exit status -9" in parts["dies"]["error"]
    assert "time.sleep" in parts["hangs"]["error"] or "fake_hangs.py" in parts["hangs"]["error"]
    assert "SyntaxError" in parts["broken"]["error"]
    assert list(tmp_path.glob(".record*")) == []
    assert "SyntaxError" in "\n".join(table(record))


def test_parts_are_measured_again_one_by_one(fakes, tmp_path):
    out = tmp_path / "record.json"
    run_parts(out, ["raises", "good"], "cpu", 20, fakes)
    fakes["raises"] = fakes["good"]
    record = run_parts(out, ["raises"], "cpu", 10, fakes)
    assert [part["status"] for part in record["parts"].values()] == ["done", "done"]


def test_what_a_part_finds_is_json(tmp_path):
    notes = Notes("cpu", 10, tmp_path / "found.json")
    notes.note("numbers", [math.inf, math.nan, {80: -math.inf}])
    notes.attempt("division", lambda: 1 / 0)
    notes.attempt("package", lambda: __import__("no_such_package"))
    notes.attempt("long", lambda: 1, needs=60)
    found = json.loads(notes.path.read_text())["found"]
    assert found["numbers"] == ["inf", None, {"80": "-inf"}]
    assert found["division"]["error"] == "ZeroDivisionError: division by zero"
    assert found["package"] == {"not_run": "no_such_package is missing"}
    assert found["long"]["not_run"].endswith("and it needs 60")


def test_a_wrong_gradient_is_seen(monkeypatch):
    case = ("chunked", "dr", "planes", "float32", 3)
    assert correctness.check(case, "cpu")["ok"]

    def wrong(x, *given, backend, **options):
        x = x if backend == "torch" else [level * 1.0001 for level in x]
        return dr_loss(x, *given, backend=backend, **options)

    monkeypatch.setitem(cases.LOSSES, "dr", (wrong, {}))
    found = correctness.check(case, "cpu")
    assert not found["ok"]
    assert found["beyond_eager"] > 5e-5
    monkeypatch.setitem(cases.LOSSES, "dr", (dr_loss, {"neg_prior": -1}))
    assert "neg_prior" in correctness.check(case, "cpu")["error"]


@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_layouts_hold_the_same_logits(layout):
    levels = cases.maps(2, 3, [(2, 4), (1, 2)], layout, torch.float32, "cpu")
    assert cases.rows(levels, 3).shape == (2, 90, 3)
    if layout not in ("rows", "sliced"):
        strides = [x.is_contiguous() for x in levels]
        assert strides == {"planes": [True] * 2, "channels_last": [False] * 2, "mixed": [True, False]}[layout]
    if layout == "sliced":
        assert not any(x.is_contiguous() for x in levels)


def record_of_a_gpu():
    """A record with a row of each kind."""
    row = {"device": "cuda", "dtype": "float32", "batch": 16, "logits": "start", "layout": "rows", "floor_s": 1e-3}
    times = {"forward_s": 4e-4, "backward_s": 8e-4, "both_s": 1.2e-3, "host_s": 5e-4, "x_floor": 1.2, "memory": 1.0}
    rows = [row | times | {"loss": "DR", "x_focal": 0.05}, row | {"loss": "DR, mined", "error": "OutOfMemoryError"}]
    found = {
        "machine": {"versions": dict.fromkeys(("device", "torch", "torchvision", "triton", "python", "commit"), "A")},
        "correctness": {"summary": {"cases": 9, "run": 8, "wrong": 0}},
        "loss": {"rows": rows},
        "step": {
            "steps": {
                "ours": {"images_per_s": 100.0, "waits": 3, "peak_gb": 20.0},
                "torchvision": {"error": "RuntimeError: no"},
            },
            "loading": {"2": 80.0},
        },
        "training": {
            "steps": 300,
            "runs": [
                {"loss": "dr", "seed": 0, "first_loss": 3.0, "last_loss": 1.0, "AP50": 60.0, "AP": 30.0},
                {"loss": "focal", "seed": 0, "error": "killed"},
            ],
        },
    }
    parts = {name: {"status": "done", "seconds": 1.0, "found": value} for name, value in found.items()}
    return {"date": "2026-01-01", "parts": parts}


def test_the_page_of_speeds_shows_a_record(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    record = record_of_a_gpu()
    for device in ("h100", "cpu"):
        (tmp_path / f"2026-01-01-gpu-{device}.json").write_text(json.dumps(record))
    (tmp_path / "2026-01-02-gpu-h100.json").write_text(json.dumps({"date": "2026-01-02", "parts": {}}))
    records = page.newest()
    assert records["cuda"]["file"] == "2026-01-01-gpu-h100.json"
    for section in ("_instructions", "_host", "_whole_step"):
        monkeypatch.setattr(page, section, list)
    text = page.speed_page(records)
    assert "| cuda, float32, batch 16 | DR: × the floor | ≤ 1.25 | 1.20 |" in text
    assert "| **DR** | 0.400 | 0.800 | 1.200 | 0.050 | 1.20 | 1.00 |" in text
    assert "8 of 9 cases" in text
    assert "| ours | 100.0 | 10.0 | 3 | 20.0 |" in text
    assert "| torchvision | not run | | | |" in text
    assert "80 with 2" in text
    assert "| dr | 0 | 3.00 | 1.00 | 60.0 | 30.0 |" in text
    assert "| focal | 0 | not run | | | |" in text
    page.picture(records["cuda"])
    shown = "\n".join(table(record))
    assert "OutOfMemoryError" in shown
    assert "incomplete" not in shown


@pytest.mark.parametrize("part", PARTS)
def test_a_record_without_a_part_has_a_table_and_a_page(part):
    record = record_of_a_gpu()
    if part in record["parts"]:
        record["parts"][part] = {"status": "timed out", "seconds": 1.0, "found": {}, "error": "exit status -9"}
    assert "incomplete" not in "\n".join(table(record))
    assert "Whole training steps" in "\n".join(pages.sections(record))


@pytest.mark.slow
@pytest.mark.parametrize("hidden", ["", HIDDEN], ids=["all packages", "few packages"])
def test_everything_can_be_tried_on_a_cpu(hidden, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(f"HIDDEN = {hidden!r}\n{HIDE}")
    out = tmp_path / "record.json"
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "DRLOSS_COMMIT": "abc"}
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--minutes", "60", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    parts = json.loads(out.read_text())["parts"]
    assert {name: part["status"] for name, part in parts.items()} == dict.fromkeys(PARTS, "done"), done.stdout
    found = {name: part["found"] for name, part in parts.items()}
    assert found["correctness"]["summary"]["wrong"] == 0
    assert set(found["correctness"]["special"].values()) == {True}
    assert all("both_s" in row for row in found["loss"]["rows"])
    steps = found["step"]["steps"]
    assert {name for name in steps if "images_per_s" not in steps[name]} == ({OURS} if hidden else set())
    every = [item for of_part in found.values() for item in of_part.items()]
    failed = [name for name, value in every if isinstance(value, dict) and "error" in value]
    assert failed == []
    if hidden:
        assert steps[OURS] == {"not_run": "rich is missing"}
        assert any(f"No module named '{name}'" in found["training"]["runs"][0]["error"] for name in HIDDEN.split())
        assert "missing" in found["step"]["loading"]["not_run"]
    else:
        assert all(0 <= row["AP50"] <= 100 for row in found["training"]["runs"])
