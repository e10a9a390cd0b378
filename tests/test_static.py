"""The package runs no code that a file brings, starts no shell and opens no connection."""

import ast
from pathlib import Path

import pytest

import drloss
from drloss.cli import main

ROOT = Path(drloss.__file__).parent
MODULES = {
    *("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "runpy", "code"),
    *("socket", "ssl", "urllib", "urllib3", "http", "ftplib", "smtplib", "requests", "httpx", "aiohttp"),
    *("webbrowser", "tarfile", "xmlrpc", "telnetlib", "socketserver", "asyncio"),
}
NAMES = {"eval", "exec", "__import__", "breakpoint"}
CALLS = {
    *("os.system", "os.popen", "compile", "torch.jit.load", "importlib.import_module", "numpy.load", "np.load"),
    *("torch.hub.load", "torch.hub.load_state_dict_from_url", "torch.hub.download_url_to_file"),
    *("yaml.load", "yaml.full_load", "yaml.unsafe_load", "yaml.load_all", "shutil.unpack_archive"),
}
METHODS = {"extractall", "extract"}
ALLOWED = {
    ("detector/weights.py", "get_state_dict"),  # torchvision's download of ImageNet weights, on --weights imagenet
}
"""What may reach for the network after all: by file, the call."""


def wrongs(path):
    """What a module of the package does that none may do, with the line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        found = None
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found = next((f"import {n}" for n in names if n.split(".")[0] in MODULES), None)
        elif isinstance(node, ast.Name) and node.id in NAMES:
            found = node.id
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            method = name.split(".")[-1]
            if name in CALLS or (method in METHODS and "." in name) or method == "get_state_dict":
                found = name
            elif name == "torch.load" and keywords.get("weights_only") != "True":
                found = "torch.load without weights_only=True"
            elif keywords.get("shell", "False") != "False" or keywords.get("allow_pickle", "False") != "False":
                found = f"{name} with a shell or a pickle"
        if found and (str(path.relative_to(ROOT)), found.split(".")[-1]) not in ALLOWED:
            yield f"line {node.lineno}: {found}"


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_module_runs_code_of_a_file_or_opens_a_connection(path):
    assert list(wrongs(path)) == []


@pytest.mark.parametrize(
    "line",
    [
        *("import pickle", "from urllib.request import urlopen", "import requests as r", "eval('1')", "f = exec"),
        *("torch.load(path)", "torch.load(path, weights_only=False)", "torch.load(path, weights_only=flag)"),
        *("yaml.load(text)", "archive.extractall(folder)", "subprocess.run(line, shell=True)", "os.system('ls')"),
        *("np.load(path, allow_pickle=True)", "torch.hub.load('a', 'b')", "weights.get_state_dict()"),
    ],
)
def test_what_none_may_do_is_seen(tmp_path, monkeypatch, line):
    (tmp_path / "module.py").write_text(line)
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert len(list(wrongs(tmp_path / "module.py"))) == 1


def test_the_one_exception_is_still_there():
    ((file, call),) = ALLOWED
    assert f".{call}(" in (ROOT / file).read_text()


@pytest.mark.soak
def test_no_command_opens_a_connection(tmp_path, monkeypatch, capsys, figure):
    import socket

    def refuse(*args, **kwargs):
        raise AssertionError("a connection was opened")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    run, data = str(tmp_path / "run"), "shapes:train=8,val=4,test=1,size=32"
    small = ["--short-side", "32", "--fpn-channels", "16", "--head-channels", "16", "--batch-size", "4"]
    one = [*small, "--max-iters", "1", "--workers", "0", "--no-scale-lr"]
    commands = [
        ["train", "--preset", "cpu", "--data", data, "--out", run, *one],
        ["eval", run, "--data", data, "--workers", "0"],
        ["export", run, "--out", str(tmp_path / "a.safetensors")],
        ["make-shapes", str(tmp_path / "shapes"), "--data", data],
        ["check-data", str(tmp_path / "shapes")],
        ["predict", run, str(tmp_path / "shapes" / "test"), "--out", str(tmp_path / "predictions")],
    ]
    for command in commands:
        assert main(command) == 0, (command, capsys.readouterr())
    figure("T35", f"{len(list(ROOT.rglob('*.py')))} modules clean, {len(commands)} commands without a connection")
