"""A model that is tried and left as it was: what a forward pass can do to it, and what stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from swa_cli.averaging.model_state import unchanged


class Restless(nn.Module):
    """Changes a buffer, an attribute, a parameter and the size of two tensors in each forward pass."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.register_buffer("seen", torch.zeros(1))
        self.register_buffer("cache", torch.zeros(1))
        self.scratch = torch.empty(0)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen += 1
        self.weight.data.mul_(2)
        self.cache.resize_(len(x)).fill_(1)  # type: ignore[operator, union-attr]
        return torch.mean(x, 0, out=self.scratch)


def test_a_model_is_left_as_it_was() -> None:
    """Values, sizes and attributes after two passes of other lengths against those before."""
    model = Restless()
    for length in (3, 5):
        with unchanged(model), torch.no_grad():
            model(torch.ones(length, 4))
        assert (model.calls, model.seen.item(), model.weight.tolist()) == (0, 0, [1, 1])
        assert (model.cache.shape, model.scratch.shape) == ((1,), (0,))


class Grows(nn.Module):
    """Makes its layers in the first forward pass, inside a container, and remembers it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.register_buffer("seen", torch.zeros(1))
        self.is_built = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_built:
            self.layers.append(nn.Linear(x.shape[1], 2))
            self.is_built = True
        self.seen.add_(1)  # type: ignore[operator]
        return self.layers[0](x)  # type: ignore[no-any-return]


def test_layers_are_made_once() -> None:
    """The layers and the note of the module around them stay; its buffer is restored."""
    model = Grows()
    for _ in range(2):
        with unchanged(model), torch.no_grad():
            model(torch.ones(3, 4))
    assert model.is_built
    assert len(model.layers) == 1
    assert model.seen == 0


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_memory_that_cannot_be_written_is_left_alone(tmp_path: Path) -> None:
    """An attribute over a read-only file: writing there would end the process."""
    np.save(tmp_path / "m.npy", np.ones(4))
    model = nn.Linear(4, 2)
    model.table = torch.from_numpy(np.load(tmp_path / "m.npy", mmap_mode="r"))  # type: ignore[assignment]
    with unchanged(model):
        model(torch.ones(3, 4))
    assert torch.equal(model.table, torch.ones(4, dtype=torch.float64))  # type: ignore[arg-type]
