"""Photos that a device decodes: how far they are from those of the host, and what happens to work that is queued."""

from __future__ import annotations

import io

import torch
from PIL import ExifTags, Image
from torch import Tensor

from swa_cli.data.augment import Augment
from swa_cli.data.batches import epoch_batches
from swa_cli.data.photos import PhotoDataset
from swa_cli.data.splits import Split
from swa_cli.data.transforms import EvaluationView, RandomResizedCrop, TrainingView

NUMBER, SIDE = 24, 64
STILL = EvaluationView((SIDE, SIDE), 72)
FREED = 200  # tensors of the size of a decoded photo


class Encoded:
    """JPEG files in memory, a `photos.Photos`: of each orientation, gray and in color, baseline and progressive."""

    files = ()
    checksum = ""
    tables = ()

    def __len__(self) -> int:
        return NUMBER

    def encoded(self, row: int) -> tuple[str, bytes]:
        coarse = torch.randint(0, 256, (4, 5, 3), generator=torch.Generator().manual_seed(row), dtype=torch.uint8)
        image = Image.fromarray(coarse.numpy()).resize((300, 200 + row), Image.Resampling.BICUBIC)
        exif, file = Image.Exif(), io.BytesIO()
        exif[ExifTags.Base.Orientation] = row % 8 + 1
        mode = "L" if row % 5 == 4 else "RGB"
        image.convert(mode).save(file, "JPEG", exif=exif, progressive=row % 3 == 2, quality=90)
        return f"photo {row}", file.getvalue()


def images(device: str) -> Tensor:
    """Return the images (NUMBER, 3, SIDE, SIDE) of an epoch that a device decodes, from 0 to 255, on the host."""
    dataset = PhotoDataset(Encoded(), torch.arange(NUMBER) % 2, (SIDE, SIDE))
    split = Split(labels=dataset.labels, dataset=dataset, indices=torch.arange(NUMBER), view=STILL)
    batches = epoch_batches(
        split,
        seed=0,
        epoch=1,
        batch_size=8,
        augment=Augment(flip=True),
        view=TrainingView(STILL, crop=RandomResizedCrop()),
        mean=(0.0,) * 3,
        std=(1 / 255,) * 3,
        device=torch.device(device),
        decodes_on_device=True,
    )
    return torch.cat([batch.cpu() for batch, _ in batches])


def distances(device: str) -> list[float]:
    """Return the mean distance of each image from that of the host."""
    return (images(device) - images("cpu")).abs().flatten(1).mean(1).tolist()


def changed_sums(device: str) -> int:
    """Return how many sums are wrong that were queued, and whose tensors were freed, before photos were decoded."""
    images(device)  # the decoder makes its memory now
    ones = [torch.ones(3 * 200 * 300, dtype=torch.uint8, device=device) for _ in range(FREED)]
    matrix = torch.rand(4096, 4096, device=device) if device != "cpu" else torch.rand(8, 8)
    torch.accelerator.synchronize()
    for _ in range(100):
        matrix = (matrix @ matrix).clamp(max=1)
    sums = [each.sum() for each in ones]
    ones.clear()
    images(device)
    return sum(int(each) != 3 * 200 * 300 for each in sums)
