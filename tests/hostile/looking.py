"""Commands that only look, or write one new file: what they cannot read, and where they must not write."""

from __future__ import annotations

import json

from hostile.making import GOOD, Make, Row, directory, edited, fifo, file, link, nothing, put


def looking(name: str, words: str, piece: str, make: Make = nothing) -> Row:
    return Row(f"looking-{name}", words.split(), piece, make)


NO_SCORES = json.dumps(
    {
        "split": "test",
        "samples": 1,
        "weights": {"last": {}},
        "reference": "last",
        "seconds": 1.0,
        "device": "cpu",
        "precision": "fp32",
    }
)
SCORES = {"accuracy": 0.5, "nll": 1.0, "ece": 0.1, "top5": None, "brier": 0.1}
JUDGED = {"reference": "last", "accuracy_diff": 0.1, "accuracy_diff_se": 0.1, "nll_diff": 0.1, "nll_diff_se": 0.1}


def row_of_an_average(key: str, value: object) -> Make:
    """result.json with another value of a key in the row of swa; without the key where it is None."""
    row = {
        key_: other for key_, other in {**SCORES, **JUDGED, key: value}.items() if other is not None or key_ == "top5"
    }
    weights = {"last": SCORES, "swa": row}
    return file("run/result.json", json.dumps({**json.loads(NO_SCORES), "weights": weights}))


LOOKING = [
    looking("show-nothing", "show", "Missing argument"),
    looking("show-missing", "show bad.pt", "no such checkpoint"),
    looking("show-recipe", "show good.yaml", "cannot be read as a checkpoint"),
    looking("show-no-run", "show empty", "there is no run to go on with", directory("empty")),
    looking("show-fifo", "show pipe", "is no regular file", fifo("pipe")),
    looking("show-dangling", "show link.pt", "link.pt:", link("link.pt", "gone")),
    looking("show-steps", "show bad.pt", "average.steps", edited("swa.pt", "bad.pt", put("average/steps", "x"))),
    looking(
        "show-recipe-inside",
        "show bad.pt",
        "the recipe in it",
        edited("swa.pt", "bad.pt", put("recipe", {"a": {1: 2}})),
    ),
    looking("show-run-last", "show run", "run/checkpoints/last.pt:", file("run/checkpoints/last.pt", b"PK")),
    looking("show-run-recipe", "show run", "optimizer.lr:", file("run/recipe.yaml", GOOD.replace("0.1", "fast"))),
    looking("show-run-about", "show run", "run/run.json:", file("run/run.json", "[]")),
    looking("show-run-result", "show run", "run/result.json:", file("run/result.json", "[]")),
    looking("wandb-link", "train --resume run", "run/wandb:", link("run/wandb", "elsewhere")),
    looking("mlflow-link", "train --resume run", "run/mlflow:", link("run/mlflow", "elsewhere")),
    looking("board-link", "train --resume run", "run/tensorboard:", link("run/tensorboard", "elsewhere")),
    looking("show-repeat", "show run", "run:", file("run/repeat.json", "{}")),
    looking("compare-nothing", "compare", "Missing argument"),
    looking("compare-one", "compare run", "name at least two"),
    looking("compare-file", "compare run swa.pt", "swa.pt:"),
    looking("compare-missing", "compare run nowhere", "nowhere:"),
    looking("compare-recipe", "compare run run", "unknown key", file("run/recipe.yaml", GOOD + "trian: {}\n")),
    looking("compare-result", "compare run run", "run/result.json:", file("run/result.json", "{")),
    looking(
        "compare-scores",
        "compare run run",
        "weights.last.accuracy",
        file("run/result.json", NO_SCORES),
    ),
    looking(
        "show-reference",
        "show run",
        "reference:",
        file("run/result.json", NO_SCORES.replace('e": "last"', 'e": "last_bn"')),
    ),
    *(
        looking(f"show-row-{key}-{number}", "show run", f"weights.swa.{key}", row_of_an_average(key, value))
        for number, (key, value) in enumerate(
            [
                ("reference", "gone"),
                ("reference", [1]),
                ("nll_diff_se", None),
                ("accuracy_diff", "x"),
                ("no_verdict", 5),
                ("val", "x"),
                ("val", {"nll": [1]}),
                ("count", "x"),
            ]
        )
    ),
    looking("doctor-recipe", "doctor good.yaml train.lrr=1", "train.lrr"),
    looking("doctor-missing", "doctor nowhere.yaml", "nowhere.yaml:"),
    looking("doctor-checkpoint", "doctor swa.pt", "is not text"),
    looking("plan-nothing", "plan", "Missing argument"),
    looking("plan-missing", "plan nowhere.yaml", "nowhere.yaml:"),
    looking("plan-mistake", "plan good.yaml swa.start=9ep", "swa.start"),
    looking("plan-data", "plan good.yaml dataset.name=cifar10 dataset.download=false", "cifar"),
    looking("plan-folder", "plan run", "is a folder"),
    looking("new-task", "new --task detection", "choose classification, segmentation, regression"),
    looking("new-there", "new -o good.yaml", "good.yaml:"),
    looking("new-link", "new -o link.yaml", "name another file with -o", link("link.yaml", "gone")),
    looking("new-folder", "new -o run", "name another file with -o"),
    looking("new-no-folder", "new -o nowhere/a.yaml", "cannot be written"),
    looking("recipes-none", "recipes digts", "did you mean digits?"),
    looking("recipes-outside", "recipes ../../pyproject", "swa comes with no such recipe"),
    looking("recipes-all-to-file", "recipes -o a.yaml", "name a recipe"),
    looking("recipes-one-json", "recipes digits --json", "--json goes with the list"),
    looking("recipes-there", "recipes digits -o good.yaml", "name another file with -o"),
    looking("schema-there", "schema -o good.yaml", "name another file with -o"),
    looking("schema-word", "schema good.yaml", "unexpected extra argument"),
    looking("plot-nothing", "plot", "Missing argument"),
    looking("plot-missing", "plot nowhere", "nowhere"),
    looking("plot-kind", "plot run plain", "plane"),
    looking("plot-checkpoint", "plot swa.pt", "swa.pt"),
    looking("plot-suffix", "plot run curves -o curves.gif", ".png, .svg or .pdf"),
    looking("plot-no-folder", "plot run curves -o nowhere/curves.png", "nowhere"),
    looking("plot-on-folder", "plot run curves -o empty.png", "empty.png", directory("empty.png")),
    looking("plot-plane-unfinished", "plot run plane", "swa average run --weights swa"),
    looking("plot-path-same", "plot run path --between last last", "last"),
    looking("plot-grid", "plot run plane --grid 2", "grid"),
    looking("plot-samples", "plot run path --samples none", "samples"),
    looking("plot-weights", "plot run confusion --weights ema", "ema"),
    looking("plot-window", "plot run window", "snapshots"),
    looking("plot-recipe-plane", "plot good.yaml plane", "run"),
    looking("plot-recipe-wrong", "plot bad.yaml schedule", "unknown key", file("bad.yaml", GOOD + "trian: {}\n")),
    looking("report-nothing", "report", "Missing argument"),
    looking("report-missing", "report nowhere -o a.html", "nowhere"),
    looking("report-file", "report swa.pt -o a.html", "swa.pt"),
    looking("report-no-folder", "report run -o nowhere/a.html", "nowhere"),
    looking("report-on-folder", "report run -o empty", "empty", directory("empty")),
    looking("report-last", "report run -o a.html", "last.pt", file("run/checkpoints/last.pt", b"PK")),
]
