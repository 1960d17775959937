"""Finish a sweep: repeat the best trials with several seeds, write the best recipe, and say what was found.

Nothing here reads a score of test images: trials are compared on validation images alone.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from swa_cli import units
from swa_cli.analysis import sweep_metric, sweep_table
from swa_cli.analysis.repeat import repeat
from swa_cli.analysis.sweep_study import COMPLETE, Record, best_of
from swa_cli.analysis.sweep_trials import Sweep, is_of_disk, reason_of
from swa_cli.checkpoint.run_folder import RunFolder
from swa_cli.engine import user_code
from swa_cli.errors import EXIT_FAILED, UserError
from swa_cli.recipe import load
from swa_cli.recipe.load import Loaded
from swa_cli.report.terminal import Terminal
from swa_cli.units import count_text

BEST = "best.yaml"
SEEDS = "seeds"  # the folder of the repeats
SHOWN = 10  # trials in the last table


def finish(sweep: Sweep, *, seeds: Sequence[int], top: int, terminal: Terminal) -> dict[str, Any]:
    """Write best.yaml and result.json, print the best trials and the next commands, and return result.json.

    With `seeds`, the `top` best are repeated, and the one with the best mean over the seeds is the best.

    Raises:
        UserError: No trial has succeeded.
    """
    records, folder, lower = sweep.records(), sweep.folder, sweep.settings.is_lower_better
    best = best_of(records, is_lower_better=lower)
    if not best:
        reasons = sorted({record.reason for record in records if record.reason})
        message = "; ".join([f"{folder.display_path}: no trial is complete", *reasons[:3]])
        hint = f"correct that, and {sweep.how_to_begin_anew}" if sweep.is_finished else "run the same command again"
        raise UserError(message, hint=hint, exit_code=EXIT_FAILED)
    over_seeds: dict[int, list[float]] = {}
    if seeds:
        over_seeds = _repeat_all(sweep, best[:top], seeds, terminal=terminal)
    chosen = best[0]
    if over_seeds:
        means = {number: statistics.fmean(values) for number, values in over_seeds.items()}
        number = (min if lower else max)(means, key=lambda number: means[number])
        chosen = next(record for record in best if record.number == number)
    folder.write_text(BEST, load.dump(sweep.recipe_of(chosen.texts).recipe))
    answer = _answer(sweep, records, chosen, seeds=seeds, over_seeds=over_seeds)
    folder.write_json(folder.result.name, answer)
    _print(sweep, records, best, chosen, over_seeds, terminal=terminal)
    return answer


def share_repeats(sweep: Sweep, best: Sequence[Record], *, seeds: Sequence[int], terminal: Terminal) -> list[Record]:
    """Run the seeds of trials that are not finished and that no other process works on.

    Returns:
        The trials of which no seed has failed here.
    """
    found = []
    with terminal.progress(f"the best {len(best)} with {len(seeds)} seeds", len(best)) as bar:
        for record in best:
            if _repeat(sweep, record, seeds, terminal=terminal, waits=False) is not None:
                found.append(record)
            bar.advance()
    return found


def _repeat_all(
    sweep: Sweep, best: Sequence[Record], seeds: Sequence[int], *, terminal: Terminal
) -> dict[int, list[float]]:
    """Repeat trials with several seeds; return the final values of each trial, seed by seed.

    Other processes at the end of the same sweep share the seeds; this one waits for them when nothing else is left.
    """
    found = {}
    for record in share_repeats(sweep, best, seeds=seeds, terminal=terminal):
        own = _repeat(sweep, record, seeds, terminal=terminal, waits=True)
        if own is None:
            continue
        values = []
        for seed in seeds:
            result = json.loads(RunFolder(_folder(sweep, record) / f"seed-{seed}").result.read_text())
            value = sweep_metric.final_value(result, sweep.settings.metric, own.recipe, sweep.metrics)
            values += [] if value is None else [value]
        if len(values) == len(seeds):
            found[record.number] = values
        else:
            terminal.warning(f"trial {record.number} has no finite {sweep.settings.metric} with some seed")
    return found


def _repeat(sweep: Sweep, record: Record, seeds: Sequence[int], *, terminal: Terminal, waits: bool) -> Loaded | None:
    """Repeat a trial; return its recipe, or None if a seed fails, such as one that diverges."""
    own = sweep.recipe_of(record.texts)
    try:
        repeat(own, seeds, terminal=terminal.part(quiet=True), at=_folder(sweep, record), waits=waits)
    except Exception as error:  # whatever ended this trial, others may do better
        if is_of_disk(error):
            raise
        terminal.warning(f"trial {record.number} is left out of the repeats: {reason_of(error)}")
        return None
    return own


def _folder(sweep: Sweep, record: Record) -> Path:
    """Return the folder of the repeat of a trial."""
    return sweep.folder.path / SEEDS / record.name


def _answer(
    sweep: Sweep, records: Sequence[Record], chosen: Record, *, seeds: Sequence[int], over_seeds: dict[int, list[float]]
) -> dict[str, Any]:
    """Return the content of result.json; paths are relative to the folder of the sweep, but for `run`."""
    values = sweep.settings.values
    repeats = [
        {
            "number": number,
            "run": f"{SEEDS}/trial-{number:03d}",
            "values": found,
            "mean": statistics.fmean(found),
            "sd": statistics.stdev(found) if len(found) > 1 else None,
        }
        for number, found in over_seeds.items()
    ]
    return {
        "command": "sweep",
        "run": str(sweep.folder.path.resolve()),
        "split": "val",
        **{key: values[key] for key in ("metric", "direction", "sampler", "pruner", "space")},
        "finished": sweep.is_finished,
        "trials": [record.values for record in records],
        "best": {"number": chosen.number, "params": chosen.texts, "value": chosen.value, "recipe": BEST},
        "seeds": list(seeds),
        "repeats": repeats,
        "importances": sweep.study.importances(),
        "seconds": round(sum(record.seconds or 0.0 for record in records), 3),
    }


def _print(
    sweep: Sweep,
    records: Sequence[Record],
    best: Sequence[Record],
    chosen: Record,
    over_seeds: dict[int, list[float]],
    *,
    terminal: Terminal,
) -> None:
    states = [record.state for record in records]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys([COMPLETE, *states]))
    terminal.facts("", [("trials", f"{counts}; scored on validation images")])
    sweep_table.print_best(best[:SHOWN], sweep.settings, sweep.metrics, seeds=over_seeds, terminal=terminal)
    if len(best) > SHOWN:
        terminal.answer(f"and {count_text(len(best) - SHOWN, 'more trial')} in {sweep.folder.result.name}")
    path = sweep.folder.display_path
    own = sweep.loaded.recipe
    page = user_code.command(("swa", "report", path, "-o", "report.html"), own)
    looking = [units.command(("swa", "compare", path)), page]
    has_trials = any((path / record.name).is_dir() for record in records)  # another machine may have run them all
    again = ("swa", "train", path / BEST) if over_seeds else ("swa", "repeat", path / BEST, "--seeds", "0-4")
    why = "the best mean over the seeds" if over_seeds else "the best on validation images"
    terminal.facts(
        "",
        [
            ("best", f"{path / BEST}: trial {chosen.number}, {why}"),
            ("next", units.command(again)),
            *(("", command) for command in looking if has_trials),
            ("", user_code.command(("swa", "plot", path, "sweep"), own)),
        ],
    )
