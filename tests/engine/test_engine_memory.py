"""Memory that a run does without: copies of copies in a resume point, and gradients while nothing is trained."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from swa_cli.checkpoint import reader, safe_load
from swa_cli.engine import state, validate

COPIES = (torch.ops.aten.clone.default, torch.ops.aten._to_copy.default)
KINDS = {
    "mean": [],
    "ema": ["swa=null", "averages={ema: {kind: ema, decay: 0.9}}"],
    "diagonal swag": ["swa=null", "averages={swag: {kind: swag, diagonal: true, start: 50%, every: 0.5ep}}"],
    "a running mean": ["snapshots={every: 2ep, cumulative: true}"],
}


class CopiedBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are copied to new memory while the block runs."""

    total = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function in COPIES:
            self.total += result.numel() * result.element_size()
        return result


@pytest.mark.parametrize("kind", KINDS)
def test_a_resume_point_copies_each_tensor_once(swa, recipe: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """The bytes that are copied for last.pt against those of the tensors in it."""
    copied, held = [], []
    save_resume_point, save = state.save_resume_point, reader.save

    def watched(*words: Any) -> None:
        with CopiedBytes() as counter:
            save_resume_point(*words)
        copied.append(counter.total)

    def noted(path: Path, content: Any, **settings: Any) -> None:
        if path.name == "last.pt":
            held.append(sum(value.numel() * value.element_size() for value in safe_load.tensors(content)))
        save(path, content, **settings)

    monkeypatch.setattr(state, "save_resume_point", watched)
    monkeypatch.setattr(reader, "save", noted)
    ended = swa("train", recipe, *KINDS[kind])
    assert ended.code == 0, ended.err
    assert len(held) == 4
    assert copied == held


def test_gradients_are_gone_when_an_epoch_is_scored(swa, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradients of the network that was trained, at each scoring and at the end: none."""
    seen: list[bool] = []

    def watched(work: Any, run: Any, *words: Any) -> Any:
        seen.append(any(parameter.grad is not None for parameter in run.model.parameters()))
        return work(run, *words)

    for name in ("validate", "finish"):
        monkeypatch.setattr(validate, name, partial(watched, getattr(validate, name)))
    assert swa("train", recipe).code == 0
    assert seen == [False] * 5
