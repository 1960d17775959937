"""The script that people write from the PyTorch documentation.

Of https://docs.pytorch.org/tutorials/beginner/blitz/cifar10_tutorial.html the data and the loop, of
https://docs.pytorch.org/docs/stable/optim.html#weight-averaging-swa-and-ema the averaging, with two workers that load.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.optim.swa_utils import SWALR, AveragedModel, update_bn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks import data
from benchmarks.contestants.job import (
    AVERAGING_RATE,
    BATCH_SIZE,
    CROP,
    LEARNING_RATE,
    MOMENTUM,
    NETWORK,
    WEIGHT_DECAY,
    StepClock,
    first_averaged,
    options,
)
from swa_cli.models import build_model


class Pictures(Dataset[Any]):
    """Gives what torchvision.datasets.CIFAR10 gives: a PIL image of an array (H, W, 3), transformed, and its class."""

    def __init__(self, images: Tensor, labels: Tensor, *, transform: Any) -> None:
        self.data = images.permute(0, 2, 3, 1).contiguous().numpy()
        self.targets = labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image: np.ndarray = self.data[index]
        return self.transform(Image.fromarray(image)), self.targets[index]


def loaders(num_images: int) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """The training images, augmented and shuffled, and the test images."""
    normal = [transforms.ToTensor(), transforms.Normalize(data.MEAN, data.STD)]
    augmented = [transforms.RandomCrop(32, padding=CROP), transforms.RandomHorizontalFlip(), *normal]
    arrays = data.arrays(num_images, data.num_test(num_images))
    train = Pictures(*arrays["train"], transform=transforms.Compose(augmented))
    test = Pictures(*arrays["test"], transform=transforms.Compose(normal))
    return (
        DataLoader(train, batch_size=BATCH_SIZE, shuffle=True, num_workers=2, drop_last=True),
        DataLoader(test, batch_size=BATCH_SIZE, num_workers=2),
    )


def network() -> nn.Module:
    """The network that all contestants train."""
    torch.manual_seed(0)
    return build_model.build(NETWORK, num_classes=data.NUM_CLASSES, in_channels=3)


def evaluate(model: nn.Module, loader: DataLoader[Any]) -> float:
    """Accuracy on the images of a loader."""
    model.eval()
    correct = total = 0
    with torch.no_grad():
        for images, labels in loader:
            correct += (model(images).argmax(1) == labels).sum().item()
            total += labels.size(0)
    return correct / total


def main() -> None:
    """Train, average, update BatchNorm, evaluate both."""
    clock, given = StepClock(), options().parse_args()
    train_loader, test_loader = loaders(given.images)
    model = network()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=given.epochs)
    swa_model = AveragedModel(model)
    swa_scheduler = SWALR(optimizer, swa_lr=AVERAGING_RATE, anneal_epochs=1)
    clock.lap("setup_s")
    for epoch in range(1, given.epochs + 1):
        model.train()
        running_loss = 0.0
        for images, labels in train_loader:
            optimizer.zero_grad()
            loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
        if epoch >= first_averaged(given.epochs):
            swa_model.update_parameters(model)
            swa_scheduler.step()
        else:
            scheduler.step()
        clock.epoch()
    update_bn(train_loader, swa_model)
    clock.lap("batchnorm_s")
    last, swa = evaluate(model, test_loader), evaluate(swa_model, test_loader)
    clock.lap("scores_s")
    clock.tell(last=last, swa=swa, count=int(swa_model.n_averaged))


if __name__ == "__main__":
    main()
