"""Imports run one way: losses <- detector <- data, training, evaluation <- studies <- cli."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import drloss

ROOT = Path(drloss.__file__).parent
TIERS = {"losses": 0, "adapters": 1, "detector": 1, "data": 2, "evaluation": 2, "training": 2, "studies": 3, "cli": 4}
ROOTS = {"errors", "files", "ranks", "tensorfiles", "watch"}
ANYWHERE = {*ROOTS, "losses", "__version__"}


def imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module]
        for name in names:
            if name and name.startswith("drloss."):
                yield name.split(".")[1]


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_room_imports_a_later_one(path):
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for other in imported_rooms(path):
        if room in TIERS:
            assert other in ANYWHERE or TIERS[other] <= TIERS[room], f"{path} imports drloss.{other}"
        elif room in ROOTS:
            assert other in ("errors", "files", "watch"), f"{path} imports drloss.{other}"


@pytest.mark.parametrize(
    "module", ["torchvision", "numpy.testing", "matplotlib", "PIL", "rich", "faster_coco_eval", "yaml"]
)
def test_import_drloss_brings_torch_and_nothing_heavier(module):
    code = f"import drloss, sys; sys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
