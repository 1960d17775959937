"""A narrow VGG without BatchNorm: eight convolutions of 16 to 128 channels for images of 32 x 32 pixels."""

from __future__ import annotations

from torch import nn

STAGES = ((16, 1), (32, 1), (64, 2), (128, 2), (128, 2))  # channels, convolutions before each halving


def build(num_classes: int) -> nn.Module:
    """Return the network, with He's initial weights (He et al. 2015)."""
    layers: list[nn.Module] = []
    in_channels = 3
    for channels, num_convs in STAGES:
        for _ in range(num_convs):
            layers += [nn.Conv2d(in_channels, channels, kernel_size=3, padding=1), nn.ReLU()]
            in_channels = channels
        layers.append(nn.MaxPool2d(kernel_size=2))
    network = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(in_channels, num_classes))
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    return network
