"""Types of what our checkpoints hold, derived from the tables.

A file is checked against these types before anything in it is used. It holds nothing but primitives and tensors;
keys that are not listed here are ignored. Three files are ours: the resume point (`last.pt`), weights to ship
(`swa.pt`, one per average) and a snapshot.
Legend: C channels, K deviations, `step` updates done, `epoch` epochs done.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    Json,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
)
from torch import Tensor

from swa_cli.averaging import kinds
from swa_cli.averaging.swag import is_spread
from swa_cli.errors import UserError
from swa_cli.recipe.kinds import KINDS

FORMAT = 2
STRICT = ConfigDict(strict=True, frozen=True, arbitrary_types_allowed=True)
Freshness = Literal["none", "running", "frozen", "stale", "recomputed", "partial"]  # of BatchNorm statistics
State = dict[str, Tensor]


class _Stored(BaseModel):
    model_config = STRICT


class StoredData(_Stored):
    """Number of samples and checksum of a split, see `fingerprint`."""

    samples: int
    sha256: str  # empty where computing it would read every sample


class Input(_Stored):
    """The input that the network takes, see `Context.input`."""

    channels: int | None = Field(gt=0)  # None where the inputs are no images; size and scale are then empty
    size: list[int]  # height, width
    resize: int | None = Field(default=None, gt=0)  # of the shorter side before the crop; None: of the whole image
    crop: Literal["center", "none"] = "none"
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    mean: list[float]  # (C,)
    std: list[float]  # (C,)
    classes: list[str]
    outputs: int | None = Field(gt=0)  # of the network; None where the dataset does not say
    data: dict[str, StoredData] = {}  # by split; empty where it is not known

    @field_validator("size")
    @classmethod
    def _of_images(cls, values: list[int], info: ValidationInfo) -> list[int]:
        if len(values) != (2 if info.data.get("channels") else 0) or min(values, default=1) <= 0:
            raise ValueError("has to be height and width, above 0")
        return values

    @field_validator("mean", "std")
    @classmethod
    def _one_per_channel(cls, values: list[float], info: ValidationInfo) -> list[float]:
        if len(values) != (info.data.get("channels") or 0) or not all(map(math.isfinite, values)):
            raise ValueError("has to be one finite number per channel")
        if info.field_name == "std" and min(values, default=1) <= 0:
            raise ValueError("has to be above 0")
        return values


def _declared(kind: str) -> str:
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is no kind of average: choose {', '.join(KINDS)}")
    return kind


class _AverageState(_Stored):
    """An average that can continue, see `WeightAverage.state_dict`."""

    kind: Annotated[str, AfterValidator(_declared)]
    count: int = Field(ge=0)
    steps: list[int]
    state: State
    m2: State | None = None  # swag
    deviations: State | None = None  # swag
    batchnorm: Freshness
    batchnorm_method: str | None = None  # with the next one, of `swa bn-update`
    samples: int = Field(default=0, ge=0)


if TYPE_CHECKING:
    StoredAverage = _AverageState
else:  # with the settings of every kind that is declared
    _SETTINGS = {key: hint for key, hint in get_type_hints(kinds.Settings).items() if key != "kind"}
    StoredAverage = create_model(
        "StoredAverage", __base__=_AverageState, **{key: (hint, None) for key, hint in _SETTINGS.items()}
    )


class RunningMean(_Stored):
    """The mean of the weights after every step so far; only parameters are in `state`."""

    count: int = Field(gt=0, le=10**7)  # `swa average` lists the steps of a window, and a file has to hold that list
    state: State


class EpochSoFar(_Stored, extra="allow"):
    """The epoch that has no row in `history` yet: sums over its batches, and its seconds."""

    __pydantic_extra__: dict[str, float]  # the score of the task
    loss: float
    seconds: float = Field(ge=0)
    # Loss and score of each process, if there were several.
    parts: list[Annotated[list[float], Field(min_length=2, max_length=2)]] | None = None


class HistoryRow(_Stored, extra="allow"):
    """One epoch in `history`; further keys are scores, None where they were not measured."""

    __pydantic_extra__: dict[str, float | int | None]
    epoch: int
    step: int
    lr: float
    train_loss: float
    seconds: float


class Environment(_Stored, extra="allow"):
    """What the bits of a run depend on beside its recipe, see `hardware.environment`."""

    __pydantic_extra__: dict[str, int | str]
    threads: int = Field(gt=0)
    device: str = Field(pattern=r"^[a-z]+(:\d+)?$")
    precision: Literal["fp32", "bf16", "fp16"]


class _File(_Stored):
    format: int
    recipe: dict[str, Any]
    input: Input


class ShippedAverage(_Stored):
    """Name and kind of a weight set to ship, and the steps whose weights it holds.

    Of an average by a profile, `profile` has its settings (`half_life` in steps, `width`, `decay`), and `error` what is
    lost between snapshots, as a part of its distance to the raw weights at its end.
    """

    name: str
    kind: str
    count: int | None
    steps: list[int]
    profile: dict[str, float | str] | None = None
    error: float | None = None


class Exported(_Stored):
    """What the metadata of a safetensors file tell of its weights: texts, and JSON texts for structured values."""

    recipe: Json[dict[str, Any]]
    input: Json[Input]
    weights: str  # their name
    average: Json[ShippedAverage] | None = None  # None: raw weights
    batchnorm: Freshness
    batchnorm_samples: Json[int] = 0


class StoredKept(_Stored):
    """The weights of the best epoch so far, see `keep.Kept`; the tensors are whole and load into the plain model."""

    epoch: int = Field(gt=0)
    state_dict: State
    average: ShippedAverage
    batchnorm: Freshness
    batchnorm_method: str | None = None
    samples: int


# `stopped` of a resume point, with the key that has ended the run before its last epoch.
ENDED_BY: Mapping[str, str] = {"max_time": "train.max_time", "patience": "train.early_stopping"}


class ResumePoint(_File):
    """last.pt and previous.pt: everything that the rest of a run depends on."""

    num_train: int = Field(gt=0)
    epoch: int = Field(ge=0)
    step: int = Field(ge=0)
    model: State
    batchnorm: Freshness | None = None  # of `model`, if the optimizer averages inside: else they are those of training
    trained: State | None = None  # what the next step starts from, if the optimizer averages inside
    averages: dict[str, StoredAverage]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    rng: dict[str, int | str]
    environment: Environment
    history: list[HistoryRow]
    epoch_so_far: EpochSoFar
    stopped: Literal["max_time", "patience"] | None
    cumulative: StoredAverage | None
    kept: dict[str, StoredKept] = {}  # by the name of its file


class StoredSource(_Stored):
    """One weight set of an average that was made after the run; `step` is None if its file does not say it."""

    file: str
    name: str
    weight: float
    step: int | None


class StoredPosterior(_Stored):
    """What a swag average holds beside its mean, see `Posterior`."""

    diagonal: bool
    variance: State
    deviations: State  # (K, *shape); empty if diagonal

    @field_validator("variance", "deviations")
    @classmethod
    def _possible(cls, tensors: State, info: ValidationInfo) -> State:
        for name, value in tensors.items():
            if not is_spread(value, squared=info.field_name == "variance"):
                raise ValueError(f"{name} has values that no weights lead to")
        return tensors


class Weights(_File):
    """swa.pt and its like: weights to ship."""

    state_dict: State
    average: ShippedAverage
    batchnorm: Freshness
    samples: int
    sources: list[StoredSource] = []  # of `swa average` and of SWAP; files are relative to the run folder
    posterior: StoredPosterior | None = Field(default=None, validate_default=True)  # of a swag average

    @field_validator("posterior")
    @classmethod
    def _of_these_weights(cls, posterior: StoredPosterior | None, info: ValidationInfo) -> StoredPosterior | None:
        average, weights = info.data.get("average"), info.data.get("state_dict")
        if average is None or weights is None:
            return posterior  # pydantic reports what is wrong with those
        if (average.kind == "swag") != (posterior is not None):
            raise ValueError("belongs to an average of kind swag, and to no other")
        if posterior is None:
            return None
        variance, deviations = posterior.variance, posterior.deviations
        num_deviations = {len(value) if value.dim() else 0 for value in deviations.values()}
        if deviations.keys() != ({} if posterior.diagonal else variance).keys() or len(num_deviations) > 1:
            raise ValueError("has deviations of other weights than its variance, or not as many of each")
        for name, value in variance.items():
            if name not in weights or weights[name].shape != value.shape:
                raise ValueError(f"{name} does not have the shape of the weights of that name")
            if name in deviations and deviations[name].shape[1:] != value.shape:
                raise ValueError(f"{name} has deviations of another shape than the weights")
        return posterior


class Snapshot(_File):
    """Raw weights of one step."""

    state_dict: State
    num_train: int = Field(gt=0)
    epoch: int = Field(ge=0)
    step: int = Field(gt=0)
    batchnorm: Freshness
    cumulative: RunningMean | None

    @field_validator("cumulative")
    @classmethod
    def _of_every_step(cls, running: RunningMean | None, info: ValidationInfo) -> RunningMean | None:
        if running is not None and running.count != info.data.get("step"):
            raise ValueError("has to count the steps of the snapshot")
        return running


FILES: dict[str, type[BaseModel]] = {"resume": ResumePoint, "weights": Weights, "snapshot": Snapshot}


def kind_of(content: dict[str, Any], *, source: str) -> str:
    """Return resume | weights | snapshot after checking the content, or foreign for a file of another program.

    Raises:
        UserError: The format is unknown here, or the content is not as swa writes it.
    """
    if not {"format", "recipe"} <= content.keys():
        return "foreign"
    if not isinstance(content["format"], int) or content["format"] != FORMAT:
        raise UserError(
            f"{source}: is of format {content['format']!r}; this version reads format {FORMAT}",
            hint="read it with the version of swa that wrote it, or update swa",
        )
    kind = "resume" if "model" in content else "weights" if "average" in content else "snapshot"
    with _explained(source):
        FILES[kind].model_validate(content)
    return kind


def exported(state: State, metadata: Mapping[str, str], *, source: str) -> dict[str, Any] | None:
    """Return the content of a safetensors file as that of weights to ship; None if `swa export` has not written it.

    Raises:
        UserError: The metadata are not as it writes them.
    """
    if "swa_version" not in metadata:
        return None
    with _explained(source):
        about = Exported.model_validate(metadata)
    average = about.average or ShippedAverage(name=about.weights, kind="raw", count=None, steps=[])
    if average.kind == "swag":  # the mean alone is in the file
        average = average.model_copy(update={"kind": "mean"})
    return {
        "format": FORMAT,
        "recipe": about.recipe,
        "input": about.input.model_dump(exclude_unset=True),
        "state_dict": state,
        "average": average.model_dump(exclude_unset=True),
        "batchnorm": about.batchnorm,
        "samples": about.batchnorm_samples,
    }


@contextmanager
def _explained(source: str) -> Iterator[None]:
    """Raise a `UserError` for content that is not as it was written."""
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{source}: is not as swa writes it: {place}: {first['msg']} (one of {error.error_count()} differences)",
            hint="take another copy of the file",
        ) from error
