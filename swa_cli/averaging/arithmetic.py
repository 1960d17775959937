"""The arithmetic of running averages: how wide they are kept, and how far each weight set moves them.

One idea: a dict of accumulators moves towards a dict of weights in one foreach pass for each device and type, so that
whoever keeps an average (by name, by parameter) computes the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from swa_cli.averaging.settings import KINDS
from swa_cli.averaging.tensors import float64_device, groups

WIDTHS = {  # where a device has the type
    "mean": torch.float64,  # in float32 the rounding of 300 updates already passes 1e-6
    "swag": torch.float64,
    "ema": torch.float32,
    "latest": torch.float32,
}
assert WIDTHS.keys() == KINDS.keys(), f"no type: {WIDTHS.keys() ^ KINDS.keys()}"


def accumulator_dtype(dtype: torch.dtype, *, kind: str, device: torch.device) -> torch.dtype:
    """The type in which weights of a type are averaged on a device: that of `WIDTHS`, or a better one of their own."""
    wide = WIDTHS[kind] if float64_device(device) == device else torch.float32
    return torch.promote_types(dtype, wide)


def blend(kept: Mapping[str, Tensor], offered: Mapping[str, Tensor], *, share: float) -> None:
    """Do kept += (offered - kept) * share in place, in the type of `kept`; a share of 1 copies."""
    for names in groups(kept):
        old, new = [kept[name] for name in names], [offered[name] for name in names]
        if share == 1:
            torch._foreach_copy_(old, new)
        else:
            _move_towards(old, new, share)


def _move_towards(kept: list[Tensor], offered: list[Tensor], share: float) -> None:
    if kept[0].dtype in (torch.float64, torch.complex128) and offered[0].dtype != kept[0].dtype:
        # No wide copy of the weights. In float32 the rounding of `1 - share` would add up over the updates of an EMA.
        torch._foreach_mul_(kept, 1 - share)
        torch._foreach_add_(kept, offered, alpha=share)
    else:
        torch._foreach_lerp_(kept, [new.to(old) for new, old in zip(offered, kept, strict=True)], share)
