"""Lightning with its StochasticWeightAveraging callback, on the documentation script's loaders.

It averages at the starts of epochs, and runs one more epoch without gradients for the BatchNorm statistics. Logger,
checkpoints, progress bar and summary are off, and only the averaged weights are scored: all to its favour.
"""

from __future__ import annotations

import warnings
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, StochasticWeightAveraging
from torch import Tensor, nn

from benchmarks.contestants.documentation import loaders, network
from benchmarks.contestants.job import (
    AVERAGING_RATE,
    LEARNING_RATE,
    MOMENTUM,
    WEIGHT_DECAY,
    StepClock,
    first_averaged,
    options,
)


class Classifier(lightning.LightningModule):
    """The network, its loss and its optimizer."""

    def __init__(self, *, epochs: int) -> None:
        super().__init__()
        self.network = network()
        self.epochs = epochs
        self.correct = self.total = 0

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self.network(images), labels)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        self.correct += int((self.network(images).argmax(1) == labels).sum())
        self.total += len(labels)

    def configure_optimizers(self) -> dict[str, Any]:
        parameters = self.network.parameters()
        optimizer = torch.optim.SGD(parameters, lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=self.epochs)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


class Laps(Callback):
    """Tells the clock of the epochs; the one after the last is the BatchNorm pass."""

    def __init__(self, clock: StepClock, *, epochs: int) -> None:
        self.clock = clock
        self.epochs = epochs

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if trainer.current_epoch == 0:
            self.clock.lap("setup_s")

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if trainer.current_epoch < self.epochs:
            self.clock.epoch()


def main() -> None:
    """Train with the callback, test."""
    clock, given = StepClock(), options().parse_args()
    warnings.simplefilter("ignore")
    train_loader, test_loader = loaders(given.images)
    model = Classifier(epochs=given.epochs)
    averaging = StochasticWeightAveraging(
        swa_lrs=AVERAGING_RATE, swa_epoch_start=first_averaged(given.epochs) - 1, annealing_epochs=1
    )
    trainer = lightning.Trainer(
        max_epochs=given.epochs,
        accelerator="cpu",
        callbacks=[averaging, Laps(clock, epochs=given.epochs)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, train_loader)
    clock.lap("batchnorm_s")
    trainer.test(model, test_loader, verbose=False)
    clock.lap("scores_s")
    clock.tell(swa=model.correct / model.total)


if __name__ == "__main__":
    main()
