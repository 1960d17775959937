"""What goes into an average: the weight sets of run folders and files, read once and held against each other.

A run folder stands for its snapshots, in the order of their steps. A file with several weight sets counts with its raw
weights, one with an average alone with that. All stay mapped to their files: none is copied into memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from swa_cli.after import revisit
from swa_cli.averaging import tensors
from swa_cli.averaging.tensors import require_same_shapes, shapes
from swa_cli.errors import UserError
from swa_cli.recipe import load
from swa_cli.report.terminal import Terminal
from swa_cli.training import checkpoint, loading
from swa_cli.training.bench import Bench
from swa_cli.training.checkpoint import Checkpoint
from swa_cli.training.run_folder import RunFolder

INPUT_KEYS = ("channels", "mean", "std", "classes")  # of `Bench.input`, on which the meaning of weights depends


@dataclass(frozen=True)
class Source:
    """One weight set; `step` counts the updates after which it was taken, None where the file does not say."""

    found: Checkpoint
    name: str
    state: dict[str, Tensor]
    batchnorm: str
    step: int | None

    @property
    def file(self) -> str:
        """Where it lies, as it was named."""
        return str(self.found.path)

    @property
    def running(self) -> dict[str, Any] | None:
        """The mean after every step so far, where a snapshot keeps it: `count` and `state`."""
        return self.found.content["cumulative"] if self.found.kind == "snapshot" else None


@dataclass(frozen=True)
class Ingredients:
    """Weight sets of one architecture, and what it takes to refresh and score an average of them."""

    bench: Bench
    model: nn.Module
    sources: list[Source]
    averaged: list[str]  # names of the state_dict that are averaged; the others are copied


def files_of(paths: Sequence[Path]) -> list[Path]:
    """The files that are meant.

    Raises:
        UserError: A folder without snapshots, or a file that is meant twice.
    """
    files = [file for path in paths for file in (_snapshots(path) if path.is_dir() else [path])]
    seen: set[Path] = set()
    for file in files:
        if file.resolve() in seen:
            raise UserError(f"{file}: is named twice", hint="name it once, and give it more weight with --weights")
        seen.add(file.resolve())
    return files


def gather(
    files: Sequence[Path], overrides: Sequence[str], *, recipe: Path | None, terminal: Terminal, allow_code: bool
) -> Ingredients:
    """Read the weight sets; each has to fit the recipe's model, and all recipes have to mean the same network.

    Raises:
        UserError: A file that cannot be read, does not fit the others, or is not finite.
        RecipeError: A recipe inside that is wrong.
    """
    with terminal.progress("reading", len(files)) as bar:
        found = []
        for file in files:
            found.append(checkpoint.read(file))
            bar.advance()
    # A file without a recipe is asked about wherever it stands; one with a recipe knows the normalisation.
    first = next((item for item in found if (item.recipe is None) == (recipe is None)), found[0])
    bench, model = revisit.open_checkpoint(first, overrides, recipe=recipe, terminal=terminal, allow_code=allow_code)
    return _held(found, bench, model)


def of_run(files: Sequence[Path], bench: Bench, model: nn.Module) -> Ingredients:
    """The weight sets in files of a run that is open already.

    Raises:
        UserError: A file that cannot be read, or does not fit.
    """
    with bench.terminal.progress("reading", len(files)) as bar:
        found = []
        for file in files:
            found.append(checkpoint.read(file))
            bar.advance()
    return _held(found, bench, model)


def _held(found: Sequence[Checkpoint], bench: Bench, model: nn.Module) -> Ingredients:
    with bench.terminal.progress("checking", len(found)) as bar:
        sources = []
        for item in found:
            sources.append(_source(item, model))
            _require_same_meaning(item, bench)
            bar.advance()
    present = tensors.read(model)
    averaged = [name for name, owner in present.owners.items() if owner in present.weights]
    return Ingredients(bench, model, sources, averaged)


def require_running_means(ingredients: Ingredients, sources: Sequence[Source]) -> None:
    """The running means of these snapshots fit the model.

    Raises:
        UserError: One does not, or is not finite.
    """
    state = ingredients.model.state_dict()
    expected = shapes({name: state[name] for name in ingredients.averaged})
    for source in sources:
        assert source.running is not None, "asked for where all snapshots have one"
        means = source.running["state"]
        require_same_shapes(shapes(means), expected, what=f"running mean in {source.file}")
        loading.require_numbers(means, like=state, source=f"{source.file} (running mean)")


def require_held_out(ingredients: Ingredients) -> None:
    """There are validation images, and no source was trained on them.

    Raises:
        UserError: Otherwise.
    """
    bench, by_hand = ingredients.bench, "or choose by hand with --last or --window"
    if bench.source.val is None:
        raise UserError(
            f"{bench.source.name} has no validation split to choose on", hint=f"train with dataset.val=10%, {by_hand}"
        )
    now = bench.recipe
    for source in ingredients.sources:
        values = source.found.recipe
        if values is None:
            continue
        then = load.from_values(values, source=source.file).recipe
        same_data = then.dataset.name == now.dataset.name
        if same_data and (then.dataset.val, then.seed) != (now.dataset.val, now.seed):
            raise UserError(
                f"{source.file}: was trained on validation images: its run held out dataset.val={then.dataset.val} with"
                f" seed {then.seed}, and what is scored now is dataset.val={now.dataset.val} with seed {now.seed}",
                hint=f"name sources that held out the same images, {by_hand}",
            )


def _snapshots(path: Path) -> Iterator[Path]:
    found = sorted(RunFolder(path).snapshots.glob("*.pt"))  # names sort by step
    if not found:
        raise UserError(
            f"{path}: is no regular file, and no run folder with snapshots/*.pt",
            hint="train with snapshots={every: 1ep}, or name files",
        )
    yield from found


def _source(found: Checkpoint, model: nn.Module) -> Source:
    """Its raw weights, or else the one average that it holds; they load into the model as they are."""
    sets = revisit.chosen(checkpoint.weight_sets(found, model), "all", found.path)
    name = "last" if "last" in sets else next(iter(sets))
    item = sets[name]
    state = loading.load_weights(model, item.state_dict, source=f"{found.path} ({name})")
    step = found.content["step"] if found.kind in ("snapshot", "resume") else None
    if found.kind == "weights":
        step = max(found.content["average"]["steps"], default=None)
    return Source(found, name, state, item.batchnorm, step)


def _require_same_meaning(found: Checkpoint, bench: Bench) -> None:
    """Weights of the same shapes may still be of another network, or of other inputs."""
    if found.recipe is None:
        return
    then, now = load.from_values(found.recipe, source=str(found.path)).recipe, bench.recipe
    for key, before, here in load.differences(then, now):
        if key.startswith("model."):
            raise UserError(
                f"{found.path}: {key} is {before}, elsewhere {here}: weights of two networks are not averaged",
                hint="name weights of one network",
            )
    for key in INPUT_KEYS:
        given, wanted = found.content["input"][key], bench.input[key]
        if given != wanted:
            raise UserError(
                f"{found.path}: was trained on images of another {key} ({_few(given)}, elsewhere {_few(wanted)})",
                hint="name weights that were trained on the same data",
            )


def _few(value: Any) -> str:
    return ", ".join(map(str, value[:3])) if isinstance(value, list) else str(value)
