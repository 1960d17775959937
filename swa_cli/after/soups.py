"""`swa average`: one weight set made of several that are on disk, refreshed and ready to ship.

How it is made is a `Choice`: of all sources, of the last few, of a window of the run, with weights, or as scores on
validation images say. The result is a file like swa.pt, which also lists its sources.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swa_cli.after import choosing, ingredients, revisit
from swa_cli.after.choosing import Finished, Trials
from swa_cli.after.trail import trail_of
from swa_cli.averaging.batchnorm import NOTHING
from swa_cli.averaging.layers import is_refreshable
from swa_cli.errors import UserError
from swa_cli.recipe.window import Window
from swa_cli.report.plots import window
from swa_cli.report.terminal import Terminal
from swa_cli.training import checkpoint
from swa_cli.training.files import write_atomic
from swa_cli.training.run_folder import RunFolder


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
        checkpoint.save(out, content)
        if picture is not None:
            _draw(picture, trials)
    _tell(terminal, out, content, trials)
    return {
        "command": "average",
        "checkpoint": str(out),
        "run": revisit.run_of(out),
        **{key: content[key] for key in ("average", "sources", "batchnorm", "batchnorm_method", "samples")},
        "tried": trials.rows,
        "passes": trials.num_passes,
        "split": "val" if trials.rows else None,
        "plot": None if picture is None else str(picture),
        "seconds": round(time.monotonic() - started, 3),
        "device": str(gathered.bench.hardware.device),
        "precision": gathered.bench.hardware.precision,
    }


def _made(choice: Choice, trials: Trials, *, refresh: bool) -> Finished:
    """The weight set of a choice.

    Raises:
        UserError: The choice does not fit the sources.
    """
    gathered, sources = trials.ingredients, trials.ingredients.sources
    if choice.greedy:
        ingredients.require_held_out(gathered)
        return choosing.greedy(trials)
    if choice.search:
        trail = trail_of(gathered, option="--search")
        ingredients.require_held_out(gathered)
        return choosing.search(trials, trail)
    if choice.window is not None:
        trail = trail_of(gathered, option="--window")
        return trials.finish(choosing.window_of(trail, *trail.window(choice.window)), refresh=refresh)
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
    return trials.finish(choosing.mean_of(kind, sources, weights, gathered), refresh=refresh)


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
        "recipe": own or gathered.bench.recipe.model_dump(mode="json", exclude_none=True),
        "input": first.content["input"] if first.recipe is not None else gathered.bench.input,
        "state_dict": finished.state_dict,
        "average": {"name": choosing.NAME, "kind": mix.kind, "count": mix.count, "steps": mix.steps},
        **fresh,
        "sources": [
            {"file": source.file, "name": source.name, "weight": share, "step": source.step}
            for source, share in mix.shares
        ],
    }


def _draw(picture: Path, trials: Trials) -> None:
    """Write what a search tried."""
    newest = trials.ingredients.sources[-1].found.content
    train = trials.ingredients.bench.recipe.train
    write_atomic(
        picture,
        lambda file: window.draw(
            file,
            rows=trials.rows,
            measures=trials.measures,
            title=f"{trials.ingredients.bench.recipe.title}: windows of the run, on validation images",
            steps_per_epoch=newest["num_train"] // (train.batch_size * train.accumulate),
        ),
    )


def _tell(terminal: Terminal, out: Path, content: dict[str, Any], trials: Trials) -> None:
    """The answer: the table of what was tried, and what came out."""
    average, steps = content["average"], content["average"]["steps"]
    if trials.rows:
        terminal.tried(
            trials.rows,
            measures=trials.measures,
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
