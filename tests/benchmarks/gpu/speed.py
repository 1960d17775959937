"""Speed on one card: `swa train` beside bare loops and scripts, by turns, in one process.

The time of an epoch is that of training alone, the first epoch left out: it compiles and takes memory.
"""

from __future__ import annotations

import statistics
import time
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import ImageFolder

from benchmarks import data, machine
from benchmarks.contestants.bare import Batch, network, ready_batches, train_epoch
from benchmarks.contestants.job import LEARNING_RATE, MOMENTUM, WEIGHT_DECAY
from benchmarks.figures import Figure, faster, rate
from benchmarks.gpu import airbench, cifar
from benchmarks.in_process import epochs_s, trained
from benchmarks.size import FULL, QUICK, Size
from benchmarks.topics import Topic, passes
from benchmarks.topics.averaging import BARS, shares_of_epoch, update_seconds
from benchmarks.topics.loop import BAR
from benchmarks.topics.photos import preset
from benchmarks.turns import by_turns, seconds
from benchmarks.voice import Voice
from swa_cli.data.image_file import num_cores
from swa_cli.engine.context import build_context
from swa_cli.engine.events import Events
from swa_cli.recipe import load

CIFAR_IMAGES = 50_000  # of the epoch that an update of averages is a share of
FEW = 8  # photos that a run needs to validate on; as a DataLoader drops its last batch, both train on the same number
LARGE = "torchvision:resnet50"
NO_SAVES = "output.save_every=1000ep"  # but the last: an epoch of a second would be one of saving, and no loop saves
SPEED_RECIPE = Path(__file__).parents[3] / "recipes/cifar10_speed.yaml"


@dataclass(frozen=True)
class Variant:
    """A network, its precision, and the mode of torch.compile, empty for none."""

    network: str
    precision: str
    mode: str = ""

    def __str__(self) -> str:
        return ", ".join(filter(None, (self.network.rpartition(":")[2], self.precision, self.mode)))


@dataclass(frozen=True)
class GpuSize(Size):
    """How much is measured on a card; whole batches, as contestants drop none."""

    variants: tuple[Variant, ...] = ()
    epochs: int = 4
    rounds: int = 1
    small_images: int = 51_200  # an epoch as long as that of CIFAR-10
    large_images: int = 5_120
    side: int = 224
    small_batch: int = 128
    large_batch: int = 128
    photos_on_card: int = 2_048
    workers: int = 0
    airbench_epochs: float = airbench.EPOCHS
    recipe_epochs: int = 13
    recipe_batch: int = 512
    cifar: Path | None = None
    out: Path = Path("bench")


SMALL = "preresnet20"
VARIANTS = (
    *(Variant(SMALL, precision) for precision in ("fp32", "bf16", "fp16")),
    Variant(SMALL, "bf16", "reduce-overhead"),
    Variant(LARGE, "bf16"),
    Variant(LARGE, "bf16", "default"),
)


def size_of(options: Namespace) -> GpuSize:
    """The size for a card, or for a look at whether it works."""
    common = {"device": options.device, "cifar": options.cifar, "out": options.out}
    if not options.quick:
        full = replace(FULL, pass_images=12_800)
        return GpuSize(**vars(full) | common | {"variants": VARIANTS, "workers": num_cores()})
    few: dict[str, Any] = {"epochs": 2, "rounds": 1, "small_images": 256, "large_images": 4, "side": 64}
    few |= {
        "large_batch": 2,
        "photos_on_card": 8,
        "airbench_epochs": 1,
        "recipe_epochs": 2,
        "recipe_batch": 64,
        "workers": 1,
        "pass_images": 256,
    }
    return GpuSize(**vars(QUICK) | common | few | {"variants": (Variant(SMALL, "bf16"), Variant(LARGE, "fp32"))})


def measure(options: Namespace) -> Iterator[dict[str, Any]]:
    """Yield, after each topic, the figures so far, and why topics are left out: one that fails takes no other along."""
    ends = time.monotonic() + 60 * options.minutes
    chosen = {name: topic for name, topic in TOPICS.items() if not options.only or name in options.only}
    voice = Voice({name: topic.quick_s if options.quick else topic.full_s for name, topic in chosen.items()})
    found: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for name, topic in chosen.items():
        if name == "airbench" and options.cifar is None:
            left_out[name] = "no --cifar FILE"
        elif not options.quick and time.monotonic() + topic.full_s > ends:
            left_out[name] = "the time was too short"
        else:
            voice.topic(name)
            try:
                figures, details = topic.measure(size_of(options), voice)
            except Exception as error:
                traceback.print_exc()
                left_out[name] = f"{type(error).__name__}: {error}"
            else:
                left_out |= details.pop("left_out", {})
                found[name] = {"figures": [asdict(figure) for figure in figures], "details": details}
        yield {"machine": machine.describe(options.device), "topics": found, "left_out": left_out}


# Training against a bare loop.


def training(size: GpuSize, voice: Voice) -> tuple[list[Figure], dict[str, Any]]:
    """Each variant of ours and of the bare loop, by turns; one that fails, as a compiler may, takes no other along."""
    figures, details = [], dict[str, Any]()
    for variant in size.variants:
        images = _images(variant, size)
        contestants = {"bare": partial(_bare, variant, size), "swa": partial(epochs_s, _ours(variant, size))}
        try:
            runs = by_turns(contestants, rounds=size.rounds, voice=voice)
        except Exception as error:
            traceback.print_exc()
            details.setdefault("left_out", {})[f"training, {variant}"] = f"{type(error).__name__}: {error}"
            continue
        rates = {name: images / _median(rounds) for name, rounds in runs.items()}
        figures.append(rate("training", f"training, {variant}", ours=rates["swa"], theirs=rates["bare"], bar=BAR))
        details[str(variant)] = runs
    return figures, details


def from_host(size: GpuSize, voice: Voice) -> tuple[list[Figure], dict[str, Any]]:
    """Ours with samples that come from the host batch by batch, against samples on the card."""
    figures, details = [], {}
    for name in dict.fromkeys(variant.network for variant in size.variants):
        variant = Variant(name, "bf16")
        contestants = {
            where: partial(epochs_s, [*_ours(variant, size), f"dataset.on_device={where}"])
            for where in ("true", "false")
        }
        runs = by_turns(contestants, rounds=size.rounds, voice=voice)
        rates = {where: _images(variant, size) / _median(rounds) for where, rounds in runs.items()}
        title = f"samples from the host against on the card, {variant}"
        figures.append(rate("from_host", title, ours=rates["false"], theirs=rates["true"]))
        details[name] = runs
    return figures, details


def large_images(*, train: int, test: int, side: int) -> dict[str, Any]:
    """A dataset factory of noise of the size of photos, uint8 and in memory."""
    draw = torch.Generator().manual_seed(0)
    splits = {
        name: TensorDataset(
            torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=draw),
            torch.arange(count) % data.NUM_CLASSES,
        )
        for name, count in (("train", train), ("test", test))
    }
    return {**splits, "num_classes": data.NUM_CLASSES, "mean": data.MEAN, "std": data.STD}


def _images(variant: Variant, size: GpuSize) -> int:
    return size.large_images if variant.network == LARGE else size.small_images


def _batch_size(variant: Variant, size: GpuSize) -> int:
    return size.large_batch if variant.network == LARGE else size.small_batch


def _ours(variant: Variant, size: GpuSize) -> list[str]:
    """The changes to the benchmark's recipe."""
    words = [f"model.name={variant.network}", f"train.precision={variant.precision}", f"train.epochs={size.epochs}"]
    words += [f"train.device={size.device}", f"train.batch_size={_batch_size(variant, size)}", NO_SAVES]
    words += [f"train.compile.mode={variant.mode}"] if variant.mode else []
    counts = f"train: {_images(variant, size)}, test: {_batch_size(variant, size)}"
    if variant.network != LARGE:
        return [*words, f"dataset.args={{{counts}}}"]
    augment = "dataset.augment={crop: 4, flip: true}"
    return [*words, f"dataset.name={__name__}:large_images", f"dataset.args={{{counts}, side: {size.side}}}", augment]


def _bare(variant: Variant, size: GpuSize) -> list[float]:
    """Seconds of each epoch but the first of a loop over batches that lie ready on the card."""
    count, batch_size = _images(variant, size), _batch_size(variant, size)
    if variant.network == LARGE:
        images, labels = large_images(train=count, test=0, side=size.side)["train"].tensors
    else:
        images, labels = data.arrays(count, 0)["train"]
    batches = ready_batches(images, labels, batch_size=batch_size, device=size.device)
    model, optimizer = _network(variant, size.device)
    return [
        seconds(lambda: train_epoch(model, optimizer, batches, precision=variant.precision)) for _ in range(size.epochs)
    ][1:]


def _network(variant: Variant, device: str) -> tuple[Callable[[Tensor], Tensor], torch.optim.Optimizer]:
    """The network in training mode, compiled if the variant says so, and a fused optimizer."""
    model: nn.Module = network(variant.network).to(device).train()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, fused=True
    )
    if not variant.mode:
        return model, optimizer
    compiled: Callable[[Tensor], Tensor] = torch.compile(model, mode=variant.mode)
    return compiled, optimizer


# Averages.


def averaging(size: GpuSize, voice: Voice) -> tuple[list[Figure], dict[str, Any]]:
    """One update of one average and of ten, as shares of an epoch, and of ten EMAs as a share of a step."""
    variant = Variant(SMALL, "bf16")
    voice.turn("updates", number=1, rounds=1)
    model = network(SMALL).to(size.device)
    update_s = {number: update_seconds(number, model) for number in BARS}
    emas_s = update_seconds(10, model, kind="ema", decay=0.99)
    step_s = statistics.median(_bare(variant, size)) * size.small_batch / size.small_images
    epoch_s = step_s * CIFAR_IMAGES / size.small_batch
    note = "time of an update that is waited for, of an epoch of 50,000 images of the bare loop"
    figures = shares_of_epoch(update_s, epoch_s, note=note)
    share = 100 * emas_s / step_s
    figures.append(
        Figure("averaging", "ten EMAs, every step", 1e3 * emas_s, 1e3 * step_s, "ms", share, "%", note=f"{variant}")
    )
    return figures, {"update_s": update_s, "emas_s": emas_s, "step_s": step_s}


# The method of airbench94.


def airbench94(size: GpuSize, voice: Voice) -> tuple[list[Figure], dict[str, Any]]:
    """Seconds of training and accuracy of the recipe cifar10_speed and of the plain script, on the same images."""
    assert size.cifar is not None
    root = cifar.folder(size.cifar, size.out)
    dataset = f"name: image_folder, root: {root}, val: 0, cache: ram, workers: {size.workers}"
    words = [f"dataset={{{dataset}, augment: {{translate: {airbench.SHIFT}, flip: alternating}}}}"]
    words += [f"train.device={size.device}", f"train.epochs={size.recipe_epochs}", "swa.eval_every=100ep"]
    words += [f"train.batch_size={size.recipe_batch}", NO_SAVES]
    context = build_context(load.load(SPEED_RECIPE, words).recipe, Events())
    splits = {name: (context.split(name).images, context.split(name).labels) for name in ("train", "test")}
    precision = context.hardware.precision
    script = airbench.Script(splits, device=size.device, epochs=size.airbench_epochs)
    contestants: Mapping[str, Callable[[], tuple[float, float]]] = {
        "plain script": partial(script.train, 0, precision=precision),
        "swa": partial(_recipe_of_airbench, words),
    }
    runs = by_turns(contestants, rounds=1 + size.rounds, voice=voice)  # the first one takes memory
    train_s = {name: statistics.median(each for each, _ in rounds[1:]) for name, rounds in runs.items()}
    accuracy = {name: 100 * statistics.mean(each for _, each in rounds[1:]) for name, rounds in runs.items()}
    scores = ", ".join(f"{name} {value:.2f} %" for name, value in accuracy.items())
    note = f"training alone, {precision}; accuracy of {len(splits['test'][1]):,} images: {scores}"
    name = "the recipe cifar10_speed against a script of airbench94"
    return [faster("airbench", name, ours=train_s["swa"], theirs=train_s["plain script"], note=note)], runs


def _recipe_of_airbench(words: Sequence[str]) -> tuple[float, float]:
    """Seconds of the epochs, and test accuracy of the average."""
    history, result = trained(SPEED_RECIPE, words)
    return sum(row["seconds"] for row in history), result["weights"]["swa"]["accuracy"]


# Photos.


def photos(size: GpuSize, voice: Voice) -> tuple[list[Figure], dict[str, Any]]:
    """Training on JPEG files: ours against torchvision's ImageFolder in a DataLoader, with as many processes."""
    root = data.photo_folder(size.photos_on_card + FEW, voice=voice, folder=size.out / "photos")
    variant = Variant(LARGE, "bf16")
    augment = f"image_size: {size.side}, augment: {{flip: true, random_resized_crop: true}}"
    dataset = f"name: image_folder, root: {root}, val: {FEW}, cache: none, workers: {size.workers}, {augment}"
    words = [word for word in _ours(variant, size) if not word.startswith("dataset.")]
    contestants = {
        "DataLoader": partial(_photos_by_torchvision, root, variant, size),
        "swa": partial(epochs_s, [*words, f"dataset={{{dataset}}}"]),
    }
    runs = by_turns(contestants, rounds=size.rounds, voice=voice)
    rates = {name: size.photos_on_card / _median(rounds) for name, rounds in runs.items()}
    title = f"photos from JPEG files, {size.workers} processes, {variant}"
    return [rate("photos", title, ours=rates["swa"], theirs=rates["DataLoader"])], runs


def _photos_by_torchvision(root: Path, variant: Variant, size: GpuSize) -> list[float]:
    """Seconds of each epoch but the first with the training preset of torchvision's references."""
    loader = DataLoader(
        ImageFolder(str(root / "train"), preset(size.side)),
        batch_size=_batch_size(variant, size),
        shuffle=True,
        drop_last=True,
        num_workers=size.workers,
        pin_memory=size.device == "cuda",
        persistent_workers=True,
    )
    model, optimizer = _network(variant, size.device)

    def batches() -> Iterator[Batch]:
        for images, labels in loader:
            moved = images.to(size.device, non_blocking=True, memory_format=torch.channels_last)
            yield moved, labels.to(size.device, non_blocking=True)

    return [
        seconds(lambda: train_epoch(model, optimizer, batches(), precision=variant.precision))
        for _ in range(size.epochs)
    ][1:]


def _median(rounds: Sequence[Sequence[float]]) -> float:
    return statistics.median(chain.from_iterable(rounds))


TOPICS: Mapping[str, Topic] = {
    "training": Topic(training, 60, 270),
    "passes": Topic(passes.measure, 20, 30),
    "averaging": Topic(averaging, 5, 15),
    "from_host": Topic(from_host, 30, 35),
    "airbench": Topic(airbench94, 60, 60),
    "photos": Topic(photos, 30, 80),
}
