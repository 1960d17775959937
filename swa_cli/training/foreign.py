"""Other people's checkpoints: the weight sets inside, under the names that the recipe's network has.

One reader a layout; the first that knows a file says what is in it. Names may stand behind prefixes: of wrappers
(`module.`, `_orig_mod.`), or of the attribute that the network was (`model.`, as in Lightning). The prefix behind
which exactly the network's own names stand is removed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

from torch import Tensor

from swa_cli.averaging.tensors import without_compile
from swa_cli.errors import UserError

State = dict[str, Tensor]
MAX_PREFIX = 5  # parts of a name that may stand before the network's own


@dataclass(frozen=True)
class ForeignWeights:
    """One weight set; `count` is the number of weights in an average, None where the file does not say it."""

    state_dict: State
    is_average: bool = False
    count: int | None = None
    num_left_out: int = 0  # tensors that stand beside the network: of a loss, of another network


@dataclass(frozen=True)
class Foreign:
    """What a file of another program holds; raw weights are `last`, averages `swa` or `ema`."""

    layout: str
    sets: dict[str, ForeignWeights]

    def __str__(self) -> str:
        parts = []
        for name, item in self.sets.items():
            details = ["average"] * item.is_average
            details += [f"of {item.count}"] * (item.count is not None)
            details += [f"left out beside it: {item.num_left_out}"] * bool(item.num_left_out)
            parts.append(f"{name} ({' '.join(details)})" if details else name)
        return f"{self.layout} with {', '.join(parts)}"


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
            named = [part for name, item in found.items() for part in _named(name, item, owners, path).items()]
            return Foreign(layout, dict(named))
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


def _timm(content: Mapping[str, Any], path: Path) -> dict[str, ForeignWeights]:
    """`CheckpointSaver` of timm: `arch`, `state_dict`, and with --model-ema `state_dict_ema`.

    (timm/utils/checkpoint_saver.py)
    """
    weights, ema = content.get("state_dict"), content.get("state_dict_ema")
    if not _is_state(weights) or not ("arch" in content or _is_state(ema)):
        return {}
    sets = {"last": ForeignWeights(weights)}
    return {**sets, "ema": ForeignWeights(ema, is_average=True)} if _is_state(ema) else sets


def _torchvision(content: Mapping[str, Any], path: Path) -> dict[str, ForeignWeights]:
    """`references/classification/train.py` of torchvision: `model` and `model_ema`, which is an AveragedModel.

    DeiT, ConvNeXt and others write the same keys with a plain state dict as `model_ema`.
    """
    weights, ema = content.get("model"), content.get("model_ema")
    if not _is_state(weights) or not _is_state(ema):
        return {}
    return {"last": ForeignWeights(weights), "ema": replace(_of_state(ema, path), is_average=True)}


def _timgaripov(content: Mapping[str, Any], path: Path) -> dict[str, ForeignWeights]:
    """`train.py` of timgaripov/swa: `state_dict`, `swa_state_dict` (None without --swa) and their number `swa_n`."""
    weights, averaged = content.get("state_dict"), content.get("swa_state_dict")
    if not _is_state(averaged):
        return {}
    sets = {"last": ForeignWeights(weights)} if _is_state(weights) else {}
    return {**sets, "swa": ForeignWeights(averaged, is_average=True, count=_count(content, path, key="swa_n"))}


def _training_loop(content: Mapping[str, Any], path: Path) -> dict[str, ForeignWeights]:
    """What loops of one's own save beside an epoch and an optimizer (PyTorch's tutorials, pytorch-cifar)."""
    for key in ("state_dict", "model_state_dict", "model", "net"):
        if _is_state(content.get(key)):
            return _last_or_swa(_of_state(content[key], path))
    return {}


def _plain(content: Mapping[str, Any], path: Path) -> dict[str, ForeignWeights]:
    """`model.state_dict()`, in a .pt or as accelerate and others write it in a .safetensors; or of an AveragedModel.

    (torch/optim/swa_utils.py: `n_averaged` and the weights behind `module.`)
    """
    state = {key: value for key, value in content.items() if key != "n_averaged"}
    return _last_or_swa(_of_state(content, path)) if state and _is_state(state) else {}


READERS: Mapping[str, Callable[[Mapping[str, Any], Path], dict[str, ForeignWeights]]] = {
    "checkpoint of Lightning": _lightning,
    "checkpoint of timm": _timm,
    "checkpoint as of torchvision's references": _torchvision,
    "checkpoint of timgaripov/swa": _timgaripov,
    "checkpoint of a training loop": _training_loop,
    "state dict": _plain,
}


def _of_state(state: Mapping[str, Any], path: Path) -> ForeignWeights:
    """A state dict that may be one of torch's AveragedModel."""
    weights = {key: value for key, value in state.items() if key != "n_averaged"}
    is_average = "n_averaged" in state
    return ForeignWeights(weights, is_average=is_average, count=_count(state, path, key="n_averaged"))


def _last_or_swa(item: ForeignWeights) -> dict[str, ForeignWeights]:
    return {"swa" if item.is_average else "last": item}


def _named(name: str, item: ForeignWeights, owners: Mapping[str, str], path: Path) -> dict[str, ForeignWeights]:
    """A weight set under the network's own names; one for each prefix, if the network is in it more than once."""
    state = {without_compile(key): value for key, value in item.state_dict.items()}
    parts: dict[str, State] = defaultdict(dict)  # prefix -> what stands behind it under a name of the network
    sizes: Counter[str] = Counter()  # prefix -> how many names begin with it
    for key, value in state.items():
        for prefix in _prefixes(key):
            sizes[prefix] += 1
            if key[len(prefix) :] in owners:
                parts[prefix][key[len(prefix) :]] = value
    whole = [prefix for prefix, part in parts.items() if len(part) == sizes[prefix] and _is_whole(part, owners)]
    if not whole:  # it does not fit: let the differences be counted behind the prefix where most of it does
        best = max(["", *parts], key=lambda prefix: (len(parts.get(prefix, ())), -len(prefix)))
        rest = {key.removeprefix(best): value for key, value in state.items() if key.startswith(best)}
        return {name: replace(item, state_dict=rest)}
    if len(whole) == 1:
        names, num_left_out = {name: whole[0]}, len(state) - sizes[whole[0]]
    else:
        names, num_left_out = {f"{name}.{prefix.removesuffix('.')}": prefix for prefix in whole}, 0
    found = {}
    for own, prefix in names.items():
        part = replace(item, state_dict=_with_shared(parts[prefix], owners), num_left_out=num_left_out)
        counter = prefix.removesuffix("module.") + "n_averaged"  # of an AveragedModel that is part of a larger module
        if counter in state:
            part = replace(part, is_average=True, count=_count(state, path, key=counter))
        found[own] = part
    return found


def _prefixes(key: str) -> Iterator[str]:
    """The parts that a name may have before the network's own: none, `a.`, `a.b.`, ..."""
    yield ""
    end = key.find(".")
    for _ in range(MAX_PREFIX):
        if end < 0:
            return
        yield key[: end + 1]
        end = key.find(".", end + 1)


def _is_whole(part: Mapping[str, Tensor], owners: Mapping[str, str]) -> bool:
    """Whether every tensor of the network is there, under one of its names at least."""
    return {owners[name] for name in part} == set(owners.values())


def _with_shared(part: Mapping[str, Tensor], owners: Mapping[str, str]) -> State:
    """Every name of the network; safetensors keeps one name alone of a tensor that has several."""
    by_owner = {owners[name]: value for name, value in part.items()}
    return {name: part.get(name, by_owner[owner]) for name, owner in owners.items()}


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
