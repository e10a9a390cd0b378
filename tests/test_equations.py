"""docs/equations.md is right: every function exists and names its equation, every test exists."""

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROWS = [
    [cell.strip().strip("`") for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs/equations.md").read_text().splitlines()
    if re.match(r"\| (Eq\.|Proposition|Remark|§|Table)", line)
]


def test_the_map_is_not_empty():
    assert len(ROWS) >= 8


@pytest.mark.parametrize(("source", "what", "function", "test"), ROWS, ids=[r[0] + " " + r[2] for r in ROWS])
def test_function_names_its_equation_and_has_its_test(source, what, function, test):
    module, name = function.rsplit(".", 1)
    docstring = getattr(importlib.import_module(module), name).__doc__
    number = re.search(r"[\d.]+", source).group()
    kind = source.split()[0].rstrip(".") if not source.startswith("§") else "§"
    assert re.search(rf"{kind}[^.]{{0,3}}.{{0,20}}{re.escape(number)}", docstring), (
        f"{function} does not name {source}"
    )
    file, test_name = test.split("::")
    names = [n.name for n in ast.walk(ast.parse((ROOT / file).read_text())) if isinstance(n, ast.FunctionDef)]
    assert test_name in names, f"{file} has no {test_name}"
