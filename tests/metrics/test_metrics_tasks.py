"""Scores of segmentation and regression and their jackknife errors, against torchmetrics and loops over samples."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torchmetrics.functional as metrics
from torch import Tensor, nn

from swa_cli.engine import evaluate
from swa_cli.engine.hardware import Hardware
from swa_cli.errors import UserError
from swa_cli.metrics import regression, segmentation
from swa_cli.metrics.metric import jackknife, mean_of
from swa_cli.metrics.task import concatenate
from swa_cli.metrics.tasks import TASKS
from swa_cli.recipe.values import TASKS as NAMES

CPU = Hardware(torch.device("cpu"), "fp32", 1, False, "test")
NUM_CLASSES = 4  # of which the last is in no mask, and predicted nowhere


def images_with_masks(num_images: int = 23) -> tuple[Tensor, Tensor]:
    """Logits (N, 4, 5, 6) and masks of which a tenth is ignored."""
    generator = torch.Generator().manual_seed(1)
    masks = torch.randint(0, NUM_CLASSES - 1, (num_images, 5, 6), generator=generator)
    logits = torch.randn(num_images, NUM_CLASSES, 5, 6, generator=generator)
    logits += 1.5 * nn.functional.one_hot(masks, NUM_CLASSES).permute(0, 3, 1, 2)
    logits[:, -1] = -30
    masks[torch.rand(masks.shape, generator=generator) < 0.1] = segmentation.IGNORED
    return logits, masks


def by_hand(logits: Tensor, masks: Tensor) -> dict[str, float]:
    """All scores of all pixels at once: torchmetrics in float64, NLL by torch."""
    counted = masks != segmentation.IGNORED
    found, labels = logits.argmax(1)[counted], masks[counted]
    words = {"task": "multiclass", "num_classes": NUM_CLASSES}
    confusion = metrics.confusion_matrix(found, labels, **words).double()
    dice = 2 * confusion.diag() / (confusion.sum(0) + confusion.sum(1))
    return {
        "mean_iou": float(metrics.jaccard_index(found, labels, average="macro", **words)),
        "dice": float(dice.nanmean()),
        "pixel_accuracy": float((found == labels).double().mean()),
        "nll": float(nn.functional.cross_entropy(logits.double(), masks, ignore_index=segmentation.IGNORED)),
    }


def jackknife_by_loop(score: Callable[[Tensor], float], num_samples: int) -> float:
    """sqrt((n - 1) / n sum (left out - their mean)^2), leaving each sample out in turn."""
    rows = torch.arange(num_samples)
    left_out = torch.tensor([score(rows[rows != row]) for row in range(num_samples)], dtype=torch.float64)
    return math.sqrt((num_samples - 1) / num_samples * float((left_out - left_out.mean()).square().sum()))


def test_segmentation_scores_equal_torchmetrics_over_all_pixels() -> None:
    """Mean IoU, Dice, pixel accuracy, NLL in ragged batches, a class absent, against one confusion of all pixels."""
    logits, masks = images_with_masks()
    batches = zip(logits.split(10), masks.split(10), strict=True)
    row = evaluate.summarize(evaluate.score(nn.Identity(), batches, task=TASKS["segmentation"], hardware=CPU))
    for key, value in by_hand(logits, masks).items():
        assert row[key] == pytest.approx(value, abs=1e-6), key


def test_segmentation_errors_equal_a_loop_that_leaves_out_each_image() -> None:
    """Closed-form jackknife errors of every score against 23 evaluations of 22 images each."""
    logits, masks = images_with_masks()
    row = evaluate.summarize(segmentation.score_outputs(logits, masks))
    for key in ("mean_iou", "dice", "pixel_accuracy", "nll"):
        error = jackknife_by_loop(lambda rows, key=key: by_hand(logits[rows], masks[rows])[key], len(masks))
        assert row[f"{key}_se"] == pytest.approx(error, rel=1e-4), key


def test_differences_are_paired_and_those_of_the_scores() -> None:
    """Difference of mean IoU and R2 against that of the values, its error against a loop over both weight sets."""
    logits, masks = images_with_masks()
    other = logits + 0.3 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
    row = evaluate.compare(segmentation.score_outputs(other, masks), segmentation.score_outputs(logits, masks))

    def gain(rows: Tensor) -> float:
        return by_hand(other[rows], masks[rows])["mean_iou"] - by_hand(logits[rows], masks[rows])["mean_iou"]

    assert row["mean_iou_diff"] == pytest.approx(gain(torch.arange(len(masks))), abs=1e-6)
    assert row["mean_iou_diff_se"] == pytest.approx(jackknife_by_loop(gain, len(masks)), rel=1e-4)


def test_probabilities_score_as_their_logits_do() -> None:
    """Softmax of a batch scored as the mean of several weight sets would be, against its logits."""
    logits, masks = images_with_masks()
    exact = segmentation.score_outputs(logits, masks)
    found = segmentation.score_predictions(TASKS["segmentation"].predict({"out": logits, "aux": None}), masks)
    assert torch.equal(found["right"], exact["right"])
    torch.testing.assert_close(found["nll"], exact["nll"], rtol=1e-5, atol=1e-4)


def test_pixels_that_count_nowhere() -> None:
    """Loss and gradient with ignored pixels against those of the other pixels alone; none at all is worth 0."""
    logits, masks = images_with_masks()
    logits.requires_grad_()
    counted = masks != segmentation.IGNORED
    loss = segmentation.loss(logits, masks.to(torch.uint8), label_smoothing=0.1)
    expected = nn.functional.cross_entropy(logits.permute(0, 2, 3, 1)[counted], masks[counted], label_smoothing=0.1)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert not gradient.permute(0, 2, 3, 1)[~counted].any()
    nothing = torch.full_like(masks, segmentation.IGNORED)
    assert segmentation.loss(logits, nothing, label_smoothing=0.0).item() == 0
    assert segmentation.score_outputs(logits.detach(), nothing).metric("mean_iou").value is None


def test_a_class_that_there_is_not_is_named() -> None:
    """A mask with class 9 of 4: the message has both numbers."""
    logits, masks = images_with_masks()
    masks[3, 2, 1] = 9
    for function in (segmentation.score_outputs, lambda *batch: segmentation.loss(*batch, label_smoothing=0.0)):
        with pytest.raises(UserError, match="class 9, but there are 4"):
            function(logits, masks)


@pytest.mark.parametrize("num_outputs", [1, 3])
def test_regression_scores_equal_torchmetrics(num_outputs: int) -> None:
    """MSE, MAE and R2 of 61 samples in two batches against torchmetrics, R2's error against a loop."""
    generator = torch.Generator().manual_seed(4)
    targets = 100 + torch.randn(61, num_outputs, generator=generator)
    outputs = targets + 0.5 * torch.randn(61, num_outputs, generator=generator)
    parts = [regression.score_predictions(outputs[rows], targets[rows]) for rows in (slice(40), slice(40, 61))]
    row = evaluate.summarize(concatenate(parts))

    def r2(rows: Tensor) -> float:
        return float(metrics.r2_score(outputs[rows].double(), targets[rows].double(), multioutput="uniform_average"))

    assert row["mse"] == pytest.approx(float(metrics.mean_squared_error(outputs, targets)), rel=1e-5)
    assert row["mae"] == pytest.approx(float(metrics.mean_absolute_error(outputs, targets)), rel=1e-5)
    assert row["r2"] == pytest.approx(r2(torch.arange(61)), rel=1e-5)
    assert row["r2_se"] == pytest.approx(jackknife_by_loop(r2, 61), rel=1e-4)
    assert float(regression.loss(outputs, targets, label_smoothing=0)) == pytest.approx(row["mse"], rel=1e-5)


def test_outputs_without_a_dimension_are_not_broadcast() -> None:
    """Outputs (B,) for targets (B, 1) against the same as (B, 1): the difference is not (B, B)."""
    outputs, targets = torch.arange(5.0), torch.arange(5.0)[:, None]
    assert float(regression.loss(outputs, targets, label_smoothing=0)) == 0
    assert regression.score_predictions(outputs, targets)["error"].shape == (5, 1)


def test_jackknife_of_a_mean_is_its_standard_error() -> None:
    """Means without each value in turn, against the values themselves and s / sqrt(n)."""
    values = torch.rand(37, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    left_out = (values.sum() - values) / 36
    found, exact = jackknife(float(values.mean()), left_out), mean_of(values)
    assert found.each is not None
    torch.testing.assert_close(found.each, values, rtol=1e-12, atol=1e-12)
    assert found.error == pytest.approx(exact.error, rel=1e-12)


def test_the_error_of_a_score_that_one_sample_defines_is_unknown() -> None:
    """IoU of masks of which all but one are ignored, R2 of targets alike but for one, R2 of two: NaN, also of gains."""
    logits, masks = images_with_masks(4)
    masks[[0, 2, 3]] = segmentation.IGNORED
    scores, other = (segmentation.score_outputs(factor * logits, masks) for factor in (1, -1))
    for key in ("mean_iou", "dice", "pixel_accuracy", "nll"):
        row = evaluate.summarize(scores) | evaluate.compare(scores, other)
        assert row[f"{key}_diff"] == scores.metric(key).value - other.metric(key).value
        assert all(math.isnan(row[f"{key}{end}"]) for end in ("_se", "_diff_se"))
    targets = torch.full((30, 1), 0.1)
    targets[7] = 3.0
    for rows in (slice(None), slice(6, 8)):
        outputs = targets + torch.linspace(-1, 1, 30)[:, None]
        row = scored("regression", outputs[rows], targets[rows])
        assert math.isfinite(row["r2"])
        assert math.isnan(row["r2_se"])
        assert row["mse_se"] > 0


@pytest.mark.parametrize("task", list(TASKS))
def test_one_sample_has_no_error(task: str) -> None:
    """Scores and differences of one sample: NaN as every error, and no error that is 0."""
    logits, masks = images_with_masks(1)
    batches = {
        "classification": (torch.randn(1, 10), torch.tensor([3])),
        "multilabel": (torch.randn(1, 5), torch.tensor([[1.0, 0, 0, 1, 0]])),
        "segmentation": (logits, masks),
        "regression": (torch.randn(1, 2), torch.randn(1, 2)),
    }
    scores = TASKS[task].score_outputs(*batches[task])
    row = evaluate.summarize(scores) | evaluate.compare(scores, scores)
    errors = [value for key, value in row.items() if key.endswith("_se")]
    assert len(errors) == 2 * sum(metric.has_error for metric in TASKS[task].metrics.all)
    assert all(math.isnan(error) for error in errors)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6])
def test_r2_is_that_of_the_outputs_whose_targets_differ(constant: float) -> None:
    """R2 and its error of two outputs of which one has one target, against the other alone; None if both have one."""
    generator = torch.Generator().manual_seed(3)
    targets, noise = torch.randn(40, 2, generator=generator), 0.3 * torch.randn(40, 2, generator=generator)
    targets[:, 1] = constant
    row, alone = (scored("regression", (targets + noise)[:, :n], targets[:, :n]) for n in (2, 1))
    assert (row["r2"], row["r2_se"]) == pytest.approx((alone["r2"], alone["r2_se"]))
    targets[:, 0] = constant
    row = scored("regression", targets + noise, targets)
    assert row["r2"] is None
    assert row["mse"] > 0
    noise[0, 0] = math.nan  # what a network makes of a sample is not hidden
    targets[:, 0] = torch.randn(40, generator=generator)
    assert math.isnan(scored("regression", targets + noise, targets)["r2"])


def scored(task: str, outputs: Tensor, targets: Tensor) -> dict[str, float]:
    """The scores of outputs, as a network that gives them has them."""
    found = evaluate.score(nn.Identity(), [(outputs, targets)], task=TASKS[task], hardware=CPU)
    return evaluate.summarize(found)


def test_every_task_is_known_to_recipes_and_scores_what_it_says() -> None:
    """Names in recipes against the tasks, and the keys of each task's scores against its table of metrics.

    No score stands in for another: each has a value of its own, and a name that is not there has none.
    """
    assert set(NAMES) == set(TASKS)
    logits, masks = images_with_masks()
    generator = torch.Generator().manual_seed(6)
    batches = {
        "classification": (torch.randn(80, 10, generator=generator), torch.arange(80) % 10),
        "multilabel": (torch.randn(40, 5, generator=generator), (torch.arange(200) % 3 == 0).float().view(40, 5)),
        "segmentation": (logits, masks),
        "regression": (torch.randn(8, 2, generator=generator), torch.randn(8, 2, generator=generator)),
    }
    for name, task in TASKS.items():
        scores = task.score_outputs(*batches[name])
        assert list(scores.keys) == [metric.key for metric in task.metrics.all]
        assert task.train_score(*batches[name]).shape == ()
        for metric in task.metrics.all:
            assert (scores.metric(metric.key).error is not None) == metric.has_error
        values = [scores.metric(key).value for key in scores.keys]
        assert len(set(values)) == len(values)
        with pytest.raises(KeyError, match="f1"):
            scores.metric("f1")


@pytest.mark.parametrize(
    ("name", "outputs", "shares"),
    [
        ("classification", "GoogLeNetOutputs", [0.3, 0.3]),
        ("classification", "InceptionOutputs", [0.4]),
        ("segmentation", "a dict", [0.5]),
    ],
)
def test_auxiliary_heads_have_their_documented_share(name: str, outputs: str, shares: list[float]) -> None:
    """The loss of torchvision's outputs in training against cross-entropies by hand; heads that are off are nothing."""
    from torchvision.models.googlenet import GoogLeNetOutputs
    from torchvision.models.inception import InceptionOutputs

    generator = torch.Generator().manual_seed(0)
    shape = (6, 3) if name == "classification" else (6, 3, 4, 4)
    targets = torch.randint(0, 3, (6, *shape[2:]), generator=generator)
    main, *heads = (torch.randn(shape, generator=generator) for _ in range(1 + len(shares)))
    make = {
        "GoogLeNetOutputs": lambda main, *heads: GoogLeNetOutputs(main, *heads),
        "InceptionOutputs": lambda main, head: InceptionOutputs(main, head),
        "a dict": lambda main, head: {"out": main, "aux": head},
    }[outputs]
    losses = [nn.functional.cross_entropy(values, targets) for values in (main, *heads)]
    right = losses[0] + sum(share * loss for share, loss in zip(shares, losses[1:], strict=True))
    task = TASKS[name]
    found = task.loss(make(main, *heads), targets, label_smoothing=0.0)
    torch.testing.assert_close(found, right)
    alone = task.loss(make(main, *[None] * len(heads)), targets, label_smoothing=0.0)
    torch.testing.assert_close(alone, losses[0])
    assert task.train_score(make(main, *heads), targets) == task.train_score(main, targets)


def test_the_auxiliary_head_of_a_segmentation_network_is_trained(swa, tmp_path) -> None:
    """Weights of the auxiliary head of DeepLabV3, with `aux_loss`, at two snapshots: all have moved."""
    words = ["task=segmentation", "model.name=torchvision:deeplabv3_mobilenet_v3_large", "model.args.aux_loss=true"]
    (tmp_path / "recipe.yaml").write_text(
        "dataset: {name: shapes, val: 0, args: {size: 16, classes: 2, train: 4, test: 2}}\n"
        "model: {name: unet}\noptimizer: {lr: 0.01}\nschedule: {name: constant, warmup: 0ep}\n"
        "snapshots: {every: 1step}\ntrain: {epochs: 1, batch_size: 2, threads: 1, precision: fp32}\n"
    )
    ended = swa("train", "recipe.yaml", *words)
    assert ended.code == 0, ended.err
    paths = sorted((tmp_path / "runs").glob("*-001/snapshots/*.pt"))
    first, second = (torch.load(path, weights_only=True)["state_dict"] for path in paths)
    heads = [key for key in first if key.startswith("aux_classifier") and key.endswith("weight")]
    assert heads
    assert all(not torch.equal(first[key], second[key]) for key in heads)
