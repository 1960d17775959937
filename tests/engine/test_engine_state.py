"""What of a resume point is laid out anew in memory."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from swa_cli.engine.state import _lay_out


@pytest.mark.parametrize(("name", "options"), [("SGD", {"momentum": 0.9}), ("AdamW", {})])
def test_fused_kernels_take_moments_of_another_layout(name: str, options: dict[str, Any]) -> None:
    """Contiguous moments, as sharded weights leave them, of weights that are channels last, against the undisturbed."""
    found = []
    for is_disturbed in (False, True):
        torch.manual_seed(0)
        weights = nn.Parameter(torch.randn(8, 4, 3, 3).contiguous(memory_format=torch.channels_last))
        optimizer = getattr(torch.optim, name)([weights], lr=0.1, fused=True, **options)
        for step in range(2):
            weights.grad = torch.randn(8, 4, 3, 3).contiguous(memory_format=torch.channels_last)
            optimizer.step()
            if is_disturbed and not step:
                saved = copy.deepcopy(optimizer.state_dict())
                for key, value in saved["state"][0].items():
                    saved["state"][0][key] = value.contiguous()
                optimizer.load_state_dict(saved)
                _lay_out(optimizer)
        found.append(weights.detach().clone())
    assert torch.equal(*found)
