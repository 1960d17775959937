"""Mixup and CutMix against torchvision's own, the Beta distribution, and the losses of the single classes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch.nn import functional
from torchvision.transforms import v2

from swa_cli.data.augment import Augment, Mix, draw_mixes, mix_batch, one_hot
from swa_cli.data.randomness import generator
from swa_cli.errors import UserError
from swa_cli.metrics.tasks import TASKS

KEY = ("augment", 1)


@settings(max_examples=30)
@given(
    share=st.floats(0, 1),
    y=st.integers(0, 5),
    x=st.integers(0, 6),
    is_boxed=st.booleans(),
    channels=st.integers(1, 3),
    batch_size=st.integers(1, 4),
)
def test_mixed_batches_equal_torchvisions(
    share: float, y: int, x: int, is_boxed: bool, channels: int, batch_size: int
) -> None:
    """Images and classes are held against torchvision's MixUp and CutMix, which are handed the same draws."""
    images = torch.randn((batch_size, channels, 6, 7), generator=generator(0, "images"))
    labels = torch.arange(batch_size)
    theirs = (v2.CutMix if is_boxed else v2.MixUp)(num_classes=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theirs._dist, "sample", lambda _: torch.tensor(share, dtype=torch.float64))
        coordinates = iter((x, y))  # torchvision draws x first
        patch.setattr(torch, "randint", lambda *_, **__: torch.tensor([next(coordinates)]))
        expected = theirs(images, labels)
    mix = Mix(share, ((y + 0.5) / 6, (x + 0.5) / 7) if is_boxed else None)
    for channels_last in (False, True):
        given_images = images.contiguous(memory_format=torch.channels_last) if channels_last else images
        found = mix_batch(given_images, one_hot(labels, num_classes=5), mix=mix)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "alpha"), [("mixup", 0.2), ("mixup", 1.0), ("cutmix", 1.0), ("cutmix", 4.0)])
def test_shares_are_of_the_beta_distribution(name: str, alpha: float) -> None:
    """The shares of many batches are held against Beta(alpha, alpha), and centers against uniform ones (Kolmogorov)."""
    mixes = draw_mixes(4000, augment=Augment(**{name: alpha}), seed=0, key=KEY)
    assert stats.kstest([mix.share for mix in mixes], "beta", args=(alpha, alpha)).pvalue > 0.001
    for axis in (0, 1) if name == "cutmix" else ():
        assert stats.kstest([mix.center[axis] for mix in mixes], "uniform").pvalue > 0.001


def test_of_two_one_is_taken_evenly_and_their_draws_stay() -> None:
    """Batches with both on are held against those with one, which half of them are."""
    both, mixup, cutmix = (
        draw_mixes(400, augment=Augment(mixup=first, cutmix=second), seed=3, key=KEY)
        for first, second in ((0.2, 1.0), (0.2, 0), (0, 1.0))
    )
    assert all(mix in pair for mix, pair in zip(both, zip(mixup, cutmix, strict=True), strict=True))
    assert 160 < sum(mix.center is None for mix in both) < 240  # four standard deviations
    for seed, key in ((4, KEY), (3, ("augment", 2))):
        others = draw_mixes(400, augment=Augment(mixup=0.2, cutmix=1.0), seed=seed, key=key)
        assert not {mix.share for mix in both} & {mix.share for mix in others}
    assert draw_mixes(3, augment=Augment(), seed=0, key=KEY) == (None, None, None)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_loss_and_accuracy_of_mixed_classes(label_smoothing: float) -> None:
    """Those of a batch are held against the weighted ones of the two classes of each image, in float64."""
    task = TASKS["classification"]
    logits = torch.randn((6, 4), generator=generator(0, "logits"))
    labels = torch.tensor([0, 3, 1, 1, 2, 0])
    _, targets = mix_batch(torch.zeros(6, 1, 2, 2), one_hot(labels, num_classes=4), mix=Mix(0.7))
    loss, accuracy = torch.zeros(2, dtype=torch.float64)
    for classes, weight in ((labels, 0.7), (labels.roll(1), 0.3)):
        loss += weight * functional.cross_entropy(logits.double(), classes, label_smoothing=label_smoothing)
        accuracy += weight * (logits.argmax(1) == classes).double().mean()
    assert task.loss(logits, targets, label_smoothing=label_smoothing) == pytest.approx(float(loss), abs=1e-6)
    assert task.train_score(logits, targets) == pytest.approx(float(accuracy), abs=1e-6)
    hard = one_hot(labels, num_classes=4)
    assert torch.equal(task.train_score(logits, hard), task.train_score(logits, labels).to(torch.float32))


@pytest.mark.parametrize("label", [-1, 4])
def test_a_label_that_is_no_class_is_named(label: int) -> None:
    """The error is held against the label and the number of classes."""
    with pytest.raises(UserError, match=f"the label {label} for 4 classes") as caught:
        one_hot(torch.tensor([0, label]), num_classes=4)
    assert "0 to 3" in caught.value.hint
