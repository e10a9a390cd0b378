"""The commands from end to end on a small generated set, and what a user's mistakes look like."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from drloss import cli
from drloss.cli import main
from small_training import QUICK


def test_data_check_prints_what_it_found(workshop, capsys):
    assert main(["check-data", str(workshop / "data"), "--report", str(workshop / "report.json")]) == 0
    said = capsys.readouterr().out
    assert "disc" in said
    assert "12" in said
    json.loads((workshop / "report.json").read_text())


@pytest.mark.parametrize("layout", ["voc", "yolo"])
def test_other_layouts_are_written_and_checked(layout, tmp_path, capsys):
    assert (
        main(["make-shapes", str(tmp_path / layout), "--format", layout, "--data", "shapes:train=3,val=2,test=2"])
        == 0
    )
    assert main(["check-data", str(tmp_path / layout)]) == 0


def test_eval_writes_results_metrics_and_plots(workshop, capsys):
    options = ["--data", str(workshop / "data"), "--workers", "0", "--device", "cpu"]
    assert main(["eval", str(workshop / "run"), *options]) == 0
    assert "AP50" in capsys.readouterr().out
    out = workshop / "run" / "eval_val"
    names = {p.name for p in out.iterdir()}
    plots = {"precision_recall.png", "thresholds.png", "densities.png"}
    assert {"results.json", "metrics.json", "report.html", *plots} == names
    results = json.loads((out / "results.json").read_text())
    assert all(set(r) == {"image_id", "category_id", "bbox", "score"} for r in results)
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics["metrics"]) == {"AP", "AP50", "AP75", "APs", "APm", "APl"}
    for picture in out.glob("*.png"):
        with Image.open(picture) as image:
            assert min(image.size) > 200


def test_an_exported_file_gives_the_runs_numbers_and_needs_nothing_else(workshop, tmp_path, capsys):
    exported = tmp_path / "detector.safetensors"
    assert main(["export", str(workshop / "run"), "--out", str(exported)]) == 0
    options = ["--data", str(workshop / "data"), "--workers", "0", "--device", "cpu", "--out"]
    assert main(["eval", str(exported), *options, str(tmp_path / "a")]) == 0
    assert main(["eval", str(workshop / "run"), *options, str(tmp_path / "b")]) == 0
    a, b = (json.loads((tmp_path / n / "results.json").read_text()) for n in "ab")
    assert a == b


def test_options_have_one_name_in_every_command_and_older_names_go_on(workshop, tmp_path):
    evaluate = ["eval", str(workshop / "run"), "--data", str(workshop / "data"), "--workers", "0", "--device", "cpu"]
    assert main([*evaluate, "--out", str(tmp_path / "a"), "--split", "val", "--batch-size", "3"]) == 0
    assert main([*evaluate, "--out", str(tmp_path / "b"), "--val-split", "val", "--eval-batch-size", "3"]) == 0
    assert (tmp_path / "a" / "results.json").read_bytes() == (tmp_path / "b" / "results.json").read_bytes()
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    predict = ["predict", str(workshop / "run"), str(tmp_path / "a.png"), "--out", str(tmp_path / "c")]
    for threshold in ("--threshold", "--draw-threshold"):
        assert main([*predict, "--device", "cpu", threshold, "0.1"]) == 0


@pytest.mark.slow
def test_demo_writes_one_page_with_its_three_losses(tmp_path, capsys):
    out = tmp_path / "demo"
    small = "shapes:train=16,val=8,test=1"
    assert main(["demo", "--out", str(out), "--max-iters", "2", "--data", small, "--device", "cpu"]) == 0
    page = (out / "report.html").read_text()
    for word in ("Focal", "DR", "AP50", "<svg"):
        assert word in page
    summary = json.loads((out / "report.json").read_text())
    assert [r["title"] for r in summary["losses"]] == ["Focal", "DR", "DR+"]
    focal, dr, plus = (r["settings"] for r in summary["losses"])
    different = {k for k in focal if focal[k] != dr[k]}
    assert different == {"loss", "prior probability"}
    assert {k for k in dr if dr[k] != plus[k]} == {"loss"}


@pytest.mark.parametrize(("weights", "preset"), [(None, "cpu"), ("a.pth", "demo")])
def test_demo_starts_from_pretrained_weights_where_there_are_any(weights, preset, monkeypatch, capsys):
    pytest.importorskip("timm", reason="timm is not installed")
    begun = []
    monkeypatch.setattr("drloss.detector.timm_backbones.packaged_weights", lambda name: weights)
    monkeypatch.setattr("drloss.cli.studies._compare", lambda options: begun.append(options.preset) or 0)
    assert main(["demo"]) == 0
    assert begun == [preset]
    assert ("from random weights" in capsys.readouterr().out) == (weights is None)


MISTAKES = [
    (["train"], "the following arguments are required"),
    (["trian"], "invalid choice: 'trian'"),
    (["train", "--data", "shapes", "--preset", "gpu", "--out", "x"], "invalid choice: 'gpu'"),
    (["train", "--data", "shapes", "--preset", "cpu", "--out", "x", "--learning-rate", "1"], "--learning-rate"),
    (["train", "--data", "shapes", "--preset", "cpu", "--out", "x", "--lr", "fast"], "lr must be float, got 'fast'"),
    (["train", "--data", "shapes", "--preset", "cpu", "--out", "x", "--lr", "-1"], "lr must be positive"),
    (["train", "--data", "shapes", "--preset", "cpu", "--out", "x", "--max-iter", "5"], "--max-iter"),
    (["train", "--data", "no/such/folder", "--preset", "cpu", "--out", "x"], "no/such/folder"),
    (["train", "--data", "shapes:colour=1", "--preset", "cpu", "--out", "x"], "unknown key 'colour'"),
    (["train", "--data", "shapes:size=big", "--preset", "cpu", "--out", "x"], "size must be of type int"),
    (["train", "--data", "shapes", "--preset", "cpu", "--out", "x", "--train-split", "traning"], "train, val, test"),
    (["train", "--data", "shapes", "--preset", "cpu", "--out", "x", "--device", "tpu9"], "--device"),
    (["train", "--data", "shapes", "--preset", "cpu", "--out", "x", "--device", "cuda:99"], "CUDA devices"),
    (
        ["train", "--data", "shapes", "--preset", "cpu", "--out", "x", "--loss", "l2"],
        "loss must be one of dr, dr+, focal, ce",
    ),
    (["eval", "no/run", "--data", "shapes"], "no/run"),
    (["eval", "no/run", "--data", "shapes", "--eval-batch-size", "0"], "--eval-batch-size must be at least 1"),
    (["predict", "no/run", "no/images", "--out", "x"], "no/images: no such file or folder"),
    (["predict", "no/run", "no/images", "--out", "x", "--draw-threshold", "2"], "--draw-threshold must lie in 0..1"),
    (["export", "no/run", "--out", "x.pt"], "must end in .safetensors"),
    (["export", "no/run", "--out", "x.safetensors"], "no/run"),
    (["check-data", "no/such/folder"], "no/such/folder"),
    (["make-shapes", "x", "--data", "coco"], "--data must be shapes"),
]


@pytest.mark.parametrize(("arguments", "words"), MISTAKES, ids=[" ".join(a[:1] + a[-2:]) for a, _ in MISTAKES])
def test_a_users_mistake_ends_in_two_lines_and_code_2(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(arguments)
    except SystemExit as ended:  # argparse
        code = ended.code
    said = capsys.readouterr().err
    assert code == 2
    assert words in said
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) <= 2
    assert list(tmp_path.iterdir()) == []


def test_other_classes_are_refused_by_eval(workshop, tmp_path, capsys):
    data = json.loads((workshop / "data" / "annotations" / "instances_val.json").read_text())
    data["categories"][0]["name"] = "blob"
    folder = tmp_path / "data"
    (folder / "annotations").mkdir(parents=True)
    (folder / "annotations" / "instances_val.json").write_text(json.dumps(data))
    (folder / "val").symlink_to(workshop / "data" / "val")
    assert main(["eval", str(workshop / "run"), "--data", str(folder), "--device", "cpu"]) == 2


def test_an_image_that_is_cut_off_stops_a_run_before_it_starts(tmp_path, capsys):
    data, out = tmp_path / "data", tmp_path / "run"
    assert main(["make-shapes", str(data), "--data", "shapes:train=12,val=2,test=1,size=64"]) == 0
    image = sorted((data / "train").iterdir())[5]
    image.write_bytes(image.read_bytes()[:-100])
    train = ["train", "--data", str(data), "--preset", "cpu", "--out", str(out), "--short-side", "64", *QUICK]
    assert main(train) == 2
    said = capsys.readouterr().err
    assert image.name in said
    assert "image not readable" in said
    assert not out.exists()


def test_a_split_without_a_box_has_no_ap_in_eval_and_that_is_said(workshop, tmp_path, capsys):
    data = tmp_path / "data"
    assert main(["make-shapes", str(data), "--data", "shapes:train=2,val=2,test=1,size=64"]) == 0
    file = data / "annotations" / "instances_val.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"annotations": []}))
    evaluate = ["eval", str(workshop / "run"), "--data", str(data), "--device", "cpu", "--out", str(tmp_path / "o")]
    assert main(evaluate) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "no boxes in" in said
    assert "AP is undefined there" in said
    assert "nan" not in said


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([name, "--help"] for name in cli._COMMANDS)])
def test_help_answers_without_torch(arguments):
    code = f"""
import sys
from drloss import cli
try:
    cli.main({arguments!r})
except SystemExit as ended:
    assert ended.code == 0
for module in ("torch", "matplotlib", "rich", "PIL"):
    assert module not in sys.modules, module
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_missing_dependency_is_named():
    code = """
import sys
sys.modules["torchvision"] = None
from drloss.cli import main
sys.exit(main(["predict", "run", "images", "--out", "x"]))
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "torchvision is missing: run pip install '.[detector]' in the checkout of drloss" in done.stderr


def test_a_run_goes_on_without_an_image_that_turns_out_to_be_damaged(tmp_path, capsys):
    data, out = tmp_path / "data", str(tmp_path / "run")
    assert main(["make-shapes", str(data), "--data", "shapes:train=12,val=2,test=1,size=64"]) == 0
    image = sorted((data / "train").iterdir())[5]
    whole = image.read_bytes()
    image.write_bytes(whole[:-100] + bytes(50) + whole[-50:])
    train = ["train", "--data", str(data), "--preset", "cpu", "--out", out, "--short-side", "64", *QUICK]
    assert main(train) == 2
    said = capsys.readouterr().err
    assert image.name in said
    assert "--resume --force --skip-bad leaves it out" in said
    assert main([*train, "--resume", "--force", "--skip-bad"]) == 0
    assert json.loads((tmp_path / "run" / "data_train.json").read_text())["images_left_out"] == 1


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you"),
    ],
)
def test_a_want_of_memory_says_what_to_lower(error, tmp_path, monkeypatch, capsys):
    def full(*args, **kwargs):
        raise error

    monkeypatch.setattr("drloss.training.fit.take_step", full)
    train = ["train", "--data", "shapes:train=8,val=2", "--preset", "cpu", "--out", str(tmp_path / "run"), *QUICK]
    assert main(train) == 2
    assert "more memory than there is: lower --micro-batch" in capsys.readouterr().err


def test_other_errors_of_torch_are_faults_of_ours(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr("drloss.training.fit.take_step", broken)
    train = ["train", "--data", "shapes:train=8,val=2", "--preset", "cpu", "--out", str(tmp_path / "run"), *QUICK]
    with pytest.raises(RuntimeError, match="mat1"):
        main(train)


def test_check_data_says_what_a_preset_makes_of_the_objects(tmp_path, capsys):
    data = tmp_path / "data"
    assert main(["make-shapes", str(data), "--data", "shapes:train=40,val=2,test=1"]) == 0
    assert main(["check-data", str(data)]) == 0
    said = capsys.readouterr().out
    assert "good: strict reading takes all of it" in said
    assert f"next: drloss train --data {data} --preset laptop --out runs/first" in said
    assert main(["check-data", str(data), "--preset", "cpu", "--short-side", "32"]) == 0
    said = capsys.readouterr().out
    assert "train: with --preset cpu --short-side 32, " in said
    assert "readable: strict reading takes all of it, but mind the remark above" in said
    with pytest.raises(SystemExit):
        main(["check-data", str(data), "--preset", "r50"])
    assert "--preset: invalid choice: 'r50', did you mean 'r50_1x'?" in capsys.readouterr().err


def test_train_needs_only_the_splits_that_it_reads(tmp_path, capsys):
    data = tmp_path / "data"
    make = ["make-shapes", str(data), "--format", "yolo", "--data", "shapes:train=4,val=2,test=1,size=64"]
    assert main(make) == 0
    text = (data / "data.yaml").read_text()
    (data / "data.yaml").write_text(text.replace("images/test", "../test/images"))
    run = ["--preset", "cpu", "--short-side", "64", *QUICK]
    assert main(["train", "--data", str(data), "--out", str(tmp_path / "run"), *run]) == 0
    (data / "data.yaml").write_text(text.replace("images/val", "../valid/images"))
    assert main(["train", "--data", str(data), "--out", str(tmp_path / "other"), *run]) == 2
    assert f"val, got '../valid/images'; allowed: a folder or list that exists (not {data}" in capsys.readouterr().err


def test_other_processes_hear_that_images_are_still_being_checked(monkeypatch):
    from drloss.inference import reading

    def check(annotations, report, *, strict, progress):
        for done in range(1, 1201):
            progress(done, 1200)
        return annotations, report

    monkeypatch.setattr(reading, "check_images", check)
    heard = []
    ranks = SimpleNamespace(at=lambda doing, *, slow: heard.append((doing, slow)))
    source = SimpleNamespace(read=lambda split, strict: ("annotations", SimpleNamespace(problems=[])))
    assert reading.read_split(source, "train", True, ranks)[0] == "annotations"
    assert heard == [("checking images", True)] * 2
