"""The benchmark's own promises: contestants that do the same work, verdicts that follow the figures, no silence."""

from __future__ import annotations

import importlib.util
import json
from io import StringIO
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

from benchmarks import __main__ as door
from benchmarks import data, picture, processes, table, topics
from benchmarks.contestants import bare, documentation, job, lightning_swa
from benchmarks.figures import Figure, faster, rate
from benchmarks.jobs import RECIPE, Job, changes
from benchmarks.topics import photos
from benchmarks.turns import by_turns
from benchmarks.voice import Voice
from swa_cli.data.augment import Augment
from swa_cli.engine.context import Context, augment_of, build_context
from swa_cli.engine.events import Events
from swa_cli.recipe import load
from swa_cli.recipe.plan import make_plan

SILENT = Voice({})
MADE_UP = [
    faster("job", "whole job", ours=50.0, theirs=100.0, bar=1.9, note="from parts"),
    rate("loop", "training", ours=90.0, theirs=100.0, bar=0.97),
    Figure("loop", "memory", 700.0, 400.0, "MB", 300.0, "MB", 200.0, "at most"),
    Figure("startup", "help", 0.2, None, "s", 0.2, "s", 0.35, "at most"),
    rate("passes", "scores", ours=90.0, theirs=100.0),
]


@pytest.fixture
def ours() -> Context:
    """Recipe, data and hardware of `swa train` in the benchmark."""
    recipe = load.load(RECIPE, [*changes(images=256, epochs=3), "train.threads=1", "train.precision=fp32"]).recipe
    return build_context(recipe, Events())


def test_all_train_the_same_network_with_the_same_settings(ours: Context) -> None:
    """Names and shapes of each contestant's weights, and the recipe's numbers, against those of the others."""
    shapes = {name: value.shape for name, value in ours.build_model().state_dict().items()}
    others = [documentation.network(), bare.network(), lightning_swa.Classifier(epochs=3).network]
    for other in others:
        assert {name: value.shape for name, value in other.state_dict().items()} == shapes
    recipe = ours.recipe
    assert recipe.model.name == job.NETWORK
    assert recipe.train.batch_size == job.BATCH_SIZE
    assert recipe.optimizer.lr == job.LEARNING_RATE
    options = {key: str(value) for key, value in recipe.optimizer.options.items()}
    assert float(options["momentum"]) == job.MOMENTUM
    assert float(options["weight_decay"]) == job.WEIGHT_DECAY
    assert recipe.swa is not None
    assert recipe.swa.lr == job.AVERAGING_RATE
    assert augment_of(recipe) == Augment(crop=job.CROP, flip=True)
    assert not recipe.shows_views


def test_all_see_the_same_images(ours: Context) -> None:
    """Stored pixels, then normalised test images, of ours against the documentation script's and the bare loop's."""
    train, test = (loader.dataset for loader in documentation.loaders(256))
    source = ours.source
    assert source.train.images is not None, "in memory, not streamed"
    assert source.train.images.dtype == torch.uint8
    assert torch.equal(source.train.images.permute(0, 2, 3, 1), torch.from_numpy(train.data))
    assert source.train.labels.tolist() == train.targets
    images, labels = next(iter(ours.plain_batches("test")))
    theirs = [test[index] for index in range(len(labels))]
    torch.testing.assert_close(images, torch.stack([image for image, _ in theirs]))
    assert labels.tolist() == [label for _, label in theirs]
    ready, _ = bare.ready_batches(*data.arrays(0, 51)["test"])[0]
    torch.testing.assert_close(images[: len(ready)], ready)
    assert ready.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("policy", [None, photos.POLICY])
def test_both_pipelines_show_the_same_photos(policy: str | None, tmp_path: Path) -> None:
    """Number, shape, labels and mean pixel of an epoch of ours against torchvision's; a second call makes no files."""
    root = data.photo_folder(100, voice=SILENT, folder=tmp_path)
    files = sorted(root.glob("train/*/*.jpg"))
    assert len(files) == 100
    with Image.open(files[0]) as image:
        assert image.size == (500, 375)
    assert root == data.photo_folder(100, voice=SILENT, folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["100"], "nothing unfinished is left"
    found = []
    for contestant in (photos.ours, photos.theirs):
        batches = list(contestant(root, policy=policy, workers=0)())
        assert [tuple(images.shape) for images, _ in batches] == [(50, 3, 224, 224)] * 2
        assert {images.dtype for images, _ in batches} == {torch.float32}
        labels = torch.cat([labels for _, labels in batches])
        found.append((torch.bincount(labels), torch.cat([images for images, _ in batches]).mean().item()))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == pytest.approx(found[1][1], abs=0.15)


@pytest.mark.parametrize("epochs", [3, 4, 30])
def test_ours_averages_the_epochs_that_the_documentation_script_does(epochs: int) -> None:
    """The averages of the plan against a count of the script's condition."""
    recipe = load.load(RECIPE, changes(images=256, epochs=epochs)).recipe
    (swa,) = make_plan(recipe, num_train=256, columns=["train_loss"]).averages
    assert [step // 2 for step in swa.steps] == [
        epoch for epoch in range(1, epochs + 1) if epoch >= job.first_averaged(epochs)
    ]


def test_verdicts_follow_the_figures() -> None:
    """Figures on both sides of both kinds of bar, against verdicts worked out by hand."""
    assert [figure.verdict for figure in MADE_UP] == ["met", "MISSED by 7%", "MISSED by 50%", "met", "no bar"]
    assert [figure.is_missed for figure in MADE_UP] == [False, True, True, False, False]
    assert MADE_UP[0].margin == pytest.approx(2 / 1.9)
    assert MADE_UP[2].margin == pytest.approx(2 / 3)
    assert Figure("a", "b", 1, 1, "s", 7.0, "%", 5.0, "at most").verdict == "MISSED by 40%"
    assert Figure("a", "b", 1, 1, "x", 1.0, "times", 0.0, "at most").verdict == "MISSED by far"
    assert Figure("a", "b", 1, 1, "s", float("nan"), "x", 1.0).is_missed, "what could not be told is not met"


@pytest.mark.pictures
def test_table_and_picture_hold_every_figure(tmp_path: Path) -> None:
    """Names and verdicts of made-up figures against the table at 80 columns and as Markdown; the picture is there."""
    page = StringIO()
    table.print_table(MADE_UP, title="made up", console=Console(file=page, width=80))
    lines = page.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    for figure in MADE_UP:
        assert any(line.startswith(figure.name) for line in lines)
    rows = table.markdown(MADE_UP, title="made up").splitlines()
    assert rows[4] == "| whole job | 50.0 s | 100 s | 2.00 x | >= 1.9 x | met |"
    assert len(rows) == 4 + len(MADE_UP)
    picture.draw(MADE_UP, title="made up", path=tmp_path / "bench.png")
    assert (tmp_path / "bench.png").stat().st_size > 5_000


def test_a_job_of_another_size_from_its_parts() -> None:
    """A job of 100 images, 5 s fixed, 2 s extra in the first epoch, against the sum worked out by hand."""
    run = Job(100, wall_s=5 + 3 + 1 + 1 + 0.5, epochs_s=(3, 1, 1), finish_s=0.5, peak_mb=0, workers_mb=0, phases={})
    assert run.seconds(images=100, epochs=3) == pytest.approx(run.wall_s)
    assert run.seconds(images=1000, epochs=10) == pytest.approx(5 + 2 + 10 * 10 + 5)


@pytest.mark.parametrize(("precision", "bar"), [("bf16", 1.9), ("fp32", None)])
def test_bars_of_a_job_suppose_bf16(precision: str, bar: float | None) -> None:
    """The bar against the documentation script, where `auto` takes bf16 and where it does not."""
    run = Job(10, wall_s=1, epochs_s=(1, 1), finish_s=0, peak_mb=0, workers_mb=0, phases={"precision": precision})
    assert topics.job.bar_of("documentation", run) == bar


def test_each_round_begins_with_another_contestant() -> None:
    """The order of three contestants in four rounds, against the rotation."""
    order: list[str] = []
    contestants = {name: lambda name=name: order.append(name) for name in "abc"}
    measured = by_turns(contestants, rounds=4, voice=SILENT)
    assert "".join(order) == "abc" + "bca" + "cab" + "abc"
    assert {name: len(each) for name, each in measured.items()} == {"a": 4, "b": 4, "c": 4}


def test_a_missing_contestant_ends_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2 and its name, where Lightning is not installed."""
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lightning" else found(name))
    assert door.main([]) == 2
    assert "lightning not installed: pip install" in capsys.readouterr().err


def test_a_contestant_that_fails_ends_it() -> None:
    """A process that ends with code 3 against the error, which shows what it said."""
    with pytest.raises(processes.ContestantError, match="ended with code 3:\nalas"):
        processes.run(["-c", "import sys; sys.exit(print('alas', file=sys.stderr) or 3)"])


def test_memory_is_that_of_the_process_and_not_of_its_parent() -> None:
    """The peak of a bare Python against 60 MB, though this process holds torch."""
    assert 5 < processes.run(["-c", "pass"]).peak_mb < 60


@pytest.mark.pictures
@pytest.mark.parametrize("bar", [1.0, 3.0])
def test_exit_code_says_whether_a_bar_was_missed(bar: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A topic with a made-up ratio of 2, on both sides of its bar, against exit code and bench.json."""
    made_up = topics.Topic(lambda size, voice: ([faster("save", "it", ours=1.0, theirs=2.0, bar=bar)], {}), 1, 1)
    monkeypatch.setattr(topics, "TOPICS", {"save": made_up})
    assert door.main(["--quick", f"--out={tmp_path}"]) == (bar > 2)
    content = json.loads((tmp_path / "bench.json").read_text())
    assert [figure["verdict"] for figure in content["figures"]] == ["met" if bar < 2 else "MISSED by 33%"]
    assert {"processor", "torch", "torchvision", "lightning", "date"} <= content["machine"].keys()
