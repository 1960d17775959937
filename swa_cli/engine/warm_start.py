"""Start a run from trained weights (`train.init`), as FGE does (Garipov et al. 2018).

Only weights and BatchNorm statistics are taken from the checkpoint, and only once: a resumed run has them in its resume
point. The seed does not determine these weights, so their checksum is recorded.
"""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from swa_cli.averaging.model_state import cloned, like
from swa_cli.checkpoint import loading, reader
from swa_cli.checkpoint.loading import MisfitError
from swa_cli.checkpoint.reader import Checkpoint
from swa_cli.errors import Problem, RecipeError, UserError
from swa_cli.recipe.scalars import shown

NAME_OTHERS = "name weights of this network"


@dataclass(frozen=True)
class InitialWeights:
    """The source of the initial weights of a run; `sha256` is of the weights, not of the file.

    `fresh` are the tensors that kept the values of the seed.
    """

    path: Path
    name: str
    batchnorm: str
    sha256: str
    fresh: tuple[str, ...] = ()

    def __str__(self) -> str:
        fresh = f"; fresh: {', '.join(self.fresh[:3])}{', ...' * (len(self.fresh) > 3)}" if self.fresh else ""
        return f"initial weights from {self.path} ({self.name}){fresh}"

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings that a person should know of before the run."""
        if self.batchnorm != "stale":
            return ()
        return (
            f"train.init: {self.name} of {self.path} has stale BatchNorm statistics: they are where the moving averages"
            " of training begin",
        )

    def require(self, sha256: str | None) -> None:
        """Refuse weights that differ from those the run was begun with.

        Raises:
            UserError: The checksum is another one.
        """
        if sha256 != self.sha256:
            raise UserError(
                f"train.init: {self.path} holds other weights than when the run was begun",
                hint="start a new run, or put the old file in its place",
            )


def read(path: str) -> tuple[Checkpoint | None, list[Problem]]:
    """Read the checkpoint that `train.init` names, or return the problems of the file."""
    try:
        return reader.read(Path(path)), []
    except UserError as error:
        return None, [Problem("train.init", error.message, error.hint)]


def put(found: Checkpoint, model: nn.Module, *, name: str | None, skip: Sequence[str] = ()) -> InitialWeights:
    """Put weights of a checkpoint into a network; raw weights if it has several and none is named.

    Args:
        found: The checkpoint.
        model: The network with the weights of the seed.
        name: Of the weights in the checkpoint.
        skip: Patterns of names that keep their values, whatever the checkpoint has; every other tensor has to fit.

    Raises:
        RecipeError: There are no weights of that name, or they do not fit the network.
    """
    try:
        if found.kind == "resume" and name in (None, "last"):  # its averages may be large, and are not asked for
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
        loading.load_weights(model, like(given, weights), source=f"{found.path} ({name})", cure=NAME_OTHERS)
    except MisfitError as error:
        raise RecipeError([Problem("train.init", error.message, _cure(own, error))]) from error
    except UserError as error:
        raise RecipeError([Problem("train.init", error.message, error.hint)]) from error
    return InitialWeights(found.path, name, sets[name].batchnorm, checksum(model.state_dict()), tuple(fresh))


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


def _cure(own: Mapping[str, Tensor], error: MisfitError) -> str:
    """Return the hint for weights that do not fit: a few layers, such as a head, can start fresh."""
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
