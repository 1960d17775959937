"""Scores and their errors, against torchmetrics, closed forms and the definition."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchmetrics.functional.classification as reference
from torch import Tensor, nn

from swa_cli.analysis import run_data
from swa_cli.engine import evaluate
from swa_cli.engine.hardware import Hardware
from swa_cli.metrics import classification as tasks
from swa_cli.metrics.metric import CLASSIFICATION, SampleScores, standard_error
from swa_cli.metrics.tasks import TASKS

CPU = Hardware(torch.device("cpu"), "fp32", 1, False, "test")
TASK = TASKS["classification"]


@pytest.fixture
def predictions() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, 10, (1003,), generator=generator)
    logits = torch.randn(1003, 10, generator=generator) + 2 * nn.functional.one_hot(labels, 10)
    return logits, labels


def in_every_bin() -> tuple[Tensor, Tensor]:
    """Probabilities (N, 20), in float64, of four samples in each of 15 bins, and of one that is certain.

    Samples of even bins are right, those of odd ones wrong: gaps of neighbours have opposite signs.
    """
    confidence = torch.tensor([(number + part) / 15 for number in range(15) for part in (0.8, 0.85, 0.9, 0.95)] + [1.0])
    confidence = confidence.double()
    p = ((1 - confidence) / 19)[:, None].repeat(1, 20)
    predicted = torch.arange(len(p)) % 20
    p[torch.arange(len(p)), predicted] = confidence
    is_wrong = (confidence * 15).long().clamp(max=14) % 2
    return p, (predicted + is_wrong) % 20


def test_scores_equal_torchmetrics(predictions: tuple[Tensor, Tensor]) -> None:
    """Accuracy, top-5 and ECE of 1,003 samples against torchmetrics; NLL and Brier against their definitions."""
    logits, labels = predictions
    row = evaluate.summarize(tasks.score_outputs(logits, labels))
    p = logits.double().softmax(1)
    one_hot = nn.functional.one_hot(labels, 10)
    assert row["accuracy"] == pytest.approx(float((logits.argmax(1) == labels).double().mean()), abs=1e-12)
    top5 = reference.multiclass_accuracy(logits, labels, num_classes=10, top_k=5, average="micro")
    assert row["top5"] == pytest.approx(float(top5), abs=1e-6)
    ece = reference.multiclass_calibration_error(p, labels, num_classes=10, n_bins=15, norm="l1")
    assert row["ece"] == pytest.approx(float(ece), abs=1e-6)
    assert row["nll"] == pytest.approx(float(-p.log()[torch.arange(1003), labels].mean()), abs=1e-6)
    assert row["brier"] == pytest.approx(float((p - one_hot).square().sum(1).mean()), abs=1e-6)


def test_each_bin_of_the_calibration_error_is_its_own() -> None:
    """ECE of samples in all 15 bins, of which neighbours are wrong in opposite ways, against a loop and torchmetrics.

    Bins that were moved, merged or of another number would let gaps of both signs cancel each other.
    """
    p, labels = in_every_bin()
    confidence, right = p.max(1).values.tolist(), (p.argmax(1) == labels).tolist()
    gaps = [0.0] * 15
    for sure, is_right in zip(confidence, right, strict=True):
        gaps[min(int(sure * 15), 14)] += is_right - sure
    assert all(before * after < 0 for before, after in itertools.pairwise(gaps))
    by_hand = sum(map(abs, gaps)) / len(confidence)
    theirs = reference.multiclass_calibration_error(p, labels, num_classes=20, n_bins=15, norm="l1")
    for scores in (tasks.score_predictions(p, labels), tasks.score_outputs(p.log(), labels)):
        found = evaluate.summarize(scores)["ece"]
        assert found == pytest.approx(by_hand, abs=1e-6)
        assert found == pytest.approx(float(theirs), abs=1e-6)


def test_bins_of_a_reliability_diagram_are_those_of_a_loop() -> None:
    """Samples, mean confidence and accuracy of each of 15 bins, a bin without samples among them."""
    p, labels = in_every_bin()
    kept = [index for index, sure in enumerate(p.max(1).values.tolist()) if int(sure * 15) != 6]
    p, labels = p[kept], labels[kept]
    members: list[list[int]] = [[] for _ in range(15)]
    for index, sure in enumerate(p.max(1).values.tolist()):
        members[min(int(sure * 15), 14)].append(index)
    found = run_data.bins_of(p, labels)
    assert [row["count"] for row in found] == [len(inside) for inside in members]
    assert found[6] == {"count": 0, "confidence": None, "accuracy": None}
    for row, inside in zip(found, members, strict=True):
        if inside:
            right = sum(int(p[index].argmax()) == int(labels[index]) for index in inside)
            assert row["accuracy"] == pytest.approx(right / len(inside), abs=1e-12)
            sure = math.fsum(float(p[index].max()) for index in inside)
            assert row["confidence"] == pytest.approx(sure / len(inside), abs=1e-12)


def test_a_confusion_matrix_has_a_row_for_each_true_class() -> None:
    """Counts of a matrix that is not symmetric, against a loop over the samples."""
    p = torch.tensor([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [0.1, 0.2, 0.7], [0.1, 0.8, 0.1], [0.6, 0.3, 0.1]])
    labels = torch.tensor([0, 0, 1, 0, 2])
    run: Any = SimpleNamespace(recipe=SimpleNamespace(task="classification"), predictions={"last": (p, labels)})
    expected = [[0] * 3 for _ in range(3)]
    for row, label in zip(p, labels, strict=True):
        expected[int(label)][int(row.argmax())] += 1
    assert expected == [[1, 2, 0], [0, 0, 1], [1, 0, 0]]
    assert run_data.confusion(run, "last") == ("last", expected)


def test_scores_of_probabilities_equal_those_of_logits(predictions: tuple[Tensor, Tensor]) -> None:
    """Softmax scored as probabilities, in float64 and float32, against its logits: every score of every sample."""
    logits, labels = predictions
    exact = tasks.score_outputs(logits, labels)
    for probabilities in (logits.double().softmax(1), logits.softmax(1)):
        found = tasks.score_predictions(probabilities, labels)
        assert torch.equal(found["correct"], exact["correct"])
        assert torch.equal(found["top5"], exact["top5"])
        for key in ("nll", "brier", "confidence"):
            torch.testing.assert_close(found[key], exact[key], rtol=1e-5, atol=1e-6, check_dtype=False)


def test_a_probability_of_0_has_a_finite_nll() -> None:
    """A label that was thought impossible: -log of the smallest normal number, in float32 also for bf16."""
    scores = tasks.score_predictions(torch.tensor([[1.0, 0.0]], dtype=torch.bfloat16), torch.tensor([1]))
    assert scores["nll"].item() == pytest.approx(-math.log(torch.finfo(torch.float32).tiny), rel=1e-6)
    assert scores["nll"].dtype == torch.float32


def test_predictions_are_the_softmax_of_every_sample(predictions: tuple[Tensor, Tensor]) -> None:
    """Probabilities over ragged batches against the softmax of all at once, in order, with their labels."""
    logits, labels = predictions
    batches = zip(logits.split(400), labels.split(400), strict=True)
    probabilities, same = evaluate.predict(nn.Identity(), batches, task=TASK, hardware=CPU)
    torch.testing.assert_close(probabilities, logits.softmax(1), rtol=1e-6, atol=1e-7)
    assert torch.equal(same, labels)


def test_standard_error_of_accuracy_is_the_binomial_one() -> None:
    """SE of 30 right of 40 against sqrt(p(1-p)/n)."""
    correct = torch.arange(40) < 30
    scores = SampleScores(
        CLASSIFICATION, {"correct": correct, **dict.fromkeys(("nll", "brier", "confidence"), torch.ones(40))}
    )
    assert evaluate.summarize(scores)["accuracy_se"] == pytest.approx(math.sqrt(0.75 * 0.25 / 40), abs=1e-15)


def test_paired_error_uses_the_same_samples(predictions: tuple[Tensor, Tensor]) -> None:
    """The paired SE against the sample formula, and far below the unpaired one for weight sets that agree."""
    logits, labels = predictions
    first = tasks.score_outputs(logits, labels)
    second = tasks.score_outputs(logits + 0.1 * torch.randn(logits.shape, generator=torch.Generator()), labels)
    row = evaluate.compare(second, first)
    difference = (second["nll"] - first["nll"]).double()
    assert row["nll_diff"] == pytest.approx(float(difference.mean()), abs=1e-12)
    assert row["nll_diff_se"] == pytest.approx(float(difference.std()) / math.sqrt(1003), abs=1e-12)
    unpaired = math.hypot(standard_error(first["nll"]), standard_error(second["nll"]))
    assert row["nll_diff_se"] < unpaired / 5


def test_means_are_over_samples_and_not_over_batches(predictions: tuple[Tensor, Tensor]) -> None:
    """Scores with a ragged last batch against those of one batch of everything: never the mean of batch means."""
    logits, labels = predictions
    model = nn.Identity()
    ragged = evaluate.score(model, zip(logits.split(400), labels.split(400), strict=True), task=TASK, hardware=CPU)
    whole = evaluate.score(model, [(logits, labels)], task=TASK, hardware=CPU)
    assert evaluate.summarize(ragged) == evaluate.summarize(whole)


def test_top5_is_left_out_for_five_classes() -> None:
    """Top-5 of five classes would always be 1: None against a number for six."""
    assert tasks.score_outputs(torch.randn(3, 5), torch.zeros(3, dtype=torch.long)).metric("top5").value is None
    assert tasks.score_outputs(torch.randn(3, 6), torch.zeros(3, dtype=torch.long)).metric("top5").value is not None


def test_scoring_keeps_the_mode_and_draws_nothing() -> None:
    """Mode of each layer and the random state after scoring against before (FACTS: scoring changed training)."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.BatchNorm1d(4))
    model[2].eval()
    model.train(True)
    model[2].eval()
    state = torch.get_rng_state()
    buffers = {key: value.clone() for key, value in model.state_dict().items()}
    evaluate.score(
        model,
        [(torch.randn(8, 4, generator=torch.Generator()), torch.zeros(8, dtype=torch.long))],
        task=TASK,
        hardware=CPU,
    )
    assert [layer.training for layer in model] == [True, True, False]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(buffers[key], value) for key, value in model.state_dict().items())


def test_large_weights_do_not_hide_what_an_average_has_moved() -> None:
    """A head that moved by 0.2 % beside weights a million times its size, which rounding moves; 0.1 % is nothing."""
    raw = {"large": torch.full((10,), 1e6), "head": torch.ones(10)}
    options: dict[str, Any] = {"count": 4, "raw": raw, "names": list(raw)}
    assert evaluate.unjudged("swa", weights=raw | {"head": raw["head"] * 1.002}, **options) is None
    rounded = {"large": raw["large"] + 0.1}
    assert evaluate.unjudged("swa", weights=raw | rounded | {"head": raw["head"] * 1.002}, **options) is None
    near = raw | rounded | {"head": raw["head"] * 1.001}
    assert "equals the raw weights" in str(evaluate.unjudged("swa", weights=near, **options))
    assert "equals the raw weights" in str(evaluate.unjudged("swa", weights=dict(raw), **options))
