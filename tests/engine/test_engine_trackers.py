"""`output.loggers: [wandb, mlflow]`: what their own readers find, held against the files of the run."""

from __future__ import annotations

import csv
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from swa_cli.checkpoint.run_folder import RunFolder
from swa_cli.engine import trackers
from swa_cli.engine.events import EpochEvent, PlanEvent

pytestmark = pytest.mark.filterwarnings("ignore")  # of the other libraries
BOTH = "output.loggers=[{name: wandb, mode: offline, project: digits}, mlflow]"
Numbers = dict[str, list[tuple[int, float]]]


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home that has to stay empty."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "")  # is put back at the end
    monkeypatch.delenv("WANDB_ERROR_REPORTING")
    for name in ("CACHE", "DATA", "CONFIG"):
        monkeypatch.delenv(f"XDG_{name}_HOME", raising=False)


def measured(run: Path) -> Numbers:
    """Every number of metrics.csv but the step, with its step."""
    found: Numbers = {}
    with open(run / "metrics.csv") as file:
        for row in csv.DictReader(file):
            for key, cell in row.items():
                if key != "step" and cell:
                    found.setdefault(key, []).append((int(row["step"]), float(cell)))
    return found


def records(run: Path) -> Iterator[Any]:
    """The records of the only log of W&B: LevelDB's format of blocks of 32 KiB, after a head of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = run.glob("wandb/offline-run-*/*.wandb")
    data, position, parts = path.read_bytes(), 7, b""
    assert data.startswith(b":W&B")
    while position + 7 <= len(data):
        if 2**15 - position % 2**15 < 7:  # a head does not cross blocks
            position += 2**15 - position % 2**15
        _, size, kind = struct.unpack_from("<IHB", data, position)
        parts += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


def logged_by_wandb(run: Path) -> Numbers:
    found: Numbers = {}
    for record in records(run):
        values = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
        for key, text in values.items():
            if not key.startswith("_"):
                found.setdefault(key, []).append((int(values["_step"]), json.loads(text)))
    return found


def mlflow_run(run: Path) -> Any:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{run.absolute()}/mlflow/mlflow.db")
    (found,) = client.search_runs([client.get_experiment_by_name("swa").experiment_id])
    return client, found


def logged_by_mlflow(run: Path) -> Numbers:
    client, found = mlflow_run(run)
    histories = {key: client.get_metric_history(found.info.run_id, key) for key in found.data.metrics if "/" not in key}
    return {key: [(one.step, one.value) for one in history] for key, history in histories.items()}


@pytest.mark.slow
def test_every_row_once_also_in_a_run_that_was_killed_and_extended(
    swa, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of metrics.csv in both logs: stopped with rows too many and too few, resumed, extended; one run each."""
    import wandb

    run, send = tmp_path / "runs/small-001", trackers.MLflow.epoch

    def stop(logger: trackers.MLflow, event: EpochEvent) -> None:
        send(logger, event)
        if event.row["epoch"] == 2:  # before the save: the epoch is trained again
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trackers.MLflow, "epoch", stop)
        assert swa("train", recipe, "-q", BOTH, "train.epochs=3", "schedule.name=constant").code == 130
    begun = json.loads((run / "loggers.json").read_text())
    assert mlflow_run(run)[1].info.status == "KILLED"
    assert logged_by_mlflow(run) == logged_by_wandb(run) == measured(run)
    assert [record.exit.exit_code for record in records(run) if record.HasField("exit")] == [130]
    # Rows that a killed process had not sent.
    with monkeypatch.context() as patch:
        patch.setattr(trackers.MLflow, "epoch", lambda *_: None)
        patch.setattr(trackers.WandB, "epoch", lambda *_: None)
        patch.setattr(trackers.WandB, "end", lambda self, _: self._run.finish(exit_code=1))
        patch.setattr(trackers.MLflow, "end", lambda *_: None)
        assert swa("train", "--resume", run, "-q").code == 0
    assert len(logged_by_mlflow(run)["epoch"]) < 3
    ended = swa("train", "--resume", run, "--extend-to", "4", "-q")
    assert ended.code == 0
    assert "failed in" not in ended.err
    assert len(measured(run)["epoch"]) == 4
    kept = [logged_by_wandb(run), logged_by_mlflow(run)]
    seconds = [logged.pop("seconds") for logged in kept]  # of the first time that an epoch was trained
    expected = measured(run)
    steps = [step for step, _ in expected.pop("seconds")]
    assert kept == [expected, expected]
    assert [[step for step, _ in one] for one in seconds] == [steps, steps]
    assert json.loads((run / "loggers.json").read_text()) == begun
    assert mlflow_run(run)[1].data.tags["train.epochs"] == "4"
    assert mlflow_run(run)[1].data.params["train.epochs"] == "3"
    check_the_rest(run)
    assert not wandb.env.error_reporting_enabled(), "these reports use the network, also offline"
    assert list((tmp_path / "home").rglob("*")) == []
    assert {path.name for path in tmp_path.iterdir()} <= {"home", "runs", recipe.name}


@pytest.mark.slow
def test_a_decay_that_is_trained_again_has_its_new_numbers(
    swa, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of wsd that is extended from its plateau: the last number of each step is that of metrics.csv.

    It is stopped before it has trained the steps of the decay again, and goes on.
    """
    run = tmp_path / "runs/small-001"
    words = [BOTH, "train.epochs=3", "schedule={name: wsd, decay: 1ep}", "swa={start: 1ep, every: 1ep}"]
    assert swa("train", recipe, "-q", *words).code == 0
    before = measured(run)["lr"]
    plan = trackers.MLflow.plan

    def stop(logger: trackers.MLflow, event: PlanEvent) -> None:
        plan(logger, event)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trackers.MLflow, "plan", stop)
        assert swa("train", "--resume", run, "--extend-to", "5", "-q").code == 130
    assert swa("train", "--resume", run, "--extend-to", "5", "-q").code == 0
    expected, sent = measured(run), logged_by_mlflow(run)
    assert before[2] != expected["lr"][2]
    last = {key: dict(values) for key, values in sent.items()}  # of several at a step
    assert {key: [(step, last[key][step]) for step, _ in values] for key, values in expected.items()} == expected
    assert len(sent["lr"]) == 6  # the third epoch is there twice
    assert logged_by_wandb(run) == expected


@pytest.mark.parametrize("method", ["plan", "epoch"])
def test_a_tracker_that_fails_is_closed_as_failed(
    swa, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """An error in the first row, or before it: the run ends well, those of the trackers failed, until it goes on."""

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no server")

    with monkeypatch.context() as patch:
        patch.setattr(trackers.MLflow, {"plan": "_describe", "epoch": "_log"}[method], fail)
        patch.setattr(trackers.WandB, "_log", fail)
        ended = swa("train", recipe, "train.epochs=1", "schedule.name=constant", BOTH)
    assert ended.code == 0, ended.err
    said = " ".join(ended.err.split())
    assert f"mlflow failed in `{method}`" in said
    assert "wandb failed in `epoch`" in said
    run = tmp_path / "runs/small-001"
    assert mlflow_run(run)[1].info.status == "FAILED"
    assert [record.exit.exit_code for record in records(run) if record.HasField("exit")] == [1]
    assert swa("train", "--resume", run, "--extend-to", "2", "-q").code == 0
    assert mlflow_run(run)[1].info.status == "FINISHED"
    assert [step for step, _ in logged_by_mlflow(run)["epoch"]] == [step for step, _ in measured(run)["epoch"]]


def check_the_rest(run: Path) -> None:
    """Recipe, final scores, files, tags and status of a finished run."""
    result, about = (json.loads((run / name).read_text()) for name in ("result.json", "run.json"))
    client, found = mlflow_run(run)
    accuracy = result["weights"]["swa"]["accuracy"]
    assert found.info.status == "FINISHED"
    assert found.data.params["model.args.width"] == "4"
    assert found.data.params["swa.every"] == "0.5ep"
    assert found.data.tags["reference"] == result["reference"]
    assert found.data.tags["device"] == about["device"]
    assert found.data.metrics["test/swa/accuracy"] == accuracy
    assert found.data.metrics["val/swa/accuracy"] == result["weights"]["swa"]["val"]["accuracy"]
    assert {one.path for one in client.list_artifacts(found.info.run_id)} == {"recipe.yaml", "result.json"}
    assert Path(found.data.tags["checkpoint"]).is_file()
    said = list(records(run))
    (begun,) = [record.run for record in said if record.HasField("run")]
    assert begun.project == "digits"
    assert about["precision"] in begun.tags
    config = {
        item.key or item.nested_key[0]: json.loads(item.value_json)
        for record in said
        for item in [*record.run.config.update, *record.config.update]
    }
    assert config["model"]["args"] == {"width": 4}
    assert config["train"]["epochs"] == 4
    summary = {
        item.key or ".".join(item.nested_key): json.loads(item.value_json)
        for record in said
        for item in record.summary.update
    }
    assert summary["test/swa/accuracy"] == accuracy
    assert summary["reference"] == result["reference"]
    (artifact,) = [
        record.request.log_artifact.artifact for record in said if record.request.HasField("log_artifact")
    ] or [record.artifact for record in said if record.HasField("artifact")]
    assert {Path(entry.path).name for entry in artifact.manifest.contents} >= {"recipe.yaml", "result.json"}


def test_what_mlflow_and_wandb_cannot_use_is_refused_before_the_run(swa, recipe: Path, tmp_path: Path) -> None:
    """A folder of files, a tracker twice, no login: exit 2 at output.loggers, and no run folder."""
    for words in ("{name: mlflow, tracking_uri: mlruns}", "mlflow, {name: mlflow, experiment: b}", "wandb"):
        ended = swa("train", recipe, f"output.loggers=[{words}]")
        assert ended.code == 2, words
        assert "output.loggers: " in ended.err
    assert "mode: offline" in " ".join(ended.err.split())
    assert not (tmp_path / "runs").exists()


def test_seeds_of_a_repeat_share_a_group(tmp_path: Path) -> None:
    """A run folder in that of a repeat, in that of a sweep, and one that is in neither."""
    (tmp_path / "repeat-001/seed-0").mkdir(parents=True)
    (tmp_path / "repeat-001/repeat.json").write_text("{}")
    assert trackers._group(RunFolder(tmp_path / "repeat-001/seed-0")) == "repeat-001"
    assert trackers._group(RunFolder(tmp_path / "repeat-001")) is None
    (tmp_path / "few-sweep-001/trial-000").mkdir(parents=True)
    (tmp_path / "few-sweep-001/sweep.json").write_text("{}")
    assert trackers._group(RunFolder(tmp_path / "few-sweep-001/trial-000")) == "few-sweep-001"


def test_what_is_too_long_for_mlflow_says_so() -> None:
    """Nested keys and lists as parameters, and a text that is cut to a length."""
    assert dict(trackers._flat({"a": {"b": [1, 2.5], "c": {}}, "d": "x"})) == {"a.b": "[1, 2.5]", "a.c": "{}", "d": "x"}
    assert trackers._cut("x" * 50, 50) == "x" * 50
    assert len(cut := trackers._cut("x" * 60, 50)) == 50
    assert cut.endswith("see recipe.yaml)")
