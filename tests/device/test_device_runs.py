"""Whole runs on a simulated accelerator: what the host waits for and copies, held against the stated numbers."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from conftest import load
from device import changes
from device.on_device import Change, Told, on_device
from device.simulated import Entry
from photo_sources import in_folders

pytestmark = pytest.mark.slow

SMALL = """\
name: small
model: {name: convnet, args: {width: 4, dropout: 0.1}}
dataset: {name: digits, augment: {crop: 1, flip: true}}
optimizer: {lr: 0.1}
swa: {start: 50%, every: 0.5ep, eval_every: 1ep}
averages: {ema: {kind: ema}, swag: {kind: swag, start: 50%}}
snapshots: {every: 2ep}
train: {epochs: 4, batch_size: 128, threads: 1, device: simulated}
"""
EPOCHS, STEPS, LAYERS = 4, 10, 5  # steps per epoch, BatchNorm layers
SHORT = ("train", "small.yaml", "train.epochs=1", "train.batch_size=256", "averages.swag=null", "snapshots=null")
FROM_HOST = ("dataset.on_device=false",)  # by default the samples lie on the device
# Settings that put other work into a step, and the copies to the device for each batch.
SETTINGS: dict[str, tuple[list[str], int]] = {
    "mixed": ([*FROM_HOST, "dataset.augment.mixup=0.2", "dataset.augment.cutmix=1", "dataset.augment.cutout=2"], 3),
    "resident": ([], 0),
    "resident, mixed": (["dataset.augment.mixup=0.2", "dataset.augment.cutout=2"], 2),
    "clipped": ([*FROM_HOST, "train.clip_norm=1", "train.grad_accum_steps=2", "train.class_weights=balanced"], 1),
    "bf16": ([*FROM_HOST, "train.precision=bf16", "train.loss=focal", "train.label_smoothing=0.1"], 1),
    "adamw": (
        [*FROM_HOST, "optimizer.name=AdamW", "optimizer.lr=0.01", "averages.lawa.kind=lawa", "averages.lawa.window=2"],
        1,
    ),
    "angles": ([*FROM_HOST, "dataset.name=rotated_digits", "task=regression", "train.deterministic=true"], 1),
}


def require_quiet_steps(told: Told) -> None:
    """Require that no step has waited for the device, or copied from it; its copies to the device are pinned."""
    assert told.code == 0, told.said
    steps = told.within("train_step")
    assert steps
    loud = [str(entry) for entry in steps if entry.waits or entry.kind != "to device" or not entry.is_pinned]
    assert not loud, "\n".join(loud)


def metrics(run: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))


def written(folder: Path, text: str = SMALL) -> Path:
    (folder / "small.yaml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Told]]:
    """A run on the device, what is done with its files there, and the same run on the CPU."""
    folder = written(tmp_path_factory.mktemp("small"))
    same = ["train", "small.yaml", "train.epochs=2", "model.args.dropout=0", "train.precision=fp32"]  # auto may differ
    commands: dict[str, Sequence[str]] = {
        "train": ["train", "small.yaml"],
        "eval": ["eval", "runs/small-001"],
        "draws": ["eval", "runs/small-001/checkpoints/swag.pt", "--draws", "2"],
        "bn-update": ["bn-update", "runs/small-001/checkpoints/swa.pt", "-o", "swa_bn.pt"],
        "export": ["export", "runs/small-001/checkpoints/swa.pt", "--format", "safetensors", "-o", "swa.safetensors"],
        "host": [*same, "train.device=cpu"],
        "device": same,
    }
    told = dict(zip(commands, on_device(folder, *commands.values()), strict=True))
    for one in told.values():
        assert one.code == 0, one.said
    return folder, told


def test_steps_neither_wait_nor_copy_back(small: tuple[Path, dict[str, Told]]) -> None:
    """Each step of a run whose samples lie on the device, against the copies of an epoch: rows, windows and flips."""
    told = small[1]["train"]
    require_quiet_steps(told)
    assert len(told.within("train_step")) == EPOCHS * 3


def test_an_epoch_has_one_reading_and_one_end(small: tuple[Path, dict[str, Told]]) -> None:
    """The waits of an epoch outside its steps, its saves and its evaluation."""
    told = small[1]["train"]
    waits = [entry for entry in told.within("_train_epoch") if entry.waits and not entry.within("save_snapshot")]
    assert not [str(entry) for entry in waits if entry.within("update_all")]
    assert len(waits) == EPOCHS * 3, waits  # a reading, the sum of the losses, whether all weights were finite
    of_end = [entry for entry in told.within("_end_epoch") if not entry.within("validate") and entry.waits]
    assert len(of_end) == EPOCHS  # loss and score of the epoch


def test_evaluation_waits_at_its_end_alone(small: tuple[Path, dict[str, Told]]) -> None:
    """The waits of `swa eval` within the loop over batches, and one copy per kind of score after it."""
    for command in ("train", "eval", "draws"):
        assert not _waits_of_batches(small[1][command].within("_forward"))
    scored = [entry for entry in small[1]["eval"].within("concatenate") if entry.kind == "to host"]
    assert len(scored) == 5 * 7  # kinds of scores; of five weight sets on test images, and two for their references


def test_batchnorm_pass_waits_per_layer_not_per_batch(small: tuple[Path, dict[str, Told]]) -> None:
    """The waits of a pass over 11 batches: moments of each layer come back, statistics go there."""
    entries = small[1]["bn-update"].within("update_batchnorm")
    batches = [entry for entry in entries if entry.within("__iter__")]
    assert [entry.kind for entry in batches] == ["to device"] * len(batches)
    assert not _waits_of_batches(batches)
    waits = [entry for entry in entries if entry.waits and entry not in batches]
    assert len(waits) == 5 * LAYERS + 2  # two copies, one flag and two copies; places of full and last batches


def test_weights_go_to_the_device_once(small: tuple[Path, dict[str, Told]]) -> None:
    """Copies of `swa bn-update` outside its pass over the data, against the tensors of the file."""
    entries = small[1]["bn-update"].within("_updated")
    loads = [one for one in entries if not one.within("refresh_batchnorm") and not one.within("build_model")]
    state = load(small[0] / "runs/small-001/checkpoints/swa.pt")["state_dict"]
    assert len([one for one in loads if one.kind == "to device"]) == len(state)
    assert not [str(one) for one in loads if one.kind == "wait"]


def test_files_hold_no_tensor_of_the_device(small: tuple[Path, dict[str, Told]]) -> None:
    """Every file of a run, and those made of them, loaded where there is no such device."""
    files = [*small[0].rglob("*.pt")]
    names = {path.name for path in files}
    assert {"last.pt", "last_bn.pt", "swa.pt", "ema.pt", "swag.pt", "swa_bn.pt"} <= names
    assert len([name for name in names if name.startswith("step")]) == 2
    for path in files:
        for value in _tensors(load(path)):
            assert value.device.type == "cpu"


def test_numbers_are_those_of_the_cpu(small: tuple[Path, dict[str, Told]]) -> None:
    """metrics.csv of the same run on the device and on the CPU, without dropout."""
    host, device = (metrics(small[0] / "runs" / name) for name in ("small-002", "small-003"))
    assert len(host) == 2
    for row, other in zip(host, device, strict=True):
        for key in row.keys() - {"seconds"}:
            assert row[key] == other[key] or float(row[key]) == pytest.approx(float(other[key]), rel=1e-4)


def test_resumed_run_equals_the_undisturbed_one(small: tuple[Path, dict[str, Told]], tmp_path: Path) -> None:
    """A run with dropout that was interrupted within an epoch and resumed, against the undisturbed one."""
    written(tmp_path)
    stopped, resumed = on_device(
        tmp_path, ["train", "small.yaml"], ["train", "--resume", "runs/latest"], change=changes.interrupt_once
    )
    assert (stopped.code, resumed.code) == (130, 0), resumed.said
    assert f"after step {changes.STOPPED_IN}" in stopped.said
    require_quiet_steps(resumed)
    for name in ("last.pt", "swa.pt", "ema.pt", "swag.pt"):
        path = Path("runs/small-001/checkpoints") / name
        first, second = (list(_tensors(load(folder / path))) for folder in (small[0], tmp_path))
        assert all(map(torch.equal, first, second))
        assert len(first) == len(second) > LAYERS


def test_weights_that_nobody_read_are_not_saved(tmp_path: Path) -> None:
    """NaN in the weights between two readings, and Ctrl-C then: last.pt stays that of the epoch before, and finite."""
    (told,) = on_device(written(tmp_path), ["train", "small.yaml"], change=changes.spoil_and_interrupt)
    assert told.code == 1, told.said
    assert f"epoch 2, step {changes.STOPPED_IN}" in told.said
    (folder,) = (tmp_path / "runs").glob("small-*")
    point = load(folder / "checkpoints" / "last.pt")
    assert point["step"] == STEPS
    assert point["averages"]["ema"]["count"] == STEPS
    assert all(value.isfinite().all() for value in _tensors(point))


def test_no_setting_makes_a_step_wait(tmp_path: Path) -> None:
    """Steps with mixed images, clipped gradients, bf16 and other losses and tasks, against their copies per batch."""
    written(tmp_path)
    commands = [[*SHORT, *words] for words, _ in SETTINGS.values()]
    for told, (name, (words, copies)) in zip(on_device(tmp_path, *commands), SETTINGS.items(), strict=True):
        require_quiet_steps(told)
        per_batch = [entry for entry in told.within("train_step") if not entry.within("_stored")]
        num_batches = 5 - 1 * ("train.grad_accum_steps=2" in words)
        assert len(per_batch) == copies * num_batches, name


def test_pixels_are_scored_without_a_wait(tmp_path: Path) -> None:
    """A segmentation run, with weights in its loss, and its evaluation, against their waits."""
    changed = SMALL.replace("convnet, args: {width: 4, dropout: 0.1}", "unet, args: {width: 4}")
    changed = changed.replace("digits, augment: {crop: 1, flip: true}", "shapes, args: {size: 16, train: 48, test: 16}")
    words = ["train.batch_size=16", "train.class_weights=balanced", "train.grad_accum_steps=2", "eval.batch_size=8"]
    written(tmp_path, f"task: segmentation\n{changed}")
    (told,) = on_device(tmp_path, [*SHORT, *words])
    require_quiet_steps(told)
    evaluation = told.within("_forward")
    assert len([entry for entry in evaluation if entry.kind == "to device"]) > 2
    assert not _waits_of_batches(evaluation)


def test_bf16_is_computed_in(tmp_path: Path) -> None:
    """Losses of an epoch in bf16 against fp32, on the device by its number and by `auto`: near, and not equal."""
    written(tmp_path)
    words = (["train.precision=fp32", "train.device=auto"], ["train.precision=bf16", "train.device=simulated:0"])
    told = on_device(tmp_path, *([*SHORT, *own, "--json"] for own in words))
    exact, coarse = (float(metrics(tmp_path / "runs" / name)[0]["train_loss"]) for name in ("small-001", "small-002"))
    facts = [json.loads(one.said[one.said.index("{") :]) for one in told]
    assert [(each["device"], each["precision"]) for each in facts] == [("simulated:0", "fp32"), ("simulated:0", "bf16")]
    assert exact != coarse == pytest.approx(exact, rel=0.02)


def test_photos_come_through_loader_processes(tmp_path: Path) -> None:
    """Training on image files, and predictions, against their copies: inputs and labels of each batch."""
    in_folders(tmp_path / "photos")
    changed = SMALL.replace(
        "name: digits, augment: {crop: 1, flip: true}", "name: image_folder, root: photos, workers: 1"
    )
    written(
        tmp_path,
        changed.replace(
            "workers: 1",
            "workers: 1, image_size: 16, augment: {random_resized_crop: true, flip: true, jitter: {hue: 0.1}}",
        ),
    )
    words = ["train.epochs=1", "train.batch_size=2", "averages.swag=null", "snapshots=null"]
    told, predicted = on_device(
        tmp_path, ["train", "small.yaml", *words], ["predict", "runs/latest/checkpoints/swa.pt", "photos/test"]
    )
    require_quiet_steps(told)
    images = [entry for entry in told.within("train_step") if not entry.within("jitter_colors")]
    assert len(images) == 3 * 2
    assert predicted.code == 0, predicted.said
    assert len(re.findall(r"photos/test/\S+\.jpg", predicted.said)) == 4
    batches = [entry.kind for entry in predicted.within("batches")]
    assert batches == ["to device", "to host"]


def test_photos_are_decoded_on_the_device(tmp_path: Path) -> None:
    """A run with `dataset.decode: device`, and its scores: each image is decoded there, once, and no step waits; loss
    and scores are near those of loader processes.
    """
    in_folders(tmp_path / "photos")
    written(
        tmp_path,
        SMALL.replace(
            "name: digits, augment: {crop: 1, flip: true}",
            "name: image_folder, root: photos, workers: 1, image_size: 16, mean: imagenet, std: imagenet,"
            " augment: {random_resized_crop: true, flip: true}",
        ),
    )
    words = ["train.epochs=1", "train.batch_size=2", "averages.swag=null", "snapshots=null"]
    told, scored, refused = on_device(
        tmp_path,
        ["train", "small.yaml", *words, "dataset.decode=device"],
        ["eval", "runs/small-001", "--json"],
        [
            "train",
            "small.yaml",
            *words,
            "dataset.decode=device",
            "dataset.name=digits",
            "dataset.mean=auto",
            "dataset.std=auto",
        ],
        change=changes.decode_on_device,
    )
    require_quiet_steps(told)
    assert [entry.kind for entry in told.within("_decode") if entry.within("_train_epoch")] == ["to device"] * 6
    assert refused.code == 2
    assert "dataset.decode=cpu" in refused.said
    trained, again = on_device(
        tmp_path, ["train", "small.yaml", *words], ["eval", "runs/small-001", "dataset.decode=cpu", "--json"]
    )
    assert trained.code == again.code == 0, trained.said + again.said
    assert not trained.within("_decode") + again.within("_decode")
    losses = [float(metrics(tmp_path / "runs" / name)[0]["train_loss"]) for name in ("small-001", "small-002")]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    scores = [json.loads(one.said[one.said.index("{") :])["weights"] for one in (scored, again)]
    # Four test images for each set, two of val for each of the raw weights, and a trial.
    assert len(scored.within("_decode")) == 4 * len(scores[0]) + 2 * 2 + 1
    for name, values in scores[0].items():
        assert values["nll"] == pytest.approx(scores[1][name]["nll"], rel=0.05)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (changes.read_loss, "wait: _local_scalar_dense"),
        (changes.copy_scores_back, "to host: copy"),
    ],
)
def test_a_wait_in_the_step_is_found(tmp_path: Path, change: Change, found: str) -> None:
    """`.item()` and `.cpu()` in the step against what these tests require of it: they name each, with its place."""
    (told,) = on_device(written(tmp_path), SHORT, change=change)
    with pytest.raises(AssertionError, match=rf"{found}.*engine/step\.py:\d+ train_step"):
        require_quiet_steps(told)


def test_a_tensor_of_the_host_in_the_step_is_refused(tmp_path: Path) -> None:
    """A tensor of the host beside one of the device in the step: the run fails, as it would on a GPU."""
    (told,) = on_device(written(tmp_path), SHORT, change=changes.add_noise_of_host)
    assert told.code != 0
    assert "Expected all tensors to be on the same device" in told.said


def _waits_of_batches(entries: Sequence[Entry]) -> list[str]:
    """Return the waits but for copies that are made once: of a split, and of the constants of its channels."""
    return [str(entry) for entry in entries if entry.waits and not entry.within("on") and not entry.within("_constant")]


def _tensors(content: object) -> list[torch.Tensor]:
    if isinstance(content, torch.Tensor):
        return [content]
    parts = content.values() if isinstance(content, dict) else content if isinstance(content, list | tuple) else ()
    return [value for part in parts for value in _tensors(part)]
