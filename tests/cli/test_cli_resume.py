"""Going on with a run: from any step, after any signal, to the bit-identical end; limits; more epochs."""

from __future__ import annotations

import csv
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.optim.optimizer import register_optimizer_step_post_hook

from conftest import copy_runs, run_swa
from equal_runs import assert_equal_runs, content
from swa_cli import temporary
from swa_cli.analysis.run_output import RunOutput
from swa_cli.checkpoint.run_folder import RunFolder
from swa_cli.engine import state
from swa_cli.engine import validate as scoring
from swa_cli.report.terminal import Terminal

# 22 steps an epoch, 88 in all: warmup to 22, schedule, anneal from 33 to 44, averaging from 44 on.
RECIPE = """\
name: long
model: {name: convnet, args: {width: 4, dropout: 0.3}}
dataset: {name: digits, val: 0, augment: {crop: 1}}
optimizer: {lr: 0.1}
schedule: {name: cosine}
swa: {start: 50%, every: 0.25ep, lr: 0.05, anneal: 0.5ep, eval_every: 1ep}
averages:
  ema: {kind: ema, decay: 0.9, start: 0ep, every: 1step}
  warm: {kind: ema, half_life: 0.5ep, warmup: true, start: 10step, every: 2step}
  plain: {kind: ema, half_life: 10%, bias_correction: false}
  power: {kind: power_ema, half_life: 10%, every: 2step}
  tail: {kind: lawa, window: 3, start: 25%, every: 5step}
  swag: {kind: swag, rank: 4, start: 25%, every: 3step}
  thin: {kind: swag, diagonal: true, start: 50%, every: 0.25ep}
snapshots: {every: 1ep, keep: 2}
train: {epochs: 4, batch_size: 64, threads: 1, precision: fp32}
"""

# Its EMA has the lowest loss after epoch 3, the last of it: scored as the end of the run, and not in a longer one.
FALLING = """\
name: long
model: {name: convnet, args: {width: 4}}
dataset: {name: digits, val: 1300}
optimizer: {lr: 0.1}
schedule: {name: constant}
averages: {ema: {kind: ema, decay: 0.3}}
swa: {start: 1ep, every: 1ep, eval_every: 2ep}
train: {epochs: 3, batch_size: 16, threads: 1, precision: fp32, early_stopping: {metric: ema_val_loss, patience: 1}}
"""


@pytest.fixture
def long(tmp_path: Path) -> Path:
    path = tmp_path / "long.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Train the recipe with changes, once each, and return the folder of its runs."""
    folders: dict[tuple[str, ...], Path] = {}

    def train(*words: str) -> Path:
        if words not in folders:
            folder = tmp_path_factory.mktemp("trained")
            (folder / "long.yaml").write_text(RECIPE)
            run_swa("train", folder / "long.yaml", "-q", *words, "-o", folder / "runs")
            folders[words] = folder / "runs"
        return folders[words]

    return train


@pytest.fixture
def to_the_end(long: Path, _trained: Callable[..., Path]) -> Callable[..., Path]:
    """The run of the recipe with changes that nothing has stopped, in runs/long-001: a copy of one training."""
    return lambda *words: copy_runs(_trained(*words), long.parent / "runs")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Callable[[float], list[float]]:
    """Let time stand still but for so many seconds per update; the list holds the time."""

    def arm(seconds: float) -> list[float]:
        now = [0.0]

        def tick(*_: Any) -> None:
            now[0] += seconds

        register = register_optimizer_step_post_hook(tick)
        request.addfinalizer(register.remove)
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        return now

    return arm


# Any step, any signal.


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [[], ["train.grad_accum_steps=3", "dataset.val=100", "output.save_every=3step"]],
    ids=["plain", "accumulate"],
)
def test_stopped_at_steps_of_every_phase_and_resumed(
    swa, long: Path, tmp_path: Path, to_the_end: Callable[..., Path], signal_at: Callable[..., None], words: list[str]
) -> None:
    """A chain of stops in the warmup, schedule, anneal, averaging and at an epoch's end, against one run to the end."""
    whole = to_the_end(*words)
    steps = content(whole, "last")["step"]
    points = sorted({round(steps * part) for part in (0.05, 0.3, 0.42, 0.5, 0.64, 0.97)} | {steps // 4 * 3})
    run = tmp_path / "runs/long-002"
    command: list[str | Path] = ["train", long, "-q", *words]
    for index, step in enumerate(points):
        signal_at(step, signal.SIGTERM if index % 2 else signal.SIGINT)
        ended = swa(*command)
        assert ended.code == (143 if index % 2 else 130), ended.err
        assert "swa train --resume " in " ".join(ended.err.split())
        assert content(run, "last")["step"] == step
        command = ["train", "--resume", run, "-q"]
    signal_at(-1)
    assert swa(*command).code == 0
    assert_equal_runs(whole, run)


@pytest.mark.slow
def test_streamed_images_go_on_inside_an_epoch(swa, long: Path, tmp_path: Path, signal_at: Callable[..., None]) -> None:
    """Images decoded by loader processes, stopped inside epochs, against the run to the end."""
    generator = torch.Generator().manual_seed(0)
    for label in ("cat", "dog"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for index in range(20):
            pixels = torch.randint(256, (12, 12, 3), generator=generator, dtype=torch.uint8).numpy()
            Image.fromarray(pixels).save(tmp_path / "images" / label / f"{index}.png")
    words = [
        "dataset={name: image_folder, root: images, val: 8, cache: none, workers: 1, image_size: 8}",
        "train.batch_size=8",
        "train.epochs=2",
        "averages={}",
    ]
    assert swa("train", long, "-q", *words).code == 0
    signal_at(2)
    assert swa("train", long, "-q", *words).code == 130
    signal_at(7)
    assert swa("train", "--resume", "runs/latest", "-q", "dataset.workers=2").code == 130
    signal_at(-1)
    assert swa("train", "--resume", "runs/latest", "-q").code == 0
    assert_equal_runs(tmp_path / "runs/long-001", tmp_path / "runs/long-002")


@pytest.mark.slow
@pytest.mark.parametrize("at", [1, 3, 8])
def test_stopped_while_scoring(
    swa, long: Path, tmp_path: Path, to_the_end: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """A signal in a validation, in a BatchNorm pass and in the final scores, against the run to the end."""
    words = ["dataset.val=200", "eval.batch_size=100"]
    whole = to_the_end(*words)
    progress, scorings = Terminal.progress, []

    def interrupted(terminal: Terminal, description: str, *args: Any, **options: Any) -> Any:
        if description.startswith("scoring"):
            scorings.append(description)
            if len(scorings) == at:
                os.kill(os.getpid(), signal.SIGINT)
        return progress(terminal, description, *args, **options)

    monkeypatch.setattr(Terminal, "progress", interrupted)
    assert swa("train", long, "-q", *words).code == 130
    assert swa("train", "--resume", "runs/latest", "-q").code == 0
    assert_equal_runs(whole, tmp_path / "runs/long-002")


def test_second_signal_stops_at_once_and_harms_nothing(
    swa, long: Path, tmp_path: Path, to_the_end: Callable[..., Path], signal_at: Callable[..., None]
) -> None:
    """Two signals in one step: 130, the save from before is what is left, and goes on to the same end."""
    whole = to_the_end()
    signal_at(50, times=2)
    ended = swa("train", long, "-q", "output.save_every=12step")
    run = tmp_path / "runs/long-002"
    assert ended.code == 130
    assert content(run, "last")["step"] == 48
    assert not list(run.rglob("*.tmp"))
    signal_at(-1)
    assert swa("train", "--resume", run, "-q").code == 0
    assert_equal_runs(whole, run)


def test_average_of_a_stopped_run_is_usable(swa, long: Path, signal_at: Callable[..., None]) -> None:
    """last.pt of a run that was stopped inside an epoch: refreshed and scored like any other."""
    signal_at(60)
    assert swa("train", long, "-q").code == 130
    assert swa("bn-update", "runs/latest/checkpoints/last.pt", "-q").code == 0
    ended = swa("eval", "runs/latest/checkpoints/last.pt", "--json")
    assert list(ended.json["weights"])[:2] == ["last", "last_bn"]
    assert set(list(ended.json["weights"])[2:]) == {"swa", "ema", "warm", "plain", "power", "tail", "swag", "thin"}
    assert ended.json["weights"]["swa"]["count"] == 3  # after 44, 50 (0.25 of 22 steps, rounded) and 55


def test_saves_by_the_clock(
    swa, long: Path, monkeypatch: pytest.MonkeyPatch, clock: Callable[[float], list[float]]
) -> None:
    """A clock that goes on a second a step: `10s` saves after every ten steps, inside epochs too."""
    saved, save = [], state.save_resume_point

    def note(run: Any, folder: Any) -> None:
        saved.append(run.step)
        save(run, folder)

    monkeypatch.setattr(state, "save_resume_point", note)
    clock(1)
    assert swa("train", long, "-q", "output.save_every=10s").code == 0
    assert saved == [10, 20, 30, 40, 50, 60, 70, 80, 88]


# The folder of a run.


def test_damaged_resume_point_falls_back_to_the_previous_one(
    swa, long: Path, tmp_path: Path, to_the_end: Callable[..., Path], signal_at: Callable[..., None]
) -> None:
    """A flipped byte, a cut, and nothing at all in place of last.pt: a warning, and the same end from previous.pt."""
    whole = to_the_end()
    run = tmp_path / "runs/long-002"
    signal_at(60)
    assert swa("train", long, "-q").code == 130
    for harm in (lambda data: data[: len(data) // 2], lambda _: b"", lambda data: data[:2000] + b"!" + data[2001:]):
        run_last = run / "checkpoints/last.pt"
        run_last.write_bytes(harm(run_last.read_bytes()))
        previous = content(run, "previous")["step"]
        signal_at(previous + 3)
        ended = swa("train", "--resume", run, "-q")
        assert ended.code == 130, ended.err
        assert "continuing from previous.pt" in " ".join(ended.err.split())
        assert content(run, "last")["step"] == previous + 3
        assert content(run, "previous")["step"] == previous
    signal_at(-1)
    assert swa("train", "--resume", run, "-q").code == 0
    assert_equal_runs(whole, run)


def test_both_resume_points_damaged_is_an_error(
    swa, long: Path, tmp_path: Path, signal_at: Callable[..., None]
) -> None:
    """Two broken files: exit 2, both bytes left as they are."""
    signal_at(60)
    assert swa("train", long, "-q").code == 130
    checkpoints = tmp_path / "runs/long-001/checkpoints"
    for name in ("last.pt", "previous.pt"):
        (checkpoints / name).write_bytes(b"broken")
    ended = swa("train", "--resume", "runs/latest")
    assert ended.code == 2
    assert "last.pt" in ended.err
    assert {path.read_bytes() for path in checkpoints.iterdir()} == {b"broken"}


def test_stopped_before_the_first_save_begins_anew(
    swa,
    long: Path,
    tmp_path: Path,
    to_the_end: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    signal_at: Callable[..., None],
) -> None:
    """A run that was ended at once before it had saved: --resume does it from the beginning, to the same end."""
    whole = to_the_end()
    signal_at(5, times=2)
    assert swa("train", long, "-q").code == 130
    signal_at(-1)
    assert swa("train", "--resume", "runs/long-002", "-q").code == 0
    assert_equal_runs(whole, tmp_path / "runs/long-002")


@pytest.mark.parametrize("killed_at", ["run.json", "recipe.yaml"])
def test_killed_while_the_first_files_are_written(
    swa, long: Path, monkeypatch: pytest.MonkeyPatch, killed_at: str
) -> None:
    """What can be resumed has both files: the number of threads and the initial weights stand in run.json alone."""
    write = RunFolder.write_text

    def killed(folder: RunFolder, name: str, *words: Any) -> None:
        if name == killed_at:
            raise KeyboardInterrupt
        write(folder, name, *words)

    monkeypatch.setattr(RunFolder, "write_text", killed)
    assert swa("train", long, "-q", "train.threads=auto").code == 130
    ended = swa("train", "--resume", "runs/long-001")
    assert ended.code == 2
    assert "there is no run to go on with" in ended.err


def test_leftovers_of_a_crash_are_swept_and_nothing_else(
    swa, long: Path, tmp_path: Path, signal_at: Callable[..., None]
) -> None:
    """Files and a folder as a crash leaves them are gone after the next start; a person's own, and live ones, stay."""
    signal_at(30)
    assert swa("train", long, "-q").code == 130
    run = tmp_path / "runs/long-001"
    mine = [run / "notes.tmp", run / ".notes.tmp", run / "checkpoints/.mine.pt"]
    leftovers = [run / ".metrics.csv.swa-0.tmp", run / "checkpoints/.last.pt.swa-1.tmp"]
    for path in mine + leftovers:
        path.write_text("x")
    masks = run / ".masks.swa-0.tmp"
    masks.mkdir()
    (masks / "0.png").write_text("x")
    signal_at(-1)
    with temporary.beside(run / "predictions.csv") as live, temporary.beside(run / "live", is_folder=True) as folder:
        live.write_text("x")
        assert swa("train", "--resume", run, "-q").code == 0
        assert swa("bn-update", run / "checkpoints/swa.pt", "-q").code == 0
        assert (live.read_text(), folder.is_dir()) == ("x", True)
    assert all(path.exists() for path in mine)
    assert not any(path.exists() for path in (*leftovers, masks))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_a_run_that_is_complete(swa, recipe: Path, signal_at_end: Callable[..., None], number: int) -> None:
    """A signal once result.json is written, when nothing is left to stop: exit 0, and not heard by the next command."""
    signal_at_end("small-001", number)
    assert swa("train", recipe, "-q").code == 0
    assert swa("train", recipe, "-q").code == 0


def test_changed_recipe_is_refused_with_its_keys(
    swa, long: Path, tmp_path: Path, signal_at: Callable[..., None]
) -> None:
    """recipe.yaml of a stopped run with three changes: exit 2 names the two that matter, nothing is written."""
    signal_at(30)
    assert swa("train", long, "-q").code == 130
    path = tmp_path / "runs/long-001/recipe.yaml"
    before = path.read_text()
    path.write_text(
        before.replace("lr: 0.1", "lr: 0.2")
        .replace("width: 4", "width: 8")
        .replace("save_every: 1ep", "save_every: 2ep")
    )
    changed = path.read_text()
    files = {entry: entry.read_bytes() for entry in (tmp_path / "runs").rglob("*") if entry.is_file()}
    ended = swa("train", "--resume", "runs/latest")
    assert ended.code == 2
    assert "optimizer.lr" in ended.err
    assert "model.args" in ended.err
    assert "save_every" not in ended.err
    assert {entry: entry.read_bytes() for entry in (tmp_path / "runs").rglob("*") if entry.is_file()} == files
    path.write_text(changed.replace("lr: 0.2", "lr: 0.1").replace("width: 8", "width: 4"))
    assert swa("train", "--resume", "runs/latest", "-q").code == 0


def test_other_data_is_refused(swa, long: Path, tmp_path: Path, signal_at: Callable[..., None]) -> None:
    """A resume point whose data had another number of images: exit 2 with both numbers."""
    signal_at(30)
    assert swa("train", long, "-q").code == 130
    last = tmp_path / "runs/long-001/checkpoints/last.pt"
    values = torch.load(last, weights_only=True)
    torch.save({**values, "num_train": 1000}, last)
    ended = swa("train", "--resume", "runs/latest")
    assert ended.code == 2
    assert "1,437" in ended.err
    assert "1,000" in ended.err


# Limits.


def test_time_limit_ends_like_any_finished_run(
    swa, long: Path, tmp_path: Path, clock: Callable[[float], list[float]]
) -> None:
    """A clock of a second a step: `1min` ends the run after 60 steps, with the averages of those, scored and saved."""
    clock(1)
    ended = swa("train", long, "--json", "train.max_time=1min", "dataset.val=29")
    assert ended.code == 0, ended.err
    assert ended.json["stopped"] == "max_time"
    assert ended.json["weights"]["swa"]["batchnorm"] == "recomputed"
    assert ended.json["weights"]["swa"]["count"] == 3  # after 44, 50 and 55
    run = tmp_path / "runs/long-001"
    assert content(run, "last")["step"] == 60
    rows = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == ["22", "44", "60"]
    assert rows[-1]["swa_val_loss"]
    told = "ended by train.max_time after step 60 of 88, in epoch 3 of 4"
    assert told in ended.err
    assert told in (run / "log.txt").read_text()
    assert "step 60, epoch 3, ended by train.max_time" in " ".join(swa("show", run).out.split())
    again = swa("train", "--resume", run)
    assert again.code == 2
    assert "finished" in again.err


def test_a_time_limit_before_the_first_step_is_a_warning(swa, long: Path) -> None:
    """A microsecond, which has passed before any step: a quiet run says too that nothing was trained."""
    ended = swa("train", long, "-q", "--json", "train.max_time=0.000001s", "averages={}", "snapshots=null")
    assert ended.code == 0, ended.err
    assert ended.json["stopped"] == "max_time"
    assert "train.max_time had passed before the first step" in " ".join(ended.err.split())


def test_time_limit_counts_the_time_before_a_stop(
    swa, long: Path, tmp_path: Path, clock: Callable[[float], list[float]], signal_at: Callable[..., None]
) -> None:
    """40 steps, a stop, and the rest: the limit of 60 seconds still ends the run after 60 steps."""
    now = clock(1)
    signal_at(40)
    assert swa("train", long, "-q", "train.max_time=1min").code == 130
    now[0] += 1000
    assert swa("train", "--resume", "runs/latest", "-q").code == 0
    assert content(tmp_path / "runs/long-001", "last")["step"] == 60


def test_stopped_in_the_validation_after_the_time_limit(
    swa, long: Path, tmp_path: Path, clock: Callable[[float], list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal there, then --resume: the row of the last epoch, and what is kept by it, as without the stop."""
    clock(1)
    words = ["train", long, "-q", "train.max_time=1min", "dataset.val=29", "train.keep_best=val_loss"]
    assert swa(*words).code == 0
    validate = scoring.validate

    def stopped(run: Any) -> Any:
        if run.stopped is not None:
            monkeypatch.setattr(scoring, "validate", validate)
            os.kill(os.getpid(), signal.SIGINT)
        return validate(run)

    monkeypatch.setattr(scoring, "validate", stopped)
    assert swa(*words).code == 130
    ended = swa("train", "--resume", "runs/latest", "-q")
    assert ended.code == 0, ended.err
    assert_equal_runs(tmp_path / "runs/long-001", tmp_path / "runs/long-002")
    assert len((tmp_path / "runs/long-002/metrics.csv").read_text().splitlines()) == 4


@pytest.mark.slow
def test_patience_ends_when_the_metric_stands_still(
    swa, long: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation losses 3, 1, 2, 2, 0 with patience 2: the run ends after epoch 4, and stays ended when resumed."""
    losses = iter([3.0, 1.0, 2.0, 2.0, 0.0, 0.0])
    validate = scoring.validate
    monkeypatch.setattr(scoring, "validate", lambda run: {**validate(run), "val_loss": next(losses)})
    words = ["train.epochs=6", "train.early_stopping={patience: 2, metric: val_loss}", "dataset.val=10%"]
    ended = swa("train", long, "--json", *words)
    assert ended.code == 0, ended.err
    assert ended.json["stopped"] == "patience"
    assert "ended by train.early_stopping after step" in ended.err
    assert "ended by train.early_stopping" in " ".join(swa("show", "runs/latest").out.split())
    assert len(list(csv.DictReader((tmp_path / "runs/long-001/metrics.csv").read_text().splitlines()))) == 4
    assert ended.json["weights"]["swa"]["batchnorm"] == "recomputed"


# More epochs.


@pytest.mark.slow
def test_more_epochs_of_a_flat_schedule_equal_the_longer_run(swa, long: Path, tmp_path: Path) -> None:
    """Constant rate, 4 epochs extended to 6, against 6 from the start with the beginnings written in epochs."""
    flat_rate = ["schedule={name: constant}", "swa={start: 2ep, every: 0.25ep, eval_every: 1ep}"]
    in_epochs = {"tail.start": "1ep", "swag.start": "1ep", "thin.start": "2ep", "plain.half_life": "0.4ep"}
    written = [f"averages.{key}={value}" for key, value in in_epochs.items()]
    assert swa("train", long, "-q", *flat_rate, *written, "train.epochs=6").code == 0
    assert swa("train", long, "-q", *flat_rate).code == 0
    ended = swa("train", "--resume", "runs/latest", "--extend-to", "6")
    assert ended.code == 0, ended.err
    assert "train.epochs 4 -> 6" in ended.err
    assert "averages.plain.half_life stays at 0.4ep (10% of 4 epochs)" in " ".join(ended.err.split())
    assert (tmp_path / "runs/long-002/result-004.json").is_file()
    assert_equal_runs(tmp_path / "runs/long-001", tmp_path / "runs/long-002")


@pytest.mark.parametrize("extra", [(), ("averages.ema.keep=best",)], ids=["patience", "keep"])
def test_scores_of_the_end_do_not_decide_in_a_longer_run(swa, tmp_path: Path, extra: tuple[str, ...]) -> None:
    """Epoch 3 is scored as the end of the shorter run alone: patience and the history of 6 epochs from the start.

    Where the average of that epoch is kept as the best, no other is left: it is told, and its score stays.
    """
    (tmp_path / "long.yaml").write_text(FALLING)
    assert swa("train", "long.yaml", "-q", "train.epochs=6", *extra).code == 0
    assert swa("train", "long.yaml", "-q", *extra).code == 0
    ended = swa("train", "--resume", "runs/latest", "--extend-to", "6")
    assert ended.code == 0, ended.err
    if not extra:
        assert_equal_runs(tmp_path / "runs/long-001", tmp_path / "runs/long-002")
        return
    assert "ema was scored at the end of the shorter run" in " ".join(ended.err.split())
    rows = list(csv.DictReader((tmp_path / "runs/long-002/metrics.csv").read_text().splitlines()))
    assert [bool(row["ema_val_loss"]) for row in rows] == [False, True, True, True, False, True][: len(rows)]


def test_more_epochs_may_be_asked_for_again(swa, long: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended before the first step of the extension, then inside it: the same command goes on to the undisturbed end."""
    words = ["schedule={name: constant}", "swa={start: 2ep, every: 1ep}", "averages={}"]
    extend = ["train", "--resume", "runs/latest", "--extend-to", "6"]
    for command in (["train", long, *words], extend, ["train", long, *words]):
        assert swa(*command, "-q").code == 0

    def ended(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for name in ("plan", "step"):
        with monkeypatch.context() as patch:
            patch.setattr(RunOutput, name, ended, raising=False)
            assert swa(*extend, "-q").code == 130
    assert swa(*extend, "-q").code == 0
    assert_equal_runs(tmp_path / "runs/long-001", tmp_path / "runs/long-002")
    assert (tmp_path / "runs/long-002/result-004.json").is_file()
    assert "the run has 6 epochs" in " ".join(swa(*extend).err.split())


def test_an_average_of_the_shorter_run_is_not_scored_with_the_longer_one(swa, long: Path, signal_at) -> None:
    """A run that --extend-to continues, stopped after its average has taken more: eval has the raw weights alone."""
    words = ["schedule={name: constant}", "swa={start: 2ep, every: 1ep}", "averages={}", "snapshots=null"]
    assert swa("train", long, "-q", *words).code == 0
    assert swa("eval", "runs/latest", "--json").json["weights"].keys() >= {"last", "swa"}
    signal_at(117)
    assert swa("train", "--resume", "runs/latest", "--extend-to", "8", "-q").code == 130
    scored = swa("eval", "runs/latest", "--json")
    assert list(scored.json["weights"]) == ["last"]
    assert "swa.pt (step 88, of 4 epochs)" in " ".join(scored.err.split())  # what lies there is told
    assert swa("show", "runs/latest", "--json").json["resume_point"]["weights"]["swa"]["steps"][-1] == 110


def test_the_average_so_far_of_a_longer_run_is_taken_as_the_hints_say(swa, long: Path, signal_at) -> None:
    """Stopped inside its extension: `predict` and `plot` name the earlier files, and a command that works."""
    words = ["schedule={name: constant}", "swa={start: 2ep, every: 1ep}", "averages={}", "snapshots={every: 1ep}"]
    assert swa("train", long, "-q", *words).code == 0
    signal_at(117)
    assert swa("train", "--resume", "runs/latest", "--extend-to", "8", "-q").code == 130
    Image.new("L", (8, 8), 99).save("one.png")
    take = "swa average runs/latest --weights swa -o swa.pt"
    predicted = swa("predict", "runs/latest", "one.png", "--json")
    assert predicted.json["weights"] == "last"
    drawn = [swa("plot", "runs/latest", kind, "--samples", "64", "--grid", "3") for kind in ("plane", "path")]
    assert [ended.code for ended in drawn] == [2, 2]
    for ended in (predicted, *drawn):
        said = " ".join(ended.err.split())
        assert "swa.pt (step 88, of 4 epochs)" in said
        assert f"`{take}`" in said
    assert "--between last swa.pt" in " ".join(drawn[1].err.split())
    assert swa(*take.split()[1:]).code == 0
    assert swa("predict", "swa.pt", "one.png", "--json").json["count"] == 4
    assert swa("plot", "runs/latest", "path", "--between", "last", "swa.pt", "--samples", "64", "--grid", "3").code == 0


# 88 steps: the decay begins after step 58, inside an epoch; of 132 after step 102.
WSD = ["schedule={name: wsd, decay: 30step}", "swa={start: 2ep, every: 0.25ep, eval_every: 1ep}"]
IN_EPOCHS = ["averages.tail.start=1ep", "averages.swag.start=1ep", "averages.thin.start=2ep"]
EXTEND = ["train", "--resume", "runs/long-002", "--extend-to", "6"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 6 epochs from the start."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "long.yaml").write_text(RECIPE)
    changes = [*WSD, *IN_EPOCHS, "averages.plain.half_life=0.4ep", "train.epochs=6", f"output.root={folder}"]
    run_swa("train", folder / "long.yaml", "-q", *changes)
    return folder / "long-001"


def wsd_run(swa, long: Path, *words: str, code: int = 0) -> Path:
    """The shorter run, in runs/long-002 as the commands name it."""
    (long.parent / "runs/long-001").mkdir(parents=True)
    assert swa("train", long, "-q", *WSD, *words).code == code
    return long.parent / "runs/long-002"


@pytest.mark.slow
def test_more_epochs_of_wsd_continue_from_the_plateau(swa, long: Path, undisturbed: Path) -> None:
    """4 epochs extended to 6 against 6 from the start, bit for bit; what the decay led to is still there."""
    run = wsd_run(swa, long)
    last, scores = (run / "checkpoints/last.pt").read_bytes(), (run / "result.json").read_bytes()
    before = [path.name for path in sorted((run / "snapshots").iterdir())]
    ended = swa(*EXTEND)
    assert ended.code == 0, ended.err
    said = " ".join(ended.err.split())
    assert "continued after step 58 of 132" in said
    assert "the rate continues at 0.1 after 0.1" in said
    assert "kept as last-004.pt" in said
    assert "the schedule spans the run and moves" not in said
    assert [path.name for path in sorted((run / "snapshots-004").iterdir())] == before
    assert (run / "result-004.json").read_bytes() == scores
    kept = run / "checkpoints/last-004.pt"
    assert kept.read_bytes() == last
    assert swa("average", kept, "--weights", "swa", "-o", "short.pt").code == 0
    kept.unlink()
    assert_equal_runs(undisturbed, run)
    again = dict(content(run, "plateau"))
    assert (again["step"], again["recipe"]["train"]["epochs"]) == (102, 6)


@pytest.mark.slow
@pytest.mark.parametrize(("step", "kept"), [(40, False), (58, False), (59, True), (80, True)])
def test_more_epochs_of_a_stopped_wsd_run(
    swa, long: Path, undisturbed: Path, signal_at: Callable[..., None], step: int, kept: bool
) -> None:
    """Stopped before, where and after the decay begins, then extended, against the longer run from the start."""
    signal_at(step)
    run = wsd_run(swa, long, *IN_EPOCHS, code=130)
    signal_at(-1)
    ended = swa(*EXTEND)
    assert ended.code == 0, ended.err
    left = [path.name for path in (run / "checkpoints").glob("last-*.pt")]
    assert left == [f"last-{step // 22:03d}.pt"] * kept
    for name in left:
        (run / "checkpoints" / name).unlink()
    assert_equal_runs(undisturbed, run)


@pytest.mark.slow
def test_going_back_to_the_plateau_may_be_killed(
    swa, long: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch, signal_at: Callable[..., None]
) -> None:
    """Ended at each write of the extension, then in the new decay: the same command goes on to the undisturbed end."""
    run = wsd_run(swa, long)
    copy, write_text = state._copy, RunFolder.write_text

    def ended(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def last_fails(source: Path, target: Path) -> None:
        copy(source, target) if target.name != "last.pt" else ended()

    def recipe_fails(folder: RunFolder, name: str, text: str) -> None:
        write_text(folder, name, text) if name != "recipe.yaml" else ended()

    for owner, name, failing in (
        (state, "_copy", ended),
        (state, "_copy", last_fails),
        (RunFolder, "write_text", recipe_fails),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, failing)
            assert swa(*EXTEND, "-q").code == 130
    assert content(run, "last")["step"] == 58
    for step in (59, 120):
        signal_at(step)
        assert swa(*EXTEND, "-q").code == 130
        assert content(run, "last")["step"] == step
    signal_at(-1)
    assert swa(*EXTEND, "-q").code == 0
    (run / "checkpoints/last-004.pt").unlink()
    assert_equal_runs(undisturbed, run)


def test_more_epochs_without_the_plateau(swa, long: Path) -> None:
    """plateau.pt missing, and of another run: exit 2 with an action, and nothing has changed."""
    run = wsd_run(swa, long, "averages={}", "snapshots=null")
    before = {path: path.read_bytes() for path in run.rglob("*.[pjy]*") if path.is_file()}
    plateau = run / "checkpoints/plateau.pt"
    assert {plateau, run / "checkpoints/last.pt", run / "result.json", run / "recipe.yaml"} <= before.keys()
    plateau.unlink()
    ended = swa(*EXTEND)
    assert ended.code == 2
    assert "plateau.pt: is missing, and the decay of this run began after step 58" in " ".join(ended.err.split())
    assert "--extend-to" not in swa("train", "--resume", run).err  # is not offered
    plateau.write_bytes(before[run / "checkpoints/last.pt"])
    ended = swa(*EXTEND)
    assert ended.code == 2
    assert "is of step 88, or of another recipe" in " ".join(ended.err.split())
    plateau.write_bytes(before[plateau])
    assert {path: path.read_bytes() for path in run.rglob("*.[pjy]*") if path.is_file()} == before
    assert "--extend-to 8" in " ".join(swa("train", "--resume", run).err.split())


def test_starts_in_percent_that_are_not_reached_move(swa, long: Path, signal_at: Callable[..., None]) -> None:
    """An average over the last quarter: of the longer run where nothing was taken yet, against the plan of 6 epochs."""
    signal_at(30)
    run = wsd_run(swa, long, "averages={late: {kind: mean, start: 75%, every: 0.5ep}}", "swa.start=25%", code=130)
    signal_at(-1)
    ended = swa(*EXTEND)
    assert ended.code == 0, ended.err
    said = " ".join(ended.err.split())
    assert "averages.late.start stays at 75%, now of 6 epochs" in said
    assert "swa.start stays at 1ep (25% of 4 epochs)" in said
    assert content(run, "late")["average"]["steps"] == [99, 110, 121, 132]


def test_more_epochs_say_that_the_schedule_moves(swa, long: Path) -> None:
    """A cosine to the end of the run: the sentence that the past had other rates; starts in % stay at their point."""
    words = ["schedule={name: cosine}", "swa={start: 50%, every: 1ep}", "averages={}"]
    assert swa("train", long, "-q", *words).code == 0
    ended = swa("train", "--resume", "runs/latest", "--extend-to", "5")
    said = " ".join(ended.err.split())
    assert ended.code == 0, ended.err
    assert "swa.start stays at 2ep" in said
    assert "the schedule spans the run and moves" in said


@pytest.mark.parametrize(
    ("words", "extend_to", "said"),
    [
        ([], "4", "has 4 epochs"),
        ([], "3", "has 4 epochs"),
        (["swa.every=5%"], "6", "interval is written in %"),
        (["train.max_time=1s"], "6", "ended by train.max_time"),
    ],
)
def test_more_epochs_that_make_no_sense(
    swa, long: Path, clock: Callable[[float], list[float]], words: list[str], extend_to: str, said: str
) -> None:
    """Exit 2 with the reason; the result stays."""
    clock(0.05)
    assert swa("train", long, "-q", "averages={}", *words).code == 0
    before = Path("runs/latest/result.json").read_bytes()
    ended = swa("train", "--resume", "runs/latest", "--extend-to", extend_to)
    assert ended.code == 2
    assert said in " ".join(ended.err.split())
    assert Path("runs/latest/result.json").read_bytes() == before


def test_more_epochs_that_would_change_a_decay(swa, long: Path, signal_at: Callable[..., None]) -> None:
    """An EMA that has taken nothing yet, with its interval in %: exit 2 names both decays, and the run can go on."""
    signal_at(30)
    average = "averages={e: {kind: ema, half_life: 1ep, every: 5%, start: 75%}}"
    assert swa("train", long, "-q", average).code == 130
    ended = swa("train", "--resume", "runs/latest", "--extend-to", "8")
    assert ended.code == 2
    assert "the average e had a decay of 0.87" in " ".join(ended.err.split())
    signal_at(-1)
    assert swa("train", "--resume", "runs/latest", "-q").code == 0
