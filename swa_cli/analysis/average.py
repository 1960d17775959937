"""`swa average`: one weight set from several on disk, ready to ship.

`Choice` says what is averaged: all sources, the last few, a window of the run, or what scores on validation images
choose (the greedy soup, the search for a window). Every candidate gets BatchNorm statistics of its own first. The
test set is never used: scores on it would mean nothing afterwards. `swa soup` shares what follows a choice.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from swa_cli.analysis import basin, open, sources
from swa_cli.analysis.search import PASSES, draw_trials, search
from swa_cli.analysis.snapshot_series import CUMULATIVE, ProfileOption, snapshot_series
from swa_cli.analysis.sources import Mean, Source, Sources
from swa_cli.analysis.trials import NAME, Refreshed, Trials
from swa_cli.averaging import soup
from swa_cli.averaging.batchnorm import NOTHING
from swa_cli.averaging.bn_layers import is_frozen, is_refreshable
from swa_cli.checkpoint import reader
from swa_cli.engine import user_code
from swa_cli.errors import UserError
from swa_cli.recipe.plan import Window
from swa_cli.recipe.schema import Recipe
from swa_cli.report.scores import search_summary
from swa_cli.report.terminal import Terminal
from swa_cli.units import count_text

EXACT = 1e-9  # a smaller error is rounding


@dataclass(frozen=True)
class Choice:
    """What is averaged: at most one of these, or else all sources alike; a profile may have a window or a share."""

    last: int | None = None
    window: Window | None = None
    weights: tuple[float, ...] | None = None
    greedy: bool = False
    search: bool = False
    passes: int = PASSES  # of a search
    profile: ProfileOption | None = None
    share: float | None = None  # the last percent of the run, in place of a window


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


def _own_score(source: Source, trials: Trials) -> float:
    value = trials.score_alone(source).metric(trials.metrics.primary.key).value
    if value is None:
        name = trials.metrics.primary.name
        raise UserError(
            f"the validation samples do not define {name}, which a greedy soup chooses by",
            hint="average all sources: swa average without --greedy, or swa soup --method uniform",
        )
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
        require_writable(picture, files, suffix=".png", option="--plot")
    with open.lock(out):
        started = time.monotonic()
        gathered = sources.gather(files, overrides, recipe=recipe, terminal=terminal, allow_code=allow_code)
        trials = Trials(gathered)
        refreshed = _chosen_mean(choice, trials, refresh=refresh)
        content = content_of(refreshed, gathered, has_own_recipe=recipe is None)
        reader.save(out, content)
        barrier = basin.check(trials, refreshed)
        if picture is not None:
            draw_trials(picture, trials)
    if trials.rows:
        samples, passes = len(trials.samples[0]), trials.num_passes
        terminal.print(search_summary(trials.rows, samples=samples, passes=passes, metrics=trials.metrics))
    return {
        **answer(
            out,
            content,
            gathered.context.recipe,
            what=describe(content["average"]),
            started=started,
            terminal=terminal,
        ),
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
        return search(trials, series, passes=choice.passes)
    if choice.profile is not None:
        return trials.refresh(_by_profile(choice, choice.profile, gathered), skip=not refresh)
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


def _by_profile(choice: Choice, option: ProfileOption, gathered: Sources) -> Mean:
    """Return the average by a profile of the whole run, of a window, or of the last share."""
    series = snapshot_series(gathered, option=option.text)
    first, last = 0, len(series.sets) - 1
    if choice.window is not None:
        first, last = series.window(choice.window)
    elif choice.share is not None:
        first = series.last_share(choice.share, last=last)
    return series.weighted(series.profile(option), first, last)


def require_writable(target: Path, files: Sequence[Path], *, suffix: str, option: str = "-o") -> None:
    """Refuse a place where a result cannot be written, or would replace a source or a checkpoint of a run."""
    open.require_writable(target, sources=files, option=option)
    if target.suffix != suffix:
        raise UserError(f"{target}: the name must end in {suffix}", hint=f"name a {suffix} file")
    open.require_no_checkpoint(target)


def content_of(refreshed: Refreshed, gathered: Sources, *, has_own_recipe: bool) -> dict[str, Any]:
    """Return the content of the file of a mean; without a recipe of their own, sources have that of the command."""
    mean, update = refreshed.mean, refreshed.update
    first, origin = mean.shares[0][0].found, gathered.context.origin
    if first.recipe is not None:
        origin = first.origin if has_own_recipe else {**origin, "input": first.content["input"]}
    fresh = (update or replace(NOTHING, is_frozen=is_frozen(gathered.model))).record
    if update is None and is_refreshable(gathered.model):
        fresh["batchnorm"] = "stale"
    return reader.weights_content(
        origin,
        {
            "name": NAME,
            "kind": mean.kind,
            "count": mean.count,
            "steps": mean.steps,
            **({"profile": dict(mean.profile.settings), "error": mean.error} if mean.profile is not None else {}),
        },
        refreshed.state_dict,
        fresh,
        sources=[
            {"file": source.file, "name": source.name, "weight": share, "step": source.step}
            for source, share in mean.shares
        ],
    )


def describe(average: Mapping[str, Any]) -> str:
    """Return what an average is, for a sentence: `window mean`, `EMA of half-life 46 steps`."""
    settings = average.get("profile")
    if settings is None:
        return f"{average['kind']} mean"
    if average["kind"] == "ema":
        return f"EMA of half-life {settings['half_life']:.6g} steps"
    if average["kind"] == "power_ema":
        return f"power-function EMA of width {settings['width']:g}"
    return f"merge for a {settings['decay']} decay"


def _error_text(content: Mapping[str, Any]) -> str:
    """Return the error of an average by a profile; that from running means is usually less, see `profiles.Shares`."""
    error, is_corrected = content["average"]["error"], any(item["name"] == CUMULATIVE for item in content["sources"])
    if error is None:
        return "the error of what lies between snapshots is not known"
    if error < EXACT:
        return "exact"
    about = f"{'usually less than' if is_corrected else 'about'} {100 * error:.2g} %"
    return f"error of what lies between snapshots {about} of the distance from the last weights"


def answer(
    out: Path,
    content: Mapping[str, Any],
    recipe: Recipe,
    *,
    what: str,
    started: float,
    terminal: Terminal,
    command: str = "average",
) -> dict[str, Any]:
    """Say what was written, and the next command; return the part of the answer that every average has."""
    average, batchnorm = content["average"], content["batchnorm"]
    next_command = f"score it with `{user_code.command(('swa', 'eval', out), recipe)}`"
    if batchnorm == "stale":
        next_command = f"refresh it with `{user_code.command(('swa', 'bn-update', out), recipe)}`, then {next_command}"
    elif batchnorm == "recomputed":
        batchnorm = f"recomputed from {content['samples']:,} samples ({content['batchnorm_method']})"
    held = f"{what} of {count_text(average['count'] or 1, 'weight set')}"
    if average["steps"]:
        held += f", steps {min(average['steps']):,} to {max(average['steps']):,}"
    if "profile" in average:
        held += f"; {_error_text(content)}"
    terminal.answer(f"{out}: {held}; BatchNorm {batchnorm}; {next_command}")
    return {
        "command": command,
        "checkpoint": str(out),
        "run": open.run_of(out),
        **{key: content[key] for key in ("average", "batchnorm", "batchnorm_method", "samples")},
        "seconds": round(time.monotonic() - started, 3),
    }
