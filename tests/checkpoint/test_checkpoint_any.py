"""Any damage to a checkpoint is reported, or the content read is exactly what was written."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from conftest import run_swa
from swa_cli.checkpoint import reader
from swa_cli.errors import UserError

SETTINGS = settings(max_examples=200)
RECIPE = """\
name: small
model: {name: convnet, args: {width: 2}}
dataset: {name: digits, val: 0}
optimizer: {lr: 0.1}
swa: {start: 50%, every: 0.5ep, eval_every: 1ep}
train: {epochs: 1, batch_size: 512, threads: 1, precision: fp32}
"""
NAMES = ("last.pt", "swa.pt")


class Good:
    """The files of a run, by name; a falsifying example does not print them."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Good:
    folder = tmp_path_factory.mktemp("good")
    (folder / "small.yaml").write_text(RECIPE)
    run_swa("train", folder / "small.yaml", "-q", "--out", folder)
    return Good({name: (folder / "latest/checkpoints" / name).read_bytes() for name in NAMES})


@dataclass(frozen=True)
class Place:
    """A share of the file plus a number of bytes, so that both ends are covered as well as the middle."""

    share: float
    further: int = 0

    def of(self, data: bytes) -> int:
        return min(max(round(self.share * len(data)) + self.further, 0), len(data) - 1)


@dataclass(frozen=True)
class Flip:
    """Flip bits of a few bytes."""

    bits: list[tuple[Place, int]]

    def __call__(self, data: bytes) -> bytes:
        changed = bytearray(data)
        for place, bits in self.bits:
            changed[place.of(data)] ^= bits
        return bytes(changed)


@dataclass(frozen=True)
class Cut:
    """Remove the bytes between two places, or those around them."""

    first: Place
    second: Place
    around: bool = False

    def __call__(self, data: bytes) -> bytes:
        start, end = sorted((self.first.of(data), self.second.of(data)))
        return data[start:end] if self.around else data[:start] + data[end:]


@dataclass(frozen=True)
class Write:
    """Insert bytes at a place, or overwrite those that are there."""

    place: Place
    more: bytes
    over: bool = False

    def __call__(self, data: bytes) -> bytes:
        start = self.place.of(data)
        return data[:start] + self.more + data[start + len(self.more) * self.over :]


@dataclass(frozen=True)
class Zero:
    """Zero a range of bytes, like a disk that lost a block."""

    place: Place
    length: int

    def __call__(self, data: bytes) -> bytes:
        start = self.place.of(data)
        return data[:start] + bytes(len(data[start : start + self.length])) + data[start + self.length :]


@dataclass(frozen=True)
class Move:
    """Copy a range of bytes over another one, like a disk that mixes up its blocks."""

    source: Place
    target: Place
    length: int

    def __call__(self, data: bytes) -> bytes:
        start, block = self.target.of(data), data[self.source.of(data) :][: self.length]
        return (data[:start] + block + data[start + len(block) :])[: len(data)]


Damage = Flip | Cut | Write | Zero | Move
BEGIN, END = Place(0), Place(1)
PLACES = st.builds(Place, st.floats(0, 1), st.integers(-300, 300))
DAMAGES = st.one_of(
    st.builds(Flip, st.lists(st.tuples(PLACES, st.integers(1, 255)), min_size=1, max_size=4)),
    st.builds(Cut, PLACES, PLACES | st.just(END), st.booleans()),
    st.builds(Write, PLACES, st.binary(min_size=1, max_size=80), st.booleans()),
    st.builds(Zero, PLACES, st.integers(1, 5000)),
    st.builds(Move, PLACES, PLACES, st.sampled_from([1, 64, 512, 4096])),
)


def assert_same(found: Any, expected: Any, *, key: str = "") -> None:
    """Compare types, values and bits of tensors in nested content."""
    assert type(found) is type(expected), key
    if isinstance(expected, Tensor):
        assert (found.dtype, found.shape, found.stride()) == (expected.dtype, expected.shape, expected.stride()), key
        bits, expected_bits = (value.detach().contiguous().flatten().view(torch.uint8) for value in (found, expected))
        assert torch.equal(bits, expected_bits), key
    elif isinstance(expected, dict):
        assert list(found) == list(expected), key
        for name, value in expected.items():
            assert_same(found[name], value, key=f"{key}/{name}")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), key
        for index, value in enumerate(expected):
            assert_same(found[index], value, key=f"{key}/{index}")
    else:
        assert repr(found) == repr(expected), key


def is_read_as(path: Path, data: bytes, original: bytes) -> bool:
    """Whether the file is read; then the content must be exactly that of the undamaged file."""
    path.write_bytes(data)
    try:
        content = reader.read(path).content
    except UserError:
        return False
    assert_same(content, torch.load(io.BytesIO(original), weights_only=True))
    return True


@pytest.mark.parametrize("name", NAMES)
def test_what_is_whole_is_read(good: Good, tmp_path: Path, name: str) -> None:
    """The files as they are, and with their first weight changed and saved anew: the first equal, the second not."""
    assert is_read_as(tmp_path / name, good.files[name], good.files[name])
    content = torch.load(io.BytesIO(good.files[name]), weights_only=True)
    state = content["model" if name == "last.pt" else "state_dict"]
    next(iter(state.values())).view(-1)[0] += 1e-7
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with pytest.raises(AssertionError, match=r"features\.0\.weight"):
        is_read_as(tmp_path / name, buffer.getvalue(), good.files[name])


@pytest.mark.parametrize("name", NAMES)
@SETTINGS
@given(damage=DAMAGES)
@example(damage=Cut(BEGIN, END))
@example(damage=Cut(END, END))  # the last byte
@example(damage=Cut(Place(1, -22), END))  # the record at the end, which finds the directory
@example(damage=Write(END, bytes(100)))
@example(damage=Zero(BEGIN, 1 << 20))
@example(damage=Zero(BEGIN, 4))
def test_damage_is_told_or_harmless(good: Good, tmp_path: Path, name: str, damage: Damage) -> None:
    """Bytes flipped, cut, inserted, zeroed or moved, against two outcomes: a UserError, or the same bits."""
    is_read_as(tmp_path / name, damage(good.files[name]), good.files[name])


@settings(SETTINGS, max_examples=12)
@given(damage=DAMAGES)
def test_damaged_weights_are_not_scored(swa, good: Good, tmp_path: Path, damage: Damage) -> None:
    """`swa eval` of a damaged file: exit 2 and nothing on stdout, or the scores of the whole file."""
    scores = []
    for data in (good.files["swa.pt"], damage(good.files["swa.pt"])):
        (tmp_path / "swa.pt").write_bytes(data)
        ended = swa("eval", "swa.pt", "--json")
        assert ended.code in (0, 2), ended.err
        if ended.code == 2:
            assert ended.out == ""
            assert "swa.pt: " in ended.err
        else:
            scores.append(ended.json["weights"])
    assert scores in ([scores[0]], [scores[0]] * 2)
