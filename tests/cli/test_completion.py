"""Shells complete commands, options and values from the script of drloss completion."""

import shutil
import subprocess
import sys

import pytest

from drloss import cli
from drloss.cli import main
from drloss.cli.completion import SHELLS
from drloss.training.presets import PRESETS

pytest.importorskip("shtab", reason="shtab is not installed: pip install '.[detector]'")


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory):
    script = tmp_path_factory.mktemp("completion") / "drloss"
    code = "import sys; from drloss.cli import main; main(['completion', 'bash']); sys.exit('torch' in sys.modules)"
    with script.open("w") as file:
        subprocess.run([sys.executable, "-c", code], check=True, stdout=file)
    return script


def completed(script, *words):
    """What bash completes the last of some words to."""
    drive = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _shtab_drloss; echo "${COMPREPLY[*]}"'
    command = ["bash", "--norc", "-c", drive, "bash", str(script), "drloss", *words]
    return set(subprocess.run(command, check=True, capture_output=True, text=True, cwd=script.parent).stdout.split())


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([""], {*cli._COMMANDS}),
        (["tr"], {"train"}),
        (["train", "--opt"], {"--optimizer"}),
        (["train", "--optimizer", ""], {"sgd", "adamw"}),
        (["train", "--precision", ""], {"auto", "fp32", "bf16", "fp16"}),
        (["train", "--preset", ""], {*PRESETS}),
        (["config", "lap"], {"laptop"}),
        (["eval", "photo"], {"photo.jpg"}),
        (["train", "--data", "photo"], {"photo.jpg"}),
        (["completion", ""], {*SHELLS}),
    ],
)
def test_bash_completes(bash_script, words, expected):
    (bash_script.parent / "photo.jpg").touch()
    assert completed(bash_script, *words) == expected


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_can_read_its_script(shell, tmp_path, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in (*cli._COMMANDS, *PRESETS, "--no-scale-lr"):
        assert word.removeprefix("--") in script
    if shutil.which(shell):
        (tmp_path / "script").write_text(script)
        subprocess.run([shell, "-n", str(tmp_path / "script")], check=True)


def test_older_names_are_not_offered(bash_script):
    assert "--eval-batch-size" in completed(bash_script, "eval", "--")
    assert "--batch-size" not in completed(bash_script, "eval", "--")


def test_another_shell_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["completion", "csh"])
    assert ended.value.code == 2
    assert "invalid choice: 'csh' (choose from" in capsys.readouterr().err


def test_a_missing_shtab_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "shtab is missing: run pip install '.[detector]'" in capsys.readouterr().err
