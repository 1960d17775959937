"""Changes to the product in the process of the device: faults that the journal has to show, and an interruption."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torchvision
from torch.utils.data import get_worker_info

from swa_cli.data import pytree
from swa_cli.data.image_file import EncodedPhoto
from swa_cli.engine import step, train

STOPPED_IN = 13  # of 10 steps per epoch: within the second


def read_loss() -> None:
    """Let each step read its loss."""
    _after_backward(lambda result: result.loss.item())


def copy_scores_back() -> None:
    """Let each step copy its loss and score to the host."""
    _after_backward(lambda result: result.part.cpu())


def add_noise_of_host() -> None:
    """Let each step add a tensor of the host to its inputs."""
    forward_backward = step.forward_backward

    def changed(run: Any, forward: Any, batch: tuple[Any, Any], **options: Any) -> step.StepResult:
        inputs, targets = batch
        return forward_backward(run, forward, (inputs + torch.zeros(inputs.shape), targets), **options)

    step.forward_backward = changed


def interrupt_once() -> None:
    """Let Ctrl-C come once, in one step of the second epoch."""
    _in_one_step(lambda run: None)


def spoil_and_interrupt() -> None:
    """Let one step of the second epoch leave NaN in the weights, and Ctrl-C come in the same step."""
    _in_one_step(lambda run: next(run.model.parameters()).data.fill_(torch.nan))


def decode_on_device() -> None:
    """Let torchvision decode for the device, as nvJPEG would on CUDA, and let no loader process decode."""
    decode_jpeg, pixels = torchvision.io.decode_jpeg, EncodedPhoto.pixels

    def decoded(files: list[torch.Tensor], *, mode: Any, device: torch.device) -> list[torch.Tensor]:
        return [pytree.to_device(image, device) for image in decode_jpeg(files, mode=mode)]

    def read(photo: EncodedPhoto, **options: Any) -> torch.Tensor:
        assert get_worker_info() is None, "a loader process decodes"
        return pixels(photo, **options)

    torchvision.io.decode_jpeg = decoded
    EncodedPhoto.pixels = read  # type: ignore[method-assign]


def _in_one_step(work: Callable[[Any], Any]) -> None:
    train_step, num_steps = train.train_step, 0

    def changed(run: Any, *args: Any) -> Iterator[step.StepResult]:
        nonlocal num_steps
        num_steps += 1
        yield from train_step(run, *args)
        if num_steps == STOPPED_IN:
            work(run)
            os.kill(os.getpid(), signal.SIGINT)

    train.train_step = changed


def _after_backward(work: Callable[[step.StepResult], Any]) -> None:
    forward_backward = step.forward_backward

    def changed(*args: Any, **options: Any) -> step.StepResult:
        result = forward_backward(*args, **options)
        work(result)
        return result

    step.forward_backward = changed
