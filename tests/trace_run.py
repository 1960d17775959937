"""Trace of the smallest run: how much of our code a reader meets before the first forward pass.

    python tests/trace_run.py            # the counts
    python tests/trace_run.py --files    # and every file, in the order in which it is entered, with its functions

Counts cover functions and lambdas of `swa_cli` in `swa train` of digits with convnet over 4 epochs; code that an import
runs is left out. A change of file is a call into another file than the call before.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook

import swa_cli
from swa_cli import cli

HOUSE = Path(swa_cli.__file__).parent
RECIPE = Path(__file__).parents[1] / "recipes/digits.yaml"
WORDS = ["train", str(RECIPE), "train.epochs=4", "train.threads=1", "train.precision=fp32", "-q"]
NO_FUNCTIONS = {"<module>", "<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"}


@dataclass
class Counts:
    """What was entered so far; `files` maps each own file to its functions, in the order of their first calls."""

    files: dict[str, dict[str, None]] = field(default_factory=dict)
    num_changes: int = 0
    num_parses: int = 0
    _file: str = ""

    def enter(self, code: CodeType) -> None:
        """Count a call of one of our functions."""
        file = str(Path(code.co_filename).relative_to(HOUSE))
        self.files.setdefault(file, {})[f"{code.co_qualname}:{code.co_firstlineno}"] = None
        self.num_changes += file != self._file
        self._file = file

    def __str__(self) -> str:
        num_functions = sum(map(len, self.files.values()))
        return (
            f"{len(self.files)} own files, {num_functions} own functions, {self.num_changes:,} changes of file, "
            f"recipe parsed {self.num_parses} times"
        )


def profiler(counts: Counts) -> Callable[[FrameType, str, Any], None]:
    """Return a profile function that counts calls, except those that an import makes."""
    importing: list[FrameType] = []

    def profile(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "return" and importing and importing[-1] is frame:
            importing.pop()
        if event != "call":
            return
        if code.co_name == "<module>":
            importing.append(frame)
        elif not importing:
            if code.co_name == "model_validate" and getattr(frame.f_locals.get("cls"), "__name__", "") == "Recipe":
                counts.num_parses += 1
            is_ours = code.co_filename.startswith(f"{HOUSE}{os.sep}")
            if is_ours and code.co_name not in NO_FUNCTIONS and code.co_flags & 2:  # CO_NEWLOCALS: no class body
                counts.enter(code)

    return profile


def trace() -> dict[str, Counts]:
    """Run the smallest training; return the counts up to its first forward pass, its first step, and its end."""
    counts, marks = Counts(), dict[str, Counts]()

    def mark(name: str) -> None:
        if name not in marks:
            files = {file: dict(functions) for file, functions in counts.files.items()}
            marks[name] = Counts(files, counts.num_changes, counts.num_parses)

    register_module_forward_pre_hook(lambda *_: mark("first forward pass"))
    register_optimizer_step_post_hook(lambda *_: mark("first step"))
    sys.setprofile(profiler(counts))
    try:
        with redirect_stdout(io.StringIO()):
            code = cli.run(WORDS)
    finally:
        sys.setprofile(None)
    assert code == 0, f"the run ended with exit code {code}"
    mark("end")
    return marks


def main(*words: str) -> None:
    """Print the counts."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        marks = trace()
        os.chdir(HOUSE)
    for name, counts in marks.items():
        print(f"{name}: {counts}")
    if "--files" in words:
        for file, functions in marks["first forward pass"].files.items():
            names = ", ".join(name.rpartition(":")[0] for name in functions)
            print(f"{file} ({len(functions)}): {names}")


if __name__ == "__main__":
    main(*sys.argv[1:])
