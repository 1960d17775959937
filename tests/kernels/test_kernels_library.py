"""The C compiler: which is taken, and what is said where there is none or it fails."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from swa_cli.errors import UserError
from swa_cli.kernels.library import library


@pytest.fixture(autouse=True)
def _anew():
    """Whatever was compiled before is forgotten, and again after."""
    library.cache_clear()
    yield
    library.cache_clear()


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty PATH: what is missing, and two ways out."""
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"no C compiler \(cc, gcc, clang\) on the PATH") as raised:
        library(torch.float32)
    assert raised.value.hint == "install one (Debian: apt-get install gcc), or train.compile=false"


def test_a_compiler_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """CC with the name of nothing."""
    monkeypatch.setenv("CC", "/nowhere/cc -m64")
    with pytest.raises(UserError, match="CC=/nowhere/cc -m64 names no program"):
        library(torch.float32)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("echo warning >&2; echo 'fatal error: no omp.h' >&2; exit 1", "failed: fatal error: no omp.h"),
        ("echo no such option >&2; exit 1", "failed: no such option"),
        ("exit 3", "exit code 3"),
        ("exit 0", "cannot be loaded: .*kernels.so"),
    ],
)
def test_a_compiler_that_fails(text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first error, or its first words, or its exit code; or that it made nothing."""
    monkeypatch.setenv("CC", str(script(tmp_path / "cc", text)))
    with pytest.raises(UserError, match=said):
        library(torch.float32)


def test_options_of_cc_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CC with options, as make takes it: they come first, and nothing is left on disk."""
    compiler = script(tmp_path / "mine", f'echo "$@" > {tmp_path}/words; exec gcc "$@"')
    monkeypatch.setenv("CC", f"{compiler} -O1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert library(torch.bfloat16).batch_norm_forward
    words = (tmp_path / "words").read_text().split()
    assert words[0] == "-O1"
    assert "-DBF16" in words
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "words"]
