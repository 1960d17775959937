"""Wrong words on the command line."""

from __future__ import annotations

import shutil

from hostile.contents import OS_SYSTEM
from hostile.making import GOOD, Make, Row, all_of, directory, edited, fifo, file, link, nothing, put

# Words of the command line.


def usage(name: str, command: str, piece: str, make: Make = nothing) -> Row:
    return Row(f"usage-{name}", command.split(), piece, make)


USAGE = [
    usage("no-such-command", "trian good.yaml", "No such command"),
    usage("no-such-option", "train good.yaml --epochs 3", "No such option"),
    usage("train-nothing", "train", "name a recipe, or a run folder with --resume"),
    usage("train-json", "train good.yaml optimizer.lr=x --json", "optimizer.lr:"),
    usage("resume-dry-run", "train --resume run --dry-run", "--resume"),
    usage("resume-out", "train --resume run --out other", "--resume"),
    usage("resume-recipe", "train good.yaml --resume run", "leave the recipe out with --resume"),
    usage("extend-alone", "train good.yaml --extend-to 9", "--extend-to goes with --resume"),
    usage("extend-zero", "train --resume run --extend-to 0", "--extend-to"),
    usage("extend-text", "train --resume run --extend-to more", "--extend-to"),
    usage("extend-fewer", "train --resume run --extend-to 1", "--extend-to 1: the run has 2 epochs"),
    usage("extend-endless", "train --resume run --extend-to 99999999999999999", "train.epochs:"),
    usage("out-is-file", "train good.yaml --out good.yaml", "output.root:"),
    usage("out-below-file", "train good.yaml --out good.yaml/runs", "output.root:"),
    usage("eval-nothing", "eval", "Missing argument"),
    usage("eval-recipe", "eval good.yaml", "cannot be read as a checkpoint"),
    usage("eval-two", "eval swa.pt swa.pt", "is not KEY=VALUE"),
    usage("eval-split", "eval swa.pt --split dev", "choose test, val or train"),
    usage("eval-no-split", "eval swa.pt --split val", "digits has no val split"),
    usage("eval-weights", "eval swa.pt --weights ema", "'ema'"),
    usage("eval-no-run", "eval empty", "empty:", directory("empty")),
    usage("eval-run-weights", "eval run --weights ema", "'ema'"),
    usage("eval-run-average", "eval run", "run/checkpoints/swa.pt:", file("run/checkpoints/swa.pt", b"PK")),
    usage("eval-run-raw", "eval run", "run/checkpoints/last_bn.pt:", file("run/checkpoints/last_bn.pt", b"PK")),
    usage("eval-run-raw-fifo", "eval run", "is no regular file", fifo("run/checkpoints/last_bn.pt")),
    usage(
        "eval-run-raw-is-average",
        "eval run",
        "weights last_bn",
        lambda folder: shutil.copy(folder / "swa.pt", folder / "run/checkpoints/last_bn.pt"),
    ),
    usage(
        "eval-run-raw-of-other",
        "eval run",
        "optimizer.lr",
        edited("last_bn.pt", "run/checkpoints/last_bn.pt", put("recipe/optimizer/lr", 3.0)),
    ),
    usage("eval-run-last", "eval run", "run/checkpoints/last.pt:", fifo("run/checkpoints/last.pt")),
    usage("ensemble-none", "eval run --ensemble", "snapshots.every=1ep"),
    usage("ensemble-file", "eval swa.pt --ensemble", "name the folder of its run"),
    usage("ensemble-fifo", "eval run --ensemble", "is no regular file", fifo("run/snapshots/step-00000003.pt")),
    usage(
        "ensemble-recipe",
        "eval run --ensemble",
        "cannot be read as a checkpoint",
        file("run/snapshots/step-00000003.pt", GOOD),
    ),
    usage("eval-stale", "eval run/checkpoints/last.pt", "has stale BatchNorm statistics"),
    usage("eval-mean", "eval swa.pt dataset.mean=[0.1]", "dataset.mean: the weights were trained"),
    usage("eval-std", "bn-update swa.pt dataset.std=[0.1]", "dataset.std: the weights were trained"),
    usage("eval-forbidden", "eval swa.pt optimizer.lr=1", "optimizer.lr: cannot be changed here"),
    usage("eval-section", "eval swa.pt dataset=digits", "dataset:"),
    usage(
        "eval-about-broken",
        "eval run/checkpoints/last.pt --allow-code",
        "run.json",
        all_of(
            edited("run/checkpoints/last.pt", "run/checkpoints/last.pt", put("recipe/model", OS_SYSTEM)),
            file("run/run.json", "{"),
        ),
    ),
    usage("draws-zero", "eval swag.pt --draws 0", "--draws"),
    usage("draws-text", "eval swag.pt --draws many", "--draws"),
    usage("draws-of-mean", "eval swa.pt --draws 3", "--draws takes an average of kind swag: swa is mean"),
    usage("draws-of-last", "eval run/checkpoints/last.pt --weights last --draws 3", "last is raw"),
    usage("draws-samples-alone", "eval swag.pt --samples 100", "--samples goes with --draws"),
    usage("draws-samples-text", "eval swag.pt --draws 2 --samples many", "swa.batchnorm.samples:"),
    usage("draws-samples-zero", "eval swag.pt --draws 2 --samples 0", "swa.batchnorm.samples:"),
    usage("bn-nothing", "bn-update", "Missing argument"),
    usage("bn-weights", "bn-update swa.pt --weights ema", "'ema'"),
    usage("bn-raw", "bn-update run/checkpoints/last.pt --weights last", "--weights last -o FILE.pt"),
    usage(
        "bn-raw-in-place",
        "bn-update run/checkpoints/last.pt --weights last -o run/checkpoints/last.pt",
        "--weights last -o FILE.pt",
    ),
    usage("bn-samples-text", "bn-update swa.pt --samples many", "swa.batchnorm.samples:"),
    usage("bn-samples-zero", "bn-update swa.pt --samples 0", "swa.batchnorm.samples:"),
    usage("bn-samples-negative", "bn-update swa.pt --samples -5", "swa.batchnorm.samples:"),
    usage("bn-out-no-folder", "bn-update swa.pt -o nowhere/x.pt", "nowhere: no such folder"),
    usage("bn-out-folder", "bn-update swa.pt -o run", "run: "),
    usage("bn-out-safetensors", "bn-update swa.pt -o x.safetensors", "name a .pt file"),
    usage("bn-out-fifo", "bn-update swa.pt -o pipe", "pipe: ", fifo("pipe")),
    usage("bn-out-link", "bn-update swa.pt -o link.pt", "is a symbolic link", link("link.pt", "gone")),
    usage("bn-link", "bn-update link.pt", "link.pt:", link("link.pt", "swa.pt")),
    usage("bn-locked-log", "bn-update run/checkpoints/last.pt", "run/log.txt:", link("run/log.txt", "elsewhere")),
]
