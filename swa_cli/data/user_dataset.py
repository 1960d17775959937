"""A user's own datasets: `package.module:factory` imported, called and checked.

The factory returns a dict with "train" and "num_classes" (and if there are: "val", "test", "mean", "std",
"class_names", "target", "layout"), or a pair (train, test) of datasets which know their `classes`. "target" says what a
label is: "class", "mask" (a class for each pixel), "value" ("num_outputs" numbers), or "own" (whatever one's own
task takes). "layout" says how images lie where their shape does not tell: "CHW" or "HWC".
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset

from swa_cli.errors import UserError

_EXPECTED = (
    'return {"train": Dataset, "num_classes": int}, with "test", "val", "mean", "std", "class_names", "target" if '
    "there are, or a pair (train, test) of datasets with an attribute `classes`; a Dataset has __len__ and "
    "__getitem__, which gives (image, label)"
)
_MAIN = "put what shall not run on import below `if __name__ == '__main__':`"
_KEYS = {"train", "val", "test", "num_classes", "mean", "std", "class_names", "target", "num_outputs", "layout"}
_LAYOUTS = ("CHW", "HWC")
_TARGETS = ("class", "mask", "value", "own")


@dataclass(frozen=True)
class Made:
    """What a factory returned."""

    splits: dict[str, Dataset[Any]]  # "train", and if there are "val" and "test"
    class_names: tuple[str, ...]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    target: str  # what labels are: class, mask, value or own
    layout: str | None  # of images, CHW or HWC; None where their shape tells


def make(name: str, *, root: str, args: Mapping[str, Any]) -> Made:
    """Import and call a factory.

    Args:
        name: `package.module:factory`.
        root: Passed as `root` if the factory's signature accepts it.
        args: Its keyword arguments.

    Raises:
        UserError: It cannot be imported, does not take the arguments, or returns something else.
    """
    returned = _call(_imported(name), name=name, root=root, args=args)
    if isinstance(returned, tuple) and len(returned) == 2:
        returned = {"train": returned[0], "test": returned[1]}
    if not isinstance(returned, Mapping) or "train" not in returned or not set(returned) <= _KEYS:
        what = f"a dict with keys {sorted(map(str, returned))}" if isinstance(returned, Mapping) else repr(returned)
        raise UserError(f"{name} returned {what:.200}", hint=_EXPECTED)
    splits = {split: returned[split] for split in ("train", "val", "test") if returned.get(split) is not None}
    for split, dataset in splits.items():
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise UserError(f"{name} returned {type(dataset).__name__} as {split!r}", hint=_EXPECTED)
        if not len(dataset):
            raise UserError(f"{name} returned an empty dataset as {split!r}", hint="return one with samples")
    layout = returned.get("layout")
    if layout not in (None, *_LAYOUTS):
        raise UserError(f"{name} returned {layout!r} as 'layout'", hint=f"it is one of {', '.join(_LAYOUTS)}")
    return Made(
        splits=splits,
        class_names=_class_names(returned, name=name, target=_target(returned, name=name)),
        mean=_floats(returned, "mean"),
        std=_floats(returned, "std"),
        target=_target(returned, name=name),
        layout=layout,
    )


def _imported(name: str) -> Callable[..., Any]:
    module_name, _, attribute = name.partition(":")
    hint = f"dataset.name is package.module:factory; try `python -c 'import {module_name}'` in this folder"
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError, TypeError) as error:  # the last two: an empty or a relative name
        raise UserError(f"{name} cannot be imported: {error}", hint=hint) from error
    except SystemExit as error:
        raise UserError(f"{name} cannot be imported: {module_name} ends the program", hint=_MAIN) from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        what = "is no callable" if hasattr(module, attribute) else "does not exist"
        raise UserError(f"{attribute!r} {what} in {module_name}", hint=f"{_EXPECTED}, from a function")
    return factory


def _call(factory: Callable[..., Any], *, name: str, root: str, args: Mapping[str, Any]) -> Any:
    """Call it with `root` if it takes that; errors of its own are its author's and keep their traceback."""
    signature = inspect.signature(factory)
    keywords = {"root": root, **args}
    try:
        signature.bind(**keywords)
    except TypeError:
        keywords = dict(args)
    try:
        signature.bind(**keywords)
    except TypeError as error:
        raise UserError(
            f"{name} does not take the arguments {sorted(keywords)}: {error}",
            hint=f"its signature is {signature}: change dataset.args",
        ) from error
    return factory(**keywords)


def _class_names(returned: Mapping[str, Any], *, name: str, target: str) -> tuple[str, ...]:
    """Of classes, or numbers in their place; none where one's own task alone knows what there is."""
    names = returned.get("class_names") or getattr(returned["train"], "classes", None)
    num_classes = returned.get("num_classes", returned.get("num_outputs", len(names) if names else None))
    if num_classes is None and target == "own":
        return ()
    if not isinstance(num_classes, int) or num_classes < 1:
        raise UserError(f"{name} does not tell the number of classes", hint=_EXPECTED)
    if names and len(names) != num_classes:
        raise UserError(
            f"{name} gives {len(names)} class names for num_classes = {num_classes}", hint="make them agree"
        )
    return tuple(map(str, names or range(num_classes)))


def _target(returned: Mapping[str, Any], *, name: str) -> str:
    target = returned.get("target", "class")
    if target not in _TARGETS:
        raise UserError(f"{name} returned {target!r} as 'target'", hint=f"it is one of {', '.join(_TARGETS)}")
    return str(target)


def _floats(returned: Mapping[str, Any], key: str) -> tuple[float, ...] | None:
    """A number, or a sequence of numbers, one a channel."""
    value = returned.get(key)
    if value is None:
        return None
    return tuple(float(number) for number in (value if hasattr(value, "__len__") else [value]))
