"""Datasets in a user's own code: `package.module:factory` called, and its samples checked before a run.

The factory returns a dict with "train" and "num_classes", and optionally "val", "test", "mean", "std", "class_names",
"target" and "layout"; or a pair (train, test) of datasets with an attribute `classes`. "target" says what a label is:
"class", "multilabel" (0 or 1 per class), "mask" (a class per pixel), "value" ("num_outputs" numbers, which takes the
place of "num_classes"), or "own" (whatever the user's own task takes).
"layout" says how images lie where their shape does not tell: "CHW" or "HWC".

Labels are taken from where datasets list them (`targets`, `labels`, a `TensorDataset`) after a few samples were read
to compare; without a list they are read from the samples, if there are few enough.
Shapes: N samples, C channels, H W pixels, K classes.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from swa_cli.data import pytree
from swa_cli.data.samples import not_finite
from swa_cli.data.splits import FileDataset, Found, Reading, Split, Target, cut_spans, stream_rows
from swa_cli.errors import UserError
from swa_cli.import_path import import_object

LABELS_READ = 5_000  # samples of a split that are read for their labels; a larger split has to list them
_CHANNELS = (1, 3, 4)
_KEY = ("labels",)  # the purpose of all reading here, see `stream`
_EXPECTED = (
    'return {"train": Dataset, "num_classes": int}, with "test", "val", "mean", "std", "class_names", "target" if '
    'you have them ("num_outputs" takes the place of "num_classes" where "target" is "value"), or a pair (train, test) '
    "of datasets with an attribute `classes`; a Dataset has __len__ and __getitem__, which gives (image, label)"
)
_WITH_ROWS = (
    "return a dataset with __len__ and __getitem__, which gives (image, label) of a row; if it is iterable and fits "
    "into memory, return list(dataset)"
)
_KEYS = {"train", "val", "test", "num_classes", "mean", "std", "class_names", "target", "num_outputs", "layout"}
_LAYOUTS = ("CHW", "HWC")


def read(name: str, *, root: str, args: Mapping[str, Any]) -> Found:
    """Import the factory `package.module:factory`; call it with `args`, and with `root` if its signature accepts that.

    Raises:
        UserError: It cannot be imported, does not take the arguments, or does not return datasets.
    """
    returned = _call_factory(name, root=root, args=args)
    if isinstance(returned, tuple) and len(returned) == 2:
        returned = {"train": returned[0], "test": returned[1]}
    if not isinstance(returned, Mapping) or "train" not in returned or not set(returned) <= _KEYS:
        what = f"a dict with keys {sorted(map(str, returned))}" if isinstance(returned, Mapping) else repr(returned)
        raise UserError(f"{name} returned {what:.200}", hint=_EXPECTED)
    splits = {split: returned[split] for split in ("train", "val", "test") if returned.get(split) is not None}
    for split, dataset in splits.items():
        if not (hasattr(dataset, "__len__") and _has_rows(dataset)):
            what = f"{type(dataset).__name__} as {split!r}, which lacks __len__ or __getitem__"
            raise UserError(f"{name} returned {what}", hint=_WITH_ROWS)
        try:
            is_empty = not len(dataset)
        except (TypeError, ValueError, OverflowError) as error:
            if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
                raise  # inside the user's code
            what = f"{type(dataset).__name__} as {split!r}, whose __len__ fails: {error}"
            raise UserError(f"{name} returned {what}", hint="let __len__ return the number of samples") from error
        if is_empty:
            raise UserError(f"{name} returned an empty dataset as {split!r}", hint="return one with samples")
    target, layout = returned.get("target", "class"), returned.get("layout")
    if target not in get_args(Target):
        hint = f"return one of {', '.join(get_args(Target))}"
        raise UserError(f"{name} returned {target!r} as 'target'", hint=hint)
    if layout not in (None, *_LAYOUTS):
        raise UserError(f"{name} returned {layout!r} as 'layout'", hint=f"return one of {', '.join(_LAYOUTS)}")
    return Found(
        splits=splits,
        class_names=_class_names(returned, name=name, target=target),
        mean=_floats(returned, "mean", name=name),
        std=_floats(returned, "std", name=name),
        target=target,
        layout=layout,
    )


def _has_rows(dataset: Any) -> bool:
    """Return whether the samples can be read by their rows: torch's own `__getitem__` of an iterable dataset raises."""
    if isinstance(dataset, Subset):
        return _has_rows(dataset.dataset)
    return getattr(type(dataset), "__getitem__", Dataset.__getitem__) is not Dataset.__getitem__


def _call_factory(name: str, *, root: str, args: Mapping[str, Any]) -> Any:
    """Import and call the factory; errors inside it keep their traceback."""
    factory = import_object(name, key="dataset.name", what="a dataset", forms="write package.module:factory")
    if not callable(factory):
        raise UserError(f"dataset.name: {name} is not callable", hint=f"{_EXPECTED}, from a function")
    signature = inspect.signature(factory)
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    keywords = {"root": root, **args} if takes_any or "root" in signature.parameters else args
    try:
        signature.bind(**keywords)
    except TypeError as error:
        raise UserError(
            f"{name} does not take the arguments {sorted(args)}: {error}",
            hint=f"its signature is {signature}: change dataset.args",
        ) from error
    return factory(**keywords)


def _class_names(returned: Mapping[str, Any], *, name: str, target: str) -> tuple[str, ...]:
    """Return the class names, or numbers in their place; none if only the user's task knows the classes."""
    given = returned.get("class_names")
    if given is None or given is False or (isinstance(given, Sized) and not len(given)):
        given = getattr(returned["train"], "classes", None)
    if not isinstance(given, Iterable | None):
        raise UserError(f"{name} gives {given!r:.80} as the names of the classes", hint="give one text per class")
    names = [*(given if given is not None else ())]
    num_classes = returned.get("num_classes", returned.get("num_outputs", len(names) or None))
    key = "num_outputs" if target == "value" else "num_classes"
    if num_classes is None and target == "own":
        return ()
    try:
        num_classes = operator.index(num_classes)  # also of numpy and torch
    except TypeError:
        num_classes = 0
    if num_classes < 1:
        what = "outputs" if target == "value" else "classes"
        raise UserError(f"{name} does not return the number of {what}, {key}", hint=_EXPECTED)
    if names and len(names) != num_classes:
        raise UserError(f"{name} gives {len(names)} class names for {key} = {num_classes}", hint="make them agree")
    return tuple(map(str, names or range(num_classes)))


def _floats(returned: Mapping[str, Any], key: str, *, name: str) -> tuple[float, ...] | None:
    """Return numbers per channel, given as a sequence, an array or a single number."""
    value = returned.get(key)
    if value is None:
        return None
    try:
        numbers = value.detach().cpu() if isinstance(value, Tensor) else value
        if isinstance(numbers, Iterable) and not hasattr(numbers, "ndim"):
            numbers = [float(number) for number in numbers]
        return tuple(np.asarray(numbers, dtype=np.float64).ravel().tolist())
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise UserError(f"{name} returned {value!r:.80} as {key!r}", hint="return one number per channel") from error


# --- samples before a run


@dataclass(frozen=True)
class ChannelsFirst(Dataset[Any]):
    """A dataset whose images (H, W, C) become (C, H, W)."""

    dataset: Dataset[Any]

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, row: int) -> Any:
        image, *rest = self.dataset[row]
        return (image.permute(2, 0, 1) if isinstance(image, Tensor) else image, *rest)


@dataclass(frozen=True)
class _Inputs(Dataset[Any]):
    """The inputs of a dataset, with 0 as the label."""

    dataset: Dataset[Any]

    def __getitem__(self, row: int) -> tuple[Any, int]:
        return self.dataset[row][0], 0


def with_checked_samples(
    splits: Mapping[str, Split], *, layout: str | None, name: str, read_all: bool, reading: Reading
) -> tuple[dict[str, Split], list[str]]:
    """Check some samples of each split, or all if they are few or `read_all` is true.

    Test samples of user code with masks or numbers are read if they are few: training and validation samples are read
    in the first epoch, but a wrong test sample would be found after the last one.

    Args:
        splits: By name.
        layout: "HWC" or "CHW" if the factory returns it.
        name: Of the dataset, for messages.
        read_all: Whether all samples will be read into memory.
        reading: How samples are read.

    Returns:
        The splits, with images (C, H, W) and with their classes if these are known or were read, and warnings.

    Raises:
        UserError: A label is not one of the classes, an image is not finite or of an ambiguous layout, or a sample
            cannot be read.
    """
    own = {key: split for key, split in splits.items() if not isinstance(split.dataset, FileDataset | None)}
    own, warnings = _with_channels_first(own, layout=layout, name=name)
    found = {**splits, **own}
    for key, split in found.items():
        if split.dataset is not None:
            warnings += _require_finite(split)
            few = len(split) <= LABELS_READ
            if split.target in ("class", "multilabel") and split.labels is None:
                labels = _listed_labels(split)
                if labels is None and (read_all or few):
                    labels = _read_labels(split, reading=reading)
                found[key] = replace(split, labels=labels)
            elif key in own and key == "test" and split.target in ("mask", "value") and few and not read_all:
                _read_labels(split, reading=reading)
    return found, warnings


def _with_channels_first(
    splits: Mapping[str, Split], *, layout: str | None, name: str
) -> tuple[dict[str, Split], list[str]]:
    """Return the splits with images (C, H, W), and a warning if some were (H, W, C); read the first sample of each.

    Raises:
        UserError: The layout is ambiguous, or the splits differ in the number of channels.
    """
    found, warnings, channels = {}, list[str](), dict[str, int]()
    for key, split in splits.items():
        found[key], image = split, _first_image(split)
        if image is None:
            continue
        is_last = _has_channels_last(image, layout=layout, name=name)
        if is_last:
            found[key] = replace(split, dataset=ChannelsFirst(split.dataset))  # type: ignore[arg-type]
        channels[key] = image.shape[-1 if is_last else 0]
        if is_last and layout is None and not warnings:
            shape = " x ".join(map(str, image.shape))
            warnings.append(
                f"{name}: gives images of {shape}, taken as (H, W, C): the channels are moved to the front. "
                'Return "layout": "HWC" beside "train", or "CHW" if the first number is channels'
            )
    if len(set(channels.values())) > 1:
        numbers = ", ".join(f"{number} in {key}" for key, number in channels.items())
        raise UserError(f"{name}: the splits differ in their channels: {numbers}", hint="convert all to one number")
    return found, warnings


def _require_finite(split: Split) -> list[str]:
    """Check that no image in a dataset of tensors is NaN or infinite; other images are checked when they are read.

    Returns:
        A warning if inputs that are not images are NaN: these may stand for missing values.

    Raises:
        UserError: An image is NaN or infinite.
    """
    inputs = listed_part(split.dataset, 0) if isinstance(split.dataset, (TensorDataset, ChannelsFirst)) else None
    if inputs is None or not inputs.is_floating_point():
        return []
    for span in cut_spans(len(inputs), size=1_024):
        values = inputs[span].flatten(1)
        wrong = (~torch.isfinite(values) if inputs.dim() == 4 else torch.isnan(values)).any(1).nonzero()
        if len(wrong):
            row = span.start + int(wrong[0])
            if inputs.dim() == 4:
                raise not_finite(row=row, origin=split.origin)
            return [f"{split.origin.describe(row)}: has inputs that are NaN, which most networks cannot take"]
    return []


def _first_image(split: Split) -> Tensor | None:
    """Return the first sample's image as the dataset gives it; None if inputs are not images."""
    split = replace(split, view=None)
    if split.target == "mask":  # its size must equal that of the image, which depends on the layout
        split = replace(split, dataset=_Inputs(split.dataset), target="own")  # type: ignore[arg-type]
    inputs, _ = next(stream_rows(split, rows=torch.tensor([0]), key=_KEY, reading=Reading()))
    image = pytree.first_sample(inputs)
    return image if pytree.is_image(image) else None


def _has_channels_last(image: Tensor, *, layout: str | None, name: str) -> bool:
    """Return whether an image (a, b, c) is (H, W, C) and not (C, H, W).

    A last dimension of 1, 3 or 4 after two larger ones means channels. Only a floating-point (C, T, 1), as networks
    for sequences take, looks like a gray (H, W, 1) that is not square.
    """
    if layout is not None:
        return layout == "HWC"
    first, middle, last = image.shape
    if last not in _CHANNELS or min(first, middle) <= max(_CHANNELS):
        return False
    if last == 1 and image.is_floating_point() and first != middle:
        raise UserError(
            f"{name}: gives images of {' x '.join(map(str, image.shape))}, which may be (H, W, C) or (C, H, W)",
            hint='return "layout": "HWC" or "layout": "CHW" beside "train"',
        )
    return True


def _listed_labels(split: Split) -> Tensor | None:
    """Return the labels (N,) or (N, K) that the dataset lists, if they agree with a few samples that are read."""
    assert split.dataset is not None
    listed, number = listed_part(split.dataset, 1), split.origin.num_classes
    is_several = split.target == "multilabel"
    if listed is None or listed.shape != ((len(split), number) if is_several else (len(split),)):
        return None
    values = listed.double()
    if is_several:
        wrong = ((values != 0) & (values != 1)).any(1).nonzero()
    else:
        wrong = ((values != values.floor()) | (values < 0) | (values >= (number or np.inf))).nonzero()
    rows = torch.tensor(sorted({0, len(split) // 2, len(split) - 1, *wrong[:1, 0].tolist()}))
    plain = split if is_several else replace(split, origin=replace(split.origin, num_classes=None))
    read = torch.cat([labels for _, labels in stream_rows(plain, rows=rows, key=_KEY, reading=Reading())])
    return listed.to(read.dtype) if torch.equal(values[rows], read.double()) else None


def listed_part(dataset: Any, part: int) -> Tensor | None:
    """Return the inputs (part 0) or labels (part 1) of all samples, (N, ...), if the dataset lists them."""
    if isinstance(dataset, ChannelsFirst):
        return listed_part(dataset.dataset, part)
    if isinstance(dataset, TensorDataset):
        return dataset.tensors[part] if len(dataset.tensors) == 2 else None
    if isinstance(dataset, Subset):
        whole = listed_part(dataset.dataset, part)
        try:
            return None if whole is None else whole[torch.as_tensor(dataset.indices)]
        except IndexError:  # the sample that is not there is named when it is read
            return None
    if isinstance(dataset, ConcatDataset):
        parts = [each for each in (listed_part(each, part) for each in dataset.datasets) if each is not None]
        is_regular = len(parts) == len(dataset.datasets) and len({each.shape[1:] for each in parts}) == 1
        return torch.cat(parts) if is_regular else None
    found = next((getattr(dataset, name) for name in ("targets", "labels") if hasattr(dataset, name)), None)
    if part == 0 or not isinstance(found, (list, tuple, np.ndarray, Tensor)):
        return None
    is_regular = not isinstance(found, (list, tuple)) or all(isinstance(value, (int, float)) for value in found)
    values = np.asarray(found) if is_regular else None
    if values is None or not values.ndim or values.dtype.kind not in "iufb":
        return None
    own = values.dtype.newbyteorder("=")  # torch has no other byte order, and no long double
    return torch.from_numpy(values.astype(np.float64 if own.itemsize > np.dtype(np.float64).itemsize else own))


def _read_labels(split: Split, *, reading: Reading) -> Tensor:
    """Read the labels (N,) or (N, K) of all samples."""
    parts: list[Tensor] = []
    for _, labels in stream_rows(split, rows=torch.arange(len(split)), key=_KEY, reading=reading):
        parts.append(labels)
        if reading.progress:
            reading.progress(f"reading {split.origin.split} labels", sum(map(len, parts)), len(split))
    return torch.cat(parts)
