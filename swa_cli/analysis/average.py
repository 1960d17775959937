"""`swa average`: one weight set from several on disk, or the average that a resume point holds, ready to ship.

`Choice` says what is averaged: all sources, the last few, a window of the run, or what scores on validation images
choose (the greedy soup, the search for a window). Every candidate gets BatchNorm statistics of its own first. The
test set is never used: scores on it would mean nothing afterwards. `swa soup` shares `Trials` and what follows it.

`extract_average` rescues an average where the end of a run fails: last.pt holds it before anything is scored.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from swa_cli.analysis import basin, open, passes, sources
from swa_cli.analysis.sources import Mean, SnapshotSeries, Source, Sources, snapshot_series
from swa_cli.averaging import soup
from swa_cli.averaging.batchnorm import NOTHING, BatchNormUpdate
from swa_cli.averaging.bn_layers import is_refreshable
from swa_cli.averaging.model_state import cloned
from swa_cli.checkpoint import loading, reader
from swa_cli.checkpoint.atomic import write_atomic
from swa_cli.checkpoint.reader import Checkpoint, WeightSet
from swa_cli.checkpoint.run_folder import RunFolder
from swa_cli.engine import evaluate, keep, swap
from swa_cli.engine.context import Context
from swa_cli.engine.evaluate import RAW
from swa_cli.errors import RecipeError, UserError
from swa_cli.metrics.metric import TaskMetrics
from swa_cli.metrics.tasks import SampleScores
from swa_cli.recipe.plan import Window
from swa_cli.recipe.swap import has_workers
from swa_cli.report.plots import curves
from swa_cli.report.scores import search_summary
from swa_cli.report.terminal import Terminal
from swa_cli.units import count_text

NAME = "soup"  # of the weight set that comes out
MAX_PASSES = 8  # of BatchNorm in a search


@dataclass(frozen=True)
class Choice:
    """What is averaged: at most one of these, or else all sources alike."""

    last: int | None = None
    window: Window | None = None
    weights: tuple[float, ...] | None = None
    greedy: bool = False
    search: bool = False


@dataclass(frozen=True)
class Refreshed:
    """A mean in the types of the model; `update` records its BatchNorm pass, None without one."""

    mean: Mean
    state_dict: dict[str, Tensor]
    update: BatchNormUpdate | None


@dataclass
class Trials:
    """The means that were tried: a row and the scores per sample of each, and the BatchNorm passes they took."""

    sources: Sources
    rows: list[dict[str, Any]] = field(default_factory=list)
    samples: list[SampleScores] = field(default_factory=list)
    alone: dict[str, SampleScores] = field(default_factory=dict)  # of each source, by its file
    num_passes: int = 0
    network: nn.Module | None = None  # with the mean that was refreshed last

    @property
    def metrics(self) -> TaskMetrics:
        """The metrics of the task."""
        return self.sources.context.task.metrics

    def refresh(self, mean: Mean, *, skip: bool = False) -> Refreshed:
        """Put a mean into a network and give it BatchNorm statistics of its own, unless they are to stay."""
        context = self.sources.context
        self.network = model = context.build_model()
        loading.load_unchecked(model, mean.state)
        update = None
        if not skip:
            update = context.refresh_batchnorm(model, name=NAME)
            self.num_passes += update.num_layers > 0
        return Refreshed(mean, cloned(model.state_dict()), update)

    def hold(self, refreshed: Refreshed) -> None:
        """Put a mean that was refreshed before into the network again."""
        self.network = self.sources.context.build_model()
        loading.load_unchecked(self.network, refreshed.state_dict)

    def score(self, *, name: str = NAME, loader: passes.Loader | None = None) -> SampleScores:
        """Score some batches, by default every validation image, with the mean that was refreshed last."""
        assert self.network is not None, "a mean is refreshed before it is scored"
        context = self.sources.context
        return passes.score(self.network, loader or context.plain_batches("val"), context=context, name=name)

    def score_alone(self, source: Source) -> SampleScores:
        """Score a source on validation images as it is, once; stale weights get statistics of their own."""
        if source.file not in self.alone:
            self.refresh(self.sources.mean("uniform", [source], [1.0]), skip=source.batchnorm != "stale")
            self.alone[source.file] = self.score(name=source.file)
        return self.alone[source.file]

    def note(self, row: dict[str, Any]) -> dict[str, Any]:
        """Score the mean that was refreshed last, and keep the row with its scores."""
        samples = self.score()
        row |= evaluate.summarize(samples, [metric.key for metric in self.metrics.compared])
        self.rows.append(row)
        self.samples.append(samples)
        return row

    def note_window(self, series: SnapshotSeries, first: int, last: int) -> tuple[Refreshed, dict[str, Any]]:
        """Refresh and score the mean of a window; return it and its row."""
        refreshed = self.refresh(series.mean(first, last))
        start, end = series.bounds(first, last)
        return refreshed, self.note({"start": start, "end": end, "count": refreshed.mean.count})

    def compare_to(self, best: int) -> None:
        """Add the differences to the row of this index, and mark it as chosen."""
        for row, samples in zip(self.rows, self.samples, strict=True):
            row |= evaluate.compare(samples, self.samples[best])
            row["chosen"] = row is self.rows[best]


def greedy(trials: Trials) -> Refreshed:
    """Add sources in the order of their own scores; keep each with which the score of the soup does not fall."""
    gathered, members, own = trials.sources, trials.sources.sets, trials.metrics.primary
    alone = [_own_score(source, trials) for source in members]
    made: dict[tuple[int, ...], Refreshed] = {}

    def try_out(indices: list[int]) -> float:
        for rejected in made.keys() - {tuple(indices[:-1])}:
            del made[rejected]
        chosen, added = [members[index] for index in indices], members[indices[-1]]
        made[tuple(indices)] = trials.refresh(gathered.mean("greedy", chosen, [1.0] * len(chosen)))
        row = {"file": added.file, "step": added.step, f"own_{own.key}": alone[indices[-1]], "count": len(indices)}
        return own.gain(trials.note(row)[own.key])

    kept = soup.greedy(sorted(range(len(members)), key=lambda index: -own.gain(alone[index])), try_out)
    held = {members[index].file for index in kept}
    for row in trials.rows:
        row["chosen"] = row["file"] in held
    return made[tuple(kept)]


def search(trials: Trials, series: SnapshotSeries) -> Refreshed:
    """Find the window whose mean has the lowest validation loss, within `MAX_PASSES` passes."""
    made: dict[tuple[int, int], tuple[float, Refreshed]] = {}  # the best one alone

    def try_out(first: int, last: int) -> float:
        refreshed, row = trials.note_window(series, first, last)
        loss = float(row[trials.metrics.loss_key])
        if all(loss < other for other, _ in made.values()):
            made.clear()
            made[first, last] = loss, refreshed
        return loss

    chosen = soup.search(len(series.sets), try_out, budget=MAX_PASSES)
    bounds = series.bounds(*chosen)
    trials.compare_to(next(i for i, row in enumerate(trials.rows) if (row["start"], row["end"]) == bounds))
    return made[chosen][1]


def _own_score(source: Source, trials: Trials) -> float:
    value = trials.score_alone(source).metric(trials.metrics.primary.key).value
    assert value is not None, "only an optional metric may be undefined"
    return value


def average_checkpoints(
    paths: Sequence[Path],
    overrides: Sequence[str],
    *,
    out: Path,
    choice: Choice,
    terminal: Terminal,
    refresh: bool = True,
    plot: Path | None = None,
    recipe: Path | None = None,
    allow_code: bool = False,
) -> dict[str, Any]:
    """Average weight sets and write the result to `out`, atomically; a search also draws what it tried.

    `paths` are run folders, which stand for their snapshots, and files; `overrides` change keys that the weights do
    not depend on. Without `refresh` the result says `stale`. `plot` is the picture of a search, by default beside
    `out`; `recipe` is that of sources that swa did not write.

    Raises:
        UserError: Sources that do not fit each other or the choice, or a place that cannot be written to.
    """
    files = sources.files_of(paths)
    picture = (plot or out.with_suffix(".png")) if choice.search else None
    require_writable(out, files, suffix=".pt")
    if picture is not None:
        require_writable(picture, files, suffix=".png")
    with open.lock_run_of(out):
        started = time.monotonic()
        gathered = sources.gather(files, overrides, recipe=recipe, terminal=terminal, allow_code=allow_code)
        trials = Trials(gathered)
        refreshed = _chosen_mean(choice, trials, refresh=refresh)
        content = content_of(refreshed, gathered, has_own_recipe=recipe is None)
        reader.save(out, content)
        barrier = basin.check(trials, refreshed)
        if picture is not None:
            _draw(picture, trials)
    if trials.rows:
        samples, passes = len(trials.samples[0]), trials.num_passes
        terminal.print(search_summary(trials.rows, samples=samples, passes=passes, metrics=trials.metrics))
    return {
        **answer(out, content, what=f"{content['average']['kind']} mean", started=started, terminal=terminal),
        "sources": content["sources"],
        "barrier": barrier,
        "tried": trials.rows,
        "passes": trials.num_passes,
        "split": "val" if trials.rows else None,
        "plot": None if picture is None else str(picture),
        **gathered.context.hardware.facts,
    }


def _chosen_mean(choice: Choice, trials: Trials, *, refresh: bool) -> Refreshed:
    """Return the mean of a choice, which has to fit the sources."""
    gathered, members = trials.sources, trials.sources.sets
    if choice.greedy:
        sources.require_held_out(gathered)
        return greedy(trials)
    if choice.search:
        series = snapshot_series(gathered, option="--search")
        sources.require_held_out(gathered)
        return search(trials, series)
    if choice.window is not None:
        series = snapshot_series(gathered, option="--window")
        return trials.refresh(series.mean(*series.window(choice.window)), skip=not refresh)
    if choice.last is not None and choice.last > len(members):
        raise UserError(f"--last {choice.last}: number of sources: {len(members)}", hint="write a smaller number")
    members = members[-choice.last :] if choice.last is not None else members
    weights = choice.weights or (1.0,) * len(members)
    if len(weights) != len(members):
        raise UserError(
            f"--weights: {len(weights)} numbers, number of sources: {len(members)}",
            hint="write one per source, in the order of the sources",
        )
    kind = "uniform" if choice.weights is None else "weighted"
    return trials.refresh(gathered.mean(kind, members, weights), skip=not refresh)


def require_writable(target: Path, files: Sequence[Path], *, suffix: str) -> None:
    """Refuse a place where a result cannot be written, or would replace a source or a resume point."""
    open.require_writable(target, sources=files)
    if target.suffix != suffix:
        raise UserError(f"{target}: the name must end in {suffix}", hint=f"name a {suffix} file")
    folder = RunFolder.containing(target)
    if folder is not None and target.resolve() in (folder.last, folder.previous):
        raise UserError(f"{target}: is the resume point of its run", hint="name another file with -o FILE")


def content_of(refreshed: Refreshed, gathered: Sources, *, has_own_recipe: bool) -> dict[str, Any]:
    """Return the content of the file of a mean; without a recipe of their own, sources have that of the command."""
    mean, update = refreshed.mean, refreshed.update
    first, origin = mean.shares[0][0].found, gathered.context.origin
    if first.recipe is not None:
        origin = first.origin if has_own_recipe else {**origin, "input": first.content["input"]}
    fresh = (update or NOTHING).record
    if update is None and is_refreshable(gathered.model):
        fresh["batchnorm"] = "stale"
    return reader.weights_content(
        origin,
        {"name": NAME, "kind": mean.kind, "count": mean.count, "steps": mean.steps},
        refreshed.state_dict,
        fresh,
        sources=[
            {"file": source.file, "name": source.name, "weight": share, "step": source.step}
            for source, share in mean.shares
        ],
    )


def _draw(picture: Path, trials: Trials) -> None:
    newest, recipe = trials.sources.sets[-1].found.content, trials.sources.context.recipe
    write_atomic(
        picture,
        lambda file: curves.draw_search(
            file,
            rows=trials.rows,
            metrics=trials.metrics,
            title=f"{recipe.title}: windows of the run, on validation images",
            steps_per_epoch=newest["num_train"] // (recipe.train.batch_size * recipe.train.grad_accum_steps),
        ),
    )


def extract_average(
    path: Path,
    overrides: Sequence[str],
    *,
    name: str,
    out: Path,
    terminal: Terminal,
    refresh: bool = True,
    allow_code: bool = False,
) -> dict[str, Any]:
    """Write an average that a resume point holds to `out`, atomically; its BatchNorm stays stale where that fails.

    Weights that the run keeps of their best epoch have their statistics, and are written as they are.
    `path` is a run folder or its resume point. Without `refresh` no data are read, and the result says `stale`.

    Raises:
        UserError: No resume point, no such average in it, or a place that cannot be written to.
    """
    started = time.monotonic()
    point = open.resume_point(RunFolder(path)) if path.is_dir() else reader.read(path)
    require_writable(out, [point.path], suffix=".pt")
    _require_held(point, name)
    source = {"file": str(point.path), "name": name, "weight": 1.0, "step": point.content["step"]}
    with open.lock_run_of(out):
        if name in (kept := point.content.get("kept", {})):
            best = keep.from_entry(kept[name])
            content = best.content(point.origin)
            reader.save(out, content)
            what = f"{name} of epoch {best.epoch}"
            return {**answer(out, content, what=what, started=started, terminal=terminal), "sources": [source]}
        context = model = None
        if refresh:
            context, model = _opened(point, overrides, name, terminal=terminal, allow_code=allow_code)
        if model is None:
            _, _, model = open.open_network(point, overrides, recipe=None, terminal=terminal, allow_code=allow_code)
        item = reader.weight_sets(point, model)[name]
        loading.load_weights(model, item.state_dict, source=f"{point.path} ({name})")
        update = None if context is None else _refreshed(context, model, name)
        fresh = {"batchnorm": item.batchnorm, "batchnorm_method": None, "samples": 0}
        content = shipped(point, name, item, cloned(model.state_dict()), fresh if update is None else update.record)
        reader.save(out, content)
    return {**answer(out, content, what=name, started=started, terminal=terminal), "sources": [source]}


def shipped(
    point: Checkpoint, name: str, item: WeightSet, state_dict: dict[str, Tensor], fresh: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the content of the file of an average that a resume point holds.

    `state_dict` has the statistics that the average ships with, and `fresh` says how fresh they are.
    """
    steps = list(point.content["averages"][name]["steps"])
    average = {"name": name, "kind": item.kind, "count": item.count, "steps": steps}
    return reader.weights_content(point.origin, average, state_dict, fresh, posterior=item.posterior)


def _require_held(point: Checkpoint, name: str) -> None:
    """Require the average in a resume point; the hint says how to get raw weights and the mean of SWAP workers."""
    if point.kind != "resume":
        raise UserError(
            f"{point.path}: is not a resume point, and --weights NAME takes an average out of one",
            hint="name a run folder or its checkpoints/last.pt; --weights also takes numbers, such as 3,1",
        )
    held = [other for other, entry in point.content["averages"].items() if entry["count"]]
    if name in held or name in point.content.get("kept", {}):
        return
    if name == swap.NAME and has_workers(open.recipe_of(point)):
        workers = RunFolder(point.path.parent.parent).workers / "*/checkpoints/last.pt"
        raise UserError(
            f"{point.path}: {name} is the mean of the workers, each of which has a resume point of its own",
            hint=f"average these: swa average {workers} -o FILE.pt",
        )
    if name == RAW:
        hint = f"write them to a file of their own: swa bn-update {point.path} --weights {RAW} -o FILE.pt"
        raise UserError(f"{point.path}: {RAW} are its raw weights, and no average", hint=hint)
    if not held:
        open.chosen({}, name, point.path)
    raise UserError(f"{point.path}: holds no average {name!r}", hint=f"choose from {', '.join(held)}")


def _opened(
    point: Checkpoint, overrides: Sequence[str], name: str, *, terminal: Terminal, allow_code: bool
) -> tuple[Context | None, nn.Module | None]:
    """Open data and network; return neither where the user's own dataset fails, as at the end of the run."""
    try:
        return open.open_checkpoint(point, overrides, recipe=None, terminal=terminal, allow_code=allow_code)
    except (UserError, RecipeError):
        raise
    except Exception as error:
        terminal.warning(f"{name}: the dataset cannot be opened ({_reason(error)}); BatchNorm statistics stay stale")
        return None, None


def _refreshed(context: Context, model: nn.Module, name: str) -> BatchNormUpdate | None:
    """Recompute BatchNorm; keep the statistics where that fails, as at the end of the run."""
    kept = {key: value.clone() for key, value in model.named_buffers()}
    try:
        return context.refresh_batchnorm(model, name=name)
    except Exception as error:  # in the network, the data or the machine: the average must not be lost with it
        loading.load_buffers(model, kept)
        context.events.warning(f"{name}: BatchNorm cannot be recomputed ({_reason(error)}); its statistics stay stale")
        return None


def _reason(error: Exception) -> str:
    first_line = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {first_line}"


def answer(
    out: Path,
    content: Mapping[str, Any],
    *,
    what: str,
    started: float,
    terminal: Terminal,
    command: str = "average",
) -> dict[str, Any]:
    """Say what was written, and the next command; return the part of the answer that every average has."""
    average, batchnorm, next_command = content["average"], content["batchnorm"], f"score it with `swa eval {out}`"
    if batchnorm == "stale":
        next_command = f"refresh it with `swa bn-update {out}`, then {next_command}"
    elif batchnorm == "recomputed":
        batchnorm = f"recomputed from {content['samples']:,} samples ({content['batchnorm_method']})"
    held = f"{what} of {count_text(average['count'] or 1, 'weight set')}"
    if average["steps"]:
        held += f", steps {min(average['steps']):,} to {max(average['steps']):,}"
    terminal.answer(f"{out}: {held}; BatchNorm {batchnorm}; {next_command}")
    return {
        "command": command,
        "checkpoint": str(out),
        "run": open.run_of(out),
        **{key: content[key] for key in ("average", "batchnorm", "batchnorm_method", "samples")},
        "seconds": round(time.monotonic() - started, 3),
    }
