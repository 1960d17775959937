"""Read the weight sets in checkpoints of other programs, under the names of the recipe's network.

Keys: one reader per layout says which state dicts are raw weights and which are averages; the first that knows a file
reads it. The `n_averaged` of torch's AveragedModel says so too, wherever it stands in a state dict. Prefixes: a prefix
is removed if exactly the network stands behind it, be it that of a wrapper (`module.`, `_orig_mod.`, which also stand
inside names) or the attribute that was the network (`ema_model.`). BatchNorm's counters decide nothing: torch < 0.4.1
had none, and frozen layers drop them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

from torch import Tensor

from swa_cli.averaging.model_state import like, metadata_of, with_metadata, without_compile
from swa_cli.checkpoint import safe_load
from swa_cli.checkpoint.safe_load import Place
from swa_cli.errors import UserError
from swa_cli.units import some_of

State = dict[str, Tensor]
# Keys under which programs keep raw weights, and those of an average with the name that the average gets here.
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
INNER_KEYS = ("module", "model", "state_dict")  # of an average that is kept with its decay or number of updates
TRAINING_LOOP = "checkpoint of a training loop"
TIMGARIPOV = "checkpoint of timgaripov/swa"
PROGRAMS: Mapping[frozenset[str], str] = {  # keys of a training loop -> the program that is known by them
    frozenset({"swa_state_dict", "swa_n"}): TIMGARIPOV,
    frozenset({"state_dict", "swa_state_dict"}): TIMGARIPOV,
    frozenset({"arch", "state_dict"}): "checkpoint of timm",
    frozenset({"state_dict", "state_dict_ema"}): "checkpoint of timm",
    frozenset({"model", "model_ema"}): "checkpoint as of torchvision's references",
    frozenset({"student", "teacher"}): "checkpoint of DINO",
}
WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
BATCHNORM_COUNTER = "num_batches_tracked"
AVERAGED_COUNTER = "n_averaged"  # of an AveragedModel, whose weights stand behind `module.` (torch/optim/swa_utils.py)
AVERAGE = re.compile(r"(?:^|_)(ema|swa)(?:_|$)|(averag)")  # in the name of an attribute
RAW = re.compile(r"(?:^|_)online(?:_|$)")


@dataclass(frozen=True)
class ForeignWeights:
    """One weight set; `count` is the number of weights in an average, None where the file does not say it."""

    state_dict: State
    is_average: bool = False
    count: int | None = None
    num_left_out: int = 0  # tensors beside the network: of a loss, of another network


Sets = dict[str, ForeignWeights]


@dataclass(frozen=True)
class Foreign:
    """What a file of another program holds; raw weights are `last`, averages `swa`, `ema` or `teacher`."""

    layout: str
    sets: Sets
    unread: tuple[Place, ...] = ()  # other state dicts of about its size

    def __str__(self) -> str:
        parts = []
        for name, item in self.sets.items():
            details = ["average"] * item.is_average
            details += [f"of {item.count}"] * (item.count is not None)
            details += [f"left out beside it: {item.num_left_out}"] * bool(item.num_left_out)
            parts.append(f"{name} ({' '.join(details)})" if details else name)
        unread = f"; not read: {some_of(self.unread)}" if self.unread else ""
        return f"{self.layout} with {', '.join(parts)}{unread}"


def read(content: Mapping[str, Any], path: Path, *, owners: Mapping[str, str]) -> Foreign:
    """Return the weight sets of a file by name. Whether they fit the network is not checked here.

    `owners` has every name in the network's state dict with the first name of its tensor, see `averaging.model_state`;
    it is empty for an unknown network.

    Raises:
        UserError: The file holds no weights, or a count that is no number.
    """
    try:
        for layout, reader in READERS.items():
            if found := reader(content):
                if layout == TRAINING_LOOP:
                    present = {key for key, value in content.items() if value is not None and value != {}}
                    layout = next((program for keys, program in PROGRAMS.items() if keys <= present), layout)
                return Foreign(layout, _networks(found, owners), _unread(content, found))
    except ValueError as error:
        raise UserError(f"{path}: {error}", hint="take another copy of the file") from error
    if places := safe_load.find_weights(content):
        raise UserError(
            f"{path}: its weights stand under keys that swa does not know: {some_of(places)}",
            hint=f"write the ones you mean to a file of their own{safe_load.extract_command(path, places[:2])}",
        )
    keys = ", ".join(map(str, list(content)[:5]))
    raise UserError(
        f"{path}: no weights found among its keys ({keys})", hint="save a state_dict, or {'state_dict': ...}"
    )


def _lightning(content: Mapping[str, Any]) -> Sets:
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
        count = _count(averaging) if isinstance(averaging, dict) else None
        return {"last": ForeignWeights(raw), "swa": ForeignWeights(weights, is_average=True, count=count)}
    sets = {"last": ForeignWeights(weights)}
    callbacks = content.get("callbacks")
    for state in callbacks.values() if isinstance(callbacks, dict) else ():
        if isinstance(state, dict) and _is_state(state.get("average_model_state")):
            count = _count(state)
            if count != 0:  # before its start it holds the initial weights
                sets["swa"] = ForeignWeights(state["average_model_state"], is_average=True, count=count)
    return sets


def _mmengine(content: Mapping[str, Any]) -> Sets:
    """`Runner.save_checkpoint` of MMEngine, whose EMAHook swaps the weights of two networks.

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


def _composer(content: Mapping[str, Any]) -> Sets:
    """`State.state_dict` of Composer, which a checkpoint has under `state`."""
    state = content.get("state")
    return _training_loop(state) if isinstance(state, dict) and _is_state(state.get("model")) else {}


def _training_loop(content: Mapping[str, Any]) -> Sets:
    """Weights under the keys that most programs use, beside an epoch, an optimizer, options.

    An average may lie one key deeper, as in `{"ema": {"module": ..., "updates": 9}}` of RT-DETR.
    `train.py` of timgaripov/swa counts the weights of its `swa_state_dict` (None without --swa) in `swa_n`.
    """
    raw = [key for key in RAW_KEYS if _is_state(content.get(key))]
    averages = {key: state for key in AVERAGE_KEYS if (state := _average_at(content.get(key))) is not None}
    sets: Sets = {}
    for key in raw:
        sets["last" if len(raw) == 1 else key] = ForeignWeights(content[key])
    names = [AVERAGE_KEYS[key] for key in averages]
    for (key, state), name in zip(averages.items(), names, strict=True):
        count = _count(content, key="swa_n") if key == "swa_state_dict" else None
        sets[name if names.count(name) == 1 else key] = ForeignWeights(state, is_average=True, count=count)
    return sets


def _plain(content: Mapping[str, Any]) -> Sets:
    """`model.state_dict()`, in a .pt or as accelerate and others write it in a .safetensors."""
    state = {key: value for key, value in content.items() if key != AVERAGED_COUNTER}
    return {"last": ForeignWeights(like(content, content))} if _is_state(state) else {}


READERS: Mapping[str, Callable[[Mapping[str, Any]], Sets]] = {
    "checkpoint of Lightning": _lightning,
    "checkpoint of MMEngine": _mmengine,
    "checkpoint of Composer": _composer,
    TRAINING_LOOP: _training_loop,
    "state dict": _plain,
}


def _is_state(value: Any) -> TypeGuard[State]:
    """Return whether a value is a state dict; an empty one, of an average that was never begun, says what None does."""
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(key, str) and isinstance(tensor, Tensor) for key, tensor in value.items())
    )


def _average_at(value: Any) -> State | None:
    """Return the state dict that `value` is, or that it has under the first of `INNER_KEYS`."""
    inner = [value.get(key) for key in INNER_KEYS] if isinstance(value, dict) else []
    return next((state for state in (value, *inner) if _is_state(state)), None)


def _count(values: Mapping[str, Any], *, key: str = AVERAGED_COUNTER) -> int | None:
    """Return the number of weights in an average, which programs keep as a number or as a tensor."""
    value = values.get(key)
    try:
        return None if value is None else int(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{key} is no number") from error


def _unread(content: Mapping[str, Any], found: Sets) -> tuple[Place, ...]:
    """Return the other state dicts that may be weight sets: with more than half as many tensors."""
    read = {id(value) for item in found.values() for value in item.state_dict.values()}
    fewest = max(len(item.state_dict) for item in found.values()) / 2
    places = [place for place in safe_load.find_weights(content) if place.num_tensors > fewest]
    return tuple(place for place in places if read.isdisjoint(map(id, place.state(content).values())))


def _networks(found: Sets, owners: Mapping[str, str]) -> Sets:
    """Return the weight sets under the network's names; several for a state dict that holds the network several times.

    A prefix that says average or raw names the weight set behind it; the only AveragedModel without one is `swa`.
    """
    sets: Sets = {}
    split = {name: _split(item.state_dict, owners) for name, item in found.items()}
    nameless = [
        (name, prefix)
        for name, parts in split.items()
        for prefix, part in parts.items()
        if part.count is not None and not _average_in(prefix) and not found[name].is_average
    ]
    for name, parts in split.items():
        item = found[name]
        num_raw = sum(part.count is None and not _average_in(prefix) for prefix, part in parts.items())
        for prefix, part in parts.items():
            average, own = _average_in(prefix), f"{name}.{prefix}".removesuffix(".")
            if part.count is not None:
                average = average or ("swa" if [(name, prefix)] == nameless else own)
            is_raw = average is None and any(RAW.search(attribute) for attribute in prefix.split("."))
            if average is not None:
                short = name if item.is_average else average
            elif is_raw and item.is_average:
                short = "last"
            else:
                short = name if num_raw == 1 or not prefix else own
            is_taken = short in sets or (short != name and short in found)
            sets[own if is_taken else short] = ForeignWeights(
                part.state_dict,
                is_average=average is not None or (item.is_average and not is_raw),
                count=item.count if part.count is None else part.count,
                num_left_out=part.num_left_out if owners and len(parts) == 1 else 0,
            )
    return sets


def _average_in(prefix: str) -> str | None:
    """Return the average that a prefix names, ema or swa, or None."""
    matches = (AVERAGE.search(attribute) for attribute in prefix.split("."))
    return next((match[1] or "swa" for match in matches if match), None)


def _split(state: State, owners: Mapping[str, str]) -> Sets:
    """Return the networks in a state dict by prefix; if none is complete, the part with most of the network's names."""
    plain = _renamed(state, without_compile)
    if not owners:
        return _by_prefix(plain)
    clean = plain if any("module" in name.split(".") for name in owners) else _renamed(state, _without_wrappers)
    required = {owner for name, owner in owners.items() if not name.endswith(BATCHNORM_COUNTER)}
    for candidate in (plain, clean):  # an attribute of the network may be called `module`
        networks: Sets = {}
        for prefix, num_names in _num_names(candidate, owners).items():
            if num_names < len(required):
                continue
            part = _behind(candidate, prefix, owners)
            known = {name for name in part.state_dict if name in owners}
            others = [name for name in part.state_dict.keys() - known if not name.endswith(BATCHNORM_COUNTER)]
            if not others and required <= {owners[name] for name in known}:
                networks[prefix] = replace(part, state_dict=_with_shared(part.state_dict, owners))
        if networks:
            return networks
    sizes = _num_names(plain, owners)
    closest = max(sizes, key=lambda prefix: (sizes[prefix], -len(prefix)), default="")
    return {closest: _behind(plain if sizes else clean, closest, owners)}


def _num_names(state: State, owners: Mapping[str, str]) -> Counter[str]:
    """Count the names of the network behind each prefix (nothing, `a.`, `a.b.`, ...) that has any."""
    starts = ((key, start) for key in state for start in (0, *(dot.end() for dot in re.finditer(r"\.", key))))
    return Counter(key[:start] for key, start in starts if key[start:] in owners)


def _behind(state: State, prefix: str, owners: Mapping[str, str]) -> ForeignWeights:
    """Return the tensors behind a prefix, with their layers' versions and the count of an AveragedModel around them."""
    starts = (start for start in _outside(prefix) if start != prefix or AVERAGED_COUNTER not in owners)
    counter = next((key for start in starts if (key := f"{start}{AVERAGED_COUNTER}") in state), None)
    tensors = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix) and key != counter}
    versions = {
        f"{key}."[len(prefix) :].removesuffix("."): value
        for key, value in _versions(state)
        if f"{key}.".startswith(prefix)
    }
    num_left_out = len(state) - len(tensors) - (counter is not None)
    count = None if counter is None else _count(state, key=counter)
    return ForeignWeights(with_metadata(tensors, versions or None), False, count, num_left_out)


def _outside(prefix: str) -> Iterator[str]:
    """Iterate over a prefix and those around it: `a.b.`, `a.`, nothing."""
    yield prefix
    while prefix:
        prefix = prefix[: prefix.rfind(".", 0, -1) + 1]
        yield prefix


def _by_prefix(state: State) -> Sets:
    """Split an unknown network: AveragedModels, attributes whose names say average or raw, and the rest."""
    modules = {key[: found.end()] for key in state for found in re.finditer(r"(?<![^.])module\.", key)}
    starts = [key.removesuffix(AVERAGED_COUNTER) for key in state if f".{key}".endswith(f".{AVERAGED_COUNTER}")]
    averaged = [f"{start}module." for start in starts if f"{start}module." in modules]
    names = sorted({key.partition(".")[0] for key in state if "." in key})
    named = [f"{name}." for name in names if AVERAGE.search(name) or RAW.search(name)]
    inside = {prefix[: prefix.index(".") + 1] for prefix in averaged}
    prefixes = [*averaged, *(prefix for prefix in named if prefix not in inside)]
    parts = {prefix: _behind(state, prefix, {}) for prefix in prefixes}
    counters = {f"{prefix.removesuffix('module.')}{AVERAGED_COUNTER}" for prefix in averaged}
    rest = _behind({key: value for key, value in state.items() if key not in counters}, "", {})
    taken = (*parts, *named)
    others = {key: value for key, value in rest.state_dict.items() if not key.startswith(taken)}
    if parts and not any("." in key for key in others):  # they are counters
        return parts
    return {"": replace(rest, state_dict=others), **parts}


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _renamed(state: State, rename: Callable[[str], str]) -> State:
    """Rename the tensors and the metadata; change nothing if two names would become one."""
    renamed = {rename(key): value for key, value in state.items()}
    if len(renamed) < len(state):
        return dict(state)
    return with_metadata(renamed, {rename(key): value for key, value in _versions(state)} or None)


def _versions(state: State) -> list[tuple[str, Any]]:
    """Return the layers and their versions, which torch keeps beside the tensors."""
    metadata = metadata_of(state)
    return [(key, value) for key, value in metadata.items() if type(key) is str] if isinstance(metadata, dict) else []


def _with_shared(state: State, owners: Mapping[str, str]) -> State:
    """Add the other names of each shared tensor, of which safetensors keeps one."""
    by_owner = {owners[name]: value for name, value in state.items() if name in owners}
    named = {name: state.get(name, by_owner[owner]) for name, owner in owners.items() if owner in by_owner}
    return like(state, {**named, **state})
