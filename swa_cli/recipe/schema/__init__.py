"""The recipe as a frozen value: one class per section.

The description of a field is its documentation. Values are typed here and not by YAML: the loader hands over the text
of each scalar (`scalars.Plain`), so `1e-4` is a number wherever a number is wanted and `no` is never a truth value. The
default of a key that a file leaves out stands here, or in the tables of schedules and kinds. Checks between sections,
and those that need the size of the data, are in `plan`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, field_validator

from swa_cli.recipe import scalars
from swa_cli.recipe.schema.averages import Average, Swa, Swap
from swa_cli.recipe.schema.dataset import MAX_SIDE, Augment, Dataset, Interpolation, SizeField
from swa_cli.recipe.schema.optimizer import SGD_DEFAULTS, Group, Optimizer, Schedule
from swa_cli.recipe.values import (
    MAX_NAME,
    NAME_PATTERN,
    STRICT,
    Argument,
    AverageName,
    Count,
    CountOrAll,
    CountOrAuto,
    Duration,
    DurationField,
    DurationOrTime,
    Flag,
    LoggerName,
    Number,
    TaskName,
    Text,
    Threads,
    TimeField,
    Whole,
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
]


class Model(BaseModel):
    """The network to train."""

    model_config = STRICT
    name: Text = Field(description="zoo name, torchvision:NAME, timm:NAME, or package.module:Attribute")
    args: dict[str, Argument] = Field(
        default={}, description="constructor arguments; num_classes and in_channels are filled in"
    )


class EarlyStopping(BaseModel):
    """Ends the run before its last epoch when a metric no longer improves."""

    model_config = STRICT
    patience: Count = Field(description="validations without a new best value after which the run ends")
    metric: Text = Field(default="val_loss", description="a column of metrics.csv: a loss or an accuracy")


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
    label_smoothing: Number = Field(default=0.0, ge=0, lt=1, description="share of the target spread over all classes")
    clip_norm: Number = Field(default=0.0, ge=0, description="largest norm of the gradient; 0 for no clipping")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="auto: bf16 where the hardware computes in it natively and faster, else fp32"
    )
    device: Text = Field(
        default="auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto, cpu, cuda, cuda:1, mps"
    )
    compile: Compile | None = Field(
        default=None,
        description="torch.compile: true (inductor), false, the name of a backend, or a section with backend and mode",
        json_schema_extra=_add_short_forms,
    )
    deterministic: Flag = Field(default=False, description="refuse operations that are not reproducible on a GPU")
    threads: Threads = Field(default="auto", description="processor threads")
    max_time: TimeField | None = Field(default=None, description="end the run after this time, such as 2h")
    early_stopping: EarlyStopping | None = None

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


Resize = Annotated[CountOrAuto, AfterValidator(_few_pixels)]


class Eval(BaseModel):
    """How weight sets are evaluated, during the run and after it."""

    model_config = STRICT
    batch_size: Count = Field(default=512, description="samples of one forward pass without gradients")
    image_size: SizeField | None = Field(
        default=None, description="what the network sees: 224 or [H, W]; default the last dataset.image_size"
    )
    resize: Resize = Field(
        default="auto", description="pixels of the shorter side before the crop; auto: those of the crop / 0.875"
    )
    crop: Literal["center", "none"] = Field(
        default="center", description="center: of the resized image; none: the whole image, resized to image_size"
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


class Output(BaseModel):
    """Where results are written."""

    model_config = STRICT
    root: Text = Field(default="runs", description="folder of the run folders")
    save_every: DurationOrTime = Field(
        default=Duration.parse("1ep"), description="interval between saves of last.pt: 1ep, 200step, or a time as 10min"
    )
    loggers: list[LoggerName] = Field(
        default=[],
        description="take the rows of metrics.csv too: tensorboard (pip install 'swa-cli[tensorboard]')"
        " or package.module:attribute",
    )
    plots: Flag = Field(default=False, description="draw all pictures of `swa plot` at the end of the run")


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
    def all_averages(self) -> dict[str, Average]:
        """Return every average by name, `swa` first."""
        if self.swa is None:
            return dict(self.averages)
        return {"swa": Average(kind="mean", start=self.swa.start, every=self.swa.every), **self.averages}

    @property
    def average_scoring(self) -> Swa:
        """Return how averages are refreshed and evaluated, also for a run without the section `swa`."""
        return Swa(batchnorm=self.swap.batchnorm) if self.swap else self.swa or Swa()
