"""The package runs no code that a file brings, starts no shell and opens no connection."""

import ast
import builtins
import re
from dataclasses import replace
from pathlib import Path

import pytest

import drloss
from drloss.cli import main
from drloss.training.presets import PRESETS

ROOT = Path(drloss.__file__).parent
MODULES = {
    *("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "runpy", "code"),
    *("socket", "ssl", "urllib", "urllib3", "http", "ftplib", "smtplib", "requests", "httpx", "aiohttp"),
    *("webbrowser", "tarfile", "xmlrpc", "telnetlib", "socketserver", "asyncio", "pty", "cffi", "timeit"),
}
NAMES = re.compile(
    r"builtins\.(eval|exec|compile|__import__|__builtins__|breakpoint)"
    r"|os\.(system|popen|exec\w+|spawn\w+|posix_spawn\w*|startfile|fork\w*)"
    r"|subprocess\.get(status)?output|shutil\.unpack_archive|numpy\.load"
    r"|torch\.(hub|package)(\..*)?|torch\.(jit|serialization|utils\.model_zoo)\.load\w*|torch\.(ops|classes)\.load_library"
    r"|torch\.utils\.cpp_extension(\..*)?|importlib\.(import_module|machinery.*|util\.(spec|module)_from\w+)"
    r"|yaml\.\w*load\w*|yaml\.(Unsafe|Full|C|CFull|CUnsafe)?Loader"
    r"|(posix|nt|_posixsubprocess)(\..*)?"
    r"|ctypes\.(?!(CDLL|Structure|POINTER|byref|c_\w+)$).*"
)
"""What no module names, be it to call it or to keep it."""
METHODS = {"extractall", "extract", "get_state_dict", "load_state_dict_from_url", "download_url_to_file"}
SHELLS = {"sh", "bash", "dash", "zsh", "ksh", "csh", "cmd", "cmd.exe", "powershell", "env", "xargs"}
ALLOWED = {
    (
        "detector/starting_weights.py",
        "get_state_dict",
    ),  # torchvision's download of ImageNet weights, on --weights imagenet
    ("detector/starting_weights.py", "get_dir"),  # where it keeps them, for a message
}
"""What may reach for the network after all: by file, the call."""
CTYPES = ("losses/fused/cpu.py", "distributed/host.py")
"""The files that call compiled code: the project's own, and glibc's settings."""
IMPORT = "importlib.import_module"
GUARDED = {"os", "builtins", "subprocess", "torch", "importlib", "yaml", "ctypes", "numpy", "shutil", "sys"}
"""Modules of which every attribute is written out."""
BUILTINS = {*dir(builtins), "__builtins__"}


def wrongs(path):
    """What a module of the package does that none may do, with the line."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = imported(tree)
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        found = None
        if isinstance(node, ast.Import | ast.ImportFrom):
            found = wrong_import(node, str(path.relative_to(ROOT)))
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
            name = dotted(node, names)
            if (NAMES.fullmatch(name) or name == "torch.load") and id(node) not in called:
                found = name
        elif isinstance(node, ast.Call):
            found = wrong_call(node, names)
        elif isinstance(node, ast.List | ast.Tuple):
            words = [*(e.value if is_text(e) else "" for e in node.elts[:2]), "", ""]
            if words[0].split("/")[-1] in SHELLS or words[1] in ("-c", "/c"):
                found = f"a shell, or a program from a text: {words[:2]}"
        if found and (str(path.relative_to(ROOT)), found.split(".")[-1]) not in ALLOWED:
            yield f"line {node.lineno}: {found}"


def imported(tree):
    """What the names of a module stand for that it imports, anywhere in it."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {
                a.asname or a.name.split(".")[0]: a.name if a.asname else a.name.split(".")[0] for a in node.names
            }
        elif isinstance(node, ast.ImportFrom):
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return names


def dotted(node, names):
    """The full name of what a name or an attribute stands for; ``?`` for what is no name."""
    if isinstance(node, ast.Name):
        return names.get(node.id, f"builtins.{node.id}" if node.id in BUILTINS else node.id)
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value, names)}.{node.attr}"
    if isinstance(node, ast.Call) and dotted(node.func, names) == "builtins.getattr" and is_text(node.args[1]):
        return f"{dotted(node.args[0], names)}.{node.args[1].value}"
    return "?"


def is_text(node):
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def wrong_import(node, file):
    modules = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
    whole = modules if isinstance(node, ast.Import) else [f"{node.module}.{a.name}" for a in node.names]
    if any(a.name == "*" for a in node.names) and not modules[0].startswith("drloss."):
        return f"import of all of {modules[0]}"
    if any(m.split(".")[0] == "ctypes" for m in modules) and file not in CTYPES:
        return "import ctypes"
    if wrong := next((m for m in modules if m.split(".")[0] in MODULES), None):
        return f"import {wrong}"
    # import_module, which the adapters use, is looked at where it is called.
    return next((n for n in whole if n == "torch.load" or (n != IMPORT and NAMES.fullmatch(n))), None)


def wrong_call(node, names):
    name, keywords = dotted(node.func, names), {k.arg: ast.unparse(k.value) for k in node.keywords}
    if name == IMPORT:
        start = node.args[0].values[0] if isinstance(node.args[0], ast.JoinedStr) else node.args[0]
        return None if is_text(start) and start.value.startswith("drloss.") else name
    if NAMES.fullmatch(name) or ("." in name and name.split(".")[-1] in METHODS):
        return name
    if name == "torch.load" and (keywords.get("weights_only") != "True" or {"pickle_module", None} & keywords.keys()):
        return "torch.load but with weights_only=True alone"
    if keywords.get("shell", "False") != "False" or keywords.get("allow_pickle", "False") != "False":
        return f"{name} with a shell or a pickle"
    if name == "builtins.getattr" and not is_text(node.args[1]):
        of = dotted(node.args[0], names).split(".")[0]
        return f"getattr of {of} by a name that is not written out" if of in MODULES | GUARDED else None
    if name == "builtins.getattr" and NAMES.fullmatch(dotted(node, names)):
        return dotted(node, names)
    return f"{name} of a text" if name.startswith("subprocess.") and node.args and is_text(node.args[0]) else None


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_module_runs_code_of_a_file_or_opens_a_connection(path):
    assert list(wrongs(path)) == []


@pytest.mark.parametrize(
    "line",
    [
        *("import pickle", "from urllib.request import urlopen", "import requests as r", "import timeit"),
        *("eval('1')", "f = exec", "import builtins; builtins.eval", "f = __builtins__['eval']"),
        *("from os import system", "from os import execvp as run", "from os import *", "import os; os.system('ls')"),
        *("import os; os.execvp('ls', [])", "import os; getattr(os, 'system')", "import os; getattr(os, name)"),
        *("subprocess.run(line, shell=True)", "import subprocess; subprocess.run(['sh', '-c', x])"),
        *("import subprocess as s; s.Popen(('/bin/bash', x))", "import subprocess; subprocess.run('ls')"),
        *("line = ['sh', '-c', x]", "import sys; line = [sys.executable, '-c', x]", "archive.extractall(folder)"),
        *("import ctypes", "from ctypes import CDLL", "from importlib import import_module; import_module(name)"),
        *("torch.load(path)", "torch.load(path, weights_only=False)", "torch.load(path, weights_only=flag)"),
        *("import torch as t; t.load(p)", "from torch import load", "import torch; f = torch.load"),
        *("torch.load(p, weights_only=True, pickle_module=m)", "torch.load(p, weights_only=True, **how)"),
        *("from torch.hub import load_state_dict_from_url", "import torch.utils.model_zoo as z; z.load_url(u)"),
        *("torch.hub.load('a', 'b')", "weights.get_state_dict()", "import numpy as np; np.load(p)"),
        *("f(path, allow_pickle=True)", "yaml.load(text)", "from yaml import load", "import yaml as y; y.load"),
    ],
)
def test_what_none_may_do_is_seen(tmp_path, monkeypatch, line):
    (tmp_path / "module.py").write_text(line)
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert list(wrongs(tmp_path / "module.py"))


@pytest.mark.parametrize(
    "line",
    [
        *("import torch as t; t.load(p, map_location='cpu', weights_only=True)", "import re; re.compile('a')"),
        *("import subprocess; subprocess.run(['git', 'describe'], cwd=x)", "import yaml; yaml.SafeLoader"),
        *("from importlib import import_module; import_module(f'drloss.adapters.{host}')", "def load(eval=1): pass"),
        *("import os; os.replace(a, b)", "import yaml; getattr(yaml, 'CSafeLoader', yaml.SafeLoader)"),
    ],
)
def test_what_is_allowed_is_not_taken_for_it(tmp_path, monkeypatch, line):
    (tmp_path / "module.py").write_text(line)
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert list(wrongs(tmp_path / "module.py")) == []


def test_the_exceptions_are_still_there():
    for file, call in ALLOWED:
        assert f"{call}(" in (ROOT / file).read_text()


@pytest.mark.soak
@pytest.mark.slow
def test_no_command_opens_a_connection(tmp_path, monkeypatch, capsys, figure):
    import socket

    def refuse(*args, **kwargs):
        raise AssertionError("a connection was opened")

    def train_here(jobs, device, at_once, console, **how):
        """Runs that would be processes of their own, where the refusal does not reach."""
        for job in jobs:
            train = ["train", *job.options, "--out", str(job.out), "--resume", "--device", "cpu"]
            assert main(train) == 0
        return []

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    for preset in ("cpu", "demo"):
        monkeypatch.setitem(PRESETS, preset, replace(PRESETS[preset], workers=0))  # which are spoken to by sockets
    for study in ("compare.run", "paper.reproduce"):
        monkeypatch.setattr(f"drloss.studies.{study}.train_jobs", train_here)
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
        ["compare", "--data", data, "--seeds", "0", "--out", str(tmp_path / "compared"), *one],
        ["demo", "--data", data, "--max-iters", "1", "--out", str(tmp_path / "demo")],
        ["reproduce", "figure1", "figure2", "figure3", "--points", "9", "--out", str(tmp_path / "paper")],
    ]
    for command in commands:
        assert main(command) == 0, (command, capsys.readouterr())
    figure("T35", f"{len(list(ROOT.rglob('*.py')))} modules clean, {len(commands)} commands without a connection")
