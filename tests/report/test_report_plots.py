"""The picture of a run, held against its promised size, its content and hostile names."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.image
import pytest

from swa_cli.report.plots import DPI, MAX_MARKS
from swa_cli.report.plots.curves import SIZE_INCHES, draw, thinned

pytestmark = pytest.mark.pictures
FINAL = {"last": {"accuracy": 0.9, "nll": 0.3}, "swa": {"accuracy": 0.92, "nll": float("nan")}}


def rows_of(num_epochs: int, **more: Any) -> list[dict[str, Any]]:
    """Rows of `metrics.csv` in which every other epoch was not validated."""
    return [
        {
            "epoch": epoch,
            "lr": 0.1 / epoch,
            "train_loss": 2 / epoch,
            "train_accuracy": 1 - 0.9 / epoch,
            "val_loss": None if epoch % 2 else 2.1 / epoch,
            "val_accuracy": None if epoch % 2 else 1 - 0.95 / epoch,
            **more,
        }
        for epoch in range(1, num_epochs + 1)
    ]


@pytest.mark.parametrize("num_epochs", [0, 1, 30])
def test_the_picture_has_its_size_and_is_not_blank(num_epochs: int, tmp_path: Path) -> None:
    """Runs of no, one and many epochs with values missing, against 150 dpi times the size in inches."""
    path = tmp_path / "curves.png.tmp"
    steps = [10 * epoch for epoch in range(1, num_epochs + 1)]
    draw(
        path,
        rows=rows_of(num_epochs, swa_val_loss=None, swa_val_accuracy=float("nan")),
        title="digits",
        averaging={"swa": steps, "ema": []},
        steps_per_epoch=10,
        lr=[0.1] * 10 * num_epochs,
        final=FINAL,
    )
    image = matplotlib.image.imread(path, format="png")
    assert image.shape[:2] == (SIZE_INCHES[1] * DPI, SIZE_INCHES[0] * DPI) == (1500, 1350)
    assert image[..., :3].std() > 0.02


def test_hostile_names_and_user_settings_change_nothing(tmp_path: Path) -> None:
    """Names that look like formulas, a user's own settings: no error, and the settings are as before."""
    name = "_$\\frac{$\x1b[31m\n" + "x" * 300
    with mpl.rc_context({"figure.facecolor": "red", "axes.facecolor": "red", "savefig.dpi": 10}):
        before = dict(mpl.rcParams)
        draw(
            tmp_path / "curves.png",
            rows=rows_of(3, **{f"{name}_val_loss": 1.0}),
            title=name,
            averaging={name: [1, 2]},
            steps_per_epoch=1,
            lr=[0.1] * 3,
            final={name: FINAL["last"]},
        )
        assert dict(mpl.rcParams) == before
    image = matplotlib.image.imread(tmp_path / "curves.png")
    assert image.shape[:2] == (1500, 1350)
    assert tuple(image[5, 5, :3]) == (1, 1, 1)


def test_an_open_file_gets_the_same_picture(tmp_path: Path) -> None:
    """The bytes written to an open file, against those written to a path."""
    arguments: dict[str, Any] = {"title": "x", "averaging": {"swa": [4]}, "steps_per_epoch": 2, "lr": [0.1] * 4}
    file = io.BytesIO()
    draw(file, rows=rows_of(2), **arguments)
    draw(tmp_path / "curves.png", rows=rows_of(2), **arguments)
    assert file.getvalue() == (tmp_path / "curves.png").read_bytes()


def test_marks_are_thinned_evenly() -> None:
    """More averaged steps than can be told apart, against the promised number, ends and order."""
    steps = list(range(100, 12_000, 7))
    shown = thinned(steps)
    assert len(shown) == len(set(shown)) == MAX_MARKS
    assert (shown[0], shown[-1]) == (steps[0], steps[-1])
    assert set(shown) <= set(steps)
    gaps = {after - before for before, after in itertools.pairwise(shown)}
    assert max(gaps) - min(gaps) <= 7
    assert thinned(steps[:MAX_MARKS]) == steps[:MAX_MARKS]
