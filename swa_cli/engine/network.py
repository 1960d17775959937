"""The network of a recipe, its initial weights, its description, and second networks for other weights.

A second network is built by the recipe and given a state dict, never copied: hooks and closures see their own network,
and what cannot be copied (computed weights, locks, clients) need not be. Each weight set gets a new one, since a
network may keep what it has computed from its weights. Where a constructor makes another network each time, beyond what
a state dict holds, the trained network itself holds the weights for a while.

`train.init` starts from trained weights, as FGE does (Garipov et al. 2018): weights and BatchNorm statistics are read
once from a checkpoint, whose checksum is recorded, and a resumed run has them in its resume point.
"""

from __future__ import annotations

import fnmatch
import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy as is_lazy_tensor

from swa_cli.averaging.bn_layers import bn_layers, norm_layers
from swa_cli.averaging.model_state import cloned, fork_rng, is_expanded, like, unchanged
from swa_cli.checkpoint import loading, reader
from swa_cli.checkpoint.loading import MisfitError
from swa_cli.checkpoint.reader import Checkpoint
from swa_cli.data.randomness import preserve_global_rng
from swa_cli.engine.failures import is_out_of_memory
from swa_cli.engine.fsdp import UNSHARDED, Sharding
from swa_cli.errors import Problem, RecipeError, UserError
from swa_cli.models import build_model
from swa_cli.models.freezing import freeze, frozen_names
from swa_cli.recipe.scalars import shown
from swa_cli.recipe.schema import Recipe
from swa_cli.units import count_text, some_of

if TYPE_CHECKING:
    from swa_cli.engine.context import Context

OVERFLOW = ("Storage size calculation overflowed", "Overflow")  # what torch says of sizes beyond 64 bits


def build_network(
    recipe: Recipe, *, num_classes: int | None, in_channels: int | None, families: tuple[str, ...]
) -> nn.Module:
    """Build the network of a recipe on the CPU; its weights are drawn from torch's global generator.

    Raises:
        UserError: The recipe does not describe one, or it does not fit into memory.
    """
    model = recipe.model
    try:
        network = build_model.build(
            model.name,
            num_classes=num_classes,
            in_channels=in_channels,
            args=model.args,
            families=families,
            published=model.pretrained if model.is_published else None,
        )
        return materialized(unwrapped(network), name=model.name)
    except (MemoryError, OverflowError, RuntimeError) as error:
        is_overflow = isinstance(error, OverflowError) or any(words in str(error) for words in OVERFLOW)
        if not (is_overflow or is_out_of_memory(error)):
            raise
        message = "model: is too large for the memory of this machine"
        raise UserError(message, hint="make it smaller with model.args") from error


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network without the wrappers of torch.compile and DataParallel, outside and inside.

    A compiled part stays compiled, as by `Module.compile()`. A process has one device, so DataParallel has no use.
    """
    outside = nn.ModuleDict({"network": model})
    for module in [outside, *model.modules()]:
        for key, child in module._modules.items():
            while child is not None and (inner := _inside(child)) is not None:
                child = inner
            module._modules[key] = child
    return outside["network"]


def _inside(wrapper: nn.Module) -> nn.Module | None:
    """Return the network that a wrapper wraps; None if it is no wrapper."""
    if isinstance(wrapper, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inner: nn.Module = wrapper.module
        return inner
    if "_orig_mod" not in wrapper._modules:  # of torch.compile; naming its class would import all of dynamo
        return None
    inner = wrapper.get_submodule("_orig_mod")
    inner._compiled_call_impl = wrapper.dynamo_ctx(inner._call_impl)  # type: ignore[operator]
    return inner


def materialized(model: nn.Module, *, name: str) -> nn.Module:
    """Return the network with memory for each element of its buffers: torch writes into no tensor made by `expand`.

    Raises:
        UserError: A parameter, or a buffer of the state dict, is such a tensor, so torch could not load the network, or
            a buffer is a view of a parameter.
    """
    trained = {id(parameter) for parameter in model.parameters()}
    for key, value in chain(model.named_parameters(), model.named_buffers()):
        if is_lazy_tensor(value) or not is_expanded(value):
            continue
        if id(value._base) in trained:
            message = f"model.name: {name} has {key}, a view of a parameter, which a copy on a device would not follow"
            raise UserError(message, hint=f"expand the parameter in forward, and keep no {key}")
        if key in model.state_dict():
            message = f"model.name: {name} cannot be loaded by torch: the elements of {key} share memory"
            raise UserError(message, hint=f"add .clone() after the expand() that makes {key}")
        value.data = value.data.clone()
    return model


def is_lazy(model: nn.Module) -> bool:
    """Return whether a lazy layer has not seen its first forward pass."""
    return any(is_lazy_tensor(value) for value in chain(model.parameters(), model.buffers()))


def find_sizes(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], *, name: str) -> None:
    """Let lazy layers find their sizes in a forward pass in evaluation mode, which changes no other layer.

    Raises:
        UserError: The forward pass does not reach one.
    """
    with unchanged(model), torch.no_grad():
        model.eval()
        model(*args, **kwargs)
    require_sizes(model, name=name)


def take_sizes(model: nn.Module, state_dict: Mapping[str, Tensor], *, name: str) -> None:
    """Give the tensors of lazy layers the shapes of those in a state dict.

    The layers keep no sizes of their own, without which some of torch, such as LazyInstanceNorm2d, cannot run.

    Raises:
        UserError: The state dict lacks one.
    """
    for key, value in chain(model.named_parameters(), model.named_buffers()):
        if is_lazy_tensor(value) and key in state_dict:
            value.materialize(state_dict[key].shape)
    require_sizes(model, name=name)


def require_sizes(model: nn.Module, *, name: str) -> None:
    """Refuse a network with a lazy layer that a forward pass has not reached."""
    for key, layer in model.named_modules():
        if any(is_lazy_tensor(value) for value in chain(layer.parameters(recurse=False), layer.buffers(recurse=False))):
            message = f"model.name: {name} has the lazy layer {key}, which no forward pass gives a size"
            raise UserError(message, hint=f"use {key} in forward, or give it its sizes")


def channels_last(model: nn.Module) -> nn.Module:
    """Return the model in channels-last memory format, in which convolutions are fastest.

    Not `model.to(memory_format=...)`, which refuses the weights of 3-D convolutions.
    """
    for value in chain(model.parameters(), model.buffers()):
        if value.dim() == 4:
            value.data = value.data.to(memory_format=torch.channels_last)
    return model


def keep_fewer_activations(model: nn.Module, *, name: str) -> None:
    """Let a network compute activations again in the backward pass (`set_grad_checkpointing` of timm).

    Raises:
        RecipeError: It cannot.
    """
    problem = f"{name} has no set_grad_checkpointing(), as most networks of timm do"
    try:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, AssertionError) as error:
        raise RecipeError([Problem("train.grad_checkpointing", problem, "leave it out")]) from error


def names_to_freeze(model: nn.Module, patterns: Sequence[str]) -> frozenset[str]:
    """Return the names of the parameters that `model.freeze` freezes, for the whole run or up to a later epoch.

    Raises:
        RecipeError: A pattern matches none, or nothing would be trained.
    """
    try:
        names = frozen_names(model, patterns)
    except UserError as error:
        problem = Problem("model.freeze", error.message.removeprefix("model.freeze: "), error.hint)
        raise RecipeError([problem]) from error
    if all(name in names or not value.requires_grad for name, value in model.named_parameters()):
        message = f"{', '.join(patterns)} leaves nothing to train"
        hint = "let the head train, by a pattern with ! such as !fc.*"
        raise RecipeError([Problem("model.freeze", message, hint)])
    return names


def describe_model(name: str, model: nn.Module) -> str:
    """Return a description: `preresnet20: 0.27 M parameters, 19 BatchNorm layers`."""
    number = sum(parameter.numel() for parameter in model.parameters())
    parameters = f"{number / 1e6:.2f} M" if number >= 1e5 else f"{number:,}"
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    parameters += f" parameters, {trained:,} of them trained" if trained < number else " parameters"
    layers = len(norm_layers(model))
    frozen = layers - len(bn_layers(model))
    norm = count_text(layers, "BatchNorm layer") if layers else "no BatchNorm"
    norm += f", {frozen} of them frozen" if frozen else ""
    return f"{name}: {parameters}, {norm}"


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode while the block runs; every module gets its own mode back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        model.train(modes[model])  # networks that merge weights in eval() separate them again
        for module, mode in modes.items():
            module.training = mode


@dataclass
class Replica:
    """Makes second networks of a run, each for one weight set."""

    context: Context
    trained: nn.Module
    sharding: Sharding = UNSHARDED
    made_in_s: float = 0.0  # seconds to build the last one
    borrows: bool = False  # the trained network itself holds other weights for a while
    frozen: frozenset[str] = frozenset()  # parameters that are frozen up to a later epoch

    @contextmanager
    def holding(self, weights: Mapping[str, Tensor] | None = None) -> Iterator[nn.Module]:
        """Yield a network with unsharded weights, which each process may read by itself.

        Args:
            weights: A state dict, or its rows in a sharded run, see `Sharding.gather`. None for the weights that are
                trained: then it is the trained network itself, unless that is sharded.
        """
        if not self.sharding.is_used and weights is None:
            yield self.trained
        elif self.borrows:
            assert weights is not None, "a sharded network is never borrowed"
            with self._borrowed(weights):
                yield self.trained
        else:
            network, rows = self.make(), self.trained.state_dict() if weights is None else weights
            loading.load_unchecked(network, self.sharding.gather(rows) if self.sharding.is_used else rows)
            yield network

    def refreshing(self, weights: Mapping[str, Tensor] | None = None) -> AbstractContextManager[nn.Module]:
        """As `holding`, but the statistics of the network may be changed: it never is the training state."""
        return self.holding(
            cloned(self.trained.state_dict()) if weights is None and not self.sharding.is_used else weights
        )

    def make(self) -> nn.Module:
        """Build another network of the recipe on the device, without touching any random generator."""
        device, started = self.context.hardware.device, time.monotonic()
        with preserve_global_rng(), fork_rng(device):
            network = self.context.build_model()
        freeze(network, self.frozen)
        self.made_in_s = time.monotonic() - started
        return network

    @contextmanager
    def _borrowed(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        with unchanged(self.trained):
            loading.load_unchecked(self.trained, weights)
            yield


@dataclass(frozen=True)
class InitialWeights:
    """The source of the initial weights of a run."""

    key: str  # of the recipe, that names them
    source: str  # a file, or a network of a library
    name: str
    batchnorm: str
    sha256: str | None  # of the weights, not of the file; None where they were not read
    fresh: tuple[str, ...] = ()  # tensors that kept the values of the seed
    unread: tuple[str, ...] = ()  # tensors that the network does not have
    adapted: tuple[str, ...] = ()  # tensors of another number of channels
    where: str = ""  # where a run finds weights that were not read

    def __str__(self) -> str:
        named = (("fresh", self.fresh), ("adapted to the channels", self.adapted), ("left out", self.unread))
        parts = [f"{what}: {some_of(names)}" for what, names in named if names]
        where = f", {self.where}" if self.where else ""
        return "; ".join([f"initial weights from {self.source} ({self.name}){where}", *parts])

    @property
    def record(self) -> dict[str, Any]:
        """What run.json tells of them."""
        if self.key == "train.init":
            return {"init_sha256": self.sha256}
        return {
            "pretrained": {
                "source": self.source,
                "weights": self.name,
                "sha256": self.sha256,
                "fresh": list(self.fresh),
            }
        }

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should know before the run."""
        if self.batchnorm != "stale":
            return ()
        return (
            f"{self.key}: {self.name} of {self.source} has stale BatchNorm statistics, from which the moving averages"
            " of training start",
        )

    def require(self, recorded: Mapping[str, Any]) -> None:
        """Refuse weights that differ from those that run.json records.

        Raises:
            UserError: The checksum is another one.
        """
        if any(recorded.get(key) != value for key, value in self.record.items()):
            raise UserError(
                f"{self.key}: {self.source} holds other weights than when the run began",
                hint="start a new run, or restore the old file",
            )


def read_initial(path: str) -> tuple[Checkpoint | None, list[Problem]]:
    """Read the checkpoint that `train.init` names, or return the problems of the file."""
    try:
        return reader.read(Path(path)), []
    except UserError as error:
        return None, [Problem("train.init", error.message, error.hint)]


def load_initial(found: Checkpoint, model: nn.Module, *, name: str | None, skip: Sequence[str] = ()) -> InitialWeights:
    """Put weights of a checkpoint into a network with the weights of the seed.

    Args:
        found: The checkpoint.
        model: The network.
        name: The weights in the checkpoint; by default the raw weights, if it has several.
        skip: Patterns of names that keep their values, whatever the checkpoint has; every other tensor has to fit.

    Raises:
        RecipeError: There are no weights of that name, or they do not fit the network.
    """
    try:
        if found.kind == "resume" and name in (None, "last"):  # do not read its averages, which may be large
            sets = {"last": reader.raw_weights(found, model)}
        else:
            sets = reader.weight_sets(found, model)
        name = name or ("last" if "last" in sets else next(iter(sets)))
        if name not in sets:
            message = f"{found.path} holds no weights {shown(name)}"
            raise RecipeError([Problem("train.init_weights", message, f"choose from {', '.join(sets)}")])
        own, given = cloned(model.state_dict()), sets[name].state_dict
        skipped = _matching(skip, {**own, **given})
        fresh = {key: value for key, value in own.items() if key in skipped}
        weights = {**{key: value for key, value in given.items() if key not in skipped}, **fresh}
        loading.load_strict(
            model, like(given, weights), source=f"{found.path} ({name})", cure="name weights of this network"
        )
    except MisfitError as error:
        raise RecipeError([Problem("train.init", error.message, _hint(own, error))]) from error
    except UserError as error:
        raise RecipeError([Problem("train.init", error.message, error.hint)]) from error
    sha256 = checksum(model.state_dict())
    return InitialWeights("train.init", str(found.path), name, sets[name].batchnorm, sha256, tuple(fresh))


def _matching(patterns: Sequence[str], names: Mapping[str, Tensor]) -> set[str]:
    """Return the names that the patterns match; each pattern has to match one."""
    matched: set[str] = set()
    for pattern in patterns:
        found = fnmatch.filter(names, pattern)
        if not found:
            hint = f"names look like {', '.join(list(names)[-3:])}"
            raise RecipeError([Problem("train.init_skip", f"{shown(pattern)} matches no tensor", hint)])
        matched.update(found)
    return matched


def _hint(own: Mapping[str, Tensor], error: MisfitError) -> str:
    """Return the hint for weights that do not fit: one or two layers, such as a head, can start fresh."""
    layers = dict.fromkeys(key.rpartition(".")[0] for key in error.names)
    if not 0 < len(layers) <= 2 or not all(layers) or 2 * len(error.names) > len(own):
        return error.hint
    patterns = ", ".join(f"{layer}.*" for layer in layers)
    return f"let {' and '.join(layers)} start fresh, if that is a head of other classes: 'train.init_skip=[{patterns}]'"


def checksum(state_dict: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of every name and number in hexadecimal digits."""
    digest = hashlib.sha256()
    for name, value in state_dict.items():
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
