"""The study of docs/study.md: trains what is missing, scores it, and writes the tables and pictures again.

    python docs/study/study.py tune SETTING --work DIR  # choose settings on validation images, another seed
    python docs/study/study.py run SETTING --work DIR   # train and score every method with every seed
    python docs/study/study.py tables                   # from the stored results alone

Each run is an ordinary `swa train` in DIR, goes on where it was stopped, and leaves one file in results/; a run whose
file exists is not trained again. `make study` does all of it, which takes days of two cores.
"""

from __future__ import annotations

import argparse
import base64
import csv
import json
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tables

HERE = Path(__file__).parent
RESULTS, TUNING = HERE / "results", HERE / "tuning"
TUNING_SEED = 9
SCORES = ("accuracy", "nll", "ece")


@dataclass(frozen=True)
class Setting:
    """A recipe, its budgets in epochs (the last one is that of the comparison), and what was chosen by `tune`."""

    budgets: tuple[int, ...]
    seeds: tuple[int, ...]
    cosine_lr: tuple[float, ...]  # candidates
    constant_lr: tuple[float, ...]
    swa_lr: tuple[float, ...]
    starts: tuple[int, ...] = (60, 80)  # percent

    @property
    def epochs(self) -> int:
        """Return the budget of the comparison."""
        return self.budgets[-1]


SETTINGS = {
    "fashion": Setting((2, 3, 4, 6), (0, 1, 2, 3, 4), (0.05, 0.1, 0.2), (0.01, 0.03, 0.1, 0.2), (0.01, 0.03)),
    "preresnet20": Setting((5, 10, 15, 20), (0, 1, 2), (0.1, 0.2, 0.4), (0.03, 0.1), (0.02, 0.05)),
    "vgg": Setting(
        (10, 15, 20, 30), (0, 1, 2), (0.01, 0.02, 0.04, 0.08), (0.005, 0.01, 0.02, 0.04, 0.08), (0.01, 0.02, 0.04)
    ),
}


@dataclass(frozen=True)
class Run:
    """One training: changes to the recipe of a setting, and what is averaged and scored after it."""

    setting: str
    name: str
    seed: int
    changes: tuple[str, ...]
    after: dict[str, tuple[str, ...]] = field(default_factory=dict)  # method: arguments of `swa average`
    extra: dict[str, tuple[str, ...]] = field(default_factory=dict)  # method: arguments of `swa eval` on the run


def _averages(**kinds: str) -> str:
    return "averages={" + ", ".join(f"{name}: {{{keys}}}" for name, keys in kinds.items()) + "}"


def _cosine(lr: float, epochs: int, *changes: str) -> tuple[str, ...]:
    return (f"optimizer.lr={lr}", "schedule.name=cosine", f"train.epochs={epochs}", *changes)


def _swa(lr: float, swa_lr: float, start: int, epochs: int, *changes: str) -> tuple[str, ...]:
    swa = f"swa={{start: {start}%, every: 1ep, lr: {swa_lr}, eval_every: {epochs}ep}}"
    return (*_cosine(lr, epochs), swa, *changes)


def tuning_runs(name: str) -> Iterator[Run]:
    """Every candidate, with the seed of the tuning: the choice needs the scores on validation images alone."""
    setting = SETTINGS[name]
    epochs = setting.epochs
    for lr in setting.cosine_lr:
        yield Run(name, f"cosine-{lr}", TUNING_SEED, _cosine(lr, epochs))
    windows = {f"mean{start}": f"kind: mean, start: {start}%, every: 1step" for start in (40, 60, 80)}
    for lr in setting.constant_lr:
        yield Run(
            name, f"constant-{lr}", TUNING_SEED, (f"optimizer.lr={lr}", f"train.epochs={epochs}", _averages(**windows))
        )
    lr = chosen(name)["cosine"]
    for swa_lr in setting.swa_lr:
        for start in setting.starts:
            yield Run(name, f"swa-{lr}-{swa_lr}-{start}", TUNING_SEED, _swa(lr, swa_lr, start, epochs))


def chosen(name: str) -> dict[str, Any]:
    """Return the settings of the lowest validation NLL among the stored runs of the tuning."""
    best: dict[str, tuple[float, Any]] = {}

    def offer(kind: str, nll: float, what: Any) -> None:
        if kind not in best or nll < best[kind][0]:
            best[kind] = (nll, what)

    for path in sorted((TUNING / name).glob("*.json")):
        stored = json.loads(path.read_text())
        kind, *numbers = stored["run"].split("-")
        for row in stored["rows"]:
            is_raw, nll = row["method"] in ("last", "last_bn"), row["val"]["nll"]
            if kind == "cosine" and is_raw:
                offer("cosine", nll, float(numbers[0]))
            elif kind == "constant" and not is_raw:
                offer("constant", nll, (float(numbers[0]), int(row["method"].removeprefix("mean"))))
            elif kind == "swa" and row["method"] == "swa":
                offer("swa", nll, (float(numbers[0]), float(numbers[1]), int(numbers[2])))
    return {kind: what for kind, (_, what) in best.items()}


def study_runs(name: str) -> Iterator[Run]:
    """Every run of the comparison."""
    setting, found = SETTINGS[name], chosen(name)
    lr, (constant, merged_from), (high, swa_lr, start) = found["cosine"], found["constant"], found["swa"]
    epochs = setting.epochs
    kept = {"ema": "kind: ema, half_life: 2%", "ema_best": "kind: ema, half_life: 2%, keep: best"}
    for seed in setting.seeds:
        for budget in setting.budgets[:-1]:
            yield Run(name, f"cosine{budget}", seed, _cosine(lr, budget))
        tail = {
            "tail": "kind: mean, start: 85%, every: 10step",
            "lawa": "kind: lawa, window: 5, start: 50%, every: 0.2ep",
        }
        yield Run(name, f"cosine{epochs}", seed, _cosine(lr, epochs, _averages(**kept, **tail)))
        dense = {
            "dense": f"kind: mean, start: {start}%, every: 10step",
            "lawa": "kind: lawa, window: 5, start: 50%, every: 0.2ep",
            "power_ema": "kind: power_ema, width: 0.1",
            "swag": f"kind: swag, rank: 10, start: {start}%, every: 0.5ep",
        }
        yield Run(
            name,
            "swa",
            seed,
            _swa(high, swa_lr, start, epochs, _averages(**kept, **dense)),
            extra={"swag_draws": ("--weights", "swag", "--draws", "10")},
        )
        windows = {budget: ("--window", f"{budget * merged_from / 100:g}ep:{budget}ep") for budget in setting.budgets}
        merges = {f"linear{budget}": ("--decay", "linear", *window) for budget, window in windows.items()}
        merges[f"1-sqrt{epochs}"] = ("--decay", "1-sqrt", *windows[epochs])
        merges[f"power_ema{epochs}"] = ("--power-ema", "0.1")
        yield Run(
            name,
            "constant",
            seed,
            (
                f"optimizer.lr={constant}",
                f"train.epochs={epochs}",
                "snapshots={every: 0.2ep, cumulative: true}",
                _averages(**kept),
            ),
            after=merges,
        )
        cycle = epochs // 5 if epochs % 5 == 0 else epochs // 4
        yield Run(
            name,
            "cycles",
            seed,
            (
                f"optimizer.lr={constant}",  # each restart has to bear it without a warmup
                f"schedule={{name: cosine_restarts, T_0: {cycle}ep, warmup: 0ep}}",
                f"train.epochs={epochs}",
                "snapshots={every: 1cycle}",
            ),
            extra={"ensemble": ("--ensemble",)},
        )


def swa(*words: str, cwd: Path) -> dict[str, Any]:
    """Run a command of swa and return its JSON answer.

    Raises:
        SystemExit: It failed; its messages are on the terminal.
    """
    done = subprocess.run(
        [sys.executable, "-m", "swa_cli", *words, "--json", "-q"], cwd=cwd, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SystemExit(f"swa {' '.join(words)} ended with {done.returncode}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def make(run: Run, *, work: Path, results: Path) -> None:
    """Train and score a run, unless its result is stored; the folder of a stored run is removed."""
    target = results / run.setting / f"{run.name}-s{run.seed}.json"
    if target.exists():
        return
    print(target.relative_to(HERE), flush=True)
    out = work / run.setting / f"{run.name}-s{run.seed}"
    folders = sorted(out.glob(f"{run.setting}-*/"))
    if folders:
        answer = swa("train", "--resume", str(folders[-1].resolve()), "--allow-code", cwd=HERE)
    else:
        changes = (
            *run.changes,
            f"seed={run.seed}",
            f"dataset.root={_root(run.setting, work)}",
            f"output.root={out.resolve()}",
        )
        answer = swa("train", f"{run.setting}.yaml", *changes, cwd=HERE)
    folder = Path(answer["run"])
    rows = [_row(name, scores, scores["val"]) for name, scores in answer["weights"].items()]
    labels = {name: _labels(folder, name) for name in _compared(answer)}
    for method, words in run.after.items():
        file = folder / f"{method}.pt"
        averaged = swa("average", str(folder), *words, "-o", str(file), "--allow-code", cwd=HERE)["average"]["name"]
        val, test = (_scores(file, averaged, split) for split in ("val", "test"))
        rows.append(_row(method, test, val))
        labels[method] = _labels(file, averaged)
    for method, words in run.extra.items():
        both = [
            swa("eval", str(folder), *words, "--split", split, "--allow-code", cwd=HERE) for split in ("val", "test")
        ]
        val, test = (list(answer["weights"].values())[-1] for answer in both)
        rows.append(_row(method, test, val))
    stored = {
        "run": run.name,
        "seed": run.seed,
        "changes": list(run.changes),
        "reference": answer["reference"],
        "rows": rows,
        "labels": labels,
        **{key: answer[key] for key in ("device", "precision", "eval_precision")},
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(stored, indent=1) + "\n")
    shutil.rmtree(out)


def _root(setting: str, work: Path) -> Path:
    """Return where the images of a setting are: Debian's package, or the folder of cifar_subset.py."""
    return Path("/usr/share/datasets/fashion-mnist") if setting == "fashion" else (work / "cifar_subset").resolve()


def _compared(answer: dict[str, Any]) -> list[str]:
    """Return the weight sets whose predictions are stored: the reference and the averages."""
    return [name for name in answer["weights"] if name not in ("last", "last_bn") or name == answer["reference"]]


def _row(method: str, test: dict[str, Any], val: dict[str, Any]) -> dict[str, Any]:
    return {
        "method": method,
        "count": test.get("count"),
        "val": {key: val[key] for key in SCORES},
        "test": {key: test[key] for key in SCORES},
    }


def _scores(file: Path, name: str, split: str) -> dict[str, Any]:
    answer = swa("eval", str(file), "--weights", name, "--split", split, "--allow-code", cwd=HERE)
    scores: dict[str, Any] = answer["weights"][name]
    return scores


def _labels(path: Path, name: str) -> str:
    """Return the predicted classes of the test images, one byte each, compressed: two of them give the churn."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "predictions.csv"
        swa("eval", str(path), "--weights", name, "--predictions", str(file), "--allow-code", cwd=HERE)
        with file.open(newline="") as stream:
            names = [row["prediction"] for row in csv.DictReader(stream)]
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    return base64.b64encode(zlib.compress(bytes(numbers[name] for name in names), 9)).decode()


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="The study of docs/study.md.")
    parser.add_argument("task", choices=("tune", "run", "tables"))
    parser.add_argument("setting", nargs="?", choices=sorted(SETTINGS))
    parser.add_argument("--work", type=Path, help="folder for the images of cifar_subset.py and the runs")
    options = parser.parse_args()
    if options.task == "tables":
        tables.write({name: (setting.budgets, chosen(name)) for name, setting in SETTINGS.items()})
        return
    if options.setting is None or options.work is None:
        parser.error("name a setting and --work DIR")
    if options.task == "tune":
        for run in tuning_runs(options.setting):
            make(run, work=options.work, results=TUNING)
        print(chosen(options.setting))
    else:
        for run in study_runs(options.setting):
            make(run, work=options.work, results=RESULTS)


if __name__ == "__main__":
    main()
