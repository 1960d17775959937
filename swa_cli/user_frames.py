"""Find the frames of an error that lie in the user's files: a network, a dataset, a loss or an optimizer of one's own.

An error without any comes from swa, or from a library that swa has called. The frames are parsed from the text of the
traceback, which is all that a data loader process sends.
"""

from __future__ import annotations

import re
import sysconfig
import traceback
from pathlib import Path

_FRAME = re.compile(r'  File "(?P<path>.*)", line \d+')
_BEGINNING = "Traceback (most recent call last):\n"
# Installed packages whose frames are left out: swa calls them itself.
_INTERNAL = (
    *("swa_cli", "torch", "torchvision", "typer", "click", "rich", "yaml", "pydantic", "pydantic_core", "filelock"),
    *("numpy", "PIL", "matplotlib", "jinja2", "safetensors", "simplejpeg", "timm", "datasets", "pyarrow", "optuna"),
    *("tensorboard", "wandb", "mlflow", "onnx", "onnxscript", "onnxruntime"),
)


def user_frames(error: BaseException) -> list[str]:
    """Return the frames of an error in the user's files, the innermost last, each of one or more lines."""
    frames: list[list[str]] = []
    for line in traceback_text(error).splitlines():
        if _FRAME.match(line):
            frames.append([line])
        elif frames and line.startswith("    "):
            frames[-1].append(line)
        elif not line.startswith(" "):  # the exception
            break
    return ["\n".join(frame) for frame in frames if _is_users(frame[0])]


def traceback_text(error: BaseException) -> str:
    """Return the text of an error's last traceback; of an error of a loader process, that of the process."""
    return "".join(traceback.format_exception(error, chain=False)).rpartition(_BEGINNING)[2]


def _is_users(frame: str) -> bool:
    match = _FRAME.match(frame)
    assert match is not None, "a frame starts with a line that matches"
    path = Path(match["path"])
    for place, part in enumerate(path.parts):
        if part in ("site-packages", "dist-packages"):
            return path.parts[place + 1] not in _INTERNAL
    ours = (Path(__file__).parent, Path(sysconfig.get_path("stdlib")))
    return path.is_absolute() and not any(path.is_relative_to(folder) for folder in ours)
