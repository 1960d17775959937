"""The tables and pictures of docs/study.md, from the stored results alone; see study.py."""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import mean, stdev
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "study.md"
RAW = ("last", "last_bn")
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}  # two-sided quantiles of Student's t by degrees of freedom

METHODS = (  # run, row (None: raw weights, the better of their two treatments on validation), text
    ("cosine{E}", None, "cosine to 0 (baseline)"),
    ("cosine{E}", "tail", "its last 15 % averaged"),
    ("cosine{E}", "ema", "its EMA, half-life 2 %"),
    ("cosine{E}", "ema_best", "its EMA, best epoch"),
    ("cosine{E}", "lawa", "its LAWA, 5 weight sets of 0.2 epochs"),
    ("swa", None, "SWA run, raw weights"),
    ("swa", "swa", "SWA, once per epoch"),
    ("swa", "dense", "SWA, every 10 steps"),
    ("swa", "ema", "its EMA, half-life 2 %"),
    ("swa", "ema_best", "its EMA, best epoch"),
    ("swa", "lawa", "its LAWA, 5 weight sets of 0.2 epochs"),
    ("swa", "power_ema", "its power EMA, width 0.1"),
    ("swa", "swag", "SWAG, its mean"),
    ("swa", "swag_draws", "SWAG, 10 draws"),
    ("constant", None, "constant rate, raw weights"),
    ("constant", "linear{E}", "its last {S} % merged, linear"),
    ("constant", "1-sqrt{E}", "its last {S} % merged, 1-sqrt"),
    ("constant", "power_ema{E}", "its power EMA, width 0.1"),
    ("constant", "ema", "its EMA, half-life 2 %"),
    ("constant", "ema_best", "its EMA, best epoch"),
    ("cycles", None, "cosine cycles, raw weights"),
    ("cycles", "ensemble", "snapshot ensemble"),
)


@dataclass(frozen=True)
class Scores:
    """A weight set of one seed; accuracies are fractions, `labels` the predicted classes of the test images."""

    seed: int
    accuracy: float
    nll: float
    ece: float
    labels: bytes | None


def stored(setting: str, run: str) -> dict[int, dict[str, Any]]:
    """Return the results of a run by seed."""
    found = [json.loads(path.read_text()) for path in sorted((HERE / "results" / setting).glob(f"{run}-s*.json"))]
    return {result["seed"]: result for result in found}


def scores(setting: str, run: str, row: str | None) -> list[Scores]:
    """Return a weight set of every stored seed."""
    found = []
    for seed, result in stored(setting, run).items():
        name = row or result["reference"]
        for entry in result["rows"]:
            if entry["method"] == name:
                labels = result["labels"].get(name)
                packed = None if labels is None else zlib.decompress(base64.b64decode(labels))
                test = entry["test"]
                found.append(Scores(seed, test["accuracy"], test["nll"], test["ece"], packed))
    return found


def write(settings: Mapping[str, tuple[Sequence[int], Mapping[str, Any]]]) -> None:
    """Fill the tables of docs/study.md and draw its pictures; `settings` has the budgets and the choices by name."""
    filled: dict[str, Iterator[str]] = {}
    for name, (budgets, chosen) in settings.items():
        filled[f"{name}: choices"] = choices(name, chosen)
        share = 100 - chosen["constant"][1] if "constant" in chosen else 0
        filled[f"{name}: methods"] = methods_table(name, budgets[-1], share=share)
        lines = list(budgets_table(name, budgets))
        if all(
            scores(name, *of)
            for budget in budgets
            for of in (("constant", f"linear{budget}"), (f"cosine{budget}", None))
        ):
            draw_budgets(name, budgets, HERE / f"{name}.png")
            lines += ["", f"![Test accuracy and NLL by budget](study/{name}.png)"]
        filled[f"{name}: budgets"] = iter(lines)
    PAGE.write_text(fill(PAGE.read_text(), filled))


def choices(setting: str, chosen: Mapping[str, Any]) -> Iterator[str]:
    """One row per run of the tuning: its lowest validation NLL among raw weights, and among averages."""
    yield "| run | raw weights: val NLL | averages: val NLL | of |"
    yield "|---|---|---|---|"
    for path in sorted((HERE / "tuning" / setting).glob("*.json")):
        result = json.loads(path.read_text())
        raw = min(row["val"]["nll"] for row in result["rows"] if row["method"] in RAW)
        averages = [(row["val"]["nll"], row["method"]) for row in result["rows"] if row["method"] not in RAW]
        best = f"{min(averages)[0]:.3f} | {min(averages)[1]}" if averages else " | "
        yield f"| {result['run']} | {raw:.3f} | {best} |"
    if chosen:
        yield ""
        yield "Chosen: " + "; ".join(f"{kind} {what}" for kind, what in sorted(chosen.items())) + "."


def methods_table(setting: str, epochs: int, *, share: int) -> Iterator[str]:
    """One row per method: means and deviations over seeds, paired differences to the baseline; `share` % was merged."""
    baseline = {score.seed: score for score in scores(setting, f"cosine{epochs}", None)}
    yield "| method | accuracy % | NLL | ECE | churn % | accuracy − baseline | NLL − baseline | seeds |"
    yield "|---|---|---|---|---|---|---|---|"
    for run, row, text in METHODS:
        found = scores(setting, run.format(E=epochs), row and row.format(E=epochs))
        if not found:
            continue
        pairs = [(score, baseline[score.seed]) for score in found if score.seed in baseline]
        is_baseline = run == "cosine{E}" and row is None
        differences = (
            ("", "")
            if is_baseline
            else (
                interval([100 * (a.accuracy - b.accuracy) for a, b in pairs], digits=2),
                interval([a.nll - b.nll for a, b in pairs], digits=3),
            )
        )
        cells = [
            text.format(S=share),
            spread([100 * score.accuracy for score in found], digits=2),
            spread([score.nll for score in found], digits=3),
            f"{mean(score.ece for score in found):.3f}",
            churn(found),
            *differences,
            str(len(found)),
        ]
        yield "| " + " | ".join(cells) + " |"


def budgets_table(setting: str, budgets: Sequence[int]) -> Iterator[str]:
    """One row per budget: a cosine run trained for it, against the merge of the constant run so far."""
    yield "| epochs | cosine: accuracy % | merged | difference | cosine: NLL | merged | difference | seeds |"
    yield "|---|---|---|---|---|---|---|---|"
    for budget in budgets:
        cosine = {score.seed: score for score in scores(setting, f"cosine{budget}", None)}
        merged = {score.seed: score for score in scores(setting, "constant", f"linear{budget}")}
        seeds = sorted(cosine.keys() & merged.keys())
        if not seeds:
            continue
        cells = [str(budget)]
        for key, scale, digits in (("accuracy", 100, 2), ("nll", 1, 3)):
            ours, theirs = ([scale * getattr(found[seed], key) for seed in seeds] for found in (merged, cosine))
            differences = [a - b for a, b in zip(ours, theirs, strict=True)]
            cells += [spread(theirs, digits=digits), spread(ours, digits=digits), interval(differences, digits=digits)]
        yield "| " + " | ".join([*cells, str(len(seeds))]) + " |"


def spread(values: Sequence[float], *, digits: int) -> str:
    """Write a mean and a standard deviation."""
    deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{deviation}"


def interval(values: Sequence[float], *, digits: int) -> str:
    """Write a mean difference and its 95 % interval by Student's t."""
    if len(values) < 2:
        return f"{values[0]:+.{digits}f}" if values else ""
    half = T_95[len(values) - 1] * stdev(values) / math.sqrt(len(values))
    center = mean(values)
    return f"{center:+.{digits}f} [{center - half:+.{digits}f}, {center + half:+.{digits}f}]"


def churn(found: Sequence[Scores]) -> str:
    """Write the share of test images that two seeds label differently, the mean over pairs of seeds."""
    pairs = [(a.labels, b.labels) for a, b in combinations(found, 2) if a.labels and b.labels]
    if not pairs:
        return ""
    return f"{100 * mean(sum(x != y for x, y in zip(a, b, strict=True)) / len(a) for a, b in pairs):.1f}"


def draw_budgets(setting: str, budgets: Sequence[int], file: Path) -> None:
    """Draw test accuracy and NLL by budget, every seed a thin line, the mean a thick one."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    series = (
        ("cosine trained for the budget", "#0072b2", "cosine{}", None),
        ("merged from one constant run", "#d55e00", "constant", "linear{}"),
    )
    for axes, (key, label) in zip(
        figure.subplots(1, 2), (("accuracy", "test accuracy"), ("nll", "test NLL (nats)")), strict=True
    ):
        for text, color, run, row in series:
            by_budget = [
                {s.seed: getattr(s, key) for s in scores(setting, run.format(b), row and row.format(b))}
                for b in budgets
            ]
            seeds = set.intersection(*(set(found) for found in by_budget))
            for seed in seeds:
                axes.plot(budgets, [found[seed] for found in by_budget], color=color, alpha=0.3, linewidth=0.8)
            means = [mean(found[seed] for seed in seeds) for found in by_budget]
            axes.plot(budgets, means, color=color, linewidth=2, marker="o", label=text)
        axes.set(xlabel="epochs", ylabel=label, xticks=budgets)
        axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(file, dpi=110, metadata={"Software": None})


def fill(page: str, tables: dict[str, Iterator[str]]) -> str:
    """Return the page with the text between `<!-- NAME -->` and `<!-- end -->` replaced by each table."""
    for name, lines in tables.items():
        before, found, rest = page.partition(f"<!-- {name} -->\n")
        assert found, f"{PAGE.name} has no place for {name}"
        _, found, after = rest.partition("<!-- end -->")
        assert found, f"{PAGE.name}: the place for {name} has no end"
        page = f"{before}<!-- {name} -->\n" + "\n".join(lines) + f"\n<!-- end -->{after}"
    return page
