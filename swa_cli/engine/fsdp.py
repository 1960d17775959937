"""Shard parameters, gradients, optimizer and averages over the processes with torch's FSDP2 (`train.fsdp`).

Each process holds some rows of each parameter. Elementwise work, such as averaging, uses these rows only; what leaves
the training loop, for a file or a score, is gathered by its name. Without sharding, every operation here returns its
argument or a copy of it.
Legend: R rows of a parameter, its first dimension; k stacked weight sets before it.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from swa_cli.averaging.model_state import like
from swa_cli.checkpoint.reader import copy_to_cpu, map_tensors
from swa_cli.engine.distributed import ALONE, World, with_sync_batchnorm
from swa_cli.errors import Problem, RecipeError
from swa_cli.models import freezing
from swa_cli.recipe.schema import Recipe

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor  # imported where it is needed: it takes more than a second

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
NOT_ROWWISE = ("Adafactor", "Muon", "Rprop")  # of torch.optim: they fail on DTensors, or need whole matrices


@dataclass(frozen=True)
class Sharding:
    """The parameters of a network that are sharded over the processes; by default none."""

    world: World = ALONE
    parameters: Mapping[str, DTensor] = field(default_factory=dict)  # under every name that the state_dict has

    @property
    def is_used(self) -> bool:
        """Whether any parameter is sharded; else each process has everything."""
        return bool(self.parameters)

    @torch.no_grad()
    def gather(self, values: Any, *, keep: bool = True) -> Any:
        """Copy tensors in nested dicts and lists to the CPU, and gather those that are sharded.

        All processes have to call it with the same values. Rows that are no DTensor stand under the names of their
        parameters. A process that does not `keep` the copies gets empty tensors.
        """

        def one(name: str, value: Tensor) -> Tensor:
            if not self._is_part(name, value):
                return copy_to_cpu(value) if keep else _nothing(value)
            placed: Any = value if _is_dtensor(value) else self._placed(name, value)
            whole: Tensor = placed.full_tensor()
            return whole.cpu() if keep else _nothing(value)

        return map_tensors(values, one)

    def local_rows(self, values: Any) -> Any:
        """Replace whole tensors under the names of sharded parameters by the rows of this process."""
        return map_tensors(values, lambda name, value: self._rows(name, value) if name in self.parameters else value)

    def replicated(self, values: Any) -> Any:
        """Replace sharded tensors by empty ones: the rest is equal in all processes."""
        return map_tensors(values, lambda name, value: _nothing(value) if self._is_part(name, value) else value)

    @torch.no_grad()
    def load(self, model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
        """Put a whole state_dict into the network, of which this process takes its rows."""
        for name, parameter in self.parameters.items():
            parameter.to_local().copy_(self._rows(name, state_dict[name]))
        others = {name: value for name, value in state_dict.items() if name not in self.parameters}
        model.load_state_dict(like(state_dict, {**self.parameters, **others}))

    def of_optimizer(self, optimizer: torch.optim.Optimizer, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """Copy the whole state of an optimizer, of which this process gets its rows; no copy holds a mapped file."""
        if not self.is_used:
            return copy.deepcopy(dict(state_dict))
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        parameters = [value for group in optimizer.param_groups for value in group["params"]]
        owners = {index: names[id(value)] for index, value in enumerate(parameters) if id(value) in names}

        def one(name: str, value: Any) -> Any:
            if isinstance(value, Tensor) and name and value.shape == self.parameters[name].shape:
                return self._placed(name, self._rows(name, value).to(self.parameters[name].device, copy=True))
            return copy.deepcopy(value)

        states = {
            index: {key: one(owners.get(index, ""), value) for key, value in state.items()}
            for index, state in state_dict["state"].items()
        }
        return {**copy.deepcopy({key: state_dict[key] for key in state_dict if key != "state"}), "state": states}

    def _is_part(self, name: str, value: Tensor) -> bool:
        return name in self.parameters or _is_dtensor(value)

    def _rows(self, name: str, value: Tensor) -> Tensor:
        """Return a view of this process's rows of (R, ...) or (k, R, ...); other shapes are returned unchanged."""
        shape = self.parameters[name].shape
        axis = value.dim() - len(shape)
        if axis not in (0, 1) or value.shape[axis:] != shape:
            return value  # loading refuses it
        chunks = value.chunk(self.world.size, axis)
        return chunks[self.world.rank] if self.world.rank < len(chunks) else value.narrow(axis, 0, 0)

    def _placed(self, name: str, rows: Tensor) -> DTensor:
        """Return the DTensor with these local rows, which may be stacked."""
        from torch.distributed.tensor import DTensor, Shard

        like = self.parameters[name]
        axis = rows.dim() - like.dim()
        whole = torch.empty((*rows.shape[:axis], *like.shape), device="meta")
        return DTensor.from_local(
            rows.contiguous(),
            like.device_mesh,
            [Shard(axis)],
            run_check=False,
            shape=whole.shape,
            stride=whole.stride(),
        )


UNSHARDED = Sharding()


def problems(recipe: Recipe, *, world: World) -> list[Problem]:
    """Return the settings that cannot be combined with `train.fsdp`."""
    found = []
    if world.size == 1:
        hint = "train it with `swa train --processes 2`, or write train.fsdp=false"
        found.append(Problem("train.fsdp", "one process cannot shard a network", hint))
    names = {f"optimizer.groups.{index}.name": group.name for index, group in enumerate(recipe.optimizer.groups)}
    for key, name in {"optimizer.name": recipe.optimizer.name, **names}.items():
        if name in NOT_ROWWISE:
            message = f"torch's {name} needs whole parameters, and train.fsdp shards them"
            found.append(Problem(key, message, "choose SGD or AdamW, or write train.fsdp=false"))
    return found


def shard(model: nn.Module, *, world: World, device: torch.device, sync_batchnorm: bool) -> tuple[nn.Module, Sharding]:
    """Shard the parameters of a network over the processes; return the network to train, with the names it had.

    A process passes a batch through block after block, and gathers the weights of a block only for that time. Blocks
    are the children of the network, and in place of a container its elements. A block that holds vectors only, such as
    a norm, or that shares parameters with another one belongs to the network as a whole.

    Raises:
        RecipeError: torch cannot shard a parameter.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    _require_divisible(model)
    if sync_batchnorm:
        model = with_sync_batchnorm(model, kept=freezing.kept_layers(model))
    model.to(memory_format=torch.contiguous_format)
    mesh = init_device_mesh(device.type, (world.size,))
    ignored = {value for value in model.parameters() if not value.is_floating_point()}  # averages copy those
    for block in (*_blocks(model), model):
        fully_shard(block, mesh=mesh, ignored_params=ignored)
    placed = model.state_dict(keep_vars=True).items()
    return model, Sharding(world, {name: value for name, value in placed if isinstance(value, DTensor)})


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules whose weights are gathered together, see `shard`."""
    blocks = [child for child in _children(model) if any(value.dim() > 1 for value in child.parameters())]
    times = Counter(id(value) for block in blocks for value in block.parameters())
    for block in blocks:
        if all(times[id(value)] == 1 for value in block.parameters()):
            yield block


def _children(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, CONTAINERS):
            yield from _children(child)
        else:
            yield child


def _require_divisible(model: nn.Module) -> None:
    """Refuse what FSDP2 does not take: parameters without a dimension, of several types, or complex ones."""
    found = []
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    for name, value in model.named_parameters():
        if value.dim() == 0:
            hint = "give it the shape (1,), or write train.fsdp=false"
            found.append(Problem("train.fsdp", f"{name} is a number, which has no rows to shard", hint))
    types = sorted({str(value.dtype).removeprefix("torch.") for value in trained.values()})
    if len(types) > 1 or any(value.is_complex() for value in trained.values()):
        message = f"torch shards parameters of one real type, and these are {' and '.join(types)}"
        found.append(Problem("train.fsdp", message, "write train.fsdp=false"))
    if found:
        raise RecipeError(found)


def _is_dtensor(value: Tensor) -> bool:
    return hasattr(value, "full_tensor")


def _nothing(value: Tensor) -> Tensor:
    return torch.empty(0, dtype=value.dtype)
