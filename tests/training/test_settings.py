"""Each setting explains itself, and a configuration can be printed, written to a file and read again."""

import json
import subprocess
import sys

import pytest

from drloss.cli import main
from drloss.training.config import GROUPS, OPTIONS, Config, descriptions, flat, from_json, to_json
from drloss.training.presets import PRESETS


def test_every_setting_has_a_description_and_one_group():
    assert set(descriptions()) == {*OPTIONS, "detector", "expects"}
    assert all(text.endswith(".") for text in descriptions().values())
    listed = [name for names in GROUPS.values() for name in names]
    assert sorted(listed) == sorted({*flat(Config())} - {"expects"})


def test_help_shows_each_setting_with_the_value_of_the_preset_that_is_asked_for(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--preset", "r101_2x", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "Number of optimiser steps." in said
    assert "[180000]" in said
    assert "[640,800]" in said
    assert "settings: schedule" in said


def test_help_needs_no_torch():
    code = "import sys; from drloss.cli import main\ntry: main(['train', '--help'])\nexcept SystemExit: pass\n"
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0


def test_a_printed_configuration_can_be_trained_from(tmp_path, capsys):
    assert main(["config", "cpu", "--lr", "0.5", "--max-iters", "2"]) == 0
    file = tmp_path / "own.json"
    file.write_text(capsys.readouterr().out)
    config = from_json(json.loads(file.read_text()), "own.json")
    assert (config.lr, config.max_iters) == (0.5, 2)
    data = ["--data", "shapes:size=64,train=4,val=2", "--device", "cpu"]
    settings = ["--config", str(file), "--batch-size", "2", "--no-scale-lr", "--workers", "0"]
    assert main(["train", *data, *settings, "--out", str(tmp_path / "run")]) == 0
    was = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (was["lr"], was["batch_size"], was["max_iters"]) == (0.5, 2, 2)


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "cannot be read"), ("{", "must be JSON"), ("[]", "not a configuration"), ("{}", "not a configuration")],
)
def test_a_file_that_is_no_configuration_is_refused(content, words, tmp_path, capsys):
    file = tmp_path / "own.json"
    if content is not None:
        file.write_text(content)
    assert main(["train", "--data", "shapes", "--config", str(file), "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert "own.json" in said


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["trian"], "'train'"),
        (["train", "--data", "shapes", "--preset", "r50_2x", "--out", "x"], "'r50_1x'"),
        (["train", "--data", "shapes", "--preset", "cpu", "--out", "x", "--max-iter", "3"], "'--max-iters'"),
        (["train", "--data", "shapes", "--preset", "cpu", "--out", "x", "--learning-rat=3"], "unrecognized"),
    ],
)
def test_a_misspelt_word_is_answered_with_the_nearest_one(arguments, meant, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert meant in capsys.readouterr().err


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_printed(name, capsys):
    assert main(["config", name]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(to_json(PRESETS[name])))
