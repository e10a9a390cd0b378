"""What is in the wheel and in the sdist, and what their metadata say. ``make release-check`` installs them."""

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest

import drloss

ROOT = Path(__file__).parent.parent
MEBIBYTE = 1 << 20
pytest.importorskip("setuptools", "77", reason="setuptools 77 or later is not installed: pip install '.[test]'")


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """A folder with the wheel and the sdist, built from a copy of the checkout."""
    folder = tmp_path_factory.mktemp("release")
    copy, dist = folder / "checkout", folder / "dist"
    away = ("__pycache__", "*.egg-info", ".*", "build", "dist", "runs", "demo")
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*away))
    for kind in ("sdist", "wheel"):
        build = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
        command = [sys.executable, "-c", build, str(dist)]
        done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return dist


@pytest.fixture(scope="module")
def wheel(dist):
    with ZipFile(next(dist.glob("*.whl"))) as archive:
        yield archive


@pytest.fixture(scope="module")
def metadata(wheel):
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return Parser().parsestr(wheel.read(name).decode())


def test_the_version_stands_in_one_place(project, metadata):
    assert "version" not in project
    assert project["dynamic"] == ["version"]
    assert metadata["Version"] == drloss.__version__


def test_one_wheel_serves_every_python_and_torch(dist):
    assert [path.name for path in dist.glob("*.whl")] == [f"drloss-{drloss.__version__}-py3-none-any.whl"]


def test_the_wheel_has_the_package_and_nothing_else(wheel):
    there = {name for name in wheel.namelist() if ".dist-info/" not in name}
    package = ROOT / "src" / "drloss"
    modules = {f"drloss/{path.relative_to(package).as_posix()}" for path in package.rglob("*.py")}
    templates = {
        f"drloss/studies/report/templates/{path.name}" for path in package.glob("studies/report/templates/*")
    }
    assert len(templates) > 5
    assert there == modules | templates | {"drloss/py.typed", "drloss/losses/fused/kernels.c"}


def test_nothing_in_it_is_large(wheel, dist):
    assert max(entry.file_size for entry in wheel.infolist()) < MEBIBYTE
    with tarfile.open(next(dist.glob("*.tar.gz"))) as sdist:
        assert max(entry.size for entry in sdist.getmembers()) < MEBIBYTE


def test_the_sdist_has_what_the_wheel_is_built_from(wheel, dist):
    with tarfile.open(next(dist.glob("*.tar.gz"))) as sdist:
        there = {entry.name.partition("/")[2] for entry in sdist.getmembers() if entry.isfile()}
    assert {f"src/{name}" for name in wheel.namelist() if ".dist-info/" not in name} <= there
    assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff"} <= there
    folders = {name.partition("/")[0] for name in there if "/" in name}
    assert folders == {"src"}


def test_torch_alone_is_required(metadata):
    needs = metadata.get_all("Requires-Dist")
    assert [need for need in needs if "extra ==" not in need] == ["torch>=2.6"]


def test_the_metadata_are_whole(project, metadata):
    assert metadata["Name"] == "drloss"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE"]
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().startswith("# drloss")
    assert set(metadata.get_all("Provides-Extra")) == set(project["optional-dependencies"])


def test_the_pythons_named_are_supported(project):
    oldest = re.fullmatch(r">=3\.(\d+)", project["requires-python"])[1]
    named = [c.removeprefix("Programming Language :: Python :: 3.") for c in project["classifiers"]]
    minors = [int(minor) for minor in named if minor.isdecimal()]
    assert minors == list(range(int(oldest), max(minors) + 1))


def test_no_requirement_names_an_index_or_a_build(project):
    """A build such as 2.13.0+cpu, or a file, would install on few machines."""
    needs = [
        *project["dependencies"],
        *(need for extra in project["optional-dependencies"].values() for need in extra),
    ]
    assert [need for need in needs if re.search(r"\+|@|://|===|--", need)] == []


def test_release_check_refuses_what_is_no_extra():
    command = [sys.executable, str(ROOT / "tools" / "release_check.py"), "detector", "nonsense"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no extra of pyproject.toml: nonsense; choose from detector, laptop, onnx" in done.stderr
