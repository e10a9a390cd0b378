"""The user's files are read and nothing else."""

import json

import pytest
import torch
from PIL import Image

from drloss.cli import main
from drloss.detector.config import DetectorConfig
from drloss.detector.exported import DetectorFile, save_detector
from drloss.detector.model import RetinaNet
from drloss.training.config import to_json
from drloss.training.presets import PRESETS
from drloss.training.run_folder import EVALUATIONS_FILE, METRICS_FILE

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


# ---------------------------------------------------------------------- folders of the user's that --out names


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """An exported detector of small images."""
    path = tmp_path_factory.mktemp("detector") / "detector.safetensors"
    torch.manual_seed(0)
    config = DetectorConfig("resnet10", "group", 16, 5, 1, 16, 2.5, 2, short_side=32, max_side=64)
    names = ("disc", "square", "triangle", "star")
    save_detector(path, RetinaNet(config, 4, 0.5).state_dict(), DetectorFile(config, names, (1, 2, 3, 4), "dr"))
    return path


@pytest.fixture
def flawed(tmp_path):
    """A data set whose annotation file is ``data_train.json``, with a box that --skip-bad leaves out."""
    folder = tmp_path / "flawed"
    assert main(["make-shapes", str(folder), "--data", "shapes:train=4,val=2,test=1,size=64"]) == 0
    content = json.loads((folder / "annotations" / "instances_train.json").read_text())
    content["annotations"][0]["bbox"] = [0, 0, -1, -1]
    (folder / "data_train.json").write_text(json.dumps(content))
    path = tmp_path / "flawed.toml"
    path.write_text(
        f'format = "coco"\nroot = "{folder}"\n[splits.train]\nimages = "train"\nannotations = "data_train.json"\n'
    )
    return folder, ["--data", str(path), "--skip-bad"]


def refused(command, folder, capsys):
    """What a command says that is refused, and leaves every path of a folder as it was."""
    before = state(folder)
    capsys.readouterr()
    assert main(list(map(str, command))) == 2
    assert state(folder) == before
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def test_a_report_of_bad_data_does_not_replace_an_annotation_file(flawed, detector, tmp_path, capsys):
    folder, data = flawed
    train = ["train", *data, "--out", folder, *QUICK]
    assert "data_train.json: is there and no report" in refused(train, folder, capsys)
    (folder / "config.json").write_text(json.dumps(to_json(PRESETS["cpu"])))
    assert "holds a run already" in refused(train, folder, capsys)
    evaluate = ["eval", detector, *data, "--split", "train", "--out", folder, "--workers", 0, "--device", "cpu"]
    assert "data_train.json: is there and no report" in refused(evaluate, folder, capsys)
    run = tmp_path / "run"
    for more in ([], ["--resume"]):  # one's own is replaced
        assert main(["train", *data, "--out", str(run), *QUICK, *more]) == 0
        assert json.loads((run / "data_train.json").read_text())["boxes_left_out"] == 1


@pytest.mark.parametrize("more", [[], ["--resume"]], ids=["new", "resume"])
@pytest.mark.parametrize("name", ["config.json", "environment.json", METRICS_FILE, EVALUATIONS_FILE, "tensorboard"])
def test_files_that_no_run_wrote_are_not_replaced(name, more, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    for content in ("{}", "a,b\n1,2\n"):
        (tmp_path / "mine" / name).write_text(content)
        train = ["train", "--data", "shapes:train=4,val=2", "--out", tmp_path / "mine", *QUICK, *more]
        assert f"{name} is there, which a run would write" in refused(train, tmp_path / "mine", capsys)


def test_a_lock_of_ones_own_keeps_its_content(tmp_path):
    (tmp_path / ".lock").write_text("mine")
    assert main(["train", "--data", "shapes:train=4,val=2", "--out", str(tmp_path), *QUICK]) == 0
    assert (tmp_path / ".lock").read_text() == "mine"


def test_predictions_are_not_drawn_among_the_images_nor_over_other_files(detector, tmp_path, capsys):
    images, out = tmp_path / "images", tmp_path / "out"
    for folder in (images, out):
        folder.mkdir()
        Image.new("RGB", (64, 48)).save(folder / "b.png")
    Image.new("RGB", (64, 48)).save(images / "a.png")
    predict = ["predict", detector, images, "--device", "cpu", "--out"]
    for what in (images, images / "a.png"):
        said = refused(["predict", detector, what, "--device", "cpu", "--out", images], images, capsys)
        assert "is the folder of the images" in said
    (out / "pictures").mkdir()
    for more in ([], ["--overwrite"]):
        assert "pictures is there, not written by drloss predict" in refused([*predict, out, *more], out, capsys)
    (out / "pictures").rmdir()
    (out / "predictions.jsonl").write_text('{"image": "a.png", "label": 1}')
    assert "predictions.jsonl is there, not written by drloss" in refused([*predict, out], out, capsys)
    for more in ([], [], ["--overwrite"]):  # one's own are known or replaced, and not predicted on
        assert main(list(map(str, [*predict, images / "drawn", *more]))) == 0
        names = [p.relative_to(images / "drawn").as_posix() for p in (images / "drawn").rglob("*.jpg")]
        assert sorted(names) == ["pictures/a.jpg", "pictures/b.jpg"]
    (images / "drawn" / "pictures" / "mine.jpg").write_bytes(b"mine")
    assert main(list(map(str, [*predict, images / "drawn", "--overwrite"]))) == 0
    assert (images / "drawn" / "pictures" / "mine.jpg").read_bytes() == b"mine"


def test_an_evaluation_does_not_replace_other_results(detector, tmp_path, capsys):
    data = ["--data", "shapes:train=2,val=2,size=64", "--workers", "0", "--device", "cpu"]
    evaluate = ["eval", str(detector), *data, "--out"]
    for name in ("results.json", "metrics.json", "thresholds.png"):
        (mine := tmp_path / name / name).parent.mkdir()
        mine.write_text("{}")
        assert f"{name} is there, of no evaluation" in refused([*evaluate, mine.parent], mine.parent, capsys)
    for _ in range(2):  # one's own are replaced
        assert main([*evaluate, str(tmp_path / "out")]) == 0
