"""What a picture must not claim, and what its reader has to be told: limits, scales, names, notes, contrast."""

from __future__ import annotations

import io
import math
import re
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import FillBetweenPolyCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from scipy.stats import binomtest

from figures import bars, notes
from swa_cli.report import plots
from swa_cli.report.page import Line, chart, ends_of_scale
from swa_cli.report.plots import budgets, calibration, curves, loss_surface, samples


def percent_rows(*accuracies: float) -> list[dict[str, Any]]:
    """A row per epoch with a loss of 1 - accuracy; nothing else was measured."""
    return [
        {"epoch": epoch, "train_loss": 1 - value, "train_accuracy": value, "val_loss": 1 - value, "val_accuracy": value}
        for epoch, value in enumerate(accuracies, 1)
    ]


def drawn_curves(drawn: list[Figure], rows: list[dict[str, Any]], **values: Any) -> list[Axes]:
    """The panels of the curves of such rows."""
    settings: dict[str, Any] = {"averaging": {}, "steps_per_epoch": 1, "lr": [0.1] * len(rows)}
    curves.draw(io.BytesIO(), rows=rows, title="x", **{**settings, **values})
    return drawn[-1].axes


def test_no_axis_leaves_what_values_can_reach(drawn: list[Figure]) -> None:
    """Accuracies of 0 and 100 % and a loss of 0, against limits of 0 and 100; a loss below 0 keeps its place."""
    final = {"last": {"accuracy": 1.0, "accuracy_se": 0.0, "nll": 0.0, "nll_se": 0.0}}
    loss, score, _ = drawn_curves(drawn, percent_rows(0.0, 0.5, 1.0), final=final, samples=50)
    assert score.get_ylim() == (0, 100)
    assert loss.get_ylim()[0] == 0
    assert bars(score)["last, test: 100.00 %"] == [pytest.approx((100 / 1.02, 100))], "Wilson: p + z2/2n over 1 + z2/n"
    loss, score, _ = drawn_curves(drawn, [{**row, "val_loss": -0.25} for row in percent_rows(0.25, 0.5)])
    assert loss.get_ylim()[0] < -0.25
    assert 0 < score.get_ylim()[0] < 25, "nothing is drawn down to a limit that is far away"


def test_a_wide_loss_has_a_logarithmic_scale(drawn: list[Figure]) -> None:
    """Losses over a factor of 40 and of 60, which a person reads at the axis."""
    for lowest, scale in ((0.025, "linear"), (1 / 60, "log")):
        loss, score, _ = drawn_curves(drawn, percent_rows(0.0, 1 - lowest))
        assert (loss.get_yscale(), score.get_yscale()) == (scale, "linear")
        assert ("log scale" in loss.get_ylabel()) == (scale == "log")


def test_marks_stand_on_every_epoch_or_on_none(drawn: list[Figure]) -> None:
    """Markers of 30 and of 31 epochs."""
    for epochs, marker in ((30, "o"), (31, "None")):
        loss, *_ = drawn_curves(drawn, percent_rows(*[0.5] * epochs))
        (line,) = (line for line in loss.get_lines() if line.get_label() == "validation")
        assert (line.get_marker(), line.get_markevery()) == (marker, None)


def test_lines_of_a_curve_differ_without_color() -> None:
    """The dashes of five averages and of training, validation."""
    assert len({str(look["linestyle"]) for look in plots.AVERAGES}) == len(plots.AVERAGES) == 5
    assert len({look["marker"] for look in plots.AVERAGES}) == 5
    assert plots.TRAIN["linestyle"] != plots.VAL["linestyle"]


def test_weights_with_recomputed_statistics_go_with_those_without() -> None:
    """Colors and markers of raw weights and two SWAP workers, each also as `_bn`: pairs of one color, six looks."""
    names = ["last", "last_bn", "worker-1", "worker-1_bn", "worker-2", "worker-2_bn"]
    looks = [plots.look(name, ["swa", "worker-1", "worker-2"]) for name in names]
    assert [one["color"] == other["color"] for one, other in zip(looks[::2], looks[1::2], strict=True)] == [True] * 3
    assert len({(look["color"], look["marker"]) for look in looks}) == 6


def test_a_plane_marks_what_is_noise(drawn: list[Figure]) -> None:
    """Errors of 3 to 10 % on 100 samples: levels at least Wilson's error apart, told below; none without errors."""
    xs, ys = [0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0]
    score = [[0.97 - 0.01 * x - 0.02 * y for x in range(4)] for y in range(3)]
    points_ = [{"name": f"set {n}", "x": n, "y": 1.0, "loss": 1.0, "score": 0.9} for n in range(3)]
    surface = {"x": xs, "y": ys, "loss": score, "score": score, "points": points_, "split": "test", "samples": 100}
    loss_surface.draw_plane(io.BytesIO(), surface=surface, title="x")
    assert notes(drawn[0]) == ""
    loss_surface.draw_plane(io.BytesIO(), surface={**surface, "score_se": [[0.0171] * 4] * 3}, title="x")
    interval = binomtest(97, 100).proportion_ci(math.erf(math.sqrt(0.5)), method="wilson")
    error = 100 * (0.97 - interval.low)
    assert f"within one standard error ({error:.2g}) of the lowest test error (%), on 100 samples" in notes(drawn[1])
    bar = [axes for axes in drawn[1].axes if axes.get_label() == "<colorbar>"][1]
    assert np.diff(bar.get_yticks()).min() >= error
    dotted = drawn[1].axes[1].collections[-1]
    assert dotted.get_hatch() or dotted.hatches == [".."]


def test_class_names_stay_different() -> None:
    """Names that differ at the end, in the middle, or where each cut takes it: against the length and each other."""
    for names in (
        [f"a long name of species {n:03d}" for n in range(100)],
        [f"species {n:03d} of a long name" for n in range(100)],
        [f"{'x' * 20}{n:03d}{'y' * 20}" for n in range(100)],
    ):
        shown = plots.distinct(names, longest=16)
        assert len(set(shown)) == 100
        assert max(map(len, shown)) <= 16
    assert plots.distinct(["dog", "cat", "dog"], longest=16) == ["dog", "cat", "dog"]
    assert plots.distinct(["$x$"], longest=16) == [r"\$x\$"]


@pytest.mark.parametrize(("number", "every"), [(10, 1), (100, 1), (400, 4)])
def test_classes_of_a_large_matrix_have_a_place(number: int, every: int, drawn: list[Figure]) -> None:
    """Names along both axes: no closer than the height of a line, and a note where some are left out."""
    matrix = np.eye(number, dtype=int).tolist()
    names = [f"species number {n:03d} of the garden" for n in range(number)]
    calibration.draw_confusion(io.BytesIO(), matrix=matrix, classes=names, title="x")
    (axes, _), figure = drawn[0].axes, drawn[0]
    texts = [label.get_text() for label in axes.get_yticklabels()]
    assert texts == [label.get_text() for label in axes.get_xticklabels()]
    assert len(set(texts)) == len(texts) == math.ceil(number / every)
    if every > 1:
        figure.draw_without_rendering()
        between = np.diff([axes.transData.transform((0, tick))[1] for tick in axes.get_yticks()])
        assert abs(between).min() >= axes.get_yticklabels()[0].get_fontsize() / 72 * figure.dpi
    assert (f"One of {every} of the {number} classes" in notes(figure)) == (every > 1)
    assert len(axes.texts) == (number if number <= 25 else 0)


def test_numbers_of_a_matrix_can_be_read(drawn: list[Figure]) -> None:
    """Contrast of each number to its cell by WCAG 2, at least 4.5; lightness of the shades falls evenly (CIE L*)."""
    calibration.draw_confusion(io.BytesIO(), matrix=[[n, 20 - n] for n in range(1, 20)], classes=["a", "b"], title="x")
    axes = drawn[0].axes[0]
    (image,) = axes.get_images()
    for text in axes.texts:
        column, row = (int(place) for place in text.get_position())
        pair = [luminance(image.to_rgba(image.get_array())[row, column]), luminance(to_rgba(text.get_color()))]
        assert (max(pair) + 0.05) / (min(pair) + 0.05) >= 4.5
    for shades in (image.get_cmap(), mpl.colormaps[plots.SURFACE]):
        lightness = [116 * np.cbrt(max(luminance(shades(step / 20)), 0.0089)) - 16 for step in range(21)]
        np.testing.assert_allclose(lightness, np.linspace(lightness[0], lightness[-1], 21), atol=3)


def luminance(color: Any) -> float:
    """The relative luminance of an sRGB color, by WCAG 2."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in color[:3]]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def test_four_weight_sets_fill_a_square(drawn: list[Figure]) -> None:
    """Four reliability diagrams: two rows of two, numbers below each, no empty place."""
    bins = [{"count": 50, "confidence": 0.75, "accuracy": 0.5}]
    sets = {name: {"ece": 0.25, "bins": bins} for name in ("last", "last_bn", "swa", "ema")}
    calibration.draw_reliability(io.BytesIO(), sets=sets, title="x")
    axes = drawn[0].axes
    assert len(axes) == 8
    assert all(one.axison for one in axes)
    lower = [one for one in axes if one.get_xlabel()]
    assert len(lower) == 4
    assert all(one.xaxis.get_tick_params()["labelbottom"] for one in lower)


def test_accuracies_of_budgets_and_paths_have_wilsons_interval(drawn: list[Figure]) -> None:
    """All of 20 right and 15 of 20: one standard error by scipy, not sqrt(p (1 - p) / n), which is 0 for the first."""
    level = math.erf(math.sqrt(0.5))
    expected = [binomtest(right, 20).proportion_ci(level, method="wilson") for right in (20, 15)]
    scores = [{"accuracy": right / 20, "accuracy_se": 0.0, "nll": 0.5, "nll_se": 0.1} for right in (20, 15)]
    rows = [{"epochs": n, "val": None, "test": {**row, "samples": 20}} for n, row in enumerate(scores, 1)]
    budgets.draw(io.BytesIO(), series=[{"name": "ema", "rows": rows}], raw=[], title="x")
    loss, score = drawn[0].axes
    assert bars(score)["ema, test"] == [pytest.approx((100 * ends.low, 100 * ends.high)) for ends in expected]
    assert bars(loss)["ema, test"] == [pytest.approx((0.4, 0.6))] * 2
    assert score.get_ylim()[1] == 100
    assert "one standard error" in notes(drawn[0])
    line = {
        "x": [0.0, 1.0],
        **{key: [0.5, 0.5] for key in ("train_loss", "train_score", "loss")},
        "score": [1.0, 0.75],
        "score_se": [0.0, 0.1],
        "points": [{"name": "last", "x": 0.0}, {"name": "swa", "x": 1.0}],
        "split": "test",
        "samples": 20,
        "barrier": {"train_loss": None, "loss": None},
    }
    loss_surface.draw_path(io.BytesIO(), line=line, title="x")
    (band,) = (item for item in drawn[1].axes[1].collections if isinstance(item, FillBetweenPolyCollection))
    for x, ends in enumerate(expected):
        found = [y for at, y in band.get_paths()[0].vertices if at == x]
        assert (min(found), max(found)) == pytest.approx((100 * (1 - ends.high), 100 * (1 - ends.low)))
    assert drawn[1].axes[1].get_ylim()[0] == 0


@pytest.mark.parametrize(("epochs", "marks"), [(30, 30), (31, 0)])
def test_a_chart_ends_where_values_can_and_marks_all_or_none(epochs: int, marks: int) -> None:
    """A line from 0 to 100 % in the chart of a page: its ends at the edges of the panel; a mark per epoch, or none."""
    values = [(float(epoch), 100.0 * (epoch > 1)) for epoch in range(1, epochs + 1)]
    one = Line("validation", "val", "--", "o", values)
    scale = ends_of_scale([one], end=epochs, is_lower_better=True, limits=(0.0, 100.0))
    drawing = chart([one], title="accuracy (%)", unit=" %", end=epochs, scale=scale)
    assert drawing.count('<path d="M-3 0a3') == marks + 1, "and one in the legend"
    (path,) = re.findall(r'<path d="(M[^"]*L[^"]*)"', drawing)
    tops = [float(point.split()[1]) for point in path[1:].split("L")]
    (panel,) = re.findall(r'class="axis" fill="none" d="M\d+ (\d+)v(\d+)', drawing)
    top, height = map(float, panel)
    assert (tops[-1], tops[0]) == (top, top + height)


def test_images_are_told_apart_by_their_names(drawn: list[Figure]) -> None:
    """Titles of two images whose long names differ in the middle, of classes that differ in the middle."""
    pixels = np.zeros((4, 4), dtype=np.uint8)
    listed = [
        samples.Sample(pixels, f"{'n' * 20} {n} {'m' * 20}.png", f"{'a' * 20} {n} {'b' * 20}", "cat", 0.5, 1.25)
        for n in (1, 2)
    ]
    samples.draw_samples(io.BytesIO(), samples=listed, title="x")
    titles = [axes.get_title() for axes in drawn[0].axes[:2]]
    for part in range(3):
        texts = [title.splitlines()[part] for title in titles]
        assert (texts[0] != texts[1]) == (part != 1), "both are predicted as cat"
    assert all("cat 50 %" in title and "loss 1.25" in title for title in titles)
