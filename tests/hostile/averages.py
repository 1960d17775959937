"""Averages after a run: sources, windows and files that do not go together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hostile.contents import OS_SYSTEM
from hostile.making import ESC, Edit, Make, Row, all_of, edited, fifo, link, nothing, put
from hostile.theirs import plain_weights

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


def souped(name: str, command: str, piece: str, make: Make = nothing) -> Row:
    return Row(f"soup-{name}", ["soup", *command.split()], piece, make)


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
    souped("nothing", "", "Missing argument"),
    souped("no-out", "swa.pt swa.pt", "Missing option"),
    souped("one", "swa.pt -o out.pt", "at least 2"),
    souped("twice", "swa.pt ./swa.pt -o out.pt", "is named twice"),
    souped("method", "swa.pt bad.pt -o out.pt --method mean", "'greedy', 'uniform', 'model_stock'"),
    souped("folder", "run/checkpoints swa.pt -o out.pt", "run/checkpoints:"),
    souped("empty-repeat", "run swa.pt -o out.pt", "has no run", lambda place: (place / "run/repeat.json").touch()),
    souped("other-recipe", "swa.pt bad.pt -o out.pt --method uniform", "model.args.width", other_width),
    averaged("nothing", "", "Missing argument"),
    averaged("no-out", "swa.pt", "Missing option"),
    averaged("no-source", "train.threads=1 -o out.pt", "name a run folder"),
    averaged("missing", "gone.pt -o out.pt", "no such checkpoint"),
    averaged("recipe", "good.yaml -o out.pt", "cannot be read as a checkpoint"),
    averaged("folder", "run/checkpoints -o out.pt", "run/checkpoints:"),
    averaged("run-without-snapshots", "run -o out.pt", "snapshots={every: 1ep}"),
    averaged("twice", "swa.pt ./swa.pt -o out.pt", "is named twice"),
    averaged(
        "twice-by-link", "swa.pt link.pt -o out.pt", "is named twice", lambda f: (f / "link.pt").symlink_to("swa.pt")
    ),
    averaged("out-is-source", "swa.pt -o swa.pt", "swa.pt:"),
    averaged("out-is-snapshot", "run -o run/snapshots/step-00000005.pt", "run/snapshots/step-00000005.pt:", two),
    averaged("out-is-last", "swa.pt -o run/checkpoints/last.pt", "run/checkpoints/last.pt: "),
    averaged("out-no-folder", "swa.pt -o nowhere/out.pt", "nowhere: no such folder"),
    averaged("out-folder", "swa.pt -o run", "run:"),
    averaged("out-recipe", "swa.pt -o good.yaml", "name a .pt file"),
    averaged("out-fifo", "swa.pt -o out.pt", "out.pt:", fifo("out.pt")),
    averaged("out-link", "swa.pt -o out.pt", "out.pt:", link("out.pt", "gone")),
    averaged("plot-alone", "swa.pt -o out.pt --plot x.png", "--plot goes with --search"),
    averaged("plot-text", "run -o out.pt --search --plot x.svg", "name a .png file", two),
    averaged("plot-folder", "run -o out.pt --search --plot nowhere/x.png", "with --plot FILE", two),
    averaged("two-ways", "swa.pt -o out.pt --last 1 --greedy", "--last and --greedy"),
    averaged("greedy-stale", "swa.pt -o out.pt --greedy --no-bn", "leave out --no-bn"),
    averaged("greedy-no-val", "swa.pt -o out.pt --greedy", "digits has no validation split"),
    averaged("greedy-other-val", "swa.pt -o out.pt --greedy dataset.val=10%", "dataset.val="),
    averaged("search-no-val", "run -o out.pt --search", "digits has no validation split", two),
    averaged("search-average", "swa.pt -o out.pt --search", "swa.pt:"),
    averaged("last-zero", "swa.pt -o out.pt --last 0", "--last"),
    averaged("last-more", "swa.pt -o out.pt --last 2", "--last 2: number of sources: 1"),
    averaged("weights-count", "swa.pt -o out.pt --weights 1,2", "--weights: 2 numbers, number of sources: 1"),
    averaged("weights-negative", "swa.pt -o out.pt --weights -1", "write finite numbers"),
    averaged("weights-zero", "swa.pt -o out.pt --weights 0,0", "not all of them 0"),
    averaged("weights-nan", "swa.pt -o out.pt --weights nan", "write finite numbers"),
    averaged("weights-huge", "swa.pt swa.pt -o out.pt --weights 1e308,1e308", "write finite numbers"),
    averaged("weights-text", "swa.pt -o out.pt --weights 1,b", "write numbers"),
    averaged("window-one-end", "run -o out.pt --window 3ep", "write two points", two),
    averaged("window-no-unit", "run -o out.pt --window 1:2", "has no unit", two),
    averaged("window-backwards", "run -o out.pt --window 2ep:1ep", "ends before it starts", two),
    averaged("window-after-end", "run -o out.pt --window 1ep:3ep", "after the end of the run, epoch 2", two),
    averaged("window-empty", "run -o out.pt --window 6step:8step", "nearest are step 5 and step 10", two),
    averaged("window-cycles", "run -o out.pt --window 1cycle:2cycle", "has 0 minima", two),
    averaged("window-average", "swa.pt -o out.pt --window 1ep:2ep", "swa.pt:"),
    averaged(
        "window-two-runs",
        "run other -o out.pt --window 1ep:2ep",
        "lie in two folders",
        all_of(two, snapshots(as_is, folder="other/snapshots")),
    ),
    averaged("forbidden", "swa.pt -o out.pt optimizer.lr=1", "optimizer.lr: cannot be changed here"),
    averaged("unknown-key", "swa.pt -o out.pt dataset.rot=x", "dataset.root"),
    averaged("no-recipe", "swa.pt plain.pt -o out.pt", "plain.pt:", plain_weights),
    averaged("other-recipe", "swa.pt bad.pt -o out.pt", "model.args.width", other_width),
    averaged(
        "other-shapes",
        "swa.pt bad.pt -o out.pt",
        "bad.pt (swa):",
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
        "another mean",
        edited("swa.pt", "bad.pt", put("input/mean", [0.5])),
    ),
    averaged(
        "other-classes",
        "swa.pt bad.pt -o out.pt",
        "another classes",
        edited("swa.pt", "bad.pt", put("input/classes", [ESC] * 10)),
    ),
    averaged("code", "bad.pt -o out.pt", "os:system", edited("swa.pt", "bad.pt", put("recipe/model", OS_SYSTEM))),
    averaged(
        "code-later", "swa.pt bad.pt -o out.pt", "os:system", edited("swa.pt", "bad.pt", put("recipe/model", OS_SYSTEM))
    ),
    averaged("recipe-text", "swa.pt bad.pt -o out.pt", "seed", edited("swa.pt", "bad.pt", put("recipe/seed", ESC))),
    averaged("locked", "swa.pt -o run/checkpoints/x.pt", "run/log.txt:", link("run/log.txt", "elsewhere")),
    in_run("step-zero", put("step", 0), "step: Input should be greater than 0"),
    in_run("step-of-other-mean", put("step", 7), "run/snapshots/step-00000010.pt:"),
    in_run("same-step", each(put("step", 5), put("cumulative/count", 5)), "of one step"),
    in_run("num-train-huge", put("num_train", 10**18), "train.epochs:"),
    in_run("num-train-zero", put("num_train", 0), "num_train: Input should be greater than 0"),
    in_run("endless", each(put("step", 10**17), put("cumulative/count", 10**17)), "cumulative.count"),
    in_run("mean-text", put("cumulative", ESC), "cumulative"),
    in_run("mean-none", put("cumulative", None), "running mean"),
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
    in_run("broken", lambda content: {}, "run/snapshots/step-00000010.pt:"),
]
