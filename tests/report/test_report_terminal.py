"""What a person sees, held against DESIGN's look, the width of the page and the absence of control codes."""

from __future__ import annotations

import io
import itertools
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

import pytest
from rich.cells import cell_len
from rich.text import Text

from swa_cli.report.console_text import Column, hanging, open_console, table
from swa_cli.report.scores import ensemble_summary, verdict
from swa_cli.report.terminal import Terminal

DESIGN_ROWS = """
epoch       lr  train loss  train acc  val loss  val acc  SWA acc    n    time
   22   0.0500       0.389      86.61     0.420    85.90        ·    ·    12 s
"""
ROW: dict[str, Any] = {
    "epoch": 22,
    "step": 7722,
    "lr": 0.05,
    "train_loss": 0.389,
    "train_accuracy": 0.8661,
    "val_loss": 0.42,
    "val_accuracy": 0.859,
    "swa_val_loss": None,
    "swa_val_accuracy": None,
    "swa_count": None,
    "seconds": 12.0,
}
NAMES = ["swa", "ema", "latest", "a_rather_long_name_for_an_average"]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of 80 cells, whatever terminal the tests run on."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")


def scores_of(**differences: float) -> dict[str, dict[str, Any]]:
    """`last` at 91.6 % and 0.233, `swa` at the given differences from it, which is its reference."""
    last: dict[str, Any] = {
        "accuracy": 0.916,
        "accuracy_se": 0.0028,
        "top5": None,
        "nll": 0.233,
        "nll_se": 0.004,
    }
    last |= {"ece": 0.021, "brier": 0.13, "count": None, "batchnorm": "recomputed"}
    swa = last | {"accuracy": 0.916 + differences["accuracy_diff"], "nll": 0.233 + differences["nll_diff"]}
    return {"last": last, "swa": swa | {"count": 40, "reference": "last"} | differences}


NAN = float("nan")
HELPED = scores_of(accuracy_diff=0.017, accuracy_diff_se=0.002, nll_diff=-0.043, nll_diff_se=0.003)


def say_everything(terminal: Terminal) -> None:
    """Use every voice of a terminal once."""
    terminal.plan(
        "digits -> runs/digits-001",
        [("data", "cifar10: 45,000 train, 5,000 val, 10,000 test; crop 4, flip"), ("averaging", "swa " * 50)],
        warnings=["only 3 weights"],
    )
    terminal.note("resumed")
    terminal.answer("recomputed")
    terminal.epoch_header(["swa"])
    with terminal.progress("epoch 22", 2, unit=128) as bar:
        bar.advance(loss=0.4)
    terminal.epoch_row(ROW)
    terminal.summary(HELPED, split="test", samples=10_000)


def test_the_rows_are_those_of_the_design(capsys: pytest.CaptureFixture[str]) -> None:
    """Header and row against the block in DESIGN 7, to the character."""
    terminal = Terminal()
    terminal.epoch_header(["swa"])
    terminal.epoch_row(ROW)
    assert capsys.readouterr().err == DESIGN_ROWS


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("num_averages", [0, 1, 2, 4])
def test_every_row_fits_its_page(
    width: int, num_averages: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line a row, no wider than the page, also with the widest numbers, against the width set."""
    monkeypatch.setenv("COLUMNS", str(width))
    names = NAMES[:num_averages]
    widest = {"epoch": 99999, "lr": 1.25e-12, "train_loss": -1.234e30, "val_loss": 9999.9994, "seconds": 35e4}
    widest |= {"train_accuracy": 1.0, "val_accuracy": 1.0}
    for name in names:
        widest |= {f"{name}_val_accuracy": 1.0, f"{name}_count": 123_456_789}
    empty = {"epoch": 1} | dict.fromkeys(set(ROW) - {"epoch"})
    terminal = Terminal()
    terminal.epoch_header(names)
    for row in (widest, empty, {"epoch": 2}):
        terminal.epoch_row(row)
    blank, *lines = capsys.readouterr().err.splitlines()
    assert blank == ""
    assert len(lines) == 4
    assert all(cell_len(line) <= width for line in lines)
    shown = lines[0].count(" acc") - lines[0].count("train acc") - lines[0].count("val acc")
    hidden = re.search(r"\+(\d+) more", lines[0])
    assert shown + (int(hidden[1]) if hidden else 0) == num_averages
    assert shown >= min(num_averages, 1)


def test_numbers_stand_under_their_headings(capsys: pytest.CaptureFixture[str]) -> None:
    """With many averages each number ends in the column where its heading ends."""
    terminal = Terminal()
    terminal.epoch_header(["swa", "ema"])
    terminal.epoch_row({**ROW, "swa_val_accuracy": 0.9123, "ema_val_accuracy": 0.8765, "swa_count": 10_530})
    _, header, row = capsys.readouterr().err.splitlines()
    for heading, cell in (("val acc", "85.90"), ("SWA acc", "91.23"), ("EMA acc", "87.65"), (" n", " 10k")):
        end = header.index(heading) + len(heading)
        assert row[:end].endswith(cell)


CURVE = [{"members": number, "accuracy": 0.9 + number / 1000, "nll": 0.3 - number / 100} for number in (1, 2, 3)]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_curve_of_an_ensemble_fits_its_page(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cost and a row for each number of members on stdout alone, against the width set and the numbers by hand."""
    monkeypatch.setenv("COLUMNS", str(width))
    Terminal().print(ensemble_summary(CURVE))
    out, err = capsys.readouterr()
    assert err.strip() == ""
    lines = out.splitlines()
    assert all(cell_len(line) <= width for line in lines)
    rows = [line.split() for line in lines[-3:]]
    assert rows == [["1", "90.10", "0.290"], ["2", "90.20", "0.280"], ["3", "90.30", "0.270"]]
    assert "3 forward passes per image" in " ".join(out.split())
    Terminal(json=True).print(ensemble_summary(CURVE))
    assert capsys.readouterr().out == ""


def test_an_ensemble_is_judged_in_its_own_word(capsys: pytest.CaptureFixture[str]) -> None:
    """The verdict and the column n of an ensemble against those of an average."""
    scores = {"last": HELPED["last"], "ensemble": {**HELPED["swa"], "count": None, "members": 6}}
    Terminal().summary(scores, split="test", samples=10_000)
    out = capsys.readouterr().out
    assert "ensemble vs last: ensembling helped" in out
    row = next(line for line in out.splitlines() if line.startswith("ensemble "))
    assert row.split()[-2] == "6"


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_summary_fits_its_page(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Table, title and verdict on stdout alone, against the width set."""
    monkeypatch.setenv("COLUMNS", str(width))
    scores = {name: {**values, "top5": 1.0} for name, values in HELPED.items()}
    Terminal().summary(scores, split="test", samples=10_000)
    out, err = capsys.readouterr()
    assert err.strip() == ""
    assert all(cell_len(line) <= width for line in out.splitlines())
    assert "93.30 ± 0.28" in out
    assert "+1.70 ± 0.20" in out
    assert "−0.043 ± 0.003" in out
    assert ("recomputed" in out) == ("100.00" in out) == ("Brier" in out) == (width >= 80)


def test_a_single_weight_set_has_no_difference(capsys: pytest.CaptureFixture[str]) -> None:
    """Scores without a `last` beside them: a table of one line under its title and headings, no verdict."""
    Terminal().summary({"swa": HELPED["last"]}, split="val", samples=360)
    title, headings, *lines = capsys.readouterr().out.splitlines()
    assert title == "val: 360 samples (± one standard error)"
    assert "top-5" not in headings
    assert len(lines) == 1


def test_piped_output_has_no_control_codes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything a command says, on pipes, against the set of printable characters; no bar, no colour."""
    say_everything(Terminal())
    out, err = capsys.readouterr()
    assert (out + err).replace("\n", "").isprintable()
    assert "images/s" not in err
    assert "averaging helped" in out


def test_a_command_in_a_sentence_stays_on_one_line() -> None:
    """Commands longer than the rest of a line, or than a line, against the text: each can be pasted as it stands."""
    short = "`swa bn-update runs/digits-001/checkpoints/last.pt --recipe mine.yaml -o a.pt`"
    long = f"`swa eval {'x' * 60}.pt --weights swa_recomputed --recipe recipes/digits.yaml`"
    text = f"the statistics of these weights are stale: run {short} or {long}, or insist with --allow-stale-bn"
    console = open_console(io.StringIO(), width=80)
    lines = [line.plain for line in hanging(Text(), text, console=console)]
    assert [line.strip() for line in lines] == text.replace(
        f"run {short} or {long}, or", f"run\n{short}\nor\n{long},\nor"
    ).split("\n")


@pytest.mark.parametrize("text", ["libfoo: it said `foo' there, " * 8, "a ` b `c d` e " * 12], ids=["odd", "even"])
def test_a_lone_backtick_wraps_as_other_characters_do(text: str) -> None:
    """Texts of other programs, against the width of the page and their words."""
    console = open_console(io.StringIO(), width=80)
    lines = [line.plain for line in hanging(Text(), text.strip(), console=console)]
    assert max(map(len, lines)) <= 80
    assert " ".join(" ".join(lines).split()) == text.strip()


@pytest.mark.parametrize("text", ["[red]x[/red]", "[/]", ":smile:", "\x1b[31mx\x1b[0m", "a\rb\x07\x9b2J\u202ec"])
def test_names_are_printed_literally(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Markup and control codes in names, against their printable characters, which are shown as they are."""
    terminal = Terminal()
    terminal.plan(text, [(text, text)], warnings=[text])
    terminal.note(text)
    terminal.epoch_header([text])
    terminal.epoch_row({**ROW, f"{text}_val_accuracy": 0.5})
    terminal.summary({"last": HELPED["last"], text: HELPED["swa"]}, split=text, samples=1)
    out, err = capsys.readouterr()
    assert (out + err).replace("\n", "").isprintable()
    literal = "".join(char for char in text if char.isprintable())
    for written in (out, err):
        assert literal in "".join(char for char in written if char not in " \N{REPLACEMENT CHARACTER}")


def test_a_poor_encoding_is_spelled_out() -> None:
    """An ASCII pipe gets the same block with `.` and `+-`, not an error, against plain ASCII."""
    code = (
        "from swa_cli.report.terminal import Terminal; t = Terminal(); t.note('naïve ± · −'); "
        "t.epoch_header(['swa']); t.epoch_row({'epoch': 1})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONIOENCODING": "ascii:strict"},
        capture_output=True,
        check=True,
    )
    assert done.stderr.decode("ascii").startswith("na?ve +- . -\n")


def test_the_log_holds_what_was_said_before_it_was_attached(capsys: pytest.CaptureFixture[str]) -> None:
    """A log attached late, under a quiet terminal with colours forced, against what a pipe shows after the time."""
    before = time.strptime(time.strftime("%Y-%m-%d %H:%M:%S"), "%Y-%m-%d %H:%M:%S")
    log = io.StringIO()
    terminal = Terminal(quiet=True)
    terminal.note("first")
    terminal.attach_log(log)
    say_everything(terminal)
    out, err = capsys.readouterr()
    times = [line[:21] for line in log.getvalue().splitlines() if line]
    said = "".join(f"{line[21:]}\n" for line in log.getvalue().splitlines())
    assert said.startswith("first\ndigits -> runs/digits-001\n")
    assert DESIGN_ROWS in said
    assert "averaging helped" in said
    assert "\x1b" not in log.getvalue()
    assert err == "warning: only 3 weights\n"
    assert "averaging helped" in out
    stamped = [time.strptime(each, "%Y-%m-%d %H:%M:%S  ") for each in times if each.strip()]
    assert len(stamped) > 5
    assert all(before <= each <= time.localtime() for each in stamped)
    assert times[0].strip()


def test_json_keeps_stdout_free(capsys: pytest.CaptureFixture[str]) -> None:
    """With `json` nothing is on stdout, and the table is part of the conversation."""
    say_everything(Terminal(json=True))
    out, err = capsys.readouterr()
    assert out == ""
    assert "93.30 ± 0.28" in err


@pytest.mark.parametrize(
    ("accuracy", "nll", "words"),
    [
        ((0.017, 0.002), (-0.043, 0.003), "averaging helped ("),
        ((0.001, 0.002), (-0.043, 0.003), "averaging helped ("),
        ((0.001, 0.002), (-0.001, 0.003), "no clear difference ("),
        ((0.004, 0.002), (-0.006, 0.003), "no clear difference ("),  # exactly two standard errors
        ((-0.017, 0.002), (0.001, 0.003), "averaging did not help ("),
        ((-0.001, 0.002), (0.043, 0.003), "averaging did not help ("),
        ((0.017, 0.002), (0.043, 0.003), "mixed result ("),
        ((0.0, 0.0), (0.0, 0.0), "no clear difference ("),
        ((0.017, 0.002), (NAN, NAN), "no comparison: the scores are not finite"),
        ((NAN, NAN), (-0.043, 0.003), "averaging helped (accuracy ·; NLL −0.043 ± 0.003, better)"),
        ((0.017, NAN), (-0.043, 0.003), "averaging helped (accuracy +1.70 ± ·; NLL −0.043 ± 0.003, better)"),
        ((0.017, 0.002), (-0.043, NAN), "averaging helped (accuracy +1.70 ± 0.20, better; NLL −0.043 ± ·)"),
        ((0.017, NAN), (-0.043, NAN), "no comparison: there are too few samples"),
    ],
)
def test_the_verdict_is_plain(accuracy: tuple[float, float], nll: tuple[float, float], words: str) -> None:
    """The verdict against two paired standard errors on either side, in accuracy and in NLL."""
    scores = scores_of(accuracy_diff=accuracy[0], accuracy_diff_se=accuracy[1], nll_diff=nll[0], nll_diff_se=nll[1])
    (sentence,) = verdict(scores)
    assert sentence.startswith(f"swa vs last: {words}")


def test_the_verdict_gives_its_figures() -> None:
    """One whole sentence, against one written by hand."""
    assert verdict(HELPED) == [
        "swa vs last: averaging helped (accuracy +1.70 ± 0.20, better; NLL −0.043 ± 0.003, better)"
    ]
    without_reference = {key: value for key, value in HELPED["swa"].items() if key != "reference"}
    assert verdict({"last": HELPED["last"], "swa": without_reference}) == []


TWO_EPOCHS = """
import time
from swa_cli.engine.events import Events
from swa_cli.report.terminal import Terminal
terminal = Terminal()
terminal.epoch_header(["swa"])
for epoch in (1, 2):
    with terminal.progress(f"working {epoch}", 2, unit=128) as bar:
        bar.advance(loss=0.25)
        terminal.note("said meanwhile")
        bar.advance()
    terminal.epoch_row({"epoch": epoch})
with Events([terminal]).loading() as report:
    report("reading", 1, 2)
    report("reading", 2, 2)
"""
ANSWERS = """
from swa_cli.report.console_text import Column
from swa_cli.report.terminal import Terminal
terminal = Terminal()
with terminal.progress("working", 4) as bar:
    for number in range(3):
        bar.advance()
        terminal.rows([Column("a", "head", 6, rank=0)], [{"a": str(number)}], head=not number)
        terminal.part(quiet=True).warning(f"in part {number}")
        print("of user code", number)
        with terminal.part().progress("within", 2) as inner:
            inner.advance()
            terminal.part(quiet=True).warning(f"within {number}")
terminal.answer("the end")
"""


def on_a_terminal(code: str = TWO_EPOCHS, *, out: IO[str] | None = None, **environment: str) -> str:
    """What a pseudo-terminal receives while code shows a live bar; `out` is another place for its stdout."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=out or theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80"} | environment,
    )
    os.close(theirs)
    received = b""
    with os.fdopen(ours, "rb", buffering=0) as stream:
        try:
            while chunk := stream.read(65536):
                received += chunk
        except OSError:  # Linux says so when the other side has closed
            pass
    assert process.wait() == 0, received.decode()
    return received.decode()


def test_a_live_bar_outlives_its_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The window is closed while a bar is shown (EIO): work and bar go on to their end, and the log says so once."""
    monkeypatch.setenv("TERM", "xterm")
    ours, theirs = pty.openpty()
    log, done = io.StringIO(), 0
    with os.fdopen(theirs, "w", buffering=1) as file:
        monkeypatch.setattr(sys, "stderr", file)
        terminal = Terminal()
        terminal.attach_log(log)
        with terminal.progress("work", 3) as bar:
            os.close(ours)
            for _ in range(3):
                terminal.note("a part is done")
                bar.advance()
                done += 1
    assert done == 3
    assert log.getvalue().count("a part is done") == 3
    assert log.getvalue().count("warning:") == 1


def screen_of(received: str) -> list[str]:
    """The lines that stay on a screen: carriage return, erase line and cursor up, as a terminal does them."""
    lines, row, column = [""], 0, 0
    for code, char in re.findall(r"\x1b\[([?\d;]*[A-Za-z])|([\s\S])", received):
        if code == "2K":
            lines[row] = ""
        elif code.endswith("A"):
            row = max(row - int(code[:-1] or 1), 0)
        elif char == "\r":
            column = 0
        elif char == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif char:
            lines[row] = lines[row][:column].ljust(column) + char + lines[row][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines]


def test_rows_stand_above_the_bar_and_the_bar_leaves_no_trace() -> None:
    """A real terminal's final screen, against the permanent lines alone; the bar was there meanwhile."""
    received = on_a_terminal()
    assert "working 1" in received
    assert "loss 0.250" in received
    assert "images/s" in received
    first, second = (f"    {epoch}" + "        ·" for epoch in (1, 2))
    screen = [line for line in screen_of(received) if line]
    assert [line[:14] for line in screen] == [
        "epoch       lr",
        "said meanwhile",
        first,
        "said meanwhile",
        second,
    ]


SAID = (
    ["head", "0", "1", "2", "the end"],
    [f"{said}{number}" for number in range(3) for said in ("warning: in part ", "of user code ", "warning: within ")],
)


def test_answers_and_parts_stand_above_the_bar_too() -> None:
    """Rows of the answer, warnings of a part, and a bar in a bar: the screen at the end has these lines, each alone."""
    received = on_a_terminal(ANSWERS)
    assert {"working", "within"} <= set(re.findall(r"working|within", received))
    said = [line.strip() for line in screen_of(received) if line.strip()]
    assert sorted(said) == sorted([*SAID[0], *SAID[1]])
    assert said[:4] == ["head", "0", *SAID[1][:2]]


@pytest.mark.parametrize("environment", [{}, {"FORCE_COLOR": "1"}])
def test_an_answer_that_goes_elsewhere_is_no_line_of_the_terminal(tmp_path: Path, environment: dict[str, str]) -> None:
    """The same with stdout in a file: it has the answer and what user code prints, and the terminal the warnings."""
    with open(tmp_path / "out", "w+") as out:
        received = on_a_terminal(ANSWERS, out=out, **environment)
        out.seek(0)
        answer = re.sub(r"\x1b\[\d+m", "", out.read()).splitlines()
    elsewhere = [line for line in SAID[1] if line.startswith("of user")]
    assert sorted(map(str.strip, answer)) == sorted([*SAID[0], *elsewhere])
    said = [line for line in screen_of(received) if line]
    assert said == [line for line in SAID[1] if line not in elsewhere]


def test_no_color_and_dumb_terminals_are_respected() -> None:
    """NO_COLOR on a real terminal: no colour code; TERM=dumb: no control code at all."""
    colours = re.compile(r"\x1b\[[\d;]*(3[0-7]|9[0-7]|38;[\d;]+)m")
    assert colours.search(on_a_terminal())
    assert not colours.search(on_a_terminal(NO_COLOR="1"))
    dumb = on_a_terminal(TERM="dumb")
    assert dumb.replace("\r\n", "").isprintable()
    assert "working" not in dumb


def test_the_room_needs_neither_torch_nor_typer() -> None:
    """A fresh interpreter that imports the room, against the modules it must not load."""
    code = (
        "import sys, swa_cli.report.terminal, swa_cli.report.errors, swa_cli.report.plots.curves; "
        "print(*{'torch', 'typer', 'matplotlib', 'rich.progress', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.strip() == ""


def test_durations_and_counts_stay_short(capsys: pytest.CaptureFixture[str]) -> None:
    """Times on either side of each change of unit, against values written by hand."""
    terminal = Terminal()
    terminal.epoch_header([])
    for seconds in (0.04, 9.94, 9.96, 59.4, 59.6, 3599.4, 3599.6, 360_000):
        terminal.epoch_row({"epoch": 1, "seconds": seconds})
    rows = itertools.islice(capsys.readouterr().err.splitlines(), 2, None)
    times = ["0.0 s", "9.9 s", "10 s", "59 s", "1m 00s", "59m 59s", "1h 00m", "100h 00m"]
    assert [row.rsplit("·", 1)[1].strip() for row in rows] == times


def test_columns_of_a_table_stay_apart() -> None:
    """Texts before and after numbers, and numbers wider than their column: the words of each line are its cells."""
    columns = [
        Column(key, key, width, rank=0, left=key in "ac") for key, width in zip("abcd", (4, 7, 6, 6), strict=True)
    ]
    rows = [{"a": "text", "b": "0.9643", "c": "dogs", "d": "1234567.1234"}, {"a": "t", "b": "1", "c": "d", "d": "2"}]
    lines = [line.plain for line in table(columns, rows)(open_console(io.StringIO()))]
    assert [line.split() for line in lines] == [list("abcd"), *([*row.values()] for row in rows)]
    assert lines[0].index("c") == lines[1].index("dogs") == lines[2].index("d")
