"""`swa predict`: what a checkpoint says of image files: classes, labels with their probabilities, masks, or numbers.

The files stream through: loader processes decode them and show them as an evaluation does, by the `input` of the
checkpoint; the network answers batch by batch, and rows are written as they come. So ten files and a million take the
same memory, and predictions are those that `swa eval` scores. A file that cannot be read is told and left out.
Shapes: B batch, C channels, H W pixels of a file, h w of a view, K classes, V numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swa_cli import signals
from swa_cli.analysis import open, passes
from swa_cli.analysis import prediction_files as files
from swa_cli.analysis.outcomes import delimiter_of, names_of, probability_columns
from swa_cli.checkpoint import loading, reader
from swa_cli.checkpoint.reader import Checkpoint, WeightSet
from swa_cli.checkpoint.run_folder import RunFolder
from swa_cli.data import listing, transforms
from swa_cli.data.color_jitter import normalize
from swa_cli.data.listing import NamedImages
from swa_cli.data.photos import PhotoFiles, UnlabeledPhotos
from swa_cli.data.pytree import to_device
from swa_cli.data.splits import cut_spans
from swa_cli.data.stream import Pass, stream
from swa_cli.data.transforms import IGNORED, EvaluationView
from swa_cli.engine import evaluate, failures
from swa_cli.engine import hardware as hardware_choice
from swa_cli.engine.context import require_recorded_constants
from swa_cli.engine.evaluate import RAW
from swa_cli.engine.hardware import Hardware
from swa_cli.engine.network import channels_last
from swa_cli.engine.views import evaluation_view
from swa_cli.errors import EXIT_FAILED, RecipeError, UserError
from swa_cli.metrics import tasks
from swa_cli.metrics.metric import THRESHOLD
from swa_cli.metrics.tasks import Task
from swa_cli.recipe.plan import image_problems
from swa_cli.recipe.schema import Recipe
from swa_cli.report.console_text import width_of
from swa_cli.report.terminal import Bar, Terminal
from swa_cli.units import count_text

CHANGEABLE_KEYS = ("dataset.workers", "eval.*", "train.device", "train.threads")
LABELS_WIDTH = 32  # of a column of labels in a table on the terminal
GRAY = (19_595, 38_470, 7_471)  # shares of red, green and blue in 65,536: ITU-R 601, as Pillow rounds it

Batch = tuple[Tensor, Tensor, list[int]]  # predictions (B, ...), sizes (B, 2) of the files, and their places


@dataclass(frozen=True)
class Request:
    """What to predict, and where the answer goes; None: to stdout."""

    path: Path  # checkpoint or run folder
    sources: Sequence[Path]  # images, and folders of images
    out: Path | None = None
    weights: str | None = None
    top: int = 1
    with_ensemble: bool = False
    allow_stale_bn: bool = False


@dataclass(frozen=True)
class Predictor:
    """Networks on the device, whose mean prediction is the answer, and how images are shown to them."""

    networks: Sequence[nn.Module]
    task: Task
    hardware: Hardware
    view: EvaluationView
    input: Mapping[str, Any]  # as the checkpoint has it
    batch_size: int
    workers: int
    delimiter: str  # between several labels

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the predictions (B, ...) in float32 for views (B, 3, h, w) uint8."""
        if self.input["channels"] == 1:
            images = _to_gray(images)
        inputs = normalize(to_device(images, self.hardware.device), mean=self.input["mean"], std=self.input["std"])
        total: Any = 0
        for network in self.networks:
            outputs = evaluate.outputs_of(network, inputs, task=self.task, hardware=self.hardware)
            total = total + self.task.predict(outputs)
        return total.cpu() / len(self.networks)

    def probe(self) -> tuple[int, ...]:
        """Return the shape of a prediction, without its batch dimension.

        Raises:
            UserError: The network does not take images of the size of the view.
        """
        assert self.view.size is not None, "the view has the size of `input`"
        height, width = self.view.size
        try:
            with failures.memory("eval.batch_size", 2):
                return tuple(self(torch.zeros(2, 3, height, width, dtype=torch.uint8)).shape[1:])
        except RuntimeError as error:
            raise UserError(
                f"the network does not take images of {width} x {height} pixels: {str(error).partition(chr(10))[0]}",
                hint="leave eval.image_size out: the checkpoint has the size that it was scored on",
            ) from error

    def batches(self, photos: UnlabeledPhotos, *, tell: Callable[[int], None], bar: Bar) -> Iterator[Batch]:
        """Yield the predictions of all photos that can be read; `tell` gets the place of each other one."""
        spans = cut_spans(len(photos), size=self.batch_size)
        reading = Pass(
            rows=torch.arange(len(photos)),
            spans=spans,
            seed=0,
            key=("predict",),
            workers=self.workers,
            error=failures.run_error,
            view=self.view,
        )
        with failures.memory("eval.batch_size", self.batch_size):
            for span, (images, sizes) in zip(spans, stream(photos, reading), strict=True):
                is_read = sizes[:, 0] > 0
                for place in (~is_read).nonzero()[:, 0].tolist():
                    tell(span.start + place)
                places = [span.start + place for place in is_read.nonzero()[:, 0].tolist()]
                if places:
                    yield self(images if len(places) == len(images) else images[is_read]), sizes[is_read], places
                bar.advance()


def predict_files(
    request: Request,
    overrides: Sequence[str],
    *,
    terminal: Terminal,
    as_json: bool = False,
    recipe: Path | None = None,
    allow_code: bool = False,
) -> dict[str, Any]:
    """Predict what image files show, and write or print it; return what was done.

    Raises:
        UserError: No images, no such weights, stale BatchNorm statistics, a network whose inputs are no images, a file
            that cannot be written, or (exit code 1) no file that can be read.
    """
    images = listing.images_at(request.sources)
    for sentence in images.left_out.describe():
        terminal.note(sentence)
    started = time.monotonic()
    predictor, about = _predictor(request, overrides, terminal=terminal, recipe=recipe, allow_code=allow_code)
    answer = _answer_of(predictor, predictor.probe(), request, as_json=as_json)
    result: dict[str, Any] = {
        "command": "predict",
        "checkpoint": str(request.path),
        **about,
        "classes": predictor.input["classes"],
        **predictor.hardware.facts,
        "tta": predictor.task.tta,
        "file": None if request.out is None else str(request.out),
        "images": 0,
        "broken": [],
    }
    assert predictor.view.size is not None, "the view has the size of `input`"
    photos = UnlabeledPhotos(PhotoFiles(images.images), predictor.view.size)

    def tell(place: int) -> None:
        path, reason = images.images[place], photos.problem(place)
        result["broken"].append({"path": path, "reason": reason})
        terminal.warning(f"{path}: {reason}")

    def work(add: files.Add) -> None:
        number = -(-len(photos) // predictor.batch_size)
        with terminal.progress("predicting", number, unit=predictor.batch_size) as bar:
            for predictions, sizes, places in predictor.batches(photos, tell=tell, bar=bar):
                rows = answer.rows(predictions, sizes, places)
                paths = [images.images[place] for place in places]
                add([{"path": path, **row} for path, row in zip(paths, rows, strict=True)])
                result["images"] += len(places)
                signals.check()
        if not result["images"]:
            raise UserError(
                f"none of {count_text(len(photos), 'image file')} can be read",
                hint="name images that other programs can open",
                exit_code=EXIT_FAILED,
            )
        result["seconds"] = round(time.monotonic() - started, 3)

    answer.deliver(work, request=request, images=images, facts=result, terminal=terminal, as_json=as_json)
    return result


# --- the network


def _predictor(
    request: Request, overrides: Sequence[str], *, terminal: Terminal, recipe: Path | None, allow_code: bool
) -> tuple[Predictor, dict[str, Any]]:
    """Open a checkpoint; return its predictor, and what the answer tells of its run and its weights."""
    path = request.path
    held: Mapping[str, int | None]
    folder = RunFolder(path) if path.is_dir() else None
    found = reader.read(path) if folder is None else open.resume_point(folder)
    if request.with_ensemble and folder is None:
        raise UserError(f"{path}: is a file, and an ensemble needs the snapshots of a run", hint="name its run folder")
    if found.kind != "foreign":
        _require_images(found.content["input"], open.recipe_of(found).dataset.name, path=path)
    allowed = CHANGEABLE_KEYS if recipe is None else open.CHANGEABLE_KEYS
    about, input_, model = open.open_network(
        found, overrides, recipe=recipe, terminal=terminal, allow_code=allow_code, allowed=allowed
    )
    view = _view_of(found, about, input_)
    hardware = _hardware_of(about)
    if request.with_ensemble:
        assert folder is not None
        members = passes.read_ensemble(folder, found, terminal)
        states = [(member.content["state_dict"], str(member.path)) for member in members.members]
        name, batchnorm, held = "ensemble", members.batchnorm, {"members": len(states)}
    else:
        name, item = _chosen(request, found, folder, model, about, terminal=terminal)
        states = [(item.state_dict, f"{path} ({name})")]
        batchnorm, held = item.batchnorm, {"count": item.count}
    if not request.allow_stale_bn:
        hint = open.how_to_refresh(found, about, {name: batchnorm}, recipe=recipe, overrides=overrides)
        if folder is not None and request.with_ensemble:
            hint = f"run `swa bn-update FILE` with each file in {folder.snapshots}, or insist with --allow-stale-bn"
        open.require_fresh({name: batchnorm}, path=path, hint=hint)
    networks = [model, *(open.network_of(about, input_) for _ in states[1:])]
    for network, (state, source) in zip(networks, states, strict=True):
        loading.load_strict(network, state, source=source)
        network.to(hardware.device)
        channels_last(network).eval()
    task = replace(tasks.find(about.task), tta=about.eval.tta)
    workers = about.dataset.workers
    delimiter = delimiter_of(about)
    predictor = Predictor(networks, task, hardware, view, input_, about.eval.batch_size, workers, delimiter)
    return predictor, {"run": open.run_of(found.path), "weights": name, **held, "batchnorm": batchnorm}


def _require_images(input_: Mapping[str, Any], dataset: str, *, path: Path) -> None:
    """Refuse a network that takes no images, or not of 1 or 3 channels, or prepared as nobody has recorded.

    Raises:
        UserError: It is one.
    """
    fix = f"predict in Python: torch.load({str(path)!r}, weights_only=True) has the weights"
    if input_["channels"] is None:
        raise UserError(f"{path}: the inputs of its network are no images, and `swa predict` reads images", hint=fix)
    if input_["channels"] not in (1, 3):
        raise UserError(
            f"{path}: its network takes {input_['channels']} channels, and image files are read as gray or RGB",
            hint=fix,
        )
    is_own = ":" in dataset and not dataset.startswith("hf:")
    if is_own and set(input_["mean"]) == {0.0} and set(input_["std"]) == {1.0}:
        raise UserError(f"{path}: {dataset} has prepared its images itself, and how is not in the checkpoint", hint=fix)


def _view_of(found: Checkpoint, recipe: Recipe, input_: Mapping[str, Any]) -> EvaluationView:
    """Return how images are shown: by the `input` of the checkpoint, or by what `recipe` changes of it."""
    own = EvaluationView(tuple(input_["size"]), input_.get("resize"), input_.get("interpolation", "bilinear"))
    if found.kind == "foreign":
        _require_images(input_, recipe.dataset.name, path=found.path)
        return own
    require_recorded_constants(recipe, input_)
    if problems := image_problems(recipe):
        raise RecipeError(problems)
    changed = evaluation_view(recipe)
    if changed == evaluation_view(open.recipe_of(found)):
        return own
    return replace(changed, size=changed.size or own.size)


def _hardware_of(recipe: Recipe) -> Hardware:
    """Choose the hardware as for an evaluation."""
    settings, precision = recipe.train, recipe.eval.precision
    chosen = hardware_choice.choose(
        device=settings.device, precision="fp32", threads=settings.threads, deterministic=settings.deterministic
    )
    hardware_choice.require_precision("eval.precision", precision, chosen.device, instead="fp32")
    return replace(chosen, precision=precision)


def _chosen(
    request: Request,
    found: Checkpoint,
    folder: RunFolder | None,
    model: nn.Module,
    recipe: Recipe,
    *,
    terminal: Terminal,
) -> tuple[str, WeightSet]:
    """Return the weights that were named, or the only ones; of a run its first average, and say so."""
    if folder is None:
        sets = reader.weight_sets(found, model)
    else:
        sets = open.weight_sets_of_run(folder, found, model, recipe=recipe, terminal=terminal)
    name = request.weights
    if name is None and folder is not None:
        name = next((key for key, item in sets.items() if item.kind != "raw"), RAW)
        if name == RAW and found.content["averages"]:
            how = open.how_to_take_average(folder, found, recipe)
            instead = "" if how is None else f"; for its average so far, run `{how[0]}` and name {how[1]}"
            terminal.warning(
                f"{request.path}: has shipped no average of step {found.content['step']:,}: the raw weights"
                f" predict{instead}"
            )
    if name is None and len(sets) > 1:
        raise UserError(
            f"{request.path}: holds {', '.join(sets)}, and one of them predicts", hint="choose it with --weights NAME"
        )
    if name == "all":
        raise UserError("--weights all: one weight set predicts", hint=f"choose from {', '.join(sets)}")
    ((name, item),) = open.chosen(sets, name or "all", request.path).items()
    held = "" if item.count is None else f" ({count_text(item.count, 'weight set')})"
    terminal.note(f"weights: {name}{held}")
    return name, item


def _to_gray(images: Tensor) -> Tensor:
    """Return RGB images (B, 3, H, W) uint8 as gray ones (B, 1, H, W); what was gray keeps its values."""
    red, green, blue = images.int().unbind(1)
    return ((GRAY[0] * red + GRAY[1] * green + GRAY[2] * blue + 0x8000) >> 16).to(torch.uint8)[:, None]


# --- the answer


@dataclass(frozen=True)
class _Table:
    """A row per image: its classes by probability, or a number per column."""

    columns: Sequence[str]
    cells: Callable[[Tensor], Iterator[dict[str, Any]]]  # predictions (B, ...) to a row each
    widths: Mapping[str, int]  # of columns of texts

    def rows(self, predictions: Tensor, sizes: Tensor, places: Sequence[int]) -> list[dict[str, Any]]:
        """Return the row of each image."""
        return [*self.cells(predictions)]

    def deliver(
        self,
        work: Callable[[files.Add], None],
        *,
        request: Request,
        images: NamedImages,
        facts: Mapping[str, Any],
        terminal: Terminal,
        as_json: bool,
    ) -> None:
        """Write or print the rows that `work` adds."""
        columns = ["path", *self.columns]
        if request.out is not None:
            files.write_rows(request.out, columns, facts, work)
            terminal.answer(_done(facts))
        elif as_json:
            files.print_json(columns, facts, work)
        else:
            widths = {"path": max(map(width_of, images.images)), **self.widths}
            files.print_rows(columns, widths, work, terminal=terminal)
            terminal.note(_done(facts))


class _Masks:
    """A mask per image, of its size, written into a folder."""

    def __init__(self, view: EvaluationView) -> None:
        self._view = view
        self._into = Path()
        self._names: Sequence[str] = ()

    def rows(self, predictions: Tensor, sizes: Tensor, places: Sequence[int]) -> list[dict[str, Any]]:
        """Write the masks; no row has anything but its path."""
        for p, size, place in zip(predictions, sizes.tolist(), places, strict=True):
            mask = mask_of(p, size=(size[0], size[1]), view=self._view)
            files.write_mask(mask, self._into / self._names[place])
        return [{} for _ in places]

    def deliver(
        self,
        work: Callable[[files.Add], None],
        *,
        request: Request,
        images: NamedImages,
        facts: Mapping[str, Any],
        terminal: Terminal,
        as_json: bool,
    ) -> None:
        """Write the masks into a new folder."""
        assert request.out is not None, "there is no table of masks"
        self._names = files.mask_names(images.names)
        if self._view.resize is not None:
            terminal.note(
                "the network sees the center of an image: pixels outside of it are 255 in its mask. To predict whole"
                " images, add eval.crop=none"
            )
        with files.new_folder(request.out) as self._into:
            work(lambda rows: None)
        terminal.answer(_done(facts))


def _answer_of(predictor: Predictor, shape: tuple[int, ...], request: Request, *, as_json: bool) -> _Table | _Masks:
    """Return what is told of images whose predictions have a shape, without the batch dimension.

    Raises:
        UserError: There is no form for them, or it is not what was asked for.
    """
    target, out, classes = predictor.task.target, request.out, predictor.input["classes"]
    is_ranked, is_mask = target == "class", target == "mask"
    if request.top > 1 and not is_ranked:
        why = "all labels above 0.5 are told" if target == "multilabel" else "only classes have an order"
        raise UserError(f"--top {request.top}: {why}", hint="leave --top out")
    if is_mask:
        if out is None:
            raise UserError("the predictions are masks, which are files", hint="name a new folder with -o FOLDER")
        files.require_new_folder(out, sources=request.sources)
        return _Masks(predictor.view)
    if len(shape) > 1:
        raise UserError(
            f"{request.path}: predicts {shape} numbers per image, and a table has rows",
            hint="predict in Python with the network itself",
        )
    if out is not None:
        files.require_format(out)
        open.require_writable(out, sources=[request.path, *request.sources])
    number = shape[0] if shape else 1
    if target == "multilabel":
        names = names_of(classes, number)
        is_list = as_json if out is None else out.suffix.lower() != ".csv"
        cells = partial(_several, names=names, delimiter=None if is_list else predictor.delimiter)
        widths = {"labels": min(LABELS_WIDTH, width_of(predictor.delimiter.join(names)))}
        return _Table(["labels", *probability_columns(names)], cells, widths)
    if not is_ranked:
        names = _value_names(classes, number)
        return _Table(names, partial(_values, names=names), {})
    if request.top > number:
        raise UserError(f"--top {request.top}: there are {number} classes", hint=f"write --top {number} or less")
    names = names_of(classes, number)
    ends = ["", *(f"_{place}" for place in range(2, request.top + 1))]
    columns = [f"{what}{end}" for end in ends for what in ("class", "probability")]
    widths = {f"class{end}": max(map(width_of, names)) for end in ends}
    return _Table(columns, partial(_ranked, names=names, ends=ends), widths)


def _ranked(p: Tensor, *, names: Sequence[str], ends: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Return the first classes of probabilities (B, K); of equal ones the first is taken, as by argmax."""
    ordered, classes = p.sort(dim=1, descending=True, stable=True)
    shown = len(ends)
    for values, found in zip(ordered[:, :shown].numpy(), classes[:, :shown].tolist(), strict=True):
        row: dict[str, Any] = {}
        for end, value, number in zip(ends, values, found, strict=True):
            row |= {f"class{end}": names[number], f"probability{end}": _shortest(value)}
        yield row


def _several(p: Tensor, *, names: Sequence[str], delimiter: str | None) -> Iterator[dict[str, Any]]:
    """Return the labels of probabilities (B, K), as a list without a delimiter, and the probability of each class."""
    columns = probability_columns(names)
    for values in p.numpy():
        labels = [*compress(names, values > THRESHOLD)]
        found = dict(zip(columns, map(_shortest, values), strict=True))
        yield {"labels": labels if delimiter is None else delimiter.join(labels), **found}


def _value_names(classes: Sequence[str], number: int) -> list[str]:
    """Return the columns of V numbers: the names that the dataset gave them, if they can be columns."""
    if len(set(classes)) == number and "path" not in classes:
        return [*classes]
    return ["value"] if number == 1 else [f"value_{place}" for place in range(1, number + 1)]


def _values(predictions: Tensor, *, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Return the numbers of predictions (B, V) or (B,)."""
    for values in predictions.reshape(len(predictions), -1).numpy():
        yield dict(zip(names, map(_shortest, values), strict=True))


def _shortest(value: Any) -> float:
    """Return a float32 as the number with the fewest digits that is this float32."""
    return float(str(value))


def mask_of(p: Tensor, *, size: tuple[int, int], view: EvaluationView) -> Tensor:
    """Return the most probable class (H, W) uint8 of each pixel of an image, from probabilities (K, h, w) of its view.

    Probabilities are resized bilinearly, class by class: all at once would take K times the memory of the image. Pixels
    that the view does not show are 255, as ignored ones are.
    """
    box, into = view.shown_part(size)
    p = transforms.part_of(p, into)
    shape = (box.height, box.width)
    if p.shape[1:] == shape:
        best = p.argmax(0)
    else:
        highest, best = torch.full(shape, -torch.inf), torch.zeros(shape, dtype=torch.int64)
        for number, values in enumerate(p):
            resized = F.interpolate(values[None, None], shape, mode="bilinear", align_corners=False)[0, 0]
            is_higher = resized > highest
            best[is_higher] = number
            highest = torch.where(is_higher, resized, highest)
    mask = torch.full(size, IGNORED, dtype=torch.uint8)
    transforms.part_of(mask, box).copy_(best)
    return mask


def _done(facts: Mapping[str, Any]) -> str:
    """Say what was written, and what was left out."""
    broken = len(facts["broken"])
    left_out = f"; {count_text(broken, 'broken file')} left out" if broken else ""
    place = f" -> {facts['file']}" if facts["file"] else ""
    return f"{count_text(facts['images'], 'image')}{place}{left_out}"
