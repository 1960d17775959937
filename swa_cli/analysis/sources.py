"""What goes into an average: the weight sets of run folders and files, read once and held against each other.

A run folder stands for its snapshots, in the order of their steps. A file with several weight sets counts with its raw
weights, one with an average alone with that. All stay mapped to their files: none is copied into memory.

The snapshots of a run as windows see them: the mean of any stretch, from one window's end to another's.

Plain snapshots: a window is some of them, and its mean is theirs. With the running means of a recipe that says
`snapshots.cumulative`, it is every step between two of them, and two files give its mean exactly.

n stretches in the order of time; (first, last): a window of them, both included. Without running means a stretch is
one snapshot, with them the steps after one snapshot up to the next, the first one from the beginning of the run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from swa_cli.analysis import open
from swa_cli.averaging import model_state, soup
from swa_cli.averaging.model_state import require_same_shapes, shapes
from swa_cli.checkpoint import loading, reader
from swa_cli.checkpoint.reader import Checkpoint
from swa_cli.checkpoint.run_folder import RunFolder
from swa_cli.engine.context import Context
from swa_cli.errors import UserError
from swa_cli.recipe import load
from swa_cli.recipe.plan import Window
from swa_cli.report.terminal import Terminal

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

    context: Context
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
            found.append(reader.read(file))
            bar.advance()
    # A file without a recipe is asked about wherever it stands; one with a recipe knows the normalisation.
    first = next((item for item in found if (item.recipe is None) == (recipe is None)), found[0])
    context, model = open.open_checkpoint(first, overrides, recipe=recipe, terminal=terminal, allow_code=allow_code)
    return _held(found, context, model)


def of_run(files: Sequence[Path], context: Context, model: nn.Module) -> Ingredients:
    """The weight sets in files of a run that is open already.

    Raises:
        UserError: A file that cannot be read, or does not fit.
    """
    with context.events.progress("reading", len(files)) as bar:
        found = []
        for file in files:
            found.append(reader.read(file))
            bar.advance()
    return _held(found, context, model)


def _held(found: Sequence[Checkpoint], context: Context, model: nn.Module) -> Ingredients:
    with context.events.progress("checking", len(found)) as bar:
        sources = []
        for item in found:
            sources.append(_source(item, model))
            _require_same_meaning(item, context)
            bar.advance()
    present = model_state.read(model)
    averaged = [name for name, owner in present.owners.items() if owner in present.weights]
    return Ingredients(context, model, sources, averaged)


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
    context, by_hand = ingredients.context, "or choose by hand with --last or --window"
    if context.source.val is None:
        raise UserError(
            f"{context.source.name} has no validation split to choose on", hint=f"train with dataset.val=10%, {by_hand}"
        )
    now = context.recipe
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
    sets = open.chosen(reader.weight_sets(found, model), "all", found.path)
    name = "last" if "last" in sets else next(iter(sets))
    item = sets[name]
    state = loading.load_weights(model, item.state_dict, source=f"{found.path} ({name})")
    step = found.content["step"] if found.kind in ("snapshot", "resume") else None
    if found.kind == "weights":
        step = max(found.content["average"]["steps"], default=None)
    return Source(found, name, state, item.batchnorm, step)


def _require_same_meaning(found: Checkpoint, context: Context) -> None:
    """Weights of the same shapes may still be of another network, or of other inputs."""
    if found.recipe is None:
        return
    then, now = load.from_values(found.recipe, source=str(found.path)).recipe, context.recipe
    for key, before, here in load.differences(then, now):
        if key.startswith("model."):
            raise UserError(
                f"{found.path}: {key} is {before}, elsewhere {here}: weights of two networks are not averaged",
                hint="name weights of one network",
            )
    for key in INPUT_KEYS:
        given, wanted = found.content["input"][key], context.input[key]
        if given != wanted:
            raise UserError(
                f"{found.path}: was trained on images of another {key} ({_few(given)}, elsewhere {_few(wanted)})",
                hint="name weights that were trained on the same data",
            )


def _few(value: Any) -> str:
    return ", ".join(map(str, value[:3])) if isinstance(value, list) else str(value)


@dataclass(frozen=True)
class Trail:
    """Snapshots of one run by step; `points` are the updates done at their ends, in which windows are written."""

    sources: list[Source]
    points: list[int]
    averaged: list[str]
    is_exact: bool

    @property
    def n(self) -> int:
        """How many stretches there are."""
        return len(self.sources)

    def bounds(self, first: int, last: int) -> tuple[int, int]:
        """Updates done at the ends: of the first and last snapshot; the steps (start, end] where exact."""
        start = self.points[first] if not self.is_exact else self.points[first - 1] if first else 0
        return start, self.points[last]

    def steps(self, first: int, last: int) -> list[int]:
        """Those whose weights the window holds."""
        start, end = self.bounds(first, last)
        return list(range(start + 1, end + 1)) if self.is_exact else self.points[first : last + 1]

    def shares(self, first: int, last: int) -> list[tuple[Source, float]]:
        """How much of each file goes into the mean: of its weights, or where exact of its running mean."""
        if not self.is_exact:
            members = self.sources[first : last + 1]
            return [(source, 1 / len(members)) for source in members]
        start, end = self.bounds(first, last)
        later = [(self.sources[last], end / (end - start))]
        return [(self.sources[first - 1], -start / (end - start)), *later] if first else later

    def mean(self, first: int, last: int) -> dict[str, Tensor]:
        """Of the window, in float64; what is not averaged is the last snapshot's."""
        if not self.is_exact:
            states = (source.state for source in self.sources[first : last + 1])
            return soup.mean(states, averaged=self.averaged)
        start, end = self.bounds(first, last)
        earlier: Mapping[str, Tensor] = _running(self.sources[first - 1]) if first else {}
        later = self.sources[last]
        averaged = soup.between(earlier, _running(later), num_earlier=start, num_later=end)
        return {**later.state, **averaged}

    def window(self, window: Window) -> tuple[int, int]:
        """The stretches of a window that is written in durations of the run.

        Raises:
            UserError: It holds nothing, or ends where an exact one cannot.
        """
        newest = self.sources[-1].found.content  # of a run that was given more epochs, its recipe as it is now
        recipe = load.from_values(newest["recipe"], source=self.sources[-1].file).recipe
        start, end = window.points(recipe, num_train=newest["num_train"])
        if self.is_exact:
            return self._exact(window, start, end)
        held = [index for index, point in enumerate(self.points) if start <= point <= end]
        if not held:
            raise UserError(
                f"--window {window}: holds no snapshot from step {start:,} to {end:,}; {self._nearest(start)}",
                hint="write a wider window",
            )
        return held[0], held[-1]

    def _exact(self, window: Window, start: int, end: int) -> tuple[int, int]:
        ends = [0, *self.points]
        for point in (start, end):
            if point not in ends:
                raise UserError(
                    f"--window {window}: step {point:,} is no snapshot; {self._nearest(point)}",
                    hint="end the window at a snapshot, and begin it at one or at 0ep",
                )
        if start == end:
            raise UserError(f"--window {window}: holds no step", hint="write a wider window")
        return ends.index(start), ends.index(end) - 1

    def _nearest(self, point: int) -> str:
        before = [0] * self.is_exact + [other for other in self.points if other < point]
        after = [other for other in self.points if other > point]
        nearest = [f"step {other:,}" for other in (*before[-1:], *after[:1])]
        return f"the nearest {'are' if len(nearest) > 1 else 'is'} {' and '.join(nearest)}"


def trail_of(ingredients: Ingredients, *, option: str) -> Trail:
    """The snapshots among the sources, which have to be of one run; exact if each keeps its running mean.

    Raises:
        UserError: A source is no snapshot, or they are of two runs.
    """
    sources: Sequence[Source] = ingredients.sources
    for source in sources:
        if source.found.kind != "snapshot":
            raise UserError(
                f"{source.file}: is no snapshot, and {option} chooses among the snapshots of a run",
                hint="name a run folder or its snapshots",
            )
    if len({Path(source.file).resolve().parent for source in sources}) > 1:
        raise UserError(f"{option}: the snapshots lie in two folders or more", hint="name the snapshots of one run")
    ordered = sorted(sources, key=lambda source: source.found.content["step"])
    points = [int(source.found.content["step"]) for source in ordered]
    if len(set(points)) < len(points):
        raise UserError(f"{option}: two snapshots are of one step", hint="name the snapshots of one run")
    lacking = [source for source in ordered if source.running is None]
    if lacking and len(lacking) < len(ordered):
        raise UserError(
            f"{lacking[0].file}: keeps no running mean, and others do", hint="name the snapshots of one run"
        )
    is_exact = not lacking
    if is_exact:
        require_running_means(ingredients, ordered)
    return Trail(ordered, points, ingredients.averaged, is_exact)


def _running(source: Source) -> Mapping[str, Tensor]:
    assert source.running is not None, "an exact trail has a running mean in each snapshot"
    state: Mapping[str, Tensor] = source.running["state"]
    return state
