"""`model.pretrained`: the weights that a run starts from, and the inputs that they were trained on.

Weights are those that torchvision or timm publish, or those of a file, which is read as untrusted input. What does not
fit may only be a head of other classes, or a first convolution of other channels. The inputs that the weights expect
fill in what the recipe leaves out, so a run records them as if they had been written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from swa_cli.averaging.model_state import cloned, like
from swa_cli.checkpoint import loading, reader
from swa_cli.checkpoint.loading import MisfitError
from swa_cli.checkpoint.reader import Checkpoint
from swa_cli.data import datasets
from swa_cli.data.sources import PerChannel
from swa_cli.engine.network import InitialWeights, checksum
from swa_cli.errors import Problem, RecipeError, UserError
from swa_cli.models import pretrained
from swa_cli.recipe.image_sizes import evaluation_size
from swa_cli.recipe.schema import Recipe
from swa_cli.recipe.schema.dataset import ImageSize
from swa_cli.recipe.values import Duration
from swa_cli.units import size_text

if TYPE_CHECKING:
    from swa_cli.engine.context import Context

KEY = "model.pretrained"
MAX_HEADS = 3  # a head, one of distillation, an auxiliary one
COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Inputs:
    """The images that weights were trained on; None for what is not known."""

    size: tuple[int, int] | None = None
    resize: int | None = None  # of the shorter side, before a center crop; without one the whole image is resized
    interpolation: str | None = None
    constants: PerChannel | None = None  # mean and std


def with_inputs(recipe: Recipe) -> tuple[Recipe, PerChannel | None]:
    """Return a recipe with the inputs that its pretrained weights expect, where it leaves them out; mean and std.

    A recipe that is resolved already does not change.

    Raises:
        RecipeError: There are no such weights, or the file cannot be read.
    """
    model, dataset, evaluation = recipe.model, recipe.dataset, recipe.eval
    try:
        name, inputs = _inputs(recipe)
    except UserError as error:
        raise _located(error) from error
    shown: dict[str, Any] = {}
    if inputs.size is not None and not datasets.is_user_code(dataset.name):  # one's own shows what it makes
        is_left_out = dataset.image_size is None
        size = dataset.image_size or ImageSize(((Duration(Fraction(0), "ep"), inputs.size),))
        shown = {"image_size": size}
        sized = recipe.model_copy(update={"dataset": dataset.model_copy(update=shown)})
        seen = evaluation_size(sized)
        assert seen is not None, "it has been set"
        crop = evaluation.crop or ("none" if inputs.resize is None else "center")
        scored: dict[str, Any] = {"crop": crop}
        if evaluation.resize == "auto" and crop == "center" and inputs.resize is not None:
            is_same = is_left_out and seen == inputs.size
            share = inputs.resize / min(inputs.size)
            scored["resize"] = inputs.resize if is_same else max(round(min(seen) * share), min(seen))
        evaluation = evaluation.model_copy(update=scored)
    if dataset.interpolation is None and inputs.interpolation is not None:
        shown["interpolation"] = inputs.interpolation
    update = {
        "model": model.model_copy(update={"pretrained": name}),
        "dataset": dataset.model_copy(update=shown),
        "eval": evaluation,
    }
    return recipe.model_copy(update=update), inputs.constants


def load_pretrained(context: Context, model: nn.Module) -> InitialWeights:
    """Put the pretrained weights of the recipe into a network that has the weights of the seed.

    Raises:
        RecipeError: They cannot be had, or do not fit the network.
    """
    recipe = context.recipe
    try:
        if recipe.model.is_published:
            given, batchnorm = _published(context, model), "running"
            source, name = recipe.model.name, str(recipe.model.pretrained)
        else:
            found = _read(recipe)
            given, name, batchnorm = _from_file(found, model)
            source = str(found.path)
        fresh, unread, adapted = _fit(
            model,
            given,
            source=f"{source} ({name})",
            outputs=context.source.num_classes or None,
            channels=context.source.channels,
        )
    except UserError as error:
        raise _located(error) from error
    _draw_heads(model, fresh)
    return InitialWeights(KEY, source, name, batchnorm, checksum(given), tuple(fresh), tuple(unread), tuple(adapted))


def changes(recipe: Recipe, recorded: Any, model: nn.Module) -> list[str]:
    """Return a sentence if the file of the pretrained weights is there, and is not as when the run began."""
    file = recipe.model.pretrained_file
    if file is None or not Path(file).is_file() or not isinstance(recorded, dict):
        return []
    kept = f"{KEY}: {file} is not as when the run began; the run continues from its own weights"
    try:
        given, _, _ = _from_file(_read(recipe), model)
    except UserError:
        return [kept]
    return [] if checksum(given) == recorded.get("sha256") else [kept]


def _inputs(recipe: Recipe) -> tuple[str, Inputs]:
    """Return the name of the weights, and what they expect."""
    model = recipe.model
    assert model.pretrained is not None, "only a recipe that has the key"
    if model.is_published:
        found = pretrained.find(model.name, model.pretrained)
        constants = (found.mean, found.std)
        if found.size is None:
            return found.name, Inputs(constants=constants)
        return found.name, Inputs(found.size, found.resize, found.interpolation, constants)
    checkpoint = _read(recipe)
    if checkpoint.recipe is None:
        return str(model.pretrained), Inputs()
    stored = checkpoint.content["input"]
    known = (tuple(stored["mean"]), tuple(stored["std"])) if stored["mean"] else None
    if checkpoint.recipe["dataset"].get("image_size") is None:
        return str(model.pretrained), Inputs(constants=known)
    size = (stored["size"][0], stored["size"][1])
    return str(model.pretrained), Inputs(size, stored.get("resize"), stored.get("interpolation"), known)


def _read(recipe: Recipe) -> Checkpoint:
    assert recipe.model.pretrained_file is not None, "published weights have no file"
    return reader.read(Path(recipe.model.pretrained_file))


def _published(context: Context, model: nn.Module) -> dict[str, Tensor]:
    """Return published weights. A download shows its progress, as if it were of the size of the network."""
    settings, events = context.recipe.model, context.events
    assert settings.pretrained is not None, "only a recipe that has the key"
    assert context.source.channels is not None, "networks of libraries take images"
    total = sum(value.nbytes for value in model.state_dict().values())
    what = f"loading {settings.pretrained} of {settings.name}, about {size_text(total)}"
    with events.progress(what, total) as bar:
        shown = 0

        def report(done: int) -> None:
            nonlocal shown
            bar.advance(min(done, total) - shown)
            shown = min(done, total)

        return pretrained.load(
            pretrained.find(settings.name, settings.pretrained),
            in_channels=context.source.channels,
            args=settings.args,
            read=_state_dict,
            progress=report,
        )


def _state_dict(path: Path) -> dict[str, Tensor]:
    return reader.read(path).content


def _from_file(found: Checkpoint, model: nn.Module) -> tuple[dict[str, Tensor], str, str]:
    """Return weights of a checkpoint: the raw ones where it has several; their name, and their BatchNorm."""
    if found.kind == "resume":  # its averages are of its own network
        return found.content["model"], "last", found.content.get("batchnorm") or "running"
    sets = reader.weight_sets(found, model)
    name = "last" if "last" in sets else next(iter(sets))
    return sets[name].state_dict, name, sets[name].batchnorm


def _fit(
    model: nn.Module, given: Mapping[str, Tensor], *, source: str, outputs: int | None, channels: int | None
) -> tuple[list[str], list[str], list[str]]:
    """Load weights of which a head or a first convolution may be another one.

    Args:
        model: The network.
        given: The weights under its names.
        source: Where they come from, for messages.
        outputs: K of the network; a tensor with K rows may be of a head, which keeps its values.
        channels: C of the network; a first convolution of 3 channels is adapted to C as timm does it.

    Returns:
        The names of the tensors that kept their values, of those that the network does not have, and of those that
        were adapted.

    Raises:
        UserError: Other tensors do not fit; the message counts them.
    """
    own = cloned(model.state_dict())
    same = {key for key, value in own.items() if key in given and given[key].shape == value.shape}
    first = next((key for key, value in own.items() if value.dim() == 4), None)
    weights = {key: given[key] for key in same}
    adapted = []
    if first is not None and first in given and first not in same and channels is not None:
        changed = _of_channels(given[first], channels)
        if changed is not None and changed.shape == own[first].shape:
            weights[first], adapted = changed, [first]
    others = [key for key in own if key not in weights and not (key.endswith(COUNTER) and key not in given)]
    heads = dict.fromkeys(key.rpartition(".")[0] for key in others)
    fresh = others if outputs is not None and len(heads) <= MAX_HEADS else []
    fresh = fresh if all(own[key].dim() > 0 and len(own[key]) == outputs for key in fresh) else []
    children = {key.partition(".")[0] for key in own}
    unread = [
        key
        for key in given
        if key not in own and (key.partition(".")[0] not in children or any(key.startswith(f"{at}.") for at in heads))
    ]
    if not (fresh or adapted or unread) or len(weights) <= len(fresh):
        loading.load_weights(model, given, source=source, cure=_cure(outputs))
        return [], [], []
    kept = {**{key: value for key, value in given.items() if key not in unread}, **weights}
    kept |= {key: own[key] for key in fresh}
    try:
        loading.load_weights(model, like(given, kept), source=source, cure=_cure(outputs))
    except MisfitError as error:
        loading.load_unchecked(model, own)
        raise MisfitError(
            error.message + f"; {len(weights)} of {len(own)} tensors fit", hint=error.hint, names=error.names
        ) from error
    return fresh, unread, adapted


def _draw_heads(model: nn.Module, fresh: Sequence[str]) -> None:
    """Give fresh linear heads the initial values of `nn.Linear`, uniform within 1 / sqrt(inputs).

    The EfficientNets of torchvision and timm draw from +-1 / sqrt(outputs), which is made for 1,000 classes: with 10,
    the first steps have so large a loss that they undo what the features know.
    """
    for head in dict.fromkeys(name.rpartition(".")[0] for name in fresh):
        layer = model.get_submodule(head)
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()


def _cure(outputs: int | None) -> str:
    head = f"; only a head of {outputs} outputs may be missing" if outputs else ""
    return f"name weights of this network{head}"


def _of_channels(weight: Tensor, channels: int) -> Tensor | None:
    """Return a convolution of colors for C channels: their sum for one channel, else repeated and scaled, as timm's."""
    if weight.dim() != 4 or weight.shape[1] != 3:
        return None
    if channels == 1:
        return weight.sum(1, keepdim=True)
    return torch.cat([weight] * -(-channels // 3), 1)[:, :channels] * (3 / channels)


def _located(error: UserError) -> RecipeError:
    """Return the error with the key as its place."""
    if isinstance(error, RecipeError):
        return error
    return RecipeError([Problem(KEY, error.message.removeprefix(f"{KEY}: "), error.hint)])
