"""A network of two inputs. Legend: B samples, H W pixels."""

import torch
from torch import Tensor, nn


class TwoImages(nn.Module):
    """Sees both images with the same convolutions and compares what they find."""

    def __init__(self, *, width: int = 32) -> None:
        super().__init__()
        self.see = nn.Sequential(
            *(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, width, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(2), nn.Flatten()),
        )
        self.compare = nn.Sequential(nn.Linear(8 * width, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, *, left: Tensor, right: Tensor) -> Tensor:
        """Return the logit that the left digit is the larger one, (B,), for images (B, 1, H, W)."""
        return self.compare(torch.cat([self.see(left), self.see(right)], dim=1))[:, 0]
