"""Read the weight sets that go into an average, and check that they belong together.

A run folder stands for its snapshots, in the order of their steps, or in a soup for the weights that it ships. A file
with several weight sets counts with its raw weights, one with an average alone with that. All stay mapped to their
files: none is copied into memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from swa_cli.analysis import open
from swa_cli.averaging import model_state, soup
from swa_cli.averaging.profiles import Profile
from swa_cli.checkpoint import loading, other_formats, reader
from swa_cli.checkpoint.reader import Checkpoint
from swa_cli.checkpoint.run_folder import RunFolder
from swa_cli.engine.context import Context
from swa_cli.engine.evaluate import RAW
from swa_cli.engine.events import Events
from swa_cli.errors import UserError
from swa_cli.recipe import load
from swa_cli.recipe.schema import Recipe
from swa_cli.report.terminal import Terminal
from swa_cli.units import some_of

INPUT_KEYS = ("channels", "mean", "std", "classes")  # of `Context.input`, on which the meaning of weights depends


@dataclass(frozen=True)
class Source:
    """A weight set; `step` counts the updates before it was taken, None where the file does not say."""

    found: Checkpoint
    recipe: Recipe | None  # None in a foreign file
    name: str
    state: dict[str, Tensor]
    batchnorm: str
    step: int | None

    @property
    def file(self) -> str:
        """The path of its file, as it was named."""
        return str(self.found.path)

    @property
    def running(self) -> dict[str, Any] | None:
        """The mean over every step so far, where a snapshot keeps it: `count` and `state`."""
        return self.found.content["cumulative"] if self.found.kind == "snapshot" else None


@dataclass(frozen=True)
class Mean:
    """A mean of sources: its kind, the share of each source, and the steps whose weights it holds."""

    kind: str
    shares: list[tuple[Source, float]]
    steps: list[int]
    count: int
    state: dict[str, Tensor]  # float64
    profile: Profile | None = None  # of an average by a profile
    error: float | None = None  # of such an average, as a part of its distance to the raw weights at its end
    mean_age: float | None = None  # in steps before that end


@dataclass(frozen=True)
class Sources:
    """Weight sets of one network, and the context to refresh and score an average of them."""

    context: Context
    model: nn.Module
    sets: list[Source]
    averaged: list[str]  # names of the state_dict that are averaged; the others are copied

    def mean(self, kind: str, members: Sequence[Source], weights: Sequence[float]) -> Mean:
        """Return the weighted mean of some of the sources; those of weight 0 are not counted."""

        def states() -> Iterator[dict[str, Tensor]]:
            for source in members:
                yield source.state
                bar.advance()

        with self.context.events.progress("averaging", len(members)) as bar:
            state = soup.mean(states(), averaged=self.averaged, weights=weights)
        total = sum(weights)
        shares = [(source, weight / total) for source, weight in zip(members, weights, strict=True) if weight]
        steps = [source.step for source, _ in shares if source.step is not None]
        return Mean(kind, shares, steps if len(steps) == len(shares) else [], len(shares), state)


def snapshots_of(path: Path) -> list[Path]:
    """Return the snapshots of a run folder, in the order of their steps.

    Raises:
        UserError: There are none.
    """
    found = sorted(RunFolder(path).snapshots.glob("*.pt"))  # names sort by step
    if not found:
        raise UserError(
            f"{path}: is neither a regular file nor a run folder with snapshots/*.pt",
            hint=other_formats.of_folder(path) or "train with snapshots={every: 1ep}, or name files",
        )
    return found


def files_of(
    paths: Sequence[Path],
    *,
    of_folder: Callable[[Path], Iterable[Path]] = snapshots_of,
    instead: str = "name it once, and give it more weight with --weights",
) -> list[Path]:
    """Return the files that paths stand for.

    `of_folder` says what a folder stands for, `instead` what to do instead of naming a file twice.

    Raises:
        UserError: A folder that stands for nothing, or a file that is named twice.
    """
    files = [file for path in paths for file in (of_folder(path) if path.is_dir() else [path])]
    seen: set[Path] = set()
    for file in files:
        if file.resolve() in seen:
            raise UserError(f"{file}: is named twice", hint=instead)
        seen.add(file.resolve())
    return files


def gather(
    files: Sequence[Path], overrides: Sequence[str], *, recipe: Path | None, terminal: Terminal, allow_code: bool
) -> Sources:
    """Read weight sets; each has to fit the recipe's model, and all recipes have to mean the same network.

    Raises:
        UserError: A file that cannot be read, does not fit the others, or is not finite.
        RecipeError: A recipe inside that is wrong.
    """
    found = _read(files, Events([terminal]))
    # A file without a recipe needs --recipe wherever it stands; one with a recipe knows the normalization.
    first = next((item for item in found if (item.recipe is None) == (recipe is None)), found[0])
    context, model = open.open_checkpoint(first, overrides, recipe=recipe, terminal=terminal, allow_code=allow_code)
    return _checked(found, context, model)


def of_run(files: Sequence[Path], context: Context, model: nn.Module) -> Sources:
    """Read the weight sets in files of a run that is open already.

    Raises:
        UserError: A file that cannot be read, or does not fit.
    """
    return _checked(_read(files, context.events), context, model)


def _read(files: Sequence[Path], events: Events) -> list[Checkpoint]:
    with events.progress("reading", len(files)) as bar:
        found = []
        for file in files:
            found.append(reader.read(file))
            bar.advance()
    return found


def _checked(found: Sequence[Checkpoint], context: Context, model: nn.Module) -> Sources:
    with context.events.progress("checking", len(found)) as bar:
        sets = []
        for item in found:
            sets.append(_source(item, model))
            _require_same_meaning(sets[-1], context)
            bar.advance()
    return Sources(context, model, sets, averaged_names(model))


def averaged_names(model: nn.Module) -> list[str]:
    """Return the names in the state dict of a network that are averaged: those of parameters."""
    present = model_state.read(model)
    return [name for name, owner in present.owners.items() if owner in present.weights]


def require_held_out(sources: Sources, *, otherwise: str = "choose by hand with --last or --window") -> None:
    """Require validation images that no source was trained on; `otherwise` names the way without any.

    Raises:
        UserError: There are none, or a source was.
    """
    context = sources.context
    if context.source.val is None:
        raise UserError(
            f"{context.source.name} has no validation split to choose on",
            hint=f"train with dataset.val=10%, or {otherwise}",
        )
    for source in sources.sets:
        if why := open.why_not_held_out(source.found, context):
            raise UserError(
                why, hint=f"train all with dataset.val_seed=0, which holds out the same images, or {otherwise}"
            )


def are_of_one_run(sources: Sequence[Source]) -> bool:
    """Return whether weight sets come from one run: its folder, or outside of folders its recipe. SWAP is one run."""
    return all(_are_of_one_run(sources[0], other) for other in sources[1:])


def _are_of_one_run(first: Source, second: Source) -> bool:
    folders = [RunFolder.containing(source.found.path) for source in (first, second)]
    paths = [folder.run_to_resume.path for folder in folders if folder is not None]
    if len(paths) == 2:
        return paths[0] == paths[1]
    if first.recipe is None or second.recipe is None:
        return False
    return not load.differences(first.recipe, second.recipe, ignored=open.DIFFERING_KEYS)


def _source(found: Checkpoint, model: nn.Module) -> Source:
    """Take the raw weights of a file, or else the one average that it holds; they load into the model as they are."""
    sets = open.chosen(reader.weight_sets(found, model), "all", found.path)
    name = RAW if RAW in sets else next(iter(sets))
    item = sets[name]
    state = loading.load_weights(model, item.state_dict, source=f"{found.path} ({name})")
    step = found.content["step"] if found.kind in ("snapshot", "resume") else None
    if found.kind == "weights":
        step = max(found.content["average"]["steps"], default=None)
    recipe = None if found.kind == "foreign" else open.recipe_of(found)
    return Source(found, recipe, name, state, item.batchnorm, step)


def _require_same_meaning(source: Source, context: Context) -> None:
    """Refuse weights of the same shapes that belong to another network, or to other inputs."""
    if source.recipe is None:
        return
    for key, before, here in load.differences(source.recipe, context.recipe):
        if key.startswith("model."):
            raise UserError(
                f"{source.file}: {key} is {before}, elsewhere {here}: weights of two networks are not averaged",
                hint="name weights of one network",
            )
    require_same_inputs(source.found, context)


def require_same_inputs(found: Checkpoint, context: Context) -> None:
    """Refuse weights that were trained on other inputs; a foreign file does not tell.

    Raises:
        UserError: They were.
    """
    for key in INPUT_KEYS if found.kind != "foreign" else ():
        given, wanted = found.content["input"][key], context.input[key]
        if given != wanted:
            there, here = (some_of(value) if isinstance(value, list) else value for value in (given, wanted))
            hint = "name weights that were trained on the same data"
            if key in ("mean", "std"):  # measured on what is left of the training images
                hint += "; runs of several seeds measure the same with dataset.val_seed=0"
            raise UserError(
                f"{found.path}: was trained on images of another {key} ({there}, elsewhere {here})", hint=hint
            )
