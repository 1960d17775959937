"""Views of photos against torchvision's transforms: the same pixels for the same choice, crops alike distributed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models import ResNet50_Weights
from torchvision.transforms import v2

from swa_cli.data import transforms
from swa_cli.data.randomness import generator
from swa_cli.data.transforms import (
    Box,
    DrawnView,
    EvaluationView,
    Interpolation,
    Pixels,
    RandomResizedCrop,
    Size,
    TrainingView,
    ViewDraws,
    draw_views,
)

SIZES = [(40, 60), (61, 37), (8, 9), (300, 200), (17, 400), (224, 224), (256, 341), (33, 1)]


class Decoded:
    """A photo whose pixels are known."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        coarse = torch.rand((1, 3, max(2, size[0] // 32), max(2, size[1] // 32)), generator=generator(0, *size))
        smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1)
        self.whole = (smooth[0] * 255).to(torch.uint8)
        self.divisors: list[int] = []

    def pixels(self, *, box: Box | None = None, divisor: int = 1) -> Tensor:
        self.divisors.append(divisor)
        size = [-(-side // divisor) for side in self.size]
        whole = v2.functional.resize(self.whole, size) if divisor > 1 else self.whole
        return Pixels(whole).pixels(box=None if box is None else box // divisor)


def draws(key: str, number: int = 1) -> list[ViewDraws]:
    return draw_views(torch.arange(number), seed=0, key=(key,))


@pytest.mark.parametrize("size", SIZES)
def test_an_evaluation_view_equals_torchvisions(size: tuple[int, int]) -> None:
    """The view is held against the transforms of torchvision's ResNet-50 on a PIL image, to 1/255."""
    photo = Decoded(size)
    weights = ResNet50_Weights.IMAGENET1K_V2.transforms()
    theirs = weights(v2.functional.to_pil_image(photo.whole))
    view = EvaluationView(size=(224, 224), resize=232)
    mean, std = (torch.tensor(values)[:, None, None] for values in (weights.mean, weights.std))
    assert ((view.image(photo).float() / 255) - (theirs * std + mean)).abs().max() <= 1 / 255 + 1e-6
    assert photo.divisors == [1]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_view_without_a_crop_is_the_whole_image_resized(interpolation: str) -> None:
    """Without `resize` the view is torchvision's resize to both sides, whatever the ratio."""
    photo = Decoded((61, 37))
    view = EvaluationView(size=(32, 48), resize=None, interpolation=interpolation)  # type: ignore[arg-type]
    theirs = v2.functional.resize(photo.whole, [32, 48], interpolation=v2.InterpolationMode(interpolation))
    assert torch.equal(view.image(photo), theirs)


def test_what_lies_outside_of_a_small_image_is_black_and_ignored() -> None:
    """A view larger than the resized image is padded as torchvision's center_crop pads, its mask with 255."""
    photo = Decoded((20, 40))
    view = EvaluationView(size=(32, 32), resize=16)
    theirs = v2.functional.center_crop(v2.functional.resize(photo.whole, [16]), [32, 32])
    assert torch.equal(view.image(photo), theirs)
    mask = view.mask(torch.ones((20, 40), dtype=torch.uint8))
    assert mask.unique().tolist() == [1, 255]
    assert torch.equal(mask == 255, (theirs.sum(0) == 0))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("is_tall", [False, True])
def test_a_thin_image_takes_no_more_memory_than_its_view(interpolation: Interpolation, is_tall: bool) -> None:
    """1 x 3,000,000 pixels, 590 GB if they were resized as a whole, against the view of the 300 in their middle."""
    whole = torch.randint(0, 256, (3, 1, 3_000_000), dtype=torch.uint8, generator=generator(0))
    middle = whole[..., 1_499_850:1_500_150]
    if is_tall:
        whole, middle = whole.mT, middle.mT
    view = EvaluationView((224, 192), 256, interpolation)
    assert torch.equal(view.image(Pixels(whole)), view.image(Pixels(middle)))
    assert torch.equal(view.mask(whole[0]), view.mask(middle[0]))


@pytest.mark.parametrize("size", [(10, 10), (10, 11), (13, 10)])
def test_a_view_of_more_pixels_than_a_file_is_torchvisions(size: Size, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that are not thin, resized to more than the limit, against torchvision's resize and center crop."""
    monkeypatch.setattr(transforms, "MAX_PIXELS", 1000)
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator(0))
    expected = v2.functional.center_crop(v2.functional.resize(image, [40], antialias=True), [8, 8])
    assert torch.equal(EvaluationView((8, 8), 40).image(Pixels(image)), expected)


def test_crops_are_distributed_as_torchvisions() -> None:
    """Area, ratio and place of 20,000 boxes are compared with torchvision's by the distance of their distributions."""
    size, number = (200, 300), 20_000
    crop, theirs = RandomResizedCrop(), v2.RandomResizedCrop(224)
    ours = [crop.box(size, each.crop) for each in draws("crops", number)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        image = torch.zeros((3, *size), dtype=torch.uint8)
        expected = [Box(**theirs.make_params([image])) for _ in range(number)]
    for name, value in {
        "area": lambda box: box.height * box.width,
        "ratio": lambda box: box.width / box.height,
        "top": lambda box: box.top / max(1, size[0] - box.height),
        "left": lambda box: box.left / max(1, size[1] - box.width),
    }.items():
        samples = [np.array(sorted(map(value, boxes))) for boxes in (ours, expected)]
        grid = np.concatenate(samples)
        shares = [np.searchsorted(sample, grid, side="right") / number for sample in samples]
        assert np.abs(shares[0] - shares[1]).max() < 1.95 * math.sqrt(2 / number), name  # KS, its 0.999 quantile


@pytest.mark.parametrize("size", [(10, 1000), (1000, 10), (50, 50), (1, 1)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.99, 1.0)])
def test_a_crop_that_never_fits_is_torchvisions_in_the_middle(
    size: tuple[int, int], scale: tuple[float, float]
) -> None:
    """Boxes lie in the image; where ten trials fail, the box is that of torchvision's fallback."""
    crop = RandomResizedCrop(scale=scale, ratio=(3 / 4, 4 / 3))
    theirs = v2.RandomResizedCrop(8, scale=(1.5, 1.6))  # never fits
    fallback = Box(**theirs.make_params([torch.zeros((3, *size), dtype=torch.uint8)]))
    assert RandomResizedCrop(scale=(1.5, 1.6)).box(size, draws("none")[0].crop) == fallback
    for each in draws(f"boxes {size}", 200):
        top, left, height, width = crop.box(size, each.crop)
        assert 0 <= top <= top + height <= size[0]
        assert 0 <= left <= left + width <= size[1]
        assert height > 0
        assert width > 0


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (2, 3)])
@pytest.mark.parametrize("ratio", [(2.5, 4.0), (0.2, 0.4)])
def test_a_crop_of_a_thin_image_has_pixels(size: tuple[int, int], ratio: tuple[float, float]) -> None:
    """Boxes of images a pixel high or wide, of ratios that exclude squares, against the image: at least a pixel."""
    crop = RandomResizedCrop(ratio=ratio)
    for each in draws(f"thin {size}", 50):
        top, left, height, width = crop.box(size, each.crop)
        assert 0 <= top < top + height <= size[0]
        assert 0 <= left < left + width <= size[1]


@pytest.mark.parametrize("size", [(300, 200), (61, 37)])
def test_a_training_view_equals_torchvisions_for_the_same_box(size: tuple[int, int]) -> None:
    """The pixels of a crop are those of torchvision's `resized_crop` for the box."""
    photo, crop = Decoded(size), RandomResizedCrop()
    view = TrainingView(EvaluationView((48, 32), 64), crop=crop)
    for each in draws("views", 20):
        box, divisor = DrawnView(view, each)._box(size)
        drawn = crop.box(size, each.crop)
        assert max(abs(a - b) for a, b in zip(box, drawn, strict=True)) < divisor
        theirs = v2.functional.resized_crop(photo.whole, *box, size=[48, 32])
        photo.divisors.clear()
        ours = DrawnView(view, each).image(photo)
        if photo.divisors == [1]:
            assert torch.equal(ours, theirs)
        else:
            assert box.height >= photo.divisors[0] * 48
            assert box.width >= photo.divisors[0] * 32
            assert (ours.float() - theirs.float()).abs().mean() < 2  # decoded smaller: alike


@pytest.mark.parametrize("policy", [None, "trivial_augment", "rand_augment", "auto_augment"])
def test_a_mask_moves_like_its_image(policy: str | None) -> None:
    """An image that shows its own mask, as 0 and 255, still shows it after crop, rotation and policy."""
    mask = torch.zeros((180, 240), dtype=torch.uint8)
    mask[40:120, 60:200] = 1
    photo = Decoded((180, 240))
    photo.whole = (mask * 255)[None].expand(3, -1, -1).contiguous()
    view = TrainingView(
        EvaluationView((128, 128), 128), crop=RandomResizedCrop(scale=(0.5, 1.0)), rotate=30, policy=policy
    )
    agreeing = []
    for each in draws(f"masks {policy}", 40):
        drawn = DrawnView(view, each)
        operations = drawn._operations(photo.whole)
        if any(not operation.is_geometric for operation in operations):
            continue  # a color may hide the mask
        image, moved = drawn.image(photo), drawn.mask(mask)
        known = moved != 255
        agreeing.append(((image[0] > 127) == (moved == 1))[known].float().mean().item())
    assert len(agreeing) >= 5
    assert min(agreeing) > 0.97


def test_only_what_is_drawn_makes_a_view_random() -> None:
    """A view with nothing drawn equals the evaluation view, and says that it is not random."""
    still = EvaluationView((32, 32), 36)
    photo = Decoded((61, 37))
    assert not TrainingView(still).is_random
    assert torch.equal(DrawnView(TrainingView(still), draws("still")[0]).image(photo), still.image(photo))
    for settings in ({"crop": RandomResizedCrop()}, {"rotate": 10.0}, {"policy": "augmix"}):
        view = TrainingView(still, **settings)  # type: ignore[arg-type]
        assert view.is_random
        assert not torch.equal(DrawnView(view, draws("drawn")[0]).image(photo), still.image(photo))
