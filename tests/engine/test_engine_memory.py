"""Memory that a run does without: copies of copies in a resume point, gradients while nothing is trained; of a GPU."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from swa_cli.checkpoint import reader, safe_load
from swa_cli.data.sources import Source
from swa_cli.engine import context, state, validate
from swa_cli.engine.events import Events
from swa_cli.engine.hardware import Hardware
from swa_cli.errors import UserError
from swa_cli.recipe.schema import Recipe

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


@pytest.mark.parametrize(
    ("dataset", "free", "expected"),
    [
        ({}, 4, True),
        ({}, 3.9, False),
        ({}, None, False),
        ({"on_device": True}, None, True),
        ({"on_device": False}, 9, False),
        ({"image_size": 16}, 9, False),
    ],
)
def test_samples_lie_on_a_gpu_where_they_fit(
    monkeypatch: pytest.MonkeyPatch, dataset: dict[str, Any], free: float | None, expected: bool
) -> None:
    """`dataset.on_device` against the free memory of the device, in multiples of what the samples take."""
    settings, source, cpu = digits(dataset)
    gpu = replace(cpu, device=torch.device("cuda"))
    memory = None if free is None else int(free * source.num_bytes)
    monkeypatch.setattr(context.hardware_choice, "free_memory", lambda device: memory)
    assert source.num_bytes == sum(len(split) for split in (source.train, source.val, source.test)) * (64 + 8)
    assert context._lies_on_device(settings, source, gpu) is expected
    assert not context._lies_on_device(settings, source, cpu)


def test_samples_that_change_one_by_one_cannot_lie_on_a_gpu() -> None:
    settings, source, cpu = digits({"image_size": 16, "on_device": True})
    with pytest.raises(UserError, match=r"^dataset\.on_device: "):
        context._lies_on_device(settings, source, replace(cpu, device=torch.device("cuda")))


def digits(dataset: dict[str, Any]) -> tuple[Recipe, Source, Hardware]:
    """A recipe of the digits, which have 64 pixels of a byte, and a label of 8 bytes."""
    sections = {"model": {"name": "convnet"}, "optimizer": {"lr": 0.1}, "train": {"epochs": 1}}
    settings = Recipe.model_validate({**sections, "dataset": {"name": "digits", **dataset}})
    made = context.build_context(settings, Events())
    return settings, made.source, made.hardware
