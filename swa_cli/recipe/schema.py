"""The recipe as a frozen value: one class a section, and a field's description is its documentation.

Values are typed here and not by YAML: the loader hands over the text of each scalar (`scalars.Plain`), so
`1e-4` is a number wherever a number is wanted and `no` is never a truth value. Whatever the file leaves out
has its default here and nowhere else. Checks that need the size of the data live in `plan.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from swa_cli.recipe.duration import Duration
from swa_cli.recipe.fields import (
    NAME_PATTERN,
    AverageName,
    Count,
    CountOrAll,
    DurationField,
    DurationOrTime,
    Flag,
    Flip,
    Free,
    Multiple,
    Number,
    Portion,
    Rate,
    TaskName,
    Text,
    TextOrTexts,
    Threads,
    TimeField,
    Whole,
)

STRICT = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class Misfit(NamedTuple):
    """A key that does not go with the name or kind of its section, or that this one needs."""

    key: str
    message: str
    hint: str


class Model(BaseModel):
    """The network that is trained."""

    model_config = STRICT
    name: Text = Field(description="zoo name, torchvision:NAME, timm:NAME, or package.module:Attribute")
    args: dict[str, Free] = Field(
        default={}, description="constructor arguments; num_classes and in_channels are filled in"
    )


class Jitter(BaseModel):
    """Random changes of colour, in a random order; each is how far it goes at most, and 0 is off."""

    model_config = STRICT
    brightness: Rate = Field(default=0.0, le=100, description="factor from 1 - x, at least 0, to 1 + x")
    contrast: Rate = Field(default=0.0, le=100, description="factor from 1 - x, at least 0, to 1 + x")
    saturation: Rate = Field(default=0.0, le=100, description="factor from 1 - x, at least 0, to 1 + x")
    hue: Rate = Field(
        default=0.0, le=0.5, description="turn of the colour circle from -x to x, of which 1 is a whole one"
    )


class Augment(BaseModel):
    """Random changes of the training images, the same for a seed whatever else is switched on."""

    model_config = STRICT
    crop: Whole = Field(default=0, ge=0, description="zero padding in pixels, then a random window of the old size")
    translate: Whole = Field(default=0, ge=0, description="the same with reflected pixels around the image")
    flip: Flip = Field(
        default=False,
        description="mirror left-right: true, every second image on average; alternating, each in every other epoch",
    )
    cutout: Whole = Field(default=0, ge=0, description="side in pixels of a square that is blanked out")
    jitter: Jitter = Jitter()
    mixup: Rate = Field(
        default=0.0,
        le=1000,
        description="classification: alpha of the share of an image blended with another; 0 for none",
    )
    cutmix: Rate = Field(
        default=0.0, le=1000, description="classification: alpha of the share of an image beside a box of another"
    )


class Dataset(BaseModel):
    """Where the images come from."""

    model_config = STRICT
    name: Text = Field(description="a named dataset, image_folder, or package.module:factory")
    root: Text = Field(default="data", description="folder that holds, or will hold, the files")
    val: Portion = Field(
        default="10%", description="validation samples taken from train by the seed: 10%, 5000, or 0 for none"
    )
    augment: Augment = Augment()
    cache: Literal["auto", "ram", "none"] = Field(
        default="auto", description="images in memory (ram), streamed from disk (none), or by size (auto)"
    )
    workers: Whole = Field(default=2, ge=0, description="loader processes of a dataset that is streamed")
    download: Flag = Field(default=True, description="fetch missing files where the dataset can be fetched")
    args: dict[str, Free] = Field(default={}, description="arguments of the dataset, such as size: 32")


class Group(BaseModel):
    """Parameters with settings of their own; keys that are not listed go to the class of torch.optim for them."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Free] = Field(init=False)
    match: TextOrTexts = Field(description="norm, bias, or patterns of parameter names such as *norm*.bias")
    lr: Multiple = Field(default=1.0, description="rate in multiples of the schedule's: 64x")

    @property
    def options(self) -> dict[str, Any]:
        """What differs from the options of the other parameters."""
        return dict(self.__pydantic_extra__ or {})


SGD_DEFAULTS: Mapping[str, object] = {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}


class Optimizer(BaseModel):
    """The base optimizer; keys that are not listed go to the class of torch.optim."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Free] = Field(init=False)
    name: Text = Field(default="SGD", description="any class of torch.optim")
    lr: Rate = Field(description="learning rate that the schedule scales")
    no_decay: list[Text] = Field(
        default=[], description="parameters without weight decay: norm, bias, or name patterns such as head.*"
    )
    groups: list[Group] = Field(
        default=[], description="parameters with a rate or options of their own; each goes with the first that matches"
    )

    @model_validator(mode="before")
    @classmethod
    def _sgd_defaults(cls, values: Any) -> Any:
        """Momentum .9, Nesterov, weight decay 5e-4: the usual SGD of image classification, written out."""
        if not isinstance(values, Mapping) or values.get("name", "SGD") != "SGD":
            return values
        filled = {**SGD_DEFAULTS, **values}
        no_momentum = str(filled["momentum"]) in ("0", "0.0") or "dampening" in values
        if no_momentum and "nesterov" not in values:
            filled["nesterov"] = False
        return filled

    @property
    def options(self) -> dict[str, Any]:
        """What goes to the constructor beside the parameters and the learning rate."""
        return dict(self.__pydantic_extra__ or {})


SCHEDULE_KEYS: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    # name: (required keys, optional keys) beside `name`
    "constant": (frozenset(), frozenset({"warmup"})),
    "cosine": (frozenset(), frozenset({"warmup", "span", "final_lr"})),
    "linear": (frozenset(), frozenset({"warmup", "span", "final_lr"})),
    "cosine_restarts": (frozenset({"cycle"}), frozenset({"warmup", "cycle_mult", "final_lr"})),
    "cyclic": (
        frozenset({"base_lr", "up"}),
        frozenset({"warmup", "max_lr", "down", "begin", "mode", "gamma"}),
    ),
    "multistep": (frozenset({"at"}), frozenset({"warmup", "factor"})),
    "one_cycle": (frozenset({"max_lr"}), frozenset({"peak", "span"})),
    "swa_paper": (frozenset(), frozenset()),
}
WARMED_UP = ("constant", "cosine", "linear", "multistep")  # the others prescribe how they begin


class Schedule(BaseModel):
    """The learning rate; each name takes its own keys.

    They are in `SCHEDULE_KEYS`.
    """

    model_config = STRICT
    name: Literal[
        "constant", "cosine", "cosine_restarts", "cyclic", "linear", "multistep", "one_cycle", "swa_paper"
    ] = Field(default="cosine", description="shape of the learning rate over the run")
    warmup: DurationField | None = Field(
        default=None,
        description="linear rise from 0 at the beginning; default 1ep, 0ep where the shape begins itself",
    )
    span: Literal["auto", "start", "run"] | None = Field(
        default=None, description="what a decay spans; auto: to swa.start if swa.lr is given, else the run"
    )
    final_lr: Rate | None = Field(
        default=None, description="end of the decay; default swa.lr if the span ends at swa.start, else 0"
    )
    cycle: DurationField | None = Field(default=None, description="cosine_restarts: length of the first cycle")
    cycle_mult: Number | None = Field(default=None, ge=1, description="cosine_restarts: growth of the cycles")
    base_lr: Rate | None = Field(default=None, description="cyclic: the minimum of a cycle")
    max_lr: Rate | None = Field(default=None, description="cyclic (default optimizer.lr), one_cycle: the peak")
    up: DurationField | None = Field(default=None, description="cyclic: length of the rise")
    down: DurationField | None = Field(default=None, description="cyclic: length of the fall; default as up")
    begin: Literal["base", "max"] | None = Field(
        default=None, description="cyclic: rate of the first step; max is the cycle of FGE; default base"
    )
    mode: Literal["triangular", "triangular2", "exp_range"] | None = Field(
        default=None, description="cyclic: amplitude constant, halved each cycle, or times gamma^step"
    )
    gamma: Number | None = Field(default=None, gt=0, le=1, description="cyclic, exp_range: factor a step")
    at: list[DurationField] | None = Field(default=None, description="multistep: points at which the rate drops")
    factor: Number | None = Field(default=None, gt=0, description="multistep: factor of each drop; default 0.1")
    peak: DurationField | None = Field(default=None, description="one_cycle: point of the highest rate; default 30%")

    @model_validator(mode="after")
    def _keys_of_this_shape(self) -> Schedule:
        _refuse(schedule_misfits({key: getattr(self, key) for key in self.model_fields_set}))
        return self


def schedule_misfits(values: Mapping[str, object]) -> list[Misfit]:
    """Keys that a schedule of this name lacks or does not take; values are looked at no further."""
    name = str(values.get("name", "cosine"))
    if name not in SCHEDULE_KEYS:
        return []
    required, optional = SCHEDULE_KEYS[name]
    given = {key for key, value in values.items() if value is not None and key in Schedule.model_fields} - {"name"}
    takes = ", ".join(sorted(required | optional)) or "no further keys"
    foreign = [
        Misfit(key, f"the schedule {name} has no such key", f"{name} takes {takes}")
        for key in sorted(given - required - optional)
    ]
    missing = [
        Misfit(
            key,
            f"is missing, the schedule {name} needs it",
            f"add `{key}:` to the section `schedule` ({Schedule.model_fields[key].description})",
        )
        for key in sorted(required - given)
    ]
    return foreign + missing


class BatchNorm(BaseModel):
    """How the BatchNorm statistics of averaged weights are recomputed."""

    model_config = STRICT
    method: Literal["pooled", "exact"] = Field(
        default="pooled", description="pooled: one pass; exact: layer by layer, independent of the batches"
    )
    samples: CountOrAll = Field(default="all", description="training samples of the pass: all, or a number")
    augment: Flag = Field(default=True, description="images augmented as in training (weights fit those statistics)")


class Swa(BaseModel):
    """The average named swa: the mean of the weights along the trajectory (Izmailov et al. 2018)."""

    model_config = STRICT
    start: DurationField = Field(default=Duration.parse("75%"), description="nothing before this point is averaged")
    every: DurationField = Field(
        default=Duration.parse("1ep"),
        description="between two weights of the average; 1cycle: at each minimum",
    )
    lr: Rate | None = Field(default=None, description="constant rate from start on; left out: the schedule's")
    anneal: DurationField = Field(
        default=Duration.parse("0ep"),
        description="bridge from the schedule's rate to swa.lr, ending at start",
    )
    anneal_shape: Literal["linear", "cosine"] = Field(default="linear", description="shape of that bridge")
    batchnorm: BatchNorm = BatchNorm()
    eval_every: DurationField = Field(
        default=Duration.parse("5ep"),
        description="how often averages are scored; each costs a BatchNorm pass",
    )


AVERAGE_KEYS: Mapping[str, str] = {  # key -> the kind of average that takes it
    "decay": "ema",
    "half_life": "ema",
    "warmup": "ema",
    "bias_correction": "ema",
    "window": "latest",
    "rank": "swag",
    "diagonal": "swag",
}


class Average(BaseModel):
    """One more average of the same run."""

    model_config = STRICT
    kind: Literal["mean", "ema", "latest", "swag"] = Field(
        description="mean, exponential moving average, mean of the last k, or mean with a Gaussian around it"
    )
    start: DurationField | None = Field(default=None, description="default 75%; ema: 0ep")
    every: DurationField | None = Field(default=None, description="default 1ep; ema: 1step")
    decay: Number | None = Field(default=None, gt=0, lt=1, description="ema: weight of the past; default 0.999")
    half_life: DurationField | None = Field(
        default=None, description="ema: in place of decay, after what time a weight set counts half"
    )
    warmup: Flag | None = Field(
        default=None, description="ema: decay of update n at most (1 + n) / (10 + n); default false"
    )
    bias_correction: Flag | None = Field(
        default=None, description="ema: the first weight set counts as one like the others; default true"
    )
    window: Count | None = Field(default=None, description="latest: how many weights; default 5")
    rank: Whole | None = Field(
        default=None, ge=2, description="swag: how many deviations from the mean are kept; default 20"
    )
    diagonal: Flag | None = Field(default=None, description="swag: variances alone, no deviations; default false")

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_this_kind(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        kind = values.get("kind")
        ema = kind == "ema"
        filled = {"start": "0ep" if ema else "75%", "every": "1step" if ema else "1ep", **values}
        if ema:
            filled = {"warmup": False, "bias_correction": True, **filled}
            if values.get("half_life") is None:
                filled.setdefault("decay", 0.999)
        if kind == "latest":
            filled.setdefault("window", 5)
        if kind == "swag":
            filled.setdefault("diagonal", False)
            if not _is_true(filled["diagonal"]):
                filled.setdefault("rank", 20)
        return filled

    @model_validator(mode="after")
    def _keys_of_this_kind(self) -> Average:
        _refuse(average_misfits({key: getattr(self, key) for key in self.model_fields_set}))
        return self


def average_misfits(values: Mapping[str, object]) -> list[Misfit]:
    """Keys that an average of this kind does not take, or not beside another; values are looked at no further."""
    kind = str(values.get("kind"))
    given = [key for key in AVERAGE_KEYS if values.get(key) is not None]
    found = [
        Misfit(key, f"an average of kind {kind} has no such key", f"`{key}` goes with `kind: {AVERAGE_KEYS[key]}`")
        for key in given
        if kind in ("mean", *AVERAGE_KEYS.values()) and kind != AVERAGE_KEYS[key]
    ]
    if kind == "ema" and {"decay", "half_life"} <= set(given):
        found.append(Misfit("half_life", "stands beside decay, and is another way to say it", "write one of the two"))
    if kind == "swag" and "rank" in given and _is_true(values.get("diagonal")):
        hint = "leave `rank` out, or write `diagonal: false`"
        found.append(Misfit("rank", "a diagonal swag keeps no deviations", hint))
    return found


def _is_true(value: object) -> bool:
    """Whether a flag is set, also before it was read."""
    return str(value).lower() == "true"


def _refuse(misfits: list[Misfit]) -> None:
    if misfits:
        raise PydanticCustomError("misfit", "{key}: {message}", misfits[0]._asdict())


class Swap(BaseModel):
    """SWAP (Gupta et al. 2020): a common phase, then workers that each train alone; swa is their mean."""

    model_config = STRICT
    workers: Whole = Field(ge=2, description="how many go on from the common weights; on fewer processes in turn")
    start: DurationField = Field(
        default=Duration.parse("70%"), description="end of the common phase, rounded to whole epochs"
    )
    batch_size: Count | None = Field(
        default=None, description="samples of a worker's step; default those of a common step over the workers"
    )
    lr: Multiple | None = Field(
        default=None, description="a worker's rate in multiples of the schedule's: 0.5x; default as its batch shrinks"
    )
    batchnorm: BatchNorm = BatchNorm()
    worker: Count | None = Field(
        default=None, description="this run is that worker alone: train.init names the common weights"
    )


class Snapshots(BaseModel):
    """Raw weights kept on disk while the run goes on."""

    model_config = STRICT
    every: DurationField = Field(description="between two snapshots; 1cycle: at each minimum")
    start: DurationField = Field(default=Duration.parse("0ep"), description="nothing before this point is kept")
    keep: CountOrAll = Field(default="all", description="all, or the last k")
    cumulative: Flag = Field(
        default=False,
        description="each with the mean of the weights after every step so far: `swa average --window` is then exact",
    )


class Stop(BaseModel):
    """An end before the last epoch, when nothing gets better any more."""

    model_config = STRICT
    patience: Count = Field(description="scorings without a new best value, then the run ends")
    metric: Text = Field(default="val_loss", description="a column of metrics.csv: a loss or an accuracy")


class Train(BaseModel):
    """How the run goes."""

    model_config = STRICT
    epochs: Count = Field(description="passes over the training set")
    init: Text | None = Field(
        default=None, description="checkpoint that the run starts from, instead of random weights of the seed"
    )
    init_weights: Text | None = Field(
        default=None, description="which weights of it: last, swa, ...; default its raw weights, or its only ones"
    )
    init_skip: list[Text] = Field(
        default=[], description="tensors that keep their fresh values instead, by name patterns such as head.*"
    )
    batch_size: Count = Field(default=128, description="samples of one forward pass")
    eval_batch_size: Count = Field(default=512, description="samples of one forward pass without gradients")
    accumulate: Count = Field(default=1, description="batches whose gradients make one optimizer step")
    sync_batchnorm: Flag = Field(
        default=False, description="several processes: BatchNorm normalises the whole batch, on GPUs only"
    )
    shard: Flag = Field(
        default=False, description="several processes: parameters, gradients, optimizer and averages in parts over them"
    )
    label_smoothing: Number = Field(default=0.0, ge=0, lt=1, description="share of the target spread over all classes")
    tta: Literal["none", "flip", "flip_translate"] = Field(
        default="none", description="final scores by the mean logits of views of an image: mirrored, also moved a pixel"
    )
    clip_norm: Number = Field(default=0.0, ge=0, description="largest norm of the gradient; 0 for no clipping")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="auto: bf16 where the hardware computes in it natively and faster, else fp32"
    )
    device: Text = Field(
        default="auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto, cpu, cuda, cuda:1, mps"
    )
    compile: Flag = Field(default=False, description="torch.compile: slow to start, faster after")
    deterministic: Flag = Field(default=False, description="refuse operations that are not reproducible on a GPU")
    threads: Threads = Field(default="auto", description="processor threads")
    max_time: TimeField | None = Field(default=None, description="the run ends after this time, such as 2h")
    stop: Stop | None = None


class Output(BaseModel):
    """Where results go."""

    model_config = STRICT
    root: Text = Field(default="runs", description="folder of the run folders")
    save_every: DurationOrTime = Field(
        default=Duration.parse("1ep"), description="between two saves of last.pt: 1ep, 200step, or a time as 10min"
    )
    tensorboard: Flag = Field(
        default=False, description="the rows of metrics.csv for TensorBoard too: pip install 'swa-cli[tensorboard]'"
    )
    plots: Flag = Field(default=False, description="draw all pictures of `swa plot` when the run has ended")


class Recipe(BaseModel):
    """All of a run. The smallest recipe is model.name, dataset.name, optimizer.lr and train.epochs."""

    model_config = STRICT
    name: Text | None = Field(
        default=None,
        pattern=rf"^{NAME_PATTERN}$",
        description="names the run folder: letters, digits and . _ + -",
    )
    seed: Whole = Field(default=0, ge=0, lt=2**63, description="data order, augmentation and initial weights")
    task: TaskName = Field(
        default="classification",
        description="classification, segmentation, regression, or package.module:attribute",
    )
    model: Model
    dataset: Dataset
    optimizer: Optimizer
    schedule: Schedule = Schedule()
    swa: Swa | None = None
    averages: dict[AverageName, Average] = {}
    swap: Swap | None = None
    snapshots: Snapshots | None = None
    train: Train
    output: Output = Output()

    @field_validator("snapshots", mode="before")
    @classmethod
    def _nothing_is_kept(cls, values: Any) -> Any:
        """An empty section asks for no snapshots."""
        return None if isinstance(values, Mapping) and not values else values

    @property
    def title(self) -> str:
        """The name of the run folder: `name`, or dataset-model."""
        return self.name or re.sub(r"[^A-Za-z0-9_.+-]+", "-", f"{self.dataset.name}-{self.model.name}").strip("-.")

    @property
    def all_averages(self) -> dict[str, Average]:
        """Every average by name, `swa` first."""
        if self.swa is None:
            return dict(self.averages)
        return {"swa": Average(kind="mean", start=self.swa.start, every=self.swa.every), **self.averages}

    @property
    def average_scoring(self) -> Swa:
        """How averages are refreshed and scored, also in a run that has averages but no `swa`."""
        return Swa(batchnorm=self.swap.batchnorm) if self.swap else self.swa or Swa()
