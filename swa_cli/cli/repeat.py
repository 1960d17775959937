"""`swa repeat`: run a recipe with several seeds and report them together."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from swa_cli.cli.shared import Changes, Json, Quiet, Recipe, answer, exit_codes, importing, root_change
from swa_cli.errors import UserError

if TYPE_CHECKING:
    from swa_cli.recipe.load import Loaded

EPILOG = f"""\b
Examples:
  swa repeat digits --seeds 0-4
  swa repeat digits --seeds 0-4 --against baseline
  swa repeat recipe.yaml --seeds 0-2,7 --against other.yaml swa.start=60%
  swa repeat recipe.yaml --seeds 0-9 --dry-run

{exit_codes(way_on="the same command")}"""

MAX_SEEDS = 1000
LARGEST_SEED = 2**63 - 1


def repeat(
    recipe: Recipe,
    seeds: Annotated[str, typer.Option("--seeds", metavar="SEEDS", help="At least two: 0-4, or 0,3,7, or 0-2,5.")],
    changes: Changes = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Folder for the repeat folders (output.root).")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="baseline|RECIPE",
            help="Also run this with the same seeds and compare pairwise; baseline: the recipe without averaging.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Print the plan and the seeds to run, make no run.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a recipe with several seeds: means, spreads, and whether averaging helped.

    Each seed is an ordinary run in a folder of the repeat. The same command continues after a stop, and with more
    seeds it runs only the missing ones; given again in another terminal, or on another machine that sees the folder, it
    shares them. A changed recipe gets a new folder. The baseline has the same model, data, seeds and epochs, no
    averaging, and a learning rate that decays over the whole run. Another recipe takes only changes that its result
    does not depend on, such as dataset.root.
    """
    wanted = parse_seeds(seeds)
    overrides = list(changes or [])
    for word in overrides:
        if word.partition("=")[0].strip() == "seed":
            raise UserError(f"{word}: --seeds sets the seeds of a repeat", hint="leave it out")
    overrides += root_change(out)
    from swa_cli.checkpoint.run_folder import RESUMABLE_KEYS
    from swa_cli.recipe import load
    from swa_cli.recipe.variants import BASELINE
    from swa_cli.report.terminal import Terminal

    loaded = load.load(recipe, overrides)
    other: Loaded | str | None = against
    if against is not None and against != BASELINE:
        other = load.load(against, [word for word in overrides if load.is_among(word, RESUMABLE_KEYS)])
    with importing():
        from swa_cli.analysis import repeat as repeating

    terminal = Terminal(quiet=quiet, json=as_json)
    result = repeating.repeat(loaded, wanted, terminal=terminal, against=other, dry_run=dry_run)
    answer(result, as_json=as_json)


def parse_seeds(text: str) -> list[int]:
    """Parse `0-2,5` to [0, 1, 2, 5], in ascending order.

    Raises:
        UserError: It does not name at least two different seeds.
    """
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,19})(?:-([0-9]{1,19}))?\s*", part)
        if match is None:
            raise _refused(text, f"`{part}` is neither a seed nor a range of seeds")
        first, last = int(match[1]), int(match[2] or match[1])
        if first > last:
            raise _refused(text, f"{first} to {last} counts down", hint=f"write {last}-{first}")
        if last > LARGEST_SEED:
            raise _refused(text, f"{last} is too large for a seed")
        if len(found) + last - first >= MAX_SEEDS:
            raise _refused(text, f"more than {MAX_SEEDS:,} seeds")
        found += range(first, last + 1)
    twice = [seed for seed in sorted(set(found)) if found.count(seed) > 1]
    if twice:
        raise _refused(text, f"seed {twice[0]} is named twice")
    if len(found) < 2:
        raise _refused(text, "one seed has no spread", hint="name at least two, such as 0-2; `swa train` runs one")
    return sorted(found)


def _refused(
    text: str, reason: str, *, hint: str = "write a range or a list, such as 0-4 or 0,3,7 or 0-2,5"
) -> UserError:
    return UserError(f"--seeds {text}: {reason}", hint=hint)
