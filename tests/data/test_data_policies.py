"""Augmentation policies against torchvision's: the same pixels for the same choice, and choices alike distributed."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from swa_cli.data import policies
from swa_cli.data.policies import NUM_DRAWS, Operation, augmix, chosen
from swa_cli.data.randomness import generator

SIZE = (48, 64)
THEIRS: dict[str, Any] = {
    "trivial_augment": v2.TrivialAugmentWide(interpolation="bilinear", fill=0),
    "rand_augment": v2.RandAugment(interpolation="bilinear", fill=0),
    "auto_augment": v2.AutoAugment(interpolation="bilinear", fill=0),
}
NUM_SAMPLES = 6_000


@pytest.fixture
def image() -> Image.Image:
    pixels = torch.randint(0, 256, (6, 8, 3), generator=generator(0, "image"), dtype=torch.uint8).numpy()
    return Image.fromarray(np.array(Image.fromarray(pixels).resize(SIZE[::-1], Image.Resampling.BICUBIC)))


def draws(number: int, *, key: str) -> Tensor:
    return torch.rand((number, NUM_DRAWS), generator=generator(0, key), dtype=torch.float64)


def pixels(image: Any) -> Tensor:
    return image if isinstance(image, Tensor) else v2.functional.pil_to_tensor(image)


def recorded(policy: str, image: Image.Image, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Operation, ...]]:
    """What torchvision chooses for many images."""
    found: list[tuple[Operation, ...]] = []
    theirs = THEIRS[policy]

    def record(image: Any, name: str, magnitude: float, **_: Any) -> Any:
        applied.append(Operation(name, magnitude))
        return image

    monkeypatch.setattr(theirs, "_apply_image_or_video_transform", record)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(NUM_SAMPLES):
            applied: list[Operation] = []
            theirs(image)
            found.append(tuple(applied))
    return found


@pytest.mark.parametrize("policy", THEIRS)
def test_each_operation_gives_torchvisions_pixels(policy: str, image: Image.Image) -> None:
    """Every operation that is chosen for 600 images is held against torchvision's on a PIL image, pixel by pixel."""
    seen = set()
    for row in draws(600, key=policy):
        for operation in chosen(policy, size=SIZE, draws=row):
            theirs = THEIRS[policy]._apply_image_or_video_transform(
                image,
                operation.name,
                operation.magnitude,
                interpolation=v2.InterpolationMode.BILINEAR,
                fill=theirs_fill(),
            )
            ours = operation.apply(image, interpolation="bilinear", fill=0)
            assert torch.equal(pixels(ours), pixels(theirs)), operation
            seen.add(operation.name)
    assert seen >= {"ShearX", "Rotate", "Posterize", "Solarize", "Equalize"}


def theirs_fill() -> dict[Any, Any]:
    return THEIRS["trivial_augment"]._fill


@pytest.mark.parametrize("policy", THEIRS)
def test_choices_are_distributed_as_torchvisions(
    policy: str, image: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Operations with their signs, and magnitudes, of two large samples are compared by chi-square and by KS."""
    theirs = recorded(policy, image, monkeypatch)
    ours = [tuple(chosen(policy, size=SIZE, draws=row)) for row in draws(NUM_SAMPLES, key=f"many {policy}")]
    signed = [Counter((each.name, each.magnitude > 0) for row in rows for each in row) for rows in (ours, theirs)]
    assert homogeneity(*signed) < 4, signed  # standard deviations of chi-square
    assert abs(sum(map(len, ours)) - sum(map(len, theirs))) < 4 * NUM_SAMPLES**0.5
    for name in {name for name, _ in signed[1]}:
        samples = [
            sorted(each.magnitude for row in rows for each in row if each.name == name) for rows in (ours, theirs)
        ]
        assert set(np.abs(samples[0]).round(4)) <= set(np.abs(samples[1]).round(4)), name  # the same steps
        assert ks(*samples) < 1.95 * (sum(1 / len(sample) for sample in samples)) ** 0.5, name  # its 0.999 quantile


def homogeneity(first: Counter[Any], second: Counter[Any]) -> float:
    """The chi-square of two samples being alike, in standard deviations above its mean."""
    total, statistic = first.total() + second.total(), 0.0
    outcomes = [outcome for outcome in first | second if (first + second)[outcome] >= 10]
    for outcome in outcomes:
        for sample in (first, second):
            expected = (first[outcome] + second[outcome]) * sample.total() / total
            statistic += (sample[outcome] - expected) ** 2 / expected
    freedom = len(outcomes) - 1
    return (statistic - freedom) / (2 * freedom) ** 0.5


def ks(first: list[float], second: list[float]) -> float:
    """The largest distance of two empirical distributions."""
    grid = np.unique(np.round([*first, *second], 4))
    shares = [np.searchsorted(np.round(sample, 4), grid, side="right") / len(sample) for sample in (first, second)]
    return float(np.abs(shares[0] - shares[1]).max())


def test_augmix_equals_torchvisions_for_the_same_choice(image: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's AugMix is given the shares, depths and operations of ours; the images differ by rounding alone."""
    theirs = v2.AugMix(interpolation="bilinear", fill=0)
    names = policies._AUGMIX.names
    for row in draws(40, key="augmix"):
        numbers = iter(row.tolist())
        own, *logs = next(numbers), *(-np.log(1 - next(numbers)) for _ in range(3))
        shares = iter([torch.tensor([[own, 1 - own]]), (torch.tensor(logs) / sum(logs))[None]])
        whole: list[int] = []  # what torchvision draws: depths and bins, names, and signs
        chosen_names: list[str] = []
        signs: list[float] = []
        for _ in range(3):
            depth = 1 + int(next(numbers) * 3)
            whole.append(depth)
            for _ in range(depth):
                name, bin, sign = names[int(next(numbers) * len(names))], int(next(numbers) * 3), next(numbers)
                magnitudes, is_signed = v2.AugMix._AUGMENTATION_SPACE[name]
                chosen_names.append(name)
                whole += [bin] * (magnitudes(10, *SIZE) is not None)
                signs += [sign] * is_signed
        pick, randint, rand = (partial(next, iter(left)) for left in (chosen_names, whole, signs))
        with monkeypatch.context() as patch:
            patch.setattr(theirs, "_sample_dirichlet", lambda _, left=shares: next(left))
            patch.setattr(theirs, "_get_random_item", lambda table, pick=pick: (name := pick(), table[name]))
            patch.setattr(torch, "randint", lambda *_, draw=randint, **__: torch.tensor(draw()))
            patch.setattr(torch, "rand", lambda *_, draw=rand: torch.tensor(draw()))
            expected = theirs(pixels(image))
        ours = augmix(pixels(image), draws=row, interpolation="bilinear")
        assert (ours.int() - expected.int()).abs().max() <= 1
