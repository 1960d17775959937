"""What is learned and how it is scored. Legend: B samples."""

import torch.nn.functional as F
from torch import Tensor


class Larger:
    """A yes-or-no question. The first score is the task's own; each says which way is better."""

    scores = {"accuracy": "higher", "loss": "lower", "brier": "lower"}

    def loss(self, outputs: Tensor, targets: Tensor, *, label_smoothing: float) -> Tensor:
        """Return the mean loss of a batch that is trained; outputs and targets (B,)."""
        smooth = targets * (1 - label_smoothing) + label_smoothing / 2
        return F.binary_cross_entropy_with_logits(outputs, smooth)

    def predict(self, outputs: Tensor) -> Tensor:
        """Return probabilities (B,): predictions whose mean over several networks makes sense."""
        return outputs.float().sigmoid()

    def metrics(self, predictions: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return what each sample scores, (B,) for each name in `scores`."""
        return {
            "accuracy": ((predictions > 0.5) == (targets > 0.5)).float(),
            "loss": F.binary_cross_entropy(predictions, targets, reduction="none"),
            "brier": (predictions - targets).square(),
        }
