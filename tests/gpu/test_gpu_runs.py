"""The command line on a GPU, or on the simulated device without one, held against the same commands on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conftest import load
from device import changes
from equal_runs import assert_equal_runs, content
from gpu.recipes import OnCard, facts, require_done, rows

pytestmark = pytest.mark.gpu
LOSSES = {"digits": "nll", "angles": "mse", "shapes": "nll"}
EXACT = "train.deterministic=true"
TWO_SAMPLES = 2.5 / 900  # of the test split of the digits: near a tie TF32 and the CPU may decide otherwise
SHIPPED = "runs/{}-001/checkpoints/swa.pt"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("task", LOSSES)
def test_a_task_from_training_to_export(folder: Path, on_card: OnCard, device: str, task: str, precision: str) -> None:
    """Train, score, refresh and export on the device, against the losses of the CPU in fp32 and the file of the run."""
    swa, loss = SHIPPED.format(task), LOSSES[task]
    same = ["model.args.dropout=0"] if task == "digits" else []  # each device draws its own
    train, scored, _, again, *_ = told = on_card(
        folder,
        ["train", f"{task}.yaml", f"train.precision={precision}", *same, "--json"],
        ["eval", swa, "--json"],
        ["bn-update", swa, "-o", "swa_bn.pt"],
        ["eval", "swa_bn.pt", "--json"],
        ["export", swa, "--format", "safetensors", "-o", "swa.safetensors"],
        ["train", f"{task}.yaml", "train.device=cpu", *same],
    )
    require_done(*told)
    assert facts(train)["precision"] == precision
    assert {facts(one)["device"].partition(":")[0] for one in (train, scored, again)} == {device}
    device_rows, host_rows = (rows(folder / "runs" / f"{task}-00{number}") for number in (1, 2))
    for row, other in zip(device_rows, host_rows, strict=True):
        assert float(row["train_loss"]) == pytest.approx(float(other["train_loss"]), rel=0.02)
    of_run, of_file, refreshed = (facts(one)["weights"]["swa"][loss] for one in (train, scored, again))
    assert of_file == pytest.approx(of_run, rel=1e-4)
    assert refreshed == pytest.approx(of_run, rel=1e-3)
    exported, kept = load_file(folder / "swa.safetensors"), load(folder / swa)["state_dict"]
    for name, values in exported.items():
        assert torch.equal(values, kept[name]), name
    assert exported.keys() <= kept.keys()
    assert len(exported) > 10


@pytest.mark.parametrize("precision", ["fp32", "bf16", pytest.param("fp16", marks=pytest.mark.cuda)])
def test_resumed_run_has_the_same_bits(folder: Path, on_card: OnCard, precision: str) -> None:
    """A deterministic run that was interrupted within its second epoch and resumed, against the undisturbed one."""
    words = ["train", "digits.yaml", EXACT, f"train.precision={precision}"]
    stopped, resumed = on_card(
        folder, [*words, "-o", "stopped"], ["train", "--resume", "stopped/latest"], change=changes.interrupt_once
    )
    assert (stopped.code, resumed.code) == (130, 0), resumed.said
    require_done(*on_card(folder, [*words, "-o", "whole"]))
    assert_equal_runs(folder / "stopped/latest", folder / "whole/latest")


def test_checkpoints_go_to_the_device_and_back(folder: Path, on_card: OnCard, device: str) -> None:
    """Scores of a checkpoint of the CPU on the device, and of one of the device on the CPU, against those at home."""
    *trained, there, back = on_card(
        folder,
        ["train", "digits.yaml", "train.device=cpu", "-o", "host", "--json"],
        ["train", "digits.yaml", "-o", "device", "--json"],
        ["eval", "host/latest", f"train.device={device}", "--json"],
        ["eval", "device/latest", "train.device=cpu", "--json"],
    )
    require_done(*trained, there, back)
    assert facts(there)["device"].partition(":")[0] == device
    assert facts(back)["device"] == "cpu"
    for home, away in zip(trained, (there, back), strict=True):
        expected, found = (facts(one)["weights"] for one in (home, away))
        assert found.keys() == expected.keys() >= {"last", "last_bn", "swa", "ema"}
        for name, scores in found.items():
            assert scores["accuracy"] == pytest.approx(expected[name]["accuracy"], abs=TWO_SAMPLES), name
            assert scores["nll"] == pytest.approx(expected[name]["nll"], abs=1e-3), name


def test_samples_on_the_host_give_the_same_metrics(folder: Path, on_card: OnCard) -> None:
    """metrics.csv with samples that lie on the device, against those that come from the host batch by batch."""
    words = ["train", "digits.yaml", EXACT]
    require_done(*on_card(folder, *([*words, f"dataset.on_device={where}"] for where in ("true", "false"))))
    first, second = (rows(folder / "runs" / f"digits-00{number}") for number in (1, 2))
    assert first == second
    assert len(first) == 2


def test_averages_on_the_host_are_those_of_the_device(folder: Path, on_card: OnCard) -> None:
    """Weights with `train.averages_device: cpu` against `auto`: the trained ones equal, the averages to rounding."""
    words = ["train", "digits.yaml", EXACT]
    require_done(*on_card(folder, *([*words, f"train.averages_device={where}"] for where in ("auto", "cpu"))))
    runs = [folder / "runs" / f"digits-00{number}" for number in (1, 2)]
    for name, key, rounding in (("last", "model", 0), ("swa", "state_dict", 1e-5), ("ema", "state_dict", 1e-5)):
        first, second = (content(run, name)[key] for run in runs)
        assert first.keys() == second.keys()
        for layer, values in first.items():
            torch.testing.assert_close(values, second[layer], rtol=rounding, atol=rounding)
