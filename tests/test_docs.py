"""README and docs: links lead somewhere, commands and options exist, and the site loads nothing from another host."""

import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest

import drloss
from drloss.cli import main

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
BOOKS = sorted(DOCS.rglob("*.ipynb"))
LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")
COMMAND = re.compile(r"(?:^    |^!|`)drloss (?P<line>[a-z][^`\n#]*)", re.MULTILINE)
FIGURE = r"(?<![\d.-])\d+\.\d(?![\d.]*\d)"
MOST_LINES = 90
"""Lines of the README: what a reader takes in at once."""


def text_of(path):
    """The Markdown of a page, or of the cells of a notebook; without fenced code in a page."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        return "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(path):
    """The ids that the headings of a page get, in the site and on GitHub, and the names of what it describes."""
    text = text_of(path)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", re.sub(r"\]\([^)]*\)", "", title)).strip().lower() for title in titles]
    return {re.sub(r"\s", "-", title) for title in plain} | set(re.findall(r"^::: (\S+)", text, re.MULTILINE))


def dead_links(path):
    """The links of a page that lead nowhere in the repository; links to other hosts are not followed."""
    for match in LINK.finditer(text_of(path)):
        file, _, anchor = unquote(match["target"]).partition("#")
        if re.match(r"[a-z]+:", file):
            continue
        target = (path.parent / file).resolve() if file else path
        there = target.exists() and target.is_relative_to(ROOT)
        if not there or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            yield match["target"]


@pytest.mark.parametrize("path", [*PAGES, *BOOKS], ids=lambda path: str(path.relative_to(ROOT)))
def test_no_link_is_dead(path):
    assert list(dead_links(path)) == []


def test_dead_links_are_seen(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path.resolve())
    (tmp_path / "other.md").write_text("# A title, with signs\n", encoding="utf-8")
    page = tmp_path / "page.md"
    good = "[a](other.md) [b](other.md#a-title-with-signs) [c](https://example.org/none) [d](#here)\n\n# Here\n"
    page.write_text(good, encoding="utf-8")
    assert list(dead_links(page)) == []
    page.write_text("[a](none.md) [b](other.md#none) [c](../up.md)", encoding="utf-8")
    assert list(dead_links(page)) == ["none.md", "other.md#none", "../up.md"]


def test_the_readme_is_short_and_begins_with_two_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    commands = re.findall(r"^    (\S+ \S+)", text, re.MULTILINE)
    assert commands[:2] == ["make demo", "make test"]


@cache
def options_of(command):
    """The options that ``drloss COMMAND --help`` lists."""
    done = subprocess.run(
        [sys.executable, "-m", "drloss", command, "--help"], capture_output=True, text=True, check=True
    )
    return set(re.findall(r"--[a-z][a-z-]*", done.stdout))


@pytest.mark.parametrize("path", [*PAGES, *BOOKS], ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_and_options_exist(path):
    for match in COMMAND.finditer(text_of(path)):
        line = re.sub(r"[|.].*", "", match["line"]) if "|" in match["line"] else match["line"]
        unknown = set(re.findall(r"(?<= )--[a-z][a-z-]*", line)) - options_of(line.split()[0].rstrip(",."))
        assert not unknown, match.group()


def test_an_unknown_command_ends_in_an_error(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["trian", "--help"])
    assert "train" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["faq", "choosing", "paper"])
def test_figures_of_the_guides_are_those_of_the_evidence(name):
    """Each AP in the text of a guide (a number with one decimal) is in a page that shows records."""
    evidence = ["comparisons", "trials", "reproduction", "adapters/transformers"]
    shown = set(re.findall(FIGURE, "\n".join(text_of(DOCS / f"{page}.md") for page in evidence)))
    told = re.sub(r"`[^`]*`", "", text_of(DOCS / f"{name}.md"))
    assert set(re.findall(FIGURE, told)) - shown == set()


def test_the_site_lists_every_page():
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r"^ +- (?:[^:\n]+: )?(\S+\.(?:md|ipynb))$", config, re.MULTILINE))
    assert listed == {str(path.relative_to(DOCS)) for path in [*PAGES, *BOOKS] if path.is_relative_to(DOCS)}


def test_the_api_has_every_public_name():
    described = {name for page in (DOCS / "api").glob("*.md") for name in anchors(page)}
    assert {f"drloss.{name}" for name in drloss.__all__ if name != "__version__"} <= described


@pytest.mark.slow
def test_the_site_is_built_strictly_and_loads_nothing_from_another_host(tmp_path):
    for needed in ("mkdocs", "material", "mkdocstrings", "mkdocs_jupyter", "latex2mathml"):
        pytest.importorskip(needed, reason="the extra docs is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stderr
    loaded = re.compile(
        r"<(?:script|link|img|iframe|source|video|object)\b[^>]*?(?:src|href|data)=[\"']?(?:https?:)?//[^\s>]+"
        r"|url\([\"']?(?:https?:)?//[^)]*|@import[^;]*//[^;]*"
    )
    files = [path for path in (tmp_path / "site").rglob("*") if path.suffix in (".html", ".css")]
    assert len(files) > len(PAGES)
    assert [found for path in files for found in loaded.findall(path.read_text(encoding="utf-8"))] == []
    losses = (tmp_path / "site" / "api" / "losses.html").read_text(encoding="utf-8")
    assert "<math" in losses
    assert "arithmatex" not in losses
    assert not re.search(r":(?:class|func|meth):", losses)
