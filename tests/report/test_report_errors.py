"""Error blocks, held against the text of DESIGN 7."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len

from swa_cli.errors import Place, Problem
from swa_cli.report.errors import print_problems, print_user_error

MOMENTUN = Problem(
    "optimizer.momentun",
    "unknown key",
    "did you mean `optimizer.momentum`?",
    Place("recipes/bad.yaml", line=7, column=3, length=8, text="  momentun: 0.9"),
)
LRR = Problem(
    "optimizer.lrr",
    "unknown key",
    "did you mean `optimizer.lr`?",
    Place("command line: optimizer.lrr=0.2"),
)
DESIGN_BLOCK = """\
error: optimizer.momentun: unknown key
  --> recipes/bad.yaml:7:3
   |
  7|   momentun: 0.9
   |   ^^^^^^^^
   = hint: did you mean `optimizer.momentum`?
"""


def printed(*problems: Problem) -> str:
    """What a file gets."""
    file = io.StringIO()
    print_problems(problems, source="recipes/bad.yaml", file=file)
    return file.getvalue()


def test_problems_look_as_designed() -> None:
    """A key in a file and one on the command line, against DESIGN's block to the character."""
    assert printed(MOMENTUN, LRR) == DESIGN_BLOCK + (
        "\n"
        "error: optimizer.lrr: unknown key\n"
        "  --> command line: optimizer.lrr=0.2\n"
        "   = hint: did you mean `optimizer.lr`?\n"
        "\n"
        "2 problems in recipes/bad.yaml. Nothing was run.\n"
    )


def test_one_problem_is_singular() -> None:
    """The closing line of a single problem, against one written by hand."""
    assert printed(MOMENTUN) == DESIGN_BLOCK + "\n1 problem in recipes/bad.yaml. Nothing was run.\n"


def test_a_problem_without_a_place_has_no_arrow() -> None:
    """A cross-check that knows no place, and a whole file, against their blocks written by hand."""
    nowhere = Problem("swa.start", "after the end", "start earlier")
    whole_file = Problem("", "the recipe is empty", "write one", Place("recipes/bad.yaml"))
    assert printed(nowhere).startswith("error: swa.start: after the end\n   = hint: start earlier\n")
    assert printed(whole_file).startswith("error: the recipe is empty\n  --> recipes/bad.yaml\n   = hint: write one\n")


@pytest.mark.parametrize("text", ["  名前x: bad", "\t\tbad", "  [red]bad", "  \x1b[31mbad"])
def test_carets_stand_under_the_key(text: str) -> None:
    """Wide characters, tabs, markup and control codes before the key, against their cells on a screen."""
    column = text.index("bad") + 1
    place = Place("r.yaml", line=1234, column=column, length=3, text=text)
    block = printed(Problem("bad", "unknown key", "leave it out", place))
    assert block.replace("\n", "").isprintable()
    source, carets = block.splitlines()[3:5]
    assert cell_len(source[: source.index("bad")]) == carets.index("^^^")
    assert carets.endswith(" ^^^")


def test_carets_do_not_run_past_the_line() -> None:
    """A place longer than its line, or of no length, against the carets that fit."""
    for length, carets in ((99, "^^^"), (0, "^")):
        place = Place("r.yaml", line=1, column=3, length=length, text="a bad")
        lines = printed(Problem("bad", "unknown key", "leave it out", place)).splitlines()
        assert lines[4] == f"   |   {carets}"


def test_user_errors_are_two_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """One error on stderr, against text written by hand; long lines stay whole, later ones are indented."""
    path = "runs/" + "x" * 200
    print_user_error(f"no checkpoint {path}\nerror: [red]forged\x1b[0m", hint="look there")
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        f"error: no checkpoint {path}\n  error: [red]forged\N{REPLACEMENT CHARACTER}[0m\n  = hint: look there\n"
    )
