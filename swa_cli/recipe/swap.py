"""Phases of a SWAP run: a common one, then independent workers (Gupta et al. 2020).

One idea: a phase is a run like any other, of some epochs of the recipe, with its own batch size and factor of the rate.
`swap.worker` says that a run is a worker; without it the run is the common phase. A recipe without the section has one
phase of all epochs.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from swa_cli.errors import Problem
from swa_cli.recipe.schema import Recipe, Swap
from swa_cli.recipe.values import round_half_up

COMMON_WEIGHTS = "checkpoints/last.pt"  # in the run folder: the workers start from it


@dataclass(frozen=True)
class Phase:
    """Some epochs of a recipe, and the batches they are trained with."""

    before: int  # epochs of the recipe before them
    epochs: int
    batch_size: int  # samples of one forward pass
    grad_accum_steps: int  # batches of one optimizer step
    factor: float = 1.0  # of the schedule's rate

    @property
    def span(self) -> str:
        """Write the epochs as `epochs 8 to 10`, as the recipe counts them."""
        first, last = self.before + 1, self.before + self.epochs
        return f"epochs {first} to {last}" if last > first else f"epoch {first}"

    @property
    def batch(self) -> str:
        """Write the batch as `batch 256`, or `batch 64 x 4` with gradient accumulation."""
        return f"batch {self.batch_size:,}" + (f" x {self.grad_accum_steps}" if self.grad_accum_steps > 1 else "")


def has_workers(recipe: Recipe) -> bool:
    """Return whether a run of this recipe is the common phase of SWAP, which workers follow."""
    return recipe.swap is not None and recipe.swap.worker is None


def phase_of(recipe: Recipe) -> Phase:
    """Return what a run of this recipe trains: all epochs, or one phase of SWAP; `swap_problems` finds nothing."""
    train, swap = recipe.train, recipe.swap
    if swap is None:
        return Phase(0, train.epochs, train.batch_size, train.grad_accum_steps)
    common = min(max(round_half_up(_start(swap, train.epochs)), 1), train.epochs - 1)
    if swap.worker is None:
        return Phase(0, common, train.batch_size, train.grad_accum_steps)
    step = train.batch_size * train.grad_accum_steps
    batch_size = swap.batch_size or max(step // swap.workers, 1)
    factor = batch_size / step if swap.lr is None else swap.lr  # the linear scaling rule of Goyal et al. (2017)
    return Phase(common, train.epochs - common, batch_size, 1, factor)


def worker_of(recipe: Recipe, number: int, *, init: str = COMMON_WEIGHTS) -> Recipe:
    """Return the complete recipe of a worker, from 1, of a SWAP run; `init` is the checkpoint of the common weights."""
    assert recipe.swap is not None, "only SWAP has workers"
    swap = recipe.swap.model_copy(update={"worker": number})
    train = recipe.train.model_copy(update={"init": init, "init_weights": None, "init_skip": []})
    return recipe.model_copy(update={"swap": swap, "train": train})


def describe_swap(recipe: Recipe) -> str | None:
    """Describe the phases of a SWAP run, or a worker; None for any other run.

    `common phase epochs 1 to 7, batch 512; 2 workers x epochs 8 to 10, batch 256, rate x 0.5; BatchNorm of their mean
    recomputed at the end`.
    """
    swap = recipe.swap
    if swap is None:
        return None
    phase = phase_of(recipe)
    if swap.worker is not None:
        return f"worker {swap.worker} of {swap.workers}: {phase.span}, {phase.batch}, rate x {phase.factor:g}"
    own = phase_of(worker_of(recipe, 1))
    each = f"{swap.workers} workers x {own.span}, {own.batch}, rate x {own.factor:g}"
    return f"common phase {phase.span}, {phase.batch}; {each}; BatchNorm of their mean recomputed at the end"


def name_of_worker(number: int) -> str:
    """Return the key of a worker's weights in the results of the whole run; no average has such a name."""
    return f"worker-{number}"


def number_of_worker(name: str) -> int | None:
    """Return the worker whose weights have this name; None for another weight set."""
    prefix, _, number = name.partition("-")
    return int(number) if prefix == "worker" and number.isdecimal() else None


def swap_problems(recipe: Recipe, swap: Swap, *, num_train: int) -> list[Problem]:
    """Return every mistake in the section `swap`, and every key that cannot be combined with it."""
    return [
        *_start_problems(swap, recipe.train.epochs),
        *_worker_problems(recipe, swap, num_train),
        *_excluded_problems(recipe),
    ]


def _start(swap: Swap, epochs: int) -> Fraction:
    """Return the epochs of the common phase, before rounding."""
    return swap.start.value * epochs / 100 if swap.start.unit == "%" else swap.start.value


def _start_problems(swap: Swap, epochs: int) -> list[Problem]:
    if epochs < 2:
        message = f"{epochs} cannot be divided into a common phase and one of workers"
        return [Problem("train.epochs", message, "write at least 2, or leave the section swap out")]
    if swap.start.unit not in ("%", "ep"):
        message = f"{swap.start} is not a number of epochs, and the common phase has whole ones"
        return [Problem("swap.start", message, "write it in % or ep")]
    if not 0 < _start(swap, epochs) < epochs:
        message = f"{swap.start} of {epochs} epochs leaves nothing {'to the workers' if swap.start.value else 'before'}"
        return [Problem("swap.start", message, "write a point inside the run, such as 70%")]
    return []


def _worker_problems(recipe: Recipe, swap: Swap, num_train: int) -> list[Problem]:
    train, found = recipe.train, []
    if swap.batch_size is not None and swap.batch_size > num_train:
        message = f"{swap.batch_size} is more than the {num_train:,} training samples"
        found.append(Problem("swap.batch_size", message, f"write at most {num_train}"))
    if swap.worker is None:
        return found
    if swap.worker > swap.workers:
        message = f"{swap.worker} of {swap.workers} workers"
        found.append(Problem("swap.worker", message, f"write 1 to {swap.workers}"))
    if train.init is None:
        message = "a worker begins from the weights of a common phase, and train.init names none"
        found.append(Problem("swap.worker", message, f"add train.init=RUN/{COMMON_WEIGHTS}"))
    if train.init_skip:
        message = "a worker begins from all of the common weights"
        found.append(Problem("train.init_skip", message, "leave it out"))
    return found


def _excluded_problems(recipe: Recipe) -> list[Problem]:
    """Return a problem for each key that has no single meaning in a run of two phases."""
    one = "is of the weights along one trajectory, and swap makes the mean of several ends"
    ends = "would end one phase before the other, and both are what swap is"
    given = {
        "swa": (recipe.swa is not None, one),
        "averages": (bool(recipe.averages), one),
        "snapshots": (recipe.snapshots is not None, one),
        "train.early_stopping": (recipe.train.early_stopping is not None, ends),
        "train.keep_best": (recipe.train.keep_best is not None, "is one epoch of a trajectory, and swap has several"),
        "train.max_time": (recipe.train.max_time is not None, ends),
        "train.fsdp": (recipe.train.fsdp, "deals a network out over processes, and each worker has one to itself"),
    }
    found = [
        Problem(key, why, "leave it out, or the section swap") for key, (is_there, why) in given.items() if is_there
    ]
    return found + [
        Problem(f"schedule.{key}", f"{length} is another time in the common phase than in a worker", "write % or ep")
        for key, length in recipe.schedule.lengths
        if length.unit == "step"
    ]
