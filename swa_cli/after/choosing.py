"""Weight sets that are chosen by their scores on validation images: the greedy soup, and the search for a window.

Whatever is tried gets BatchNorm statistics of its own first, by a pass over the training set. The test set is never
looked at: scores on it would mean nothing afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from swa_cli.after.ingredients import Ingredients, Source
from swa_cli.after.trail import Trail
from swa_cli.averaging import soup
from swa_cli.averaging.batchnorm import BatchNormUpdate
from swa_cli.averaging.state import cloned
from swa_cli.report.measures import Measures
from swa_cli.training import evaluate, faults, loading
from swa_cli.training.tasks import SampleScores

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
    def measures(self) -> Measures:
        """What the task scores."""
        return self.ingredients.bench.task.measures

    def finish(self, mix: Mix, *, refresh: bool = True) -> Finished:
        """Put a mix into a network, with statistics of its own."""
        bench = self.ingredients.bench
        self.network = model = bench.build_model()
        loading.put_own(model, mix.state)
        update = None
        if refresh:
            with faults.memory("train.batch_size", bench.recipe.train.batch_size):
                update = bench.refresh_batchnorm(model, name=NAME)
            self.num_passes += update.num_layers > 0
        return Finished(mix, cloned(model.state_dict()), update)

    def note(self, row: dict[str, Any]) -> dict[str, Any]:
        """Score the mix that was finished last, and keep the row with its scores."""
        samples = self.score(name=NAME)
        row |= evaluate.summarize(samples, [measure.key for measure in self.measures.compared])
        self.rows.append(row)
        self.samples.append(samples)
        return row

    def score(self, *, name: str) -> SampleScores:
        """What each validation image scores with the mix that was finished last."""
        assert self.network is not None, "a mix is finished before it is scored"
        bench = self.ingredients.bench
        loader = bench.plain_batches("val")
        with (
            bench.terminal.progress(f"scoring {name}", len(loader)) as bar,
            faults.memory("eval.batch_size", bench.recipe.eval.batch_size),
        ):
            return evaluate.score(
                self.network, loader, task=bench.final_task, hardware=bench.eval_hardware, advance=bar.advance
            )


def mean_of(kind: str, sources: Sequence[Source], weights: Sequence[float], ingredients: Ingredients) -> Mix:
    """The weighted mean of sources; those of weight 0 are not counted."""

    def states() -> Iterator[dict[str, Tensor]]:
        for source in sources:
            yield source.state
            bar.advance()

    with ingredients.bench.terminal.progress("averaging", len(sources)) as bar:
        state = soup.mean(states(), averaged=ingredients.averaged, weights=weights)
    total = sum(weights)
    shares = [(source, weight / total) for source, weight in zip(sources, weights, strict=True) if weight]
    steps = [source.step for source, _ in shares if source.step is not None]
    return Mix(kind, shares, steps if len(steps) == len(shares) else [], len(shares), state)


def greedy(trials: Trials) -> Finished:
    """Sources by their score alone; each is kept if the score of the refreshed soup does not fall with it."""
    ingredients, sources, own = trials.ingredients, trials.ingredients.sources, trials.measures.own
    alone = [_score_alone(source, trials) for source in sources]
    made: dict[tuple[int, ...], Finished] = {}

    def try_out(members: list[int]) -> float:
        for other in made.keys() - {tuple(members[:-1])}:  # what was tried before and left out
            del made[other]
        chosen, added = [sources[index] for index in members], sources[members[-1]]
        made[tuple(members)] = trials.finish(mean_of("greedy", chosen, [1.0] * len(chosen), ingredients))
        row = {"file": added.file, "step": added.step, f"own_{own.key}": alone[members[-1]], "count": len(members)}
        return own.gain(trials.note(row)[own.key])

    kept = soup.greedy(sorted(range(len(sources)), key=lambda index: -own.gain(alone[index])), try_out)
    held = {sources[index].file for index in kept}
    for row in trials.rows:
        row["chosen"] = row["file"] in held
    return made[tuple(kept)]


def search(trials: Trials, trail: Trail) -> Finished:
    """The window whose refreshed mean has the lowest loss, of those that `MAX_PASSES` passes can try."""
    made: dict[tuple[int, int], Finished] = {}
    key = trials.measures.loss_key

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
    value = trials.score(name=source.file).measure(trials.measures.own.key).value
    assert value is not None, "only an optional score may say nothing"
    return value
