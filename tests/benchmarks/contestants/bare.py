"""The least that training can be: a loop over batches that lie ready in memory, normalised and channels last.

No augmentation, no scores, no averages: its speed is what the hardware gives to this network.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import data
from benchmarks.contestants.job import (
    BATCH_SIZE,
    LEARNING_RATE,
    MOMENTUM,
    NETWORK,
    WEIGHT_DECAY,
    StepClock,
    options,
)
from swa_cli.models import build_model

Batch = tuple[Tensor, Tensor]


def ready_batches(images: Tensor, labels: Tensor, *, batch_size: int = BATCH_SIZE, device: str = "cpu") -> list[Batch]:
    """Batches on the device as the network takes them: (B, 3, H, W) float32 normalised, and (B,) labels."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.MEAN, data.STD))
    return [
        (((pixels / 255 - mean) / std).contiguous(memory_format=torch.channels_last).to(device), classes.to(device))
        for pixels, classes in zip(images.split(batch_size), labels.split(batch_size), strict=True)
    ]


def network(name: str = NETWORK) -> nn.Module:
    """A network with ten classes, channels last; by default the one that all contestants train."""
    torch.manual_seed(0)
    model: nn.Module = build_model.build(name, num_classes=data.NUM_CLASSES, in_channels=3)
    return model.to(memory_format=torch.channels_last)


def autocast(device: str, precision: str) -> torch.autocast:
    """Torch's mixed precision; fp32 changes nothing."""
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return torch.autocast(device, dtype=dtype, enabled=dtype is not None)


def forward_passes(model: Callable[[Tensor], Tensor], batches: list[Batch], *, precision: str) -> None:
    """The batches through the network in the mode it is in, without gradients, nothing done with the outputs."""
    with torch.no_grad(), autocast(batches[0][0].device.type, precision):
        for images, _ in batches:
            model(images)


def train_epoch(
    model: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer, batches: Iterable[Batch], *, precision: str
) -> None:
    """An optimizer step for each batch, in fp16 with scaled gradients."""
    scaler = torch.amp.GradScaler(enabled=precision == "fp16")
    for images, labels in batches:
        optimizer.zero_grad(set_to_none=True)
        with autocast(images.device.type, precision):
            loss = functional.cross_entropy(model(images), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()


def main() -> None:
    """Train; then forward passes alone, in both modes."""
    parser = options()
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    clock, given = StepClock(), parser.parse_args()
    batches = ready_batches(*data.arrays(given.images, 0)["train"])
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    clock.lap("setup_s")
    for _ in range(given.epochs):
        train_epoch(model, optimizer, batches, precision=given.precision)
        clock.epoch()
    rates = {}
    for mode in ("train", "eval"):
        model.train(mode == "train")
        started = time.perf_counter()
        forward_passes(model, batches, precision=given.precision)
        rates[f"{mode}_forward_images_per_s"] = given.images / (time.perf_counter() - started)
    held_mb = sum(images.nbytes for images, _ in batches) / 1e6
    clock.tell(batchnorm_s=0, scores_s=0, ready_mb=held_mb, **rates)


if __name__ == "__main__":
    main()
