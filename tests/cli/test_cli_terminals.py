"""`swa train` where people run it: on terminals of two widths, without colours, dumb, in notebooks, in a pipe.

The oracle of each session is the same run in a pipe, whose lines are known to fit (test_report_terminal): what stands
on the terminal at the end has to be these lines, and while it runs nothing else but one live bar below them.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import rich.console
import torch
from torchvision.utils import save_image

from sessions import record

WORDS = ["train.precision=fp32"]  # the plan says nothing that was measured
BAR = re.compile(r"(trying a step|epoch \d+|scoring \w+|BatchNorm of \w+) .*")
TIME = re.compile(r"\d+(\.\d)? s\b")
CURSOR = re.compile(rb"\x1b\[[\d;]*[A-HJKf]|\x1b\[\?|\r(?!\n)")  # what moves it, hides it or clears a line
COLOUR = re.compile(rb"\x1b\[(\d+;)*[34]\d(;\d+)*m")


def said(lines: list[str]) -> list[str]:
    """Lines without what differs from run to run: times, and the spaces before them."""
    return [" ".join(TIME.sub("TIME", line).split()) for line in lines if line.strip()]


def on_screen(lines: list[str], *, columns: int) -> list[str]:
    """Lines as a terminal shows them: only a path or a command that is wider than its place goes on below."""
    long = [line for line in lines if len(line) > columns]
    assert all(("/" in line and len(line.split()) <= 2) or "  swa " in line for line in long), long
    return [line[start : start + columns] for line in lines for start in range(0, len(line) or 1, columns)]


@pytest.fixture(scope="module")
def piped() -> dict[int, list[str]]:
    """Width to the lines of the run in a pipe, once they are known."""
    return {}


@pytest.mark.parametrize(
    ("columns", "environment", "never"),
    [
        pytest.param(80, {}, None, id="80"),
        pytest.param(40, {}, None, id="40"),
        pytest.param(80, {"NO_COLOR": "1"}, COLOUR, id="no-color"),
        pytest.param(80, {"TERM": "dumb"}, CURSOR, id="dumb"),
        pytest.param(80, {"JPY_PARENT_PID": "1"}, CURSOR, id="notebook-cell"),
    ],
)
def test_no_row_is_wrapped_or_torn(
    swa,
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    piped: dict[int, list[str]],
    columns: int,
    environment: dict[str, str],
    never: re.Pattern[bytes] | None,
) -> None:
    """The screen after the run against the lines of a pipe; at any time only these, begun or whole, and one bar.

    Without colours none is set; a dumb terminal and the cell of a notebook, which cannot move the cursor, never do.
    """
    if columns not in piped:
        monkeypatch.setenv("COLUMNS", str(columns))
        ended = swa("train", recipe, "-o", "pipe", *WORDS)  # a path as long as that of the session wraps as it does
        assert "\x1b" not in ended.out + ended.err
        lines = (ended.err + ended.out).replace("pipe/", "live/").splitlines()
        piped[columns] = said(on_screen(lines, columns=columns))
    session = record(tmp_path, ["train", "small.yaml", "-o", "live", *WORDS], columns=columns, environment=environment)
    assert session.code == 0
    assert said(session.lines) == piped[columns]
    for screen in session.screens():
        others = [line for line in said(screen) if not any(known.startswith(line) for known in piped[columns])]
        assert len(others) <= 1, others
        assert all(BAR.fullmatch(line) for line in others), others
    if never is not None:
        assert not never.search(session.raw)
    elif columns == 80:
        assert b"images/s" in session.raw
        assert COLOUR.search(session.raw)
        assert CURSOR.search(session.raw)


def test_a_kernel_gets_plain_rows(swa, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where rich finds itself in Jupyter: the rows of a pipe as text on stderr, and no page of HTML."""
    plain = swa("train", recipe, "-o", "in-pipe", *WORDS)
    monkeypatch.setattr(rich.console, "_is_jupyter", lambda: True)
    kernel = swa("train", recipe, "-o", "in-cell", *WORDS)
    assert kernel.code == 0
    assert said(kernel.err.replace("in-cell/", "in-pipe/").splitlines()) == said(plain.err.splitlines())
    assert kernel.out.replace("in-cell/", "in-pipe/") == plain.out


def test_predictions_stand_above_the_bar(swa, recipe: Path, tmp_path: Path) -> None:
    """`swa predict` of photos and a broken one, in batches: the screen at the end has a line for each, and no bar."""
    assert swa("train", recipe, "-q", "-o", "runs", "train.epochs=1", "swa=null").code == 0
    (tmp_path / "photos").mkdir()
    for index in range(6):
        save_image(torch.full((3, 8, 8), index / 6), tmp_path / f"photos/{index}.png")
    (tmp_path / "photos/3.png").write_bytes(b"")
    session = record(tmp_path, ["predict", "runs/small-001", "photos", "--batch-size", "2"], columns=80)
    assert session.code == 0, session.lines
    assert b"predicting" in session.raw
    rows = [line.split()[0] for line in session.lines if "photos/" in line]
    assert rows == ["photos/0.png", "photos/1.png", "warning:", "photos/2.png", "photos/4.png", "photos/5.png"]
    assert not any("predicting" in line for line in session.lines)


@pytest.mark.parametrize("columns", [80, 40])
def test_paths_in_any_script(tmp_path: Path, columns: int) -> None:
    """Data and runs under names of wide and of accented letters: the path whole in the title, each row in its place."""
    generator = torch.Generator().manual_seed(0)
    for split, number in (("train", 8), ("test", 2)):
        for label in ("ä", "图"):
            folder = tmp_path / "dätä/图像" / split / label
            folder.mkdir(parents=True)
            for index in range(number):
                save_image(torch.rand(3, 8, 8, generator=generator), folder / f"é{index}.png")
    (tmp_path / "r.yaml").write_text(
        "name: wide\nmodel: {name: convnet, args: {width: 4}}\ndataset: {name: image_folder, root: dätä/图像, val: 0}\n"
        "optimizer: {lr: 0.1}\nswa: {start: 0%}\n"
        "train: {epochs: 3, batch_size: 8, threads: 1, precision: fp32}\n"
    )
    session = record(tmp_path, ["train", "r.yaml", "-o", "läufe/走"], columns=columns)
    assert session.code == 0, session.lines
    assert (tmp_path / "läufe/走/wide-001/result.json").is_file()
    assert "wide -> läufe/走/wide-001" in session.lines
    rows = [line for line in session.lines if re.match(r" +\d+ +[\d.]", line)]
    assert [int(row.split()[0]) for row in rows] == [1, 2, 3]
    assert len({len(row) for row in rows}) == 1
