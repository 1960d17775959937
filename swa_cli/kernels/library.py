"""The C code of this folder as a library of this process: compiled for its processor when it is first needed.

Nothing is kept on disk, so nothing can be out of date: it takes a second.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from swa_cli.errors import UserError

SOURCES = tuple(
    Path(__file__).with_name(f"{name}.c") for name in ("batchnorm", "maxpool", "convolution", "convolution_backward")
)
COMPILERS = ("cc", "gcc", "clang")
OPTIONS = (
    "-std=gnu11",
    "-O3",
    "-march=native",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp",
    "-shared",
    "-fPIC",
)
WIDE = {"x86_64": ("-mprefer-vector-width=512",)}  # vectors that a processor has, and compilers shun
SCALARS = {torch.float32: (), torch.bfloat16: ("-DBF16",)}
P, LONG, INT, DOUBLE = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_double


@functools.cache
def library(dtype: torch.dtype) -> ctypes.CDLL:
    """The functions for images of a dtype of SCALARS; those of convolutions where the processor has what they need.

    Raises:
        UserError: There is no C compiler, or it does not compile this.
    """
    command = [*_compiler(), *OPTIONS, *WIDE.get(platform.machine(), ()), *SCALARS[dtype]]
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "kernels.so")
            ended = subprocess.run([*command, "-o", path, *SOURCES, "-lm"], capture_output=True, text=True, check=False)
            if ended.returncode:
                raise UserError(
                    f"train.compile: the C compiler {command[0]} failed: {_reason(ended)}",
                    hint="name one that has OpenMP in the environment variable CC (gcc, clang), or train.compile=false",
                )
            loaded = ctypes.CDLL(str(path))
    except OSError as error:  # no folder for it, no permission to run what is in there, no program in this form
        raise UserError(
            f"train.compile: what {command[0]} compiles cannot be loaded: {error}",
            hint="name a folder for programs in the environment variable TMPDIR, or train.compile=false",
        ) from error
    loaded.batch_norm_forward.argtypes = [P, P, LONG, LONG, P, P, P, P, DOUBLE, DOUBLE, INT, INT, P]
    loaded.batch_norm_backward.argtypes = [P, P, P, LONG, LONG, P, INT, INT, P]
    loaded.max_pool_forward.argtypes = [P, P, P, LONG, LONG, LONG, LONG, INT]
    loaded.max_pool_backward.argtypes = [P, P, P, LONG, LONG, LONG, LONG, INT]
    loaded.max_pool_forward.restype = loaded.max_pool_backward.restype = None
    if hasattr(loaded, "conv2d_backward"):
        loaded.conv2d_forward.argtypes = [P, P, P, P, LONG, LONG, LONG, LONG, LONG, INT]
        loaded.conv2d_backward.argtypes = [P, P, P, P, LONG, LONG, LONG, LONG, LONG, INT]
    return loaded


def pointer(tensor: Tensor | None) -> int | None:
    """What its functions take for a tensor, and for none."""
    return None if tensor is None else tensor.data_ptr()


def checked(status: int, *, what: str) -> None:
    """What a function of the library gave.

    Raises:
        MemoryError: It had no memory for the sums of `what`.
    """
    if status:
        raise MemoryError(f"no memory for the sums of {what}")


def _reason(ended: subprocess.CompletedProcess[str]) -> str:
    lines = ended.stderr.strip().splitlines()
    first = next((line for line in lines if "error" in line), lines[0] if lines else "")
    return first or f"it ended with exit code {ended.returncode}"


def _compiler() -> list[str]:
    if named := shlex.split(os.environ.get("CC", "")):
        found = shutil.which(named[0])
        if found is None:
            raise UserError(
                f"train.compile: CC={os.environ['CC']} names no program", hint="name a C compiler, or unset CC"
            )
        return [found, *named[1:]]
    for name in COMPILERS:
        if found := shutil.which(name):
            return [found]
    raise UserError(
        f"train.compile: no C compiler ({', '.join(COMPILERS)}) on the PATH",
        hint="install one (Debian: apt-get install gcc), or train.compile=false",
    )
