"""The picture of a run, held against its promised size, its content and hostile names."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.image
import pytest
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.text import Text

from swa_cli.report import plots
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


ARGUMENTS: dict[str, Any] = {"title": "x", "averaging": {"swa": [4]}, "steps_per_epoch": 2, "lr": [0.1] * 4}


@pytest.mark.parametrize(("form", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_same_values_give_the_same_bytes(form: str, begins: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each form, drawn twice at times that differ; SVG and PDF hold text, and fonts that journals take."""
    written = []
    for seconds in ("1", "1000000000"):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", seconds)  # matplotlib's clock for dates in files
        file = io.BytesIO()
        draw(file, rows=rows_of(2), **ARGUMENTS, form=form)
        written.append(file.getvalue())
    assert written[0] == written[1]
    assert written[0].startswith(begins)
    if form == "svg":
        assert b">learning rate</text>" in written[0]
    if form == "pdf":
        assert b"/Type0" in written[0] or b"/CIDFontType2" in written[0]
        assert b"/Type3" not in written[0]


def test_a_column_of_a_paper_has_its_width_and_size_of_text(tmp_path: Path) -> None:
    """3.3 inches at 150 dpi; text of 5 to 9 points, and nothing of it outside the picture."""
    seen: list[Figure] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Figure, "savefig", lambda figure, *_, **__: (figure.draw_without_rendering(), seen.append(figure))
        )
        draw(tmp_path / "x.png", rows=rows_of(4), **{**ARGUMENTS, "lr": [0.1] * 8}, final=FINAL, samples=90, width=3.3)
        (figure,) = seen
        assert figure.get_figwidth() == 3.3
        texts = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
        assert texts
        for text in texts:
            assert 5 <= text.get_fontsize() <= 9
            box = text.get_window_extent()
            assert (box.x0 >= -1, box.x1 <= 3.3 * DPI + 1) == (True, True), text.get_text()


def test_a_script_without_a_font_is_told_in_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name in Linear B, drawn with matplotlib's own font: one sentence, not a line per character; none in SVG."""
    monkeypatch.setattr(plots, "FONTS", ("DejaVu Sans", "no such font"))
    said: list[str] = []
    values = {**ARGUMENTS, "title": "\U00010000\U00010001 Кошка قطة"}
    for form in ("png", "svg"):
        with plots.telling(said.append):
            draw(io.BytesIO(), rows=rows_of(2), **values, form=form)
    (sentence,) = said
    assert "\U00010000 \U00010001, so boxes" in sentence


def test_a_font_of_the_system_is_taken_for_its_script(monkeypatch: pytest.MonkeyPatch) -> None:
    """A character that the first font lacks and the second one has, both part of matplotlib: nothing to tell."""
    found: dict[str, list[str]] = {}
    for name in ("DejaVu Sans", "STIXNonUnicode"):
        found[name] = list(map(chr, get_font(findfont(name)).get_charmap()))
    character = next(one for one in found["STIXNonUnicode"] if one not in found["DejaVu Sans"])
    monkeypatch.setattr(plots, "printable", str)  # it is of the private area
    values = {**ARGUMENTS, "title": character}
    said: list[str] = []
    for fonts in (("DejaVu Sans", "STIXNonUnicode"), ("DejaVu Sans",)):
        monkeypatch.setattr(plots, "FONTS", fonts)
        with plots.telling(said.append):
            draw(io.BytesIO(), rows=rows_of(2), **values)
        assert len(said) == 2 - len(fonts)
