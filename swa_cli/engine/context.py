"""Recipe, data and hardware: what every command works on.

`build_context` chooses the hardware, reads the data and checks them against the recipe. The packages below get plain
arguments and never see a recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from swa_cli import signals
from swa_cli.averaging.batchnorm import BatchNormUpdate, update_batchnorm
from swa_cli.averaging.bn_layers import bn_layers, may_have_statistics
from swa_cli.averaging.model_state import in_mode
from swa_cli.data import batches, datasets, device_decoding, pytree, sources
from swa_cli.data.augment import Augment
from swa_cli.data.batches import Batches
from swa_cli.data.class_labels import DELIMITERS, how_to_have_several
from swa_cli.data.color_jitter import ColorJitter
from swa_cli.data.datasets import IMAGENET_MEAN, IMAGENET_STD
from swa_cli.data.packed import Packing
from swa_cli.data.randomness import derive_seed
from swa_cli.engine import failures, network, pretrained
from swa_cli.engine import hardware as hardware_choice
from swa_cli.engine.class_balance import class_weights
from swa_cli.engine.distributed import ALONE, World
from swa_cli.engine.events import SILENT, Bar, Events
from swa_cli.engine.hardware import Hardware
from swa_cli.engine.pretrained import Pretrained
from swa_cli.engine.views import framing, random_view, views_of
from swa_cli.errors import RecipeError, UserError
from swa_cli.metrics import tasks
from swa_cli.metrics.tasks import Task, TrainingLoss
from swa_cli.models.freezing import freeze
from swa_cli.recipe import schema
from swa_cli.recipe.image_sizes import epochs_by_size
from swa_cli.recipe.plan import image_problems
from swa_cli.recipe.schema import Recipe
from swa_cli.recipe.swap import Phase, phase_of
from swa_cli.units import some_of

INITIAL_INPUTS = 5000  # as in airbench (Jordan 2024)
SHARE_OF_DEVICE = 0.25  # of the free memory, that samples may take: the rest is for weights, activations and averages


@dataclass(frozen=True)
class Context:
    """Recipe, data and hardware, and the events of the work on them."""

    recipe: Recipe
    task: Task
    hardware: Hardware
    source: sources.Source
    events: Events = SILENT
    world: World = ALONE
    pretrained: Pretrained | None = None  # None also for weights that have been trained
    is_resident: bool = False  # the samples lie on the device, see `_lies_on_device`
    not_held_out: str | None = None  # why weights that were opened may have been trained on its validation images

    @cached_property
    def phase(self) -> Phase:
        """The part of the recipe that is trained here: its epochs and batches."""
        return phase_of(self.recipe)

    @cached_property
    def loss(self) -> TrainingLoss:
        """The loss that is trained."""
        train, weights = self.recipe.train, class_weights(self.recipe, self.source)
        return tasks.training_loss(
            self.task,
            name=train.loss,
            label_smoothing=train.label_smoothing,
            class_weights=None if weights is None else weights.to(self.hardware.device),
            focal_gamma=train.focal_gamma,
        )

    @property
    def seed(self) -> int:
        """The seed of data order, augmentation and dropout: each worker of a SWAP run has its own.

        Initial weights, the validation split and the BatchNorm pass use the recipe's seed in all of them.
        """
        swap, seed = self.recipe.swap, self.recipe.seed
        return seed if swap is None or swap.worker is None else derive_seed(seed, "worker", swap.worker)

    @property
    def eval_hardware(self) -> Hardware:
        """The hardware that weight sets are scored on: `hardware` in the precision `eval.precision`."""
        return replace(self.hardware, precision=self.recipe.eval.precision)

    @property
    def final_task(self) -> Task:
        """The task of the final scores: with `eval.tta`, which validation after an epoch does not use."""
        return replace(self.task, tta=self.recipe.eval.tta)

    def memory(self) -> AbstractContextManager[None]:
        """Name the training batch that did not fit into memory while the block runs."""
        return failures.memory(f"{'swap' if self.phase.before else 'train'}.batch_size", self.phase.batch_size)

    def split(self, name: str) -> sources.Split:
        """Return a split by its name.

        Raises:
            UserError: The dataset has no such split, or validation images were not held out from the weights.
        """
        split: sources.Split | None = getattr(self.source, name)
        if name == "val" and self.not_held_out is not None:
            raise UserError(
                self.not_held_out,
                hint="keep dataset.val, dataset.val_seed and dataset.stratify of the run; dataset.val=0 scores test"
                " images alone",
            )
        if split is None:
            present = [other for other in ("train", "val", "test") if getattr(self.source, other) is not None]
            scored = f"use --split {' or '.join(reversed(present))}"
            raise UserError(
                f"{self.source.name} has no {name} split",
                hint="name a dataset.root with training images" if name == "train" else scored,
            )
        return split

    @property
    def input(self) -> dict[str, Any]:
        """The inputs and outputs of the network: how an image is prepared for it, classes, outputs.

        The shorter side is resized to `resize` pixels, and the center of `size` is cropped; without a `crop` the whole
        image is resized to `size`. Mean and std are of pixels scaled to [0, 1]. `data` is what the network was trained
        and scored on, see `fingerprint`.
        """
        source, data = self.source, {split: asdict(found) for split, found in self.fingerprints().items()}
        return {
            "channels": source.channels,
            "size": list(source.size),
            **framing(self.recipe),
            "mean": list(source.mean),
            "std": list(source.std),
            "classes": list(source.class_names),
            "outputs": source.num_classes or None,
            "data": data,
        }

    @property
    def origin(self) -> dict[str, Any]:
        """What every checkpoint tells of its run: the recipe with its defaults, as primitives, and `input`."""
        return {"recipe": self.recipe.values(), "input": self.input}

    def require_readable(self) -> None:
        """Look at the streamed images of validation and test before a run, which reads them after long work.

        One process per machine looks, unless `dataset.skip_broken` has had a look.

        Raises:
            UserError: Some cannot be read.
        """
        if not self.recipe.dataset.skip_broken and self.world.local_rank == 0:
            with self.events.loading() as progress:
                sources.require_readable(self.source, progress=progress)

    def fingerprints(self) -> dict[str, sources.Fingerprint]:
        """Return the fingerprint of each split as it is when this is first called, which looks at each file."""
        with self.events.loading() as progress:
            return self.source.data(progress)

    def require_same_data(self) -> None:
        """Compare the data of all processes, which take the parts of a batch from splits and orders of their own.

        Raises:
            UserError: They differ.
        """
        if self.world.size == 1:
            return
        everyone = self.world.gathered(self.fingerprints())
        odd = next((rank for rank, found in enumerate(everyone) if found != everyone[0]), None)
        if odd is None:
            return
        one, other = everyone[0], everyone[odd]
        split = next(name for name in (*one, *other) if one.get(name) != other.get(name))
        numbers = [f"{found[split].samples:,}" if split in found else "no" for found in (one, other)]
        what = f"{numbers[0]} and {numbers[1]} {split} samples"
        if numbers[0] == numbers[1]:
            what = f"{numbers[0]} {split} samples each, but not the same ones"
        raise UserError(
            f"dataset: processes 0 and {odd} have {what}",
            hint="let all machines read the same files, and a dataset of your own be the same in every process",
        )

    def scoring_split(self) -> str:
        """Return the split of the final scores: test, else val.

        Raises:
            UserError: There is neither.
        """
        if self.source.test is not None:
            return "test"
        if self.source.val is not None:
            return "val"
        raise UserError(
            f"{self.source.name} has no test split and dataset.val is 0: nothing to score on",
            hint="set dataset.val=10%",
        )

    def plain_batches(self, split: str) -> Batches:
        """Return all samples of a split in order, without augmentation."""
        return batches.plain_batches(self.split(split), batch_size=self.recipe.eval.batch_size, **self._format())

    def training_batches(self, epoch: int, *, start: int = 0) -> Batches:
        """Return the augmented batches of an epoch from batch `start` on, each a function of (seed, epoch, position).

        Each process has its part of every batch.
        """
        recipe, train = self.recipe, self.split("train")
        whole = batches.epoch_batches(
            train,
            seed=self.seed,
            epoch=epoch,
            batch_size=self.phase.batch_size,
            augment=augment_of(recipe),
            start=start,
            num_classes=self.source.num_classes,
            view=random_view(recipe, epoch=self.phase.before + epoch, own=train.view),
            repeats=recipe.dataset.repeats,
            balanced=recipe.dataset.sampler == "balanced",
            **self._format(),
        )
        return whole.part(self.world.rank, size=self.world.size)

    def epochs_by_size(self, *, epochs: int) -> list[tuple[int, int]]:
        """Return the first one, and the number, of the next `epochs` that train on each size of images."""
        if self.recipe.dataset.image_size is None:
            return [(1, epochs)]
        return epochs_by_size(self.recipe, before=self.phase.before, epochs=epochs)

    def statistics_batches(self) -> Batches:
        """Return the batches of the BatchNorm pass, which are always the same."""
        recipe, train = self.recipe, self.split("train")
        settings = recipe.average_scoring.batchnorm
        return batches.statistics_batches(
            train,
            seed=recipe.seed,
            batch_size=recipe.train.batch_size,
            augment=augment_of(recipe) if settings.augment else Augment(),
            samples=settings.num_samples(len(train)),
            num_classes=self.source.num_classes,
            view=random_view(recipe, epoch=recipe.train.epochs, own=train.view) if settings.augment else None,
            balanced=recipe.dataset.sampler == "balanced",
            **self._format(),
        )

    def fixed_batches(self, split: str, *, samples: int | None) -> Batches:
        """Return the first samples of a fixed shuffle of a split, without augmentation; None for all."""
        return batches.statistics_batches(
            self.split(split),
            seed=self.recipe.seed,
            batch_size=self.recipe.eval.batch_size,
            augment=Augment(),
            samples=samples,
            **self._format(),
        )

    def initial_inputs(self) -> Any:
        """Return some thousand training inputs, such as (N, C, H, W), without augmentation, for initial weights."""
        few = self.fixed_batches("train", samples=INITIAL_INPUTS)
        return pytree.concatenate([inputs for inputs, _ in few])

    def probe(self) -> tuple[Any, Any]:
        """Return a dummy batch of two samples on the device: zeros for images, else the first sample twice."""
        inputs, targets = (
            pytree.map_tensors(values, lambda part: torch.cat([part, part]).to(self.hardware.device))
            for values in self.source.example
        )
        if self.source.channels is not None:
            inputs = torch.zeros(inputs.shape, device=self.hardware.device)
        return inputs, targets

    def build_model(self) -> nn.Module:
        """Build the network with its initial weights, a function of the seed, on the device and in training mode.

        Lazy layers have found their sizes.

        Raises:
            UserError: The recipe does not describe one, or a lazy layer is not reached by a forward pass.
        """
        self.hardware.seed(self.recipe.seed, "initial weights")
        model = network.build_network(
            self.recipe,
            num_classes=self.source.num_classes or None,
            in_channels=self.source.channels,
            families=self.task.families,
        )
        model.to(self.hardware.device)
        if network.is_lazy(model):
            args, kwargs = self.task.batch_to_args(self.probe()[0])
            network.find_sizes(model, args, kwargs, name=self.recipe.model.name)
        if self.recipe.train.grad_checkpointing:
            network.keep_fewer_activations(model, name=self.recipe.model.name)
        if self.recipe.model.freeze and self.recipe.model.unfreeze is None:
            freeze(model, network.names_to_freeze(model, self.recipe.model.freeze))
        network.channels_last(model).train()
        return model

    def refresh_batchnorm(
        self, model: nn.Module, *, name: str, check: Callable[[], None] = signals.check, bar: Bar | None = None
    ) -> BatchNormUpdate:
        """Recompute the BatchNorm statistics as the recipe says; a network without any reads no image.

        Args:
            model: The network; its buffers are changed.
            name: The name of its weights.
            check: Called after each batch.
            bar: The bar of a larger piece of work; by default this pass has its own.

        Raises:
            UserError: A batch does not fit into memory.
        """
        with in_mode({module: module.training for module in model.modules()}):
            model.train()  # what it freezes may depend on the weights that it was given since
            return self._refresh(model, name=name, check=check, bar=bar)

    def _refresh(self, model: nn.Module, *, name: str, check: Callable[[], None], bar: Bar | None) -> BatchNormUpdate:
        method, length = self.recipe.average_scoring.batchnorm.method, self.refresh_length(model)
        if not length:
            return update_batchnorm((), model, method=method)
        share = self.world.share(self.statistics_batches())
        own = self.events.progress(f"BatchNorm of {name}", length) if bar is None else nullcontext(bar)
        memory = failures.memory("train.batch_size", self.recipe.train.batch_size)
        with memory, own as shown, self.hardware.autocast():
            return update_batchnorm(
                share.counted(shown, check),
                model,
                method=method,
                device=self.hardware.device,
                batch_to_args=self.task.batch_to_args,
                gather=share.gathered,
            )

    def refresh_length(self, model: nn.Module) -> int:
        """Return the number of batches in all passes of `refresh_batchnorm`; 0 without BatchNorm."""
        if not may_have_statistics(model):
            return 0
        exact = self.recipe.average_scoring.batchnorm.method == "exact"
        return self.world.share(self.statistics_batches()).rounds * (max(len(bn_layers(model)), 1) if exact else 1)

    def _format(self) -> dict[str, Any]:
        source = self.source
        return {
            "mean": source.mean,
            "std": source.std,
            "device": self.hardware.device,
            "is_resident": self.is_resident,
            "workers": self.recipe.dataset.workers,
            "decodes_on_device": self.recipe.dataset.decode == "device",
            "error": failures.run_error,
        }


def augment_of(recipe: Recipe) -> Augment:
    """Return the augmentation of whole batches that the recipe asks for; the rest of its section is in the views."""
    values = recipe.dataset.augment.model_dump()
    own = {field.name: values[field.name] for field in fields(Augment)}
    return Augment(**own | {"jitter": ColorJitter(**values["jitter"])})


def constants(given: str | Sequence[float], *, imagenet: tuple[float, ...]) -> sources.Constants:
    """Return the mean or std that `dataset.mean` or `dataset.std` gives."""
    if isinstance(given, str):
        return imagenet if given == "imagenet" else "auto"
    return tuple(given)


def load_source(
    recipe: Recipe,
    *,
    classes: Sequence[str] | None = None,
    packing: Packing = "read",
    expected: sources.PerChannel | None = None,
    tell: Callable[[str], object] = lambda text: None,
    progress: Callable[[str, int, int], None],
) -> sources.Source:
    """Read the data of a recipe, see `sources.load`."""
    dataset = recipe.dataset
    return sources.load(
        dataset.name,
        root=dataset.root,
        val=dataset.val,
        stratify=dataset.stratify,
        seed=recipe.seed,
        val_seed=dataset.val_seed,
        cache="none" if dataset.decode == "device" else dataset.cache,
        download=dataset.download,
        workers=dataset.workers,
        args=dataset.args,
        classes=classes,
        views=views_of(recipe) if recipe.shows_views else sources.AS_THEY_ARE,
        mean=constants(dataset.mean, imagenet=IMAGENET_MEAN),
        std=constants(dataset.std, imagenet=IMAGENET_STD),
        expected=expected,
        skip_broken=dataset.skip_broken,
        packing=packing,
        tell=tell,
        keep_in=Path(recipe.output.root) / ".index",
        progress=progress,
    )


def build_context(
    recipe: Recipe,
    events: Events,
    *,
    recorded: Mapping[str, Any] | None = None,
    begun: Mapping[str, Any] | None = None,
    world: World = ALONE,
    needs_training: bool = True,
    packing: Packing = "read",
) -> Context:
    """Choose the hardware and load the data.

    Args:
        recipe: The recipe.
        events: They tell warnings, and show the progress of reading data.
        recorded: `input` of a checkpoint: its weights fit this normalisation and these classes only.
        begun: `environment` of the run that continues, see `hardware.choose`.
        world: The processes of the run.
        needs_training: Refuse data without a training split; else they may lack it if there is a checkpoint.
        packing: What is done where images are to be packed and are not yet, see `sources.load`.

    Raises:
        RecipeError: Images cannot be shown as the recipe says.
        UserError: Data or device are missing, or the data are not those of the checkpoint.
    """
    found = None
    if recorded is None and recipe.model.pretrained is not None:  # a recorded recipe has the inputs already
        found = pretrained.find(recipe)
        recipe = pretrained.with_inputs(recipe, found)
    expected = None if found is None else found.inputs.constants
    if problems := image_problems(recipe):
        raise RecipeError(problems)
    settings, task = recipe.train, tasks.find(recipe.task)
    hardware = hardware_choice.choose(
        device=settings.device,
        precision=settings.precision,
        threads=settings.threads,
        deterministic=settings.deterministic,
        begun=begun,
        world=world,
        shard=settings.fsdp,
    )
    hardware_choice.require_precision("eval.precision", recipe.eval.precision, hardware.device, instead="fp32")
    classes = None if needs_training or recorded is None else recorded["classes"]
    with events.loading() as progress, world.local_rank0_first():
        source = load_source(
            recipe, classes=classes, packing=packing, expected=expected, tell=events.note, progress=progress
        )
    _require_labels(task, source, recipe)
    if recipe.dataset.decode == "device":
        _require_device_decoding(source, hardware)
    for sentence in (*source.warnings, *(() if found is None else found.warnings)):
        events.warning(sentence)
    if recorded is not None:
        source = _as_recorded(source, recorded, recipe)
        with events.loading() as progress:
            sentences = sources.changes(recorded.get("data", {}), source.data(progress), name=recipe.dataset.name)
        for sentence in sentences:
            events.warning(sentence)
    is_resident = _lies_on_device(recipe, source, hardware)
    return Context(recipe, task, hardware, source, events, world, found, is_resident)


def _lies_on_device(recipe: Recipe, source: sources.Source, hardware: Hardware) -> bool:
    """Whether the samples are kept on the GPU, as `dataset.on_device` says; images that change one by one are not.

    Raises:
        UserError: They should be, and cannot.
    """
    wanted, device = recipe.dataset.on_device, hardware.device
    if wanted is False or device.type == "cpu":
        return False
    obstacle = _obstacle_to_device(recipe, source)
    if wanted is True and obstacle:
        raise UserError(f"dataset.on_device: {obstacle}", hint="set dataset.on_device=auto")
    free = hardware_choice.free_memory(device)
    fits = free is not None and source.num_bytes <= SHARE_OF_DEVICE * free
    return not obstacle and (wanted is True or fits)


def _obstacle_to_device(recipe: Recipe, source: sources.Source) -> str:
    if recipe.shows_views:
        return "its images are resized, or changed one by one, before they lie in a batch"
    return "" if source.num_bytes else f"the samples of {source.name} are streamed"


def _require_device_decoding(source: sources.Source, hardware: Hardware) -> None:
    """Require a device that decodes JPEG files, and photos for it.

    Raises:
        UserError: There are none.
    """
    device_decoding.require_decoder(hardware.device)
    splits = [split for split in (source.train, source.val, source.test) if split is not None]
    if not all(isinstance(split.dataset, sources.FileDataset) for split in splits):
        raise UserError(
            f"dataset.decode: the samples of {source.name} are not image files", hint="set dataset.decode=cpu"
        )


def _require_labels(task: Task, source: sources.Source, recipe: Recipe) -> None:
    """Require labels that the task learns, and inputs that the augmentation can change."""
    if task.target not in (None, source.target):
        raise UserError(
            f"task: {recipe.task} learns labels that are {task.target}, and those of {source.name} are {source.target}",
            hint=_how_to_fit(task, source),
        )
    if source.channels is None and recipe.dataset.augment != schema.Augment():
        raise UserError(
            f"dataset.augment: changes images, and {source.name} gives {source.describe_inputs()}",
            hint="leave it out; the dataset may change its own samples at random",
        )
    if source.channels is not None:
        augment_of(recipe).require_fitting(source.example[0][0], name=source.name)


def _how_to_fit(task: Task, source: sources.Source) -> str:
    """Return the hint for a dataset whose labels the task does not learn."""
    args = datasets.find(source.name).args
    if task.target == "multilabel" and args is None:  # user code
        return f'let {source.name} return "target": "multilabel", with 0 or 1 per class as the label of a sample'
    if task.target == "multilabel" and args is not None and "label_delimiter" in args:
        option = how_to_have_several(source.class_names, default=DELIMITERS[0])
        return f"say what is between two labels: {option}, or name columns of 0 and 1 in dataset.args.labels"
    fitting = [name for name, other in tasks.TASKS.items() if other.target == source.target]
    return f"set task: {' or '.join(fitting) or 'package.module:attribute'}, or name another dataset"


def _as_recorded(source: sources.Source, recorded: Mapping[str, Any], recipe: Recipe) -> sources.Source:
    """Return the data with the normalisation of a checkpoint; refuse another one that is given, and other data."""
    for key, found in (("channels", source.channels), ("classes", list(source.class_names))):
        if found != recorded[key]:
            known = _short(recorded[key])
            raise UserError(
                f"dataset: {source.name} has {key} {_short(found)}, the weights were trained on {known}",
                hint="name the dataset that the weights belong to",
            )
    require_recorded_constants(recipe, recorded)
    return replace(source, mean=tuple(recorded["mean"]), std=tuple(recorded["std"]))


def require_recorded_constants(recipe: Recipe, recorded: Mapping[str, Any]) -> None:
    """Refuse a mean or std of the recipe that is not that of the `recorded` input of a checkpoint.

    Raises:
        UserError: One is.
    """
    dataset = recipe.dataset
    for key, given, imagenet in (("mean", dataset.mean, IMAGENET_MEAN), ("std", dataset.std, IMAGENET_STD)):
        if (values := constants(given, imagenet=imagenet)) != "auto" and list(values) != recorded[key]:
            raise UserError(
                f"dataset.{key}: the weights were trained on images normalized with {recorded[key]}",
                hint=f"set dataset.{key}=auto, which takes that of the checkpoint",
            )


def _short(value: Any) -> str:
    return f"{len(value)} ({some_of(value)})" if isinstance(value, list) else str(value)
