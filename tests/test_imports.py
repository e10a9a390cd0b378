"""Imports run one way, and never in a circle."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import drloss

ROOT = Path(drloss.__file__).parent
TIERS = {
    **{"errors": 0, "io": 1, "distributed": 1, "losses": 1, "structures": 1, "adapters": 2, "detector": 2, "data": 2},
    **{"evaluation": 3, "training": 3, "inference": 4, "studies": 5, "cli": 6, "__main__": 7, "__init__": 7},
}
"""The rooms from the ground up: a room imports what stands below it, and what stands beside it on its own floor."""
ALONE = {
    **{"losses": {"errors"}, "io": {"errors"}, "distributed": {"errors", "io"}, "structures": set()},
    **{"data": {"errors", "io", "structures"}},
}
"""Rooms that import nothing else but these and themselves."""


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
def test_no_room_imports_one_above_it(path):
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for other in imported_rooms(path):
        assert TIERS[other] <= TIERS[room], f"{path} imports drloss.{other}"
        assert other in ALONE.get(room, {other}) | {room}, f"{path} imports drloss.{other}"


@pytest.mark.parametrize(
    "module", ["torchvision", "numpy.testing", "matplotlib", "PIL", "rich", "faster_coco_eval", "yaml"]
)
def test_import_drloss_brings_torch_and_nothing_heavier(module):
    code = f"import drloss, sys; sys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
