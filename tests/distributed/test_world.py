"""Processes seen from one of them: checksums, the identity of a launch, what one process alone is."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
import torch

from swa_cli.checkpoint.run_folder import folder_of_launch
from swa_cli.engine.distributed import ALONE, checksum, is_restarted, launched, name_of_launch, run_id, sharing


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8])
def test_a_checksum_is_that_of_the_bits(dtype: torch.dtype) -> None:
    """The sum of the numbers that the bits spell, modulo 2**64, against Python's integers."""
    values = (torch.arange(24) * 7).to(dtype).view(2, 3, 4).transpose(0, 2)
    raw, width = values.contiguous().view(torch.uint8).numpy().tobytes(), values.element_size()
    numbers = [int.from_bytes(raw[at : at + width], "little", signed=width > 1) for at in range(0, len(raw), width)]
    total = (sum(numbers) + 2**63) % 2**64 - 2**63
    assert checksum({"a": [values]}) == zlib.crc32(total.to_bytes(8, "little", signed=True))


def test_a_checksum_sees_one_bit() -> None:
    """Of equal state, of state with one changed bit, with a NaN, with another order of keys."""
    state = {"weight": torch.ones(5, 5), "steps": [torch.tensor(3)], "name": "x", "count": 2}
    other = {"weight": torch.ones(5, 5), "steps": [torch.tensor(3)], "name": "x", "count": 2}
    assert checksum(state) == checksum(other)
    other["weight"][2, 2] += 2**-23
    assert checksum(state) != checksum(other)
    broken = {**state, "weight": torch.full((5, 5), float("nan"))}
    assert checksum(broken) == checksum({**broken, "weight": broken["weight"].clone()})


def test_one_process_is_what_it_was() -> None:
    """Every operation of a world of one against the identity, without a process group."""
    tensor, model = torch.tensor([1.0, 2.0]), torch.nn.Linear(2, 1)
    ALONE.average([tensor])
    ALONE.require_equal(tensor, what="it")
    assert (ALONE.gathered("a"), ALONE.largest(3), ALONE.total(4), ALONE.broadcast_from_rank0(lambda: 5)) == (
        ["a"],
        3,
        4,
        5,
    )
    assert tensor.tolist() == [1.0, 2.0]
    assert ALONE.synchronised(model, sync_batchnorm=True, make=lambda: model) is model
    assert not torch.distributed.is_initialized()


def test_another_network_shares_every_tensor() -> None:
    """Parameters and buffers of the other network are the very same objects, its layers are its own."""
    model, made = (torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)) for _ in range(2))
    other = sharing(model, made)
    assert other is made
    assert other[1] is not model[1]
    for kind in ("named_parameters", "named_buffers"):
        mine, theirs = (dict(getattr(network, kind)()) for network in (model, other))
        assert mine.keys() == theirs.keys()
        assert all(theirs[name] is value for name, value in mine.items())


@pytest.mark.parametrize(
    ("environment", "name", "restarted"),
    [
        ({}, None, False),
        ({"TORCHELASTIC_RUN_ID": "job", "TORCHELASTIC_RESTART_COUNT": "0"}, "job", False),
        ({"TORCHELASTIC_RUN_ID": "job-attempt-2", "TORCHELASTIC_RESTART_COUNT": "3"}, "job-attempt-2", True),
        ({"TORCHELASTIC_RUN_ID": run_id("0f" * 16, attempt=0)}, "0f" * 16, False),
        ({"TORCHELASTIC_RUN_ID": run_id("0f" * 16, attempt=2)}, "0f" * 16, True),
    ],
)
def test_attempts_of_a_launch(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], name: str | None, restarted: bool
) -> None:
    """What torchrun, and `--processes` with its restarts, set against the name and whether it is a restart."""
    for key in ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(key, raising=False)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    assert (name_of_launch(), is_restarted()) == (name, restarted)
    assert launched() == ALONE


def test_the_folder_that_a_launch_has_begun(tmp_path: Path) -> None:
    """The newest of its name among those of other launches, without run.json, of somebody else, and without recipe."""
    mine = '{"launch": "mine"}'
    contents = [mine, mine, '{"launch": "other"}', "{", "[1]", None, mine]
    for number, text in enumerate(contents, start=1):
        folder = tmp_path / f"run-{number:03d}"
        folder.mkdir()
        if text is not None:
            (folder / "run.json").write_text(text)
        if number < len(contents):  # it comes last
            (folder / "recipe.yaml").touch()
    assert folder_of_launch("mine", tmp_path, "run") == tmp_path / "run-002"
    assert folder_of_launch("nobody", tmp_path, "run") is None
