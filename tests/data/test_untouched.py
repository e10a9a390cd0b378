"""The user's files are read and nothing else."""

import pytest

from drloss.cli import main

QUICK = ["--preset", "cpu", "--short-side", "64", "--max-iters", "2", "--batch-size", "2", "--no-scale-lr"]
QUICK += ["--workers", "0", "--device", "cpu"]


def state(folder):
    """Every path below a folder, with its content, its mode and its times of change."""
    paths = [folder, *sorted(folder.rglob("*"))]
    stats = {p: p.stat() for p in paths}
    return {
        p: (s.st_mode, s.st_mtime_ns, s.st_ctime_ns, s.st_ino, p.is_file() and p.read_bytes())
        for p, s in stats.items()
    }


def make_read_only(folder):
    for path in sorted(folder.rglob("*"), reverse=True):
        path.chmod(0o555 if path.is_dir() else 0o444)
    folder.chmod(0o555)


@pytest.fixture
def shapes(tmp_path, request):
    """Generated data of one layout, read-only; writable again at the end, so that it can be removed."""
    folder = tmp_path / "data"
    sizes = "shapes:train=4,val=2,test=1,size=64"
    assert main(["make-shapes", str(folder), "--format", request.param, "--data", sizes]) == 0
    make_read_only(folder)
    yield folder
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755)


@pytest.mark.soak
@pytest.mark.parametrize("shapes", ["coco", "voc", "yolo"], indirect=True)
def test_no_command_changes_the_users_files(shapes, tmp_path, figure, capsys):
    before = state(shapes)
    run, data = str(tmp_path / "run"), ["--data", str(shapes)]
    images = next(p.parent for p in shapes.rglob("*.png"))
    commands = [["check-data", str(shapes), "--report", str(tmp_path / "report.json")]]
    if (shapes / "annotations").exists():  # from here on the format makes no difference
        commands += [
            ["train", *data, "--out", run, *QUICK],
            ["eval", run, *data, "--workers", "0", "--device", "cpu"],
            ["predict", run, str(images), "--out", str(tmp_path / "predictions"), "--device", "cpu"],
        ]
    for command in commands:
        assert main(command) == 0, command
        assert state(shapes) == before, command
    names = ", ".join(dict.fromkeys(command[0] for command in commands))
    figure("files untouched", f"{names}: bytes, modes, times and names of {len(before)} paths as before")
