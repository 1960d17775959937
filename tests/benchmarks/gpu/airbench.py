"""The method of airbench94 (Jordan 2024, arXiv:2404.00498) as a plain script, beside the recipe cifar10_speed.

The settings are those of its published code for 94 %: Nesterov SGD whose rates are given for 1,024 images, 64 times the
rate for the biases of BatchNorm, Lookahead every 5 steps, alternating flips, shifts by 2 pixels, label smoothing 0.2, a
whitening layer whose bias trains for three epochs, and predictions of six views. The network is `speednet` of `swa`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.contestants.bare import autocast, network
from benchmarks.turns import seconds

EPOCHS, BATCH_SIZE = 9.9, 1024
RATE, MOMENTUM, WEIGHT_DECAY, BIAS_SCALE = 11.5, 0.85, 0.0153, 64
SMOOTHING, SHIFT, WHITEN_BIAS_EPOCHS = 0.2, 2, 3
LOOKAHEAD_EVERY = 5
START, PEAK, END = 0.2, 0.23, 0.07  # of the triangle: its first rate, where its peak is, and its last rate
FEW = 5_000  # images that the whitening layer is computed from


class Script:
    """Images of both splits, normalised on the device; `train` trains on them anew.

    Args:
        splits: "train" and "test": images (N, 3, 32, 32) uint8 and labels (N,).
    """

    def __init__(self, splits: dict[str, tuple[Tensor, Tensor]], *, device: str, epochs: float = EPOCHS) -> None:
        pixels = splits["train"][0].float() / 255
        mean, std = (function(pixels, dim=(0, 2, 3))[:, None, None] for function in (torch.mean, torch.std))
        self._splits = {
            name: (((images / 255 - mean) / std).to(device, memory_format=torch.channels_last), labels.to(device))
            for name, (images, labels) in splits.items()
        }
        self._device, self._epochs = device, epochs

    def train(self, seed: int, *, precision: str) -> tuple[float, float]:
        """Train from the beginning; return the seconds of training alone, and the accuracy."""
        torch.manual_seed(seed)
        model = network("speednet").to(self._device)
        train_s = seconds(lambda: self._train(model, precision=precision))
        images, labels = self._splits["test"]
        model.eval()
        with torch.no_grad(), autocast(self._device, precision):
            scores = torch.cat([_six_views(model, part) for part in images.split(2 * BATCH_SIZE)])
        return train_s, (scores.argmax(1) == labels).float().mean().item()

    def _train(self, model: Any, *, precision: str) -> None:
        images, labels = self._splits["train"]
        model.initialize_from(images[:FEW])
        per_epoch = len(images) // BATCH_SIZE
        total = round(self._epochs * per_epoch)
        optimizer = _optimizer(model)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _triangle(step, total))
        slow = {name: value.clone() for name, value in model.state_dict().items() if value.is_floating_point()}
        first_flips = torch.rand(len(images), device=images.device) < 0.5
        scaler = torch.amp.GradScaler(self._device, enabled=precision == "fp16")
        model.train()
        step = 0
        while step < total:
            epoch = step // per_epoch
            model.whiten.bias.requires_grad = epoch < WHITEN_BIAS_EPOCHS
            shown = _shifted(torch.where((first_flips ^ (epoch % 2 > 0))[:, None, None, None], images.flip(3), images))
            order = torch.randperm(len(images), device=images.device)
            for rows in order[: per_epoch * BATCH_SIZE].split(BATCH_SIZE)[: total - step]:
                optimizer.zero_grad(set_to_none=True)
                with autocast(self._device, precision):
                    outputs = model(shown[rows])
                loss = functional.cross_entropy(outputs, labels[rows], label_smoothing=SMOOTHING, reduction="sum")
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                scheduler.step()
                step += 1
                if step % LOOKAHEAD_EVERY == 0:
                    _look_ahead(model, slow, share=0.95**LOOKAHEAD_EVERY * (step / total) ** 3)
        _look_ahead(model, slow, share=1.0)


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Nesterov SGD on the sum of losses, with decoupled rates: a rate for 1,024 images and the momentum."""
    thousands = 1024 * (1 + 1 / (1 - MOMENTUM))
    rate, decay = RATE / thousands, WEIGHT_DECAY * BATCH_SIZE / thousands
    biases = [value for name, value in model.named_parameters() if "norm" in name and value.requires_grad]
    others = [value for name, value in model.named_parameters() if "norm" not in name and value.requires_grad]
    groups = [
        {"params": biases, "lr": rate * BIAS_SCALE, "weight_decay": decay / (rate * BIAS_SCALE)},
        {"params": others, "lr": rate, "weight_decay": decay / rate},
    ]
    return torch.optim.SGD(groups, momentum=MOMENTUM, nesterov=True)


def _triangle(step: int, total: int) -> float:
    """The factor of the rate: up from START to 1, then down to END."""
    peak = int(PEAK * total)
    if step < peak:
        return START + (1 - START) * step / peak
    return END + (1 - END) * (total - step) / (total - peak)


def _look_ahead(model: nn.Module, slow: dict[str, Tensor], *, share: float) -> None:
    """Move slow weights to the present ones but for a share, and the network to them."""
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name in slow:
                slow[name].lerp_(value, 1 - share)
                value.copy_(slow[name])


def _shifted(images: Tensor) -> Tensor:
    """Each image by -SHIFT to SHIFT pixels both ways, its border reflected."""
    num, _, height, width = images.shape
    padded = functional.pad(images, (SHIFT,) * 4, mode="reflect")
    down, right = torch.randint(2 * SHIFT + 1, (2, num, 1), device=images.device)
    rows = down + torch.arange(height, device=images.device)
    columns = right + torch.arange(width, device=images.device)
    index = torch.arange(num, device=images.device)[:, None, None]
    shown = padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]]  # (N, H, W, 3)
    return shown.permute(0, 3, 1, 2)


def _six_views(model: nn.Module, images: Tensor) -> Tensor:
    """Logits of an image and its mirror image: half as they are, half shifted by a pixel up left and down right."""

    def both(shown: Tensor) -> Tensor:
        return 0.5 * model(shown).float() + 0.5 * model(shown.flip(3)).float()

    padded = functional.pad(images, (1, 1, 1, 1), mode="reflect")
    height, width = images.shape[2:]
    moved = [padded[:, :, down : down + height, down : down + width] for down in (0, 2)]
    return 0.5 * both(images) + 0.25 * both(moved[0]) + 0.25 * both(moved[1])
