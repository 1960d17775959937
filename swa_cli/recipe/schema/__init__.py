"""The recipe as a frozen value: one class per section.

The description of a field is its documentation. Values are typed here and not by YAML: the loader hands over the text
of each scalar (`scalars.Plain`), so `1e-4` is a number wherever a number is wanted and `no` is never a truth value. The
default of a key that a file leaves out stands here, or in the tables of schedules and kinds. Checks between sections,
and those that need the size of the data, are in `plan`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    create_model,
    field_validator,
    model_validator,
)

from swa_cli.errors import Problem
from swa_cli.recipe import scalars
from swa_cli.recipe.schedules import SCHEDULES
from swa_cli.recipe.schema.averages import Average, Swa, Swap
from swa_cli.recipe.schema.dataset import MAX_SIDE, Augment, Dataset, Interpolation, SizeField
from swa_cli.recipe.schema.output import Output
from swa_cli.recipe.values import (
    MAX_NAME,
    NAME_PATTERN,
    STRICT,
    Argument,
    AverageName,
    ClassWeights,
    Count,
    CountOrAll,
    CountOrAuto,
    Duration,
    DurationField,
    Flag,
    Free,
    LayerDecay,
    LossName,
    Multiple,
    Number,
    Patterns,
    Pretrained,
    Rate,
    TaskName,
    Text,
    TextOrTexts,
    Threads,
    TimeField,
    Whole,
    fields_of,
    form_of,
    pretrained,
    refuse,
)

__all__ = [
    "SGD_DEFAULTS",
    "Augment",
    "Average",
    "Compile",
    "Dataset",
    "Eval",
    "Group",
    "Optimizer",
    "Output",
    "Recipe",
    "Schedule",
    "Snapshots",
    "Swap",
    "misplaced_in_schedule",
]


PUBLISHERS = ("torchvision", "timm")  # of weights that a name finds


class Model(BaseModel):
    """The network to train."""

    model_config = STRICT
    name: Text = Field(description="zoo name, torchvision:NAME, timm:NAME, or package.module:Attribute")
    args: dict[str, Argument] = Field(
        default={}, description="constructor arguments; num_classes and in_channels are filled in"
    )
    pretrained: Pretrained | None = Field(
        default=None,
        description="weights to start from: true or a name such as IMAGENET1K_V2 of torchvision or timm, or a file;"
        " a head of other classes starts fresh, and size, crop, mean and std of the images follow the weights",
    )
    freeze: Patterns = Field(
        default=[],
        description='parameters that are not trained, by name patterns; ! re-includes: ["*", "!fc.*"] trains fc alone',
    )
    unfreeze: DurationField | None = Field(
        default=None, description="all parameters train from this epoch on, such as 3ep or 20%"
    )

    @property
    def is_of_library(self) -> bool:
        """Whether the network is one of torchvision or timm, which publish weights."""
        return ":" in self.name and self.name.partition(":")[0] in PUBLISHERS

    @property
    def is_published(self) -> bool:
        """Whether the weights to start from are those that torchvision or timm publish."""
        return self.pretrained is not None and self.pretrained_file is None

    @property
    def pretrained_file(self) -> str | None:
        """The file that `pretrained` names: in a library, what is not a name of letters, digits, _ and -."""
        if not isinstance(self.pretrained, str):
            return None
        return None if self.is_of_library and re.fullmatch(r"[\w-]+", self.pretrained, re.ASCII) else self.pretrained

    @field_validator("pretrained", mode="before")
    @classmethod
    def _false_is_none(cls, value: Any) -> Any:
        """Read `false` as no pretrained weights."""
        return None if value is not None and pretrained(value) is False else value


SGD_DEFAULTS: Mapping[str, object] = {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}


def _with_sgd_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in the usual SGD of image classification: momentum 0.9, Nesterov, weight decay 5e-4."""
    filled = {**SGD_DEFAULTS, **values}
    no_momentum = str(filled["momentum"]) in ("0", "0.0") or "dampening" in values
    if no_momentum and "nesterov" not in values:
        filled["nesterov"] = False
    return filled


class Group(BaseModel):
    """Parameters with their own settings; keys that are not listed are options of the optimizer for them."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Free] = Field(init=False)
    match: TextOrTexts = Field(
        description="norm, bias, not_2d (all but matrices), or patterns of parameter names such as *norm*.bias"
    )
    name: Text | None = Field(
        default=None, description="another optimizer for them, named as in optimizer.name, which has its own options"
    )
    lr: Multiple = Field(default=1.0, description="rate in multiples of the schedule's: 64x")

    @model_validator(mode="before")
    @classmethod
    def _sgd_defaults(cls, values: Any) -> Any:
        is_sgd = isinstance(values, Mapping) and values.get("name") == "SGD"
        return _with_sgd_defaults(values) if is_sgd else values

    @property
    def options(self) -> dict[str, Any]:
        """Return the options that differ from those of the other parameters."""
        return dict(self.__pydantic_extra__ or {})


class Optimizer(BaseModel):
    """The base optimizer; keys that are not listed are options of the class of torch.optim."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Free] = Field(init=False)
    name: Text = Field(default="SGD", description="a class of torch.optim, or package.module:Class")
    lr: Rate = Field(description="learning rate that the schedule scales")
    no_decay: list[Text] = Field(
        default=[], description="parameters without weight decay: norm, bias, not_2d, or name patterns such as head.*"
    )
    groups: list[Group] = Field(
        default=[],
        description="parameters with their own rate, options or optimizer, each in the first group that matches",
    )
    layer_decay: LayerDecay = Field(
        default=1.0, description="factor of the rate from each block to the one before it; the head has the whole rate"
    )

    @model_validator(mode="before")
    @classmethod
    def _sgd_defaults(cls, values: Any) -> Any:
        is_sgd = isinstance(values, Mapping) and values.get("name", "SGD") == "SGD"
        return _with_sgd_defaults(values) if is_sgd else values

    @property
    def options(self) -> dict[str, Any]:
        """Return the arguments of the constructor beside parameters and learning rate."""
        return dict(self.__pydantic_extra__ or {})


DEFAULT_SCHEDULE = "cosine"


class _Schedule(BaseModel):
    """The learning rate over the run; each schedule takes keys of its own."""

    model_config = STRICT
    name: str = DEFAULT_SCHEDULE
    if TYPE_CHECKING:

        def __getattr__(self, key: str) -> Any:
            """Return the value of a key that the table of schedules declares."""

    @property
    def settings(self) -> dict[str, Any]:
        """Return the keys of this schedule with their values; a key that is left out has its default."""
        given = {name: (getattr(self, name), key.default) for name, key in SCHEDULES[self.name].keys.items()}
        return {name: default if value is None else value for name, (value, default) in given.items()}

    @property
    def lengths(self) -> list[tuple[str, Duration]]:
        """Return every duration that is given, with its key; of a list each item."""
        values = [(key, getattr(self, key)) for key in type(self).model_fields]
        items = [(key, item) for key, value in values for item in (value if isinstance(value, list) else [value])]
        return [(key, item) for key, item in items if isinstance(item, Duration)]

    @model_validator(mode="after")
    def _keys_of_this_schedule(self) -> _Schedule:
        refuse(misplaced_in_schedule({key: getattr(self, key) for key in self.model_fields_set}))
        return self


if TYPE_CHECKING:
    Schedule = _Schedule
else:  # with the names and keys of the table
    _NAME = Field(default=DEFAULT_SCHEDULE, description="shape of the learning rate over the run")
    Schedule = create_model(
        "Schedule",
        __base__=_Schedule,
        __doc__=_Schedule.__doc__,
        name=(Literal[tuple(SCHEDULES)], _NAME),
        **fields_of(SCHEDULES),
    )


def misplaced_in_schedule(values: Mapping[str, object]) -> list[Problem]:
    """Return a problem for each key that this schedule lacks or does not take; compare `kinds.misplaced`."""
    name = str(values.get("name", DEFAULT_SCHEDULE))
    if name not in SCHEDULES:
        return []
    kind = SCHEDULES[name]
    given = [key for key, value in values.items() if value is not None and key in Schedule.model_fields]
    takes = ", ".join(sorted(kind.keys)) or "no further keys"
    found = [
        Problem(key, f"the schedule {name} has no such key", f"{name} takes {takes}")
        for key in sorted(given)
        if key not in kind.keys and key != "name"
    ]
    for key in sorted(kind.required.keys() - given):
        hint = f"add `{key}:` to the section `schedule` ({kind.required[key].description})"
        found.append(Problem(key, f"is missing, the schedule {name} needs it", hint))
    return found


COLUMN = r"^\w+$"  # of metrics.csv
Column = Annotated[str, BeforeValidator(scalars.written)]  # no column is named like a truth value


class EarlyStopping(BaseModel):
    """Ends the run before its last epoch when a metric no longer improves."""

    model_config = STRICT
    patience: Count = Field(description="validations without a new best value after which the run ends")
    metric: Column = Field(
        default="val_loss",
        pattern=COLUMN,
        description="a loss or score of metrics.csv, of an average too, such as ema_val_loss",
    )


class Compile(BaseModel):
    """How torch.compile compiles the network."""

    model_config = STRICT
    backend: Text = Field(
        default="inductor",
        description="inductor, another backend that torch.compile knows, or package.module:attribute",
    )
    mode: Literal["default", "reduce-overhead", "max-autotune"] = Field(
        default="default", description="inductor: reduce-overhead uses CUDA graphs, max-autotune also tries kernels"
    )


def _add_short_forms(node: dict[str, Any]) -> None:
    """Let the JSON Schema of `train.compile` accept what `Train._short_compile` parses."""
    node["anyOf"] = [{"type": "boolean"}, {"type": "string", "minLength": 1}, *node["anyOf"]]


class Train(BaseModel):
    """How the network is trained."""

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
    grad_accum_steps: Count = Field(default=1, description="batches whose gradients make one optimizer step")
    sync_batchnorm: Flag = Field(
        default=False, description="several processes: BatchNorm normalises the whole batch, on GPUs only"
    )
    fsdp: Flag = Field(
        default=False, description="several processes: shard parameters, gradients, optimizer and averages over them"
    )
    loss: LossName | None = Field(
        default=None,
        description="cross_entropy, bce, focal, or package.module:function; default that of the task. Validation and"
        " test losses are always the task's",
    )
    focal_gamma: Rate | None = Field(default=None, description="focal: exponent of 1 - p; default 2")
    class_weights: ClassWeights = Field(
        default="none",
        description="of the loss: none, balanced (n / (K n_k) of the training samples; multilabel: those without the"
        " label / those with it), or a list",
    )
    label_smoothing: Number = Field(default=0.0, ge=0, lt=1, description="share of the target spread over all classes")
    clip_norm: Number = Field(default=0.0, ge=0, description="largest norm of the gradient; 0 for no clipping")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="auto: bf16 where the hardware computes in it natively and faster, else fp32"
    )
    device: Text = Field(
        default="auto",
        pattern=r"^[a-z]+(:\d+)?$",
        description="auto, cpu, cuda, cuda:1, mps, xpu, or another that torch has here",
    )
    averages_device: Literal["auto", "cpu"] = Field(
        default="auto", description="where averages lie: auto, beside the weights; cpu spares the memory of a GPU"
    )
    compile: Compile | None = Field(
        default=None,
        description="torch.compile: true (inductor), false, the name of a backend, or a section with backend and mode",
        json_schema_extra=_add_short_forms,
    )
    grad_checkpointing: Flag = Field(
        default=False,
        description="compute activations again in the backward pass instead of keeping them; of timm's networks",
    )
    deterministic: Flag = Field(default=False, description="refuse operations that are not reproducible on a GPU")
    threads: Threads = Field(default="auto", description="processor threads")
    max_time: TimeField | None = Field(default=None, description="end the run after this time, such as 2h")
    early_stopping: EarlyStopping | None = None
    keep_best: Column | None = Field(
        default=None,
        pattern=COLUMN,
        description="a loss or score of metrics.csv, such as val_loss: best.pt holds the raw weights of its best epoch",
    )

    @property
    def loss_text(self) -> str | None:
        """The loss that is trained, such as `bce` or `focal (gamma 2)`; None for that of the task."""
        gamma = 2.0 if self.focal_gamma is None else self.focal_gamma
        return f"focal (gamma {gamma:g})" if self.loss == "focal" else self.loss

    @field_validator("compile", mode="before")
    @classmethod
    def _short_compile(cls, value: Any) -> Any:
        """Parse `true` as the section with its defaults, `false` as none, and text as the backend."""
        if value is None or isinstance(value, Mapping | Compile):
            return value
        if isinstance(value, bool) or str(value).lower() in scalars.TRUTH_WORDS:
            return {} if scalars.flag(value) else None
        return {"backend": scalars.text(value)}


def _few_pixels(count: str | int) -> str | int:
    if isinstance(count, int) and count > MAX_SIDE:
        raise ValueError(f"`{count}` pixels are no side of an image: write at most {MAX_SIDE}, or auto")
    return count


Resize = Annotated[CountOrAuto, AfterValidator(_few_pixels), form_of("auto", least=1, most=MAX_SIDE)]


class Eval(BaseModel):
    """How weight sets are evaluated, during the run and after it."""

    model_config = STRICT
    batch_size: Count = Field(default=512, description="samples of one forward pass without gradients")
    image_size: SizeField | None = Field(
        default=None, description="what the network sees: 224 or [H, W]; default the last dataset.image_size"
    )
    resize: Resize = Field(
        default="auto",
        description="pixels of the shorter side before the crop; auto: the share that model.pretrained has, else"
        " those of the crop / 0.875",
    )
    crop: Literal["center", "none"] | None = Field(
        default=None,
        description="center: of the resized image; none: the whole image, resized to image_size; default that of"
        " model.pretrained, else center",
    )
    interpolation: Interpolation | None = Field(
        default=None, description="how images are resized: bilinear or bicubic; default dataset.interpolation"
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        default="fp32", description="of the forward pass; fp32: the scores that the shipped weights have in plain torch"
    )
    tta: Literal["none", "flip", "flip_translate"] = Field(
        default="none", description="final scores by the mean logits of views of an image: mirrored, also moved a pixel"
    )


class Snapshots(BaseModel):
    """Raw weights that are kept on disk during the run."""

    model_config = STRICT
    every: DurationField = Field(description="interval between snapshots; 1cycle: at each minimum")
    start: DurationField = Field(default=Duration.parse("0ep"), description="nothing before this point is kept")
    keep: CountOrAll = Field(default="all", description="all, or the last k")
    cumulative: Flag = Field(
        default=False,
        description="each with the mean of the weights after every step so far: `swa average --window` is then exact",
    )


def _add_empty(node: dict[str, Any]) -> None:
    """Let the JSON Schema of `snapshots` accept the empty section, see `Recipe._empty_is_none`."""
    node["anyOf"] = [{"type": "object", "maxProperties": 0}, *node["anyOf"]]


class Recipe(BaseModel):
    """A whole run. The smallest recipe has model.name, dataset.name, optimizer.lr and train.epochs."""

    model_config = STRICT
    name: Text | None = Field(
        default=None,
        pattern=rf"^{NAME_PATTERN}$",
        description=f"names the run folder: at most {MAX_NAME} letters, digits and . _ + -",
    )
    seed: Whole = Field(default=0, ge=0, lt=2**63, description="data order, augmentation and initial weights")
    task: TaskName = Field(
        default="classification",
        description="classification, multilabel, segmentation, regression, or package.module:attribute",
    )
    model: Model
    dataset: Dataset
    optimizer: Optimizer
    schedule: Schedule = Schedule()
    swa: Swa | None = None
    averages: dict[AverageName, Average] = {}
    swap: Swap | None = None
    snapshots: Snapshots | None = Field(default=None, json_schema_extra=_add_empty)
    train: Train
    eval: Eval = Eval()
    output: Output = Output()

    @field_validator("snapshots", mode="before")
    @classmethod
    def _empty_is_none(cls, values: Any) -> Any:
        """Read an empty section as no snapshots."""
        return None if isinstance(values, Mapping) and not values else values

    def values(self) -> dict[str, Any]:
        """Return the recipe as primitives, complete with its defaults; keys without a value are left out."""
        return self.model_dump(mode="json", exclude_none=True)

    @property
    def title(self) -> str:
        """Return the name of the run folder: `name`, or dataset-model."""
        derived = re.sub(r"[^A-Za-z0-9_.+-]+", "-", f"{self.dataset.name}-{self.model.name}")
        return self.name or derived[:MAX_NAME].strip("-.")

    @property
    def shows_views(self) -> bool:
        """Whether images are resized, or changed one by one."""
        augment = self.dataset.augment
        return self.dataset.image_size is not None or augment.rotate > 0 or augment.policy != "none"

    @property
    def all_averages(self) -> dict[str, Average]:
        """Return every average by name, `swa` first."""
        if self.swa is None:
            return dict(self.averages)
        return {"swa": Average(kind="mean", start=self.swa.start, every=self.swa.every), **self.averages}

    @property
    def average_scoring(self) -> Swa:
        """Return how averages are refreshed and evaluated, also for a run without the section `swa`."""
        return Swa(batchnorm=self.swap.batchnorm) if self.swap else self.swa or Swa()
