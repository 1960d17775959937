"""Section `dataset`: where the samples come from, and how their images are shown to the network.

An image size is 224, [H, W], or sizes by points of the run; `recipe.image_sizes` turns the points into epochs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, PlainSerializer, WithJsonSchema, field_validator

from swa_cli.recipe import scalars
from swa_cli.recipe.scalars import shown
from swa_cli.recipe.values import (
    STRICT,
    Argument,
    Count,
    Duration,
    Flag,
    FlagOrAuto,
    Flip,
    Portion,
    Rate,
    Text,
    Whole,
)

Size = tuple[int, int]  # height and width
MAX_SIDE = 65536


@dataclass(frozen=True)
class ImageSize:
    """The size of training images: the same in all epochs, or another one from each of several points on."""

    points: tuple[tuple[Duration, Size], ...]  # as written; a size for all epochs has one point, 0ep

    @property
    def is_progressive(self) -> bool:
        """Whether there are several sizes."""
        return len(self.points) > 1

    @property
    def last(self) -> Size:
        """The size at the end of the run."""
        return self.points[-1][1]


def _parse_size(value: object) -> Size:
    """Parse `224`, the side of a square, or `[H, W]`."""
    sides = value if isinstance(value, list | tuple) else [value, value]
    if len(sides) != 2 or isinstance(value, Mapping):
        raise ValueError(f"{shown(value)} is not a size of images: write 224, or [H, W] such as [192, 256]")
    height, width = map(scalars.whole, sides)
    for side in (height, width):
        if not 1 <= side <= MAX_SIDE:
            raise ValueError(f"{side} pixels are no side of an image: write a size from 1 to {MAX_SIDE}")
    return height, width


def _parse_image_size(value: object) -> ImageSize:
    """Parse a size, or sizes by points of the run: `{0ep: 128, 50%: 176, 80%: 224}`."""
    if isinstance(value, ImageSize):
        return value
    if not isinstance(value, Mapping):
        return ImageSize(((Duration.parse("0ep"), _parse_size(value)),))
    if not value:
        raise ValueError("has no sizes: write one, such as 224, or leave the key out")
    points = []
    for start, size in value.items():
        point = Duration.parse(scalars.written(start))
        try:
            points.append((point, _parse_size(size)))
        except ValueError as error:
            raise ValueError(f"{shown(start)}: {error}") from None
    return ImageSize(tuple(points))


def _write_size(size: Size) -> int | list[int]:
    return size[0] if size[0] == size[1] else list(size)


def _write_image_size(size: ImageSize) -> int | list[int] | dict[str, Any]:
    if size.is_progressive or size.points[0][0].value:
        return {str(start): _write_size(one) for start, one in size.points}
    return _write_size(size.last)


def _numbers(
    value: object, *, count: int | None, form: str, is_possible: Callable[[float], bool], bounds: str
) -> list[float]:
    """Parse a list of numbers that are all possible; `form` and `bounds` tell what to write."""
    if not isinstance(value, list | tuple) or not value or len(value) != (count or len(value)):
        raise ValueError(f"{shown(value)} is not {form}")
    numbers = list(map(scalars.number, value))
    for number in numbers:
        if not is_possible(number):
            raise ValueError(f"{number:g} is out of range: write {bounds}")
    return numbers


def _constants(value: object, *, is_possible: Callable[[float], bool], bounds: str) -> str | list[float]:
    """Parse `auto`, `imagenet`, or a number for each channel."""
    if value in ("auto", "imagenet"):
        return str(value)
    form = "a number per channel: write auto, imagenet or a list such as [0.5, 0.5, 0.5]"
    return _numbers(value, count=None, form=form, is_possible=is_possible, bounds=bounds)


def _range(value: object, *, largest: float, example: str) -> tuple[float, float]:
    """Parse `[low, high]`, both above 0."""
    bounds = "numbers above 0" if largest == float("inf") else f"numbers above 0 and at most {largest:g}"
    form = f"two numbers, the smallest and the largest: write {example}"
    low, high = _numbers(value, count=2, form=form, is_possible=lambda number: 0 < number <= largest, bounds=bounds)
    if low > high:
        raise ValueError(f"[{low:g}, {high:g}] begins with the larger number: write [{high:g}, {low:g}]")
    return low, high


def _constants_schema(**bounds: float) -> WithJsonSchema:
    numbers = {"type": "array", "items": {"type": "number", **bounds}, "minItems": 1}
    return WithJsonSchema({"anyOf": [{"enum": ["auto", "imagenet"]}, numbers]})


def _range_schema(**bounds: float) -> WithJsonSchema:
    item = {"type": "number", "exclusiveMinimum": 0, **bounds}
    return WithJsonSchema({"type": "array", "items": item, "minItems": 2, "maxItems": 2})


_SIDE = {"type": "integer", "minimum": 1, "maximum": MAX_SIDE}
_SIZE_FORMS: list[dict[str, Any]] = [_SIDE, {"type": "array", "items": _SIDE, "minItems": 2, "maxItems": 2}]
_POINT = r"^(?:\d{1,15}(?:\.\d{1,12})?|\.\d{1,12})\s*(?:%|ep)$"
_SIZES_BY_POINT = {
    "type": "object",
    "propertyNames": {"pattern": _POINT},
    "additionalProperties": {"anyOf": _SIZE_FORMS},
    "minProperties": 1,
}
SizeField = Annotated[
    Size, BeforeValidator(_parse_size), PlainSerializer(_write_size), WithJsonSchema({"anyOf": _SIZE_FORMS})
]
ImageSizeField = Annotated[
    ImageSize,
    BeforeValidator(_parse_image_size),
    PlainSerializer(_write_image_size),
    WithJsonSchema({"anyOf": [*_SIZE_FORMS, _SIZES_BY_POINT]}),
]
Mean = Annotated[
    str | list[float],
    BeforeValidator(partial(_constants, is_possible=lambda number: True, bounds="a number")),
    _constants_schema(),
]
Std = Annotated[
    str | list[float],
    BeforeValidator(partial(_constants, is_possible=lambda number: number > 0, bounds="numbers above 0")),
    _constants_schema(exclusiveMinimum=0),
]
Scale = Annotated[
    tuple[float, float],
    BeforeValidator(partial(_range, largest=1.0, example="[0.08, 1]")),
    PlainSerializer(list),
    _range_schema(maximum=1),
]
Ratio = Annotated[
    tuple[float, float],
    BeforeValidator(partial(_range, largest=float("inf"), example="[0.75, 1.3333]")),
    PlainSerializer(list),
    _range_schema(),
]
Interpolation = Literal["bilinear", "bicubic"]


class Jitter(BaseModel):
    """Random changes of color in a random order; each value is the largest change, 0 for none."""

    model_config = STRICT
    brightness: Rate = Field(default=0.0, le=100, description="factor from 1 - x, at least 0, to 1 + x")
    contrast: Rate = Field(default=0.0, le=100, description="factor from 1 - x, at least 0, to 1 + x")
    saturation: Rate = Field(default=0.0, le=100, description="factor from 1 - x, at least 0, to 1 + x")
    hue: Rate = Field(default=0.0, le=0.5, description="rotation of the color circle from -x to x, in turns")


class RandomResizedCrop(BaseModel):
    """A random part of the image, resized to dataset.image_size."""

    model_config = STRICT
    scale: Scale = Field(default=(0.08, 1.0), description="smallest and largest share of the image's area")
    ratio: Ratio = Field(default=(0.75, 1.3333), description="smallest and largest width / height of the part")


def _add_short_crop(node: dict[str, Any]) -> None:
    """Let the JSON Schema accept what `Augment._short_crop` parses."""
    node["anyOf"] = [{"type": "boolean"}, {"const": "none"}, *node["anyOf"]]


class Augment(BaseModel):
    """Random changes of the training images; each depends on the seed alone, whatever else is on."""

    model_config = STRICT
    random_resized_crop: RandomResizedCrop | None = Field(
        default=None,
        description="a random part, resized to dataset.image_size: true, false, or a section with scale and ratio",
        json_schema_extra=_add_short_crop,
    )
    crop: Whole = Field(default=0, ge=0, description="zero padding in pixels, then a random window of the old size")
    translate: Whole = Field(default=0, ge=0, description="the same with reflected pixels around the image")
    flip: Flip = Field(
        default=False,
        description="mirror left-right: true, every second image on average; alternating, each in every other epoch",
    )
    vertical_flip: Flag = Field(default=False, description="mirror top-bottom, every second image on average")
    rotate: Rate = Field(default=0.0, le=180, description="largest rotation in degrees, either way; 0 for none")
    policy: Literal["none", "trivial_augment", "rand_augment", "auto_augment", "augmix"] = Field(
        default="none", description="random operations of color and geometry, as torchvision has them"
    )
    cutout: Whole = Field(default=0, ge=0, description="side in pixels of a square that is blanked out")
    random_erasing: Rate = Field(
        default=0.0, le=1, description="probability that a random rectangle of an image is blanked out"
    )
    jitter: Jitter = Jitter()
    mixup: Rate = Field(
        default=0.0,
        le=1000,
        description="classification: alpha of the share of an image blended with another; 0 for none",
    )
    cutmix: Rate = Field(
        default=0.0, le=1000, description="classification: alpha of the share of an image beside a box of another"
    )

    @field_validator("random_resized_crop", mode="before")
    @classmethod
    def _short_crop(cls, value: Any) -> Any:
        """Parse `true` as the section with its defaults, `false` and `none` as no crop."""
        if value is None or isinstance(value, Mapping | RandomResizedCrop | list | tuple):
            return value
        return {} if value != "none" and scalars.flag(value) else None


class Dataset(BaseModel):
    """Where the samples come from."""

    model_config = STRICT
    name: Text = Field(description="a named dataset, image_folder, csv, hf:NAME, webdataset, or package.module:factory")
    root: Text = Field(default="data", description="folder that holds, or will hold, the files")
    val: Portion = Field(
        default="10%", description="validation samples taken from train by the seed: 10%, 5000, or 0 for none"
    )
    val_seed: Whole | None = Field(
        default=None,
        ge=0,
        lt=2**63,
        description="seed that takes the validation samples, so that runs of several seeds hold out the same ones;"
        " default: that of the run",
    )
    stratify: Flag = Field(
        default=True, description="the validation samples keep the proportions of the classes, where these are known"
    )
    sampler: Literal["uniform", "balanced"] = Field(
        default="uniform",
        description="balanced: each class is drawn equally often; an epoch has as many samples as the training set",
    )
    image_size: ImageSizeField | None = Field(
        default=None,
        description="what the network sees: 224, [H, W], or sizes from points of the run on, such as"
        " {0ep: 128, 50%: 176, 80%: 224}; left out: that of model.pretrained, else images as they are",
    )
    interpolation: Interpolation | None = Field(
        default=None,
        description="how training images are resized and rotated: bilinear or bicubic; default that of"
        " model.pretrained, else bilinear",
    )
    mean: Mean = Field(
        default="auto",
        description="of each channel, pixels from 0 to 1: auto (that of model.pretrained, else known or measured),"
        " imagenet, or a list",
    )
    std: Std = Field(
        default="auto",
        description="of each channel, pixels from 0 to 1: auto (that of model.pretrained, else known or measured),"
        " imagenet, or a list",
    )
    augment: Augment = Augment()
    repeats: Count = Field(
        default=1,
        description="times that each image of an epoch is shown, augmented anew; the epoch then has fewer images",
    )
    skip_broken: Flag = Field(
        default=False, description="leave out image files that cannot be read, and report their number"
    )
    cache: Literal["auto", "ram", "none", "packed"] = Field(
        default="auto",
        description="images in memory (ram), streamed from disk (none), by size (auto), or decoded and shrunk once into"
        " files beside the dataset (packed)",
    )
    decode: Literal["cpu", "device"] = Field(
        default="cpu",
        description="what decodes image files: loader processes (cpu), or the GPU the JPEG files among them (device)",
    )
    on_device: FlagOrAuto = Field(
        default="auto",
        description="whether images in memory lie on the GPU and are augmented there: auto, where they take at most a"
        " quarter of its free memory",
    )
    workers: Whole = Field(default=2, ge=0, description="loader processes of a dataset that is streamed")
    download: Flag = Field(default=True, description="fetch missing files where the dataset can be fetched")
    args: dict[str, Argument] = Field(default={}, description="arguments of the dataset, such as classes: 2")
