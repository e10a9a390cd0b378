"""Is the release ready? ``make release-check`` runs this: it builds, checks the metadata and installs the result.

The sdist is made from the checkout and the wheel from the sdist. The wheel is then installed into bare virtual
environments, one for each way to install it, and tried there, outside of the checkout:

- ``core``, the wheel alone: torch is the only dependency, and a loss brings nothing but torch along;
- one for each extra: two iterations of training, export and predict; for a host of an adapter, its import.

What the environments share: torch and what torch requires, which are gigabytes. They are installed once, in the
environment ``torch``, which the others see through a ``.pth`` file. Everything else each has for itself.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).parent.parent
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
ADAPTERS = {path.stem for path in (ROOT / "src" / "drloss" / "adapters").glob("*.py")}
NOT_OURS = {"pip", "setuptools"}
"""What a bare environment comes with."""
CORE = """
import sys
import torch
before = {name.partition(".")[0] for name in sys.modules}
import drloss
logits = torch.zeros(2, 1000, 80, requires_grad=True)
loss = drloss.DRLoss()(logits, torch.randint(0, 81, (2, 1000)))
loss.backward()
assert abs(loss.item() - 2.0324) < 1e-3, loss
assert logits.grad.isfinite().all() and logits.grad.any()
brought = {name.partition(".")[0] for name in sys.modules} - before - set(sys.stdlib_module_names)
assert brought <= {"drloss", "triton"}, brought  # torch brings triton where there is a GPU for it
print("loss", loss.item(), drloss.__file__)
"""
QUICK = ("--max-iters", "2", "--batch-size", "2", "--workers", "0", "--short-side", "64", "--device", "cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="folder for what is built (default: dist)")
    folder = ROOT / "build" / "release"
    parser.add_argument("--work", type=Path, default=folder, help="environments (default: build/release)")
    parser.add_argument("extras", nargs="*", metavar="EXTRA", help=f"any of {', '.join(EXTRAS)}")
    options = parser.parse_args()
    if unknown := [extra for extra in options.extras if extra not in EXTRAS]:
        parser.error(f"no extra of pyproject.toml: {', '.join(unknown)}; choose from {', '.join(EXTRAS)}")
    work = options.work.resolve()
    wheel = build(options.dist.resolve())
    shared = environment(work / f"torch-{sys.version_info.major}.{sys.version_info.minor}", pip=[torch_of(wheel)])
    try_core(environment(work / "core", shared, [str(wheel)]), wheel)
    for extra in options.extras:
        python = environment(work / extra, shared, [f"{wheel}[{extra}]"])
        try_host(python, extra) if extra in ADAPTERS else try_detector(python, extra, work / extra / "tried")
    print(f"\nready: {wheel.name}, alone and with {', '.join(options.extras) or 'no extra'}")


def run(*command: str | Path, cwd: Path | None = None, code: int = 0) -> str:
    """Run a command, print it and the last line that it says, and return all; end with all if it exits otherwise."""
    shown = " ".join(str(c) for c in command if "\n" not in str(c))
    print("$", shown, flush=True)
    outside = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=outside, text=True, check=False, **both)
    if done.returncode != code:
        sys.exit(f"{done.stdout}release-check: exit code {done.returncode}, not {code}: {shown}")
    for line in done.stdout.rstrip().splitlines()[-1:]:
        print(f"  {line}", flush=True)
    return done.stdout


def build(dist: Path) -> Path:
    """Build the sdist and from it the wheel, check the metadata of both, and return the wheel."""
    shutil.rmtree(dist, ignore_errors=True)
    run(sys.executable, "-m", "build", "--outdir", dist, ROOT)
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    run(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist)
    return wheel


def torch_of(wheel: Path) -> str:
    """The requirement of torch in the wheel's metadata, which is to be its only one without an extra."""
    with ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        needs = Parser().parsestr(archive.read(name).decode()).get_all("Requires-Dist")
    always = [need for need in needs if "extra ==" not in need]
    if [need.partition(">")[0] for need in always] != ["torch"]:
        sys.exit(f"release-check: the wheel alone requires {always}, not torch alone")
    return always[0]


def environment(folder: Path, shared: Path | None = None, pip: Sequence[str] = ()) -> Path:
    """Make a bare virtual environment that sees the packages of another, install what is named, return its Python.

    The environment ``torch`` is kept from an earlier call, as torch is large; every other one is made anew.
    """
    python = folder / "bin" / "python"
    if shared is not None or not python.exists():
        shutil.rmtree(folder, ignore_errors=True)
        run(sys.executable, "-m", "venv", folder)
    if shared is not None:
        (packages(python) / "shared.pth").write_text(f"{packages(shared)}\n")
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *pip)
    run(python, "-m", "pip", "check")
    return python


def packages(python: Path) -> Path:
    """The folder into which an environment installs."""
    (folder,) = python.parent.parent.glob("lib/python*/site-packages")
    return folder


def try_core(python: Path, wheel: Path) -> None:
    listed = run(python, "-m", "pip", "list", "--format", "json", "--path", packages(python))
    installed = {package["name"] for package in json.loads(listed)} - NOT_OURS
    if installed != {"drloss"}:
        sys.exit(f"release-check: the wheel alone brought {sorted(installed)}")
    outside = python.parent.parent
    run(python, "-c", CORE, cwd=outside)
    say_version(python, wheel.name.split("-")[1])
    drloss = python.with_name("drloss")
    run(drloss, "train", "--help", cwd=outside)
    said = run(drloss, "train", "--data", "shapes", "--preset", "cpu", "--out", "run", cwd=outside, code=2)
    if " is missing: run pip install '.[detector]'" not in said:
        sys.exit("release-check: a command whose extra is not installed does not name it")


def say_version(python: Path, expected: str) -> None:
    said = run(python.with_name("drloss"), "--version", cwd=python.parent.parent)
    if said != f"drloss {expected}\n":
        sys.exit(f"release-check: drloss --version says {said!r}, not {expected}")


def try_detector(python: Path, extra: str, work: Path) -> None:
    """Train two iterations, export and predict, with what the extra adds."""
    work.mkdir()

    def drloss(*arguments: str) -> None:
        run(python.with_name("drloss"), *arguments, cwd=work)

    preset = "laptop" if extra == "laptop" else "cpu"
    drloss("--version")
    drloss("make-shapes", "data", "--data", "shapes:train=8,val=4,test=2,size=64")
    drloss("train", "--data", "data", "--preset", preset, "--out", "run", *QUICK)
    drloss("export", "run", "--out", "detector.safetensors")
    drloss("predict", "detector.safetensors", "data/test", "--out", "predictions", "--device", "cpu")
    if extra == "onnx":
        drloss("export", "run", "--out", "detector.onnx")
        drloss("predict", "detector.onnx", "data/test", "--out", "predictions-onnx")
    drloss("completion", "bash")


def try_host(python: Path, extra: str) -> None:
    run(python, "-c", f"import drloss.adapters.{extra} as adapter; print(adapter.__file__)", cwd=python.parent.parent)


if __name__ == "__main__":
    main()
