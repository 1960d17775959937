"""What a search tried: its table line by line, on wide and narrow pages, and its picture."""

from __future__ import annotations

import io
from typing import Any

import pytest

from swa_cli.report.console_text import open_console
from swa_cli.report.plots import curves
from swa_cli.report.scores import search_table


def row(
    start: int, end: int, nll: float, *, shape: str = "linear", half_life: int | None = None, chosen: bool = False
) -> dict[str, Any]:
    scores = {"accuracy": 0.9, "accuracy_se": 0.01, "nll": nll, "nll_se": 0.02}
    differences = {"accuracy_diff": 0.0, "accuracy_diff_se": 0.005, "nll_diff": nll - 0.25, "nll_diff_se": 0.004}
    window = {"start": start, "end": end, "count": end - start, "shape": shape, "half_life": half_life}
    return {**window, "mean_age": (end - start) / 2, **scores, **differences, "chosen": chosen}


ROWS = [
    row(100, 200, 0.27),
    row(0, 200, 0.3, shape="ema", half_life=35),
    row(100, 200, 0.26, shape="cosine"),
    row(100, 150, 0.25, chosen=True),
]


def table(rows: list[dict[str, Any]], width: int = 80) -> list[str]:
    console = open_console(io.StringIO())
    console.width = width
    return [line.plain for line in search_table(rows)(console)]


def test_windows_stand_in_the_order_of_their_starts() -> None:
    """Each line against the whole text that is expected, 80 columns wide."""
    assert table(ROWS) == [
        "--window              shape     n     accuracy %             NLL        − chosen",
        "0step:200step    ema 35step   200   90.00 ± 1.00   0.300 ± 0.020  +0.050 ± 0.004",
        "100step:150step      linear    50   90.00 ± 1.00   0.250 ± 0.020          chosen",
        "100step:200step      cosine   100   90.00 ± 1.00   0.260 ± 0.020  +0.010 ± 0.004",
        "100step:200step      linear   100   90.00 ± 1.00   0.270 ± 0.020  +0.020 ± 0.004",
    ]


def test_members_stand_in_the_order_in_which_they_were_offered() -> None:
    """The greedy soup: the end of a long name, the score alone and that of the soup, and what was kept."""
    scores = {"accuracy": 0.9, "accuracy_se": 0.01, "nll": 0.3, "nll_se": 0.02}
    members = [
        {"file": "long/" * 20 + "b.pt", "own_accuracy": 0.8, "count": 1, **scores, "chosen": True},
        {"file": "a.pt", "own_accuracy": 0.7, "count": 2, **scores, "chosen": False},
    ]
    lines = table(members, width=120)
    assert lines[0].split() == ["offered", "n", "alone", "%", "accuracy", "%", "NLL"]
    assert lines[1].startswith("…")
    assert lines[1].endswith("kept")
    assert lines[2].split() == ["a.pt", "2", "70.00", "90.00", "±", "1.00", "0.300", "±", "0.020"]


@pytest.mark.parametrize("width", [20, 40, 60])
def test_narrow_pages_lose_columns_and_wrap_nothing(width: int) -> None:
    """No line is wider than the page; window and NLL are what stays."""
    lines = table(ROWS, width=width)
    assert len(lines) == 1 + len(ROWS)
    assert all(len(line) <= width for line in lines)


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], [row(0, 9, float("nan"), chosen=True)]])
def test_picture_is_a_png(rows: list[dict[str, Any]]) -> None:
    """A picture of several windows, of one, and of a score that is not finite."""
    file = io.BytesIO()
    curves.draw_search(file, rows=rows, title="$run$: windows", steps_per_epoch=10)
    assert file.getvalue().startswith(b"\x89PNG")
