"""Weight sets that are chosen by their scores on validation images: the greedy soup, and the search for a window.

Whatever is tried gets BatchNorm statistics of its own first, by a pass over the training set. The test set is never
looked at: scores on it would mean nothing afterwards.

`swa average`: one weight set made of several that are on disk, refreshed and ready to ship.

How it is made is a `Choice`: of all sources, of the last few, of a window of the run, with weights, or as scores on
validation images say. The result is a file like swa.pt, which also lists its sources.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from swa_cli.analysis import open
from swa_cli.analysis import sources as ingredients
from swa_cli.analysis.sources import Ingredients, Source, Trail, trail_of
from swa_cli.averaging import soup
from swa_cli.averaging.batchnorm import NOTHING, BatchNormUpdate
from swa_cli.averaging.bn_layers import is_refreshable
from swa_cli.averaging.model_state import cloned
from swa_cli.checkpoint import loading, reader
from swa_cli.checkpoint.atomic import write_atomic
from swa_cli.checkpoint.run_folder import RunFolder
from swa_cli.engine import evaluate, failures
from swa_cli.errors import UserError
from swa_cli.metrics.metric import TaskMetrics
from swa_cli.metrics.tasks import SampleScores
from swa_cli.recipe.plan import Window
from swa_cli.report.plots import schedule
from swa_cli.report.terminal import Terminal

NAME = "soup"  # of the weight set that comes out
MAX_PASSES = 8  # of BatchNorm in a search


@dataclass(frozen=True)
class Mix:
    """A mean: of what kind, how much of which source is in it, and the steps whose weights it holds."""

    kind: str
    shares: list[tuple[Source, float]]
    steps: list[int]
    count: int
    state: dict[str, Tensor]  # float64


@dataclass(frozen=True)
class Finished:
    """A mix in the types of the model; `update` says how BatchNorm was recomputed, None if it was not."""

    mix: Mix
    state_dict: dict[str, Tensor]
    update: BatchNormUpdate | None


@dataclass
class Trials:
    """What was tried: a row and the scores of its samples for each, and the passes that they cost."""

    ingredients: Ingredients
    rows: list[dict[str, Any]] = field(default_factory=list)
    samples: list[SampleScores] = field(default_factory=list)
    num_passes: int = 0
    network: nn.Module | None = None  # with the mix that was finished last

    @property
    def metrics(self) -> TaskMetrics:
        """What the task scores."""
        return self.ingredients.context.task.metrics

    def finish(self, mix: Mix, *, refresh: bool = True) -> Finished:
        """Put a mix into a network, with statistics of its own."""
        context = self.ingredients.context
        self.network = model = context.build_model()
        loading.load_unchecked(model, mix.state)
        update = None
        if refresh:
            with failures.memory("train.batch_size", context.recipe.train.batch_size):
                update = context.refresh_batchnorm(model, name=NAME)
            self.num_passes += update.num_layers > 0
        return Finished(mix, cloned(model.state_dict()), update)

    def note(self, row: dict[str, Any]) -> dict[str, Any]:
        """Score the mix that was finished last, and keep the row with its scores."""
        samples = self.score(name=NAME)
        row |= evaluate.summarize(samples, [metric.key for metric in self.metrics.compared])
        self.rows.append(row)
        self.samples.append(samples)
        return row

    def score(self, *, name: str) -> SampleScores:
        """What each validation image scores with the mix that was finished last."""
        assert self.network is not None, "a mix is finished before it is scored"
        context = self.ingredients.context
        loader = context.plain_batches("val")
        with (
            context.events.progress(f"scoring {name}", len(loader)) as bar,
            failures.memory("eval.batch_size", context.recipe.eval.batch_size),
        ):
            return evaluate.score(
                self.network, loader, task=context.final_task, hardware=context.eval_hardware, advance=bar.advance
            )


def mean_of(kind: str, sources: Sequence[Source], weights: Sequence[float], ingredients: Ingredients) -> Mix:
    """The weighted mean of sources; those of weight 0 are not counted."""

    def states() -> Iterator[dict[str, Tensor]]:
        for source in sources:
            yield source.state
            bar.advance()

    with ingredients.context.events.progress("averaging", len(sources)) as bar:
        state = soup.mean(states(), averaged=ingredients.averaged, weights=weights)
    total = sum(weights)
    shares = [(source, weight / total) for source, weight in zip(sources, weights, strict=True) if weight]
    steps = [source.step for source, _ in shares if source.step is not None]
    return Mix(kind, shares, steps if len(steps) == len(shares) else [], len(shares), state)


def greedy(trials: Trials) -> Finished:
    """Sources by their score alone; each is kept if the score of the refreshed soup does not fall with it."""
    ingredients, sources, own = trials.ingredients, trials.ingredients.sources, trials.metrics.primary
    gather_single_process = [_score_alone(source, trials) for source in sources]
    made: dict[tuple[int, ...], Finished] = {}

    def try_out(members: list[int]) -> float:
        for other in made.keys() - {tuple(members[:-1])}:  # what was tried before and left out
            del made[other]
        chosen, added = [sources[index] for index in members], sources[members[-1]]
        made[tuple(members)] = trials.finish(mean_of("greedy", chosen, [1.0] * len(chosen), ingredients))
        row = {
            "file": added.file,
            "step": added.step,
            f"own_{own.key}": gather_single_process[members[-1]],
            "count": len(members),
        }
        return own.gain(trials.note(row)[own.key])

    kept = soup.greedy(sorted(range(len(sources)), key=lambda index: -own.gain(gather_single_process[index])), try_out)
    held = {sources[index].file for index in kept}
    for row in trials.rows:
        row["chosen"] = row["file"] in held
    return made[tuple(kept)]


def search(trials: Trials, trail: Trail) -> Finished:
    """The window whose refreshed mean has the lowest loss, of those that `MAX_PASSES` passes can try."""
    made: dict[tuple[int, int], Finished] = {}
    key = trials.metrics.loss_key

    def try_out(first: int, last: int) -> float:
        finished = trials.finish(window_of(trail, first, last))
        start, end = trail.bounds(first, last)
        row = trials.note({"start": start, "end": end, "count": finished.mix.count})
        loss = float(row[key])
        if not made or loss < best[key]:
            made.clear()
            made[first, last] = finished
            best.update(row)
        return loss

    best: dict[str, Any] = {}
    chosen = soup.search(trail.n, try_out, budget=MAX_PASSES)
    index = next(i for i, row in enumerate(trials.rows) if (row["start"], row["end"]) == trail.bounds(*chosen))
    for row, samples in zip(trials.rows, trials.samples, strict=True):
        row |= evaluate.compare(samples, trials.samples[index])
        row["chosen"] = row is trials.rows[index]
    return made[chosen]


def window_of(trail: Trail, first: int, last: int) -> Mix:
    """The mean of a window."""
    steps = trail.steps(first, last)
    return Mix("window", trail.shares(first, last), steps, len(steps), trail.mean(first, last))


def _score_alone(source: Source, trials: Trials) -> float:
    """Of a source as it is; of averaged weights that were never refreshed, with statistics of their own."""
    mix = mean_of("uniform", [source], [1.0], trials.ingredients)
    trials.finish(mix, refresh=source.batchnorm == "stale")
    value = trials.score(name=source.file).metric(trials.metrics.primary.key).value
    assert value is not None, "only an optional score may say nothing"
    return value


@dataclass(frozen=True)
class Choice:
    """What is averaged; at most one of these is given, and without any it is all sources alike."""

    last: int | None = None
    window: Window | None = None
    weights: tuple[float, ...] | None = None
    greedy: bool = False
    search: bool = False


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
    """Make one weight set of several and write it to `out`, atomically; a search also draws what it tried.

    Args:
        paths: Run folders, which stand for their snapshots, and files.
        overrides: Changes of keys that the weights do not depend on.
        out: A .pt file that is none of the sources.
        choice: What is averaged.
        terminal: Told of everything.
        refresh: Recompute BatchNorm; without it the result says `stale`.
        plot: Where a search draws what it tried; default beside `out`.
        recipe: Of sources that swa did not write.
        allow_code: Import what the recipe in a source names.

    Raises:
        UserError: Sources that do not fit each other or the choice, or a place that cannot be written to.
    """
    files = ingredients.files_of(paths)
    picture = (plot or out.with_suffix(".png")) if choice.search else None
    for target, suffix in ((out, ".pt"), (picture, ".png")):
        if target is not None:
            require_writable(target, files, suffix=suffix)
    folder = RunFolder.around(out)
    with folder.claimed() if folder is not None else nullcontext():
        started = time.monotonic()
        gathered = ingredients.gather(files, overrides, recipe=recipe, terminal=terminal, allow_code=allow_code)
        trials = Trials(gathered)
        finished = _made(choice, trials, refresh=refresh)
        content = _content(finished, trials, refresh=refresh, passed=recipe is not None)
        reader.save(out, content)
        if picture is not None:
            _draw(picture, trials)
    _tell(terminal, out, content, trials)
    return {
        "command": "average",
        "checkpoint": str(out),
        "run": open.run_of(out),
        **{key: content[key] for key in ("average", "sources", "batchnorm", "batchnorm_method", "samples")},
        "tried": trials.rows,
        "passes": trials.num_passes,
        "split": "val" if trials.rows else None,
        "plot": None if picture is None else str(picture),
        "seconds": round(time.monotonic() - started, 3),
        "device": str(gathered.context.hardware.device),
        "precision": gathered.context.hardware.precision,
    }


def _made(choice: Choice, trials: Trials, *, refresh: bool) -> Finished:
    """The weight set of a choice.

    Raises:
        UserError: The choice does not fit the sources.
    """
    gathered, sources = trials.ingredients, trials.ingredients.sources
    if choice.greedy:
        ingredients.require_held_out(gathered)
        return greedy(trials)
    if choice.search:
        trail = trail_of(gathered, option="--search")
        ingredients.require_held_out(gathered)
        return search(trials, trail)
    if choice.window is not None:
        trail = trail_of(gathered, option="--window")
        return trials.finish(window_of(trail, *trail.window(choice.window)), refresh=refresh)
    if choice.last is not None and choice.last > len(sources):
        raise UserError(f"--last {choice.last}: number of sources: {len(sources)}", hint="write a smaller number")
    sources = sources[-choice.last :] if choice.last is not None else sources
    weights = choice.weights or (1.0,) * len(sources)
    if len(weights) != len(sources):
        raise UserError(
            f"--weights: {len(weights)} numbers, number of sources: {len(sources)}",
            hint="write one a source, in the order of the sources",
        )
    kind = "uniform" if choice.weights is None else "weighted"
    return trials.finish(mean_of(kind, sources, weights, gathered), refresh=refresh)


def require_writable(target: Path, sources: Sequence[Path], *, suffix: str) -> None:
    """Nothing that matters is where the result will be.

    Raises:
        UserError: No name for it, no folder, a link, a source, or what a run goes on from.
    """
    if not target.parent.is_dir():
        raise UserError(f"{target.parent}: no such folder", hint="make it, or name another file")
    if target.suffix != suffix or (target.exists() and not target.is_file()):
        raise UserError(f"{target}: is no name for the result", hint=f"name a {suffix} file")
    if target.is_symlink():
        raise UserError(
            f"{target}: is a symbolic link, which is not followed for writing", hint="name the file itself, or another"
        )
    if target.resolve() in {source.resolve() for source in sources}:
        raise UserError(f"{target}: is one of the sources", hint="name another file with -o FILE")
    folder = RunFolder.around(target)
    if folder is not None and target.resolve() in (folder.last, folder.previous):
        raise UserError(f"{target}: is what its run goes on from", hint="name another file with -o FILE")


def _content(finished: Finished, trials: Trials, *, refresh: bool, passed: bool) -> dict[str, Any]:
    """What the file holds."""
    mix, update, gathered = finished.mix, finished.update, trials.ingredients
    first = mix.shares[0][0].found
    own = None if passed else first.recipe
    fresh = (update or NOTHING).record
    if update is None and is_refreshable(gathered.model):
        assert not refresh, "what has BatchNorm is refreshed"
        fresh["batchnorm"] = "stale"
    return {
        "recipe": own or gathered.context.recipe.model_dump(mode="json", exclude_none=True),
        "input": first.content["input"] if first.recipe is not None else gathered.context.input,
        "state_dict": finished.state_dict,
        "average": {"name": NAME, "kind": mix.kind, "count": mix.count, "steps": mix.steps},
        **fresh,
        "sources": [
            {"file": source.file, "name": source.name, "weight": share, "step": source.step}
            for source, share in mix.shares
        ],
    }


def _draw(picture: Path, trials: Trials) -> None:
    """Write what a search tried."""
    newest = trials.ingredients.sources[-1].found.content
    train = trials.ingredients.context.recipe.train
    write_atomic(
        picture,
        lambda file: schedule.draw_search(
            file,
            rows=trials.rows,
            metrics=trials.metrics,
            title=f"{trials.ingredients.context.recipe.title}: windows of the run, on validation images",
            steps_per_epoch=newest["num_train"] // (train.batch_size * train.grad_accum_steps),
        ),
    )


def _tell(terminal: Terminal, out: Path, content: dict[str, Any], trials: Trials) -> None:
    """The answer: the table of what was tried, and what came out."""
    average, steps = content["average"], content["average"]["steps"]
    if trials.rows:
        terminal.tried(
            trials.rows,
            metrics=trials.metrics,
            samples=len(trials.samples[0]),
            passes=trials.num_passes,
        )
    held = f"{average['kind']} mean of {average['count']:,} weight set{'s' * (average['count'] != 1)}"
    held += f", steps {min(steps):,} to {max(steps):,}" if steps else ""
    batchnorm, ways = content["batchnorm"], f"score it with `swa eval {out}`"
    if batchnorm == "recomputed":
        batchnorm = f"recomputed from {content['samples']:,} samples ({content['batchnorm_method']})"
    elif batchnorm == "stale":
        ways = f"refresh it with `swa bn-update {out}`, then {ways}"
    terminal.answer(f"{out}: {held}; BatchNorm {batchnorm}; {ways}")
