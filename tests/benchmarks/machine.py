"""What the figures were measured on and with."""

from __future__ import annotations

import datetime
import platform
from importlib import metadata

import torch

from swa_cli.data.image_file import num_cores
from swa_cli.engine.hardware import choose, processor

PACKAGES = ("torch", "torchvision", "lightning")
ON_CARD = PACKAGES[:2]  # what `benchmarks.gpu` needs


def precisions(device: str) -> tuple[str, ...]:
    """Fp32, and bf16 where `train.precision: auto` takes it: elsewhere nobody would train in it."""
    found = choose(device=device, precision="auto", threads="auto", deterministic=False)
    return ("fp32",) if found.precision == "fp32" else ("fp32", "bf16")


def describe(device: str = "cpu") -> dict[str, str | int]:
    """Processor, cores, versions, date; on a GPU its name and CUDA's version, too."""
    on_card: dict[str, str | int] = {}
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        on_card = {"card": f"{card.name}, {card.total_memory / 2**30:.0f} GiB", "cuda": str(torch.version.cuda)}
    return on_card | {
        "processor": processor(),
        "cores": num_cores(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in (ON_CARD if device == "cuda" else PACKAGES)},
        "date": datetime.date.today().isoformat(),
    }


def in_words(machine: dict[str, str | int]) -> str:
    """One line of it."""
    versions = ", ".join(f"{name} {machine[name]}" for name in PACKAGES if name in machine)
    card = f"{machine['card']}, CUDA {machine['cuda']}, " if "card" in machine else ""
    return f"{card}{machine['processor']}, {machine['cores']} cores, {versions}, {machine['date']}"
