"""Labels that come as texts, from a table or from shards: classes found, named and numbered.

Classes are the different labels of the training split, sorted; whole numbers are sorted as numbers. Where the classes
are given, a label is the name of one or its number, from 0. Names are compared in the Unicode form NFC.
Shapes: N samples.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from swa_cli.data.listing import NAMED
from swa_cli.errors import UserError, did_you_mean

_WHOLE = re.compile(r"-?\d+")


class LabelTexts:
    """The labels of a split, one after the other: a number per sample, and each different text once."""

    def __init__(self) -> None:
        self.texts: list[str] = []  # in the order of their first samples
        self.places: list[Any] = []  # of the first sample of each text, for messages
        self._numbers = array("i")  # of the text of each sample
        self._number_of: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, text: str, *, place: object) -> None:
        """Add the label of the next sample."""
        number = self._number_of.get(text)
        if number is None:
            name = unicodedata.normalize("NFC", text)
            number = self._number_of[text] = self._number_of.setdefault(name, len(self.texts))
            if number == len(self.texts):
                self.texts.append(name)
                self.places.append(place)
        self._numbers.append(number)

    def classes(self, class_of: Mapping[str, int]) -> Tensor:
        """Return the class (N,) int64 of each sample."""
        numbers = torch.frombuffer(self._numbers, dtype=torch.int32)
        return torch.tensor([class_of[text] for text in self.texts])[numbers]


def number_classes(
    labels: Mapping[str, LabelTexts],
    *,
    classes: Sequence[str] | None,
    trained: Sequence[str] | None,
    source: str,
    describe: Callable[[Any], str],
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the classes (N,) of the samples of each split, and the names of the classes.

    Args:
        labels: Those of each split; none is empty.
        classes: The names, in order; None: those of the training split.
        trained: The names that weights were trained with; they stand in for a training split that is not there.
        source: What holds the labels, for messages.
        describe: Names the place of a sample.

    Raises:
        UserError: There are no classes, a single one, or a label is not one of them.
    """
    if classes is None and "train" not in labels and trained is None:
        raise UserError(f"{source}: has no training samples", hint="name some, or give dataset.args.classes")
    names = tuple(classes or (_sorted(labels["train"].texts) if "train" in labels else trained or ()))
    if len(names) < 2:
        raise UserError(
            f"{source}: has a single class, {names[0]}: there is nothing to classify",
            hint="add samples of other classes, or give the names of all in dataset.args.classes",
        )
    class_of = {name: number for number, name in enumerate(names)}
    if classes and _are_numbers(labels, class_of):
        class_of = {str(number): number for number in range(len(names))}
    for split, found in labels.items():
        for text, place in zip(found.texts, found.places, strict=True):
            if text not in class_of:
                raise _unknown(text, split=split, place=describe(place), names=names, are_given=bool(classes))
    return {split: found.classes(class_of) for split, found in labels.items()}, names


def _sorted(texts: Sequence[str]) -> list[str]:
    if all(map(_WHOLE.fullmatch, texts)):
        return sorted(texts, key=lambda text: (int(text), text))
    return sorted(texts)


def _are_numbers(labels: Mapping[str, LabelTexts], class_of: Mapping[str, int]) -> bool:
    """Return whether labels are numbers of classes rather than their names."""
    texts = {text for found in labels.values() for text in found.texts}
    return not texts <= class_of.keys() and all(map(_WHOLE.fullmatch, texts))


def _unknown(text: str, *, split: str, place: str, names: Sequence[str], are_given: bool) -> UserError:
    listed = ", ".join(names[:NAMED]) + ", ..." * (len(names) > NAMED)
    if are_given:
        message = f"{place}: the label {text!r} is neither one of dataset.args.classes nor a number from 0 to"
        return UserError(
            f"{message} {len(names) - 1}",
            hint=f"{did_you_mean(text, names)}The classes are {listed}: correct the label or the list",
        )
    return UserError(
        f"{place}: the {split} split has the class {text!r}, which the training split lacks",
        hint=f"{did_you_mean(text, names)}The classes are {listed}: correct the label, or name all in "
        "dataset.args.classes",
    )
