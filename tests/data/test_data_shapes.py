"""Drawn scenes: outlines against closed forms, the same scenes for ever, classes that nest."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from swa_cli.data import datasets, synthetic
from swa_cli.data.sources import load
from swa_cli.data.synthetic import CLASSES, draw_scenes, read_digits
from swa_cli.errors import RecipeError, UserError


def scenes(split: str = "train", **args: Any) -> tuple[Tensor, Tensor]:
    return draw_scenes(split, **{"count": 70, "size": 32, "classes": 15, "channels": 1, "seed": 0, **args})


def paper(size: int) -> tuple[Any, Tensor, Tensor]:
    """An artist and the coordinates of the pixels of one scene."""
    artist = synthetic._Artist(torch.Generator().manual_seed(0), num_scenes=1, size=size, channels=1)
    return artist, artist._x.expand(1, size, size), artist._y.expand(1, size, size)


@pytest.mark.parametrize(
    ("distance", "area"),
    [
        (synthetic._disc, lambda r, q: math.pi * r**2),
        (synthetic._rectangle, lambda r, q: 2 * r * 2 * r * (0.35 + 0.55 * q)),
        (synthetic._triangle, lambda r, q: (1.8 * r) ** 2 * (0.35 + 0.5 * q)),
        (synthetic._ring, lambda r, q: math.pi * (r**2 - (r - 2 * r * (0.12 + 0.15 * q)) ** 2)),
        (synthetic._stroke, lambda r, q: 2 * r * 0.06),
    ],
)
@pytest.mark.parametrize("angle", [0.0, 0.7])
def test_areas_are_those_of_the_figures(
    distance: Callable[[Any], Tensor], area: Callable[[float, float], float], angle: float
) -> None:
    """The pixels that each figure covers, upright and turned, are held against its area in closed form."""
    artist, x, y = paper(400)
    radius, ratio = 0.5, 0.5
    u, v = math.cos(angle) * x + math.sin(angle) * y, math.cos(angle) * y - math.sin(angle) * x
    at = synthetic._Placed(u, v, torch.full((1, 1, 1), radius), torch.full((1, 1, 1), ratio))
    cover = artist._coverage(distance(at)).double()
    covered = cover.sum().item() * (2 / 400) ** 2
    assert covered == pytest.approx(area(radius, ratio), rel=0.01)
    assert (cover > 0.5).double().sum().item() * (2 / 400) ** 2 == pytest.approx(covered, rel=0.02)


def test_digits_are_those_of_the_package_enlarged() -> None:
    """The ink of digits is held against torch's bilinear enlargement, cut at two fifths."""
    artist, x, y = paper(64)
    digits = read_digits()["train"][0][:20]
    at = synthetic._Placed(*(c.expand(20, 64, 64) for c in (x, y)), torch.ones(20, 1, 1), torch.ones(20, 1, 1))
    ink = functional.interpolate(digits / 255, 64, mode="bilinear", align_corners=False)[:, 0]
    inside = slice(4, 60)  # beyond the centers of the outer cells one fades to nothing, the other goes on
    found = artist._ink(at, digits)[:, inside, inside] > 0.5
    expected = ink[:, inside, inside] > 0.4
    assert (found != expected).float().mean() < 1e-3
    assert 0.1 < expected.float().mean() < 0.5


def test_a_scene_does_not_depend_on_how_many_are_drawn() -> None:
    """The first scenes of a longer set, over the bounds of what is drawn at once, are held against a shorter one."""
    few, many = scenes(count=5), scenes(count=140)
    assert many[0].shape == (140, 1, 32, 32)
    assert many[1].shape == (140, 32, 32)
    assert all(part.dtype == torch.uint8 for part in many)
    for short, long in zip(few, many, strict=True):
        assert torch.equal(short, long[:5])
    assert len({image.numpy().tobytes() for image in many[0]}) == 140


def test_classes_nest_and_change_no_picture() -> None:
    """Masks of 2 and 6 classes are held against those of 15 with kinds put together; all classes occur."""
    images, masks = scenes(count=130)
    assert masks.unique().tolist() == list(range(15))
    assert [len(names) for names in CLASSES.values()] == list(CLASSES) == [2, 6, 15]
    for classes, merged in ((2, masks.clamp(max=1)), (6, masks.clamp(max=5))):
        other_images, other_masks = scenes(count=130, classes=classes)
        assert torch.equal(images, other_images)
        assert torch.equal(merged, other_masks)
    assert 0.65 < (masks == 0).double().mean().item() < 0.9


def test_seeds_and_splits_are_other_scenes() -> None:
    """Scenes of another seed or split are held against the first ones: none is the same."""
    first, seeded, test = (scenes(**args)[0] for args in ({}, {"seed": 1}, {"split": "test"}))
    for other in (seeded, test):
        assert not (first == other).flatten(1).all(1).any()


def test_test_scenes_take_their_digits_from_the_test_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ink in the training digits, test scenes stay as they were and training scenes lose theirs."""
    before = scenes("test")
    digits = read_digits()
    images, numbers = digits["train"]
    monkeypatch.setattr(synthetic, "read_digits", lambda: digits | {"train": (torch.zeros_like(images), numbers)})
    for ours, theirs in zip(scenes("test"), before, strict=True):
        assert torch.equal(ours, theirs)
    assert scenes()[1].max() == len(synthetic.SHAPES)


@pytest.mark.parametrize(("size", "channels"), [(16, 1), (33, 3)])
def test_objects_stand_out_from_what_is_around_them(size: int, channels: int) -> None:
    """Contrast of neighbouring pixels over the edges of masks is held against that inside of regions."""
    images, masks = scenes(size=size, channels=channels, count=64)
    steps = (images[..., 1:].double() - images[..., :-1].double()).abs().mean(1)
    edges = masks[..., 1:] != masks[..., :-1]
    assert steps[edges].mean() > 1.5 * steps[~edges].mean()


def test_loaded_scenes_depend_on_no_seed_of_the_recipe() -> None:
    """Test scenes under two seeds are held against each other; the validation split differs."""
    args = {"size": 16, "train": 60, "test": 10, "classes": 6, "channels": 1}
    state = torch.get_rng_state()
    calls: list[tuple[str, int, int]] = []
    first = load("shapes", seed=0, args=args, progress=lambda *call: calls.append(call))
    second = load("shapes", seed=1, args=args)
    assert torch.equal(torch.get_rng_state(), state)
    assert (first.target, first.num_classes, first.class_names) == ("mask", 6, CLASSES[6])
    assert (first.channels, first.size) == (1, (16, 16))
    assert first.test is not None
    assert second.test is not None
    assert first.test.images is not None
    assert second.test.images is not None
    assert torch.equal(first.test.images, second.test.images)
    assert first.train.labels is not None
    assert second.train.labels is not None
    assert (len(first.train), len(first.val or ()), len(first.test)) == (54, 6, 10)
    assert not torch.equal(first.train.labels, second.train.labels)
    assert calls == [("drawing train scenes", 60, 60), ("drawing test scenes", 10, 10)]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"sise": 64}, r"args\.sise: unknown argument of shapes"),
        ({"size": 8}, r"args\.size: 8 is not a whole number from 16"),
        ({"size": "64"}, r"args\.size: '64' is not"),
        ({"train": 0}, r"args\.train: 0 is not"),
        ({"test": True}, r"args\.test: True is not"),
        ({"classes": 3}, r"args\.classes: 3 is not one of 2, 6, 15"),
        ({"classes": ["a", "b"]}, r"args\.classes: .* is not one of"),
        ({"channels": 2}, r"args\.channels: 2 is not one of 1, 3"),
        ({"seed": -1}, r"args\.seed: -1 is not"),
        ({"train": 10**8, "size": 1024}, r"100,000,500 scenes of 1024x1024 pixels take [\d.]+ GiB"),
    ],
)
def test_scenes_that_cannot_be_drawn(args: dict[str, Any], message: str) -> None:
    """Each wrong argument is held against a message with its key and value, and an action."""
    with pytest.raises((UserError, RecipeError), match=message) as caught:
        load("shapes", args=args)
    assert all(problem.hint for problem in getattr(caught.value, "problems", [caught.value]))


def test_scenes_are_refused_only_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal is held against the bytes of images and masks, to the byte."""
    args = {"size": 16, "train": 6, "test": 4, "channels": 3}
    num_bytes = 10 * 16 * 16 * 4
    monkeypatch.setattr(datasets, "available_memory", lambda: num_bytes)
    load("shapes", val=0, args=args)
    monkeypatch.setattr(datasets, "available_memory", lambda: num_bytes - 1)
    with pytest.raises(UserError, match="10 scenes"):
        load("shapes", val=0, args=args)
