"""Draw a contact sheet: images in rows, each under what it is and what was predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from swa_cli.report import plots

if TYPE_CHECKING:
    from numpy import ndarray

_COLUMNS = 6
_LONGEST_CLASS = 22
_LONGEST_NAME = 24


@dataclass(frozen=True)
class Sample:
    """An image (H, W) or (H, W, 3) uint8, with the names of its class, or classes, and of the predicted ones."""

    pixels: ndarray
    name: str  # of its file, or its row
    label: str
    predicted: str
    probability: float | None  # of the predicted class; None where there may be several
    loss: float


def draw_samples(target: plots.Target, *, samples: Sequence[Sample], title: str, form: str = "png") -> None:
    """Write the images in their order, row by row."""
    rows = -(-len(samples) // _COLUMNS)
    with plots.sheet(target, size=(2.1 * _COLUMNS, 2.75 * rows + 0.3), title=title, form=form) as figure:
        places = figure.subplots(rows, _COLUMNS, squeeze=False).flatten()
        for axes in places:
            axes.set_axis_off()
        texts = list(dict.fromkeys(text for sample in samples for text in (sample.label, sample.predicted)))
        shown = dict(zip(texts, plots.distinct(texts, longest=_LONGEST_CLASS), strict=True))
        names = plots.distinct([sample.name for sample in samples], longest=_LONGEST_NAME)
        for axes, sample, name in zip(places, samples, names, strict=False):
            axes.imshow(sample.pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            p = "" if sample.probability is None else f" {100 * sample.probability:.0f} %"
            text = f"is {shown[sample.label]}\n{shown[sample.predicted]}{p}\nloss {sample.loss:.2f}, {name}"
            axes.set_title(text, fontsize=7)
