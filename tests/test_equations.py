"""docs/equations.md is right: every function exists and names its equation, every test exists."""

import ast
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import drloss.losses

ROOT = Path(__file__).parent.parent
ROWS = [
    [cell.strip().strip("`") for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs/equations.md").read_text().splitlines()
    if re.match(r"\| (Eq\.|Proposition|Remark|Theorem|Corollary|§|Table|Appendix|ours \| (?!what))", line)
]


def test_the_map_has_everything_that_the_paper_numbers():
    numbered = [f"Eq. ({n})" for n in range(1, 10)] + ["Proposition 1", "Proposition 2", "Theorem 1", "Theorem 2"]
    assert {*numbered, "Corollary 1", "Remark 1", "Remark 2", "Appendix A"} <= {row[0] for row in ROWS}


def test_every_function_that_cites_the_paper_is_in_the_map():
    mapped = {row[2] for row in ROWS}
    for info in pkgutil.iter_modules(drloss.losses.__path__, "drloss.losses."):
        module = importlib.import_module(info.name)
        for name, thing in vars(module).items():
            if getattr(thing, "__module__", None) == info.name and "Paper:" in (
                getattr(thing, "__doc__", None) or ""
            ):
                assert f"{info.name}.{name}" in mapped


@pytest.mark.parametrize(("source", "what", "function", "test"), ROWS, ids=[r[0] + " " + r[2] for r in ROWS])
def test_function_names_its_equation_and_has_its_test(source, what, function, test):
    module, name = function.rsplit(".", 1)
    docstring = getattr(importlib.import_module(module), name).__doc__
    if source == "ours":
        assert "ours" in docstring, f"{function} does not say that it is ours"
    else:
        assert_names(source, function, docstring)
    file, test_name = test.split("::")
    names = [n.name for n in ast.walk(ast.parse((ROOT / file).read_text())) if isinstance(n, ast.FunctionDef)]
    assert test_name in names, f"{file} has no {test_name}"


def assert_names(source, function, docstring):
    number = re.search(r"[\d.]+|(?<=Appendix )A", source).group()
    kind = source.split()[0].rstrip(".") if not source.startswith("§") else "§"
    assert re.search(rf"{kind}[^.]{{0,3}}.{{0,20}}{re.escape(number)}", docstring), (
        f"{function} does not name {source}"
    )
