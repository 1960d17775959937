"""Several optimizers, each over parameters of its own, behind the interface of one.

The parameter groups are those of all parts, so one schedule sets all rates, and the state dict has the form of torch's:
states by the position of their parameter over all groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from swa_cli.engine import optimizers

Group = dict[str, Any]


class SeveralOptimizers(Optimizer):
    """Steps of several optimizers as one step: that of Muon for matrices and of AdamW for the rest.

    Args:
        parts: They share no parameter. None needs a closure.
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self.parts = tuple(parts)
        # Optimizer.__init__ would create groups besides those of the parts; this prepares the hooks and `step`.
        self.__setstate__({})

    @property
    def param_groups(self) -> list[Group]:  # type: ignore[override]
        """The groups of all parts: a change of a group, such as of its rate, reaches its part."""
        return [group for part in self.parts for group in part.param_groups]

    @property
    def state(self) -> dict[Tensor, Any]:  # type: ignore[override]
        """The states of all parameters, to be read."""
        return dict(chain.from_iterable(part.state.items() for part in self.parts))

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """No default holds for all parts."""
        return {}

    @property
    def averages_inside(self) -> bool:
        """Whether a part does, see `optimizers.averages_inside`."""
        return bool(self._with_modes)

    def train(self) -> None:
        """Put the parts that average inside into training mode."""
        for part in self._with_modes:
            part.train()  # type: ignore[attr-defined]

    def eval(self) -> None:
        """Put the parts that average inside into evaluation mode: their parameters hold averages."""
        for part in self._with_modes:
            part.eval()  # type: ignore[attr-defined]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients of all parts."""
        for part in self.parts:
            part.zero_grad(set_to_none)

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Let each part do a step with the gradients that are there."""
        assert closure is None, "parts that need a closure are refused"
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Return all it takes to continue; `parts` has what a part keeps beside its states and groups."""
        states, groups, more, before = dict[int, Any](), list[Group](), list[Group](), 0
        for part in self.parts:
            own = dict(part.state_dict())
            states |= {before + position: state for position, state in own.pop("state").items()}
            for group in own.pop("param_groups"):
                groups.append({**group, "params": [before + position for position in group["params"]]})
            more.append(own)
            before += _num_parameters(part)
        return {"state": states, "param_groups": groups, "parts": more}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned.

        Raises:
            ValueError: It is the state of other optimizers; nothing was changed if the numbers of groups differ.
        """
        groups, more = list(state_dict["param_groups"]), state_dict["parts"]
        if len(more) != len(self.parts) or len(groups) != len(self.param_groups):
            raise ValueError(f"{len(more)} optimizers of {len(groups)} groups are not those of the recipe")
        before = 0
        for part, rest in zip(self.parts, more, strict=True):
            own, groups = groups[: len(part.param_groups)], groups[len(part.param_groups) :]
            number = _num_parameters(part)
            states = {
                position - before: state
                for position, state in state_dict["state"].items()
                if before <= position < before + number
            }
            shifted = [{**group, "params": [position - before for position in group["params"]]} for group in own]
            part.load_state_dict({**rest, "state": states, "param_groups": shifted})
            before += number

    def add_param_group(self, param_group: Group) -> None:
        """Refuse: it would belong to no part."""
        raise NotImplementedError("parameters belong to one of the parts")

    @property
    def _with_modes(self) -> list[Optimizer]:
        return [part for part in self.parts if optimizers.averages_inside(part)]


def _num_parameters(part: Optimizer) -> int:
    return sum(len(group["params"]) for group in part.param_groups)
