"""The step of `--dry-run` and of `swa plan` against the first step of the run, and that against plain torch."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from conftest import SMALL, Swa
from swa_cli.engine import estimate, step, train
from swa_cli.engine.run import Run
from swa_cli.models.freezing import kept_layers
from swa_cli.recipe import load

CLIP, ACCUMULATE, LR = 0.05, 3, 0.1
RECIPE = SMALL.replace("epochs: 4", f"epochs: 2, precision: fp32, clip_norm: {CLIP}, grad_accum_steps: {ACCUMULATE}")
RECIPE = RECIPE.replace("{lr: 0.1}", f"{{lr: {LR}, momentum: 0, weight_decay: 0}}")
RECIPE += "schedule: {name: constant, warmup: 0ep}\nsnapshots: {every: 1step}\n"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run that has not begun, whose steps clip the gradient of three batches."""
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE)
    return begun_from(path)


def begun_from(path: Path, *changes: str) -> Run:
    return train.set_up(load.load(path, changes))


def test_a_dry_run_does_the_first_step_of_the_run(run: Run, swa: Swa) -> None:
    """Weights and statistics after the step of a dry run against those of the snapshot after step 1: the same bits."""
    estimate.dry_run(run)
    assert swa("train", "small.yaml", "-q").code == 0
    first = torch.load("runs/small-001/snapshots/step-00000001.pt", weights_only=True)["state_dict"]
    found = run.model.state_dict()
    assert found.keys() == first.keys()
    assert [name for name, value in found.items() if not torch.equal(value, first[name])] == []


@pytest.mark.parametrize("clip", [CLIP, 0.0], ids=["clipped", "whole"])
def test_the_first_step_is_one_of_all_its_batches(clip: float, run: Run, tmp_path: Path) -> None:
    """Weights and loss after a dry run against SGD by hand: the mean gradient of three batches, and its norm."""
    run = begun_from(tmp_path / "small.yaml", f"train.clip_norm={clip}")
    model, losses = copy.deepcopy(run.model).train(), list[Tensor]()
    for images, labels in itertools.islice(run.context.training_batches(1), ACCUMULATE):
        losses.append(nn.functional.cross_entropy(model(images), labels))
    gradients = torch.autograd.grad(torch.stack(losses).mean(), list(model.parameters()))
    norm = torch.cat([gradient.flatten() for gradient in gradients]).double().norm()
    assert norm > 2 * CLIP
    share = clip / norm if clip else 1.0
    told = estimate.dry_run(run)
    assert told["loss"] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
    for before, gradient, after in zip(model.parameters(), gradients, run.model.parameters(), strict=True):
        expected = before.detach().double() - LR * gradient.double() * share
        torch.testing.assert_close(after.detach().double(), expected, rtol=1e-4, atol=1e-7)


def test_a_timed_step_is_a_whole_one(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches, clippings and updates of the steps that `swa plan` times, counted: three, one and one each."""
    seen: list[str] = []

    def counted(owner: Any, name: str) -> None:
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **options: (seen.append(name), real(*args, **options))[1])

    counted(step, "forward_backward")
    counted(nn.utils, "clip_grad_norm_")
    counted(run.optimizer, "step")
    num_timed, seconds = estimate.time_steps(run, run.context.training_batches(1))
    each = ["forward_backward"] * ACCUMULATE + ["clip_grad_norm_", "step"]
    assert seen == each * (num_timed + 1)
    assert 1 <= num_timed < run.plan.steps_per_epoch
    assert seconds > 0


def test_the_time_of_a_step_counts_waits_for_batches(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds of steps of which every third waits, by a clock of this test: their mean, without the first step."""
    waits = [9.0, *itertools.islice(itertools.cycle([0.0, 0.0, 0.3]), 20)]
    clock = iter([0.0, *itertools.accumulate(waits)])
    monkeypatch.setattr(estimate, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    num_timed, seconds = estimate.time_steps(run, run.context.training_batches(1))
    assert num_timed >= 3
    assert seconds == pytest.approx(sum(waits[1 : num_timed + 1]) / num_timed)


def test_the_steps_of_an_unfreezing_are_timed_before_and_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pace by what trains, of three epochs with a frozen first one, by hand; the run is frozen again afterwards."""
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE.replace("epochs: 2", "epochs: 3"))
    run = begun_from(path, "model.freeze=[features*]", "model.unfreeze=1ep")
    sizes = {name: values.numel() for name, values in run.model.named_parameters()}
    head = {name for name in sizes if not name.startswith("features")}
    kept = kept_layers(run.model)
    assert len(kept) == 5  # BatchNorm layers of the frozen part

    def trained() -> set[str]:
        return {name for name, values in run.model.named_parameters() if values.requires_grad}

    def paced(run: Run, batches: object) -> tuple[int, float]:
        return 4, {frozenset(head): 1.0, frozenset(sizes): 7.0}[frozenset(trained())]

    monkeypatch.setattr(estimate, "time_steps", paced)
    cluster = estimate.Cluster(processes=2, machines=2, gigabits=1.0)
    found = estimate.estimate(run, cluster=cluster)
    assert found.scaled is not None
    assert found.scaled.alone_s == found.scaled.compute_s == (1.0 + 7.0 + 7.0) / 3
    exchanged = sum(sizes[name] for name in head) + 2 * sum(sizes.values())
    assert found.scaled.gradient_bytes == round(exchanged * 4 / 3)
    assert trained() == head
    assert kept_layers(run.model) == kept


def test_whole_batches_are_timed_in_scoring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples of each scored batch that is timed, of 360 in batches of 100 and of 500: never those of the rest."""
    path, sizes = tmp_path / "small.yaml", list[int]()
    path.write_text(RECIPE)

    def score(model: object, batches: list[Any], **_: object) -> None:
        sizes.extend(len(labels) for _, labels in batches)

    monkeypatch.setattr(estimate.evaluate, "score", score)
    monkeypatch.setattr(estimate, "time_steps", lambda run, batches: (1, 1.0))
    for size in (100, 500):
        estimate.measure(begun_from(path, f"eval.batch_size={size}"))
    assert sizes == [100] * 3 + [360]


def test_scores_on_validation_images_are_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples scored without a test split, by hand: those of the end are the last scores, not others in addition."""
    images = tmp_path / "pets"
    for label in ("cat", "dog"):
        (images / label).mkdir(parents=True)
        for number in range(20):
            Image.new("L", (8, 8), number).save(images / label / f"{number}.png")
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE)
    run = begun_from(path, f"dataset={{name: image_folder, root: {images}, val: 10}}", "train.batch_size=6")
    assert (run.context.source.test, run.context.scoring_split()) == (None, "val")
    monkeypatch.setattr(estimate, "measure", lambda run: estimate.StepTimes(1, 1.0, 1.0, 1.0))
    seconds = estimate.estimate(run).seconds
    # Epochs and the average after each; at the end the raw weights as they are and refreshed, and the average.
    assert seconds["scoring"] == 10 * (2 + 2) + 10 * 3


def test_views_of_final_scores_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples scored with two and six views, by hand: not those after epochs; of test and of validation images."""
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE)
    monkeypatch.setattr(estimate, "measure", lambda run: estimate.StepTimes(1, 1.0, 1.0, 1.0))
    found = {}
    for tta, views in (("none", 1), ("flip", 2), ("flip_translate", 6)):
        found[views] = estimate.estimate(begun_from(path, f"eval.tta={tta}", "dataset.val=37")).seconds["scoring"]
    in_epochs = 37 * (2 + 2)  # and of the average
    assert found[1] == in_epochs + 37 + 360 * 3  # the twin alone is new on validation images
    assert found[2] == in_epochs + 2 * (37 + 360) * 3
    assert found[6] == in_epochs + 6 * (37 + 360) * 3
