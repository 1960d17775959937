"""Section `output`: where results are written, and the table of the loggers that take the rows of metrics.csv too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, create_model, model_serializer, model_validator

from swa_cli.errors import Problem
from swa_cli.recipe import scalars
from swa_cli.recipe.values import (
    OWN_CODE,
    STRICT,
    Duration,
    DurationOrTime,
    Flag,
    Key,
    Text,
    fields_of,
    form_of,
    one_of,
    refuse,
)


@dataclass(frozen=True, kw_only=True)
class LoggerKind:
    """A logger that comes with swa."""

    text: str  # what it writes, and where
    packages: tuple[str, ...]  # what it imports; the extra of swa-cli with its name installs them
    keys: Mapping[str, Key]  # its options


LOGGERS: Mapping[str, LoggerKind] = {
    "tensorboard": LoggerKind(text="event files in the run folder", packages=("tensorboard",), keys={}),
    "wandb": LoggerKind(
        text="a run of Weights & Biases",
        packages=("wandb",),
        keys={
            "project": Key(Text, "swa", "project of the run"),
            "entity": Key(Text, None, "user or team that owns the project; default that of the login"),
            "mode": Key(
                Literal["online", "offline"],
                "online",
                "offline writes to the run folder alone, for `wandb sync`",
            ),
        },
    ),
    "mlflow": LoggerKind(
        text="a run of MLflow",
        packages=("mlflow", "sqlalchemy", "alembic"),
        keys={
            "experiment": Key(Text, "swa", "experiment of the run"),
            "tracking_uri": Key(
                Text, None, "server or database, as sqlite:///mlflow.db; default a database in the run folder"
            ),
        },
    ),
}
_check_name = one_of(tuple(LOGGERS), noun="logger")
_NAME_FORM = form_of(*LOGGERS, OWN_CODE)


def _logger_name(value: object) -> str:
    """Parse the name of a logger, or package.module:Class."""
    name = scalars.text(value)
    if name == "csv":
        raise ValueError("`csv` is not a logger, as metrics.csv is always written: leave it out")
    checked: str = _check_name.func(name)  # type: ignore[call-arg]
    return checked


class _Logger(BaseModel):
    """A logger with its options; a name alone stands for one with the defaults."""

    model_config = STRICT
    name: str
    if TYPE_CHECKING:

        def __getattr__(self, key: str) -> Any:
            """Return the value of an option that the table of loggers declares."""

    @property
    def options(self) -> dict[str, Any]:
        """Return the options of this logger with their values; one that is left out has its default."""
        kind = LOGGERS.get(self.name)
        given = {name: (getattr(self, name), key.default) for name, key in (kind.keys if kind else {}).items()}
        return {name: default if value is None else value for name, (value, default) in given.items()}

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return value if isinstance(value, Mapping | _Logger) else {"name": _logger_name(value)}

    @model_validator(mode="after")
    def _keys_of_this_logger(self) -> _Logger:
        refuse(misplaced_in_logger({key: getattr(self, key) for key in self.model_fields_set}))
        return self

    @model_serializer(mode="wrap")
    def _as_written(self, handler: Callable[[Any], dict[str, Any]]) -> Any:
        values = {key: value for key, value in handler(self).items() if value is not None}
        return self.name if values.keys() == {"name"} else values


if TYPE_CHECKING:
    Logger = _Logger
else:  # with the options of the table
    _NAME = Field(description=f"{', '.join(LOGGERS)} or package.module:Class")
    _TYPE = Annotated[Text, BeforeValidator(_logger_name), _NAME_FORM]
    Logger = create_model(
        "Logger", __base__=_Logger, __doc__=_Logger.__doc__, name=(_TYPE, _NAME), **fields_of(LOGGERS)
    )


def misplaced_in_logger(values: Mapping[str, object]) -> list[Problem]:
    """Return a problem for each option that the logger does not take."""
    name = str(values.get("name"))
    if name not in LOGGERS and ":" not in name:  # missing or wrong, which is another problem
        return []
    taken = LOGGERS[name].keys if name in LOGGERS else {}
    known = {key for kind in LOGGERS.values() for key in kind.keys}
    hint = f"its options are {', '.join(taken)}" if taken else "write its name alone"
    return [
        Problem(key, f"`{key}` is not an option of {name}", hint)
        for key in values
        if key != "name" and key in known and key not in taken
    ]


def _add_short_form(node: dict[str, Any]) -> None:
    """Let the JSON Schema of `output.loggers` accept a name alone."""
    node["items"] = {"anyOf": [_NAME_FORM.json_schema, node["items"]]}


def _no_option(root: str) -> str:
    """Refuse a folder that later commands would take for an option; a path drops the ./ before it."""
    if str(PurePath(root)).startswith("-"):
        raise ValueError(
            f"{scalars.shown(root)} begins with -, which commands take for an option: name another folder, such as runs"
        )
    return root


Root = Annotated[Text, AfterValidator(_no_option), form_of(r"(?!(\./+)*-)[\s\S]*")]


class Output(BaseModel):
    """Where results are written."""

    model_config = STRICT
    root: Root = Field(default="runs", description="folder of the run folders")
    save_every: DurationOrTime = Field(
        default=Duration.parse("1ep"), description="interval between saves of last.pt: 1ep, 200step, or a time as 10min"
    )
    loggers: list[Logger] = Field(
        default=[],
        description="take the rows of metrics.csv too: "
        + "; ".join(f"{name} ({kind.text}; pip install 'swa-cli[{name}]')" for name, kind in LOGGERS.items())
        + "; or package.module:Class. A name alone, or a section with options",
        json_schema_extra=_add_short_form,
    )
    plots: Flag = Field(default=False, description="draw all pictures of `swa plot` at the end of the run")
