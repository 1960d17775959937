"""Pairs of handwritten digits. Legend: B samples, H W pixels."""

import gzip
from importlib import resources

import torch
from torch import Tensor
from torch.utils.data import Dataset


class DigitPairs(Dataset):
    """Each digit beside a random other one of the same split; the target is 1 where the left one is larger."""

    def __init__(self, images: Tensor, labels: Tensor, *, seed: int) -> None:
        other = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        keep = labels != labels[other]  # neither of two equal digits is larger
        self.left, self.right = images[keep], images[other][keep]
        self.targets = (labels > labels[other])[keep].float()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], Tensor]:
        """Return the inputs of the network by name, each (1, H, W) from 0 to 1, and the target."""
        return {"left": self.left[index], "right": self.right[index]}, self.targets[index]


def digit_pairs() -> dict[str, object]:
    """Return the splits that swa asks for; `target: own` says that the task knows what targets are."""
    packed = resources.files("swa_cli.data").joinpath("digits.gz").read_bytes()
    values = torch.frombuffer(bytearray(gzip.decompress(packed)), dtype=torch.uint8)
    count = len(values) // 65  # 64 pixels from 0 to 16 and a label per digit
    images, labels = values[: 64 * count].view(-1, 1, 8, 8) / 16, values[64 * count :].long()
    return {
        "train": DigitPairs(images[:1200], labels[:1200], seed=0),
        "val": DigitPairs(images[1200:1400], labels[1200:1400], seed=1),
        "test": DigitPairs(images[1400:], labels[1400:], seed=2),
        "target": "own",
    }
