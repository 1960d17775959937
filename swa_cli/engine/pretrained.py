"""`model.pretrained`: the weights that a run starts from, and the inputs that they were trained on.

Weights are those that torchvision or timm publish, or those of a file, which is read as untrusted input. What does not
fit may only be a head of other classes, or a first convolution of other channels. The inputs that the weights expect
fill in what the recipe leaves out, so a run records them as if they had been written; so do constructor arguments that
say how the network takes its inputs, which no weights show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from swa_cli.averaging.model_state import cloned, like
from swa_cli.checkpoint import loading, reader
from swa_cli.checkpoint.loading import MisfitError
from swa_cli.checkpoint.reader import Checkpoint
from swa_cli.data import datasets
from swa_cli.data.datasets import IMAGENET_MEAN, IMAGENET_STD
from swa_cli.data.sources import PerChannel
from swa_cli.engine.network import InitialWeights, checksum
from swa_cli.errors import Problem, RecipeError, UserError
from swa_cli.models import pretrained
from swa_cli.models.pretrained import UNTRANSFORMED, Published
from swa_cli.recipe.image_sizes import evaluation_size
from swa_cli.recipe.schema import Model, Recipe
from swa_cli.recipe.schema.dataset import ImageSize
from swa_cli.recipe.values import Duration
from swa_cli.units import size_text

if TYPE_CHECKING:
    from swa_cli.engine.context import Context

KEY = "model.pretrained"
MAX_HEADS = 3  # a head, one of distillation, an auxiliary one
INPUT_KEYS = (  # what `with_inputs` fills in
    *("dataset.image_size*", "dataset.interpolation", "eval.crop", "eval.resize"),
    *("model.args.transform_input", "model.args.image_size"),
)
COUNTER = "num_batches_tracked"
Purpose = Literal["plan", "dry run", "train"]  # of a run: only `train` may write and download


@dataclass(frozen=True)
class Inputs:
    """The images that weights were trained on; None for what is not known."""

    size: tuple[int, int] | None = None
    resize: int | None = None  # of the shorter side, before a center crop; without one the whole image is resized
    interpolation: str | None = None
    constants: PerChannel | None = None  # mean and std


@dataclass(frozen=True)
class Pretrained:
    """The pretrained weights of a recipe, found and not yet loaded: those of a library, or a file."""

    name: str
    inputs: Inputs
    published: Published | None = None
    checkpoint: Checkpoint | None = None
    args: Mapping[str, Any] = field(default_factory=dict)  # that those of a file need; published ones by their name
    warnings: tuple[str, ...] = ()


def find(recipe: Recipe) -> Pretrained:
    """Find the pretrained weights of a recipe, and what they expect; a file is opened and verified.

    Raises:
        RecipeError: There are no such weights, or the file cannot be read.
    """
    model = recipe.model
    assert model.pretrained is not None, "only a recipe that has the key"
    try:
        if not model.is_published:
            checkpoint = _read(recipe)
            inputs, args = _inputs_of_file(checkpoint), _args_of_file(checkpoint, model.name)
            return Pretrained(str(model.pretrained), inputs, checkpoint=checkpoint, args=args)
        found = pretrained.find(model.name, model.pretrained)
    except UserError as error:
        raise _located(error) from error
    constants = (found.mean, found.std)
    if found.size is None:
        return Pretrained(found.name, Inputs(constants=constants), published=found)
    inputs = Inputs(found.size, found.resize, found.interpolation, constants)
    is_told = found.note and recipe.eval.crop is None
    warning = f"{KEY}: {recipe.model.name} shows {found.name} {found.note}"
    return Pretrained(found.name, inputs, published=found, warnings=(warning,) if is_told else ())


def with_inputs(recipe: Recipe, found: Pretrained) -> Recipe:
    """Return a recipe with the name of its pretrained weights, and the images and arguments that they expect.

    Values that the recipe has stay, so one that is resolved already does not change.
    """
    model, dataset, evaluation, inputs = recipe.model, recipe.dataset, recipe.eval, found.inputs
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
        "model": model.model_copy(update={"pretrained": found.name, "args": {**found.args, **model.args}}),
        "dataset": dataset.model_copy(update=shown),
        "eval": evaluation,
    }
    return recipe.model_copy(update=update)


def load_pretrained(context: Context, model: nn.Module, *, purpose: Purpose) -> InitialWeights:
    """Put the pretrained weights of the recipe into a network that has the weights of the seed.

    A plan reads no published weights, and a dry run those in the cache of the library: else the network stays as it is,
    and shapes alone say what would fit. A file is read for each purpose.

    Raises:
        RecipeError: They cannot be had, or do not fit the network.
    """
    recipe, found = context.recipe, context.pretrained
    assert found is not None, "only a run that begins"
    where, own, is_read = "", None, True
    try:
        if found.published is not None:
            source, name, batchnorm, cached = recipe.model.name, found.name, "running", found.published.cached()
            is_read = purpose == "train" or (purpose == "dry run" and cached is not None)
            if is_read:
                given = _published(context, model)
            else:
                given = pretrained.shapes(found.published, **_shape(context))
                own, where = cloned(model.state_dict()), _where(found.published, cached, given)
        else:
            assert found.checkpoint is not None
            given, name, batchnorm = _from_file(found.checkpoint, model)
            source = str(found.checkpoint.path)
        fresh, unread, adapted = _fit(
            model,
            given,
            source=f"{source} ({name})",
            outputs=context.source.num_classes or None,
            channels=context.source.channels,
        )
        if own is not None:
            loading.load_unchecked(model, own)
    except UserError as error:
        raise _located(error) from error
    _draw_heads(model, fresh)
    sha256 = checksum(given) if is_read else None
    return InitialWeights(KEY, source, name, batchnorm, sha256, tuple(fresh), tuple(unread), tuple(adapted), where)


def describe_constants(context: Context) -> str:
    """Say which mean and std of `auto` the images of a network with pretrained weights get, and why.

    `mean 0.485 0.456 0.406 and std 0.229 0.224 0.225 of IMAGENET1K_V2`; `mean 0.2 and std 0.3 measured on training
    images: lite0.pth names none; ...`.
    """
    recipe, source, found = context.recipe, context.source, context.pretrained
    dataset = recipe.dataset
    both = (("mean", dataset.mean, source.mean), ("std", dataset.std, source.std))
    taken = {key: values for key, given, values in both if given == "auto"}
    assert found is not None, "only a recipe that has the key"
    if source.channels is None or not taken:
        return ""
    text = " and ".join(f"{key} {' '.join(f'{value:.4g}' for value in values)}" for key, values in taken.items())
    if found.inputs.constants is not None and source.is_8_bit:
        return f"{text} of {found.name}"
    if not source.is_8_bit or not source.measured & taken.keys():
        return text
    written = " ".join(f"dataset.{key}={value}" for key, value in _usual_constants(recipe).items() if key in taken)
    return f"{text} measured on training images: {found.name} names none; write {written}, or those it was trained with"


def _usual_constants(recipe: Recipe) -> dict[str, str]:
    """Return mean and std of the default weights of the network, if it is one of a library; else those of ImageNet."""
    try:
        usual = pretrained.find(recipe.model.name, True) if recipe.model.is_of_library else None
    except UserError:  # the library publishes none
        usual = None
    if usual is not None and usual.args.get("transform_input") and not recipe.model.args.get("transform_input"):
        usual = replace(usual, mean=UNTRANSFORMED, std=UNTRANSFORMED)
    if usual is None or (usual.mean, usual.std) == (IMAGENET_MEAN, IMAGENET_STD):
        return {"mean": "imagenet", "std": "imagenet"}
    return {key: f"[{','.join(f'{value:g}' for value in getattr(usual, key))}]" for key in ("mean", "std")}


def _where(published: Published, cached: Path | None, given: Mapping[str, Tensor]) -> str:
    """Say which file a run reads, or downloads before."""
    if cached is not None:
        return f"which a run reads from {cached} ({size_text(cached.stat().st_size)})"
    total = sum(value.numel() * value.element_size() for value in given.values())
    size = f"about {size_text(total)}" if published.num_bytes is None else size_text(published.num_bytes)
    place = f"{published.file} of {published.url}" if published.is_on_hub else published.url
    return f"which a run downloads: {place} ({size}) into {published.folder}"


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


def _inputs_of_file(checkpoint: Checkpoint) -> Inputs:
    """Return the images that the weights of a file were trained on, as far as it tells."""
    if checkpoint.trained_on is None:
        return Inputs()
    stored, dataset = checkpoint.trained_on["input"], checkpoint.trained_on["recipe"].get("dataset")
    known = (tuple(stored["mean"]), tuple(stored["std"])) if stored["mean"] else None
    if not isinstance(dataset, dict) or dataset.get("image_size") is None or len(stored["size"]) != 2:
        return Inputs(constants=known)
    return Inputs((stored["size"][0], stored["size"][1]), stored.get("resize"), stored.get("interpolation"), known)


def problems_of_args(checkpoint: Checkpoint, recipe: Recipe) -> list[Problem]:
    """Return the problems of `train.init`, which leaves the arguments of the network to the recipe.

    Only flags are looked at: of other arguments the shapes of the weights tell.
    """
    given, model = _args_of_file(checkpoint, recipe.model.name), recipe.model
    lacking = [key for key, value in given.items() if value is True and key not in model.args]
    return [
        Problem(
            "train.init",
            f"{checkpoint.path} was trained with model.args.{key}=true, and other inputs mean nothing to its weights",
            f"write model.args.{key}=true",
        )
        for key in lacking
    ]


def _args_of_file(checkpoint: Checkpoint, network: str) -> dict[str, Any]:
    """Return the arguments that a run gave to `network`, of those that published weights of it need for their inputs.

    Images of other channels are never transformed, see `build_model`.
    """
    origin = checkpoint.trained_on
    if origin is None or origin["input"]["channels"] != 3:
        return {}
    try:
        model = Model.model_validate(origin["recipe"].get("model"))
        if model.name != network or not model.is_of_library:
            return {}
        weights = model.pretrained if model.is_published and model.pretrained else True
        needed = pretrained.find(network, weights).args
    except (ValidationError, UserError):  # the recipe is no longer valid, or the library publishes none
        return {}
    given = {**(needed if model.is_published else {}), **model.args}
    return {key: value for key, value in given.items() if key in needed}


def _read(recipe: Recipe) -> Checkpoint:
    assert recipe.model.pretrained_file is not None, "published weights have no file"
    return reader.read(Path(recipe.model.pretrained_file))


def _shape(context: Context) -> dict[str, Any]:
    """Return what decides the shapes of published weights."""
    assert context.source.channels is not None, "networks of libraries take images"
    return {"in_channels": context.source.channels, "args": context.recipe.model.args}


def _published(context: Context, model: nn.Module) -> dict[str, Tensor]:
    """Return published weights. A download shows its progress, of the size of the network where no other is known."""
    found, name = context.pretrained, context.recipe.model.name
    assert found is not None
    assert found.published is not None
    total = found.published.num_bytes or sum(value.nbytes for value in model.state_dict().values())
    what = f"loading {found.name} of {name}, about {size_text(total)}"
    with context.events.progress(what, total) as bar:
        shown = 0

        def report(done: int) -> None:
            nonlocal shown
            bar.advance(min(done, total) - shown)
            shown = min(done, total)

        return pretrained.load(found.published, **_shape(context), read=_state_dict, progress=report)


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
        loading.load_strict(model, given, source=source, cure=_cure(outputs))
        return [], [], []
    kept = {**{key: value for key, value in given.items() if key not in unread}, **weights}
    kept |= {key: own[key] for key in fresh}
    try:
        loading.load_strict(model, like(given, kept), source=source, cure=_cure(outputs))
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
