"""What is drawn: the numbers in every picture and in the charts of a page, against those that were to be drawn.

Pictures are looked at as matplotlib holds them when it writes them; charts as the browser places them.
"""

from __future__ import annotations

import html
import io
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import Any

import matplotlib.axes
import matplotlib.figure
import numpy as np
import pytest
from matplotlib.collections import FillBetweenPolyCollection
from matplotlib.patches import Rectangle
from scipy.stats import binomtest

from figures import lines, notes, points
from swa_cli.metrics.metric import CLASSIFICATION, REGRESSION, SEGMENTATION, TaskMetrics, user_task_metrics
from swa_cli.report.page import Line, RunOnPage, chart, document, ends_of_scale
from swa_cli.report.plots import budgets, calibration, curves, loss_surface

# What each task calls its score, and what a score of 0.75 is drawn as.
TASKS = [
    pytest.param(CLASSIFICATION, "accuracy (%)", 100.0, id="classification"),
    pytest.param(SEGMENTATION, "mean IoU (%)", 100.0, id="segmentation"),
    pytest.param(REGRESSION, "R2", 1.0, id="regression"),
]


def rows_of(metrics: TaskMetrics) -> list[dict[str, Any]]:
    """Two epochs; everything is a fraction, or a plain number."""
    own, train = metrics.primary.key, metrics.training.key
    return [
        {
            "epoch": epoch,
            "lr": 0.1 * epoch,
            "train_loss": 0.9 + epoch,
            f"train_{train}": 0.25 * epoch,
            "val_loss": 1.9 + epoch,
            f"val_{own}": 0.2 * epoch,
            "swa_val_loss": 0.5 if epoch == 2 else None,
            f"swa_val_{own}": 0.75 if epoch == 2 else None,
        }
        for epoch in (1, 2)
    ]


@pytest.mark.parametrize(("metrics", "axis", "scale"), TASKS)
def test_curves_are_drawn_in_the_unit_of_their_axis(
    metrics: TaskMetrics, axis: str, scale: float, drawn: list[matplotlib.figure.Figure]
) -> None:
    """Lines and final scores of both panels against the rows, times 100 where the axis says %; rates and marks."""
    own, loss = metrics.primary.key, metrics.loss.key
    final = {"last": {own: 0.5, loss: 0.4}, "swa": {own: 0.625, loss: 0.3}}
    curves.draw(
        io.BytesIO(),
        rows=rows_of(metrics),
        title="x",
        averaging={"swa": [15, 20]},
        steps_per_epoch=10,
        lr=[0.1] * 10 + [0.05] * 10,
        final=final,
        metrics=metrics,
    )
    below, above, rates = drawn[0].axes
    assert (below.get_ylabel(), above.get_ylabel()) == (metrics.loss_axis, axis)
    found = lines(above)
    assert found["validation"] == ([1, 2], pytest.approx([scale * 0.2, scale * 0.4]))
    assert found["swa, validation"] == ([2], pytest.approx([scale * 0.75]))
    if metrics.training is metrics.primary:  # else the column of training is that of another score
        assert found["training"] == ([1, 2], pytest.approx([scale * 0.25, scale * 0.5]))
    marks = points(above)
    assert marks[f"last, test: {'50.00 %' if scale == 100 else '0.500'}"][1] == pytest.approx([scale * 0.5])
    assert marks[f"swa, test: {'62.50 %' if scale == 100 else '0.625'}"][1] == pytest.approx([scale * 0.625])
    found = lines(below)
    assert found["training"] == ([1, 2], [1.9, 2.9])
    assert found["validation"] == ([1, 2], [2.9, 3.9])
    assert found["swa, validation"] == ([2], [0.5])
    assert points(below)["last, test: 0.400"][1] == [0.4]
    assert all(x > 2 for panel in (above, below) for xs, _ in points(panel).values() for x in xs), "beside the run"
    assert all(panel.get_ylim()[0] < panel.get_ylim()[1] for panel in (below, above, rates))
    averaged = lines(rates)["swa: 2 steps averaged"]
    assert averaged[0] == [1.5, 2.0]
    steps = rates.get_lines()[0]
    assert steps.get_drawstyle() == "default", "no stairs"
    assert list(steps.get_ydata()) == [0.1] * 10 + [0.05] * 11
    assert list(steps.get_xdata())[10] == 1.0


def page_of(metrics: TaskMetrics, **values: Any) -> RunOnPage:
    """A run of two epochs."""
    return RunOnPage(
        title="x",
        facts=[],
        metrics=metrics,
        rows=rows_of(metrics),
        averaging={},
        steps_per_epoch=10,
        lr=[0.1] * 20,
        split="test",
        samples=1,
        weights={},
        verdict=[],
        drawings=[],
        recipe="",
        versions=[],
        commands=[],
        **values,
    )


@pytest.mark.parametrize(
    ("metrics", "title"),
    [
        (CLASSIFICATION, "loss (val: nats per sample; train: focal (gamma 2))"),
        (user_task_metrics({"score": "higher", "loss": "lower"}), "loss (train: focal (gamma 2))"),
    ],
)
def test_another_training_loss_has_no_unit_of_the_task(
    drawn: list[matplotlib.figure.Figure], metrics: TaskMetrics, title: str
) -> None:
    """Axis of curves.png and chart of the page: training by its loss, validation in the unit of the task's."""
    rows: dict[str, Any] = {"rows": rows_of(metrics), "averaging": {}, "steps_per_epoch": 10, "lr": [0.1] * 20}
    curves.draw(io.BytesIO(), **rows, title="x", trained="focal (gamma 2)", metrics=metrics)
    assert drawn[0].axes[0].get_ylabel() == title
    page = page_of(metrics, trained="focal (gamma 2)")
    assert f"<figcaption>{title}</figcaption>" in document([page], title="x")


def test_a_schedule_is_drawn_over_epochs(drawn: list[matplotlib.figure.Figure]) -> None:
    """The rate of each step from its beginning, the marks of averages and snapshots, the shaded phase; in epochs."""
    lr = [0.4, 0.3, 0.2, 0.1]
    curves.draw_schedule(
        io.BytesIO(),
        title="x",
        lr=lr,
        averaging={"swa": [3, 4]},
        snapshots=[2, 4],
        steps_per_epoch=2,
        worker_lr=[(2.0, 0.05), (2.5, 0.04)],
    )
    (axes,) = drawn[0].axes
    found = lines(axes)
    rate = axes.get_lines()[0]
    assert list(rate.get_xdata()) == [0, 0.5, 1, 1.5, 2]
    assert list(rate.get_ydata()) == [*lr, 0.1]
    assert found["each worker"] == ([2.0, 2.5], [0.05, 0.04])
    assert found["swa: 2 steps averaged"][0] == [1.5, 2.0]
    assert found["2 snapshots"][0] == [1.0, 2.0]
    (phase,) = (patch for patch in axes.patches if isinstance(patch, Rectangle))
    assert (phase.get_x(), phase.get_x() + phase.get_width()) == (1.5, 2.5)


ERROR = [
    pytest.param(CLASSIFICATION, "error (%)", lambda value: 100 * (1 - value), 100.0, id="classification"),
    pytest.param(SEGMENTATION, "mean IoU (%)", lambda value: 100 * value, 100.0, id="segmentation"),
    pytest.param(REGRESSION, "R2", lambda value: value, 1.0, id="regression"),
]


@pytest.mark.parametrize(("metrics", "axis", "shown", "scale"), ERROR)
def test_a_path_is_drawn_in_the_unit_of_its_axis(
    metrics: TaskMetrics, axis: str, shown: Any, scale: float, drawn: list[matplotlib.figure.Figure]
) -> None:
    """Both lines and the band of one standard error against the scores: of accuracies, the errors in percent."""
    line = {
        "x": [-1.0, 0.0, 4.0],
        "train_loss": [3.0, 0.25, 0.5],
        "train_score": [0.5, 0.9, 0.8],
        "loss": [4.0, 0.75, 1.0],
        "score": [0.4, 0.7, 0.6],
        "score_se": [0.01, 0.02, 0.03],
        "points": [{"name": "last", "x": 0.0}, {"name": "swa", "x": 4.0}],
        "split": "test",
        "barrier": {"train_loss": None, "loss": {"height": 2.0, "x": 1.0, "line": 0.75}},
    }
    loss_surface.draw_path(io.BytesIO(), line=line, title="x", metrics=metrics)
    upper, lower = drawn[0].axes
    assert (upper.get_ylabel(), lower.get_ylabel()) == (metrics.loss_axis, axis)
    assert lines(upper)["training"] == (line["x"], line["train_loss"])
    assert lines(upper)["test"] == (line["x"], line["loss"])
    assert lines(upper)["barrier 2 (test)"] == ([1.0, 1.0], [0.75, 2.75])
    assert lines(lower)["training"] == (line["x"], pytest.approx([shown(value) for value in line["train_score"]]))
    assert lines(lower)["test"] == (line["x"], pytest.approx([shown(value) for value in line["score"]]))
    (band,) = (item for item in lower.collections if isinstance(item, FillBetweenPolyCollection))
    heights = {x: [y for at, y in band.get_paths()[0].vertices if at == x] for x in line["x"]}
    for x, value, error in zip(line["x"], line["score"], line["score_se"], strict=True):
        middle = shown(value)
        assert (min(heights[x]), max(heights[x])) == pytest.approx((middle - scale * error, middle + scale * error))
    assert all(panel.get_ylim()[0] < panel.get_ylim()[1] for panel in (upper, lower))


@pytest.mark.parametrize(("metrics", "axis", "shown", "scale"), ERROR)
def test_a_plane_is_drawn_in_the_unit_of_its_title(
    metrics: TaskMetrics,
    axis: str,
    shown: Any,
    scale: float,
    drawn: list[matplotlib.figure.Figure],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the bands are made of, row by row of y, the levels beside the bar, and the three weight sets."""
    given: list[tuple[Any, ...]] = []
    real = matplotlib.axes.Axes.contourf

    def keep(axes: matplotlib.axes.Axes, *args: Any, **options: Any) -> Any:
        given.append(args)
        return real(axes, *args, **options)

    monkeypatch.setattr(matplotlib.axes.Axes, "contourf", keep)
    xs, ys = [0.0, 1.0, 2.0, 3.0], [-1.0, 0.0, 1.0]
    loss = [[1.0 + x + 10 * y for x in range(4)] for y in range(3)]
    score = [[0.9 - 0.02 * x - 0.1 * y for x in range(4)] for y in range(3)]
    points = [{"name": f"set {n}", "x": n, "y": n - 1.0, "loss": 1.0, "score": 0.5} for n in range(3)]
    surface = {"x": xs, "y": ys, "loss": loss, "score": score, "points": points, "split": "test", "samples": 10}
    loss_surface.draw_plane(io.BytesIO(), surface=surface, title="x", metrics=metrics)
    left, right = drawn[0].axes[:2]
    assert (left.get_title(), right.get_title()) == (f"training {metrics.loss_axis}", f"test {axis}")
    for (x, y, values), expected in zip(given, (loss, [[shown(v) for v in row] for row in score]), strict=True):
        np.testing.assert_allclose(x[::4], xs)
        np.testing.assert_allclose(y[::4], ys)
        np.testing.assert_allclose(values[::4, ::4], expected)
        assert (values.min(), values.max()) == pytest.approx((np.min(expected), np.max(expected))), "no overshoot"
    for axes in (left, right):
        assert axes.get_xlim() == (0.0, 3.0)
        assert axes.get_ylim() == (-1.0, 1.0)
        assert [lines(axes)[f"set {n}"] for n in range(3)] == [([n], [n - 1.0]) for n in range(3)]
    bars = [axes for axes in drawn[0].axes[2:] if axes.get_label() == "<colorbar>"]
    flat = [shown(value) for row in score for value in row]
    assert len(bars) == 2
    low, high = bars[1].get_ylim()
    step = (max(flat) - min(flat)) / 8
    assert min(flat) - step <= low < high <= max(flat) + step
    for bar in bars:
        ticks = bar.get_yticks()
        digits = 1 - math.floor(math.log10(np.diff(ticks).min()))
        assert [round(tick, digits) for tick in ticks] == pytest.approx(list(ticks), rel=1e-9), "round"


@pytest.mark.parametrize(("metrics", "axis", "scale"), TASKS)
def test_windows_are_drawn_in_the_unit_of_their_axis(
    metrics: TaskMetrics, axis: str, scale: float, drawn: list[matplotlib.figure.Figure]
) -> None:
    """Scores and their error bars over the epochs where the windows start; the chosen one apart."""
    own, loss = metrics.primary.key, metrics.loss.key
    rows = [
        {
            "start": start,
            "end": end,
            own: score,
            f"{own}_diff_se": 0.01,
            loss: 1 - score,
            f"{loss}_diff_se": 0.02,
            "chosen": start == 20,
        }
        for start, end, score in ((10, 40, 0.5), (20, 40, 0.75), (30, 40, 0.625), (10, 30, 0.25))
    ]
    curves.draw_starts(io.BytesIO(), rows=rows, title="x", steps_per_epoch=10, metrics=metrics)
    upper, lower = drawn[0].axes
    assert lower.get_ylabel() == f"validation {axis}"
    assert "paired difference" in notes(drawn[0])
    best = f"best: lowest validation {metrics.loss.name}"
    for axes, factor, values, errors in (
        (upper, 1.0, {"up to the end": [0.5, 0.25, 0.375], "ends before": [0.75], best: [0.25]}, 0.02),
        (lower, scale, {"up to the end": [0.5, 0.75, 0.625], "ends before": [0.25], best: [0.75]}, 0.01),
    ):
        starts = {"up to the end": [1.0, 2.0, 3.0], "ends before": [1.0], best: [2.0]}
        containers = {str(item.get_label()): item for item in axes.containers}
        assert containers.keys() == values.keys()
        for label, (line, _, bars) in containers.items():
            expected = [factor * value for value in values[label]]
            assert list(line.get_xdata()) == pytest.approx(starts[label])
            assert list(line.get_ydata()) == pytest.approx(expected)
            for segment, middle in zip(bars[0].get_segments() if bars else (), expected, strict=bool(bars)):
                ends = (middle - factor * errors, middle + factor * errors)
                assert (segment[0][1], segment[1][1]) == pytest.approx(ends)


@pytest.mark.parametrize(("metrics", "axis", "scale"), TASKS)
def test_searches_are_drawn_over_the_mean_age(
    metrics: TaskMetrics, axis: str, scale: float, drawn: list[matplotlib.figure.Figure]
) -> None:
    """Trials of each shape over the mean age in epochs; shorter windows and the chosen one apart."""
    own, loss = metrics.primary.key, metrics.loss.key
    rows = [
        {
            "shape": shape,
            "mean_age": age,
            "end": end,
            "chosen": age == 20,
            own: score,
            f"{own}_diff_se": 0.01,
            loss: 1 - score,
            f"{loss}_diff_se": 0.02,
        }
        for shape, age, end, score in (
            ("linear", 30, 40, 0.5),
            ("cosine", 20, 40, 0.75),
            ("linear", 10, 40, 0.625),
            ("cosine", 5, 30, 0.25),
        )
    ]
    curves.draw_search(io.BytesIO(), rows=rows, title="x", steps_per_epoch=10, metrics=metrics)
    upper, lower = drawn[0].axes
    assert lower.get_ylabel() == f"validation {axis}"
    best = f"best: lowest validation {metrics.loss.name}"
    ages = {"linear": [1.0, 3.0], "cosine": [2.0], "ends before": [0.5], best: [2.0]}
    values = {"linear": [0.625, 0.5], "cosine": [0.75], "ends before": [0.25], best: [0.75]}
    for axes, shown in ((upper, lambda score: 1 - score), (lower, lambda score: scale * score)):
        containers = {str(item.get_label()): item for item in axes.containers}
        assert containers.keys() == ages.keys()
        for label, (line, _, _) in containers.items():
            assert list(line.get_xdata()) == pytest.approx(ages[label])
            assert list(line.get_ydata()) == pytest.approx([shown(score) for score in values[label]])


@pytest.mark.parametrize(("metrics", "axis", "scale"), TASKS)
def test_budgets_are_drawn_in_the_unit_of_their_axis(
    metrics: TaskMetrics, axis: str, scale: float, drawn: list[matplotlib.figure.Figure]
) -> None:
    """Scores on both splits over the epochs, of a series without validation one; and those of the raw weights."""
    own, loss = metrics.primary.key, metrics.loss.key
    scores = [{own: score, f"{own}_se": 0.01, loss: 1 - score, f"{loss}_se": 0.02} for score in (0.5, 0.75)]
    both = [{"epochs": epochs, "val": one, "test": one} for epochs, one in zip((2, 4), scores, strict=True)]
    series = [
        {"name": "--decay linear", "rows": both},
        {"name": "--ema 2ep", "rows": [{**row, "val": None} for row in both]},
    ]
    raw = [{"epochs": 3, own: 0.25, loss: 0.5}]
    budgets.draw(io.BytesIO(), series=series, raw=raw, title="x", metrics=metrics)
    upper, lower = drawn[0].axes
    assert (upper.get_ylabel(), lower.get_ylabel()) == (metrics.loss.name, axis)
    for axes, values, error, raw_value in (
        (upper, [0.5, 0.25], 0.02, 0.5),
        (lower, [0.5 * scale, 0.75 * scale], 0.01 * scale, 0.25 * scale),
    ):
        containers = {str(item.get_label()): item for item in axes.containers}
        assert containers.keys() == {"--decay linear, validation", "--decay linear, test", "--ema 2ep, test"}
        for line, _, bars in containers.values():
            assert list(line.get_xdata()) == [2, 4]
            assert list(line.get_ydata()) == pytest.approx(values)
            for segment, middle in zip(bars[0].get_segments(), values, strict=True):
                assert (segment[0][1], segment[1][1]) == pytest.approx((middle - error, middle + error))
        assert lines(axes)["raw weights, validation"] == ([3.0], [pytest.approx(raw_value)])


def test_reliability_is_drawn_in_fractions(drawn: list[matplotlib.figure.Figure]) -> None:
    """Bars, gaps, error bars and counts of three bins, one empty, each over its own stretch of confidence."""
    bins = [
        {"count": 4, "confidence": 0.25, "accuracy": 0.5},
        {"count": 0, "confidence": None, "accuracy": None},
        {"count": 100, "confidence": 0.9, "accuracy": 0.8},
    ]
    calibration.draw_reliability(io.BytesIO(), sets={"last": {"ece": 0.1234, "bins": bins}}, title="x")
    upper, lower = drawn[0].axes
    assert "ECE 0.123" in upper.get_title()
    bars, gaps = (group for group in upper.containers if hasattr(group, "patches"))
    places = [
        [(bar.get_x(), bar.get_y(), bar.get_width(), bar.get_height()) for bar in group] for group in (bars, gaps)
    ]
    assert places[0] == [pytest.approx((0, 0, 1 / 3, 0.5)), pytest.approx((2 / 3, 0, 1 / 3, 0.8))]
    assert places[1] == [pytest.approx((0, 0.5, 1 / 3, -0.25)), pytest.approx((2 / 3, 0.8, 1 / 3, 0.1))]
    errors = next(item for item in upper.containers if not hasattr(item, "patches"))
    ends = [(segment[0][1], segment[1][1]) for segment in errors[2][0].get_segments()]
    for found, (right, count) in zip(ends, ((2, 4), (80, 100)), strict=True):  # confidence of one standard error: 68 %
        expected = binomtest(right, count).proportion_ci(math.erf(math.sqrt(0.5)), method="wilson")
        assert found == pytest.approx((expected.low, expected.high))
    assert [[bar.get_alpha() for bar in group] for group in (bars, gaps)] == [[0.3, 1.0]] * 2, "4 samples are few"
    assert "Wilson" in notes(drawn[0])
    assert "fewer than 10" in notes(drawn[0])
    assert (upper.get_xlim(), upper.get_ylim()) == ((0, 1), (0, 1))
    assert [bar.get_height() for bar in lower.patches] == [4, 0, 100]
    assert [bar.get_x() for bar in lower.patches] == pytest.approx([0, 1 / 3, 2 / 3])


def test_a_confusion_matrix_has_true_classes_in_rows(drawn: list[matplotlib.figure.Figure]) -> None:
    """Shades and numbers of a matrix that is not symmetric, each at (predicted, true), the first class on top."""
    matrix = [[6, 2, 0], [1, 3, 0], [5, 0, 5]]
    calibration.draw_confusion(io.BytesIO(), matrix=matrix, classes=["cat", "dog", "cow"], title="x")
    axes, bar = drawn[0].axes
    (image,) = axes.get_images()
    np.testing.assert_allclose(image.get_array(), [[0.75, 0.25, 0], [0.25, 0.75, 0], [0.5, 0, 0.5]])
    numbers = {text.get_position(): text.get_text() for text in axes.texts}
    assert numbers == {(0, 0): "6", (1, 0): "2", (0, 1): "1", (1, 1): "3", (0, 2): "5", (2, 2): "5"}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")
    assert (image.get_clim(), bar.get_ylabel()) == ((0, 1), "fraction of the true class")
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # rows run down


# The charts of a page.


def svg_of(html: str) -> ET.Element:
    """The drawing of the first chart."""
    found = re.search(r"<figcaption>.*?</figcaption>(<svg.*?</svg>)<div", html, re.DOTALL)
    assert found is not None
    return ET.fromstring(found[1])


def scale_of(svg: ET.Element, anchor: str) -> tuple[float, float]:
    """A scale as a person reads it off: pixels a unit, and where its 0 is, by its numbers; they have equal steps."""
    texts = [node for node in svg.iter("text") if node.get("text-anchor") == anchor and node.text != "epoch"]
    numbers = [float(node.text or "") for node in texts]
    if anchor == "middle":
        places = [float(node.get("x") or "") for node in texts]
    else:
        lines = [node for node in svg.iter("line") if node.get("class") == "grid"]
        places = [float(node.get("y1") or "") for node in lines]
        beside = [float(node.get("y") or "") for node in texts]
        assert all(abs(text - place) < 6 for text, place in zip(beside, places, strict=True))
    slope, offset = np.polyfit(numbers, places, 1)
    np.testing.assert_allclose(places, slope * np.array(numbers) + offset, atol=0.2)
    return float(slope), float(offset)


def points_of(svg: ET.Element) -> list[list[tuple[float, float]]]:
    """The lines of a drawing, in what its scales say."""
    (per_epoch, first), (per_value, zero) = scale_of(svg, "middle"), scale_of(svg, "end")
    assert per_epoch > 0, "later is to the right"
    assert per_value < 0, "more is up: pixels count from the top"
    found = []
    for node in svg.iter("path"):
        if (node.get("stroke") or "").startswith("var(--") and "L" in (node.get("d") or ""):
            pairs = (pair.split() for pair in (node.get("d") or "").removeprefix("M").split("L"))
            found.append([((float(x) - first) / per_epoch, (float(y) - zero) / per_value) for x, y in pairs])
    return found


@pytest.mark.parametrize("from_zero", [False, True])
def test_a_chart_is_read_as_it_was_meant(from_zero: bool) -> None:
    """Each point of two lines by the numbers at the axes, to a pixel: right way up, and at its epoch; the phase too."""
    wanted = [[(0.5, 20.0), (1.0, 60.0), (3.0, 90.0), (4.0, 80.0)], [(2.0, 10.0), (4.0, 95.0)]]
    drawing = [Line(f"line {n}", "val", "-", "o", points) for n, points in enumerate(wanted)]
    scale = None if from_zero else ends_of_scale(drawing, end=4, is_lower_better=False)
    html = chart(drawing, title="accuracy (%)", unit=" %", end=4, phase=3.0, scale=scale)
    svg = svg_of(html)
    for found, expected in zip(points_of(svg), wanted, strict=True):
        assert [x for x, _ in found] == pytest.approx([x for x, _ in expected], abs=0.01)
        assert [y for _, y in found] == pytest.approx([y for _, y in expected], abs=0.5)
    marks = [node.get("transform") or "" for node in svg.iter("path") if node.get("transform")]
    assert len(marks) == 6
    (per_epoch, first), (per_value, zero) = scale_of(svg, "middle"), scale_of(svg, "end")
    for mark, (x, y) in zip(marks, (point for line in wanted for point in line), strict=True):
        left, top = (float(number) for number in re.findall(r"[\d.]+", mark))
        assert (left, top) == pytest.approx((first + per_epoch * x, zero + per_value * y), abs=0.2)
    (phase,) = (node for node in svg.iter("rect"))
    left, width = (float(phase.get(key) or "") for key in ("x", "width"))
    assert (left, left + width) == pytest.approx((first + 3 * per_epoch, first + 4 * per_epoch), abs=0.2)


@pytest.mark.parametrize(("metrics", "axis", "scale"), TASKS)
def test_charts_of_a_page_are_in_the_unit_of_their_title(metrics: TaskMetrics, axis: str, scale: float) -> None:
    """Of the chart of the score: the points of validation by its axis, times 100 where its title says %."""
    page = page_of(metrics)
    charts: Sequence[str] = document([page], title="x").split('<figure class="chart"')[1:]
    titled = {re.search(r"<figcaption>(.*?)</figcaption>", text)[1]: text for text in charts}  # type: ignore[index]
    assert list(titled) == [metrics.loss_axis, axis, "learning rate"]
    found = points_of(svg_of(titled[axis]))[-1]
    assert found == [
        pytest.approx((1, scale * 0.2), abs=scale * 0.01),
        pytest.approx((2, scale * 0.4), abs=scale * 0.01),
    ]
    assert points_of(svg_of(titled[metrics.loss_axis]))[1][0] == pytest.approx((1, 2.9), abs=0.02)
    assert ('" %"' in html.unescape(titled[axis])) == (scale == 100)
