"""Runs on the same photos by each source: the same bits, with any number of loader processes; and their mistakes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from conftest import Swa
from photo_sources import WRITTEN, in_folders

RECIPE = """\
name: {kind}
model: {{name: convnet, args: {{width: 4}}}}
dataset:
  name: {name}
  root: {kind}
  image_size: 12
  cache: none
  workers: {workers}
  args: {args}
  augment: {{random_resized_crop: true, policy: trivial_augment, flip: true}}
optimizer: {{lr: 0.05}}
swa: {{start: 50%, every: 1ep, lr: 0.05}}
train: {{epochs: 2, batch_size: 3, threads: 1, precision: fp32}}
"""


def write_recipe(kind: str, *, workers: int) -> str:
    name, args = ("image_folder", {}) if kind == "folders" else WRITTEN[kind][1:]
    text = RECIPE.format(kind=kind, name=name, workers=workers, args=json.dumps(args))
    Path(f"{kind}.yaml").write_text(text)
    return f"{kind}.yaml"


def weights(run: str) -> dict[str, torch.Tensor]:
    return torch.load(Path(run) / "checkpoints/swa.pt", weights_only=True)["state_dict"]  # type: ignore[no-any-return]


def rows(run: str) -> list[dict[str, str]]:
    lines = csv.DictReader((Path(run) / "metrics.csv").read_text().splitlines())
    return [{key: value for key, value in row.items() if key != "seconds"} for row in lines]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_runs_by_each_source_are_equal(swa: Swa, tmp_path: Path, workers: int) -> None:
    """The average and metrics.csv of csv, parquet and shards against those of folders, bit for bit."""
    in_folders(tmp_path / "folders")
    ended = swa("train", write_recipe("folders", workers=workers), "-q", "--json")
    assert ended.code == 0, ended.err
    expected, table = weights(ended.json["run"]), rows(ended.json["run"])
    assert len(table) == 2
    for kind in ("csv", "parquet", "shards"):
        WRITTEN[kind][0](tmp_path / kind)
        ours = swa("train", write_recipe(kind, workers=workers), "-q", "--json")
        assert ours.code == 0, ours.err
        found = weights(ours.json["run"])
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], value) for key, value in expected.items()), kind
        assert rows(ours.json["run"]) == table, kind
        assert ours.json["weights"]["swa"]["nll"] == ended.json["weights"]["swa"]["nll"]


@pytest.mark.parametrize("kind", ["csv", "parquet", "shards"])
def test_plan_doctor_and_eval_know_each_source(swa: Swa, tmp_path: Path, kind: str) -> None:
    """The splits and sizes in the plan, what `swa doctor` says, and an evaluation of the run from its checkpoint."""
    WRITTEN[kind][0](tmp_path / kind)
    recipe = write_recipe(kind, workers=0)
    told = " ".join(swa("plan", recipe).out.split())
    for part in ("6 train, 2 val, 4 test", "2 classes of 3 train samples each", "image files of", "pixels"):
        assert part in told, part
    looked = swa("doctor", recipe, "--json").json["data"]
    assert looked["there"], looked
    assert "6 training samples" in looked["state"]
    ended = swa("train", recipe, "-q", "--json")
    again = swa("eval", Path(ended.json["run"]) / "checkpoints/swa.pt", "--json")
    assert again.code == 0, again.err
    assert again.json["weights"]["swa"]["nll"] == pytest.approx(ended.json["weights"]["swa"]["nll"], abs=1e-6)
    assert "warning" not in again.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("dataset={name: csv, root: csv}",), "dataset.args.file: is missing"),
        (("dataset={name: csv, root: csv, args: {file: label.csv}}",), "dataset.args.file=labels.csv"),
        (("dataset.args={file: labels.csv, column: x}",), "dataset.args.column: unknown argument of csv"),
        (("dataset.args={file: labels.csv, label: class}",), "has no column 'class'"),
        (("dataset={name: hf, root: csv}",), "no .parquet or .arrow files"),
        (("dataset={name: webdataset, root: csv, args: {train: a.tar}}",), "a.tar is not there"),
        (("dataset={name: webdatasets, root: csv}",), "did you mean webdataset?"),
    ],
)
def test_mistakes_end_before_anything_is_written(swa: Swa, tmp_path: Path, words: tuple[str, ...], told: str) -> None:
    """Exit 2, the value and the cure, and no run folder."""
    WRITTEN["csv"][0](tmp_path / "csv")
    ended = swa("train", write_recipe("csv", workers=0), *words)
    assert ended.code == 2
    assert told in " ".join(ended.err.split())
    assert not Path("runs").exists()
