"""JPEG files that an accelerator decodes: loader processes read them, the training process decodes whole batches.

A view of pixels on the device is computed there by the same code as on the host, so only the decoder differs. What is
no usual JPEG file is decoded by the loader processes, as without the device.
The decoder is torchvision's, by nvJPEG; on the CPU it is libjpeg-turbo behind the same call. On some GPUs nvJPEG writes
at once, also into memory that work in the queue still reads (pytorch/vision 9606). So it has the
stream of copies, and with it memory, that no step uses, and is called when that is idle; the step goes on meanwhile.
Shapes: B batch, H W pixels of a file, h w of a view, N bytes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from swa_cli.data import pytree, transforms
from swa_cli.data.samples import Origin
from swa_cli.data.stream import UNREADABLE, Failure, FileDataset, MakeError, Pass, load_batches, views_at
from swa_cli.data.transforms import EvaluationView, Pixels, TrainingView, View
from swa_cli.errors import UserError

MAX_DECODED = 1 << 30  # bytes of pixels that lie on the device at a time, unless a single image has more
# EXIF orientation -> dimensions of (3, H, W) that are flipped, from 5 on after height and width are swapped.
_FLIPPED_TO_UPRIGHT = {2: (2,), 3: (1, 2), 4: (1,), 5: (), 6: (2,), 7: (1, 2), 8: (1,)}


def stream_decoded(dataset: FileDataset, reading: Pass, *, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (images (B, 3, h, w) uint8 on the device, labels) for each batch of a pass.

    The images are decoded and changed on `device`. The labels of the dataset are known, and the view has a size and no
    operations of PIL images: the recipe is checked.

    Raises:
        UserError: A file cannot be read.
    """
    assert dataset.labels is not None
    assert reading.view is not None
    transforms.import_operators()
    reader = _FileReader(dataset, reading.seed, reading.key, reading.origin, reading.view)
    for span, batch in zip(reading.spans, load_batches(reader, reading), strict=True):
        positions = torch.arange(span.start, span.stop) if isinstance(span, slice) else span
        own = reading.rows[positions]
        show = partial(reader.show, batch, positions.tolist(), own.tolist(), device=device, error=reading.error)
        images, labels = pytree.beside_the_step(show, device), dataset.labels[own]
        yield reading.change(images, labels, positions) if reading.change else (images, labels)


def require_decoder(device: torch.device) -> None:
    """Decode a small JPEG file on a device.

    Raises:
        UserError: torchvision cannot.
    """
    file = BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG")
    content = torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)
    try:
        decodes, reason = device.type != "cpu" and _decode([content], device)[0].device.type == device.type, ""
    except (ImportError, RuntimeError) as error:  # torchvision 0.29 says that a later version has no decoder
        decodes, reason = False, f" ({str(error).splitlines()[0]})"
    if not decodes:
        raise UserError(
            f"dataset.decode: device needs a GPU on which torchvision decodes JPEG files, not {device}{reason}",
            hint="set dataset.decode=cpu",
        )


class _Jpeg(NamedTuple):
    """What is known of a JPEG file before it is decoded."""

    num_bytes: int
    num_pixels: int
    orientation: int  # EXIF


@dataclass(frozen=True, eq=False)
class _Batch:
    """Files as they are read: in two tensors, since each one that a loader process sends takes shared memory."""

    jpegs: list[_Jpeg | None]  # of each place; None: the next one of `others`
    content: Tensor  # (N,) uint8, the JPEG files one after another
    others: Tensor  # (B', 3, h, w) uint8, the views of other files


@dataclass(frozen=True)
class _FileReader(Dataset[Any]):
    """A dataset of batches of files, indexed as `stream.load_batches` says, and what becomes of them on the device."""

    dataset: FileDataset
    seed: int
    key: tuple[str | int, ...]
    origin: Origin
    view: TrainingView | EvaluationView

    def __getitem__(self, batch: tuple[int, list[int], list[int]]) -> _Batch | Failure:
        """Read the files of a batch, and decode those that are no usual JPEG files."""
        _, positions, rows = batch
        jpegs: list[_Jpeg | None] = []
        content, others = bytearray(), []
        for row, view in zip(rows, self._views(positions), strict=True):
            try:
                photo = self.dataset.photo(row)
                file = photo.jpeg
                if file is None:
                    others.append(view.image(photo))
            except UNREADABLE as error:
                return Failure.of(error, sample=self.origin.describe(row))
            jpegs.append(None if file is None else _Jpeg(len(file), math.prod(photo.size), photo.header.orientation))
            content += file or b""
        empty = torch.empty(0, dtype=torch.uint8)
        return _Batch(
            jpegs,
            torch.frombuffer(content, dtype=torch.uint8) if content else empty,
            torch.stack(others) if others else empty,
        )

    def show(
        self, batch: _Batch, positions: list[int], rows: list[int], *, device: torch.device, error: MakeError
    ) -> Tensor:
        """Return the views (B, 3, h, w) of a batch on the device, channels last.

        Raises:
            UserError: Neither the device nor Pillow can decode a file.
        """
        shown, decoded, others = [], _decoded(batch, device), iter(pytree.to_device(batch.others, device))
        for jpeg, row, view in zip(batch.jpegs, rows, self._views(positions), strict=True):
            if jpeg is None:
                image = next(others)
            elif (pixels := next(decoded)) is not None:
                image = view.image(Pixels(_upright(pixels, jpeg.orientation)))
            else:
                try:
                    image = pytree.to_device(view.image(self.dataset.photo(row)), device)
                except UNREADABLE as cause:
                    failure = Failure.of(cause, sample=self.origin.describe(row))
                    raise error(failure.message, hint=failure.hint) from cause
            shown.append(image.permute(1, 2, 0))
        return pytree.to_nchw(torch.stack(shown))

    def _views(self, positions: Sequence[int]) -> Sequence[View]:
        return views_at(positions, view=self.view, seed=self.seed, key=self.key)


def _decoded(batch: _Batch, device: torch.device) -> Iterator[Tensor | None]:
    """Yield the pixels (3, H, W) of each JPEG file, as stored; None for one that only Pillow may know how to decode.

    The files are decoded in one call, or in several of `MAX_DECODED` bytes.
    """
    jpegs = [jpeg for jpeg in batch.jpegs if jpeg is not None]
    files = batch.content.split([jpeg.num_bytes for jpeg in jpegs])
    first = held = 0
    for place, jpeg in enumerate(jpegs):
        if first < place and held + 3 * jpeg.num_pixels > MAX_DECODED:
            yield from _decode_or_leave(files[first:place], device)
            first, held = place, 0
        held += 3 * jpeg.num_pixels
    yield from _decode_or_leave(files[first:], device)


def _decode_or_leave(files: Sequence[Tensor], device: torch.device) -> Sequence[Tensor | None]:
    """Decode files in one call; where that fails, one by one, with None for each that fails."""
    try:
        return _decode(files, device) if files else []
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        if len(files) == 1:
            return [None]
        return [pixels for file in files for pixels in _decode_or_leave([file], device)]


def _decode(files: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Decode JPEG files (N,) uint8 on the host to pixels (3, H, W) uint8 on the device."""
    from torchvision.io import ImageReadMode, decode_jpeg

    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()  # see the top of this file
    with warnings.catch_warnings():
        # torchvision gives its decoders up for those of torchcodec; torchcodec 0.16 has the same race, see above.
        warnings.filterwarnings("ignore", message=".*TorchCodec", category=DeprecationWarning)
        decoded: list[Tensor] = decode_jpeg([*files], mode=ImageReadMode.RGB, device=device)
    return decoded


def _upright(pixels: Tensor, orientation: int) -> Tensor:
    """Return pixels (3, H, W) of an EXIF orientation upright, as `image_file.make_upright` does."""
    if orientation in _FLIPPED_TO_UPRIGHT:
        pixels = pixels.transpose(1, 2) if orientation >= 5 else pixels
        pixels = pixels.flip(_FLIPPED_TO_UPRIGHT[orientation])
    return pixels
