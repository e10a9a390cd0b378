"""A detector as an ONNX file: from the export to the script that uses it."""

import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from drloss.cli import main
from drloss.detector.config import DetectorConfig
from drloss.detector.detections import detect, from_whole_input
from drloss.detector.exported import DetectorFile
from drloss.errors import UserError
from drloss.inference import export
from drloss.structures import Frame
from random_detector import NAMES, TINY, detect_image, noise, random_detector

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
from drloss.detector.onnx_file import OnnxDetector  # noqa: E402

THRESHOLD = 0.45
"""Of the exported detector."""
DOCS = Path(__file__).parents[2] / "docs" / "deploy.md"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder with ``tiny.safetensors`` and the ``tiny.onnx`` of it, of any size and with NMS; and the detector."""
    folder = tmp_path_factory.mktemp("onnx")
    model = random_detector(folder / "tiny.safetensors", threshold=THRESHOLD)
    assert main(["export", str(folder / "tiny.safetensors"), "--out", str(folder / "tiny.onnx")]) == 0
    return folder, model


def assert_agree(file, model, images, tolerance=export.EXACT):
    """The file finds in these images what torch finds in them; returns how many detections were compared."""
    size = (images.shape[2], images.shape[3])
    frames = [Frame(size, size)] * len(images)
    with torch.no_grad():
        wanted = detect(model(images), frames, model.config)
    got = from_whole_input(file(images), frames, model.config, suppressed=file.suppresses)
    compared = 0
    for ours, theirs in zip(wanted, got, strict=True):
        agreement = export.compare(ours, theirs, model.config, tolerance, max(size))
        assert agreement.alone <= tolerance.share * agreement.compared, agreement
        compared += agreement.compared
        assert (theirs["scores"].diff() <= 0).all()
    return compared


@pytest.mark.parametrize(
    "shape",
    [
        (3, 96, 64),
        (1, 256, 160),
        *(pytest.param(s, marks=pytest.mark.slow) for s in ((1, 64, 96), (2, 32, 32), (5, 64, 64))),
    ],
)
def test_one_file_takes_every_batch_and_size_and_finds_what_torch_finds(exported, shape):
    folder, model = exported
    file = OnnxDetector(folder / "tiny.onnx")
    assert assert_agree(file, model, noise(shape[0], 3, *shape[1:])) > 0


def test_places_without_a_detection_have_a_score_of_0(exported):
    folder, _ = exported
    images = noise(2, 3, 32, 32)
    arrays = OnnxDetector(folder / "tiny.onnx")._session.run(None, {"images": images.numpy()})
    boxes, scores, labels = arrays
    assert boxes.shape == (2, 100, 4)
    nothing = scores == 0
    assert nothing.any()
    assert (labels[nothing] == 0).all()
    assert (boxes[nothing] == 0).all()
    assert (labels[~nothing] > 0).all()
    assert (scores[~nothing] > TINY.score_threshold).all()


def test_the_metadata_say_what_the_file_is(exported):
    folder, model = exported
    (entry,) = onnx.load(folder / "tiny.onnx").metadata_props
    about = json.loads(entry.value)
    assert entry.key == "about"
    assert about["class_names"] == list(NAMES)
    assert about["input"]["size"] is None
    assert about["input"]["padding"] == [124, 116, 104]
    assert (about["nms"], about["half"], about["loss"]) == (True, False, "dr")
    file = OnnxDetector(folder / "tiny.onnx")
    assert file.description == DetectorFile(model.config, NAMES, (1, 2, 3, 4), "dr", THRESHOLD)
    assert (file.size, file.suppresses) == (None, True)


def test_eval_and_predict_take_the_file_and_give_the_numbers_of_the_weights(exported, tmp_path):
    folder, _ = exported
    options = ["--data", "shapes:train=1,val=6,test=1,size=80", "--workers", "0", "--device", "cpu", "--out"]
    Image.fromarray(noise(50, 77, 3).numpy()).save(tmp_path / "a.png")
    for name in ("tiny.onnx", "tiny.safetensors"):
        assert main(["eval", str(folder / name), *options, str(tmp_path / "eval" / name)]) == 0
        predict = ["predict", str(folder / name), str(tmp_path / "a.png"), "--out", str(tmp_path / name)]
        assert main([*predict, "--device", "cpu"]) == 0
    ours, theirs = (json.loads((tmp_path / "eval" / n / "metrics.json").read_text()) for n in ("tiny.onnx", name))
    assert ours["metrics"]["AP"] == pytest.approx(theirs["metrics"]["AP"], abs=1e-3)
    a, b = (json.loads((tmp_path / n / "predictions.jsonl").read_text()) for n in ("tiny.onnx", name))
    assert (a["height"], a["width"]) == (50, 77)
    near = [d for d in a["detections"] if any(matches(d, other) for other in b["detections"])]
    assert len(near) >= 0.8 * len(a["detections"]) > 0  # boxes of the padding are cut after NMS


def matches(a, b):
    return a["class"] == b["class"] and np.allclose(
        [a["score"], *a["box_xyxy"]], [b["score"], *b["box_xyxy"]], atol=0.05
    )


def test_the_script_of_the_docs_runs_without_torch_and_drloss(exported, tmp_path):
    folder, model = exported
    image = noise(3, 64, 96)
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    script = re.search(r"```python\n(import json\n.*?)```", DOCS.read_text(), flags=re.DOTALL)[1]
    script += "\nassert not {'torch', 'drloss', 'torchvision'} & set(sys.modules)\n"
    (tmp_path / "detect.py").write_text(script)
    ran = subprocess.run(
        [sys.executable, "-I", "detect.py", str(folder / "tiny.onnx"), "a.png"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    wanted = detect_image(model, image)
    said = [line.split() for line in ran.stdout.splitlines()]
    some = wanted["scores"] >= THRESHOLD
    assert len(said) == int(some.sum()) > 0
    for words, box, score, label in zip(said, *(wanted[k][some] for k in ("boxes", "scores", "labels")), strict=True):
        assert words[0] == NAMES[label - 1]
        assert np.allclose([float(w) for w in words[1:]], [score, *box], atol=0.06)


def refused(arguments, words, capsys):
    assert main([str(a) for a in arguments]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.strip().splitlines()) <= 2


def test_a_file_that_does_not_agree_is_not_written(exported, tmp_path, monkeypatch, capsys):
    folder, _ = exported
    random_detector(tmp_path / "other.safetensors", seed=1)
    content = (folder / "tiny.onnx").read_bytes()
    monkeypatch.setattr(export, "onnx_bytes", lambda *a, **k: content)
    refused(["export", tmp_path / "other.safetensors", "--out", tmp_path / "x.onnx"], "not written: of", capsys)
    assert [p.name for p in tmp_path.iterdir()] == ["other.safetensors"]


def test_a_full_disk_leaves_the_old_file(exported, tmp_path, monkeypatch, capsys):
    folder, _ = exported
    content = (folder / "tiny.onnx").read_bytes()
    monkeypatch.setattr(export, "onnx_bytes", lambda *a, **k: content)
    (tmp_path / "x.onnx").write_text("old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        refused(["export", folder / "tiny.safetensors", "--out", tmp_path / "x.onnx"], "no space left", capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_the_extra(package, exported, tmp_path, monkeypatch, capsys):
    folder, _ = exported
    monkeypatch.setattr("drloss.detector.onnx_file.find_spec", lambda name: None if name == package else 1)
    words = f"{package} is missing: run pip install '.[onnx]'"
    refused(["export", folder / "tiny.safetensors", "--out", tmp_path / "x.onnx"], words, capsys)
    if package == "onnxruntime":
        refused(["eval", folder / "tiny.onnx", "--data", "shapes", "--out", tmp_path / "out"], words, capsys)


def test_a_torch_that_is_too_old_to_export_is_named(exported, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.__version__", "2.6.0+cu124")
    words = "--format onnx: needs torch 2.9 or later, this is 2.6.0+cu124"
    refused(["export", exported[0] / "tiny.safetensors", "--out", tmp_path / "x.onnx"], words, capsys)
    assert not list(tmp_path.iterdir())


def test_files_that_are_no_detectors_are_refused(exported, tmp_path):
    folder, _ = exported
    (tmp_path / "noise.onnx").write_bytes(b"no onnx" * 100)
    ours = onnx.load(folder / "tiny.onnx")
    ours.opset_import[0].version = 999
    onnx.save(ours, tmp_path / "future.onnx")
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "ab"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["a"], ["b"])], "g", value[:1], value[1:])
    opset = [onnx.helper.make_opsetid("", 18)]
    foreign = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
    onnx.save(foreign, tmp_path / "foreign.onnx")
    about = json.loads(onnx.load(folder / "tiny.onnx").metadata_props[0].value)
    onnx.helper.set_model_props(foreign, {"about": json.dumps(about)})
    onnx.save(foreign, tmp_path / "graph.onnx")
    onnx.helper.set_model_props(foreign, {"about": json.dumps(about | {"input": {"size": [1e9, 1]}})})
    onnx.save(foreign, tmp_path / "size.onnx")
    onnx.helper.set_model_props(foreign, {"about": "{"})
    onnx.save(foreign, tmp_path / "words.onnx")
    for name, words in {
        "noise": "onnxruntime .* cannot read it",
        "future": "onnxruntime .* cannot read it",
        "foreign": "not a detector exported by drloss",
        "graph": "its graph takes and gives",
        "size": "its description cannot be read: the size of its input is",
        "words": "its description cannot be read",
        "missing": "no such file",
    }.items():
        with pytest.raises(UserError, match=rf"{name}\.onnx: {words}"):
            OnnxDetector(tmp_path / f"{name}.onnx")


def test_bad_boxes_are_left_out_of_the_comparison_if_that_is_asked_for(exported, tmp_path, capsys):
    folder, _ = exported
    data, out = tmp_path / "data", tmp_path / "x.onnx"
    assert main(["make-shapes", str(data), "--data", "shapes:train=1,val=2,test=1,size=64"]) == 0
    annotations = data / "annotations" / "instances_val.json"
    plain = json.loads(annotations.read_text())
    plain["annotations"][0]["bbox"][2] = 0
    annotations.write_text(json.dumps(plain))
    export = ["export", folder / "tiny.safetensors", "--out", out, "--data", data]
    refused(export, "--skip-bad to go on without these boxes", capsys)
    assert not out.exists()
    assert main([*map(str, export), "--skip-bad", "--raw", "--size", "64"]) == 0
    assert out.exists()


def test_other_classes_and_what_a_graph_cannot_follow_are_refused(exported, tmp_path, capsys):
    folder, _ = exported
    weights, file = folder / "tiny.safetensors", folder / "tiny.onnx"
    data = tmp_path / "data"
    assert main(["make-shapes", str(data), "--data", "shapes:train=1,val=1,test=1,size=64"]) == 0
    annotations = data / "annotations" / "instances_val.json"
    annotations.write_text(annotations.read_text().replace('"star"', '"blob"'))
    evaluate = ["eval", file, "--device", "cpu", "--workers", "0", "--out", tmp_path / "out", "--data"]
    refused([*evaluate, data], "was trained on the classes", capsys)
    refused([*evaluate, "shapes", "--score-threshold", "0.1"], "drops what scores less than 0.3", capsys)
    refused([*evaluate, "shapes", "--test-scales", "64", "96"], "--test-scales", capsys)
    out = tmp_path / "x.onnx"
    refused(["export", weights, "--out", out, "--size", "65"], "multiples of 32", capsys)
    refused(["export", weights, "--out", out, "--size", "big"], "--size must be dynamic", capsys)
    refused(["export", weights, "--out", out, "--format", "safetensors"], "must end in .safetensors", capsys)
    refused(["export", weights, "--out", tmp_path / "x.safetensors", "--half"], "--half goes with", capsys)
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--raw"], ["--half"], ["--size", "64", "96"], ["--raw", "--size", "96"]])
def test_every_kind_of_file_agrees(options, tmp_path):
    model = random_detector(tmp_path / "a.safetensors")
    assert main(["export", str(tmp_path / "a.safetensors"), "--out", str(tmp_path / "a.onnx"), *options]) == 0
    file = OnnxDetector(tmp_path / "a.onnx")
    assert file.suppresses == ("--raw" not in options)
    tolerance = export.HALF if "--half" in options else export.EXACT
    assert assert_agree(file, model, noise(2, 3, *(file.size or (64, 128))), tolerance) > 0
    if file.size:
        with pytest.raises(UserError, match="cannot run it"):
            file(noise(1, 3, 128, 128))


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["frozen", "group"])
def test_a_backbone_of_timm_with_padding_as_tensorflow_does_agrees(norm, tmp_path):
    pytest.importorskip("timm", reason="timm is not installed")
    config = DetectorConfig(**{**vars(TINY), "backbone": "tf_efficientnet_lite0", "norm": norm, "top_level": 7})
    model = random_detector(tmp_path / "a.safetensors", config)
    assert main(["export", str(tmp_path / "a.safetensors"), "--out", str(tmp_path / "a.onnx")]) == 0
    assert assert_agree(OnnxDetector(tmp_path / "a.onnx"), model, noise(2, 3, 96, 160)) > 0
