"""Test-time augmentation: the mean of views against airbench's code, and where a run shows it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from swa_cli.metrics.task import weighted_mean


def infer_mirror(inputs: Tensor, net: nn.Module) -> Tensor:
    return 0.5 * net(inputs) + 0.5 * net(inputs.flip(-1))


def infer_mirror_translate(inputs: Tensor, net: nn.Module) -> Tensor:
    """As in airbench94.py (Jordan 2024)."""
    logits = infer_mirror(inputs, net)
    padded = F.pad(inputs, (1,) * 4, "reflect")
    moved = [padded[:, :, 0:32, 0:32], padded[:, :, 2:34, 2:34]]
    logits_translate = torch.stack([infer_mirror(each, net) for each in moved]).mean(0)
    return 0.5 * logits + 0.5 * logits_translate


@pytest.mark.parametrize(("kind", "reference"), [("flip", infer_mirror), ("flip_translate", infer_mirror_translate)])
def test_mean_of_views_is_airbenchs(kind: str, reference) -> None:
    """Logits of a random network for each kind, held against the paper's code."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 30 * 30, 5)).double()
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(
            weighted_mean(net, images, kind=kind).double(), reference(images, net), rtol=1e-5, atol=1e-5
        )


def test_final_scores_have_the_views_and_rows_do_not(swa, recipe: Path, tmp_path: Path) -> None:
    """A run with and without tta: equal rows, other final scores, those of `swa eval` with the key changed.

    The screen, `swa show` and the page say so.
    """
    plain = swa("train", recipe, "--json")
    viewed = swa("train", recipe, "eval.tta=flip", "--json")
    assert plain.code == viewed.code == 0, plain.err + viewed.err
    rows = [
        [line.rsplit(",", 1)[0] for line in (tmp_path / f"runs/small-00{n}/metrics.csv").read_text().splitlines()]
        for n in (1, 2)
    ]
    assert rows[0] == rows[1]
    assert (plain.json["tta"], viewed.json["tta"]) == ("none", "flip")
    assert viewed.json["weights"]["swa"]["nll"] != plain.json["weights"]["swa"]["nll"]
    assert "360 samples, tta flip" in viewed.err
    again = swa("eval", tmp_path / "runs/small-001/checkpoints/swa.pt", "eval.tta=flip", "--json")
    assert again.json["weights"]["swa"]["nll"] == viewed.json["weights"]["swa"]["nll"]
    for run, said in (("small-001", False), ("small-002", True)):
        shown, page = swa("show", tmp_path / "runs" / run), tmp_path / f"{run}.html"
        assert ("360 samples, tta flip" in shown.out + shown.err) is said
        assert swa("report", tmp_path / "runs" / run, "-o", page).code == 0
        assert ("360 samples, tta flip" in page.read_text()) is said


def test_views_are_for_classes(swa, recipe: Path) -> None:
    """Regression has no views: refused at the key, before anything is run."""
    ended = swa("train", recipe, "task=regression", "dataset.name=rotated_digits", "eval.tta=flip")
    assert ended.code == 2
    assert "eval.tta" in ended.err
