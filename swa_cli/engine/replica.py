"""A second network, for other weights than those that are trained: averages, and raw weights that are refreshed.

The one idea: it is made by the recipe and given a state dict, never copied. Hooks and closures then see their own
network, and what cannot be copied (computed weights, locks, clients) need not be. Each weight set gets a new one: a
network may keep what it has computed from its weights. Training never notices it.

A constructor that makes another network each time, beyond what a state dict holds, cannot be used so: the weights are
then put into the trained network for a while.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from swa_cli.averaging.model_state import cloned
from swa_cli.checkpoint import loading
from swa_cli.data.randomness import preserve_global_rng
from swa_cli.engine.context import Context
from swa_cli.engine.fsdp import UNSHARDED, Sharding


@dataclass
class Replica:
    """Second networks of a run, for one weight set each."""

    context: Context
    trained: nn.Module
    sharding: Sharding = UNSHARDED
    made_in_s: float = 0.0  # what making the last one took
    borrows: bool = False  # the trained network itself holds the weights for a while

    @contextmanager
    def holding(self, weights: Mapping[str, Tensor] | None = None) -> Iterator[nn.Module]:
        """A network with whole weights, to be read or refreshed in each process by itself while the block runs.

        Args:
            weights: A state dict; of a sharded run its rows, as `Sharding.gather` takes them. None for the weights that
                are trained: then it is the trained network itself, unless that is sharded.
        """
        if not self.sharding.is_used and weights is None:
            yield self.trained
        elif self.borrows:
            assert weights is not None, "a network in parts is never borrowed"
            with self._borrowed(weights):
                yield self.trained
        else:
            yield self._filled(self.trained.state_dict() if weights is None else weights)

    def refreshing(self, weights: Mapping[str, Tensor] | None = None) -> AbstractContextManager[nn.Module]:
        """As `holding`, and the network's statistics may be changed: it is never the trained one as it stands."""
        return self.holding(
            cloned(self.trained.state_dict()) if weights is None and not self.sharding.is_used else weights
        )

    def make(self) -> nn.Module:
        """Another network of the recipe, on the device; no generator of random numbers is touched."""
        device, started = self.context.hardware.device, time.monotonic()
        with preserve_global_rng(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            network = self.context.build_model()
        self.made_in_s = time.monotonic() - started
        return network

    def _filled(self, weights: Mapping[str, Tensor]) -> nn.Module:
        network = self.make()
        loading.load_unchecked(network, weights if not self.sharding.is_used else self.sharding.gather(weights))
        return network

    @contextmanager
    def _borrowed(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        kept = cloned(self.trained.state_dict())
        modes = {module: module.training for module in self.trained.modules()}
        try:
            loading.load_unchecked(self.trained, weights)
            yield
        finally:
            loading.load_unchecked(self.trained, kept)
            for module, mode in modes.items():
                module.training = mode
