"""Averages of DTensors in one of two processes that have some rows each: a test lets it run in processes of its own."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from equal_runs import flat
from swa_cli.averaging.average import WeightAverage, update_all
from swa_cli.engine.distributed import World
from swa_cli.engine.fsdp import Sharding

KINDS = {
    "mean": {"kind": "mean"},
    "ema": {"kind": "ema", "decay": 0.7},
    "latest": {"kind": "lawa", "window": 3},
    "swag": {"kind": "swag", "rank": 2},
}


class Rows(nn.Module):
    """Three parameters, of one of which the second process has no rows, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.zeros(5, 3))
        self.kernel = nn.Parameter(torch.zeros(4, 2, 3, 3))
        self.single = nn.Parameter(torch.zeros(1))
        self.register_buffer("seen", torch.zeros(2))


def weights_of(step: int) -> dict[str, Tensor]:
    """The parameters after a step."""
    generator = torch.Generator().manual_seed(step)
    return {name: torch.randn(value.shape, generator=generator) for name, value in Rows().named_parameters()}


def average(rank: int, port: int, path: Path) -> None:
    """Average the rows here without a word to the other process, then write what all rows make."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor
    from torch.distributed.tensor.debug import CommDebugMode

    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    mesh, model = init_device_mesh("cpu", (2,)), Rows()
    for name, value in list(model.named_parameters()):
        setattr(model, name, nn.Parameter(distribute_tensor(value.detach(), mesh, [Shard(0)])))
    averages = {name: WeightAverage(model, **settings) for name, settings in KINDS.items()}
    parameters = dict(model.named_parameters())
    with CommDebugMode() as exchanged, torch.no_grad():
        for step in range(1, 6):
            for name, whole in weights_of(step).items():
                here = parameters[name].to_local()
                chunks = whole.chunk(2)
                here.copy_(chunks[rank] if rank < len(chunks) else whole[:0])
            update_all(list(averages.values()), model, step=step)
    assert exchanged.get_total_counts() == 0
    parts = Sharding(World(rank, 2), parameters)
    states = {name: average.state_dict() for name, average in averages.items()}
    together = parts.gather(states, keep=rank == 0)
    if rank == 0:
        torch.save(together, path)
    dist.barrier()
    for name, settings in KINDS.items():  # what was put together is dealt out to the same rows
        again = WeightAverage(model, **settings)
        again.load_state_dict(parts.local_rows(torch.load(path)[name]))
        one, two = dict(flat(again.state_dict())), dict(flat(states[name]))
        assert all(torch.equal(value, two[key]) for key, value in one.items() if isinstance(value, Tensor))
    dist.destroy_process_group()
