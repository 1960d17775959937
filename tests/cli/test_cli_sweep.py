"""A sweep as its user meets it: the same runs as one by one, stopped and continued, refused, failed, pruned."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from conftest import OnStep, run_swa
from equal_runs import assert_equal_runs
from processes import exit_codes, said_in, start
from swa_cli import signals
from swa_cli.analysis import sweep_study, sweep_trials
from swa_cli.checkpoint.run_folder import RunFolder
from swa_cli.engine.context import Context
from swa_cli.engine.events import EpochEvent, PlanEvent, Stopped
from swa_cli.errors import Terminated, UserError
from swa_cli.recipe import load
from swa_cli.recipe.load import Loaded
from swa_cli.report.terminal import Terminal

RECIPE = """\
name: few
seed: 7
model: {name: convnet, args: {width: 4, dropout: 0.3}}
dataset: {name: digits, val: 200}
optimizer: {lr: 0.1}
swa: {start: 50%, every: 0.5ep, eval_every: 1ep}
train: {epochs: 2, batch_size: 256, threads: 1, precision: fp32}
"""
GRID = ("swa.lr=0.05,0.1", "swa.start=50%,75%")
FOLDER = Path("runs/few-sweep-001")


@pytest.fixture
def few(tmp_path: Path) -> Path:
    path = tmp_path / "few.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grid of four trials that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "few.yaml").write_text(RECIPE)
    run_swa("sweep", folder / "few.yaml", *GRID, "-q", "-o", folder)
    return folder / "few-sweep-001"


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let a stand-in take the place of training, with a loss of |lr - 0.1|; return the folders that it was given.

    A trial fails where its rate is above 1, and for the same reason.
    """
    folders: list[str] = []

    def run(loaded: Loaded, folder: RunFolder, *, state: str, listeners: Sequence[Any], **_: Any) -> None:
        folders.append(folder.path.name)
        rate, epochs = loaded.recipe.optimizer.lr, loaded.recipe.train.epochs
        folder.path.mkdir(parents=True, exist_ok=True)
        if rate > 1:
            raise UserError(f"epoch 1, step {len(folders)}: the loss is nan", hint="lower the rate")
        loss, history = abs(rate - 0.1), []
        plan = PlanEvent(title="", rows=(), recipe=loaded.recipe.values(), averages=["swa"], metrics=None)  # type: ignore[arg-type]
        listeners[1].plan(plan)
        for epoch in range(1, epochs + 1):
            row = {"epoch": epoch, "val_loss": loss + 1 / epoch, "swa_val_loss": None}
            history.append(row)
            try:
                listeners[1].epoch(EpochEvent(row=row, history=history))
            except Stopped as stopped:
                raise stopped.ending from None
        weights = {name: {"val": {"nll": loss, "accuracy": 1 - loss}} for name in ("last", "swa")}
        folder.write_text("recipe.yaml", load.dump(loaded.recipe))
        folder.write_json("result.json", {"weights": weights, "seconds": 1.0})

    monkeypatch.setattr(sweep_trials, "run_or_continue", run)
    return folders


@pytest.fixture
def signal_in(on_step: OnStep) -> Callable[..., None]:
    """Let this process get a signal once, after the update that makes a step of a trial."""

    def arm(trial: int, step: int, number: int = signal.SIGINT) -> None:
        def hear(run: PlanEvent, event: Any) -> None:
            if run.folder is not None and (run.folder.name, event.step) == (f"trial-{trial:03d}", step):
                on_step(lambda *_: None)
                os.kill(os.getpid(), number)

        on_step(hear)

    return arm


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_a_grid_has_a_run_per_combination(swa, few: Path, whole: Path) -> None:
    """Four trials against result.json of each run, and trial 1 against `swa train` with its values: equal weights."""
    answer, sweep = read(whole / "result.json"), read(whole / "sweep.json")
    assert (sweep["format"], sweep["metric"], sweep["direction"]) == (1, "swa_val_loss", "minimize")
    assert [trial["params"] for trial in answer["trials"]] == [
        {"swa.lr": rate, "swa.start": start} for rate in ("0.05", "0.1") for start in ("50%", "75%")
    ]
    for trial in answer["trials"]:
        result = read(whole / trial["run"] / "result.json")
        assert trial["value"] == result["weights"]["swa"]["val"]["nll"]
    best = min(answer["trials"], key=lambda trial: trial["value"])
    assert answer["best"]["number"] == best["number"]
    assert '"test"' not in json.dumps(answer)  # as a key: scores of test images
    recipe = yaml.safe_load((whole / "best.yaml").read_text())
    assert (str(recipe["swa"]["lr"]), recipe["swa"]["start"]) == tuple(best["params"].values())
    assert swa("train", few, "swa.lr=0.05", "swa.start=75%", "-q").code == 0
    assert_equal_runs(whole / "trial-001", Path("runs/few-001"))


@pytest.mark.slow
def test_a_grid_with_seeds_becomes_a_table_and_a_page(swa, few: Path, tmp_path: Path) -> None:
    """Three commands from a recipe to LaTeX and a page: each mean and deviation against result.json of the seeds."""
    ended = swa("sweep", few, *GRID, "train.epochs=1", "swa.every=1step", "--seeds", "0-2", "--top", "4", "--json")
    assert ended.code == 0, ended.err
    latex = swa("compare", FOLDER, "--format", "latex", "--weights", "swa").out
    rows = [line.removesuffix(" " + 2 * "\\").split(" & ") for line in latex.splitlines() if line.count(" & ") > 5]
    shown = {row[0]: row[1:] for row in (list(map(plain, row)) for row in rows)}
    for trial in ended.json["trials"]:
        results = [read(FOLDER / "seeds" / trial["run"] / f"seed-{seed}/result.json") for seed in range(3)]
        expected = [trial["params"]["swa.start"], trial["params"]["swa.lr"], "swa", "3"]
        for split in ("val", "test"):
            rows_of_seeds = [result["weights"]["swa"] for result in results]
            scores = [row["val"] if split == "val" else row for row in rows_of_seeds]
            for key, factor, digits in (("accuracy", 100, 2), ("nll", 1, 3)):
                values = [factor * score[key] for score in scores]
                expected.append(f"{fmean(values):.{digits}f} ± {stdev(values):.{digits}f}")
        found = shown[f"seeds/{trial['run']}"]
        assert sorted(found[:2]) + found[2:] == sorted(expected[:2]) + expected[2:]
    assert swa("report", FOLDER, "--no-data", "-o", "page.html").code == 0
    page = (tmp_path / "page.html").read_text()
    assert all(f"seeds/{trial['run']}" in page for trial in ended.json["trials"])


def plain(cell: str) -> str:
    """A cell of a LaTeX table as plain text."""
    text = cell.removeprefix(r"\textbf{").removesuffix("}") if cell.startswith(r"\textbf{") else cell
    return text.replace(r"\%", "%").replace(r"$\pm$", "±").replace(r"\_", "_")


def test_a_stopped_repeat_of_a_sweep_names_the_sweep(swa, few: Path, on_step: OnStep) -> None:
    """Ctrl-C in a seed of the best trial: the command to continue with is that of the sweep."""
    words = ("sweep", few, "swa.lr=0.05,0.1", "train.epochs=1", "--seeds", "0-1", "--top", "1")

    def hear(run: PlanEvent, event: Any) -> None:
        if run.folder is not None and run.folder.name == "seed-1":
            on_step(lambda *_: None)
            os.kill(os.getpid(), signal.SIGINT)

    on_step(hear)
    ended = swa(*words)
    assert ended.code == 130
    assert "continue with the same `swa sweep`" in " ".join(ended.err.split())
    assert "swa repeat" not in ended.err


def test_a_stopped_sweep_continues_inside_its_trial(swa, few: Path, whole: Path, signal_in) -> None:
    """Ctrl-C and SIGTERM inside two trials, against the undisturbed sweep: the same trials, values and weights."""
    signal_in(trial=1, step=5)
    ended = swa("sweep", few, *GRID)
    assert ended.code == 130
    assert "run the same command again" in ended.err
    assert [trial.name for trial in sorted(FOLDER.glob("trial-*"))] == ["trial-000", "trial-001"]
    signal_in(trial=2, step=3)
    assert swa("sweep", few, *GRID).code == 130
    again = swa("sweep", few, *GRID, "--json")
    assert again.code == 0
    for trial, other in zip(again.json["trials"], read(whole / "result.json")["trials"], strict=True):
        assert {**trial, "seconds": 0} == {**other, "seconds": 0}
        assert_equal_runs(FOLDER / trial["run"], whole / other["run"])
    assert not Path("runs/few-sweep-002").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_at_the_end_of_a_trial_stops_the_sweep(
    swa, few: Path, signal_at_end: Callable[..., None], number: int, code: int
) -> None:
    """A signal when the first trial is complete: its exit code, no further trial; the same command does the rest."""
    words = ("sweep", few, "swa.lr=0.05,0.1", "train.epochs=1", "-q")
    signal_at_end("trial-000", number)
    ended = swa(*words)
    assert ended.code == code
    assert "the sweep is stopped" in ended.err
    assert [trial.name for trial in FOLDER.glob("trial-*")] == ["trial-000"]
    again = swa(*words, "--json")
    assert (again.code, len(again.json["trials"])) == (0, 2)


def test_a_signal_while_the_garbage_of_a_trial_is_collected(
    swa, few: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM in a callback of that collection, where Python drops what is raised: exit code 143, one trial begun."""

    def collect() -> None:
        monkeypatch.setattr(sweep_trials.gc, "collect", lambda: None)
        in_a_callback(lambda: os.kill(os.getpid(), signal.SIGTERM))

    monkeypatch.setattr(sweep_trials.gc, "collect", collect)
    with signals.handled():
        assert swa("sweep", few, "optimizer.lr=0.05,0.2,0.1").code == 143
    assert trained == ["trial-000"]


def in_a_callback(do: Callable[[], object]) -> None:
    """Do something in a callback of a weak reference."""

    class Waste:
        pass

    waste = Waste()
    reference = weakref.ref(waste, lambda _: do())
    del waste
    assert reference() is None


class Child:
    """A process of a sweep that ends when it is told to for the so-many-th time."""

    def __init__(self, ends_at: int, *, interrupt: bool) -> None:
        self.ends_at, self.interrupt, self.told, self.returncode = ends_at, interrupt, 0, None

    def poll(self) -> int | None:
        return self.returncode

    def terminate(self) -> None:
        self.told += 1
        if self.told == self.ends_at:
            self.returncode = 143

    def wait(self) -> None:
        if self.interrupt:
            self.interrupt = False
            raise KeyboardInterrupt
        assert self.returncode is not None, "waits for a process that nobody has told to end"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Terminated(), OSError(28, "no space")])
@pytest.mark.parametrize("again", [False, True])
def test_processes_end_when_the_one_that_started_them_is_stopped(
    few: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, again: bool
) -> None:
    """A signal that the first process alone has heard, or an error: all are told once, and once more by a second."""
    children = [Child(1 + again, interrupt=again and not number) for number in range(2)]
    left = iter(children)

    def records() -> list[Any]:
        raise error

    monkeypatch.setattr(sweep_trials.subprocess, "Popen", lambda *_, **__: next(left))
    sweep = SimpleNamespace(loaded=load.load(few), limit=4, folder=SimpleNamespace(path=few.parent), records=records)
    with pytest.raises(type(error)):
        sweep_trials.launch(
            sweep, ["sweep"], processes=2, terminal=Terminal(quiet=True), table=SimpleNamespace(tell=print)
        )  # type: ignore[arg-type]
    assert [child.told for child in children] == [1 + again] * 2
    assert [child.returncode for child in children] == [143] * 2


def test_a_process_of_a_sweep_leaves_ctrl_c_to_the_one_that_started_it(whole: Path, tmp_path: Path) -> None:
    """Ctrl-C at a terminal reaches a worker too, inside its first trial: it goes on to the end of the sweep."""
    shutil.copy(whole.parent / "few.yaml", tmp_path)
    folder = tmp_path / FOLDER.name
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("trial-*", "journal.log*", "result.json"))
    words = ["sweep", "few.yaml", "swa.lr=0.05,0.1", "train.epochs=1", "--storage", str(folder.with_name("own"))]
    worker = start(tmp_path, [*words, "--worker", str(folder)], kill_at=1, within="trial-000", by=signal.SIGINT)
    assert exit_codes(worker) == [0], said_in(tmp_path)


def test_the_seconds_of_a_trial_include_those_before_it_was_stopped(
    swa, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that goes on by 10 s within each session: 20 s for a trial that was stopped once."""
    clock = SimpleNamespace(now=0.0)
    with_clock = SimpleNamespace(monotonic=lambda: clock.now, sleep=time.sleep)
    monkeypatch.setattr(sweep_study, "time", with_clock)

    def run(loaded: Loaded, folder: RunFolder, **_: Any) -> None:
        clock.now += 10
        if clock.now == 10:
            raise KeyboardInterrupt
        weights = {name: {"val": {"nll": 1.0, "accuracy": 0.5}} for name in ("last", "swa")}
        folder.path.mkdir(parents=True)
        folder.write_json("result.json", {"weights": weights, "seconds": 1.0})

    monkeypatch.setattr(sweep_trials, "run_or_continue", run)
    assert swa("sweep", few, "swa.lr=0.05,0.1", "-q").code == 130
    trials = swa("sweep", few, "swa.lr=0.05,0.1", "--json").json["trials"]
    assert [trial["seconds"] for trial in trials] == [20, 10]


def test_a_finished_sweep_is_told_again(swa, few: Path, trained: list[str]) -> None:
    """The same command twice: no trial is run the second time; with another metric it is a sweep of its own."""
    words = ("sweep", few, "optimizer.lr=0.05,0.2,0.1")
    first = swa(*words, "--json").json
    assert len(trained) == 3
    assert swa(*words, "--json").json == first
    assert len(trained) == 3
    assert first["best"]["params"] == {"optimizer.lr": "0.1"}
    other = swa(*words, "--metric", "val_accuracy", "--json")
    assert (other.json["direction"], Path(other.json["run"]).name) == ("maximize", "few-sweep-002")
    assert "metric is" in other.err


def test_more_trials_of_a_range_continue(swa, few: Path, trained: list[str]) -> None:
    """3 trials, then 5 of the same sweep: the first three stay, and each number in a recipe is that of the trial."""
    words = ("sweep", few, "optimizer.lr=log(1e-2,1)", "--sampler", "random", "--json")
    first = swa(*words, "--trials", "3").json
    more = swa(*words, "--trials", "5").json
    assert more["trials"][:3] == first["trials"]
    assert trained == [f"trial-{number:03d}" for number in range(5)]
    for trial in more["trials"]:
        rate = yaml.safe_load((Path(more["run"]) / trial["run"] / "recipe.yaml").read_text())["optimizer"]["lr"]
        assert float(rate) == float(trial["params"]["optimizer.lr"])


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_list_with_trials_tries_each_value_once(swa, few: Path, trained: list[str], sampler: str) -> None:
    """3 of 4 values, then all, then 5: other values, with other seeds of the recipe too, and a refusal."""
    rates = ["0.05", "0.1", "0.2", "0.3"]
    for seed in range(3):
        words = ("sweep", few, f"optimizer.lr={','.join(rates)}", f"seed={seed}", "--sampler", sampler, "--json")
        three, four = (swa(*words, "--trials", str(number)).json["trials"] for number in (3, 4))
        assert four[:3] == three
        assert sorted(trial["params"]["optimizer.lr"] for trial in four) == rates
        fewer = swa(*words, "--trials", "2")
        assert "2 of 2 are finished" in " ".join(fewer.err.split())
        assert fewer.json["trials"] == four[:2]
        refused = swa(*words, "--trials", "5")
        assert (refused.code, "--trials 4" in refused.err) == (2, True)
    assert len(trained) == 12


def test_a_failed_trial_is_told_and_the_sweep_goes_on(swa, few: Path, trained: list[str]) -> None:
    """One diverging rate among three: failed with its reason, and not run again."""
    ended = swa("sweep", few, "optimizer.lr=0.2,2,0.1", "--json")
    assert ended.code == 0
    assert [trial["state"] for trial in ended.json["trials"]] == ["complete", "failed", "complete"]
    assert "loss is nan" in ended.json["trials"][1]["reason"]
    assert "trial 1 failed: epoch 1" in ended.err


def test_the_same_error_in_the_first_trials_ends_the_sweep(swa, few: Path, trained: list[str]) -> None:
    """Three trials of four that diverge in different steps: exit code 1, and the fourth is not run."""
    ended = swa("sweep", few, "optimizer.lr=2,3,4,0.1")
    assert (ended.code, len(trained)) == (1, 3)
    assert "the first 3 trials fail with the same error" in ended.err


def test_asha_prunes_by_the_metric_where_it_is_measured(swa, few: Path, trained: list[str]) -> None:
    """val_loss of each epoch: worse trials are pruned; swa_val_loss, never measured before the end: none is."""
    words = ("sweep", few, "optimizer.lr=0.1,0.9,0.8,0.7", "train.epochs=4", "--pruner", "asha", "--json")
    pruned = swa(*words, "--metric", "val_loss")
    assert [trial["state"] for trial in pruned.json["trials"]] == ["complete", "pruned", "pruned", "pruned"]
    assert "pruned" in pruned.err
    whole = swa(*words)
    assert {trial["state"] for trial in whole.json["trials"]} == {"complete"}


def test_a_pruned_run_is_saved_and_can_be_resumed(swa, few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real run that the pruner ends after epoch 1: its rows, no result, and `swa train --resume` finishes it."""
    monkeypatch.setattr(sweep_trials.Claim, "report", lambda claim, epoch, value: claim.number == 1 and epoch == 1)
    assert swa("sweep", few, "swa.lr=0.05,0.1", "--pruner", "asha", "--metric", "val_loss", "-q").code == 0
    trial = FOLDER / "trial-001"
    assert len((trial / "metrics.csv").read_text().splitlines()) == 2
    assert not (trial / "result.json").exists()
    assert read(FOLDER / "result.json")["trials"][1]["state"] == "pruned"
    assert swa("train", "--resume", trial, "-q").code == 0
    assert (trial / "result.json").is_file()


def test_the_best_are_repeated_with_seeds(swa, few: Path, trained: list[str], whole: Path, monkeypatch) -> None:
    """Two of three trials with two seeds: the best mean wins, and best.yaml is its recipe."""
    from swa_cli.analysis import sweep_end

    def repeat(loaded: Loaded, seeds: Sequence[int], *, terminal: Any, at: Path, waits: bool) -> None:
        for seed in seeds:
            loss = 0.5 if loaded.recipe.optimizer.lr == 0.1 else (0.2, 0.3)[seed]
            RunFolder(at / f"seed-{seed}").path.mkdir(parents=True, exist_ok=True)
            RunFolder(at / f"seed-{seed}").write_json("result.json", {"weights": {"swa": {"val": {"nll": loss}}}})

    monkeypatch.setattr(sweep_end, "repeat", repeat)
    ended = swa("sweep", few, "optimizer.lr=0.1,0.12,0.9", "--seeds", "0-1", "--top", "2", "--json")
    assert [(each["number"], each["values"]) for each in ended.json["repeats"]] == [(0, [0.5, 0.5]), (1, [0.2, 0.3])]
    assert ended.json["best"]["number"] == 1
    assert yaml.safe_load((FOLDER / "best.yaml").read_text())["optimizer"]["lr"] == 0.12
    assert sorted(path.name for path in (FOLDER / "seeds").iterdir()) == ["trial-000", "trial-001"]


def test_a_trial_that_diverges_with_a_seed_is_left_out(swa, few: Path, trained: list[str], monkeypatch) -> None:
    """The best trial fails with a seed: a warning names it, another one is the best, and the files are written."""
    from swa_cli.analysis import sweep_end

    def repeat(loaded: Loaded, seeds: Sequence[int], *, terminal: Any, at: Path, waits: bool) -> None:
        if loaded.recipe.optimizer.lr == 0.1:
            raise UserError("seed 1 (2 of 2): epoch 1: the loss is nan", hint="lower the rate")
        if loaded.recipe.optimizer.lr == 0.3:
            raise UserError("seed 1: cannot be written", hint="") from OSError("disk full")
        for seed in seeds:
            RunFolder(at / f"seed-{seed}").path.mkdir(parents=True, exist_ok=True)
            RunFolder(at / f"seed-{seed}").write_json("result.json", {"weights": {"swa": {"val": {"nll": 0.5}}}})

    monkeypatch.setattr(sweep_end, "repeat", repeat)
    ended = swa("sweep", few, "optimizer.lr=0.1,0.12,0.9", "--seeds", "0-1", "--top", "2", "--json")
    assert ended.code == 0, ended.err
    assert [each["number"] for each in ended.json["repeats"]] == [1] == [ended.json["best"]["number"]]
    assert "trial 0 is left out of the repeats: seed 1 (2 of 2): epoch 1: the loss is nan" in " ".join(
        ended.err.split()
    )
    assert (FOLDER / "result.json").is_file()
    assert swa("sweep", few, "optimizer.lr=0.3,0.9", "--seeds", "0-1", "-q").code == 2  # of the disk


def test_repeats_wait_for_the_last_trial(swa, few: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A timeout after two of three trials: no seed is run, and the same command runs the rest and the seeds."""
    from swa_cli.analysis import sweep_end

    repeated = []
    monkeypatch.setattr(sweep_end, "_repeat_all", lambda *_, **__: repeated.append(len(trained)) or {})
    ticks = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: float(next(ticks)), sleep=time.sleep)
    words = ("sweep", few, "optimizer.lr=0.1,0.2,0.3", "--seeds", "0-1")
    with monkeypatch.context() as patch:
        patch.setattr(sweep_trials, "time", clock)
        ended = swa(*words, "--timeout", "2s", "--json")
    assert (len(trained), repeated, ended.json["finished"]) == (2, [], False)
    assert "the repeats with seeds follow" in " ".join(ended.err.split())
    assert swa(*words, "-q").code == 0
    assert (len(trained), repeated) == (3, [3])


@pytest.mark.parametrize("words", [[], ["--storage", "sqlite:///trials.db"]], ids=["folder", "database"])
def test_trials_that_failed_are_run_again_as_the_hint_says(swa, few: Path, trained: list[str], words) -> None:
    """Two trials of two fail: the same command says the same, and after what the hint says it runs both again."""
    import optuna

    command = ("sweep", few, "optimizer.lr=2,3", *words)
    for _ in range(2):
        ended = swa(*command)
        assert (ended.code, len(trained)) == (1, 2)
    said = " ".join(ended.err.split())
    assert f"move {FOLDER} elsewhere" in said
    shutil.move(FOLDER, "before")
    if words:
        name, storage = re.findall(r"`optuna delete-study --study-name (\S+) --storage (\S+)`", said)[0]
        optuna.delete_study(study_name=name, storage=storage)
    assert (swa(*command).code, len(trained)) == (1, 4)


@pytest.mark.parametrize(
    ("words", "said", "hint"),
    [
        (("swa.lr=0.05,0.1", "dataset.val=0"), "dataset.val is 0", "dataset.val=10%"),
        (("optimizer.lr=log(1e-3,1)",), "optimizer.lr=log(1e-3,1) is a range", "--trials 20"),
        (("optimizer.lr=log(1e-3,1)", "--sampler", "grid"), "has no grid", "tpe"),
        (("swa.lr=0.05,0.1", "--sampler", "grid", "--trials", "3"), "the grid has 2 trials", "--sampler random"),
        (("swa.lr=0.05,0.1", "--trials", "3"), "the values have 2 combinations", "--trials 2"),
        (("swa.every=1step..4step", "--trials", "5"), "the values have 4 combinations", "--trials 4"),
        (("seed=0,1", "dataset.val_seed=0", "--seeds", "0-1"), "differ in it (seed=0,1)", "leave seed=0,1 out"),
        (("swa.lr=0.05,0.1", "--metric", "train_loss"), "training images", "val_loss"),
        (("swa=null,{start: 50%}", "--metric", "swa_val_loss"), "not measured by every trial", "val_loss"),
        (("swa.lr=0.05,0.1", "--timeout", "2"), "`2` is not a length of time", "10min"),
        (("swa.lr=0.05,0.1", "--top", "2"), "--top goes with --seeds", ""),
        (("swa.lr=0.05,0.1", "--storage", "nowhere://x"), "nowhere", ""),
        (("swa.lr=0.05,0.1", "--storage", "postgresql://me@host:port/x"), "--storage: is no URL", "host:5432"),
        (("swa=null,{start: 50%}", "--pruner", "asha"), "by different things: swa_val_loss", "--metric val_loss"),
        (
            ("swa.start=0%,75%", "--pruner", "asha"),
            "from epoch 1 on and swa_val_loss from epoch 2",
            "--metric val_loss",
        ),
        (("swa.start=50%,100ep",), "swa.start=50%,100ep", ""),
        (("optimizer.name=SGD,Adma", "swa.lr=0.05,0.1"), "Adma", "Adam"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_anything_is_made(swa, few: Path, words, said: str, hint: str) -> None:
    """A wrong sweep: exit code 2, the value and a fix, and no folder."""
    ended = swa("sweep", few, *words)
    assert ended.code == 2, ended.err
    text = " ".join(ended.err.split())
    assert said in text
    assert hint in text
    assert not Path("runs").exists() or not list(Path("runs").iterdir())


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_each_value_is_checked_as_train_does(swa, few: Path, more: list[str]) -> None:
    """Second values that `swa train` refuses, each by another check: all problems at once, and no folder."""
    words = {
        "model.name": "convnet,resnet8",
        "model.args.width": "2,0",
        "train.init": "null,/nonexistent.pt",
        "train.class_weights": "none,[1,2]",
        "train.loss": "cross_entropy,nowhere:Loss",
    }
    ended = swa("sweep", few, *(f"{key}={values}" for key, values in words.items()), *more)
    assert ended.code == 2, ended.err
    assert sorted(re.findall(r"^error: (\S+):", ended.err, re.MULTILINE)) == sorted(words)
    assert not Path("runs").exists()


def test_a_dry_run_writes_nothing(swa, few: Path) -> None:
    """The plan of a sweep with --dry-run: values, metric, number of trials; no folder."""
    ended = swa("sweep", few, *GRID, "--dry-run", "--json")
    assert (ended.code, ended.json["trials"], ended.json["metric"]) == (0, 4, "swa_val_loss")
    assert ended.json["plan"]["epochs"] == 2
    assert not Path("runs").exists()


def test_a_storage_folder_is_the_folder_of_the_sweep(swa, few: Path, trained: list[str]) -> None:
    """--storage DIR twice with one recipe, and once with another: continued, and refused."""
    words = ("optimizer.lr=0.1,0.2", "--storage", "shared/mine", "-q")
    assert swa("sweep", few, *words).code == 0
    assert read(Path("shared/mine/result.json"))["finished"]
    assert swa("sweep", few, *words).code == 0
    assert len(trained) == 2
    refused = swa("sweep", few, *words, "train.epochs=3")
    assert refused.code == 2
    assert "train.epochs is 2 there" in refused.err


def test_a_sweep_is_no_run(swa, whole: Path) -> None:
    """`swa train --resume SWEEP`: refused with the command that continues it."""
    ended = swa("train", "--resume", whole)
    assert ended.code == 2
    assert "swa sweep" in ended.err


def test_the_picture_of_a_sweep(swa, whole: Path, tmp_path: Path) -> None:
    """`swa plot SWEEP sweep`: a picture, and the trials of result.json; other folders have none."""
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    ended = swa("plot", copy, "sweep", "--json")
    assert ended.code == 0, ended.err
    assert (copy / "sweep.png").is_file()
    assert ended.json["trials"] == read(copy / "result.json")["trials"]
    assert set(ended.json["importances"]) <= {"swa.lr", "swa.start"}
    assert swa("plot", copy / "trial-000", "sweep").code == 2


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file of a sweep but its picture."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "sweep.png"}


@pytest.mark.parametrize(
    ("kept", "code", "told"), [(100, 0, ""), (80, 0, "trial-003"), (40, 0, "trial-001"), (0, 2, "trial-000")]
)
def test_the_picture_of_a_sweep_writes_nothing_else(
    swa, whole: Path, tmp_path: Path, kept: int, code: int, told: str
) -> None:
    """A journal of which some percent are left: the trials that have ended and are not in it are told, and it stays."""
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    journal = (copy / "journal.log").read_bytes()
    (copy / "journal.log").write_bytes(journal[: len(journal) * kept // 100])
    before = contents(copy)
    ended = swa("plot", copy, "sweep", "--json")
    assert ended.code == code, ended.err
    assert ("journal.log: lacks" in ended.err, told in ended.err) == (bool(told), True)
    assert contents(copy) == before


@pytest.mark.parametrize("name", ["sweep.json", "result.json"])
@pytest.mark.parametrize(
    "text", ["", '{"format": 1', '"x"', "{}", '{"format": 1}', "[" * 3000, '{"trials": -1}', '{"trials": [{}]}']
)
def test_a_damaged_file_of_a_sweep_is_named(swa, few: Path, trained: list[str], name: str, text: str) -> None:
    """sweep.json, and result.json where the trials are in a database: cut, of other content, nested too deeply."""
    assert swa("sweep", few, "optimizer.lr=0.1,0.2", "-q").code == 0
    if name == "result.json":
        (FOLDER / "journal.log").unlink()
        assert swa("plot", FOLDER, "sweep").code == 0
    (FOLDER / name).write_text(text)
    ended = swa("plot", FOLDER, "sweep")
    assert ended.code == 2
    assert f"{name}: " in ended.err


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("space", "optimizer.lr", "choices"), -1),
        (("space", "optimizer.lr", "choices"), []),
        (("space", "optimizer.lr", "choices"), [1, 2]),
        (("space", "optimizer.lr"), {"low": "a", "high": "b", "unit": "", "log": False, "int": False}),
        (("space",), None),
        (("metric",), 3),
        (("sampler",), "grid"),
    ],
)
def test_wrong_values_in_sweep_json_are_refused(swa, few: Path, trained: list[str], place, value) -> None:
    """An entry of sweep.json with a value of another kind: an error that names the file."""
    assert swa("sweep", few, "optimizer.lr=0.1,0.2", "-q").code == 0
    stored = read(FOLDER / "sweep.json")
    inner = stored
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    (FOLDER / "sweep.json").write_text(json.dumps(stored))
    ended = swa("plot", FOLDER, "sweep")
    assert ended.code == 2
    assert "sweep.json: is not as swa writes it" in ended.err


def test_a_damaged_journal_is_made_again_from_the_trials(swa, few: Path, trained: list[str], tmp_path: Path) -> None:
    """A journal with a line of NUL: refused with the cure, which gives the same answer without training again."""
    words = ("sweep", few, "optimizer.lr=0.1,0.2,0.3", "--json")
    first, journal = swa(*words).json, FOLDER / "journal.log"
    lines = journal.read_bytes().split(b"\n")
    journal.write_bytes(b"\n".join([*lines[:5], b"\0" * 20, *lines[5:]]))
    for command in (words, ("plot", FOLDER, "sweep")):
        ended = swa(*command)
        assert ended.code == 2
        assert "journal.log: line 6 " in ended.err
    assert "move it elsewhere" in ended.err
    journal.rename(tmp_path / "elsewhere")
    del trained[:]
    again = swa(*words).json
    assert [trial | {"seconds": 0} for trial in again["trials"]] == [
        trial | {"seconds": 0} for trial in first["trials"]
    ]
    assert (again["best"], trained) == (first["best"], [])


def test_photos_are_looked_at_once(swa, few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How often a sweep of two trials and a repeat of two seeds look at what a run reads late, against once each."""
    looked: list[str] = []
    monkeypatch.setattr(Context, "require_readable", lambda context: looked.append(context.recipe.name))
    assert swa("sweep", few, "swa.lr=0.05,0.1", "train.epochs=1", "-q").code == 0
    assert len(looked) == 1
    assert swa("repeat", few, "--seeds", "0-1", "train.epochs=1", "-q").code == 0
    assert len(looked) == 2


def test_trials_that_lie_elsewhere_are_told(swa, whole: Path, tmp_path: Path) -> None:
    """Folders of trials that result.json counts and that are not there, one and all: a warning, and a refusal."""
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    shutil.rmtree(copy / "trial-002")
    for command in (["compare", copy], ["report", copy, "--no-data", "-o", "page.html"]):
        ended = swa(*command)
        assert ended.code == 0, ended.err
        assert "copy: holds no folder of trial-002, which its result.json counts" in " ".join(ended.err.split())
    for trial in copy.glob("trial-*"):
        shutil.rmtree(trial)
    assert swa("compare", copy, whole).code == 0
    ended = swa("compare", copy)
    assert ended.code == 2
    assert "holds no folder of trial-000, trial-001, trial-002, trial-003" in ended.err


def test_a_sweep_is_compared_without_its_result(swa, whole: Path, tmp_path: Path) -> None:
    """result.json of a sweep, nested too deeply to be read: the table of its runs is that with a whole one."""
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    table = swa("compare", copy).out
    (copy / "result.json").write_text("[" * 3000)
    assert swa("compare", copy).out == table


def test_a_sweep_that_other_machines_have_run_names_what_works(swa, few: Path) -> None:
    """A second folder on the database of a finished sweep: no command that needs the folders of trials."""
    words = ("sweep", few, "swa.lr=0.05,0.1", "train.epochs=1", "--storage", "sqlite:///trials.db")
    first, second = (swa(*words, "--out", folder) for folder in ("one", "two"))
    assert (first.code, second.code) == (0, 0), second.err
    assert [("swa compare" in ended.out, "swa plot" in ended.out) for ended in (first, second)] == [
        (True, True),
        (False, True),
    ]
    assert swa("plot", "two/few-sweep-001", "sweep").code == 0


def test_two_processes_share_one_folder(whole: Path, tmp_path: Path) -> None:
    """The same command twice at once with one --storage: every trial is run once, with the values of one process."""
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
        (folder / "few.yaml").write_text(RECIPE)
    words = ["sweep", "few.yaml", *GRID, "--storage", str(tmp_path / "shared")]
    processes = [start(folder, words) for folder in folders]
    assert exit_codes(*processes) == [0, 0], [said_in(folder) for folder in folders]
    trials = read(tmp_path / "shared/result.json")["trials"]
    alone = read(whole / "result.json")["trials"]
    assert [trial | {"seconds": 0} for trial in trials] == [trial | {"seconds": 0} for trial in alone]
    logs = [(tmp_path / "shared" / trial["run"] / "log.txt").read_text() for trial in trials]
    assert [log.count("train loss") for log in logs] == [1] * 4  # the head of the table: no trial was begun twice


def test_two_processes_share_the_repeats(few: Path, tmp_path: Path) -> None:
    """The same command twice at once with --seeds: each seed is run once, and the answer is that of one process."""
    folders = [tmp_path / "alone", tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
        shutil.copy(few, folder)
    words = ["sweep", "few.yaml", GRID[0], "train.epochs=1", "--seeds", "0-1", "--top", "2"]
    processes = [
        start(folder, [*words, "--storage", str(tmp_path / ("first" if folder.name == "alone" else "shared"))])
        for folder in folders
    ]
    assert exit_codes(*processes) == [0, 0, 0], [said_in(folder) for folder in folders]
    alone, shared = (read(tmp_path / name / "result.json") for name in ("first", "shared"))
    assert len(shared["repeats"]) == 2
    assert (shared["repeats"], shared["best"]) == (alone["repeats"], alone["best"])
    logs = [path.read_text() for path in (tmp_path / "shared").glob("seeds/trial-*/seed-*/log.txt")]
    assert [log.count("train loss") for log in logs] == [1] * 4  # the head of the table: no seed was begun twice
