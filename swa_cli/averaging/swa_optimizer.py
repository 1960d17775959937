"""An optimizer that averages the weights another one trains: torchcontrib's SWA, for loops of one's own.

One idea: the wrapper owns the averages and nothing else. Parameter groups, learning rates and defaults are those of
the base optimizer, and so a scheduler, a GradScaler or a loop that changes one of the two has changed both. Averages
are kept by `accumulator_dtype` and moved by `blend`, as those of `WeightAverage`.

Of each parameter, `state` holds `swa_buffer`, its average, and while the two are swapped `sgd_buffer`, its weights.
Of each group, the group itself holds `n_avg`, weight sets averaged, and `step_counter`, steps done since it was added.
"""

from __future__ import annotations

import copy
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from swa_cli.averaging.batchnorm import BatchNormUpdate, update_batchnorm
from swa_cli.averaging.kinds import accumulator_dtype, blend
from swa_cli.averaging.model_state import require_finite, require_same_shapes, shapes
from swa_cli.errors import UserError

Group = dict[str, Any]


class SWA(Optimizer):
    """Stochastic Weight Averaging (Izmailov et al. 2018) on top of any optimizer.

    Automatic mode, if both `swa_start` and `swa_freq` are given: after step s of a group (the first is 1), its weights
    are averaged if s > swa_start and s % swa_freq == 0; steps after the first `swa_start` are done at `swa_lr`.
    Manual mode: weights are averaged when `update_swa` or `update_swa_group` is called. At the end,

        optimizer.swap_swa_sgd()
        optimizer.bn_update(train_loader, model)

    Args:
        optimizer: The base; it goes on owning parameter groups, state and defaults.
        swa_start: Steps before automatic averaging, at least 0.
        swa_freq: Steps from one automatic average to the next, at least 1.
        swa_lr: Learning rate of automatic averaging; by default the rate is left alone.

    Raises:
        ValueError: In automatic mode, a setting out of range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        swa_start: int | None = None,
        swa_freq: int | None = None,
        swa_lr: float | None = None,
    ) -> None:
        self.optimizer = optimizer
        self.swa_start, self.swa_freq, self.swa_lr = _settings(swa_start, swa_freq, swa_lr)
        self._auto_mode = self.swa_start is not None
        self.state = defaultdict(dict)
        # Optimizer.__init__ would make groups besides those of the base. This prepares hooks and step alike: it is
        # how every optimizer comes back from a pickle.
        self.__setstate__({})
        for group in self.param_groups:
            _count_from_zero(group)

    def __getstate__(self) -> dict[str, Any]:
        """Without hooks and schedulers, as of any optimizer of torch."""
        kept = ("optimizer", "state", "swa_start", "swa_freq", "swa_lr", "_auto_mode")
        return {key: self.__dict__[key] for key in kept}

    @property
    def param_groups(self) -> list[Group]:
        """The groups of the base, also after it has loaded others."""
        return self.optimizer.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[Group]) -> None:
        self.optimizer.param_groups = groups

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The defaults of the base: schedulers look for momentum there."""
        return self.optimizer.defaults

    @property
    def opt_state(self) -> Mapping[Tensor, Any]:
        """The state of the base."""
        return self.optimizer.state

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients, as the base does."""
        self.optimizer.zero_grad(set_to_none)

    def add_param_group(self, param_group: Group) -> None:
        """Optimize more parameters; their steps count from now."""
        self.optimizer.add_param_group(param_group)
        _count_from_zero(self.param_groups[-1])

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of the base and, in automatic mode, the average that is due.

        Raises:
            NonFiniteWeights: The step led to NaN or infinity, and an average is due; none was changed.
            UserError: The parameters hold the averages; nothing was changed.
        """
        self._require_own_weights()
        self._reset_lr_to_swa()
        loss = self.optimizer.step(closure)
        for group in self.param_groups:
            group["step_counter"] = group.get("step_counter", 0) + 1
        if self.swa_start is not None and self.swa_freq is not None:
            steps = ((group, group["step_counter"]) for group in self.param_groups)
            self._average([group for group, step in steps if step > self.swa_start and step % self.swa_freq == 0])
        return loss

    def update_swa(self) -> None:
        """Take the present weights of all groups into their averages.

        Raises:
            NonFiniteWeights: A parameter holds NaN or infinity; no average was changed.
            UserError: The parameters hold the averages; nothing was changed.
        """
        self._require_own_weights()
        self._average(self.param_groups)

    def update_swa_group(self, group: Group) -> None:
        """Take the present weights of one of `param_groups` into their averages; raises as `update_swa`."""
        self._require_own_weights()
        self._average([group])

    @torch.no_grad()
    def swap_swa_sgd(self) -> None:
        """Exchange the parameters with their averages; a second call exchanges them back.

        The weights come back bit for bit. So do the averages, in their wide type, unless the parameters were changed
        in between: then the averages are what they were changed to. Parameters without an average stay, with a
        warning.
        """
        for index, group in enumerate(self.param_groups):
            for name, parameter in _named(group).items():
                kept = self.state.get(parameter)
                if not kept:
                    # torchcontrib's words, which print the whole parameter, and then where it is.
                    place = f"({name} of param_groups[{index}])"
                    warnings.warn(f"SWA wasn't applied to param {parameter}; skipping it {place}", stacklevel=3)
                elif "sgd_buffer" not in kept:
                    kept["sgd_buffer"] = parameter.detach().clone()
                    parameter.copy_(kept["swa_buffer"])
                else:
                    if not torch.equal(parameter, kept["swa_buffer"].to(parameter.dtype)):
                        kept["swa_buffer"].copy_(parameter)
                    parameter.copy_(kept.pop("sgd_buffer"))

    def state_dict(self) -> dict[str, Any]:
        """All it takes to continue: primitives and copies of tensors, by the parameters' positions.

        `opt_state` and `param_groups` are those of the base, `swa_state` holds `state`.
        """
        for prepare in self._optimizer_state_dict_pre_hooks.values():
            prepare(self)
        base = self.optimizer.state_dict()
        positions = {parameter: position for position, parameter in enumerate(_parameters(self.param_groups))}
        state = {positions[parameter]: kept for parameter, kept in self.state.items()}
        saved = copy.deepcopy({"opt_state": base.pop("state"), "swa_state": state, **base})
        for change in self._optimizer_state_dict_post_hooks.values():
            changed = change(self, saved)
            saved = saved if changed is None else changed
        return saved

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue the run that `state_dict` described; its tensors are copied. Settings stay those of this wrapper.

        Raises:
            UserError: It is the state of another optimizer, or its averages cannot be told apart; nothing was changed.
            ValueError: Its groups do not fit those of the base; nothing was changed.
        """
        saved = dict(state_dict)
        for change in self._optimizer_load_state_dict_pre_hooks.values():
            changed = change(self, saved)
            saved = saved if changed is None else dict(changed)
        _require_whole(saved)
        state = self._copied(saved.pop("swa_state"), _parameters(saved["param_groups"]))
        self.optimizer.load_state_dict(copy.deepcopy({"state": saved.pop("opt_state"), **saved}))
        self.state = state
        for loaded in self._optimizer_load_state_dict_post_hooks.values():
            loaded(self)

    @staticmethod
    def bn_update(loader: Iterable[Any], model: nn.Module, device: torch.device | str | None = None) -> BatchNormUpdate:
        """Replace the BatchNorm statistics of the model by those of the dataset: `update_batchnorm`, pooled.

        Args:
            loader: Batches (B, ...), or tuples or lists that begin with them.
            model: Its modes and momentum stay as they are.
            device: Where batches go; by default where the model is.
        """
        return update_batchnorm(loader, model, device=device)

    def _reset_lr_to_swa(self) -> None:
        if self.swa_lr is None or self.swa_start is None:
            return
        for group in self.param_groups:
            if group.get("step_counter", 0) < self.swa_start:
                continue
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(self.swa_lr)  # a captured or compiled step holds on to the tensor
            else:
                group["lr"] = self.swa_lr

    @torch.no_grad()
    def _average(self, groups: Iterable[Group]) -> None:
        """All or none: weights that are not finite in one group leave the averages of the others alone, too."""
        named = [(group, _named(group)) for group in groups]
        for _, weights in named:
            require_finite(weights)
        for group, weights in named:
            count = group.get("n_avg", 0)
            averages = {name: self._average_of(parameter) for name, parameter in weights.items()}
            blend(averages, weights, share=1 / (count + 1))
            group["n_avg"] = count + 1

    def _average_of(self, parameter: Tensor) -> Tensor:
        kept = self.state[parameter]
        if "swa_buffer" not in kept:
            kept["swa_buffer"] = parameter.detach().to(_wide(parameter), copy=True)
        return kept["swa_buffer"]

    def _require_own_weights(self) -> None:
        if any("sgd_buffer" in kept for kept in self.state.values()):
            raise UserError(
                "the parameters hold their averages, which are not to be trained or averaged again",
                hint="call swap_swa_sgd() once more before going on",
            )

    @torch.no_grad()
    def _copied(self, saved: Mapping[Any, Mapping[str, Tensor]], keys: Sequence[Any]) -> defaultdict[Tensor, Any]:
        """The saved buffers by parameter, in fresh memory; `keys` are what the parameters were saved under."""
        state: defaultdict[Tensor, Any] = defaultdict(dict)
        # Not strict: groups of other sizes are refused by the base.
        for key, parameter in zip(keys, _parameters(self.param_groups), strict=False):
            for name, value in saved.get(key, {}).items():
                own = {f"parameter {key}": parameter}
                require_same_shapes(shapes({f"parameter {key}": value}), shapes(own), what="saved optimizer")
                dtype = parameter.dtype if name == "sgd_buffer" else _wide(parameter)
                state[parameter][name] = torch.empty_like(parameter, dtype=dtype).copy_(value)
        return state


def _settings(
    start: float | None, freq: float | None, rate: float | None
) -> tuple[int | None, int | None, float | None]:
    """All None in manual mode; what is ignored or rounded is warned of."""
    if (start is None) != (freq is None):
        warnings.warn("Some of swa_start, swa_freq is None, ignoring other", stacklevel=3)
    if not all(value is None or isinstance(value, int) for value in (start, freq)):
        warnings.warn("Casting swa_start, swa_freq to int", stacklevel=3)
    if start is None or freq is None:
        if rate is not None:
            warnings.warn("Some of swa_start, swa_freq is None, ignoring swa_lr", stacklevel=3)
        return None, None, None
    if start < 0:
        raise ValueError(f"Invalid swa_start: {start}")
    if freq < 1:
        raise ValueError(f"Invalid swa_freq: {freq}")
    if rate is not None and rate < 0:
        raise ValueError(f"Invalid SWA learning rate: {rate}")
    return int(start), int(freq), rate


def _count_from_zero(group: Group) -> None:
    group["n_avg"] = 0
    group["step_counter"] = 0


def _named(group: Group) -> dict[str, Tensor]:
    """The parameters of a group by name, or by place where the optimizer was made without names."""
    parameters = group["params"]
    names = group.get("param_names") or [f"params[{index}]" for index in range(len(parameters))]
    return dict(zip(names, parameters, strict=True))


def _parameters(groups: Iterable[Group]) -> list[Any]:
    """What all groups hold, in order: tensors, or in a state dict what they were saved under."""
    return list(chain.from_iterable(group["params"] for group in groups))


def _wide(parameter: Tensor) -> torch.dtype:
    return accumulator_dtype(parameter.dtype, wide=torch.float64, device=parameter.device)


def _require_whole(state: Mapping[str, Any]) -> None:
    missing = [key for key in ("opt_state", "swa_state", "param_groups") if key not in state]
    if missing:
        raise UserError(
            f"the state of SWA lacks {', '.join(missing)}",
            hint="load what SWA.state_dict() returned; the state of a plain optimizer goes into `optimizer`, the base",
        )
    keys, averages = set(_parameters(state["param_groups"])), state["swa_state"]
    averaged = {key for group in state["param_groups"] if group.get("n_avg") for key in group["params"]}
    astray = [key for key in averages if key not in keys] or sorted(averaged - set(averages))
    if astray:
        raise UserError(
            f"swa_state does not say which average is whose: parameter {astray[0]} of {len(astray)}; torchcontrib keys "
            "averages by memory address, which param_groups does not know",
            hint="go on without averages: load opt_state, as `state`, and param_groups into `optimizer`, the base",
        )
