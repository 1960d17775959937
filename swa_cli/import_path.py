"""Import the object that `package.module:attribute` names in a recipe."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

from swa_cli.errors import UserError, did_you_mean


def import_object(name: str, *, key: str, what: str, forms: str) -> Any:
    """Import the module of `package.module:attribute` and return the attribute, which may be a submodule.

    Args:
        name: The import path.
        key: The key of the recipe, for the message.
        what: The kind of object, for the message.
        forms: The names that are allowed, for the hint.

    Raises:
        UserError: The path is malformed, or the module or the attribute does not exist. Errors inside the module pass
            through.
    """
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), attribute]):
        raise UserError(f"{key}: {name!r} is not a name of {what}", hint=forms)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            hint = f"put {module_name.replace('.', '/')}.py beside the recipe or install it; {forms}"
        else:
            hint = f"fix the imports of {module_name}, or install what it needs"
        raise UserError(f"{key}: cannot import {module_name}: {error}", hint=hint) from error
    except SystemExit as error:
        hint = "move what must not run on import below `if __name__ == '__main__':`"
        raise UserError(f"{key}: cannot import {module_name}: it exits the program", hint=hint) from error
    is_package = hasattr(module, "__path__")  # a package does not load its submodules by itself
    if not hasattr(module, attribute) and is_package and importlib.util.find_spec(f"{module_name}.{attribute}"):
        importlib.import_module(f"{module_name}.{attribute}")
    if not hasattr(module, attribute):
        public = [name for name in vars(module) if not name.startswith("_")]
        raise UserError(
            f"{key}: {module_name} has no attribute {attribute!r}",
            hint=did_you_mean(attribute, public) + f"define it in {module_name}",
        )
    return getattr(module, attribute)


def import_callable(
    name: str,
    bind: Callable[[inspect.Signature], object],
    *,
    key: str,
    what: str,
    forms: str,
    expected: str,
) -> Callable[..., Any]:
    """Import a function or class that can be called as `bind` does with its signature; see `import_object`.

    Raises:
        UserError: There is none, or it takes other arguments; `expected` is the hint.
    """
    found = import_object(name, key=key, what=what, forms=forms)
    if not callable(found):
        raise UserError(f"{key}: {name} is not {what}", hint=expected)
    try:
        bind(inspect.signature(found))
    except ValueError:
        return found  # some functions in C do not tell their signature: a call does
    except TypeError as error:
        raise UserError(f"{key}: {name} takes other arguments: {error}", hint=expected) from error
    return found
