"""The C backend's library: how it is compiled, kept and replaced, and what happens where it cannot be."""

import os
import shutil
import subprocess
import sys

import pytest
import torch

from drloss import dr_loss
from drloss.losses.fused import chunked, cpu
from drloss.losses.fused.backends import backend_of
from losses.cases import random_case


@pytest.mark.parametrize(
    "break_it",
    ["none", "fails", *(pytest.param(how, marks=pytest.mark.slow) for how in ("no home", "a folder of others"))],
)
def test_without_a_compiler_or_a_cache_of_its_own_there_is_another_way(break_it, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if break_it == "none":
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("CC", raising=False)
    elif break_it == "fails":
        (tmp_path / "cc").write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / "cc").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("CC", raising=False)
    elif not shutil.which("cc"):
        pytest.skip("there is no C compiler")
    elif break_it == "no home":
        (tmp_path / "cache").write_text("not a folder")
    else:
        (tmp_path / "cache" / "drloss").mkdir(parents=True)
        (tmp_path / "cache" / "drloss").chmod(0o777)
    cpu._library.cache_clear()
    try:
        logits, labels = random_case(18, dtype=torch.float32)
        wanted = dr_loss(logits, labels, backend="torch")
        if break_it in ("no home", "a folder of others"):
            assert backend_of("auto", logits) is cpu
            assert not list(tmp_path.glob("cache/*/*"))
        else:
            assert backend_of("auto", logits) is chunked
            with pytest.raises(ValueError, match=r"for a machine without a C compiler"):
                dr_loss(logits, labels, backend="cpu")
        torch.testing.assert_close(dr_loss(logits, labels), wanted)
    finally:
        cpu._library.cache_clear()


@pytest.mark.skipif(not cpu.available(), reason="there is no C compiler")
@pytest.mark.slow
def test_processes_that_compile_at_the_same_time_do_not_meet(tmp_path):
    code = "from drloss.losses.fused import cpu; assert cpu.available()"
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    running = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert len(list((tmp_path / "drloss").iterdir())) == 1


@pytest.mark.skipif(os.name != "posix", reason="the compiler is a shell script")
def test_a_library_that_is_not_whole_is_made_anew(tmp_path, monkeypatch):
    # Loading one that was cut would end the process by a bus error.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    compiler = tmp_path / "cc"
    last = "while [ $# -gt 1 ]; do shift; done"
    compiler.write_text(f'#!/bin/sh\n{last}\n[ "$1" = --version ] || echo a library > "$1"\n')
    compiler.chmod(0o755)
    library = cpu._compiled(str(compiler), ())
    whole = library.read_bytes()
    assert whole[:-32] == b"a library\n"
    for damaged in (whole[:8], whole[:-1], b"", b"A" + whole[1:]):
        library.write_bytes(damaged)
        assert cpu._compiled(str(compiler), ()) == library
        assert library.read_bytes() == whole
    made = library.stat().st_mtime_ns
    cpu._compiled(str(compiler), ())
    assert library.stat().st_mtime_ns == made
    assert [path.name for path in library.parent.iterdir()] == [library.name]
