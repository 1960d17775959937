"""The network of a recipe, and what is said of it."""

from __future__ import annotations

from itertools import chain

import torch
from torch import nn
from torch.nn.parameter import is_lazy as is_lazy_tensor

from swa_cli.averaging.bn_layers import bn_layers, norm_layers
from swa_cli.engine.failures import is_out_of_memory
from swa_cli.errors import UserError
from swa_cli.models import build_model
from swa_cli.recipe.schema import Recipe

OVERFLOW = ("Storage size calculation overflowed", "Overflow")  # what torch says of sizes beyond 64 bits


def build_network(
    recipe: Recipe, *, num_classes: int | None, in_channels: int | None, families: tuple[str, ...]
) -> nn.Module:
    """The network of a recipe on the CPU; its weights are drawn from torch's global generator.

    Raises:
        UserError: The recipe does not describe one, or it does not fit into memory.
    """
    model = recipe.model
    try:
        network = build_model.build(
            model.name, num_classes=num_classes, in_channels=in_channels, args=model.args, families=families
        )
        return unwrapped(network)
    except (MemoryError, OverflowError, RuntimeError) as error:
        is_overflow = isinstance(error, OverflowError) or any(words in str(error) for words in OVERFLOW)
        if not (is_overflow or is_out_of_memory(error)):
            raise
        message = "model: is too large for the memory of this machine"
        raise UserError(message, hint="make it smaller with model.args") from error


def unwrapped(model: nn.Module) -> nn.Module:
    """The network without the wrappers of torch.compile and DataParallel, outside and inside, whose names it would get.

    A compiled part stays compiled, as `Module.compile()` does it in place. A run has one device a process, so there is
    nothing for DataParallel to do.
    """
    outside = nn.ModuleDict({"network": model})
    for module in [outside, *model.modules()]:
        for key, child in module._modules.items():
            while child is not None and (inner := _inside(child)) is not None:
                child = inner
            module._modules[key] = child
    return outside["network"]


def _inside(wrapper: nn.Module) -> nn.Module | None:
    """What a wrapper wraps; None where it is none."""
    if isinstance(wrapper, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inner: nn.Module = wrapper.module
        return inner
    if "_orig_mod" not in wrapper._modules:  # of torch.compile; naming its class would import all of dynamo
        return None
    inner = wrapper.get_submodule("_orig_mod")
    inner._compiled_call_impl = wrapper.dynamo_ctx(inner._call_impl)  # type: ignore[operator]
    return inner


def is_lazy(model: nn.Module) -> bool:
    """Whether a layer has yet to find its sizes in a first forward pass."""
    return any(is_lazy_tensor(value) for value in chain(model.parameters(), model.buffers()))


def require_sizes(model: nn.Module, *, name: str) -> None:
    """Refuse a network with a lazy layer that a forward pass has not reached.

    Raises:
        UserError: There is one.
    """
    for key, layer in model.named_modules():
        if any(is_lazy_tensor(value) for value in chain(layer.parameters(recurse=False), layer.buffers(recurse=False))):
            message = f"model.name: {name} has the lazy layer {key}, which no forward pass gives a size"
            raise UserError(message, hint=f"use {key} in forward, or give it its sizes")


def channels_last(model: nn.Module) -> nn.Module:
    """The model with tensors (N, C, H, W) in the order of memory that convolutions are fastest in.

    Not `model.to(memory_format=...)`, which refuses the weights of 3-D convolutions.
    """
    for value in chain(model.parameters(), model.buffers()):
        if value.dim() == 4:
            value.data = value.data.to(memory_format=torch.channels_last)
    return model


def describe_model(name: str, model: nn.Module) -> str:
    """`preresnet20: 0.27 M parameters, 19 BatchNorm layers`."""
    number = sum(parameter.numel() for parameter in model.parameters())
    parameters = f"{number / 1e6:.2f} M" if number >= 1e5 else f"{number:,}"
    layers = len(norm_layers(model))
    frozen = layers - len(bn_layers(model))
    norm = f"{layers} BatchNorm layer{'s' if layers != 1 else ''}" if layers else "no BatchNorm"
    norm += f", {frozen} of them frozen" if frozen else ""
    return f"{name}: {parameters} parameters, {norm}"
