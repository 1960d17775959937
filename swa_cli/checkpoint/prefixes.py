"""Names behind prefixes: which tensors of a state dict are the network, and what the prefix says of them.

The one idea: a prefix behind which exactly the network's own names stand is removed. It is that of a wrapper
(`module.`, `_orig_mod.`, which also stand inside names), or the attribute that the network was (`ema_model.`).
The counters of BatchNorm, which files of torch < 0.4.1 lack and frozen layers drop, decide nothing.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from swa_cli.averaging.model_state import metadata_of, with_metadata, without_compile

State = dict[str, Tensor]
MAX_PREFIX = 5  # parts of a name that may stand before the network's own
WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
COUNTER = "num_batches_tracked"
AVERAGE = re.compile(r"(?:^|_)(ema|swa)(?:_|$)|(averag)")  # in the name of an attribute
RAW = re.compile(r"(?:^|_)online(?:_|$)")


@dataclass(frozen=True)
class Part:
    """The tensors behind one prefix, without it; `counter` holds the `n_averaged` of an AveragedModel."""

    prefix: str
    state: State
    num_left_out: int = 0
    counter: Mapping[str, Any] = field(default_factory=dict)

    @property
    def attribute(self) -> str:
        """The prefix without its last dot."""
        return self.prefix.removesuffix(".")

    @property
    def average(self) -> str | None:
        """What the prefix calls an average: ema | swa; None for a prefix that names none."""
        for attribute in self.prefix.split("."):
            if match := AVERAGE.search(attribute):
                return match[1] or "swa"
        return None

    @property
    def is_average(self) -> bool:
        """Whether the prefix says that these are averaged weights."""
        return self.average is not None

    @property
    def is_raw(self) -> bool:
        """Whether the prefix says that these are raw weights."""
        return any(RAW.search(attribute) for attribute in self.prefix.split("."))


def split(state: Mapping[str, Tensor], owners: Mapping[str, str]) -> list[Part]:
    """The networks in a state dict, each under the names in `owners`.

    Args:
        state: Names and tensors, with metadata or without.
        owners: Every name of the network's state dict, and the first name of its tensor; empty for an unknown network.

    Returns:
        One part per prefix; a single one, of as many names as there are, where nothing fits.
    """
    plain = _renamed(state, without_compile)
    if not owners:
        return _by_attribute(plain)
    clean = plain if any("module" in name.split(".") for name in owners) else _renamed(state, _without_wrappers)
    for candidate in (plain, clean):
        parts = _whole(candidate, owners)
        if parts:
            return parts
    return [_closest(plain, clean, owners)]


def _whole(state: Mapping[str, Tensor], owners: Mapping[str, str]) -> list[Part]:
    """A part for each prefix behind which the network stands, and nothing else."""
    behind: dict[str, State] = defaultdict(dict)  # prefix -> what stands behind it under a name of the network
    extra: Counter[str] = Counter()  # prefix -> how many other names begin with it
    for key, value in state.items():
        for prefix in _prefixes(key):
            name = key[len(prefix) :]
            if name in owners or name.endswith(COUNTER):
                behind[prefix][name] = value
            else:
                extra[prefix] += 1
    wanted = {owner for name, owner in owners.items() if not name.endswith(COUNTER)}
    found = [
        prefix
        for prefix, part in behind.items()
        if not extra[prefix] and wanted <= {owners[name] for name in part if name in owners} and (part or not wanted)
    ]
    found = [prefix for prefix in found if set(behind[prefix]) & set(owners)]
    num_left_out = len(state) - len(behind[found[0]]) if len(found) == 1 else 0
    return [
        Part(
            prefix,
            _with_metadata(_with_shared(behind[prefix], owners), state, prefix),
            num_left_out,
            _counter(state, prefix),
        )
        for prefix in found
    ]


def _closest(plain: State, clean: State, owners: Mapping[str, str]) -> Part:
    """What does not fit: behind the prefix where most of it does, so that differences are counted there."""
    sizes: Counter[str] = Counter()
    for key in plain:
        sizes.update(prefix for prefix in _prefixes(key) if key[len(prefix) :] in owners)
    state = plain if sizes else clean
    best = max(["", *sizes], key=lambda prefix: (sizes[prefix], -len(prefix)))
    rest = {key.removeprefix(best): value for key, value in state.items() if key.startswith(best)}
    return Part(best, _with_metadata(rest, state, best), len(state) - len(rest), _counter(state, best))


def _by_attribute(state: State) -> list[Part]:
    """Of no known network: what averages are kept in, by their names, and the rest."""
    attributes = {key.partition(".")[0] for key in state if "." in key}
    kept = sorted(name for name in attributes if AVERAGE.search(name) or RAW.search(name))
    parts = []
    for name in kept:
        behind = {key.partition(".")[2]: value for key, value in state.items() if key.partition(".")[0] == name}
        parts.append(Part(f"{name}.", behind, counter=_counter(state, f"{name}.")))
    rest = {key: value for key, value in state.items() if key.partition(".")[0] not in kept}
    is_network = not parts or any("." in key for key in rest)  # or counters alone
    return [*([Part("", rest)] if is_network else []), *parts]


def _prefixes(key: str) -> Iterator[str]:
    """The parts that a name may have before the network's own: none, `a.`, `a.b.`, ..."""
    yield ""
    end = key.find(".")
    for _ in range(MAX_PREFIX):
        if end < 0:
            return
        yield key[: end + 1]
        end = key.find(".", end + 1)


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _renamed(state: Mapping[str, Tensor], rename: Any) -> State:
    """The state dict under other names, metadata too; as it is where two names would become one."""
    renamed = {rename(key): value for key, value in state.items()}
    if len(renamed) < len(state):
        return dict(state)
    metadata = metadata_of(state)
    return with_metadata(renamed, {rename(key): value for key, value in _items(metadata)} or None)


def _with_metadata(part: State, state: Mapping[str, Tensor], prefix: str) -> State:
    """The part with the versions of the layers that stand behind the prefix."""
    versions = {
        f"{key}."[len(prefix) :].removesuffix("."): value
        for key, value in _items(metadata_of(state))
        if f"{key}.".startswith(prefix) or not prefix
    }
    return with_metadata(part, versions or None)


def _items(metadata: Any) -> Sequence[tuple[str, Any]]:
    return [(key, value) for key, value in metadata.items() if type(key) is str] if isinstance(metadata, dict) else []


def _with_shared(part: Mapping[str, Tensor], owners: Mapping[str, str]) -> State:
    """Every name of the network that there is a tensor for: safetensors keeps one name of a tensor that has several."""
    by_owner = {owners[name]: value for name, value in part.items() if name in owners}
    named = {name: part.get(name, by_owner[owner]) for name, owner in owners.items() if owner in by_owner}
    return {**named, **part}


def _counter(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The number of weights in an AveragedModel that is part of a larger module."""
    for key in (f"{prefix}n_averaged", f"{prefix.removesuffix('module.')}n_averaged"):
        if key in state:
            return {"n_averaged": state[key]}
    return {}
