"""`swa report`: write one page about runs, repeats and sweeps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from swa_cli import __version__
from swa_cli.cli.shared import EXIT_CODES, AllowCode, Json, Quiet, answer, importing

EPILOG = f"""\b
Examples:
  swa report runs/latest -o report.html
  swa report runs/latest --plane -o report.html
  swa report runs/a-repeat-001 runs/b-repeat-001 -o both.html
  swa report runs/* --no-data -o all.html
  swa report runs/latest --no-data -o quick.html

{EXIT_CODES}"""


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN|REPEAT|SWEEP...", help="Folders.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The .html file to write.")] = Path(
        "report.html"
    ),
    plane: Annotated[
        bool, typer.Option("--plane", help="Measure the plane of `swa plot RUN plane` where it is missing.")
    ] = False,
    no_data: Annotated[
        bool, typer.Option("--no-data", help="Open no data, and leave out calibration and confusion.")
    ] = False,
    allow_code: AllowCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write one self-contained HTML page about runs: scores, curves, pictures, recipe, versions.

    It works offline and alone. Several runs have one table, as `swa compare` shows it, and one picture of their curves.
    """
    if plane and no_data:
        raise typer.BadParameter("--plane needs the data: leave out --no-data")
    with importing():
        from swa_cli.analysis.report import write_page
    from swa_cli.report.terminal import Terminal

    result = write_page(
        runs,
        out=out,
        version=__version__,
        terminal=Terminal(quiet=quiet, json=as_json),
        with_plane=plane,
        with_data=not no_data,
        allow_code=allow_code,
    )
    answer(result, as_json=as_json)
