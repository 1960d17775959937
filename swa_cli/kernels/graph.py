"""A backend of torch.compile for networks with BatchNorm on the CPU: calls in their graph are replaced by our kernels.

BatchNorm and the ReLU after it become one function; convolutions and maxima of pixels are faster, most of all their
gradients. On a processor torch's own backend leaves convolutions, where most of a step goes, as they are, and takes
half a minute to gain little on the rest (docs/speed.md); this takes seconds. All else runs as it was written.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from swa_cli.kernels.batchnorm import batch_norm
from swa_cli.kernels.convolution import conv2d
from swa_cli.kernels.library import SCALARS
from swa_cli.kernels.maxpool import max_pool2d

BATCHNORM = inspect.signature(F.batch_norm)
POOLINGS = {F.max_pool2d, torch.max_pool2d}
RELUS = {F.relu, torch.relu, torch.relu_, "relu", "relu_"}


def is_backend_for(model: nn.Module, *, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `KernelBackend` gains more than torch's own on a network, on this device and in this precision."""
    has_batchnorm = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    return device.type == "cpu" and dtype in SCALARS and has_batchnorm


class KernelBackend:
    """A backend for `torch.compile(..., backend=KernelBackend())`; see "Custom backends" of torch.compile."""

    def __init__(self) -> None:
        self.num_fused = 0  # BatchNorm layers, of all graphs so far

    def __call__(self, graph: GraphModule, _examples: list[Tensor]) -> Callable[..., Any]:
        """Replace every BatchNorm in training mode, every convolution, and every maximum.

        Args:
            graph: What torch.compile has read from a network: its functions, before autograd.
        """
        for node in list(graph.graph.nodes):
            if node.target is F.batch_norm:
                self.num_fused += _fuse(graph, node)
            elif node.target is torch.conv2d and node.args:  # which of them are ours is seen when they are called
                node.target = conv2d
            elif node.target in POOLINGS and node.args:
                node.target = max_pool2d
        graph.recompile()
        return graph.forward


def _fuse(graph: GraphModule, node: Node) -> bool:
    """Replace a call, unless its statistics are frozen: those are two constants, and no work."""
    call = BATCHNORM.bind(*node.args, **node.kwargs)
    call.apply_defaults()
    words = call.arguments
    if words["training"] is not True:
        return False
    relu = _only_relu(node)
    vectors = (words[name] for name in ("input", "running_mean", "running_var", "weight", "bias"))
    options = {"momentum": words["momentum"], "eps": words["eps"], "relu": relu is not None}
    with graph.graph.inserting_before(node):
        fused = graph.graph.call_function(batch_norm, tuple(vectors), options)
    for old in (relu, node):
        if old is not None:
            old.replace_all_uses_with(fused)
            graph.graph.erase_node(old)
    return True


def _only_relu(node: Node) -> Node | None:
    """The ReLU that alone reads what a node gives."""
    user = next(iter(node.users)) if len(node.users) == 1 else None
    return user if user is not None and user.target in RELUS else None
