"""`torch.compile` as a recipe asks for it: inductor, a backend that torch knows by name, or a user's own function.

The one idea: what can be known before the run folder is made is checked there (the name, the import, the C++ compiler
that inductor needs on a CPU). What only the first compilation shows becomes one message that names the way out.
Without `train.compile`, nothing here imports torch's compiler, which takes more than a second.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from swa_cli.errors import Problem, UserError
from swa_cli.import_path import import_object
from swa_cli.recipe.schema import Compile

FORMS = "train.compile is true, false, a backend of torch.compile, or package.module:attribute"
INDUCTOR = "inductor"
WAY_OUT = "write train.compile=false"

Backend = Callable[..., Any]  # a graph and example inputs -> a function that does what the graph does


@dataclass(frozen=True)
class UserBackend:
    """A user's backend; equal ones share what is compiled, as torch compares backends by value."""

    name: str
    backend: Backend

    def __call__(self, graph_module: torch.fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        """Compile a graph.

        Raises:
            UserError: The backend returned something else than a function.
        """
        function = self.backend(graph_module, example_inputs)
        if not callable(function):
            raise UserError(
                f"train.compile: {self.name} returned {type(function).__name__}",
                hint="return a function that takes the inputs of the graph, such as graph_module.forward",
            )
        return function


def problems(settings: Compile) -> list[Problem]:
    """Return the problem of a backend that torch does not know."""
    if _is_own(settings.backend):
        return []
    from torch._dynamo import list_backends

    name = settings.backend
    if name in list_backends(exclude_tags=None):
        return []
    close = difflib.get_close_matches(name, list_backends(exclude_tags=None), n=1)
    hint = f"did you mean `{close[0]}`?" if close else f"choose from {', '.join(list_backends())}; {FORMS}"
    return [Problem("train.compile", f"torch.compile has no backend {name!r}", hint)]


def require_available(settings: Compile, *, device: torch.device) -> None:
    """Refuse a backend that cannot be imported, and inductor on a CPU without a C++ compiler.

    Raises:
        UserError: It cannot run here. Errors inside a user's own module pass through.
    """
    if _is_own(settings.backend):
        _imported(settings.backend)
    elif settings.backend == INDUCTOR and device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler

        try:
            get_cpp_compiler()
        except RuntimeError as error:
            raise UserError(
                f"train.compile: inductor needs a C++ compiler on a CPU: {error}",
                hint=f"install g++ or clang++, name one in the environment variable CXX, or {WAY_OUT}",
            ) from error


def compiled(forward: Callable[..., Any], settings: Compile) -> Callable[..., Any]:
    """Wrap a network in `torch.compile`; it is compiled when the first batch goes through."""
    if _is_own(settings.backend):
        wrapped: Callable[..., Any] = torch.compile(
            forward, backend=UserBackend(settings.backend, _imported(settings.backend))
        )
    elif settings.backend == INDUCTOR:
        wrapped = torch.compile(forward, mode=settings.mode)
    else:
        wrapped = torch.compile(forward, backend=settings.backend)
    return wrapped


@contextmanager
def failures_explained(settings: Compile) -> Iterator[None]:
    """Name the backend where it cannot compile the network; an error in a user's own backend passes through.

    Raises:
        UserError: It cannot.
    """
    from torch._dynamo.exc import BackendCompilerFailed, TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        cause = error.inner_exception if isinstance(error, BackendCompilerFailed) else error
        if isinstance(cause, UserError):
            raise cause from error
        if _is_own(settings.backend):
            raise
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise UserError(
            f"train.compile: {settings.backend} cannot compile the network: {reason}",
            hint=f"{WAY_OUT}, or another backend",
        ) from error


def _is_own(backend: str) -> bool:
    return ":" in backend


def _imported(name: str) -> Backend:
    """Import a user's backend.

    Raises:
        UserError: There is none, or it does not take a graph and example inputs.
    """
    backend = import_object(name, key="train.compile", what="a backend", forms=FORMS)
    expected = "let it be backend(graph_module, example_inputs), which returns a function"
    if not callable(backend):
        raise UserError(f"train.compile: {name} is not a function", hint=expected)
    try:
        inspect.signature(backend).bind(None, None)
    except TypeError as error:
        raise UserError(f"train.compile: {name} takes other arguments: {error}", hint=expected) from error
    return backend
