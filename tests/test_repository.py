"""Files around the source agree with it: the workflow, the Dockerfiles, the citation, the changelog, the forms."""

import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

import drloss

ROOT = Path(__file__).parent.parent
FORMS = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
DOCKERFILES = ("Dockerfile", "Dockerfile.cuda")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HERE = Path(__file__).name


def texts():
    """The files under version control that are read by people or machines, and what is in them."""
    suffixes = [f"*.{suffix}" for suffix in ("py", "md", "toml", "yml", "yaml", "html", "cff", "in")]
    command = ["git", "ls-files", "--", *suffixes, "Makefile", "Dockerfile*", ".ci/run"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a checkout of git")
    names = [name for name in listed.stdout.splitlines() if Path(name).name != HERE]
    assert len(names) > 200
    return {name: (ROOT / name).read_text(encoding="utf-8") for name in names if (ROOT / name).is_file()}


def test_nobody_is_told_to_install_a_name_that_is_on_no_index():
    wrong = re.compile(r"""pip3? install( +-[\w-]+)* +['"]?drloss\b(?!/)""")
    for told in (
        "run pip install drloss",
        "pip install --quiet 'drloss[onnx]'",
        "python -m pip install -U drloss>=0.2",
    ):
        assert wrong.search(told)
    assert not wrong.search("run pip install '.[onnx]' in the checkout of drloss, which is on no index")
    assert [name for name, text in texts().items() if wrong.search(text)] == []


def test_nothing_names_an_index_of_its_own():
    option = r"--(extra-)?index-url|--find-links|PIP_(EXTRA_)?INDEX_URL|download\.pytorch\.org/whl"
    assert [name for name, text in texts().items() if re.search(option, text)] == []


# ---------------------------------------------------------------------- workflow


@pytest.fixture(scope="module")
def workflow():
    return yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]["test"]


def test_the_workflow_runs_the_targets_of_the_makefile(workflow):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert workflow["steps"][-1]["run"] == "make ${{ matrix.targets }}"
    oldest, newest = [shlex.split(job["targets"]) for job in workflow["strategy"]["matrix"]["include"]]
    assert newest == ["check", "test"]
    assert {*newest, oldest[0]} <= targets
    (files,) = (word.removeprefix("TESTS=") for word in oldest[1:])
    assert files.startswith("tests/losses ")
    assert all((ROOT / file).exists() for file in files.split())


def test_the_workflow_tries_the_ends_of_what_is_supported(workflow):
    tried = workflow["strategy"]["matrix"]["include"]
    named = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)]
    assert [job["python"] for job in tried] == [named[0], named[-1]]
    oldest = [need.replace(">=", "==") + ".0" for need in PROJECT["dependencies"]]
    vision = [n for n in PROJECT["optional-dependencies"]["detector"] if n.startswith("torchvision")]
    oldest += [need.replace(">=", "==") + ".0" for need in vision]
    assert tried[0]["constraints"].split() == oldest
    assert "constraints" not in tried[-1]


# ---------------------------------------------------------------------- Docker


def instructions(name):
    """The instructions of a Dockerfile, each a list of words."""
    joined = re.sub(r"\\\n", " ", (ROOT / name).read_text())
    return [shlex.split(line) for line in joined.splitlines() if line and not line.startswith("#")]


def copied_into_images():
    """Names at the top of the checkout that .dockerignore lets through."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[0] == "*"
    return [line.removeprefix("!") for line in lines if line.startswith("!")]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_has_what_the_package_is_built_from(name):
    assert ["COPY", ".", "/opt/drloss"] in instructions(name)
    assert {"pyproject.toml", "src", PROJECT["readme"], *PROJECT["license-files"]} == set(copied_into_images())
    assert all((ROOT / copied).exists() for copied in copied_into_images())


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_installs_extras_that_there_are(name):
    pip = ["RUN", "python", "-m", "pip", "install"]
    (installed,) = [words[-1] for words in instructions(name) if words[:5] == pip]
    extras = re.fullmatch(r"/opt/drloss\[(.+)\]", installed)[1].split(",")
    assert extras == ["laptop", "onnx"]
    assert set(extras) <= set(PROJECT["optional-dependencies"])


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_starts_the_command_on_a_supported_python(name):
    words = instructions(name)
    assert ["ENTRYPOINT", f"[{next(iter(PROJECT['scripts']))}]"] in words
    (base,) = [w[1] for w in words if w[0] == "ARG"]
    minor = re.fullmatch(r"BASE=python:3\.(\d+)-slim", base)[1]
    assert f"Programming Language :: Python :: 3.{minor}" in PROJECT["classifiers"]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_example_of_a_dockerfile_is_a_command_of_ours(name):
    from drloss.cli import _COMMANDS
    from drloss.training.presets import PRESETS

    said = re.sub(r"\\\n#", " ", (ROOT / name).read_text())
    command, preset = re.search(r"docker run .* drloss\S* (\S+) .*--preset (\S+)", said).groups()
    assert command in _COMMANDS
    assert preset in PRESETS


# ---------------------------------------------------------------------- citation, changelog, forms


def test_the_citation_is_of_this_version_and_of_the_paper():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (cited["title"], cited["version"]) == ("drloss", drloss.__version__)
    assert cited["license"] == PROJECT["license"]
    (paper,) = cited["references"]
    bibtex = (ROOT / "docs" / "paper.md").read_text().partition("```bibtex")[2]
    authors = " and ".join(f"{a['family-names']}, {a['given-names']}" for a in paper["authors"])
    assert f"author = {{{authors}}}" in bibtex
    assert f"year = {{{paper['year']}}}" in bibtex
    assert f"title = {{{paper['title']}}}" in bibtex.replace("{DR}", "DR")


def test_the_changelog_is_of_this_version_and_keeps_its_form():
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## (.+)$", text, flags=re.MULTILINE)
    assert versions[0] == "Unreleased"
    assert re.fullmatch(re.escape(drloss.__version__) + r" - \d{4}-\d\d-\d\d", versions[1])
    kinds = set(re.findall(r"^### (.+)$", text, flags=re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


@pytest.mark.parametrize("path", FORMS, ids=lambda p: p.stem)
def test_a_form_asks_for_the_version(path):
    form = yaml.safe_load(path.read_text())
    asked = [part for part in form["body"] if part["type"] != "markdown"]
    assert len({part["id"] for part in asked}) == len(asked)
    assert all(part["attributes"]["label"] for part in asked)
    assert any("drloss --version" in part["attributes"].get("description", "") for part in asked)
    assert any(part.get("validations", {}).get("required") for part in asked)


def test_there_are_forms():
    assert [path.stem for path in FORMS] == ["bug", "question"]
