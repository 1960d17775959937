"""Other people's checkpoints: the weight sets inside, under the names that the recipe's network has.

One reader per layout; the first that knows a file says what is in it. A key says whether it holds raw weights or an
average (`RAW_KEYS`, `AVERAGE_KEYS`); names behind prefixes are the business of `prefixes.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

from torch import Tensor

from swa_cli.averaging.model_state import like
from swa_cli.checkpoint import outline, prefixes
from swa_cli.checkpoint.outline import Place
from swa_cli.checkpoint.prefixes import Part
from swa_cli.errors import UserError

State = dict[str, Tensor]
# Where programs keep raw weights, and where an average of them; what a key calls an average is its name here.
RAW_KEYS = (
    *("state_dict", "model_state_dict", "model", "net", "network", "weights", "model_state", "model_weights"),
    *("module", "params", "student"),
)
AVERAGE_KEYS: Mapping[str, str] = {
    **dict.fromkeys(("state_dict_ema", "ema_state_dict", "ema_model_state_dict", "model_ema_state_dict"), "ema"),
    **dict.fromkeys(("model_ema", "ema_model", "ema", "ema_state", "ema_weights", "params_ema"), "ema"),
    **dict.fromkeys(("swa_state_dict", "swa_model_state_dict", "swa_model", "swa", "averaged_model"), "swa"),
    "teacher": "teacher",
}
LAYOUTS: Mapping[frozenset[str], str] = {  # the keys that a program is known by
    frozenset({"arch", "state_dict"}): "checkpoint of timm",
    frozenset({"state_dict", "state_dict_ema"}): "checkpoint of timm",
    frozenset({"model", "model_ema"}): "checkpoint as of torchvision's references",
    frozenset({"state_dict", "swa_state_dict"}): "checkpoint of timgaripov/swa",
    frozenset({"student", "teacher"}): "checkpoint of DINO",
}


@dataclass(frozen=True)
class ForeignWeights:
    """One weight set; `count` is the number of weights in an average, None where the file does not say it."""

    state_dict: State
    is_average: bool = False
    count: int | None = None
    num_left_out: int = 0  # tensors that stand beside the network: of a loss, of another network


@dataclass(frozen=True)
class Foreign:
    """What a file of another program holds; raw weights are `last`, averages `swa`, `ema` or `teacher`."""

    layout: str
    sets: dict[str, ForeignWeights]
    unread: tuple[Place, ...] = ()  # state dicts under keys that are not known

    def __str__(self) -> str:
        parts = []
        for name, item in self.sets.items():
            details = ["average"] * item.is_average
            details += [f"of {item.count}"] * (item.count is not None)
            details += [f"left out beside it: {item.num_left_out}"] * bool(item.num_left_out)
            parts.append(f"{name} ({' '.join(details)})" if details else name)
        unread = f"; not read: {outline.told(self.unread)}" if self.unread else ""
        return f"{self.layout} with {', '.join(parts)}{unread}"


def read(content: Mapping[str, Any], path: Path, *, owners: Mapping[str, str]) -> Foreign:
    """The weight sets of a file by name.

    Args:
        content: What stands in the file: plain values and tensors.
        path: Of the file, for messages.
        owners: Every name of the network's state dict, and the first name of its tensor, see `averaging.tensors`.

    Raises:
        UserError: There are no weights in it. Whether they fit is not known here.
    """
    for layout, reader in READERS.items():
        found = reader(content, path)
        if found:
            return Foreign(_layout(content, layout), _named(found, owners, path), _unread(content, found))
    places = outline.places(content, tensor=Tensor)
    if places:
        lines = " or ".join(outline.line(path, place, weights_only=True) for place in places[:2])
        raise UserError(
            f"{path}: its weights stand under keys that swa does not know: {outline.told(places)}",
            hint=f"write the ones you mean to a file of their own: {lines}",
        )
    keys = ", ".join(map(str, list(content)[:5]))
    raise UserError(
        f"{path}: no weights found among its keys ({keys})", hint="save a state_dict, or {'state_dict': ...}"
    )


def _lightning(content: Mapping[str, Any], path: Path) -> dict[str, ForeignWeights]:
    """`Trainer.save_checkpoint` of Lightning: `state_dict` is that of the LightningModule.

    The callback WeightAveraging puts the average there, the raw weights into `current_model_state`, and what else an
    AveragedModel has into `averaging_state`; StochasticWeightAveraging keeps its average among `callbacks`.
    (lightning/pytorch/trainer/connectors/checkpoint_connector.py, callbacks/weight_averaging.py and
    callbacks/stochastic_weight_avg.py)
    """
    weights, raw = content.get("state_dict"), content.get("current_model_state")
    if "pytorch-lightning_version" not in content or not _is_state(weights):
        return {}
    if _is_state(raw):
        averaging = content.get("averaging_state")
        count = _count(averaging, path, key="n_averaged") if isinstance(averaging, dict) else None
        return {"last": ForeignWeights(raw), "swa": ForeignWeights(weights, is_average=True, count=count)}
    sets = {"last": ForeignWeights(weights)}
    callbacks = content.get("callbacks")
    for state in callbacks.values() if isinstance(callbacks, dict) else ():
        if isinstance(state, dict) and _is_state(state.get("average_model_state")):
            count = _count(state, path, key="n_averaged")
            if count != 0:  # before its start it holds the initial weights
                sets["swa"] = ForeignWeights(state["average_model_state"], is_average=True, count=count)
    return sets


def _mmengine(content: Mapping[str, Any], path: Path) -> dict[str, ForeignWeights]:
    """`Runner.save_checkpoint` of MMEngine, whose EMAHook exchanges the weights of two networks.

    The average stands in `state_dict`, and the raw weights in `ema_state_dict`, under the names of an AveragedModel.
    (mmengine/hooks/ema_hook.py, `_swap_ema_state_dict`)
    """
    weights, raw, meta = content.get("state_dict"), content.get("ema_state_dict"), content.get("meta")
    is_known = "message_hub" in content or (isinstance(meta, dict) and "mmengine_version" in meta)
    if not is_known or not _is_state(weights):
        return {}
    if not _is_state(raw):
        return {"last": ForeignWeights(weights)}
    state = {key.removeprefix("module."): value for key, value in raw.items() if key != "steps"}
    return {"last": ForeignWeights(state), "ema": ForeignWeights(weights, is_average=True)}


def _timgaripov(content: Mapping[str, Any], path: Path) -> dict[str, ForeignWeights]:
    """`train.py` of timgaripov/swa: `state_dict`, `swa_state_dict` (None without --swa) and their number `swa_n`."""
    if not _is_state(content.get("swa_state_dict")) or "swa_n" not in content:
        return {}
    sets, count = _by_keys(content, path), _count(content, path, key="swa_n")
    return {**sets, "swa": replace(sets["swa"], count=count)}


def _composer(content: Mapping[str, Any], path: Path) -> dict[str, ForeignWeights]:
    """`State.state_dict` of Composer, which a checkpoint has under `state`."""
    state = content.get("state")
    return _by_keys(state, path) if isinstance(state, dict) and _is_state(state.get("model")) else {}


def _by_keys(content: Mapping[str, Any], path: Path) -> dict[str, ForeignWeights]:
    """Weights under the keys that most programs use, beside an epoch, an optimizer, options."""
    raw = [key for key in RAW_KEYS if _is_state(content.get(key))]
    averages = [key for key in AVERAGE_KEYS if _is_state(content.get(key))]
    sets: dict[str, ForeignWeights] = {}
    for key in raw:
        item = _of_state(content[key], path)
        is_known = item.is_average and not averages
        sets["swa" if is_known else "last" if len(raw) == 1 else key] = item
    names = [AVERAGE_KEYS[key] for key in averages]
    for key, name in zip(averages, names, strict=True):
        sets[name if names.count(name) == 1 else key] = replace(_of_state(content[key], path), is_average=True)
    return sets


def _plain(content: Mapping[str, Any], path: Path) -> dict[str, ForeignWeights]:
    """`model.state_dict()`, in a .pt or as accelerate and others write it in a .safetensors; or of an AveragedModel.

    (torch/optim/swa_utils.py: `n_averaged` and the weights behind `module.`)
    """
    state = {key: value for key, value in content.items() if key != "n_averaged"}
    return _last_or_swa(_of_state(content, path)) if state and _is_state(state) else {}


READERS: Mapping[str, Callable[[Mapping[str, Any], Path], dict[str, ForeignWeights]]] = {
    "checkpoint of Lightning": _lightning,
    "checkpoint of MMEngine": _mmengine,
    "checkpoint of timgaripov/swa": _timgaripov,
    "checkpoint of Composer": _composer,
    "checkpoint of a training loop": _by_keys,
    "state dict": _plain,
}


def _layout(content: Mapping[str, Any], layout: str) -> str:
    """The program that wrote a file, where its keys tell."""
    if layout != "checkpoint of a training loop":
        return layout
    held = {key for key in content if content[key] is not None}
    return next((known for keys, known in LAYOUTS.items() if keys <= held), layout)


def _unread(content: Mapping[str, Any], found: Mapping[str, ForeignWeights]) -> tuple[Place, ...]:
    """State dicts that no set was made of, and that may be one: with half as many tensors at least."""
    known = {*RAW_KEYS, *AVERAGE_KEYS, "state", "callbacks", "current_model_state", "averaging_state"}
    fewest = max(len(item.state_dict) for item in found.values()) / 2
    places = outline.places(content, tensor=Tensor)
    return tuple(place for place in places if place.keys and place.keys[0] not in known and place.num_tensors > fewest)


def _named(found: Mapping[str, ForeignWeights], owners: Mapping[str, str], path: Path) -> dict[str, ForeignWeights]:
    """Weight sets under the network's own names; several for one in which the network is more than once."""
    sets: dict[str, ForeignWeights] = {}
    for name, item in found.items():
        parts = prefixes.split(item.state_dict, owners)
        for part in parts:
            own = _name(part, parts, name, is_average=item.is_average)
            if own in sets:
                own = f"{name}.{part.attribute}"
            count = _count(part.counter, path, key="n_averaged") if part.counter else item.count
            is_average = part.is_average or bool(part.counter) or (item.is_average and not part.is_raw)
            sets[own] = ForeignWeights(part.state, is_average, count, item.num_left_out + part.num_left_out)
    return sets


def _name(part: Part, parts: Sequence[Part], name: str, *, is_average: bool) -> str:
    """What a part of the weight set `name` is called: by its prefix where that says average or raw."""
    if part.average is not None:
        return name if is_average else part.average
    if part.is_raw and is_average:
        return "last"
    is_only = sum(not other.is_average for other in parts) == 1
    return name if is_only or not part.attribute else f"{name}.{part.attribute}"


def _of_state(state: Mapping[str, Any], path: Path) -> ForeignWeights:
    """A state dict that may be one of torch's AveragedModel."""
    weights = like(state, {key: value for key, value in state.items() if key != "n_averaged"})
    is_average = "n_averaged" in state
    return ForeignWeights(weights, is_average=is_average, count=_count(state, path, key="n_averaged"))


def _last_or_swa(item: ForeignWeights) -> dict[str, ForeignWeights]:
    return {"swa" if item.is_average else "last": item}


def _is_state(value: Any) -> TypeGuard[State]:
    return isinstance(value, dict) and all(
        isinstance(key, str) and isinstance(tensor, Tensor) for key, tensor in value.items()
    )


def _count(values: Mapping[str, Any], path: Path, *, key: str) -> int | None:
    """The number of weights in an average; programs keep it as a number or as a tensor."""
    value = values.get(key)
    try:
        return None if value is None else int(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise UserError(f"{path}: {key} is no number", hint="take another copy of the file") from error
