"""The network of a recipe, and what is said of it."""

from __future__ import annotations

from torch import nn

from swa_cli import models
from swa_cli.averaging.layers import bn_layers
from swa_cli.errors import UserError
from swa_cli.recipe.schema import Recipe
from swa_cli.training.faults import is_out_of_memory

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
        return models.build(
            model.name, num_classes=num_classes, in_channels=in_channels, args=model.args, families=families
        )
    except (MemoryError, OverflowError, RuntimeError) as error:
        is_overflow = isinstance(error, OverflowError) or any(words in str(error) for words in OVERFLOW)
        if not (is_overflow or is_out_of_memory(error)):
            raise
        message = "model: is too large for the memory of this machine"
        raise UserError(message, hint="make it smaller with model.args") from error


def describe_model(name: str, model: nn.Module) -> str:
    """`preresnet20: 0.27 M parameters, 19 BatchNorm layers`."""
    number = sum(parameter.numel() for parameter in model.parameters())
    parameters = f"{number / 1e6:.2f} M" if number >= 1e5 else f"{number:,}"
    layers = len(bn_layers(model))
    norm = f"{layers} BatchNorm layer{'s' if layers != 1 else ''}" if layers else "no BatchNorm"
    return f"{name}: {parameters} parameters, {norm}"
