"""One photo of any size: opened, decoded as far as a view needs it, upright and in 8-bit RGB.

JPEG files are decoded by torchvision, whose pixels are Pillow's and whose tensors its resize takes as they are; at a
part of their size, and all other files, by Pillow.
Shapes: H W pixels.
"""

from __future__ import annotations

from functools import cached_property
from io import BytesIO

import numpy as np
import torch
from torch import Tensor

from swa_cli.data.image_file import Header, make_upright, open_image, read_header, to_rgb

_PLAIN_JPEG = ("RGB", "L")  # modes that torchvision converts to RGB as Pillow does


class EncodedPhoto:
    """An image file whose pixels are not decoded yet; see `transforms.Photo`.

    Args:
        data: Its bytes.
        name: For messages.
    """

    def __init__(self, data: bytes, *, name: str) -> None:
        self._data = data
        self._name = name

    @cached_property
    def header(self) -> Header:
        """What the file says about its image.

        Raises:
            OSError: The file is broken; the message names it.
            UserError: It has too many pixels.
        """
        return read_header(BytesIO(self._data), name=self._name)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W), upright."""
        return self.header.size

    def pixels(self, *, divisor: int = 1) -> Tensor:
        """Decode to (3, H, W) uint8; a JPEG file to 1/2, 1/4 or 1/8 of both sides, rounded up, by a divisor.

        Raises:
            OSError: The file is broken; the message names it.
            UserError: It cannot become 8-bit RGB.
        """
        header = self.header
        if header.is_plain_jpeg and divisor == 1:
            from torchvision.io import ImageReadMode, decode_jpeg

            try:
                decoded: Tensor = decode_jpeg(torch.frombuffer(self._data, dtype=torch.uint8), mode=ImageReadMode.RGB)
            except RuntimeError:
                pass  # Pillow says what is broken
            else:
                return decoded
        with open_image(BytesIO(self._data), name=self._name) as image:
            if header.is_plain_jpeg:
                image.draft("RGB", tuple(-(-side // divisor) for side in image.size))
            image.load()
            upright = make_upright(to_rgb(image, name=self._name), header.orientation)
        return torch.from_numpy(np.array(upright)).permute(2, 0, 1)
