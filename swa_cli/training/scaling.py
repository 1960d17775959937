"""What a step takes in several processes: a model of two terms, one measured on this machine and one told.

The one idea: each process computes its part of a batch, then all sum their gradients. The ring all-reduce of Patarasuk
and Yuan (2009, J. Parallel Distrib. Comput. 69, section 3), which gloo and nccl use, sends 2 (N - 1) / N of the
gradients' bytes out of each of N processes, and takes in as many. Torch hides some of that behind the backward pass,
and messages take a while to begin: neither is in the model. So a step of a large network is shorter, and one of a tiny
network longer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from swa_cli.report.columns import short_time, size_text

GIGABIT = 1e9  # bits


@dataclass(frozen=True)
class Cluster:
    """Processes that train one network; `gigabits` a second go through the slowest link between two, each way."""

    processes: int
    machines: int
    gigabits: float

    @property
    def on_a_machine(self) -> int:
        """The most processes that share a machine."""
        return -(-self.processes // self.machines)

    def part(self, batch_size: int) -> int:
        """The samples of a batch that the slowest process computes."""
        return -(-batch_size // self.processes)


@dataclass(frozen=True)
class Scaled:
    """A step of one process (`alone_s` seconds) and of a cluster."""

    cluster: Cluster
    samples: int  # of a batch, in each process
    alone_s: float
    compute_s: float
    gradient_bytes: int

    @property
    def exchange_s(self) -> float:
        """Seconds of the all-reduce."""
        number = self.cluster.processes
        return 2 * (number - 1) / number * self.gradient_bytes * 8 / (self.cluster.gigabits * GIGABIT)

    @property
    def step_s(self) -> float:
        """Seconds of a step, forward to update."""
        return self.compute_s + self.exchange_s

    @property
    def speedup(self) -> float:
        """How many times as fast as one process."""
        return self.alone_s / self.step_s

    def __str__(self) -> str:
        number, machines = self.cluster.processes, self.cluster.machines
        return (
            f"{number}{f' on {machines} machines' if machines > 1 else ''}, {self.samples} samples each: a step of"
            f" {short_time(self.compute_s)} and {short_time(self.exchange_s)} for {size_text(self.gradient_bytes)} of"
            f" gradients at {self.cluster.gigabits:g} Gbit/s, {self.speedup:.2f} times as fast as the"
            f" {short_time(self.alone_s)} of one process"
        )

    @property
    def values(self) -> dict[str, Any]:
        """What `--json` tells."""
        return {
            "number": self.cluster.processes,
            "machines": self.cluster.machines,
            "gigabits": self.cluster.gigabits,
            "samples": self.samples,
            "compute_seconds": self.compute_s,
            "exchange_seconds": self.exchange_s,
            "one_process_seconds": self.alone_s,
            "speedup": self.speedup,
        }
