"""Scores of each class against torchmetrics and pair counts, their standard errors against resampling and DeLong."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from swa_cli.data.randomness import generator
from swa_cli.metrics.per_class import CLASS_METRICS, Outcomes, class_scores

N = 400
RESAMPLES = 1000


def made(num_classes: int, *, seed: int = 0) -> Outcomes:
    """Noisy probabilities of imbalanced classes; rounded, so that many are equal."""
    random = generator(seed, "outcomes")
    shares = torch.arange(1, num_classes + 1).double()
    labels = torch.multinomial(shares, N, replacement=True, generator=random)
    logits = torch.randn(N, num_classes, generator=random) + 1.2 * torch.eye(num_classes)[labels]
    return Outcomes((10 * logits).round().div(10).softmax(1), labels)


@pytest.mark.filterwarnings("ignore")  # of the other library
@pytest.mark.parametrize("num_classes", [2, 5])
def test_the_scores_are_those_of_torchmetrics(num_classes: int) -> None:
    """Precision, recall, F1 and AUROC per class, and their macro means, of 400 samples."""
    from torchmetrics.functional import classification as theirs

    outcomes = made(num_classes)
    for metric in CLASS_METRICS:
        function = getattr(theirs, f"multiclass_{'f1_score' if metric.key == 'f1' else metric.key}")
        found = metric.compute(outcomes)
        for average, own in (("none", found.each), ("macro", torch.tensor(found.mean))):
            expected = function(outcomes.p, outcomes.labels, num_classes=num_classes, average=average)
            torch.testing.assert_close(own.float(), expected, atol=1e-5, rtol=0, msg=metric.key)


@pytest.mark.parametrize("num_classes", [2, 5])
def test_the_errors_are_those_of_resampling(num_classes: int) -> None:
    """Each error, of a class and of a mean, against the spread over 1,000 resamples of the 400 samples."""
    outcomes, random = made(num_classes), generator(1, "resample")
    rows = torch.randint(N, (RESAMPLES, N), generator=random)
    for metric in CLASS_METRICS:
        number = 200 if metric.key == "auroc" else RESAMPLES  # it takes longer
        tolerance = 3 / math.sqrt(2 * number)  # three standard errors of a spread
        found = metric.compute(outcomes)
        values = [metric.compute(Outcomes(outcomes.p[row], outcomes.labels[row])) for row in rows[:number]]
        spread = torch.stack([each.each for each in values]).std(0)
        torch.testing.assert_close(found.errors, spread, atol=0, rtol=tolerance, msg=metric.key)
        spread = torch.tensor([each.mean for each in values]).std()
        assert found.mean_error == pytest.approx(float(spread), rel=tolerance), metric.mean_key


def test_the_errors_of_shares_are_binomial() -> None:
    """Recall, precision and balanced accuracy in closed form."""
    outcomes = made(3)
    predicted = outcomes.p.argmax(1)
    row = class_scores(outcomes, names=["a", "b", "c"])
    recalls = []
    for number, item in enumerate(row["classes"]):
        inside, named = outcomes.labels == number, predicted == number
        assert (item["support"], item["predicted"]) == (int(inside.sum()), int(named.sum()))
        for key, of in (("recall", inside), ("precision", named)):
            value = float((inside & named).sum() / of.sum().double())
            assert item[key] == pytest.approx(value)
            assert item[f"{key}_se"] == pytest.approx(math.sqrt(value * (1 - value) / int(of.sum())))
        recalls.append((item["recall"], item["recall_se"]))
    assert row["balanced_accuracy"] == pytest.approx(sum(value for value, _ in recalls) / 3)
    assert row["balanced_accuracy_se"] == pytest.approx(math.sqrt(sum(error**2 for _, error in recalls)) / 3)


def delong(positive: Tensor, negative: Tensor) -> tuple[float, float]:
    """The area and its error, by counting all pairs (DeLong et al. 1988, equations 2 to 5)."""
    kernel = (positive[:, None] > negative).double() + 0.5 * (positive[:, None] == negative).double()
    above, below = kernel.mean(1), kernel.mean(0)
    return float(kernel.mean()), math.sqrt(above.var() / len(above) + below.var() / len(below))


def test_the_error_of_an_area_is_that_of_delong() -> None:
    """AUROC and its error of each class by all pairs; of two classes both have the same, and so has the mean."""
    for num_classes in (2, 5):
        outcomes = made(num_classes, seed=2)
        (metric,) = (metric for metric in CLASS_METRICS if metric.key == "auroc")
        found = metric.compute(outcomes)
        for number in range(num_classes):
            is_class, p = outcomes.labels == number, outcomes.p[:, number]
            area, error = delong(p[is_class], p[~is_class])
            assert float(found.each[number]) == pytest.approx(area, abs=1e-12)
            assert float(found.errors[number]) == pytest.approx(error, rel=1e-9)
        if num_classes == 2:
            assert found.mean == pytest.approx(float(found.each[0]), abs=1e-3)
            assert found.mean_error == pytest.approx(float(found.errors[0]), rel=1e-2)


def test_what_is_not_defined_is_none() -> None:
    """A class without samples, one that is never predicted, and a perfect one: None where nothing can be said."""
    labels = torch.tensor([0, 0, 1, 1, 3])
    p = torch.eye(4)[torch.tensor([0, 0, 2, 0, 3])]
    row = class_scores(Outcomes(p, labels), names=["zero", "one", "two", "three"])
    zero, one, two, three = row["classes"]
    assert (one["precision"], one["recall"], one["f1"]) == (None, 0.0, 0.0)
    assert (two["precision"], two["recall"], two["f1"], two["auroc"]) == (0.0, None, 0.0, None)
    assert (three["precision"], three["recall"], three["f1"], three["auroc"]) == (1.0, 1.0, 1.0, 1.0)
    assert zero["f1"] == pytest.approx(0.8)
    assert row["balanced_accuracy"] == pytest.approx(2 / 3)
    assert row["macro_f1"] == pytest.approx((0.8 + 0 + 0 + 1) / 4)
    assert all(value is None or math.isfinite(value) for key, value in row.items() if key != "classes")
