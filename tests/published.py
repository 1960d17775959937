"""Put weights drawn from a seed where torchvision and timm keep those that they have downloaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from swa_cli.models import pretrained


def in_cache(network: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Write the default weights of a network of 1000 classes into a cache in `folder`; return them."""
    library, _, name = network.partition(":")
    found = pretrained.find(network, True)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        if library == "timm":
            import timm
            from huggingface_hub import constants

            state = timm.create_model(name).state_dict()
            monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
            entry = folder / "hub" / f"models--timm--{name}.{found.name}"
            for path, text in (("refs/main", "0" * 40), (f"snapshots/{'0' * 40}/model.safetensors", None)):
                (entry / path).parent.mkdir(parents=True)
                if text is not None:
                    (entry / path).write_text(text)
                else:
                    save_file({key: value.contiguous() for key, value in state.items()}, entry / path)
            return dict(state)
        from torchvision import models

        state = models.get_model(name, weights=None).state_dict()
        monkeypatch.setattr(torch.hub, "_hub_dir", str(folder / "hub"))
        file = folder / "hub/checkpoints" / Path(found.url).name
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, file)
        return dict(state)
