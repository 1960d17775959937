"""Labels that come as texts, from a table or from shards: classes found, named and numbered.

Classes are the different labels of the training split, sorted; whole numbers are sorted as numbers. Where the classes
are given, a label is the name of one or its number, from 0; it is a name wherever the number of one class is the name
of another, so that what a label means never depends on the labels beside it. Names are compared in the Unicode form
NFC. A text may also hold several labels, with a delimiter between them, or none.
Shapes: N samples, K classes.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from decimal import Decimal
from functools import partial
from typing import Any

import torch
from torch import Tensor

from swa_cli.data.listing import NAMED
from swa_cli.errors import UserError, did_you_mean

DELIMITERS = ("|", ";", ",", " ")  # that stand between several labels in tables of other programs
UNLABELED = -1  # in place of a class
FLAGS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}  # values of a column of a class, in small letters
_WHOLE = re.compile(r"-?[0-9]+")


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
        return self.of_texts(torch.tensor([class_of[text] for text in self.texts]))

    def class_sets(self, class_of: Mapping[str, int], *, delimiter: str) -> Tensor:
        """Return the classes of each sample, whose text has several: (N, K) uint8 of 0 and 1."""
        found = torch.zeros(len(self.texts), len(class_of), dtype=torch.uint8)
        for row, text in enumerate(self.texts):
            found[row, [class_of[part] for part in parts_of(text, delimiter=delimiter)]] = 1
        return self.of_texts(found)

    def of_texts(self, values: Tensor) -> Tensor:
        """Return for each sample the value (...) of its text, of values (texts, ...)."""
        return values[torch.frombuffer(self._numbers, dtype=torch.int32)]


def parts_of(text: str, *, delimiter: str | None) -> list[str]:
    """Return the labels in a text, without spaces around them; without a delimiter the text is the only one."""
    if delimiter is None:
        return [text]
    return [part for part in map(str.strip, text.split(delimiter)) if part]


def number_classes(
    labels: Mapping[str, LabelTexts],
    *,
    classes: Sequence[str] | None,
    trained: Sequence[str] | None,
    source: str,
    describe: Callable[[Any], str],
    delimiter: str | None = None,
    may_have_several: bool = False,
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the classes of the samples of each split, and the names of the classes.

    Args:
        labels: Those of each split; none is empty.
        classes: The names, in order; None: those of the training split.
        trained: The names that weights were trained with; they stand in for a training split that is not there.
        source: What holds the labels, for messages.
        describe: Names the place of a sample.
        delimiter: Between the labels of a sample that has several; None: each has one.
        may_have_several: Whether `dataset.args` takes a delimiter, for messages.

    Returns:
        (N,) int64 for each split; with a delimiter (N, K) uint8 of 0 and 1.

    Raises:
        UserError: There are no classes, a single one without a delimiter, or a label is not one of them.
    """
    if classes is None and "train" not in labels and trained is None:
        raise UserError(f"{source}: has no training samples", hint="name some, or give dataset.args.classes")
    parts = partial(parts_of, delimiter=delimiter)
    texts = {
        split: [(part, place) for text, place in zip(found.texts, found.places, strict=True) for part in parts(text)]
        for split, found in labels.items()
    }
    known = {split: {text for text, _ in found} for split, found in texts.items()}
    given = [unicodedata.normalize("NFC", name) for name in classes or ()]
    names = tuple(given or (_sorted(known["train"]) if "train" in known else trained or ()))
    if not names:
        raise _no_labels(source)
    if len(names) < 2 and delimiter is None:
        raise UserError(
            f"{source}: has a single class, {names[0]}: there is nothing to classify",
            hint="add samples of other classes, or give the names of all in dataset.args.classes",
        )
    class_of = {name: number for number, name in enumerate(names)}
    number_of = {str(number): number for number in range(len(names))}
    may_be_numbers = classes is not None and all(
        class_of.get(text, number) == number for text, number in number_of.items()
    )
    if may_be_numbers and _are_numbers(set().union(*known.values()), class_of):
        class_of = number_of
    for split, found in texts.items():
        for text, place in found:
            if text not in class_of:
                error = _unknown(
                    text,
                    split=split,
                    place=describe(place),
                    names=names,
                    are_given=bool(classes),
                    may_be_number=may_be_numbers,
                )
                if may_have_several and delimiter is None and (several := how_to_have_several([text])):
                    error = UserError(error.message, hint=f"{error.hint}. If it is several labels, write {several}")
                raise error
    if delimiter is None:
        return {split: found.classes(class_of) for split, found in labels.items()}, names
    return {split: found.class_sets(class_of, delimiter=delimiter) for split, found in labels.items()}, names


def how_to_have_several(texts: Iterable[str], *, default: str = "") -> str:
    """Return the argument that names what is between the labels in some texts; `default` if nothing seems to be."""
    found = [mark for mark in DELIMITERS if any(mark in text for text in texts)] or [default]
    return f"""'dataset.args.label_delimiter="{found[0]}"'""" if found[0] else ""


def without_unlabeled(labels: Mapping[str, Tensor], *, source: str) -> tuple[dict[str, Tensor], list[str]]:
    """Return the splits in which some sample has a label, and sentences on the others, as test sets may be.

    Labels are (N,) classes, of which -1 is none, or (N, K) of 0 and 1.

    Raises:
        UserError: No training sample has one, or no split.
    """
    found = {
        split: part
        for split, part in labels.items()
        if bool(part.any() if part.dim() == 2 else (part != UNLABELED).any())
    }
    if not found or ("train" in labels and "train" not in found):
        raise _no_labels(source)
    left_out = [split for split in labels if split not in found]
    return found, [f"left out {split}: {len(labels[split]):,} rows without labels" for split in left_out]


def _sorted(texts: Collection[str]) -> list[str]:
    if all(map(_WHOLE.fullmatch, texts)):
        return sorted(texts, key=lambda text: (Decimal(text), text))
    return sorted(texts)


def _are_numbers(texts: Set[str], class_of: Mapping[str, int]) -> bool:
    """Return whether labels are numbers of classes rather than their names."""
    return not texts <= class_of.keys() and all(map(_WHOLE.fullmatch, texts))


def _no_labels(source: str) -> UserError:
    return UserError(
        f"{source}: has no labels for its training samples",
        hint="name the column of the labels with dataset.args.label=COLUMN",
    )


def _unknown(
    text: str, *, split: str, place: str, names: Sequence[str], are_given: bool, may_be_number: bool
) -> UserError:
    listed = ", ".join(names[:NAMED]) + ", ..." * (len(names) > NAMED)
    if are_given:
        kinds = f"neither one of dataset.args.classes nor a number from 0 to {len(names) - 1}"
        if not may_be_number:
            kinds = "not one of dataset.args.classes; the name of one is the number of another, so labels are names"
        return UserError(
            f"{place}: the label {text!r} is {kinds}",
            hint=f"{did_you_mean(text, names)}The classes are {listed}: correct the label or the list",
        )
    return UserError(
        f"{place}: the {split} split has the class {text!r}, which the training split lacks",
        hint=f"{did_you_mean(text, names)}The classes are {listed}: correct the label, or name all in "
        "dataset.args.classes",
    )
