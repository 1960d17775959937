"""Copies of batches to a GPU, held against streams that write down what each operation waits for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from swa_cli.data import batches, pytree
from swa_cli.data.augment import Augment
from swa_cli.data.batches import Batches, epoch_batches
from swa_cli.data.randomness import generator
from swa_cli.data.splits import Split

CUDA = torch.device("cuda")


@dataclass(eq=False)
class Stream:
    """A stand-in for a stream of CUDA: `before` has all that is done before an operation that is given to it now."""

    before: set[str] = field(default_factory=set)

    def wait_stream(self, other: Stream) -> None:
        self.before |= other.before


@dataclass
class Card:
    """A stand-in for a GPU with two streams, whose memory is that of the host."""

    computing: Stream = field(default_factory=Stream)
    copying: Stream = field(default_factory=Stream)
    current: Stream = field(init=False)
    done_before: dict[str, set[str]] = field(default_factory=dict)  # by operation
    shared: list[int] = field(default_factory=list)  # addresses of what the computing stream is known to use
    copies: list[int] = field(default_factory=list)  # addresses

    def __post_init__(self) -> None:
        self.current = self.computing

    def do(self, operation: str) -> None:
        """Give an operation to the current stream."""
        self.done_before[operation] = set(self.current.before)
        self.current.before.add(operation)

    @contextmanager
    def within(self, stream: Stream) -> Iterator[None]:
        kept, self.current = self.current, stream
        yield
        self.current = kept

    def copied(self, values: Tensor, device: torch.device) -> Tensor:
        assert device == CUDA
        self.do(f"copy {len(self.copies)}")
        there = values.clone()
        self.copies.append(there.data_ptr())
        return there


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    card = Card()
    monkeypatch.setattr(pytree, "to_device", card.copied)
    monkeypatch.setattr(pytree, "_own_stream", lambda device: card.copying)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: card.current)
    monkeypatch.setattr(torch.cuda, "stream", card.within)
    monkeypatch.setattr(Tensor, "record_stream", lambda values, stream: card.shared.append(values.data_ptr()))
    return card


class Pairs(Dataset[Any]):
    """Inputs of two tensors, read one at a time."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, row: int) -> tuple[dict[str, Tensor], int]:
        return {"x": torch.tensor([float(row)]), "y": torch.tensor([row / 2])}, row % 3


def epoch(kind: str, **delivery: Any) -> Batches:
    """Return three batches of 4: images in memory, masks with them, or trees of tensors that are streamed."""
    images = torch.randint(0, 256, (12, 3, 6, 5), generator=generator(0, "images"), dtype=torch.uint8)
    masks = torch.randint(0, 9, (12, 6, 5), generator=generator(0, "masks"), dtype=torch.uint8)
    splits = {
        "classes": Split(torch.arange(12) % 3, images),
        "masks": Split(masks, images, target="mask"),
        "trees": Split(None, None, Pairs(), torch.arange(12)),
    }
    mean, std = ((), ()) if kind == "trees" else ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    augment = Augment() if kind == "trees" else Augment(crop=2, flip=True, cutout=3)
    return epoch_batches(splits[kind], seed=0, epoch=1, batch_size=4, augment=augment, mean=mean, std=std, **delivery)


# Images in memory are moved before they are cropped and, for `Card` cannot tell where they lie, once more after it.
@pytest.mark.parametrize(("kind", "num_copies"), [("classes", 3), ("masks", 4), ("trees", 3)])
def test_a_copy_waits_for_no_step_and_its_step_for_the_copy(
    card: Card, monkeypatch: pytest.MonkeyPatch, kind: str, num_copies: int
) -> None:
    """What each copy and each step waits for, over the three batches of an epoch; their values against the CPU's."""
    monkeypatch.setattr(batches, "GROUP_BYTES", 1)  # each batch is copied by itself
    found = []
    for number, batch in enumerate(epoch(kind, device=CUDA)):
        found.append(batch)
        card.do(f"step {number}")
        copies = {f"copy {index}" for index in range(num_copies * (number + 1))}
        assert card.done_before[f"step {number}"] == copies | {f"step {index}" for index in range(number)}
    for operation, before in card.done_before.items():
        if operation.startswith("copy"):
            assert not [other for other in before if other.startswith("step")], operation
    assert card.shared == card.copies
    monkeypatch.undo()
    for (inputs, targets), (other_inputs, other_targets) in zip(found, epoch(kind), strict=True):
        assert torch.equal(targets, other_targets)
        others = pytree.named_tensors(other_inputs)
        for name, values in pytree.named_tensors(inputs).items():
            assert torch.equal(values, others[name])


def test_nothing_is_read_ahead(card: Card) -> None:
    """Copies when the first batch of a stream is there, and after its end, against those of one batch and of three."""
    reading = iter(epoch("trees", device=CUDA))
    next(reading)
    assert len(card.copies) == 3
    list(reading)
    assert len(card.copies) == 9
