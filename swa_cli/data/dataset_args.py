"""`dataset.args` of datasets: plain values checked, with their defaults.

digits           test (360): how many of the 1,797, the last ones, are the test set; so has rotated_digits
shapes           size (64), train (2,000), test (500), classes (2, 6 or 15), channels (1 or 3), seed (0)
mask_folder      classes (a number, or names), size (S or [H, W]; left out: the size of the files)
oxford_iiit_pet  size (128)
voc              size (128)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from swa_cli.data.synthetic import CLASSES
from swa_cli.errors import UserError

MAX_SIDE = 65_536  # pixels
_MAX_CLASSES = 255  # numbers of classes are below the one that is ignored


@dataclass(frozen=True)
class Shapes:
    """What scenes are drawn, and how many; the same for every seed of a recipe: `seed` is the dataset's own."""

    size: int = 64
    train: int = 2000
    test: int = 500
    classes: int = 2
    channels: int = 3
    seed: int = 0

    @property
    def counts(self) -> dict[str, int]:
        """Scenes of each split."""
        return {"train": self.train, "test": self.test}


# The least and the largest value; the digits of a smaller scene would be dots.
_RANGES = {"size": (16, 1024), "train": (1, 10**8), "test": (1, 10**8), "seed": (0, 2**63 - 1)}
_CHOICES: dict[str, Iterable[int]] = {"classes": CLASSES, "channels": (1, 3)}


def shapes(args: Mapping[str, Any]) -> Shapes:
    """The arguments of `shapes`.

    Raises:
        UserError: One is unknown, or no whole number in its range.
    """
    require_keys("shapes", args, takes=(*_RANGES, *_CHOICES))
    for key, value in args.items():
        if key in _RANGES:
            low, high = _RANGES[key]
            good, wanted = _is_whole(value) and low <= value <= high, f"a whole number from {low:,} to {high:,}"
        else:
            good, wanted = _is_whole(value) and value in _CHOICES[key], f"one of {_listed(_CHOICES[key])}"
        if not good:
            raise UserError(f"dataset.args.{key}: {value!r} is not {wanted}", hint=f"give {wanted}")
    return Shapes(**args)


def num_test_digits(name: str, args: Mapping[str, Any], *, num_images: int, default: int) -> int:
    """The argument `test` of `digits` and `rotated_digits`: images of the test set.

    Raises:
        UserError: It is no number of images that leaves some to train on, or there is another argument.
    """
    require_keys(name, args, takes=("test",))
    number, most = args.get("test", default), num_images - 1
    if not (_is_whole(number) and 0 < number <= most):
        wanted = f"a whole number from 1 to {most:,}"
        raise UserError(f"dataset.args.test: {number!r} is not {wanted}", hint=f"give {wanted}")
    return int(number)


def require_keys(name: str, args: Mapping[str, Any], *, takes: Iterable[str]) -> None:
    """Refuse arguments that a dataset does not take."""
    takes = tuple(takes)
    for key in args:
        if key not in takes:
            raise UserError(f"dataset.args.{key}: unknown argument of {name}", hint=f"{name} takes {_listed(takes)}")


def height_and_width(name: str, size: Any) -> tuple[int, int]:
    """(H, W) of `size: S` or `size: [H, W]`."""
    sides = [size, size] if _is_whole(size) else size
    if not (isinstance(sides, list | tuple) and len(sides) == 2 and all(map(_is_side, sides))):
        raise UserError(
            f"dataset.args.size: {size!r} is no size of images", hint=f"{name} takes size: 128 or size: [96, 128]"
        )
    return sides[0], sides[1]


def class_names(name: str, classes: Any) -> tuple[str, ...]:
    """The names of the classes; a number of classes names them 0, 1, ...

    Raises:
        UserError: They are missing, too few or too many, or two are alike.
    """
    names = tuple(map(str, range(classes) if _is_whole(classes) and classes <= _MAX_CLASSES else _as_list(classes)))
    if not 2 <= len(names) <= _MAX_CLASSES or len(set(names)) < len(names):
        what = "is missing" if classes is None else f"{classes!r} are not 2 to {_MAX_CLASSES} classes"
        raise UserError(
            f"dataset.args.classes: {what}", hint=f"{name} takes classes: 2 or classes: [background, pet], in order"
        )
    return names


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


def _is_side(value: Any) -> bool:
    return _is_whole(value) and 0 < value <= MAX_SIDE


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values))
