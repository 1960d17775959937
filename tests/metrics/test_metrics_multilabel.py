"""Scores, class scores and losses of several labels per sample, against torchmetrics, torch, timm and definitions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torchmetrics.functional.classification as theirs
from torch import Tensor, nn

from swa_cli.metrics.average_precision import average_precision
from swa_cli.metrics.losses import balanced_positive_weights
from swa_cli.metrics.metric import MULTILABEL, SampleScores
from swa_cli.metrics.per_class import LABEL_METRICS, LabelOutcomes, class_scores
from swa_cli.metrics.tasks import TASKS, training_loss

TASK = TASKS["multilabel"]
N, K = 120, 4
WEIGHTS = torch.tensor([0.5, 1.0, 4.0, 12.0])


def made(*, seed: int = 0, number: int = N) -> tuple[Tensor, Tensor]:
    """Noisy logits, rounded so that many are equal, and labels of rare and frequent classes; some samples have none."""
    random = torch.Generator().manual_seed(seed)
    labels = (torch.rand(number, K, generator=random) < torch.tensor([0.5, 0.3, 0.2, 0.1])).float()
    logits = 1.5 * torch.randn(number, K, generator=random) + 2 * labels - 1
    assert bool((labels.sum(1) == 0).any())
    return (4 * logits).round() / 4, labels


def precision_by_hand(p: Tensor, positive: Tensor) -> float:
    """The sum over thresholds of the gain in recall times the precision, as scikit-learn documents it."""
    total, recall = 0.0, 0.0
    for threshold in sorted(set(p.tolist()), reverse=True):
        above = p >= threshold
        hits = int((above & positive).sum())
        total += (hits / int(positive.sum()) - recall) * hits / int(above.sum())
        recall = hits / int(positive.sum())
    return total


@pytest.mark.filterwarnings("ignore")  # of the other library
def test_scores_are_those_of_torchmetrics() -> None:
    """mAP, both F1 and the accuracy of labels; the NLL of outputs, and of their probabilities, against torch's."""
    logits, labels = made()
    p, ints = logits.sigmoid(), labels.int()
    expected = {
        "map": theirs.multilabel_average_precision(p, ints, num_labels=K, average="macro"),
        "macro_f1": theirs.multilabel_f1_score(p, ints, num_labels=K, average="macro"),
        "micro_f1": theirs.multilabel_f1_score(p, ints, num_labels=K, average="micro"),
        "label_accuracy": theirs.multilabel_accuracy(p, ints, num_labels=K, average="micro"),
        "nll": nn.functional.binary_cross_entropy_with_logits(logits, labels),
    }
    for scores in (TASK.score_outputs(logits, labels), TASK.score_predictions(TASK.predict(logits), labels)):
        assert list(scores.keys) == [*expected]
        for key, value in expected.items():
            assert scores.metric(key).value == pytest.approx(float(value), abs=1e-6), key
    train_score = TASK.train_score(logits, labels)
    assert float(train_score) == pytest.approx(float(expected["label_accuracy"]), abs=1e-6)


def test_average_precision_without_each_sample_is_that_of_the_others() -> None:
    """The closed form against the definition, computed anew without each sample; many equal scores."""
    logits, labels = made()
    for scores, positive in zip(logits.T, labels.T.bool(), strict=True):
        value, left_out = average_precision(scores.contiguous(), positive)
        assert value == pytest.approx(precision_by_hand(scores, positive), abs=1e-12)
        for row in range(N):
            rest = torch.arange(N) != row
            assert float(left_out[row]) == pytest.approx(precision_by_hand(scores[rest], positive[rest]), abs=1e-12)


@pytest.mark.parametrize(
    ("positive", "value", "left_out"),
    [
        ([1, 0, 0], 1.0, [math.nan, 1.0, 1.0]),
        ([0, 0, 1], 1 / 3, [1 / 2, 1 / 2, math.nan]),
        ([0, 0, 0], math.nan, [math.nan] * 3),
        ([1, 1, 1], 1.0, [1.0] * 3),
    ],
)
def test_average_precision_of_few(positive: list[int], value: float, left_out: list[float]) -> None:
    """One sample of a class first or last, none, and nothing else, by hand."""
    found = average_precision(torch.tensor([0.9, 0.5, 0.1]), torch.tensor(positive, dtype=torch.bool))
    assert found[0] == pytest.approx(value, nan_ok=True)
    assert found[1].tolist() == pytest.approx(left_out, nan_ok=True)


def test_classes_without_samples_are_in_no_mean() -> None:
    """A class that no sample has: mAP of the others, None of all; macro F1 counts it once it is predicted."""
    logits, labels = made()
    labels[:, 3] = 0
    rest = TASK.score_outputs(logits[:, :3], labels[:, :3])
    scores = TASK.score_outputs(logits, labels)
    assert scores.metric("map").value == pytest.approx(rest.metric("map").value)
    assert scores.metric("macro_f1").value == pytest.approx(0.75 * rest.metric("macro_f1").value)
    never = torch.cat([logits[:, :3], torch.full((N, 1), -9.0)], dim=1)
    assert TASK.score_outputs(never, labels).metric("macro_f1").value == rest.metric("macro_f1").value
    nothing = TASK.score_outputs(logits, torch.zeros_like(labels)).metric("map")
    assert nothing.value is None
    assert math.isnan(nothing.error)


def test_errors_are_those_of_resampling() -> None:
    """Each error, and that of a paired difference of two weight sets, against the spread over 300 resamples."""
    logits, labels = made(number=400)
    other = logits + torch.randn(400, K, generator=torch.Generator().manual_seed(5))
    random, sets = torch.Generator().manual_seed(1), (logits, other)
    whole = [TASK.score_outputs(each, labels) for each in sets]
    values: dict[str, list[list[float]]] = {key: [] for key in MULTILABEL.keys}
    for _ in range(300):
        rows = torch.randint(400, (400,), generator=random)
        scores = [TASK.score_outputs(each[rows], labels[rows]) for each in sets]
        for key in MULTILABEL.keys:
            values[key].append([each.metric(key).value for each in scores])
    for key in MULTILABEL.keys:
        spread = torch.tensor(values[key], dtype=torch.float64)
        first, second = (each.metric(key) for each in whole)
        assert first.error == pytest.approx(float(spread[:, 0].std()), rel=0.15), key
        paired = float((first.each - second.each).std()) / math.sqrt(400)
        assert paired == pytest.approx(float((spread[:, 0] - spread[:, 1]).std()), rel=0.15), key
        assert float(first.each.mean()) == pytest.approx(first.value, abs=1e-9)


def test_certain_probabilities_have_a_finite_loss() -> None:
    """0 and 1, right and wrong: the loss is finite, and that of a certain right label is 0."""
    p, labels = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    right, wrong = TASK.score_predictions(p, labels)["nll"].tolist()
    assert right == pytest.approx(0, abs=1e-6)
    assert math.isfinite(wrong)
    assert wrong > 15


# --- classes


def outcomes() -> LabelOutcomes:
    logits, labels = made(number=400)
    return LabelOutcomes(logits.sigmoid(), labels)


@pytest.mark.filterwarnings("ignore")  # of the other library
def test_class_scores_are_those_of_torchmetrics() -> None:
    """Precision, recall, F1 and average precision of each class, and the means; support and predicted counted."""
    found = outcomes()
    names = {"f1": "f1_score", "ap": "average_precision"}
    row = class_scores(found, names=[*"abcd"])
    for metric in LABEL_METRICS:
        function = getattr(theirs, f"multilabel_{names.get(metric.key, metric.key)}")
        for average, own in (("none", [each[metric.key] for each in row["classes"]]), ("macro", row[metric.mean_key])):
            expected = function(found.p, found.labels.int(), num_labels=K, average=average)
            torch.testing.assert_close(torch.tensor(own), expected, atol=1e-6, rtol=0, msg=metric.key)
    scores = TASK.score_predictions(found.p, found.labels)
    for key in ("map", "macro_f1"):
        assert row[key] == pytest.approx(scores.metric(key).value, abs=1e-12)
        assert row[f"{key}_se"] == pytest.approx(scores.metric(key).error, rel=0.02)
    assert [each["support"] for each in row["classes"]] == found.labels.sum(0).int().tolist()
    assert [each["predicted"] for each in row["classes"]] == (found.p > 0.5).sum(0).tolist()


def test_class_errors_are_those_of_resampling() -> None:
    """Each error, of a class and of a mean, against the spread over 300 resamples; that of a recall is binomial."""
    found, random = outcomes(), torch.Generator().manual_seed(1)
    rows = torch.randint(400, (300, 400), generator=random)
    for metric in LABEL_METRICS:
        own = metric.compute(found)
        values = [metric.compute(LabelOutcomes(found.p[row], found.labels[row])) for row in rows]
        spread = torch.stack([each.each for each in values]).std(0)
        torch.testing.assert_close(own.errors, spread, atol=0, rtol=0.15, msg=metric.key)
        assert own.mean_error == pytest.approx(float(torch.tensor([each.mean for each in values]).std()), rel=0.15)
    (recall,) = (metric.compute(found) for metric in LABEL_METRICS if metric.key == "recall")
    support = found.labels.sum(0)
    torch.testing.assert_close(recall.errors, (recall.each * (1 - recall.each) / support).sqrt())


def test_class_scores_that_are_not_defined_are_none() -> None:
    """A class without samples, one that is never predicted: None where nothing can be said."""
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    p = torch.tensor([[0.9, 0.8, 0.2], [0.1, 0.3, 0.4]])
    first, second, third = class_scores(LabelOutcomes(p, labels), names=[*"abc"])["classes"]
    assert (first["precision"], first["recall"], first["f1"], first["ap"]) == (1, 1, 1, 1)
    assert (second["precision"], second["recall"], second["f1"], second["ap"]) == (0, None, 0, None)
    assert (third["precision"], third["recall"], third["f1"], third["ap"]) == (None, 0, 0, 1)
    assert (second["recall_se"], third["precision_se"]) == (None, None)
    assert (first["ap_se"], third["ap_se"]) == (None, 0)  # the first class has one sample


def test_the_error_of_the_mean_is_that_of_the_score() -> None:
    """The error of mAP in the table of classes, where a class has one sample, against that of the score."""
    found = outcomes()
    found.labels[:, 1] = 0
    found.labels[3, 1] = 1
    row = class_scores(found, names=[*"abcd"])
    scored = TASK.score_predictions(found.p, found.labels).metric("map")
    assert (row["map"], row["map_se"]) == pytest.approx((scored.value, scored.error))


# --- losses


def loss(logits: Tensor, labels: Tensor, **options: Any) -> float:
    return float(training_loss(TASK, **options)(logits, labels))


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_bce_is_torchs(weights: Tensor | None, label_smoothing: float) -> None:
    """The default, and by name, against BCEWithLogitsLoss(pos_weight=) of labels y (1 - s) + s / K; mixed ones too."""
    logits, labels = made()
    for targets in (labels, 0.7 * labels + 0.3 * labels.roll(1, 0)):
        smooth = targets * (1 - label_smoothing) + label_smoothing / K
        expected = float(nn.BCEWithLogitsLoss(pos_weight=weights)(logits, smooth))
        options = {"class_weights": weights, "label_smoothing": label_smoothing}
        assert loss(logits, targets, **options) == pytest.approx(expected, abs=1e-6)
        assert loss(logits, targets, name="bce", **options) == pytest.approx(expected, abs=1e-6)


def test_smoothing_is_timms() -> None:
    """Samples with one label each, against timm's BinaryCrossEntropy of their classes."""
    from timm.loss import BinaryCrossEntropy

    logits, classes = made()[0], torch.arange(N) % K
    labels = nn.functional.one_hot(classes, K).float()
    expected = BinaryCrossEntropy(smoothing=0.1)(logits, classes)
    assert loss(logits, labels, label_smoothing=0.1) == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_is_torchvisions(gamma: float) -> None:
    """Against sigmoid_focal_loss without alpha; gamma 0 with weights against bce; finite gradients where certain."""
    from torchvision.ops import sigmoid_focal_loss

    logits, labels = made()
    expected = sigmoid_focal_loss(logits, labels, alpha=-1, gamma=gamma, reduction="mean")
    assert loss(logits, labels, name="focal", focal_gamma=gamma) == pytest.approx(float(expected), abs=1e-6)
    if gamma == 0:
        for options in ({"class_weights": WEIGHTS}, {"label_smoothing": 0.1}):
            found = loss(logits, labels, name="focal", focal_gamma=0.0, **options)
            assert found == pytest.approx(loss(logits, labels, **options), abs=1e-6)
    certain = torch.tensor([[200.0, -200.0]], requires_grad=True)
    training_loss(TASK, name="focal", focal_gamma=gamma)(certain, torch.tensor([[1.0, 1.0]])).backward()
    assert certain.grad is not None
    assert certain.grad.isfinite().all()


def test_balanced_weights_are_negatives_per_positive() -> None:
    """Against the counts by hand: a class without samples has infinity, one that all have 0."""
    labels = torch.tensor([[1, 0, 1], [1, 0, 0], [1, 0, 0], [1, 0, 1]], dtype=torch.uint8)
    assert balanced_positive_weights(labels).tolist() == [0.0, math.inf, 1.0]


def test_half_precision_is_computed_in_float32() -> None:
    """bf16 logits against the same numbers in float32: losses, predictions, and scores."""
    logits, labels = made()
    half = (logits + 0.1).bfloat16()
    assert loss(half, labels) == loss(half.float(), labels)
    assert torch.equal(TASK.predict(half), half.float().sigmoid())
    found: SampleScores = TASK.score_outputs(half, labels)
    assert torch.equal(found["nll"], TASK.score_outputs(half.float(), labels)["nll"])
