"""The pictures of docs/explained.md: a real run of the recipe `digits`, and the arithmetic of swa itself.

`python docs/draw_pictures.py` trains for about a minute on two cores and writes into docs/pictures. Everything that is
drawn is measured or computed here, with seed 0; other processors round differently, so numbers may change a little.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from torch import nn

from swa_cli.averaging.average import WeightAverage
from swa_cli.recipe.learning_rate import learning_rate
from swa_cli.recipe.load import load
from swa_cli.recipe.plan import make_plan
from swa_cli.recipe.schedules import SCHEDULES
from swa_cli.report.plots import AVERAGES, STYLE

FOLDER = Path(__file__).parent / "pictures"
PROFILES = (
    "{lawa: {kind: lawa, window: 40, every: 1step}, ema: {kind: ema, half_life: 5%}, power_ema: {kind: power_ema}}"
)
REQUIRED = {  # keys that a schedule needs
    "cosine_restarts": "T_0: 5ep",
    "cyclic": "base_lr: 0.01, step_size_up: 2ep",
    "multistep": "milestones: [50%, 75%]",
    "one_cycle": "max_lr: 0.9",
}


def main() -> None:
    """Train, measure, and draw every picture."""
    FOLDER.mkdir(exist_ok=True)
    with rc_context(STYLE):
        profiles()
        schedules()
    with tempfile.TemporaryDirectory() as root:
        out = Path(root)
        swa("train", "digits", "train.threads=1", "averages={ema: {kind: ema, half_life: 1ep}}", "-q", "-o", root)
        run = str(out / "digits-convnet-001")
        for kind in ("curves", "path", "window"):
            swa("plot", run, kind, "--width", "6.5", "-o", str(FOLDER / f"{kind}.svg"))
        with rc_context(STYLE):
            statistics(out, run)


def swa(*words: str) -> Any:
    """Run a command of swa and return its JSON."""
    command = [sys.executable, "-m", "swa_cli", *words, "--json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def statistics(out: Path, run: str) -> None:
    """Draw the test scores of raw and averaged weights with stale and with recomputed BatchNorm statistics."""
    swa("average", run, "--weights", "swa", "--no-bn", "-o", str(out / "stale.pt"))
    stale = swa("eval", str(out / "stale.pt"), "--allow-stale-bn")["weights"]["swa"]
    fresh = swa("eval", run)["weights"]
    rows = {
        "last\nrunning": fresh["last"],
        "last_bn\nrecomputed": fresh["last_bn"],
        "swa\nstale": stale,
        "swa\nrecomputed": fresh["swa"],
    }
    figure = Figure(figsize=(6.5, 2.6), layout="constrained")
    for axes, key, label, scale in zip(
        figure.subplots(1, 2), ("accuracy", "nll"), ("test accuracy (%)", "test NLL"), (100, 1), strict=True
    ):
        values = [scale * row[key] for row in rows.values()]
        axes.errorbar(
            range(len(rows)), values, [scale * row[f"{key}_se"] for row in rows.values()], fmt="o", color="#0072b2"
        )
        for place, value in enumerate(values):
            axes.annotate(f" {value:.3g}", (place, value), xytext=(5, 0), textcoords="offset points", va="center")
        axes.set_xticks(range(len(rows)), list(rows), fontsize=7)
        axes.set(ylabel=label, xlim=(-0.4, len(rows) - 0.3))
    save(figure, "batchnorm")


def profiles() -> None:
    """Draw how much the weights after each step count in averages, by averaging vectors that name their step."""
    words = ["train.epochs=20", "train.batch_size=20", "swa={start: 75%, every: 1step}", f"averages={PROFILES}"]
    plan = make_plan(load("digits", words).recipe, num_train=400)
    figure = Figure(figsize=(6.5, 2.8), layout="constrained")
    axes = figure.subplots()
    for style, each in zip(AVERAGES, plan.averages, strict=False):
        model = nn.Linear(plan.total_steps, 1, bias=False, dtype=torch.float64)
        average = WeightAverage(model, **each.arguments)
        for step in each.steps:
            with torch.no_grad():
                model.weight.zero_()[0, step - 1] = 1
            average.update(model)
        shares = 100 * average.averaged_state()["weight"][0]
        points = [100 * (step + 1) / plan.total_steps for step in range(plan.total_steps)]
        axes.plot(points, shares, label=each.name, color=style["color"], linestyle=style["linestyle"])
    axes.set(xlabel="point of the run (%)", ylabel="share in the average (%)", xlim=(0, 100), ylim=(0, None))
    axes.legend(frameon=False)
    save(figure, "profiles")


def schedules() -> None:
    """Draw the learning rate of every schedule over 20 epochs, with the keys of its example in the reference."""
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    panels = [*figure.subplots(3, 4, sharex=True).flat]
    for axes, name in zip(panels, SCHEDULES, strict=False):
        swa_lr = "swa.lr=0.05" if name == "swa_paper" else "swa.every=1ep"
        words = ["train.epochs=20", f"schedule={{name: {name}, {REQUIRED.get(name, '')}}}", swa_lr]
        rate = learning_rate(load("digits", words).recipe, steps_per_epoch=50)
        axes.plot([step / 50 for step in range(1000)], [rate(step) for step in range(1000)], color="#0072b2")
        axes.set_title(name, fontsize=8)
        axes.set(ylim=(0, None))
        axes.tick_params(labelsize=7)
    for axes in panels[len(SCHEDULES) :]:
        axes.set_axis_off()
    figure.supxlabel("epoch", fontsize=8)
    figure.supylabel("learning rate", fontsize=8)
    save(figure, "schedules")


def save(figure: Figure, name: str) -> None:
    """Write a figure whose bytes depend on what is drawn alone."""
    with rc_context({"svg.hashsalt": "swa", "svg.fonttype": "none"}):
        figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
