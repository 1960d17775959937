"""Photos by row, wherever they lie: in files of their own, or inside other files.

`Photos` finds the encoded photos, and `PhotoDataset` reads them with their classes, one at a time. Each source of
photos (folders, tables, shards, Hugging Face) is a `Photos`; what follows is the same for all of them.
Shapes: N photos, H W pixels, K classes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from swa_cli.data.image_file import EncodedPhoto, Header, read_header, read_rgb, require_size
from swa_cli.data.splits import Found
from swa_cli.data.transforms import EvaluationView, View
from swa_cli.errors import UserError

_MAX_HEADERS = 2_000  # that are read for the plan, some tenths of a second


class Photos(Protocol):
    """Encoded photos by row."""

    @property
    def files(self) -> Sequence[str]:
        """The files that hold the photos; see `stream.FileDataset`."""

    @property
    def checksum(self) -> str:
        """What identifies the photos besides names and sizes of the files; see `stream.FileDataset`."""

    @property
    def tables(self) -> Sequence[str]:
        """Files that hold photos besides `files`; see `stream.FileDataset`."""

    def __len__(self) -> int:
        """Return N."""

    def encoded(self, row: int) -> tuple[str, bytes | None]:
        """Return what messages call a photo, and its content; None: it is the file at this path.

        Raises:
            OSError: The file that holds it cannot be read; the message names it.
        """


@dataclass(frozen=True, eq=False)
class PhotoFiles:
    """A photo per file."""

    files: Sequence[str]
    checksum: str = ""
    tables: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.files)

    def encoded(self, row: int) -> tuple[str, None]:
        """Return the path of a photo; see `Photos`."""
        return self.files[row], None


@dataclass(frozen=True, eq=False)
class _FromPhotos:
    """What every `stream.FileDataset` of photos has in common."""

    photos: Photos

    def __len__(self) -> int:
        return len(self.photos)

    @property
    def files(self) -> Sequence[str]:
        """The files that hold the photos."""
        return self.photos.files

    @property
    def checksum(self) -> str:
        """What identifies the photos besides names and sizes of the files."""
        return self.photos.checksum

    @property
    def tables(self) -> Sequence[str]:
        """Files that hold photos besides `files`."""
        return self.photos.tables

    def name(self, row: int) -> str:
        """Return what messages call a photo; see `stream.FileDataset`."""
        return self.photos.encoded(row)[0]

    def photo(self, row: int) -> EncodedPhoto:
        """Return a photo; see `stream.FileDataset`."""
        return EncodedPhoto(*self.photos.encoded(row))

    def check(self, row: int) -> None:
        """Decode a photo, a JPEG file at 1/8 of its size; see `stream.FileDataset`."""
        name, content = self.photos.encoded(row)
        read_rgb(name if content is None else content, name=name, divisor=8)


@dataclass(frozen=True, eq=False)
class PhotoDataset(_FromPhotos):
    """A `stream.FileDataset`: photos and their classes."""

    labels: Tensor  # (N,) int64, or (N, K) uint8 of 0 and 1
    shape: tuple[int, int]  # (H, W) of the images where nothing is drawn
    first: str = ""  # the photo that has this shape, where the view has no size

    def read(self, row: int, view: View) -> tuple[Tensor]:
        """Read the view (3, h, w) of a photo; see `stream.FileDataset`."""
        name, content = self.photos.encoded(row)
        image = view.image(EncodedPhoto(name, content))
        size = view.size or self.shape
        if tuple(image.shape[1:]) != size:
            require_size(image, size, path=name, first=self.first)
        return (image,)


@dataclass(frozen=True, eq=False)
class UnlabeledPhotos(_FromPhotos):
    """A `stream.FileDataset`: photos whose classes nobody knows, each with its size (H, W) in place of a label.

    One that cannot be read is black and has the size (0, 0), so that the others are read.
    """

    shape: tuple[int, int]  # (h, w) of every view

    @property
    def labels(self) -> Tensor:
        """No classes: what `read` gives takes their place."""
        return torch.empty(0, dtype=torch.int64)

    def check(self, row: int) -> None:
        """Decode a photo; see `stream.FileDataset`."""
        self.photo(row).pixels()

    def read(self, row: int, view: View) -> tuple[Tensor, Tensor]:
        """Read the view (3, h, w) of a photo, and its size (2,) int64."""
        try:
            photo = self.photo(row)
            return view.image(photo), torch.tensor(photo.size)
        except (OSError, UserError):
            return torch.zeros(3, *self.shape, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)

    def problem(self, row: int) -> str:
        """Return what is wrong with a photo that could not be read."""
        try:
            self.check(row)
        except OSError as error:
            reason = str(error)
        except UserError as error:
            reason = error.message
        else:
            reason = "could not be read at first"
        return reason.removeprefix(f"{self.name(row)}: ")


def found(
    photos: Mapping[str, Photos],
    labels: Mapping[str, Tensor],
    *,
    class_names: Sequence[str],
    view: EvaluationView,
    left_out: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Found:
    """Return the splits of photos with classes, and what the plan says of them.

    Args:
        photos: Those of each split; none is empty.
        labels: Their classes (N,) int64, or several for each, (N, K) uint8 of 0 and 1.
        class_names: In the order of the classes.
        view: Of each photo, where nothing is drawn; without a size all have that of the first that can be read.
        left_out: Sentences for the plan.
        notes: What a person should know and did not ask for.

    Raises:
        UserError: The size is needed and no photo of the first split can be read, or a photo has too many pixels.
    """
    shape, first = (view.size, "") if view.size else first_size(_FromPhotos(next(iter(photos.values()))))
    return Found(
        splits={split: PhotoDataset(part, labels[split], shape, first) for split, part in photos.items()},
        class_names=tuple(class_names),
        target="class" if all(part.dim() == 1 for part in labels.values()) else "multilabel",
        contents=(*describe([*photos.values()], sampled_headers([*photos.values()])), *left_out),
        notes=tuple(notes),
    )


def header_of(photos: Photos, row: int) -> Header:
    """Read what an encoded photo says about itself; raise as `image_file.open_image` does."""
    name, content = photos.encoded(row)
    return read_header(name if content is None else content, name=name)


class _Checked(Protocol):
    """What `first_size` needs of a `stream.FileDataset`."""

    def __len__(self) -> int: ...
    def name(self, row: int) -> str: ...
    def photo(self, row: int) -> EncodedPhoto: ...
    def check(self, row: int) -> None: ...


def first_size(images: _Checked) -> tuple[tuple[int, int], str]:
    """Return (H, W) and the name of the first image that can be read, upright: others may be left out later.

    Raises:
        UserError: None can be read.
    """
    for row in range(len(images)):
        try:
            images.check(row)
            return images.photo(row).size, images.name(row)
        except OSError as error:
            reason = str(error)
    raise UserError(f"none of {len(images):,} image files can be read:\n  {reason}", hint="repair or replace them")


def sampled_headers(splits: Sequence[Photos]) -> list[tuple[int, int, Header]]:
    """Return split, row and header of all photos, or of evenly spaced ones of many.

    Raises:
        UserError: A photo has too many pixels. Broken ones are skipped: they raise when they are decoded.
    """
    total = sum(map(len, splits))
    firsts = [0, *accumulate(map(len, splits))]
    found = []
    for index in range(number := min(total, _MAX_HEADERS)):
        place = index * total // number
        split = bisect_right(firsts, place) - 1
        with suppress(OSError):
            found.append((split, place - firsts[split], header_of(splits[split], place - firsts[split])))
    return found


def of_looked_at(splits: Sequence[Photos]) -> str:
    """Return what follows a number of photos that `sampled_headers` tells, where these are not all."""
    return "" if sum(map(len, splits)) <= _MAX_HEADERS else f", of {_MAX_HEADERS:,} looked at"


def describe(splits: Sequence[Photos], found: Sequence[tuple[int, int, Header]]) -> list[str]:
    """Describe the photos of all splits for the plan: their sizes, and how many are converted to 8-bit RGB.

    `found` are their `sampled_headers`.
    """
    headers = [header for _, _, header in found]
    if not headers:
        return []
    of = of_looked_at(splits)
    sizes = sorted((header.size for header in headers), key=lambda size: (size[0] * size[1], size))
    least, most = (f"{width}x{height}" for height, width in (sizes[0], sizes[-1]))
    facts = [f"image files of {least}{f' to {most}' if most != least else ''} pixels{of}"]
    for what, holds in _CONVERTED.items():
        if count := sum(map(holds, headers)):
            facts.append(f"{count:,} {what}{of}")
    return facts


_CONVERTED: dict[str, Callable[[Header], bool]] = {
    "of 16 bits (65,535 becomes 255)": lambda each: each.is_16_bit,
    "with transparency (put on white)": lambda each: each.is_transparent,
    "of several frames (the first is read)": lambda each: each.has_frames,
    "turned upright by EXIF": lambda each: each.orientation != 1,
}
