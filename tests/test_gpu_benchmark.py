"""What `make gpu` measures, as far as no card is needed: contestants that do the same, what is kept, what is told."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import time
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from benchmarks.contestants.bare import autocast, network, ready_batches, train_epoch
from benchmarks.figures import rate
from benchmarks.gpu import __main__ as door
from benchmarks.gpu import airbench, cifar, paper, results, speed
from benchmarks.in_process import RECIPE
from benchmarks.voice import Voice
from swa_cli.recipe import load
from swa_cli.recipe.plan import make_plan

QUICK = speed.size_of(Namespace(device="cpu", quick=True, cifar=None, out=Path("bench")))
FULL = speed.size_of(Namespace(device="cuda", quick=False, cifar=None, out=Path("bench")))
ABOUT = {"card": "a card, 80 GiB", "cuda": "13.0", "processor": "p", "cores": 2, "torch": "2", "date": "2026-01-01"}
SCORES = {"accuracy": 0.9, "accuracy_se": 0.004, "nll": 0.3, "nll_se": 0.01}


def images_of(folder: Path, *, per_class: int) -> Path:
    """Write empty files, as of CIFAR-10, into two class folders."""
    for name in ("cat", "dog"):
        (folder / "train" / name).mkdir(parents=True)
        for number in range(per_class):
            (folder / "train" / name / f"{number:03}.jpg").touch()
    return folder


@pytest.mark.parametrize("variant", FULL.variants, ids=str)
def test_ours_and_the_bare_loop_have_the_same_setting(variant: speed.Variant) -> None:
    """Network, precision, batches and optimizer of the recipe against those of the bare loop."""
    recipe = load.load(RECIPE, speed._ours(variant, FULL)).recipe
    _, optimizer = speed._network(speed.Variant("convnet", variant.precision), "cpu")
    options = optimizer.param_groups[0]
    assert recipe.model.name == variant.network
    assert (recipe.train.precision, recipe.train.device) == (variant.precision, "cuda")
    assert recipe.train.batch_size == speed._batch_size(variant, FULL)
    assert recipe.dataset.args["train"] == speed._images(variant, FULL)
    assert recipe.dataset.args["train"] % recipe.train.batch_size == 0, "no contestant drops an image"
    assert (recipe.train.compile is not None) == bool(variant.mode)
    assert recipe.optimizer.lr == options["lr"]
    for key in ("momentum", "weight_decay"):
        assert float(recipe.optimizer.options[key]) == options[key]


def test_a_topic_runs_on_the_cpu() -> None:
    """Training of ours against the bare loop at the smallest size: two rates, and the ratio that is judged."""
    few = {"variants": (speed.Variant("convnet", "fp32"),), "small_images": 128, "small_batch": 64}
    (figure,), details = speed.training(speed.GpuSize(**vars(QUICK) | few), Voice({}))
    assert figure.value == pytest.approx(figure.ours / figure.theirs)
    assert figure.bar == speed.BAR
    assert {name: [len(each) for each in rounds] for name, rounds in details["convnet, fp32"].items()} == {
        "bare": [1],
        "swa": [1],
    }


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_bare_loop_trains(precision: str) -> None:
    """Weights after an epoch against the same steps written out."""
    images = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batches = ready_batches(images, torch.arange(8), batch_size=4)
    models = [network("convnet"), network("convnet")]
    first, second = (torch.optim.SGD(model.parameters(), lr=0.1) for model in models)
    train_epoch(models[0], first, batches, precision=precision)
    for inputs, labels in batches:
        with autocast("cpu", precision):
            loss = functional.cross_entropy(models[1](inputs), labels)
        second.zero_grad()
        loss.backward()
        second.step()
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)


# The script of airbench94.


def test_shifts_are_crops_of_reflected_images() -> None:
    """Each shifted image against all 25 windows of its padded original: it is one of them, and they differ."""
    images = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    shown, found = airbench._shifted(images), set()
    padded = functional.pad(images, (2, 2, 2, 2), mode="reflect")
    for index, image in enumerate(shown):
        windows = {(y, x): padded[index, :, y : y + 8, x : x + 8] for y in range(5) for x in range(5)}
        (place,) = [place for place, window in windows.items() if torch.equal(window, image)]
        found.add(place)
    assert len(found) > 15


def test_the_slow_weights_follow_the_published_rule() -> None:
    """Slow weights and network after two looks ahead against share * slow + (1 - share) * fast."""
    model = torch.nn.Linear(2, 2)
    slow = {name: value.clone() for name, value in model.state_dict().items()}
    expected = slow["weight"].clone()
    for share in (0.25, 1.0):
        with torch.no_grad():
            model.weight += 1
        expected = share * expected + (1 - share) * model.weight.detach()
        airbench._look_ahead(model, slow, share=share)
        torch.testing.assert_close(model.weight.detach(), expected)


def test_the_triangle_has_its_three_corners() -> None:
    """The rate of the first step, the peak and the end against the settings of airbench."""
    assert airbench._triangle(0, 100) == airbench.START
    assert airbench._triangle(23, 100) == 1
    assert airbench._triangle(100, 100) == pytest.approx(airbench.END)


def test_the_script_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accuracy of images of two colours, which any network tells apart, after 16 small batches."""
    monkeypatch.setattr(airbench, "BATCH_SIZE", 16)
    monkeypatch.setattr(airbench, "RATE", 16 * airbench.RATE)
    labels = torch.arange(160) % 2
    pixels = torch.randint(40, (160, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels[:, 0] += (180 * labels[:, None, None]).to(torch.uint8)
    splits = {"train": (pixels[:128], labels[:128]), "test": (pixels[128:], labels[128:])}
    train_s, accuracy = airbench.Script(splits, device="cpu", epochs=2).train(0, precision="fp32")
    assert accuracy > 0.95
    assert train_s > 0


# The paper's networks.


@pytest.mark.parametrize("number", range(len(paper.NETWORKS)))
def test_settings_are_those_of_the_paper(number: int) -> None:
    """First and last rate of SGD and SWA, and the first average, against the code of the paper."""
    chosen, epochs = paper.NETWORKS[number], 200
    plans = {}
    for kind in results.KINDS:
        recipe = load.load(paper.RECIPE, [*chosen.words(kind), f"train.epochs={epochs}"]).recipe
        plans[kind] = make_plan(recipe, num_train=1280, columns=["train_loss"])
    sgd, swa = plans["sgd"], plans["swa"]
    last = epochs * sgd.steps_per_epoch - 1
    assert (sgd.learning_rate(0), sgd.learning_rate(last)) == (chosen.lr, pytest.approx(chosen.lr / 100))
    assert (swa.learning_rate(0), swa.learning_rate(last)) == (chosen.lr, chosen.swa_lr)
    assert sgd.averages == ()
    (average,) = swa.averages
    assert average.steps[0] == chosen.swa_start * epochs // 100 * swa.steps_per_epoch


def test_epochs_are_as_many_as_the_time_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs of networks of 1 and 5 s an epoch in 10 minutes, worked out by hand; a later call keeps them."""
    seconds = {"vgg16": 1.0, "preresnet110": 5.0}
    monkeypatch.setattr(paper, "_epoch_s", lambda out, network, common, ends: seconds[network.name])
    ends = time.monotonic() + 600
    found = paper._epochs(tmp_path, [], Namespace(epochs=None), ends=ends)
    assert found == {"vgg16": 107, "preresnet110": 21}  # (600 s - 30 s to stop) / 4 runs - 35 s to start
    assert paper._epochs(tmp_path, [], Namespace(epochs=7), ends=ends) == found


def test_a_run_that_fails_takes_no_other_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows and what is unfinished after each network, where one run of the second fails."""

    def run(out: Path, words: list[str], *, seconds: float) -> dict[str, Any]:
        if out.parts[-2:] == ("preresnet110", "sgd"):
            raise subprocess.CalledProcessError(1, ["swa"])
        return {"weights": {"swa": SCORES, "last": SCORES}}

    monkeypatch.setattr(paper, "_run", run)
    monkeypatch.setattr(paper.machine, "describe", lambda device: ABOUT)
    images = images_of(tmp_path / "images", per_class=30)
    options = Namespace(minutes=8.5, epochs=5, device="cpu", cifar=images, out=tmp_path / "bench")
    first, last = paper.measure(options)
    assert [row["network"] for row in first["rows"]] == [row["network"] for row in last["rows"]] == ["vgg16"]
    assert first["unfinished"] == ["preresnet110, sgd", "preresnet110, swa"]
    assert last["unfinished"] == ["preresnet110, sgd (it failed with exit code 1)"]


def test_a_variant_that_fails_takes_no_other_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training of two variants of which the first cannot be compiled: the figure of the other, and the reason."""
    variants = (speed.Variant("convnet", "bf16", "reduce-overhead"), speed.Variant("convnet", "fp32"))
    monkeypatch.setattr(speed, "_bare", lambda variant, size: 1 / 0 if variant.mode else [2.0])
    monkeypatch.setattr(speed, "epochs_s", lambda words: [1.0])
    size = speed.GpuSize(**vars(QUICK) | {"variants": variants})
    (figure,), details = speed.training(size, Voice({}))
    assert figure.value == 2
    assert details["left_out"] == {"training, convnet, bf16, reduce-overhead": "ZeroDivisionError: division by zero"}


TRAINS = """\
import json, pathlib, sys, time
words = sys.argv[1:]
if words[0] == "--resume":
    sys.exit(print(json.dumps({"resumed": words[1]})))
pathlib.Path(words[words.index("-o") + 1], "latest").mkdir(parents=True)
time.sleep(100)
"""


def test_a_run_of_the_paper_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is terminated when its time is over, is resumed by the next call, and not run once it is done."""
    script, out = tmp_path / "trains.py", tmp_path / "runs/sgd"
    script.write_text(TRAINS)
    monkeypatch.setattr(paper, "TRAIN", (sys.executable, str(script)))
    assert paper._run(out, [], seconds=paper.GRACE_S) is None, "no time, no run"
    assert not out.exists()
    assert paper._run(out, [], seconds=paper.GRACE_S + 2) is None, "stopped"
    assert paper._run(out, [], seconds=600) == {"resumed": str(out / "latest")}
    assert paper._run(out, [], seconds=0) == {"resumed": str(out / "latest")}, "it is done"


def test_a_run_of_the_paper_that_fails_ends_it(tmp_path: Path) -> None:
    """The error of a run with a key that does not exist."""
    with pytest.raises(subprocess.CalledProcessError):
        paper._run(tmp_path / "runs/sgd", ["no.such.key=1"], seconds=600)


# Images, figures, the door.


@pytest.mark.parametrize("is_archive", [False, True])
def test_images_to_score_are_a_tenth_of_each_class(is_archive: bool, tmp_path: Path) -> None:
    """Files of a folder and of an archive: each in one split, 3 of 30 of each class to score, always the same."""
    source = images_of(tmp_path / "images", per_class=30)
    if is_archive:
        with tarfile.open(tmp_path / "images.tar.xz", "w:xz") as archive:
            archive.add(source, "images")
        source = tmp_path / "images.tar.xz"
    chosen = [cifar.folder(source, tmp_path / name) for name in ("a", "b")]
    files = [sorted(str(path.relative_to(root)) for path in root.rglob("*.jpg")) for root in chosen]
    assert files[0] == files[1]
    assert all(path.is_file() for path in chosen[0].rglob("*.jpg"))
    for name in ("cat", "dog"):
        parts = [{Path(each).name for each in files[0] if each.startswith(f"{split}/{name}")} for split in cifar.SPLITS]
        assert [len(part) for part in parts] == [27, 3]
        assert not parts[0] & parts[1]
    assert cifar.folder(source, tmp_path / "a") == chosen[0]


@pytest.mark.pictures
def test_parts_are_kept_and_told_together(tmp_path: Path) -> None:
    """Made-up sections of gpu.json, and the table: a missed bar, a run that is not done, a topic left out."""
    met, missed = (
        rate("training", "fast", ours=98, theirs=100, bar=0.97),
        rate("a", "slow", ours=9, theirs=10, bar=0.97),
    )
    row = {"network": "vgg16", "epochs": 20, "published": "93.25, 93.59", "sgd": SCORES, "swa": SCORES}

    def spoken(figures: dict[str, Any], *, left_out: dict[str, str], unfinished: list[str]) -> tuple[str, bool]:
        topics = {name: {"figures": [asdict(figure)], "details": {}} for name, figure in figures.items()}
        results.keep(tmp_path, "speed", {"machine": ABOUT, "topics": topics, "left_out": left_out})
        section = {"machine": ABOUT, "seed": 0, "data": "images", "rows": [row], "unfinished": unfinished}
        results.keep(tmp_path, "paper", section)
        return results.tell(tmp_path)

    text, is_met = spoken({"training": met}, left_out={}, unfinished=[])
    assert is_met
    assert "| fast | 98.0 img/s | 100 img/s | 0.98 x | >= 0.97 x | met |" in text
    assert "| vgg16 | 20 | 90.00 ± 0.40 | 90.00 ± 0.40 | 0.300 ± 0.010 | 0.300 ± 0.010 | 93.25, 93.59 |" in text
    text, is_met = spoken({"more": missed}, left_out={}, unfinished=[])
    assert not is_met
    assert "fast" in text, "the figures of topics that were not measured again stay"
    assert (tmp_path / results.PICTURE).stat().st_size > 5_000
    assert spoken({"more": met}, left_out={"photos": "short"}, unfinished=[])[1] is False
    assert spoken({"more": met}, left_out={}, unfinished=["vgg16, swa"])[1] is False
    assert spoken({"more": met}, left_out={}, unfinished=[])[1] is True


def test_what_the_time_does_not_allow_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Topics of 1 and 1,000 s in a minute, one that has no images, and one that fails before the others."""
    made_up = {
        name: speed.Topic(lambda size, voice: ([rate("t", "it", ours=1, theirs=1)], {}), 1, full_s)
        for name, full_s in (("broken", 1.0), ("training", 1.0), ("airbench", 1.0), ("photos", 1000.0))
    }
    made_up["broken"] = speed.Topic(lambda size, voice: 1 / 0, 1, 1.0)
    monkeypatch.setattr(speed, "TOPICS", made_up)
    monkeypatch.setattr(speed.machine, "describe", lambda device: ABOUT)
    options = Namespace(minutes=1.0, only=None, quick=False, cifar=None, device="cuda", out=tmp_path)
    *_, measured = speed.measure(options)
    assert list(measured["topics"]) == ["training"]
    assert measured["left_out"].keys() == {"broken", "airbench", "photos"}
    assert "ZeroDivisionError" in measured["left_out"]["broken"]


@pytest.mark.parametrize("words", [["speed"], ["paper", "--cifar", "x"], ["speed", "--device", "cpu"]])
def test_without_a_card_nothing_is_measured(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 2, and no file."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert door.main([*words, f"--out={tmp_path}"]) == door.NO_CARD
    assert os.listdir(tmp_path) == []
