"""swa: train image models with Stochastic Weight Averaging.

The library interface, for users with their own training loop. Names are imported when they are first used, so that
`swa --help` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swa_cli.averaging.average import WeightAverage
    from swa_cli.averaging.batchnorm import update_batchnorm
    from swa_cli.averaging.swa_optimizer import SWA

__version__ = "0.1.0"
__all__ = ["SWA", "WeightAverage", "__version__", "update_batchnorm"]

_HOMES = {
    "SWA": "swa_cli.averaging.swa_optimizer",
    "WeightAverage": "swa_cli.averaging.average",
    "update_batchnorm": "swa_cli.averaging.batchnorm",
}


if not TYPE_CHECKING:  # a checker would take any name for one of these

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'swa_cli' has no attribute {name!r}")
        return getattr(importlib.import_module(_HOMES[name]), name)
