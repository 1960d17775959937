"""SWA around any optimizer, with the interface of torchcontrib.

One idea: the wrapper owns the averages and nothing else. Parameter groups, learning rates and defaults are those of the
base optimizer, so a scheduler, a GradScaler or a training loop that changes one of the two changes both. Averages use
the arithmetic of `WeightAverage` (`accumulator_dtype`, `blend`).

For each parameter, `state` holds `swa_buffer`, its average, and while the two are swapped `sgd_buffer`, its weights.
Each group holds `n_avg`, the weight sets averaged, and `step_counter`, the steps done since the group was added.
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
    """Stochastic Weight Averaging (Izmailov et al. 2018, arXiv:1803.05407) around any optimizer.

    Automatic mode, if both `swa_start` and `swa_freq` are given: after step s of a group (from 1), its weights are
    averaged if s > swa_start and s % swa_freq == 0; steps after the first `swa_start` use the rate `swa_lr`.
    Manual mode: `update_swa` and `update_swa_group` average the weights. At the end,

        optimizer.swap_swa_sgd()
        optimizer.bn_update(train_loader, model)

    Args:
        optimizer: The base, which keeps owning parameter groups, state and defaults.
        swa_start: Steps before automatic averaging, at least 0.
        swa_freq: Steps from one automatic average to the next, at least 1.
        swa_lr: Learning rate of automatic averaging; by default the rate is unchanged.

    Raises:
        ValueError: In automatic mode, a setting is out of range.
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
        # Optimizer.__init__ would create groups besides those of the base. `__setstate__`, which torch calls for an
        # optimizer that is unpickled, prepares the hooks and `step` as well.
        self.__setstate__({})
        for group in self.param_groups:
            _count_from_zero(group)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle, as in torch without hooks and schedulers."""
        kept = ("optimizer", "state", "swa_start", "swa_freq", "swa_lr", "_auto_mode")
        return {key: self.__dict__[key] for key in kept}

    @property
    def param_groups(self) -> list[Group]:
        """The groups of the base, also after it has loaded a state."""
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
        """Reset the gradients as the base does."""
        self.optimizer.zero_grad(set_to_none)

    def add_param_group(self, param_group: Group) -> None:
        """Add parameters to optimize; their steps count from now."""
        self.optimizer.add_param_group(param_group)
        _count_from_zero(self.param_groups[-1])

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Do a step of the base and, in automatic mode, update the averages that are due.

        Raises:
            NonFiniteWeightsError: The step led to NaN or infinity and an average is due; the averages are unchanged.
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
        """Add the present weights of all groups to their averages.

        Raises:
            NonFiniteWeightsError: A parameter holds NaN or infinity; the averages are unchanged.
            UserError: The parameters hold the averages; nothing was changed.
        """
        self._require_own_weights()
        self._average(self.param_groups)

    def update_swa_group(self, group: Group) -> None:
        """Add the present weights of one of `param_groups` to their averages; raises as `update_swa`."""
        self._require_own_weights()
        self._average([group])

    @torch.no_grad()
    def swap_swa_sgd(self) -> None:
        """Swap the parameters with their averages; a second call swaps them back.

        The weights come back bit for bit. So do the averages, in their wide type, unless the parameters were changed in
        between: then these values are the averages. Parameters without an average are skipped with a warning.
        """
        for index, group in enumerate(self.param_groups):
            for name, parameter in _named(group).items():
                kept = self.state.get(parameter)
                if not kept:
                    # The text of torchcontrib, which prints the whole parameter, followed by its place.
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
        """Return all it takes to continue: primitives and copies of tensors, by the positions of the parameters.

        `opt_state` and `param_groups` are those of the base; `swa_state` holds `state`.
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
        """Continue from what `state_dict` returned; tensors are copied. The settings stay those of this wrapper.

        Raises:
            UserError: The state is of another optimizer, or its averages cannot be matched; nothing was changed.
            ValueError: The groups do not fit those of the base; nothing was changed.
        """
        saved = dict(state_dict)
        for change in self._optimizer_load_state_dict_pre_hooks.values():
            changed = change(self, saved)
            saved = saved if changed is None else dict(changed)
        _require_complete(saved)
        state = self._copied(saved.pop("swa_state"), _parameters(saved["param_groups"]))
        self.optimizer.load_state_dict(copy.deepcopy({"state": saved.pop("opt_state"), **saved}))
        self.state = state
        for loaded in self._optimizer_load_state_dict_post_hooks.values():
            loaded(self)

    @staticmethod
    def bn_update(loader: Iterable[Any], model: nn.Module, device: torch.device | str | None = None) -> BatchNormUpdate:
        """Replace the BatchNorm statistics of the model by those of the dataset, see `update_batchnorm` (pooled)."""
        return update_batchnorm(loader, model, device=device)

    def _reset_lr_to_swa(self) -> None:
        if self.swa_lr is None or self.swa_start is None:
            return
        for group in self.param_groups:
            if group.get("step_counter", 0) < self.swa_start:
                continue
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(self.swa_lr)  # a captured or compiled step refers to the tensor
            else:
                group["lr"] = self.swa_lr

    @torch.no_grad()
    def _average(self, groups: Iterable[Group]) -> None:
        """Update the averages of all groups or, if weights of one group are not finite, of none."""
        named = [(group, _named(group)) for group in groups]
        for _, weights in named:
            require_finite(weights)
        for group, weights in named:
            count = group.get("n_avg", 0)
            for parameter in weights.values():
                if "swa_buffer" not in self.state[parameter]:
                    self.state[parameter]["swa_buffer"] = parameter.detach().to(_wide(parameter), copy=True)
            averages = {name: self.state[parameter]["swa_buffer"] for name, parameter in weights.items()}
            blend(averages, weights, share=1 / (count + 1))
            group["n_avg"] = count + 1

    def _require_own_weights(self) -> None:
        if any("sgd_buffer" in kept for kept in self.state.values()):
            raise UserError(
                "the parameters hold their averages, which must not be trained or averaged again",
                hint="call swap_swa_sgd() once more before you continue",
            )

    @torch.no_grad()
    def _copied(self, saved: Mapping[Any, Mapping[str, Tensor]], keys: Sequence[Any]) -> defaultdict[Tensor, Any]:
        """Return the saved buffers by parameter, in new memory; the parameters were saved under `keys`."""
        state: defaultdict[Tensor, Any] = defaultdict(dict)
        # Not strict: the base refuses groups of other sizes.
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
    """Return the settings, all None in manual mode; warn of ignored and rounded ones."""
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
    """Return the parameters of a group by name, or by position if the optimizer has no names."""
    parameters = group["params"]
    names = group.get("param_names") or [f"params[{index}]" for index in range(len(parameters))]
    return dict(zip(names, parameters, strict=True))


def _parameters(groups: Iterable[Group]) -> list[Any]:
    """Return the parameters of all groups in order: tensors, or their keys in a state dict."""
    return list(chain.from_iterable(group["params"] for group in groups))


def _wide(parameter: Tensor) -> torch.dtype:
    return accumulator_dtype(parameter.dtype, wide=torch.float64, device=parameter.device)


def _require_complete(state: Mapping[str, Any]) -> None:
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
            f"swa_state does not fit param_groups: parameter {astray[0]} of {len(astray)}; torchcontrib keys averages "
            "by memory address, which param_groups does not have",
            hint="continue without averages: load opt_state, as `state`, and param_groups into `optimizer`, the base",
        )
