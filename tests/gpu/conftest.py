"""What the tests of this folder share: the device that they run on, and commands that run there.

The device is `cuda` where torch has a card, else the simulated one of tests/device. Tests marked `cuda` are collected
only with a card; without one, a line of the report names them.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from device.on_device import on_device
from device.simulated import NAME
from gpu.recipes import OnCard, write_recipes

DEVICE = "cuda" if torch.cuda.is_available() else NAME
LEFT_OUT = pytest.StashKey[list[str]]()


@pytest.hookimpl(trylast=True)  # after `-m` has chosen
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what only a CUDA device can run, where there is none."""
    if DEVICE == "cuda":
        return
    left_out = [item for item in items if item.get_closest_marker("cuda") is not None]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)
    config.stash[LEFT_OUT] = [item.name for item in left_out]


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    """Name what was left out."""
    names = config.stash.get(LEFT_OUT, [])
    return [f"{len(names)} tests need a CUDA device: {', '.join(names)}"] if names else []


@pytest.fixture(scope="session")
def device() -> str:
    """The device as `train.device` names it."""
    return DEVICE


@pytest.fixture(scope="session")
def on_card() -> OnCard:
    """Run commands in a process that has the device."""
    return partial(on_device, simulated=DEVICE == NAME)


@pytest.fixture
def folder(tmp_path: Path, device: str) -> Path:
    """A folder with the recipes of `gpu.recipes` for the device."""
    write_recipes(tmp_path, device)
    return tmp_path
