"""Imports run one way, and never in a circle."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import drloss

ROOT = Path(drloss.__file__).parent
TESTS = Path(__file__).parent
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


def module_of(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def imported_modules(path):
    """The modules of the package that a file imports, anywhere in it, but for the types it is checked with."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            yield from (
                f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in MODULES else node.module for a in node.names
            )


def test_no_two_files_import_each_other():
    graph = {name: {m for m in imported_modules(path) if m != name} for name, path in MODULES.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


LONGEST_FILE, LONGEST_FUNCTION = 400, 80
NUMBERS = {"studies/paper/numbers.py"}
"""The paper's numbers, which are as many as they are."""
KERNELS = {"losses/fused/triton_kernels.py"}


@pytest.mark.parametrize("path", MODULES.values(), ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_fit_on_a_few_screens(path):
    name, text = str(path.relative_to(ROOT)), path.read_text()
    if name not in NUMBERS | KERNELS:
        assert len(text.splitlines()) <= LONGEST_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and name not in KERNELS:
            first = node.body[1 if ast.get_docstring(node) and len(node.body) > 1 else 0]
            assert node.end_lineno - first.lineno < LONGEST_FUNCTION, node.name


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda p: str(p.relative_to(TESTS)))
def test_files_of_tests_are_as_short(path):
    assert len(path.read_text().splitlines()) <= LONGEST_FILE


def test_contributing_shows_every_folder_and_no_other():
    text = (ROOT.parent.parent / "CONTRIBUTING.md").read_text()
    tree = re.search(r"```\nsrc/drloss/\n(.*?)```", text, flags=re.DOTALL)[1]
    shown, above = set(), []
    for line in tree.splitlines():
        indent, folder, slash = re.match(r"( +)([\w.]+)(/?)", line).groups()
        if not slash:
            continue
        above[len(indent) // 2 - 1 :] = [folder]
        shown.add("/".join(above))
    there = {str(p.parent.relative_to(ROOT)) for p in MODULES.values()} - {"."}
    assert shown == there


def test_every_folder_says_what_is_in_it():
    for path in MODULES.values():
        if path.name == "__init__.py":
            assert len(ast.get_docstring(ast.parse(path.read_text())).splitlines()) >= 3, path
