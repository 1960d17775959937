"""Hostile and mistaken inputs, one row each: exit code 2, the reason on stderr, and not a byte written."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import resource
import shutil
import signal
import stat
import struct
import warnings
import zipfile
import zlib
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save
from torch import nn

from swa_cli import cli

GOOD = """\
name: good
model: {name: convnet, args: {width: 4}}
dataset: {name: digits, val: 0}
optimizer: {lr: 0.1}
swa: {start: 50%, every: 0.5ep, eval_every: 1ep}
averages: {swag: {kind: swag, rank: 3, start: 1step, every: 1step}}
train: {epochs: 2, batch_size: 256, eval_batch_size: 512, device: cpu, threads: 1, precision: fp32}
"""
ESC = "\x1b[31m"
SECONDS = 60  # far more than any row takes, on a busy machine too: what takes longer hangs
MEMORY = 2 << 30  # bytes that a row may take beyond what the process has

Make = Callable[[Path], object]
Edit = Callable[[dict[str, Any]], Any]


class Row(NamedTuple):
    """An input: `make` puts it into the working folder, `words` are run on it, stderr must hold `piece`.

    The working folder has good.yaml, swa.pt, swag.pt and a run after the first of its two epochs.
    """

    name: str
    words: list[str]
    piece: str
    make: Make
    code: int = 2


def nothing(folder: Path) -> None:
    """The folder is good as it is."""


# What can be put into the folder.


def file(name: str, data: str | bytes) -> Make:
    def make(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)

    return make


def fifo(name: str) -> Make:
    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return make


def directory(name: str) -> Make:
    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir(parents=True)

    return make


def link(name: str, target: str) -> Make:
    """A link at `name`; what was there goes to `target`, if there was anything."""

    def make(folder: Path) -> None:
        if (folder / name).exists():
            (folder / name).rename(folder / target)
        (folder / name).symlink_to(folder / target)

    return make


def all_of(*makes: Make) -> Make:
    def make(folder: Path) -> None:
        for one in makes:
            one(folder)

    return make


def edited(source: str, target: str, edit: Edit) -> Make:
    """What `edit` makes of the content of a checkpoint: returned, or changed in place."""

    def make(folder: Path) -> None:
        content = torch.load(folder / source, weights_only=True)
        result = edit(content)
        torch.save(content if result is None else result, folder / target)

    return make


def put(path: str, value: Any) -> Edit:
    """Set what stands at a path, such as `averages/swa/count`; a key that begins with `-` is removed."""

    def edit(content: dict[str, Any]) -> None:
        *sections, key = path.split("/")
        for section in sections:
            content = content[int(section) if section.isdigit() else section]
        if key.startswith("-"):
            del content[key[1:]]
        else:
            content[int(key) if key.isdigit() else key] = value

    return edit


def saved(content: Any, *, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


class Evil:
    """Unpickling it makes the file `trap`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch trap",)


# Recipes: `swa train bad.yaml`.


def recipe(name: str, text: str | bytes, piece: str) -> Row:
    return Row(f"recipe-{name}", ["train", "bad.yaml"], piece, file("bad.yaml", text))


def good_but(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


RECIPES = [
    recipe("empty", "", "the recipe is empty"),
    recipe("blank", " \n\n# nothing\n", "the recipe is empty"),
    recipe("null", "~", "the recipe is empty"),
    recipe("list", "- a\n- b\n", "the recipe has no keys"),
    recipe("number", "42", "the recipe has no keys"),
    recipe("binary", bytes(range(128, 256)), "is not text in UTF-8 (line 1)"),
    recipe("latin-1", b"name: caf\xe9\n" + GOOD.encode(), "is not text in UTF-8 (line 1)"),
    recipe("utf-16", GOOD.encode("utf-16"), "is not text in UTF-8"),
    recipe("nul", GOOD + "\0", "is not a text file"),
    recipe("huge", "#" * ((1 << 20) + 1), "is larger than any recipe"),
    recipe("many-keys", "".join(f"k{i}: 1\n" for i in range(6000)), "is longer than any recipe"),
    recipe("deep-lists", "[" * 100_000, "is nested too deeply"),
    recipe("deep-sections", "{a: " * 100_000, "is nested too deeply"),
    recipe("alias-bomb", "a: &a [x]\n" + "".join(f"b{i}: &b{i} [*a, *a]\n" for i in range(99)), "are not read"),
    recipe("merge-bomb", "a: &a {}\n" + "b: {<<: [*a, *a]}\n" * 99, "merge keys (`<<`) are not read"),
    recipe("loop", "a: &a\n  b: *a\n", "aliases (`*a`) are not read"),
    recipe(
        "python-tag",
        good_but("good", '!!python/object/apply:os.system ["touch trap"]'),
        "python/object/apply:os.system`) are not read",
    ),
    recipe("python-name", good_but("0.1", "!!python/name:os.system ''"), "python/name:os.system`) are not read"),
    recipe("tag", good_but("0.1", "!!float 0.1"), "are not read"),
    recipe("duplicate", GOOD + "seed: 1\nseed: 2\n", "duplicate key, it is already in line 8"),
    recipe("duplicate-section", GOOD + "train: {epochs: 3}\n", "duplicate key"),
    recipe("documents", GOOD + "---\n" + GOOD, "a second document begins here"),
    recipe("unclosed", good_but("{lr: 0.1}", "{lr: 0.1"), "1 problem in bad.yaml"),
    recipe("tabs", "train:\n\tepochs: 1\n", "a tab indents this line"),
    recipe("no-such-character", GOOD + 'task: "\\UFFFFFFFF"\n', "escape of no character"),
    recipe("escapes-raw", good_but("good", ESC), "an invisible control character"),
    recipe("escapes-quoted", good_but("good", '"\\e[31m\\e]0;x\\a"'), "]0;x�` is not possible here"),
    recipe("escapes-in-key", GOOD + '"\\e[2J\\e[H": 1\n', "unknown key"),
    recipe("other-folder", good_but("good", "../../x"), "`../../x` is not possible here"),
    recipe("hidden-folder", good_but("good", ".."), "`..` is not possible here"),
    recipe("absolute-folder", good_but("good", "/tmp/x"), "`/tmp/x` is not possible here"),
    recipe("truth-for-text", good_but("digits", "yes"), "is not text in YAML"),
    recipe("section-is-value", good_but("{lr: 0.1}", "0.1"), "is a value, but `optimizer` is a section"),
    recipe("section-is-list", good_but("{lr: 0.1}", "[0.1]"), "a list is given, but `optimizer` is a section"),
    recipe("value-is-section", good_but("0.1", "{a: 1}"), "takes a single value, not a section"),
    recipe("value-is-missing", good_but("0.1", ""), "optimizer.lr: has no value"),
    recipe("number-key", GOOD + "1: 2\n", "the key `1` is not text"),
    recipe("list-key", GOOD + "? [a]\n: 2\n", "a key is not text"),
    recipe("octal", good_but("epochs: 2", "epochs: 012"), "`012` may be 12 or, as octal, 10"),
    recipe("average-as-path", good_but("{swag:", '{"../x":'), "cannot name an average"),
    recipe("average-as-checkpoint", good_but("{swag:", "{last:"), "cannot name an average"),
    Row("recipe-missing", ["train", "bad.yaml"], "there is no such file", nothing),
    Row("recipe-close-name", ["train", "god.yaml"], "did you mean good.yaml?", nothing),
    Row("recipe-fifo", ["train", "bad.yaml"], "is no regular file", fifo("bad.yaml")),
    Row("recipe-directory", ["train", "run"], "is a folder", nothing),
    Row("recipe-device", ["train", "/dev/zero"], "is no regular file", nothing),
    Row("recipe-is-checkpoint", ["train", "swa.pt"], "is not text", nothing),
    Row("recipe-link-loop", ["train", "loop"], "cannot be read", lambda folder: (folder / "loop").symlink_to("loop")),
    Row("recipe-nul-in-path", ["train", "a\0b"], "cannot be read", nothing),
    Row("recipe-long-path", ["train", "a" * 5000], "cannot be read", nothing),
    Row("recipe-escapes-in-path", ["train", f"{ESC}.yaml"], "there is no such file", nothing),
]


# Changes: `swa train good.yaml KEY=VALUE`.


def change(name: str, word: str, piece: str) -> Row:
    return Row(f"change-{name}", ["train", "good.yaml", word], piece, nothing)


CHANGES = [
    change("no-equals", "optimizer.lr", "optimizer.lr: has no value"),
    change("second-recipe", "other.yaml", "has no value"),
    change("empty-word", "", "has no value"),
    change("empty-key", "=1", "is not a key"),
    change("dots", "..=1", "is not a key"),
    change("empty-value", "optimizer.lr=", "optimizer.lr: has no value"),
    change("unknown-key", "optimizer.momentun=0.9", "did you mean `optimizer.momentum`?"),
    change("unknown-section", "optimiser.lr=1", "did you mean `optimizer`?"),
    change("below-a-value", "optimizer.lr.x=1", "`optimizer.lr` is a value, not a section"),
    change("section-by-value", "optimizer=SGD", "is a value, but `optimizer` is a section"),
    change("value-by-section", "optimizer.lr={a: 1}", "takes a single value, not a section"),
    change("open-list", "optimizer.no_decay=[bias", "put the word in quotes for the shell"),
    change("alias", "model.args={a: &a [*a]}", "are not read"),
    change("tag", "model.args={a: !!python/name:os.system x}", "are not read"),
    change("deep", "model.args=" + "[" * 1000, "is nested too deeply"),
    change("many", f"model.args=[{'1,' * 9999}]", "is longer than any recipe"),
    change("nan-rate", "optimizer.lr=.nan", "`.nan` is not finite"),
    change("inf-rate", "optimizer.lr=.inf", "`.inf` is not finite"),
    change("huge-rate", "optimizer.lr=1e999", "is not finite"),
    change("negative-rate", "optimizer.lr=-1", "is below 0"),
    change("text-rate", "optimizer.lr=fast", "`fast` is not a number"),
    change("zero-epochs", "train.epochs=0", "is below 1"),
    change("negative-epochs", "train.epochs=-3", "is below 1"),
    change("half-epochs", "train.epochs=1.5", "is not a whole number"),
    change("too-long-epochs", "train.epochs=" + "9" * 30, "is too large"),
    change("endless-epochs", "train.epochs=" + "9" * 17, "train.epochs:"),
    change("negative-batch", "train.batch_size=-1", "is below 1"),
    change("batch-above-data", "train.batch_size=999999999", "is more than the"),
    change("negative-seed", "seed=-1", "is below 0"),
    change("huge-seed", "seed=" + "9" * 40, "is too large"),
    change("no-unit", "swa.start=50", "has no unit"),
    change("start-after-end", "swa.start=3ep", "after the end of the run"),
    change("start-above-all", "swa.start=101%", "is more than the whole run"),
    change("every-zero", "swa.every=0ep", "is no interval"),
    change("nothing-to-train", "dataset.val=999999", "leaves nothing to train"),
    change("all-validate", "dataset.val=100%", "is neither a share below 100% nor a count"),
    change("no-such-device", "train.device=cuda:99", "cuda:99 is not here"),
    change("device-of-no-kind", "train.device=tpu", "`tpu` is not possible here"),
    change("no-such-network", "model.name=resnet", "unknown network 'resnet'"),
    change("no-such-timm", "model={name: 'timm:resnet19'}", "timm has no network 'resnet19'"),
    change("timm-hub", "model={name: 'timm:hf-hub:x/y'}", "timm has no network 'hf-hub:x/y'"),
    change("timm-path", "model={name: 'timm:../x'}", "timm has no network '../x'"),
    change("timm-pretrained", "model={name: 'timm:resnet18', args: {pretrained: true}}", "from fresh weights"),
    change("no-such-module", "model.name=no_such_module:Net", "cannot import no_such_module"),
    change("module-as-path", "model.name=../x:Net", "is not a name of a network"),
    change("no-network", "model.name=json:loads", "json:loads: missing a required argument"),
    change("no-such-argument", "model.args.depth=9", "unknown argument of convnet"),
    change("negative-width", "model.args.width=-4", "is not a whole number of at least 1"),
    change("endless-width", "model.args.width=" + "9" * 15, "model"),
    change("no-such-optimizer", "optimizer.name=SDG", "did you mean `SGD`?"),
    change("rank-of-one", "averages.swag.rank=1", "averages.swag.rank: `1` is below 2"),
    change("rank-endless", "averages.swag.rank=" + "9" * 30, "is too large"),
    change("diagonal-and-rank", "averages.swag.diagonal=true", "a diagonal swag keeps no deviations"),
    change("diagonal-text", "averages.swag.diagonal=maybe", "`maybe` is not a truth value"),
    change("decay-of-swag", "averages.swag.decay=0.9", "`decay` goes with `kind: ema`"),
    change("half-life-and-decay", "averages.e={kind: ema, decay: 0.9, half_life: 1ep}", "stands beside decay"),
    change("half-life-zero", "averages.e={kind: ema, half_life: 0step}", "0step is no time at all"),
    change("half-life-above-all", "averages.e={kind: ema, half_life: 101%}", "is more than the whole run"),
    change("optimizer-option", "optimizer.momentum=lots", "torch.optim.SGD refuses its options"),
    change("endless-threads", "train.threads=" + "9" * 15, "train.threads"),
    change("no-such-start", "train.init=bad.pt", "train.init: bad.pt: no such checkpoint"),
    change("start-is-folder", "train.init=run", "train.init: run: is no regular file"),
    change("start-is-recipe", "train.init=good.yaml", "train.init: good.yaml: cannot be read as a checkpoint"),
    change(
        "start-of-nothing", "train.init_weights=swa", "train.init_weights: there is no checkpoint to take them from"
    ),
    change("skip-of-nothing", "train.init_skip=[x]", "train.init_skip: there is no checkpoint to take them from"),
    change("escapes-in-start", f"train.init={ESC}", "no such checkpoint"),
    change("escapes", f"{ESC}=1", "unknown key"),
    change("escapes-in-value", f"model.name={ESC}", "unknown network"),
]


# Files that are no archive of plain tensors: each command that reads a checkpoint refuses them.

COMMANDS = {
    "eval bad.pt": "bad.pt",
    "bn-update bad.pt": "bad.pt",
    "average bad.pt -o out.pt": "bad.pt",
    "train --resume run": "run/checkpoints/last.pt",
}


def everywhere(name: str, piece: str, make: Callable[[str], Make]) -> Iterator[Row]:
    """A row a command; `make` is told where the command looks."""
    for command, target in COMMANDS.items():
        yield Row(f"{command.split()[0]}-{name}", command.split(), piece, make(target))


def unreadable(name: str, data: bytes, piece: str = "cannot be read as a checkpoint") -> Iterator[Row]:
    return everywhere(name, piece, lambda target: file(target, data))


def damaged(name: str, piece: str, damage: Callable[[bytes], bytes]) -> Iterator[Row]:
    """What `damage` makes of a good checkpoint."""
    return everywhere(
        name, piece, lambda target: lambda folder: file(target, damage((folder / "swa.pt").read_bytes()))(folder)
    )


def flipped(data: bytes) -> bytes:
    """One bit of one weight."""
    weight = torch.load(io.BytesIO(data), weights_only=True)["state_dict"]["classifier.weight"]
    place = data.index(weight.numpy().tobytes())
    return data[: place + 2] + bytes([data[place + 2] ^ 1]) + data[place + 3 :]


def archive(method: int, parts: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, data in parts.items():
            file.writestr(name, data)
    return buffer.getvalue()


def deflated() -> bytes:
    """16 MB of zeros that take 16 kB."""
    with zipfile.ZipFile(io.BytesIO(saved({"w": torch.zeros(1 << 22)}))) as plain:
        return archive(zipfile.ZIP_DEFLATED, {part: plain.read(part) for part in plain.namelist()})


def numpy_archive() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, w=np.zeros(3))
    return buffer.getvalue()


def torchscript() -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), buffer)
    return buffer.getvalue()


def dangling(folder: Path) -> None:
    """The last good state of the run is on a disk that is not there now."""
    (folder / "run/checkpoints/last.pt").unlink()
    (folder / "run/checkpoints/last.pt").symlink_to("/nowhere/last.pt")


FILES = [
    *unreadable("empty", b""),
    *unreadable("text", b"hello\n"),
    *unreadable("web-page", b"<!DOCTYPE html><html>404</html>"),
    *unreadable("noise", bytes(range(256)) * 8),
    *unreadable("recipe", GOOD.encode()),
    *unreadable("zip-signature", b"PK\x03\x04"),
    *unreadable("gzip", gzip.compress(b"hello", mtime=0)),
    *unreadable("other-zip", archive(zipfile.ZIP_STORED, {"readme": b"hello"})),
    *unreadable("escapes-in-zip", archive(zipfile.ZIP_STORED, {f"{ESC}/data.pkl": b"\x80\x02K\x01."})),
    *unreadable("numpy", numpy_archive()),
    *unreadable("torchscript", torchscript(), "holds a compressed part"),
    *unreadable("whole-model", saved(nn.Linear(2, 2))),
    *unreadable("code", saved({"format": 1, "recipe": Evil()})),
    *unreadable("code-legacy", saved({"format": 1, "recipe": Evil()}, zipped=False)),
    *unreadable("code-pickle", pickle.dumps({"format": 1, "recipe": Evil()})),
    *unreadable("code-old-protocol", pickle.dumps(Evil(), protocol=0)),
    *unreadable("truncated-legacy", saved({"w": torch.zeros(100)}, zipped=False)[:-100]),
    *unreadable("deflated", deflated(), "holds a compressed part"),
    *damaged("truncated", "cannot be read as a checkpoint", lambda data: data[:-100]),
    *damaged("truncated-early", "cannot be read as a checkpoint", lambda data: data[:1000]),
    *damaged("flipped-bit", "the checksum of", flipped),
    *everywhere("fifo", "is no regular file", fifo),
    Row("eval-directory", ["eval", "bad.pt"], "it is no run folder", directory("bad.pt")),
    Row("bn-update-directory", ["bn-update", "bad.pt"], "is no regular file", directory("bad.pt")),
    Row("resume-directory", ["train", "--resume", "run"], "is no regular file", directory("run/checkpoints/last.pt")),
    Row("eval-dangling-link", ["eval", "bad.pt"], "is no regular file", link("bad.pt", "gone")),
    Row("bn-update-dangling-link", ["bn-update", "bad.pt"], "is a symbolic link", link("bad.pt", "gone")),
    Row("resume-dangling-link", ["train", "--resume", "run"], "is no regular file", dangling),
    Row("eval-device", ["eval", "/dev/zero"], "is no regular file", nothing),
    Row("eval-missing", ["eval", "bad.pt"], "no such checkpoint", nothing),
    Row("eval-nul-in-path", ["eval", "a\0b.pt"], "embedded null byte", nothing),
    Row("eval-escapes-in-path", ["eval", f"{ESC}.pt"], "no such checkpoint", nothing),
    Row("bn-update-missing", ["bn-update", "bad.pt"], "no such checkpoint", nothing),
]


# Checkpoints with a content that swa would not write: edits of swa.pt, or something else altogether.


def content(name: str, edit: Edit, piece: str, command: str = "eval bad.pt") -> Row:
    return Row(f"{command.split()[0]}-{name}", command.split(), piece, edited("swa.pt", "bad.pt", edit))


def weight(name: str, value: Callable[[torch.Tensor], object], piece: str, command: str = "eval bad.pt") -> Row:
    """One tensor of it is another."""

    def edit(content: dict[str, Any]) -> None:
        state = content["state_dict"]
        state["classifier.weight"] = value(state["classifier.weight"])

    return content(f"weight-{name}", edit, piece, command)


def nested(depth: int, width: int = 1) -> list[Any]:
    """Lists in lists; each level is there once, and is met `width` times as often as the one above."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value] * width
    return value


def cyclic_options() -> Namespace:
    options = Namespace()
    options.itself = {"options": vars(options)}
    return options


def cyclic(content: dict[str, Any]) -> None:
    content["self"] = content


def shared(content: dict[str, Any]) -> dict[str, Any]:
    """A hundred weights over the same 4 MB."""
    numbers = torch.zeros(1 << 20)
    return {f"w{index}": numbers[index:] for index in range(100)}


def number_name(content: dict[str, Any]) -> None:
    content["state_dict"][3] = torch.ones(1)


def nan_inside(content: dict[str, Any]) -> None:
    content["state_dict"]["features.0.weight"].fill_(float("nan"))


def colour(content: dict[str, Any]) -> None:
    content["input"].update(channels=3, mean=[0.5] * 3, std=[0.5] * 3)


def sparse(like: torch.Tensor) -> torch.Tensor:
    return like.to_sparse()


def quantized(like: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings(action="ignore"):
        return torch.quantize_per_tensor(like, 0.1, 0, torch.qint8)


def recipe_inside(name: str, edit: Edit, piece: str, command: str = "eval bad.pt") -> Row:
    return content(f"recipe-{name}", lambda content: edit(content["recipe"]), piece, command)


OS_SYSTEM = {"name": "os:system", "args": {"command": "touch trap"}}
CONTENTS = [
    content("list", lambda _: [1, 2], "holds a list and no weights"),
    content("number", lambda _: 42, "holds a int and no weights"),
    content("tensor", lambda _: torch.zeros(3), "holds a Tensor and no weights"),
    content("nothing", lambda _: {}, "say which with --recipe"),
    content("no-weights", lambda _: {"epoch": 3}, "no weights found among its keys", "eval bad.pt --recipe good.yaml"),
    content("cyclic", cyclic, "more values, or deeper ones"),
    content("deep", lambda _: {"w": nested(200)}, "more values, or deeper ones"),
    content("shared-lists", lambda _: {"w": nested(30, width=9)}, "more values, or deeper ones"),
    content("many-values", lambda _: {"w": [[0] * 5000] * 5000}, "more values, or deeper ones"),
    content("shared-weights", shared, "more numbers than the file has"),
    content("set", lambda _: {"w": {1, 2}}, "holds a set"),
    content("format-future", put("format", 99), "is of format 99; this version reads format 1"),
    content("format-text", put("format", "1"), "is of format '1'"),
    content("format-escapes", put("format", ESC), "this version reads format 1"),
    content("format-flag", put("format", True), "format: Input should be a valid integer"),
    content("format-nan", put("format", float("nan")), "is of format nan"),
    content("format-tensor", put("format", torch.ones(2)), "this version reads format 1"),
    content("no-weights-key", put("-state_dict", None), "state_dict: Field required"),
    content("no-input", put("-input", None), "input: Field required"),
    content("recipe-is-tensor", put("recipe", torch.ones(2)), "recipe: Input should be a valid dictionary"),
    content("recipe-empty", put("recipe", {}), "problems in bad.pt"),
    content("weights-list", put("state_dict", [1]), "state_dict: Input should be a valid dictionary"),
    content("weights-of-text", put("state_dict/classifier.weight", "x"), "is not as swa writes it: state_dict"),
    content("number-names", number_name, "state_dict.3"),
    content("freshness", put("batchnorm", "fresh"), "batchnorm: Input should be"),
    content("samples-text", put("samples", "many"), "samples: Input should be a valid integer"),
    content("average-text", put("average", ESC), "average: Input should be"),
    content("classes-others", put("input/classes", [ESC, "b"]), "the weights were trained on 2"),
    content("channels-others", colour, "the weights were trained on 3"),
    content("channels-none", put("input/channels", 0), "input.channels: Input should be greater than 0"),
    content("mean-too-long", put("input/mean", [0.5, 0.5]), "input.mean"),
    content("mean-missing", put("input/mean", []), "input.mean"),
    content("std-nan", put("input/std", [float("nan")]), "input.std"),
    content("std-zero", put("input/std", [0.0]), "input.std"),
    content("weights-none", put("state_dict", {}), "tensors missing"),
    content("escapes-in-names", put(f"state_dict/{ESC}", torch.ones(1)), "1 unexpected"),
    content("escapes-in-average", put("average/name", ESC), "holds no weights 'x'", "eval bad.pt --weights x"),
    content("nan-inside", nan_inside, "not finite", "bn-update bad.pt"),
    content("stale", put("batchnorm", "stale"), "has stale BatchNorm statistics"),
    weight("shape", lambda like: like[:, :2].clone(), "classifier.weight is (10, 2), not (10, 16)"),
    weight("shape", lambda like: like[:, :2].clone(), "classifier.weight is (10, 2), not (10, 16)", "bn-update bad.pt"),
    weight("meta", lambda like: like.to("meta"), "on meta"),
    weight("sparse", sparse, "of layout torch.sparse_coo"),
    weight("quantized", quantized, "whose numbers are not all in the file"),
    weight("terabytes", lambda like: torch.zeros(1).expand(1 << 40), "whose numbers are not all in the file"),
    weight("overlapping", lambda like: torch.zeros(99).as_strided((50, 50), (1, 1)), "whose numbers are not all in"),
    weight("complex", lambda like: like + 1j, "complex64"),
    weight("whole-numbers", lambda like: like.to(torch.int8), "int8"),
    weight("nan", lambda like: like * float("nan"), "not finite"),
    weight("nan", lambda like: like * float("nan"), "not finite", "bn-update bad.pt"),
    weight("inf", lambda like: like + float("inf"), "not finite"),
    recipe_inside("model-code", put("model", OS_SYSTEM), "would import and run code: model.name os:system"),
    recipe_inside("dataset-code", put("dataset", OS_SYSTEM), "would import and run code: dataset.name os:system"),
    recipe_inside("model-code", put("model", OS_SYSTEM), "model.name os:system", "bn-update bad.pt"),
    recipe_inside("dataset-code", put("dataset", OS_SYSTEM), "dataset.name os:system", "bn-update bad.pt"),
    recipe_inside("escapes", put("model/name", ESC), "unknown network"),
    recipe_inside("escapes-in-code", put("model/name", f"{ESC}:x"), "would import and run code"),
    recipe_inside("unknown-key", put("colour", "red"), "colour: unknown key"),
    recipe_inside("deep", put("model/args", {"a": nested(40)}), "nested too deeply"),
    recipe_inside("long", put("model/args", {"a": [0] * 6000}), "longer than any"),
    recipe_inside("tensor", put("optimizer/lr", torch.ones(1)), "holds a Tensor"),
    recipe_inside("nan-rate", put("optimizer/lr", float("nan")), "optimizer.lr: `nan` is not finite"),
    recipe_inside("negative-seed", put("seed", -1), "seed: `-1` is below 0"),
    recipe_inside("huge-seed", put("seed", 1 << 80), "seed: `1208925819614629174706176` is not below"),
    recipe_inside("endless-width", put("model/args/width", 10**15), "model"),
    recipe_inside("endless-threads", put("train/threads", 10**15), "train.threads"),
    recipe_inside("no-such-folder", put("dataset", {"name": "image_folder", "root": "/nowhere"}), "no class folders"),
    content(
        "change-forbidden", put("samples", 1), "optimizer.lr: cannot be changed here", "eval bad.pt optimizer.lr=1"
    ),
]


# Posteriors that no weights lead to: edits of swag.pt.


def posterior(name: str, edit: Edit, piece: str) -> Row:
    words = ["eval", "bad.pt", "--draws", "2"]
    return Row(f"posterior-{name}", words, piece, edited("swag.pt", "bad.pt", edit))


def of_classifier(key: str, value: Callable[[torch.Tensor], object]) -> Edit:
    """Another value of the variance or the deviations of one weight."""

    def edit(content: dict[str, Any]) -> None:
        part = content["posterior"][key]
        part["classifier.weight"] = value(part["classifier.weight"])

    return edit


def without_classifier(content: dict[str, Any]) -> None:
    """Nothing is wrong with it but for the network."""
    for part in ("variance", "deviations"):
        del content["posterior"][part]["classifier.weight"]


def one_deviation(content: dict[str, Any]) -> None:
    stacks = content["posterior"]["deviations"]
    stacks.update({name: stack[:1].clone() for name, stack in stacks.items()})


IMPOSSIBLE = "has values that no weights lead to"
POSTERIORS = [
    posterior("none", put("-posterior", None), "posterior: Value error, belongs to an average of kind swag"),
    posterior("of-mean", put("average/kind", "mean"), "belongs to an average of kind swag, and to no other"),
    posterior("text", put("posterior", ESC), "posterior: Input should be"),
    posterior("empty", put("posterior", {}), "posterior.diagonal: Field required"),
    posterior("no-variance", put("posterior/variance", {}), "deviations of other weights than its variance"),
    posterior("variance-text", put("posterior/variance/classifier.weight", ESC), "posterior.variance"),
    posterior("variance-negative", of_classifier("variance", lambda like: like - 9), IMPOSSIBLE),
    posterior("variance-nan", of_classifier("variance", lambda like: like * float("nan")), IMPOSSIBLE),
    posterior("variance-whole-numbers", of_classifier("variance", lambda like: like.to(torch.int8)), IMPOSSIBLE),
    posterior("variance-complex", of_classifier("variance", lambda like: like + 0j), IMPOSSIBLE),
    posterior("variance-shape", of_classifier("variance", lambda like: like[:, :2].clone()), "does not have the shape"),
    posterior("variance-scalar", of_classifier("variance", lambda like: like.sum()), "does not have the shape"),
    posterior("deviations-inf", of_classifier("deviations", lambda like: like + float("inf")), IMPOSSIBLE),
    posterior("deviations-fewer", of_classifier("deviations", lambda like: like[:2].clone()), "not as many of each"),
    posterior("deviations-scalar", of_classifier("deviations", lambda like: like.sum()), "not as many of each"),
    posterior("deviations-shape", of_classifier("deviations", lambda like: like[..., :2].clone()), "of another shape"),
    posterior("deviations-none", put("posterior/deviations", {}), "deviations of other weights"),
    posterior("deviations-of-diagonal", put("posterior/diagonal", True), "deviations of other weights"),
    posterior("escapes", put(f"posterior/variance/{ESC}", torch.ones(1)), "deviations of other weights"),
    posterior("other-network", without_classifier, "1 missing (classifier.weight)"),
    posterior("one-deviation", one_deviation, "the number of deviations is 1"),
    posterior("mean-nan", nan_inside, "not finite"),
]


# Safetensors, and other people's files.


def theirs(name: str, data: bytes, piece: str) -> Row:
    words = ["eval", "bad.safetensors", "--recipe", "good.yaml"]
    return Row(f"safetensors-{name}", words, piece, file("bad.safetensors", data))


def in_safetensors(folder: Path) -> None:
    weights = torch.load(folder / "swa.pt", weights_only=True)["state_dict"]
    file("a.safetensors", save({name: value.contiguous() for name, value in weights.items()}))(folder)


HEADER = b'{"w":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4]}}'
plain_weights = edited("swa.pt", "plain.pt", lambda content: content["state_dict"])
THEIRS = [
    theirs("empty", b"", "cannot be read as safetensors"),
    theirs("text", b"hello, I am no such file", "cannot be read as safetensors"),
    theirs("endless-header", struct.pack("<Q", 1 << 60) + b"{}", "cannot be read as safetensors"),
    theirs("terabytes", struct.pack("<Q", len(HEADER)) + HEADER + bytes(4), "cannot be read as safetensors"),
    theirs("truncated", save({"w": torch.zeros(99)})[:-9], "cannot be read as safetensors"),
    theirs("code", saved(Evil()), "cannot be read as safetensors"),
    theirs("other-names", save({ESC: torch.zeros(9)}), "1 unexpected"),
    Row(
        "safetensors-no-recipe",
        ["eval", "a.safetensors"],
        "--recipe",
        file("a.safetensors", save({"w": torch.ones(1)})),
    ),
    Row(
        "safetensors-in-place",
        ["bn-update", "a.safetensors", "--recipe", "good.yaml"],
        "is no name for a checkpoint",
        in_safetensors,
    ),
    Row("theirs-no-recipe", ["eval", "plain.pt"], "--recipe", plain_weights),
    Row(
        "theirs-in-place",
        ["bn-update", "plain.pt", "--recipe", "good.yaml"],
        "has no place to record that BatchNorm is fresh",
        plain_weights,
    ),
    Row("theirs-missing-recipe", ["eval", "plain.pt", "--recipe", "bad.yaml"], "there is no such file", plain_weights),
    Row(
        "theirs-count",
        ["eval", "bad.pt", "--recipe", "good.yaml"],
        "n_averaged",
        edited("swa.pt", "bad.pt", lambda content: {"n_averaged": torch.ones(3), **content["state_dict"]}),
    ),
    Row(
        "theirs-count-text",
        ["eval", "bad.pt", "--recipe", "good.yaml"],
        "swa_n",
        edited("swa.pt", "bad.pt", lambda content: {"swa_n": ESC, "swa_state_dict": content["state_dict"]}),
    ),
    Row(
        "theirs-names-of-numbers",
        ["eval", "bad.pt", "--recipe", "good.yaml"],
        "no weights found among its keys",
        edited("swa.pt", "bad.pt", lambda content: dict(enumerate(content["state_dict"].values()))),
    ),
    Row(
        "theirs-values-of-text",
        ["eval", "bad.pt", "--recipe", "good.yaml"],
        "no weights found among its keys",
        edited("swa.pt", "bad.pt", lambda content: {"state_dict": dict.fromkeys(content["state_dict"], "x")}),
    ),
]


# Layouts of other programs, around the weights of swa.pt.


def layout(name: str, make: Callable[[dict[str, Any]], Any], piece: str, *words: str) -> Row:
    command = ["eval", "bad.ckpt", "--recipe", "good.yaml", *words]
    edit = edited("swa.pt", "bad.ckpt", lambda content: make(content["state_dict"]))
    return Row(f"layout-{name}", command, piece, edit)


def behind(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in state.items()}


def lightning(state: dict[str, torch.Tensor], **more: Any) -> dict[str, Any]:
    return {"pytorch-lightning_version": "2.6.0", "state_dict": behind("model.", state), **more}


def averaging(state: dict[str, torch.Tensor], count: Any) -> dict[str, Any]:
    return lightning(state, current_model_state=behind("model.", state), averaging_state={"n_averaged": count})


def in_callback(state: dict[str, torch.Tensor], count: Any) -> dict[str, Any]:
    return lightning(state, callbacks={"S": {"average_model_state": behind("model.", state), "n_averaged": count}})


def other_names(count: int) -> Callable[[dict[str, torch.Tensor]], Any]:
    """As many names, each behind a prefix of its own."""
    return lambda state: {"state_dict": {f"{'a.' * index}weight": torch.ones(1) for index in range(count)}}


CODE_BESIDE = "without running code: beside tensors it holds"
LAYOUTS = [
    layout("code-beside", lambda state: lightning(state, hyper_parameters=Evil()), CODE_BESIDE),
    layout("code-named", lambda state: lightning(state, hyper_parameters=Evil()), "posix.system"),
    layout("path-beside", lambda state: lightning(state, root=Path("/data")), "pathlib."),
    layout("options-deep", lambda state: {"state_dict": state, "a": {"args": Namespace()}}, "holds a Namespace"),
    layout("options-code", lambda state: {"state_dict": state, "args": Namespace(a=Evil())}, CODE_BESIDE),
    layout("options-cyclic", lambda state: {"state_dict": state, "args": cyclic_options()}, "more values, or deeper"),
    layout("stale", lambda state: averaging(state, torch.tensor(3)), "swa has stale BatchNorm statistics"),
    layout("stale-ema", lambda state: {"arch": "x", "state_dict": state, "state_dict_ema": state}, "ema has stale"),
    layout("count-text", lambda state: averaging(state, ESC), "n_averaged is no number"),
    layout("count-vector", lambda state: averaging(state, torch.ones(2)), "n_averaged is no number"),
    layout("count-inf", lambda state: averaging(state, float("inf")), "n_averaged is no number"),
    layout("callback-count-text", lambda state: in_callback(state, ESC), "n_averaged is no number"),
    layout("callback-stale", lambda state: in_callback(state, 2), "swa has stale BatchNorm statistics"),
    layout(
        "two-networks",
        lambda state: {**behind("a.", state), **behind("b.", state)},
        "from last.a, last.b",
        "--weights=x",
    ),
    layout("other-sets", lambda state: averaging(state, 3), "choose from last, swa", "--weights", "ema"),
    layout(
        "prefix-shape", lambda state: lightning({**state, "classifier.weight": torch.ones(3)}), "1 of another shape"
    ),
    layout(
        "prefix-nan",
        lambda state: lightning({**state, "classifier.bias": state["classifier.bias"] * float("nan")}),
        "classifier.bias is not finite",
    ),
    layout("prefix-escapes", lambda state: {"model": behind(f"{ESC}.", {**state, "x": torch.ones(1)})}, "1 unexpected"),
    layout("long-names", other_names(1000), "tensors missing"),
    layout("empty-state", lambda _: {"state_dict": {}}, "tensors missing"),
    layout("empty-model", lambda _: {"model": {}, "model_ema": {}}, "ema has stale"),
    layout("text-in-state", lambda state: lightning({**state, "x": ESC}), "no weights found among its keys"),
]


# Exports: `swa export swa.pt`, with what cannot be written, or not from this.


def exported(name: str, words: str, piece: str, make: Make = nothing) -> Row:
    return Row(f"export-{name}", ["export", *words.split()], piece, make)


def export_with(name: str, edit: Edit, piece: str) -> Row:
    return exported(name, "bad.pt --format torch-export -o a.pt2", piece, edited("swa.pt", "bad.pt", edit))


AS_WEIGHTS, AS_GRAPH = "--format safetensors -o a.safetensors", "--format torch-export -o a.pt2"
EXPORTS = [
    exported("nothing", "", "Missing argument"),
    exported("no-format", "swa.pt -o a.onnx", "Missing option '--format'"),
    exported("no-file", "swa.pt --format onnx", "Missing option"),
    exported("format", "swa.pt --format tflite -o a.onnx", "choose safetensors, torch-export, onnx, state-dict"),
    exported("missing", f"bad.pt {AS_WEIGHTS}", "no such checkpoint"),
    exported("recipe", f"good.yaml {AS_WEIGHTS}", "cannot be read as a checkpoint"),
    exported("folder", f"run {AS_WEIGHTS}", "is no regular file"),
    exported("code", f"bad.pt {AS_WEIGHTS}", CODE_BESIDE, file("bad.pt", saved({"format": 1, "recipe": Evil()}))),
    exported("suffix", "swa.pt --format onnx -o a.pt", "name a .onnx file"),
    exported("no-suffix", "swa.pt --format state-dict -o a", "name a .pt file"),
    exported("no-folder", "swa.pt --format state-dict -o nowhere/a.pt", "nowhere: no such folder"),
    exported("to-folder", "swa.pt --format state-dict -o a.pt", "is no regular file", directory("a.pt")),
    exported("to-fifo", "swa.pt --format state-dict -o a.pt", "is no regular file", fifo("a.pt")),
    exported("to-link", "swa.pt --format state-dict -o a.pt", "is no regular file", link("a.pt", "gone")),
    exported("to-itself", "swa.pt --format state-dict -o ./swa.pt", "is the checkpoint itself"),
    exported("to-last", "swa.pt --format state-dict -o run/checkpoints/last.pt", "is a checkpoint of a run"),
    exported("weights", f"swa.pt --weights ema {AS_WEIGHTS}", "holds no weights 'ema'"),
    exported("several", f"run/checkpoints/last.pt {AS_WEIGHTS}", "one of them is exported"),
    exported("stale", f"run/checkpoints/last.pt --weights swag {AS_WEIGHTS}", "has stale BatchNorm statistics"),
    exported("normalization", f"swa.pt --with-normalization {AS_WEIGHTS}", "holds weights and no graph"),
    exported("forbidden", f"swa.pt optimizer.lr=1 {AS_WEIGHTS}", "optimizer.lr: cannot be changed here"),
    exported("no-recipe", f"plain.pt {AS_WEIGHTS}", "--recipe", plain_weights),
    exported(
        "result-broken",
        f"run/checkpoints/last.pt --weights last {AS_WEIGHTS}",
        "result.json",
        file("run/result.json", "["),
    ),
    export_with("nan", nan_inside, "not finite"),
    export_with("no-size", put("input/size", []), "cannot be exported"),
    export_with("size-negative", put("input/size", [-8, 8]), "cannot be exported"),
    export_with("size-endless", put("input/size", [10**9, 10**9]), "cannot be exported"),
    export_with("size-one", put("input/size", [8]), "cannot be exported"),
    export_with("outputs-other", put("input/outputs", 1), "2 of another shape"),
    export_with("channels-other", colour, "1 of another shape"),
    export_with("model-code", lambda content: put("model", OS_SYSTEM)(content["recipe"]), "would import and run code"),
]


# Runs that go on: `swa train --resume run`, whose last.pt is edited.


def resumed(name: str, edit: Edit, piece: str, *words: str) -> Row:
    last = "run/checkpoints/last.pt"
    return Row(f"resume-{name}", ["train", "--resume", "run", *words], piece, edited(last, last, edit))


def evaluated(name: str, edit: Edit, piece: str) -> Row:
    """A resume point that is scored."""
    words = ["eval", "bad.pt", "--allow-stale-bn"]
    return Row(f"eval-last-{name}", words, piece, edited("run/checkpoints/last.pt", "bad.pt", edit))


def in_recipe_of_run(old: str, new: str) -> Make:
    def make(folder: Path) -> None:
        text = (folder / "run/recipe.yaml").read_text()
        assert old in text
        (folder / "run/recipe.yaml").write_text(text.replace(old, new))

    return make


RESUMED = [
    resumed("other-rate", lambda _: None, "cannot be changed here", "optimizer.lr=3"),
    resumed("epoch", put("epoch", 7), "do not agree"),
    resumed("step-negative", put("step", -1), "step: Input should be greater than or equal to 0"),
    resumed("step-after-end", put("step", 10**9), "do not agree"),
    resumed("history-short", put("history", []), "do not agree"),
    resumed("history-empty-row", put("history", [{}]), "history"),
    resumed("history-escapes", put("history", [{"epoch": ESC}]), "history"),
    resumed("num-train", put("num_train", 5), "the run was begun with 5"),
    resumed("averages-none", put("averages", {}), "its averages are not those of its recipe"),
    resumed("average-kind", put("averages/swa/kind", "ema"), "the saved average has kind ema"),
    resumed("average-count", put("averages/swa/count", 5), "another number of steps than it counts"),
    resumed("average-shapes", put("averages/swa/state/classifier.weight", torch.ones(3)), "classifier.weight"),
    resumed("average-nan", put("averages/swag/m2/classifier.weight", torch.full((10, 16), float("nan"))), "no weights"),
    resumed("average-negative", put("averages/swag/m2/classifier.weight", -torch.ones(10, 16)), "no weights lead to"),
    resumed("average-no-m2", put("averages/swag/-m2", None), "the saved average lacks m2"),
    resumed("average-m2-text", put("averages/swag/m2", ESC), "averages.swag.m2"),
    resumed("average-deviations", put("averages/swag/deviations", {}), "saved average (deviations) do not match"),
    resumed("average-rank", put("averages/swag/rank", 4), "the saved average has rank 4, this one 3"),
    resumed("average-diagonal", put("averages/swag/diagonal", True), "the saved average has diagonal True"),
    resumed("optimizer-empty", put("optimizer", {}), "its optimizer state does not fit"),
    resumed("optimizer-groups", put("optimizer/param_groups", []), "its optimizer state does not fit"),
    resumed(
        "optimizer-other-group", put("optimizer/param_groups", [{"params": [0]}]), "its optimizer state does not fit"
    ),
    resumed(
        "optimizer-shape", put("optimizer/state/0/momentum_buffer", torch.ones(5)), "its optimizer state does not fit"
    ),
    resumed("optimizer-text", put("optimizer/state/0", ESC), "its optimizer state does not fit"),
    resumed("model-shape", put("model/classifier.weight", torch.ones(3)), "1 of another shape"),
    resumed("model-nan", put("model/classifier.weight", torch.full((10, 16), float("nan"))), "not finite"),
    resumed("running-mean-text", put("cumulative", ESC), "cumulative"),
    resumed("running-mean-missing", put("-cumulative", None), "cumulative: Field required"),
    resumed(
        "running-mean-of-no-recipe",
        lambda content: content.update(cumulative=content["averages"]["swa"]),
        "its running mean is not that of its steps",
    ),
    resumed("stopped", put("stopped", ESC), "stopped: Input should be"),
    resumed("recipe-other", put("recipe/optimizer/lr", 3.0), "optimizer.lr: is 0.1, and the run was begun with 3.0"),
    resumed("code", put("recipe/model", OS_SYSTEM), "the run was begun with os:system"),
    Row(
        "resume-code-everywhere",
        ["train", "--resume", "run"],
        "model.name os:system",
        lambda folder: (
            edited("run/checkpoints/last.pt", "run/checkpoints/last.pt", put("recipe/model", OS_SYSTEM))(folder),
            (folder / "run/recipe.yaml").unlink(),
        ),
    ),
    Row(
        "resume-threads-unknown",
        ["train", "--resume", "run"],
        "threads",
        all_of(
            in_recipe_of_run("threads: 1", "threads: auto"),
            edited("run/checkpoints/last.pt", "run/checkpoints/last.pt", put("environment", {})),
        ),
    ),
    Row(
        "resume-shipped-average",
        ["train", "--resume", "run"],
        "is no resume point",
        lambda folder: shutil.copy(folder / "swa.pt", folder / "run/checkpoints/last.pt"),
    ),
    Row(
        "resume-recipe-edited",
        ["train", "--resume", "run"],
        "optimizer.lr: is 3.0",
        in_recipe_of_run("lr: 0.1", "lr: 3.0"),
    ),
    Row("resume-recipe-broken", ["train", "--resume", "run"], "is not text in UTF-8", file("run/recipe.yaml", b"\xff")),
    Row("resume-about-broken", ["train", "--resume", "run"], "run.json", file("run/run.json", b"{\xff")),
    Row("resume-about-list", ["train", "--resume", "run"], "run.json", file("run/run.json", b"[1]")),
    Row("resume-log-link", ["train", "--resume", "run"], "is a symbolic link", link("run/log.txt", "elsewhere")),
    Row("resume-folder-link", ["train", "--resume", "run"], "is a symbolic link", link("run/checkpoints", "elsewhere")),
    Row("resume-finished", ["train", "--resume", "run"], "is finished", file("run/result.json", b"{}")),
    Row("resume-empty-folder", ["train", "--resume", "empty"], "there is no run to go on with", directory("empty")),
    Row("resume-missing", ["train", "--resume", "nowhere"], "there is no run to go on with", nothing),
    Row("resume-recipe-file", ["train", "--resume", "good.yaml"], "there is no run to go on with", nothing),
    Row("resume-escapes", ["train", "--resume", ESC], "there is no run to go on with", nothing),
    evaluated("count", put("averages/swa/count", 9), "another number of steps than it counts"),
    evaluated(
        "decay", lambda content: content["averages"]["swa"].update(kind="ema", decay=7.0), "decay: 7.0 does not fit"
    ),
    evaluated("rank", put("averages/swag/rank", 1), "rank: 1 does not fit kind swag"),
    evaluated("deviations", put("averages/swag/-deviations", None), "the saved average lacks deviations"),
    evaluated("shape", put("averages/swa/state/classifier.weight", torch.ones(3)), "classifier.weight"),
    evaluated("nan", put("averages/swa/state/classifier.weight", torch.full((10, 16), float("nan"))), "not finite"),
]


# Folders of images: `swa train good.yaml dataset.name=image_folder`.


def picture(name: str, size: tuple[int, int] = (8, 8)) -> Make:
    buffer = io.BytesIO()
    Image.new("RGB", size, (9, 9, 9)).save(buffer, "png")
    return file(f"pets/{name}", buffer.getvalue())


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def images(name: str, make: Make, piece: str, *words: str) -> Row:
    base = ["train", "good.yaml", "dataset.name=image_folder", "dataset.root=pets", "dataset.val=1"]
    return Row(f"images-{name}", [*base, "train.batch_size=2", *words], piece, make)


pets = all_of(*(picture(f"{label}/{index}.png") for label in ("cat", "dog") for index in range(3)))
PNG = b"\x89PNG\r\n\x1a\n"
GIGAPIXELS = PNG + chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)) + chunk(b"IEND", b"")
IMAGES = [
    images("missing", nothing, "no class folders with images in pets"),
    images("is-file", file("pets", "x"), "no class folders with images in pets"),
    images("no-classes", file("pets/readme.txt", "x"), "no class folders with images in pets"),
    images("no-images", file("pets/cat/readme.txt", "x"), "no class folders with images in pets"),
    images("empty-class", all_of(pets, directory("pets/eel")), "no images in pets/eel"),
    images("escapes-in-class", all_of(pets, directory(f"pets/{ESC}")), "no images in pets/"),
    images("broken-first", all_of(pets, file("pets/cat/0.png", b"\x89PNG\r\n")), "1 image file cannot be read"),
    images("broken-later", all_of(pets, file("pets/dog/1.png", b"\x89PNG\r\n")), "1 image file cannot be read"),
    images("text", all_of(pets, file("pets/dog/1.png", "hello")), "1 image file cannot be read"),
    images("empty-file", all_of(pets, file("pets/dog/1.png", "")), "1 image file cannot be read"),
    images("dangling", all_of(pets, link("pets/dog/9.png", "gone")), "1 image file cannot be read"),
    images("fifo", all_of(pets, fifo("pets/cat/0.png")), "pets/cat/0.png"),
    images("gigapixels", all_of(pets, file("pets/dog/1.png", GIGAPIXELS)), "1 image file cannot be read"),
    images("sizes", all_of(pets, picture("dog/1.png", (9, 8))), "images differ in size"),
    images("new-class", all_of(*(picture(f"{part}.png") for part in ("train/a/1", "test/b/1"))), "has classes that"),
    images("size-negative", pets, "image_folder does not take", "dataset.args={size: -8}"),
    images("size-text", pets, "image_folder does not take", "dataset.args={size: big}"),
    images("size-endless", pets, "size", "dataset.args={size: 1000000000000}"),
    images("unknown-argument", pets, "image_folder does not take", "dataset.args={colour: grey}"),
    images("other-dataset", pets, "did you mean 'digits'", "dataset.name=digit"),
    images("not-downloaded", nothing, "the files of mnist are missing", "dataset.name=mnist", "dataset.download=false"),
    images("no-factory", pets, "no_such_module:make cannot be imported", "dataset.name=no_such_module:make"),
]


# Starts: `swa train good.yaml train.init=bad.pt`.


def start(name: str, make: Make, piece: str, *words: str) -> Row:
    return Row(f"start-{name}", ["train", "good.yaml", "train.init=bad.pt", *words], piece, make)


def start_with(name: str, edit: Edit, piece: str, *words: str) -> Row:
    return start(name, edited("swa.pt", "bad.pt", edit), piece, *words)


whole = edited("swa.pt", "bad.pt", lambda _: None)
STARTS = [
    start("code", file("bad.pt", saved({"format": 1, "recipe": Evil()})), "cannot be read as a checkpoint"),
    start("fifo", fifo("bad.pt"), "is no regular file"),
    start("empty", file("bad.pt", b""), "cannot be read as a checkpoint"),
    start("other-weights", whole, "train.init_weights: bad.pt holds no weights `ema`", "train.init_weights=ema"),
    start("all-weights", whole, "holds no weights `all`", "train.init_weights=all"),
    start("escapes-in-name", whole, "holds no weights", f"train.init_weights={ESC}"),
    start("other-width", whole, "of another shape", "model.args.width=8"),
    start("other-network", whole, "does not fit the recipe's model", "model={name: preresnet, args: {depth: 8}}"),
    start_with("nan", nan_inside, "is not finite"),
    start_with("number-names", number_name, "state_dict.3"),
    start_with("future", put("format", 99), "is of format 99"),
    start_with("no-weights", lambda _: {"epoch": 3}, "no weights found among its keys"),
    start_with("theirs-shape", lambda _: {"classifier.weight": torch.ones(3)}, "1 of another shape"),
    start("skip-nothing", whole, "matches no tensor", "train.init_skip=[head.*]"),
    start("skip-escapes", whole, "matches no tensor", 'train.init_skip=["\\e[31m"]'),
    start_with("skip-too-little", put("state_dict/classifier.weight", torch.ones(5, 16)), "init_skip=[classifier.*]"),
    start_with("escapes-in-names", put(f"state_dict/{ESC}", torch.ones(1)), "1 unexpected"),
    start(
        "of-another-network",
        edited("run/checkpoints/last.pt", "bad.pt", lambda _: None),
        "does not fit the recipe's model",
        "model.args.width=8",
    ),
    start(
        "average-of-another-network",
        edited("run/checkpoints/last.pt", "bad.pt", lambda _: None),
        "train.init: the tensors of the",
        "model.args.width=8",
        "train.init_weights=swa",
    ),
]


# Words of the command line.


def usage(name: str, command: str, piece: str, make: Make = nothing) -> Row:
    return Row(f"usage-{name}", command.split(), piece, make)


USAGE = [
    usage("no-such-command", "trian good.yaml", "No such command"),
    usage("no-such-option", "train good.yaml --epochs 3", "No such option"),
    usage("train-nothing", "train", "name a recipe, or a run folder with --resume"),
    usage("train-json", "train good.yaml optimizer.lr=x --json", "optimizer.lr:"),
    usage("resume-dry-run", "train --resume run --dry-run", "--resume goes on in its own folder"),
    usage("resume-out", "train --resume run --out other", "--resume goes on in its own folder"),
    usage("resume-recipe", "train good.yaml --resume run", "leave the recipe out with --resume"),
    usage("extend-alone", "train good.yaml --extend-to 9", "--extend-to goes with --resume"),
    usage("extend-zero", "train --resume run --extend-to 0", "--extend-to"),
    usage("extend-text", "train --resume run --extend-to more", "--extend-to"),
    usage("extend-fewer", "train --resume run --extend-to 1", "--extend-to 1: the run has 2 epochs"),
    usage("extend-endless", "train --resume run --extend-to 99999999999999999", "more than any run has"),
    usage("out-is-file", "train good.yaml --out good.yaml", "output.root: good.yaml cannot hold run folders"),
    usage("out-below-file", "train good.yaml --out good.yaml/runs", "cannot hold run folders"),
    usage("eval-nothing", "eval", "Missing argument"),
    usage("eval-recipe", "eval good.yaml", "cannot be read as a checkpoint"),
    usage("eval-two", "eval swa.pt swa.pt", "has no value"),
    usage("eval-split", "eval swa.pt --split dev", "choose test, val or train"),
    usage("eval-no-split", "eval swa.pt --split val", "digits has no val split"),
    usage("eval-weights", "eval swa.pt --weights ema", "holds no weights 'ema'"),
    usage("eval-no-run", "eval empty", "has no checkpoints/last.pt: it is no run folder", directory("empty")),
    usage("eval-run-weights", "eval run --weights ema", "holds no weights 'ema'"),
    usage("eval-run-average", "eval run", "cannot be read as a checkpoint", file("run/checkpoints/swa.pt", b"PK")),
    usage("eval-run-last", "eval run", "is no regular file", fifo("run/checkpoints/last.pt")),
    usage("ensemble-none", "eval run --ensemble", "has 0 snapshots, and an ensemble takes at least 2"),
    usage("ensemble-file", "eval swa.pt --ensemble", "is a file, and an ensemble is made of the snapshots of a run"),
    usage("ensemble-fifo", "eval run --ensemble", "is no regular file", fifo("run/snapshots/step-00000003.pt")),
    usage(
        "ensemble-recipe",
        "eval run --ensemble",
        "cannot be read as a checkpoint",
        file("run/snapshots/step-00000003.pt", GOOD),
    ),
    usage("eval-stale", "eval run/checkpoints/last.pt", "has stale BatchNorm statistics"),
    usage("eval-forbidden", "eval swa.pt optimizer.lr=1", "optimizer.lr: cannot be changed here"),
    usage("eval-section", "eval swa.pt dataset=digits", "cannot be changed here"),
    usage("eval-about-broken", "eval run/checkpoints/last.pt", "run.json", file("run/run.json", "{")),
    usage("draws-zero", "eval swag.pt --draws 0", "--draws"),
    usage("draws-text", "eval swag.pt --draws many", "--draws"),
    usage("draws-of-mean", "eval swa.pt --draws 3", "--draws takes an average of kind swag: swa is mean"),
    usage("draws-of-last", "eval run/checkpoints/last.pt --weights last --draws 3", "last is raw"),
    usage("draws-samples-alone", "eval swag.pt --samples 100", "--samples goes with --draws"),
    usage("draws-samples-text", "eval swag.pt --draws 2 --samples many", "is neither `all` nor a count"),
    usage("draws-samples-zero", "eval swag.pt --draws 2 --samples 0", "is neither `all` nor a count"),
    usage("bn-nothing", "bn-update", "Missing argument"),
    usage("bn-weights", "bn-update swa.pt --weights ema", "holds no weights 'ema'"),
    usage("bn-raw", "bn-update run/checkpoints/last.pt --weights last", "its raw weights are what training goes on"),
    usage("bn-samples-text", "bn-update swa.pt --samples many", "is neither `all` nor a count"),
    usage("bn-samples-zero", "bn-update swa.pt --samples 0", "is neither `all` nor a count"),
    usage("bn-samples-negative", "bn-update swa.pt --samples -5", "is neither `all` nor a count"),
    usage("bn-out-no-folder", "bn-update swa.pt -o nowhere/x.pt", "nowhere: no such folder"),
    usage("bn-out-folder", "bn-update swa.pt -o run", "is no name for a checkpoint"),
    usage("bn-out-safetensors", "bn-update swa.pt -o x.safetensors", "is no name for a checkpoint"),
    usage("bn-out-fifo", "bn-update swa.pt -o pipe", "pipe: is no", fifo("pipe")),
    usage("bn-out-link", "bn-update swa.pt -o link.pt", "is a symbolic link", link("link.pt", "gone")),
    usage("bn-link", "bn-update link.pt", "is a symbolic link", link("link.pt", "swa.pt")),
    usage("bn-locked-log", "bn-update run/checkpoints/last.pt", "is a symbolic link", link("run/log.txt", "elsewhere")),
]


# Repeats: wrong seeds and words, and a repeat folder whose parts are not as they were left.


def seeds(name: str, text: str, piece: str) -> Row:
    return Row(f"seeds-{name}", ["repeat", "good.yaml", f"--seeds={text}"], piece, nothing)


def repeated(name: str, piece: str, make: Make) -> Row:
    """The repeat folder of good.yaml has `run` as its stopped seed 0, before `make`."""

    def begun(folder: Path) -> None:
        shutil.copytree(folder / "run", folder / REPEAT / "seed-0")
        for part in ("repeat.json", "log.txt"):
            file(f"{REPEAT}/{part}", "{}")(folder)
        file(f"{REPEAT}/recipe.yaml", GOOD)(folder)

    return Row(f"repeat-{name}", ["repeat", "good.yaml", "--seeds", "0-1"], piece, all_of(begun, make))


def seed_result(name: str, text: str, piece: str) -> Row:
    """The seed is finished, with this result.json."""
    return repeated(name, piece, file(f"{REPEAT}/seed-0/result.json", text))


def seed_of_other_rate(folder: Path) -> None:
    path = folder / REPEAT / "seed-0/recipe.yaml"
    path.write_text(path.read_text().replace("lr: 0.1", "lr: 3.0"))


def scored_on_other_samples(folder: Path) -> None:
    shutil.copytree(folder / REPEAT / "seed-0", folder / REPEAT / "seed-1")
    recipe = folder / REPEAT / "seed-1/recipe.yaml"
    recipe.write_text(recipe.read_text().replace("seed: 0", "seed: 1"))
    for seed in (0, 1):
        text = SCORED.replace('"samples": 1', f'"samples": {360 - seed}')
        (folder / REPEAT / f"seed-{seed}/result.json").write_text(text)


REPEAT = "runs/good-repeat-001"
SCORED = (
    '{"split": "test", "samples": 1, "seconds": 1.0, "device": "cpu", "precision": "fp32", '
    '"weights": {"last": {"accuracy": 0.5, "nll": 1.0, "ece": 0.1, "top5": null, "brier": 0.1}}}'
)
REPEATS = [
    seeds("empty", "", "is neither a seed nor a range of seeds"),
    seeds("text", "many", "`many` is neither a seed nor a range"),
    seeds("one", "3", "one seed has no spread"),
    seeds("one-as-range", "3-3", "one seed has no spread"),
    seeds("backwards", "4-0", "4 to 0 counts down"),
    seeds("negative", "-2-3", "is neither a seed nor a range"),
    seeds("twice", "0,0", "seed 0 is named twice"),
    seeds("overlap", "0-3,2", "seed 2 is named twice"),
    seeds("comma-at-end", "0-1,", "is neither a seed nor a range"),
    seeds("dots", "0..4", "is neither a seed nor a range"),
    seeds("half", "0.5,1", "is neither a seed nor a range"),
    seeds("underscore", "0,1_0", "is neither a seed nor a range"),
    seeds("other-digits", "0,\N{ARABIC-INDIC DIGIT ONE}", "is neither a seed nor a range"),
    seeds("endless", "0-999999999999", "more than 1,000 seeds"),
    seeds("too-large", "0,9999999999999999999", "is too large for a seed"),
    seeds("far-too-large", "0," + "9" * 5000, "is neither a seed nor a range"),
    seeds("escapes", f"0,{ESC}", "is neither a seed nor a range"),
    Row("repeat-nothing", ["repeat"], "Missing argument", nothing),
    Row("repeat-no-seeds", ["repeat", "good.yaml"], "Missing option '--seeds'", nothing),
    Row("repeat-resume", ["repeat", "--resume", "run", "--seeds", "0-1"], "No such option", nothing),
    Row("repeat-seed", ["repeat", "good.yaml", "--seeds", "0-1", "seed=3"], "are those of --seeds", nothing),
    Row("repeat-no-recipe", ["repeat", "bad.yaml", "--seeds", "0-1"], "there is no such file", nothing),
    Row("repeat-change", ["repeat", "good.yaml", "--seeds", "0-1", "optimizer.lr=x"], "is not a number", nothing),
    Row(
        "repeat-start", ["repeat", "good.yaml", "--seeds", "0-1", "swa.start=3ep"], "after the end of the run", nothing
    ),
    Row("repeat-option", ["repeat", "good.yaml", "--seeds", "0-1", "optimizer.name=SDG"], "`SGD`?", nothing),
    Row("repeat-out", ["repeat", "good.yaml", "--seeds", "0-1", "-o", "swa.pt"], "cannot hold run folders", nothing),
    repeated("log-link", "is a symbolic link", link(f"{REPEAT}/log.txt", "elsewhere")),
    repeated("seed-file", "is no folder of a seed", file(f"{REPEAT}/seed-1", "x")),
    repeated("seed-link", "is no folder of a seed", link(f"{REPEAT}/seed-0", "elsewhere")),
    repeated("seed-of-other-rate", "optimizer.lr is 3.0, and the repeat has 0.1", seed_of_other_rate),
    repeated("seed-recipe-gone", "no such file", lambda folder: (folder / REPEAT / "seed-0/recipe.yaml").unlink()),
    repeated("other-samples", "seed 0 on 360 test, seed 1 on 359 test", scored_on_other_samples),
    seed_result("result-empty", "", "result.json: is not as swa writes it"),
    seed_result("result-list", "[1]", "result.json: is not as swa writes it"),
    seed_result("result-deep", "[" * 100_000, "result.json: is not as swa writes it"),
    seed_result("result-no-scores", "{}", "split: Field required"),
    seed_result("result-no-last", SCORED.replace("last", "swa"), "has no last"),
    seed_result("result-text", SCORED.replace("0.5", '"\\u001b[31m"'), "weights.last.accuracy"),
    Row(
        "resume-repeat",
        ["train", "--resume", REPEAT],
        "is the folder of a repeat",
        all_of(file(f"{REPEAT}/repeat.json", "{}"), file(f"{REPEAT}/recipe.yaml", GOOD)),
    ),
]


# Averages: `swa average`, of a run whose snapshots are made of swa.pt, at steps 5 and 10.


def snapshots(*edits: Edit, folder: str = "run/snapshots", cumulative: bool = False) -> Make:
    """A snapshot for each edit, with its running mean if asked for."""

    def make(place: Path) -> None:
        (place / folder).mkdir(parents=True, exist_ok=True)
        for number, edit in enumerate(edits, start=1):
            content = torch.load(place / "swa.pt", weights_only=True)
            state, names = content["state_dict"], ("weight", "bias")
            means = {name: value.double() for name, value in state.items() if name.endswith(names)}
            kept = {key: content[key] for key in ("format", "recipe", "input", "state_dict")}
            kept |= {"num_train": 1437, "epoch": number, "step": 5 * number, "batchnorm": "running"}
            kept["cumulative"] = {"count": 5 * number, "state": means} if cumulative else None
            result = edit(kept)
            torch.save(kept if result is None else result, place / folder / f"step-{5 * number:08d}.pt")

    return make


def averaged(name: str, command: str, piece: str, make: Make = nothing) -> Row:
    return Row(f"average-{name}", ["average", *command.split()], piece, make)


def each(*edits: Edit) -> Edit:
    """One edit after the other; without any, the content as it is."""

    def edit(content: dict[str, Any]) -> None:
        for one in edits:
            one(content)

    return edit


as_is = each()


def in_run(name: str, edit: Edit, piece: str, *, cumulative: bool = True) -> Row:
    """The second snapshot of a run is edited; a window is asked for."""
    make = snapshots(as_is, edit, cumulative=cumulative)
    return averaged(name, "run --window 5step:10step -o out.pt", piece, make)


NAN = torch.full((10, 16), float("nan"))
other_width = edited("swa.pt", "bad.pt", lambda content: {**content, "recipe": {**content["recipe"], "model": WIDE}})
WIDE = {"name": "convnet", "args": {"width": 8}}
two = snapshots(as_is, as_is)
AVERAGES = [
    averaged("nothing", "", "Missing argument"),
    averaged("no-out", "swa.pt", "Missing option"),
    averaged("no-source", "train.threads=1 -o out.pt", "name a run folder"),
    averaged("missing", "gone.pt -o out.pt", "no such checkpoint"),
    averaged("recipe", "good.yaml -o out.pt", "cannot be read as a checkpoint"),
    averaged("folder", "run/checkpoints -o out.pt", "no run folder with snapshots"),
    averaged("run-without-snapshots", "run -o out.pt", "snapshots={every: 1ep}"),
    averaged("twice", "swa.pt ./swa.pt -o out.pt", "is named twice"),
    averaged(
        "twice-by-link", "swa.pt link.pt -o out.pt", "is named twice", lambda f: (f / "link.pt").symlink_to("swa.pt")
    ),
    averaged("out-is-source", "swa.pt -o swa.pt", "swa.pt: is one of the sources"),
    averaged("out-is-snapshot", "run -o run/snapshots/step-00000005.pt", "is one of the sources", two),
    averaged("out-is-last", "swa.pt -o run/checkpoints/last.pt", "is what its run goes on from"),
    averaged("out-no-folder", "swa.pt -o nowhere/out.pt", "nowhere: no such folder"),
    averaged("out-folder", "swa.pt -o run", "is no name for the result"),
    averaged("out-recipe", "swa.pt -o good.yaml", "is no name for the result"),
    averaged("out-fifo", "swa.pt -o out.pt", "is no name for the result", fifo("out.pt")),
    averaged("out-link", "swa.pt -o out.pt", "is a symbolic link", link("out.pt", "gone")),
    averaged("plot-alone", "swa.pt -o out.pt --plot x.png", "--plot draws what --search tried"),
    averaged("plot-text", "run -o out.pt --search --plot x.svg", "x.svg: is no name for the result", two),
    averaged("plot-folder", "run -o out.pt --search --plot nowhere/x.png", "nowhere: no such folder", two),
    averaged("two-ways", "swa.pt -o out.pt --last 1 --greedy", "--last and --greedy are two ways to choose"),
    averaged("greedy-stale", "swa.pt -o out.pt --greedy --no-bn", "no --no-bn"),
    averaged("greedy-no-val", "swa.pt -o out.pt --greedy", "digits has no validation split"),
    averaged("greedy-other-val", "swa.pt -o out.pt --greedy dataset.val=10%", "was trained on validation images"),
    averaged("search-no-val", "run -o out.pt --search", "digits has no validation split", two),
    averaged("search-average", "swa.pt -o out.pt --search", "swa.pt: is no snapshot"),
    averaged("last-zero", "swa.pt -o out.pt --last 0", "--last"),
    averaged("last-more", "swa.pt -o out.pt --last 2", "--last 2: number of sources: 1"),
    averaged("weights-count", "swa.pt -o out.pt --weights 1,2", "--weights: 2 numbers, number of sources: 1"),
    averaged("weights-negative", "swa.pt -o out.pt --weights -1", "write finite numbers from 0 on"),
    averaged("weights-zero", "swa.pt -o out.pt --weights 0,0", "not all of them 0"),
    averaged("weights-nan", "swa.pt -o out.pt --weights nan", "write finite numbers"),
    averaged("weights-huge", "swa.pt swa.pt -o out.pt --weights 1e308,1e308", "write finite numbers"),
    averaged("weights-text", "swa.pt -o out.pt --weights all", "write numbers"),
    averaged("window-one-end", "run -o out.pt --window 3ep", "write two points", two),
    averaged("window-no-unit", "run -o out.pt --window 1:2", "has no unit", two),
    averaged("window-backwards", "run -o out.pt --window 2ep:1ep", "ends before it starts", two),
    averaged("window-after-end", "run -o out.pt --window 1ep:3ep", "after the end of the run, epoch 2", two),
    averaged("window-empty", "run -o out.pt --window 6step:8step", "nearest are step 5 and step 10", two),
    averaged("window-cycles", "run -o out.pt --window 1cycle:2cycle", "has 0 minima", two),
    averaged("window-average", "swa.pt -o out.pt --window 1ep:2ep", "is no snapshot"),
    averaged(
        "window-two-runs",
        "run other -o out.pt --window 1ep:2ep",
        "lie in two folders",
        all_of(two, snapshots(as_is, folder="other/snapshots")),
    ),
    averaged("forbidden", "swa.pt -o out.pt optimizer.lr=1", "optimizer.lr: cannot be changed here"),
    averaged("unknown-key", "swa.pt -o out.pt dataset.rot=x", "dataset.root"),
    averaged("no-recipe", "swa.pt plain.pt -o out.pt", "plain.pt: was not written by swa", plain_weights),
    averaged("other-recipe", "swa.pt bad.pt -o out.pt", "bad.pt: model.args.width is 8, elsewhere 4", other_width),
    averaged(
        "other-shapes",
        "swa.pt bad.pt -o out.pt",
        "bad.pt (swa): does not fit the recipe's model: 1 tensors missing, 0 unexpected, 1 of another shape",
        edited(
            "swa.pt",
            "bad.pt",
            each(put("state_dict/-classifier.bias", None), put("state_dict/classifier.weight", torch.ones(3))),
        ),
    ),
    averaged(
        "not-finite",
        "swa.pt bad.pt -o out.pt",
        "classifier.weight is not finite",
        edited("swa.pt", "bad.pt", put("state_dict/classifier.weight", NAN)),
    ),
    averaged(
        "other-input",
        "swa.pt bad.pt -o out.pt",
        "was trained on images of another mean",
        edited("swa.pt", "bad.pt", put("input/mean", [0.5])),
    ),
    averaged(
        "other-classes",
        "swa.pt bad.pt -o out.pt",
        "was trained on images of another classes",
        edited("swa.pt", "bad.pt", put("input/classes", [ESC] * 10)),
    ),
    averaged("code", "bad.pt -o out.pt", "os:system", edited("swa.pt", "bad.pt", put("recipe/model", OS_SYSTEM))),
    averaged(
        "code-later", "swa.pt bad.pt -o out.pt", "os:system", edited("swa.pt", "bad.pt", put("recipe/model", OS_SYSTEM))
    ),
    averaged("recipe-text", "swa.pt bad.pt -o out.pt", "seed", edited("swa.pt", "bad.pt", put("recipe/seed", ESC))),
    averaged("locked", "swa.pt -o run/checkpoints/x.pt", "is a symbolic link", link("run/log.txt", "elsewhere")),
    in_run("step-zero", put("step", 0), "step: Input should be greater than 0"),
    in_run("step-of-other-mean", put("step", 7), "has to count the steps"),
    in_run("same-step", each(put("step", 5), put("cumulative/count", 5)), "of one step"),
    in_run("num-train-huge", put("num_train", 10**18), "more than any run has"),
    in_run("num-train-zero", put("num_train", 0), "num_train: Input should be greater than 0"),
    in_run("endless", each(put("step", 10**17), put("cumulative/count", 10**17)), "cumulative.count"),
    in_run("mean-text", put("cumulative", ESC), "cumulative"),
    in_run("mean-none", put("cumulative", None), "keeps no running mean, and others do"),
    in_run("mean-empty", put("cumulative/state", {}), "tensors of the running mean"),
    in_run("mean-shape", put("cumulative/state/classifier.weight", torch.ones(3)), "classifier.weight [3] instead of"),
    in_run(
        "mean-nan",
        put("cumulative/state/classifier.weight", NAN.double()),
        "(running mean): classifier.weight is not finite",
    ),
    in_run(
        "mean-whole",
        put("cumulative/state/classifier.weight", torch.ones(10, 16, dtype=torch.int64)),
        "is of torch.int64",
    ),
    in_run("mean-of-text", put("cumulative/state/classifier.weight", ESC), "cumulative.state.classifier.weight"),
    in_run("broken", lambda content: {}, "was not written by swa"),
]

ROWS = [
    *RECIPES,
    *CHANGES,
    *FILES,
    *CONTENTS,
    *POSTERIORS,
    *THEIRS,
    *LAYOUTS,
    *EXPORTS,
    *RESUMED,
    *IMAGES,
    *STARTS,
    *USAGE,
    *REPEATS,
    *AVERAGES,
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder after training: the run is as it was after its first epoch."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "good.yaml").write_text(GOOD)
    threads = torch.get_num_threads()
    code = cli.run(["train", str(folder / "good.yaml"), "-q", "--out", str(folder)])
    torch.set_num_threads(threads)
    assert code == 0
    (folder / "latest").unlink()
    run = (folder / "good-001").rename(folder / "run")
    for name in ("swa.pt", "swag.pt"):
        (run / "checkpoints" / name).rename(folder / name)
    (run / "checkpoints/previous.pt").rename(run / "checkpoints/last.pt")
    for name in ("result.json", "curves.png"):
        (run / name).unlink()
    return folder


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    """A row that hangs, or takes more memory than any sound answer needs, fails."""

    def give_up(number: int, frame: object) -> None:
        pytest.fail(f"no answer within {SECONDS} s")

    before, (soft, hard) = signal.signal(signal.SIGALRM, give_up), resource.getrlimit(resource.RLIMIT_AS)
    size = Path("/proc/self/statm")
    if size.exists():
        pages = int(size.read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def tree(folder: Path) -> dict[str, tuple[object, ...]]:
    """Everything in a folder: kind, time of the last change, and content."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(folder.rglob("*")):
        about = path.lstat()
        held: bytes | str = b""
        if stat.S_ISREG(about.st_mode):
            held = path.read_bytes()
        elif stat.S_ISLNK(about.st_mode):
            held = os.readlink(path)
        found[str(path.relative_to(folder))] = (about.st_mode, about.st_mtime_ns, about.st_ino, held)
    return found


def named(rows: Iterable[Row]) -> list[Any]:
    return [pytest.param(row, id=row.name) for row in rows]


@pytest.mark.parametrize("row", named(ROWS))
def test_refused_in_one_message_and_nothing_written(swa, trained: Path, tmp_path: Path, row: Row) -> None:
    """Exit code, reason, silence on stdout, and the whole folder before the command against after it."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    row.make(tmp_path)
    before = tree(tmp_path)
    ended = swa(*row.words)
    assert row.piece in " ".join(ended.err.split())
    assert ended.code == row.code, ended.err
    assert "Traceback" not in ended.err
    assert "\x1b" not in ended.err
    assert ended.out == ""
    assert tree(tmp_path) == before


def test_untouched_folder_is_accepted(swa, trained: Path, tmp_path: Path) -> None:
    """What the rows above start from is good: each command that refuses them there takes it as it is."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    assert swa("eval", "swa.pt").code == 0
    assert swa("eval", "swag.pt", "--draws", "2").code == 0
    assert swa("bn-update", "swa.pt", "-o", "bad.pt").code == 0
    assert swa("export", "swa.pt", *AS_GRAPH.split()).code == 0
    assert swa("train", "good.yaml", "--dry-run").code == 0
    assert swa("eval", "run").code == 0
    assert swa("train", "good.yaml", "train.init=swa.pt", "--dry-run").code == 0
    assert swa("train", "--resume", "run").code == 0


def test_untouched_snapshots_are_accepted(swa, trained: Path, tmp_path: Path) -> None:
    """What the rows of `swa average` start from is good: an exact window of the run, and a mean with another file."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    snapshots(as_is, as_is, cumulative=True)(tmp_path)
    assert swa("average", "run", "--window", "5step:10step", "-o", "out.pt").code == 0
    assert swa("average", "swa.pt", "out.pt", "-o", "out-2.pt").code == 0
