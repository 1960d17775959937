"""Repeats: wrong seeds and words, and a folder whose parts are not as they were left."""

from __future__ import annotations

import shutil
from pathlib import Path

from hostile.making import ESC, GOOD, Make, Row, all_of, file, link, nothing

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
    '{"split": "test", "samples": 1, "seconds": 1.0, "device": "cpu", "precision": "fp32", "reference": "last", '
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
    Row("repeat-seed", ["repeat", "good.yaml", "--seeds", "0-1", "seed=3"], "--seeds", nothing),
    Row("repeat-no-recipe", ["repeat", "bad.yaml", "--seeds", "0-1"], "bad.yaml:", nothing),
    Row("repeat-change", ["repeat", "good.yaml", "--seeds", "0-1", "optimizer.lr=x"], "optimizer.lr:", nothing),
    Row(
        "repeat-start", ["repeat", "good.yaml", "--seeds", "0-1", "swa.start=3ep"], "after the end of the run", nothing
    ),
    Row("repeat-option", ["repeat", "good.yaml", "--seeds", "0-1", "optimizer.name=SDG"], "SGD", nothing),
    Row("repeat-out", ["repeat", "good.yaml", "--seeds", "0-1", "-o", "swa.pt"], "output.root:", nothing),
    repeated("log-link", "runs/good-repeat-001/log.txt:", link(f"{REPEAT}/log.txt", "elsewhere")),
    repeated("locks-link", "runs/good-repeat-001/.locks:", link(f"{REPEAT}/.locks", "elsewhere")),
    repeated(
        "lock-link",
        "runs/good-repeat-001/.locks/files:",
        all_of(file(f"{REPEAT}/.locks/files", ""), link(f"{REPEAT}/.locks/files", "elsewhere")),
    ),
    repeated("seed-file", "runs/good-repeat-001/seed-1:", file(f"{REPEAT}/seed-1", "x")),
    repeated("seed-link", "runs/good-repeat-001/seed-0:", link(f"{REPEAT}/seed-0", "elsewhere")),
    repeated("seed-of-other-rate", "optimizer.lr", seed_of_other_rate),
    repeated("seed-recipe-gone", "no such file", lambda folder: (folder / REPEAT / "seed-0/recipe.yaml").unlink()),
    repeated("other-samples", "seed 0 on 360 test, seed 1 on 359 test", scored_on_other_samples),
    seed_result("result-empty", "", "result.json:"),
    seed_result("result-list", "[1]", "result.json:"),
    seed_result("result-deep", "[" * 100_000, "result.json:"),
    seed_result("result-no-scores", "{}", "split: Field required"),
    seed_result("result-no-last", SCORED.replace('{"last"', '{"swa"'), "has no last"),
    seed_result("result-no-reference", SCORED.replace('"reference": "last", ', ""), "reference: Field required"),
    seed_result(
        "result-other-reference",
        SCORED.replace('e": "last"', 'e": "last_bn"'),
        "runs/good-repeat-001/seed-0/result.json:",
    ),
    seed_result("result-text", SCORED.replace("0.5", '"\\u001b[31m"'), "weights.last.accuracy"),
    Row(
        "resume-repeat",
        ["train", "--resume", REPEAT],
        "runs/good-repeat-001:",
        all_of(file(f"{REPEAT}/repeat.json", "{}"), file(f"{REPEAT}/recipe.yaml", GOOD)),
    ),
]
