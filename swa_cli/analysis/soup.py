"""`swa soup`: one network from the networks that several fine-tunings ship.

A run stands for the weights that it ships, a repeat for all its runs. Everything else is that of `swa average`: the
trials, the greedy soup, the file. Candidates and soup are scored on validation images that no run was trained on; where
there are none, only what chooses nothing can be made, and it is not scored.

Model Stock needs the pretrained weights that the runs started from: those that their recipe names, or a file.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from swa_cli.analysis import basin, open, sources
from swa_cli.analysis.average import answer, content_of, greedy, require_writable
from swa_cli.analysis.settings import read_run
from swa_cli.analysis.sources import Mean, Sources
from swa_cli.analysis.trials import NAME, Refreshed, Trials
from swa_cli.averaging import soup
from swa_cli.averaging.model_state import read as read_tensors
from swa_cli.averaging.soup import Ratio
from swa_cli.checkpoint import reader
from swa_cli.checkpoint.run_folder import RunFolder, about
from swa_cli.engine import evaluate, pretrained, user_code
from swa_cli.engine.context import Context
from swa_cli.engine.network import InitialWeights, load_initial, read_initial
from swa_cli.errors import RecipeError, UserError
from swa_cli.metrics.tasks import SampleScores
from swa_cli.report.scores import search_summary
from swa_cli.report.terminal import Terminal
from swa_cli.units import count_text, some_of

GREEDY, UNIFORM, MODEL_STOCK = "greedy", "uniform", "model_stock"
TITLES = {GREEDY: "greedy soup", UNIFORM: "uniform soup", MODEL_STOCK: "Model Stock"}
MEAN = "mean"  # the row of the uniform mean beside Model Stock
FEWEST = 2  # networks of a soup


@dataclass(frozen=True)
class Stock:
    """Pretrained weights, and where Model Stock put each tensor between them and the mean."""

    initial: InitialWeights
    ratios: Mapping[str, Ratio]
    uniform: list[str]  # averaged tensors without a pretrained one, such as those of a new head
    share: float  # of the fine-tuned networks over all weights that differ from the pretrained ones

    @property
    def values(self) -> dict[str, Any]:
        """The part of the JSON answer."""
        initial = {"source": self.initial.source, "weights": self.initial.name, "sha256": self.initial.sha256}
        layers = {name: {"t": ratio.t, "cosine": ratio.cosine} for name, ratio in self.ratios.items()}
        return {"pretrained": {**initial, "uniform": self.uniform}, "layers": layers}

    @property
    def source(self) -> dict[str, Any]:
        """The entry of the pretrained weights among the sources."""
        return {"file": self.initial.source, "name": self.initial.name, "weight": 1 - self.share, "step": None}


def make_soup(
    paths: Sequence[Path],
    overrides: Sequence[str],
    *,
    out: Path,
    method: str,
    terminal: Terminal,
    pretrained: str | None = None,
    recipe: Path | None = None,
    allow_code: bool = False,
) -> dict[str, Any]:
    """Make one network from the shipped networks of several runs, and write it to `out`, atomically.

    `paths` are run folders, folders of a repeat, and files; `overrides` change keys that the weights do not depend on.
    `pretrained` is a file of the weights that the runs started from, or a name that `model.pretrained` takes; `recipe`
    is that of sources that swa did not write.

    Raises:
        UserError: One source alone, sources that do not fit each other or the method, or a place that cannot be
            written to.
    """
    files = sources.files_of(paths, of_folder=shipped_files, instead="name it once")
    if len(files) < FEWEST:
        raise UserError(
            f"{files[0]}: is one network alone, and a soup takes at least {FEWEST}",
            hint="name several runs, or the folder of a repeat",
        )
    require_writable(out, files, suffix=".pt")
    with open.lock(out):
        started = time.monotonic()
        gathered = sources.gather(files, overrides, recipe=recipe, terminal=terminal, allow_code=allow_code)
        origin = _pretrained(gathered, pretrained) if method == MODEL_STOCK else None
        is_scored = _is_held_out(gathered, method, terminal)
        terminal.facts("sources", [(str(number), file) for number, file in enumerate(map(str, files), start=1)])
        trials = Trials(gathered)
        scored = {name: trials.score_alone(source) for name, source in _named(gathered).items() if is_scored}
        refreshed, stock, barrier = _combine(trials, method, scored, origin=origin, terminal=terminal)
        content = content_of(refreshed, gathered, has_own_recipe=recipe is None)
        content["sources"] += [] if stock is None else [stock.source]
        reader.save(out, content)
    if trials.rows:
        samples, passes = len(trials.samples[0]), trials.num_passes
        terminal.print(search_summary(trials.rows, samples=samples, passes=passes, metrics=trials.metrics))
    rows, reference = _table(scored, refreshed, trials) if is_scored else ({}, None)
    if is_scored:
        terminal.summary(rows, split="val", samples=len(scored[NAME]), metrics=trials.metrics)
    return {
        **answer(
            out,
            content,
            gathered.context.recipe,
            what=TITLES[method],
            started=started,
            terminal=terminal,
            command="soup",
        ),
        "method": method,
        "sources": content["sources"],
        "barrier": barrier,
        "split": "val" if is_scored else None,
        "weights": rows,
        "reference": reference,
        "tried": trials.rows,
        "passes": trials.num_passes,
        **({"pretrained": None, "layers": {}} if stock is None else stock.values),
        **gathered.context.hardware.facts,
    }


def _combine(
    trials: Trials,
    method: str,
    scored: dict[str, SampleScores],
    *,
    origin: tuple[InitialWeights, dict[str, Tensor]] | None,
    terminal: Terminal,
) -> tuple[Refreshed, Stock | None, dict[str, Any] | None]:
    """Make the soup, which is refreshed last; return it, what Model Stock says of it, and the barrier of its mean.

    `scored` gets the validation scores of what is made, if it has those of the candidates.
    """
    gathered, members = trials.sources, trials.sources.sets
    if method == GREEDY:
        refreshed = greedy(trials)
        scored[NAME] = trials.samples[max(index for index, row in enumerate(trials.rows) if row["chosen"])]
        return refreshed, None, basin.check(trials, refreshed, scores=scored[NAME])
    refreshed = trials.refresh(gathered.mean(UNIFORM, members, [1.0] * len(members)))
    name = NAME if origin is None else MEAN
    if is_scored := bool(scored):
        scored[name] = trials.score()
    barrier = basin.check(trials, refreshed, scores=scored.get(name))
    if origin is None:
        return refreshed, None, barrier
    stock, mean = _model_stock(gathered, *origin, terminal)
    refreshed = trials.refresh(mean)
    if is_scored:
        scored[NAME] = trials.score()
    return refreshed, stock, barrier


def shipped_files(path: Path) -> list[Path]:
    """Return the files that a run ships, or all runs of a repeat.

    Raises:
        UserError: A run has not finished, or is not as swa writes it.
    """
    if not RunFolder(path).repeat.is_file():
        return [_shipped(path)]
    seeds = {folder.name.removeprefix("seed-"): folder for folder in path.glob("seed-*")}
    numbers = sorted(filter(str.isdecimal, seeds), key=int)
    if not numbers:
        raise UserError(f"{path}: has no run", hint="run the same `swa repeat` again, or name other runs")
    return [_shipped(seeds[number]) for number in numbers]


def _shipped(path: Path) -> Path:
    run = read_run(path)
    if run.result is None:
        resume = user_code.command(("swa", "train", "--resume", path), run.recipe)
        raise UserError(
            f"{path}: has not finished, and only a finished run ships weights",
            hint=f"finish it with `{resume}`, or name a file in its checkpoints",
        )
    result = run.result
    name, _ = evaluate.to_ship(result.weights, loss_key=run.metrics.loss_key, averages=result.averages)
    return RunFolder(path).weights_file(name)


def _named(gathered: Sources) -> dict[str, sources.Source]:
    """Return the sources by their names in the table: the number in the list of sources, and the weight set."""
    return {f"{number} {source.name}": source for number, source in enumerate(gathered.sets, start=1)}


def _is_held_out(gathered: Sources, method: str, terminal: Terminal) -> bool:
    """Return whether there are validation images that no source was trained on; a greedy soup has to have some."""
    try:
        sources.require_held_out(gathered, otherwise="take --method uniform, which chooses nothing")
    except UserError as error:
        if method == GREEDY:
            raise
        terminal.note(f"nothing is scored: {error.message}")
        return False
    return True


def _table(
    scored: Mapping[str, SampleScores], refreshed: Refreshed, trials: Trials
) -> tuple[dict[str, dict[str, Any]], str]:
    """Return the scores of candidates and soup, which is judged against the candidate of the lowest loss; its name."""
    candidates, key = _named(trials.sources), trials.metrics.loss_key
    losses = {name: scored[name].metric(key).value for name in candidates}
    reference = evaluate.lowest(losses) or next(iter(candidates))
    count = refreshed.mean.count
    reason = evaluate.unjudged(
        NAME,
        count=count,
        weights=refreshed.state_dict,
        raw=candidates[reference].state,
        names=list(read_tensors(trials.sources.model).weights),
    )
    judged = {name: reason if name == NAME else None for name in scored if name not in candidates}
    rows = evaluate.table(scored, reference=reference, judged=judged)
    for name, source in candidates.items():
        held = source.found.content["average"]["count"] if source.found.kind == "weights" else None
        rows[name] |= {"file": source.file, "count": held, "batchnorm": source.batchnorm}
    batchnorm = "none" if refreshed.update is None else refreshed.update.freshness
    for name in judged:
        rows[name] |= {"count": count, "batchnorm": batchnorm}
    return rows, reference


def _model_stock(
    gathered: Sources, initial: InitialWeights, origin: Mapping[str, Tensor], terminal: Terminal
) -> tuple[Stock, Mean]:
    """Put each tensor of the network between the pretrained weights and the mean of the sources."""
    members, names = gathered.sets, list(read_tensors(gathered.model).weights)
    with gathered.context.events.progress(TITLES[MODEL_STOCK], len(members) + len(gathered.averaged)) as bar:
        sets = [source.state for source in members]
        state, ratios = soup.model_stock(origin, sets, averaged=gathered.averaged, advance=bar.advance)
    uniform = [name for name in names if name not in origin]
    t = {name: ratios[name].t if name in ratios else 1.0 for name in names if name in ratios or name in uniform}
    sizes = {name: state[name].numel() for name in t}
    share = sum(sizes[name] * t[name] for name in t) / sum(sizes.values()) if t else 1.0
    stock = Stock(initial, ratios, uniform, share)
    terminal.facts(TITLES[MODEL_STOCK], _facts(stock, unmoved=len(names) - len(t)))
    steps = [source.step for source in members if source.step is not None]
    return stock, Mean(
        kind=MODEL_STOCK,
        shares=[(source, share / len(members)) for source in members],
        steps=steps if len(steps) == len(members) else [],
        count=len(members),
        state=state,
    )


def _facts(stock: Stock, *, unmoved: int) -> list[tuple[str, str]]:
    rows = [("pretrained", f"{stock.initial.source} ({stock.initial.name})")]
    if stock.ratios:
        t = sorted(ratio.t for ratio in stock.ratios.values())
        spread = f"{t[0]:.3f} to {t[-1]:.3f} over {count_text(len(t), 'tensor')}"
        rows.append(("t", f"{spread}; {stock.share:.3f} of all weights are those of the mean"))
    if at_start := [name for name, ratio in stock.ratios.items() if not ratio.t]:
        rows.append(
            ("as pretrained", f"{count_text(len(at_start), 'tensor')}, whose moves disagree: {some_of(at_start)}")
        )
    if unmoved:
        rows.append(("unmoved", f"{count_text(unmoved, 'tensor')}, equal in all sources"))
    if stock.uniform:
        rows.append(("uniform mean", f"{some_of(stock.uniform)}: no pretrained tensors"))
    return rows


def _pretrained(gathered: Sources, given: str | None) -> tuple[InitialWeights, dict[str, Tensor]]:
    """Return the weights that the sources started from, without those of a new head.

    Raises:
        UserError: None are known, they cannot be read or do not fit, or a run started from others.
    """
    context = gathered.context
    if given is not None:
        named = context.recipe.model.model_copy(update={"pretrained": given})
        context = replace(context, recipe=context.recipe.model_copy(update={"model": named}))
    model = context.build_model()
    try:
        initial = _initial(context, model, gathered)
    except RecipeError as error:
        first = error.problems[0]
        key = first.key if given is None else f"--pretrained {given}"
        other = "name the weights that the runs started from with --pretrained FILE"
        raise UserError(
            f"{key}: {first.message}", hint=f"{first.hint}; or {other}" if given is None else other
        ) from error
    _require_origin(gathered, initial, is_given=given is not None)
    return initial, {name: value.cpu() for name, value in model.state_dict().items() if name not in initial.fresh}


def _initial(context: Context, model: nn.Module, gathered: Sources) -> InitialWeights:
    """Put the weights into a network that the recipe names in model.pretrained, or else in train.init."""
    settings = context.recipe.train
    if context.recipe.model.pretrained is not None:
        context = replace(context, pretrained=pretrained.find(context.recipe))
        return pretrained.load_pretrained(context, model, purpose="train")
    if settings.init is None:
        raise UserError(
            f"{gathered.sets[0].file}: its recipe names no weights that it started from, in model.pretrained or"
            " train.init",
            hint="name them with --pretrained FILE, or take --method uniform",
        )
    found, problems = read_initial(settings.init)
    if found is None:
        raise RecipeError(problems)
    return load_initial(found, model, name=settings.init_weights, skip=settings.init_skip)


def _require_origin(gathered: Sources, initial: InitialWeights, *, is_given: bool) -> None:
    """Refuse runs that record other weights at their start; only warn where a person names the weights.

    Raises:
        UserError: A run started from others.
    """
    if "init_sha256" in initial.record and initial.fresh:
        return  # the checksum is also of what each seed starts afresh
    for source in gathered.sets:
        folder = RunFolder.containing(source.found.path)
        if folder is None:
            continue
        recorded = _checksum(about(folder.about), like=initial.record)
        if recorded == initial.sha256 or (is_given and recorded is None):
            continue
        message = f"{source.file}: its run started from other weights than {initial.source} ({initial.name}) holds"
        if not is_given:
            raise UserError(message, hint="name fine-tunings of one network, or its weights with --pretrained FILE")
        gathered.context.events.warning(message)


def _checksum(record: Mapping[str, Any], *, like: Mapping[str, Any]) -> str | None:
    """Return the checksum in a run.json of weights that were named by the same key."""
    if "init_sha256" in like:
        return record.get("init_sha256")
    entry = record.get("pretrained")
    return entry.get("sha256") if isinstance(entry, dict) else None
