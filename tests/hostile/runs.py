"""Runs that cannot go on: edits of their last.pt and of what lies beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from hostile.contents import OS_SYSTEM
from hostile.making import ESC, Edit, Make, Row, all_of, directory, edited, file, link, nothing, put

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
    resumed("other-rate", lambda _: None, "optimizer.lr:", "optimizer.lr=3"),
    resumed("epoch", put("epoch", 7), "do not agree"),
    resumed("step-negative", put("step", -1), "step: Input should be greater than or equal to 0"),
    resumed("step-after-end", put("step", 10**9), "do not agree"),
    resumed("history-short", put("history", []), "do not agree"),
    resumed("history-empty-row", put("history", [{}]), "history"),
    resumed("history-escapes", put("history", [{"epoch": ESC}]), "history"),
    resumed("num-train", put("num_train", 5), "begun with 5"),
    resumed("averages-none", put("averages", {}), "averages"),
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
    resumed("optimizer-empty", put("optimizer", {}), "optimizer"),
    resumed("optimizer-groups", put("optimizer/param_groups", []), "optimizer"),
    resumed("optimizer-other-group", put("optimizer/param_groups", [{"params": [0]}]), "optimizer"),
    resumed("optimizer-shape", put("optimizer/state/0/momentum_buffer", torch.ones(5)), "optimizer"),
    resumed("optimizer-text", put("optimizer/state/0", ESC), "optimizer"),
    resumed("model-shape", put("model/classifier.weight", torch.ones(3)), "1 of another shape"),
    resumed("model-nan", put("model/classifier.weight", torch.full((10, 16), float("nan"))), "not finite"),
    resumed("running-mean-text", put("cumulative", ESC), "cumulative"),
    resumed("running-mean-missing", put("-cumulative", None), "cumulative: Field required"),
    resumed(
        "running-mean-of-no-recipe",
        lambda content: content.update(cumulative=content["averages"]["swa"]),
        "running mean",
    ),
    resumed("stopped", put("stopped", ESC), "stopped: Input should be"),
    resumed("recipe-other", put("recipe/optimizer/lr", 3.0), "optimizer.lr:"),
    resumed("code", put("recipe/model", OS_SYSTEM), "os:system"),
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
        "swa train",
        lambda folder: shutil.copy(folder / "swa.pt", folder / "run/checkpoints/last.pt"),
    ),
    Row(
        "resume-recipe-edited",
        ["train", "--resume", "run"],
        "optimizer.lr: is 3.0",
        in_recipe_of_run("lr: 0.1", "lr: 3.0"),
    ),
    Row("resume-recipe-broken", ["train", "--resume", "run"], "run/recipe.yaml:", file("run/recipe.yaml", b"\xff")),
    Row("resume-about-broken", ["train", "--resume", "run"], "run.json", file("run/run.json", b"{\xff")),
    Row("resume-about-list", ["train", "--resume", "run"], "run.json", file("run/run.json", b"[1]")),
    Row("resume-log-link", ["train", "--resume", "run"], "is a symbolic link", link("run/log.txt", "elsewhere")),
    Row("resume-folder-link", ["train", "--resume", "run"], "run/checkpoints:", link("run/checkpoints", "elsewhere")),
    Row("resume-finished", ["train", "--resume", "run"], "is finished", file("run/result.json", b"{}")),
    Row("resume-empty-folder", ["train", "--resume", "empty"], "empty:", directory("empty")),
    Row("resume-missing", ["train", "--resume", "nowhere"], "nowhere:", nothing),
    Row("resume-recipe-file", ["train", "--resume", "good.yaml"], "good.yaml:", nothing),
    Row("resume-escapes", ["train", "--resume", ESC], "no such run folder", nothing),
    evaluated("count", put("averages/swa/count", 9), "another number of steps than it counts"),
    evaluated("decay", lambda content: content["averages"]["swa"].update(kind="ema", decay=7.0), "decay:"),
    evaluated("rank", put("averages/swag/rank", 1), "rank:"),
    evaluated("deviations", put("averages/swag/-deviations", None), "the saved average lacks deviations"),
    evaluated("shape", put("averages/swa/state/classifier.weight", torch.ones(3)), "classifier.weight"),
    evaluated("nan", put("averages/swa/state/classifier.weight", torch.full((10, 16), float("nan"))), "not finite"),
]
