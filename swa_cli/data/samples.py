"""Samples of user code, converted and checked: what a dataset gives becomes tensors, or an error that names the sample.

Shapes: C channels, H W pixels, K classes, V numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from swa_cli.data import pytree
from swa_cli.data.image_file import to_8_bit, to_rgb
from swa_cli.data.transforms import IGNORED
from swa_cli.errors import UserError


@dataclass(frozen=True)
class Origin:
    """Where samples come from, for messages, and which labels they may have."""

    split: str = ""  # train, val or test
    num_classes: int | None = None  # None or 0 if labels are not classes, or only the network knows

    def describe(self, row: int) -> str:
        """Name a sample."""
        return f"sample {row} of the {f'{self.split} split' if self.split else 'dataset'}"


UNKNOWN_ORIGIN = Origin()
_UNCONVERTIBLE = (TypeError, ValueError, RuntimeError, OverflowError)  # what torch and int raise on other values


def _input_tensors(value: Any) -> Any:
    """Convert what goes into the network: a PIL image to (C, H, W) uint8 with 1 or 3 channels; tensors stay.

    Raises:
        UserError: It is neither an image, a tensor, nor a tuple or dict of tensors.
    """
    if isinstance(value, (tuple, Mapping)) and value:
        return pytree.map_tensors(value, _part_tensor)
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Image.Image):
        image = to_8_bit(value, name="its image")
        is_gray = image.mode in ("1", "L") and not image.has_transparency_data
        pixels = np.array(image.convert("L") if is_gray else to_rgb(image, name="its image"))
        return torch.from_numpy(pixels[None] if is_gray else pixels.transpose(2, 0, 1).copy())
    raise UserError(
        f"the dataset gave an image of the wrong kind: {_kind(value)}",
        hint="give a PIL image, a tensor such as (C, H, W), uint8 or floating point, or a tuple or dict of tensors",
    )


def _part_tensor(value: Any) -> Tensor:
    """Convert a tensor, an array or a number; float64, the default of Python and numpy, becomes float32."""
    try:
        tensor = torch.as_tensor(value)
    except _UNCONVERTIBLE as error:
        raise UserError(
            f"the dataset gave {_kind(value)} as a part of a sample",
            hint="let each part be a tensor, an array or a number",
        ) from error
    return tensor.float() if tensor.dtype == torch.float64 else tensor


def label_tensor(label: Any, *, target: str, shape: tuple[int, ...]) -> Any:
    """Convert a label: () int64 of a class, (K,) uint8 of 0 and 1, (H, W) uint8 of a mask, (V,) float32 of numbers.

    That of a user's own task is taken as it is.

    A mask must have the `shape` (H, W) of its image; () if the input is not an image.

    Raises:
        UserError: It is not such a label.
    """
    if target == "mask":
        return _mask(label, shape=shape)
    if target == "own":
        return pytree.map_tensors(label, _part_tensor)
    if target == "multilabel":
        return _label_set(label)
    try:
        if target == "value":
            return torch.as_tensor(label, dtype=torch.float32).reshape(-1)
        if int(label) != label:
            raise ValueError("a class is a whole number")
        return torch.tensor(int(label))
    except _UNCONVERTIBLE as error:
        raise UserError(
            f"the dataset gave a label that is not a {target}: {_kind(label)}",
            hint='give a number; if labels are masks, return "target": "mask" from the factory beside "train", '
            '"target": "value" if they are numbers to predict, and "target": "multilabel" if each class is 0 or 1',
        ) from error


def _label_set(label: Any) -> Tensor:
    try:
        values = torch.as_tensor(label)
    except _UNCONVERTIBLE:
        values = None
    if values is None or values.dim() != 1:
        raise UserError(
            f"the dataset gave labels of the wrong kind: {_kind(label)}",
            hint="give a vector with 0 or 1 for each class, of floats or bools",
        )
    wrong = values[(values != 0) & (values != 1)]
    if len(wrong):
        raise UserError(
            f"the dataset gave the label {float(wrong[0]):g}, which is neither 0 nor 1",
            hint="give 1 for each class that the sample has, and 0 for the others",
        )
    return values.to(torch.uint8)


def _mask(label: Any, *, shape: tuple[int, ...]) -> Tensor:
    mask = torch.from_numpy(np.array(label)) if isinstance(label, Image.Image) else label
    if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.is_floating_point():
        raise UserError(
            f"the dataset gave a mask of the wrong kind: {_kind(mask)}",
            hint="give the class of each pixel: a gray or palette PIL image, or integers of shape (H, W)",
        )
    if shape and mask.shape != shape:
        raise UserError(
            f"the dataset gave an image of {shape[1]}x{shape[0]} pixels with a mask of {mask.shape[1]}x{mask.shape[0]}",
            hint="resize both to one size, the mask with nearest neighbors",
        )
    if not mask.numel():
        raise UserError("the dataset gave an image and a mask without pixels", hint="leave the sample out")
    first, last = map(int, mask.long().aminmax())  # torch has no minimum of uint16
    if not 0 <= first <= last <= 255:
        raise UserError(
            f"the dataset gave a mask with classes from {first} to {last}",
            hint="number the classes from 0; ignored pixels are 255",
        )
    return mask.to(torch.uint8)


def _kind(value: object) -> str:
    if isinstance(value, float) or (isinstance(value, Tensor) and not value.dim()):
        return f"{float(value):g}"
    return f"{value.dtype} tensor {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def read_sample(dataset: Dataset[Any], row: int, *, target: str, origin: Origin) -> tuple[Any, Any]:
    """Read, convert and check a sample of user code: its input, and its label as `label_tensor` gives it.

    Raises:
        UserError: It is not a pair, not of the wanted kind, not finite, or of an unknown class; the message names it.
    """
    sample = dataset[row]
    if not (isinstance(sample, Sequence) and len(sample) == 2):
        raise UserError(
            f"{origin.describe(row)} is not a pair but {type(sample).__name__}",
            hint="let the dataset's __getitem__ return (image, label)",
        )
    try:
        value = _input_tensors(sample[0])
        is_image = pytree.is_image(value)
        label = label_tensor(sample[1], target=target, shape=tuple(value.shape[1:]) if is_image else ())
    except UserError as error:
        raise UserError(f"{origin.describe(row)}: {error.message}", hint=error.hint) from error
    if is_image and value.is_floating_point() and not bool(torch.isfinite(value).all()):
        raise not_finite(row=row, origin=origin)
    _require_valid_label(label, row=row, target=target, origin=origin)
    return value, label


def not_finite(*, row: int, origin: Origin) -> UserError:
    """Return the error for an image with NaN or infinite pixels."""
    return UserError(
        f"{origin.describe(row)}: the image has pixels that are NaN or infinite",
        hint="replace them, such as with torch.nan_to_num, or leave the sample out",
    )


def unknown_class(label: int, *, row: int, origin: Origin, span: tuple[int, int] | None = None) -> UserError:
    """Return the error for a label that is not a class; `span` is the smallest and the largest label of the split."""
    number = origin.num_classes
    classes = f"0 to {(number or 1) - 1}"
    hint = f"let labels be {classes}, or correct num_classes"
    if span == (1, number):
        hint = f"the labels of this split go from 1 to {number}: subtract 1"
    return UserError(f"{origin.describe(row)}: label {label} is not one of the {number} classes, {classes}", hint=hint)


def _require_valid_label(label: Any, *, row: int, target: str, origin: Origin) -> None:
    """Check that a class, in a mask too, is one of the known ones, and that a number is finite."""
    number = origin.num_classes
    if target == "class" and number and not 0 <= int(label) < number:
        raise unknown_class(int(label), row=row, origin=origin)
    if target == "multilabel" and number and len(label) != number:
        raise UserError(
            f"{origin.describe(row)}: has {len(label)} labels, there are {number} classes",
            hint="give a vector with 0 or 1 for each class, or correct num_classes",
        )
    if target == "mask" and number and bool((wrong := (label >= number) & (label != IGNORED)).any()):
        raise UserError(
            f"{origin.describe(row)}: its mask has the class {int(label[wrong][0])}, there are {number} classes",
            hint=f"let masks hold 0 to {number - 1}, and {IGNORED} for ignored pixels",
        )
    if target == "value" and not bool(torch.isfinite(label).all()):
        raise UserError(
            f"{origin.describe(row)}: its target is {label.tolist()}",
            hint="leave out samples whose target is not finite",
        )
