"""The table of datasets: one entry is enough, a forgotten part is an error, the documentation lists every entry."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

from swa_cli.data.arguments import REQUIRED, Argument, whole
from swa_cli.data.datasets import DATASETS, USER_DATASET, Dataset, Request
from swa_cli.data.sources import known_num_train, load
from swa_cli.data.splits import Arrays, Found
from swa_cli.data.transforms import EvaluationView
from swa_cli.errors import RecipeError, UserError

ROOT = Path(__file__).parents[2]
NAMES = ("horizontal", "vertical")
RECIPE = """\
name: bars
model: {name: convnet, args: {width: 4}}
dataset: {name: stripes, val: 8, args: {width: 2}}
optimizer: {lr: 0.1}
train: {epochs: 1, batch_size: 16, threads: 1, precision: fp32}
"""


def stripes(request: Request) -> Found:
    """Stripes of a width, the class being their direction; image i is shifted by i pixels."""
    width = request.args["width"]
    splits = {}
    for split, count in (("train", 48), ("test", 16)):
        shifted = torch.arange(8)[None] + torch.arange(count)[:, None]
        lines = (shifted // width % 2 * 255).to(torch.uint8)[:, None, None, :].expand(count, 1, 8, 8)
        labels = torch.arange(count) // 2 % 2
        images = torch.where(labels[:, None, None, None] == 1, lines, lines.transpose(2, 3))
        splits[split] = Arrays(images, labels)
    return Found(splits=splits)


ENTRY = Dataset(
    name="stripes",
    target="class",
    class_names=NAMES,
    mean=(0.5,),
    std=(0.5,),
    image_size=None,
    num_train=48,
    has_val=False,
    args={"width": whole(1, 1, 4)},
    files=None,
    read=stripes,
)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> dict[str, Dataset]:
    """The table with one entry more."""
    monkeypatch.setitem(DATASETS, "stripes", ENTRY)
    return DATASETS


def test_one_entry_is_trained_on_and_evaluated(swa, tmp_path: Path, table: dict[str, Dataset]) -> None:
    """A run and an evaluation of a new dataset against the splits, classes and constants that its entry declares."""
    path = tmp_path / "bars.yaml"
    path.write_text(RECIPE)
    ended = swa("train", path, "--out", tmp_path / "runs", "--json")
    assert ended.code == 0, ended.err
    assert (ended.json["split"], ended.json["samples"]) == ("test", 16)
    shipped = torch.load(tmp_path / "runs/bars-001/checkpoints/last.pt", weights_only=True)
    assert (shipped["input"]["classes"], shipped["input"]["mean"]) == (list(NAMES), [0.5])
    assert {split: entry["samples"] for split, entry in shipped["input"]["data"].items()} == {"train": 48, "test": 16}
    again = swa("eval", tmp_path / "runs/bars-001", "--json").json
    assert again["weights"]["last"]["nll"] == ended.json["weights"]["last"]["nll"]
    looked = swa("doctor", path, "--json").json["data"]
    assert looked["there"], looked
    assert "40 training samples" in looked["state"]


def test_one_entry_gives_defaults_checks_and_suggestions(table: dict[str, Dataset]) -> None:
    """Arguments, the size without reading, and messages against the entry."""
    assert torch.equal(load("stripes", val=0).train.images, stripes_of(width=1))
    assert torch.equal(load("stripes", val=0, args={"width": 3}).train.images, stripes_of(width=3))
    assert known_num_train("stripes", "25%", args={}) == 36 == len(load("stripes", val="25%").train)
    for args, message in (({"width": 5}, "5 is not a whole number from 1 to 4"), ({"size": 5}, "unknown argument of")):
        with pytest.raises(RecipeError, match=message):
            load("stripes", args=args)
    with pytest.raises(UserError) as caught:
        load("stripe")
    assert "did you mean stripes?" in caught.value.hint


def stripes_of(*, width: int) -> torch.Tensor:
    request = Request(
        name="",
        dataset=ENTRY,
        args={"width": width},
        root=Path(),
        download=False,
        skip_broken=False,
        classes=None,
        view=EvaluationView(),
        keep_in=None,
        progress=None,
    )
    images, _ = stripes(request).splits["train"]  # type: ignore[misc]
    return images


def test_one_entry_may_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch Dataset from a reader against the same entry in memory: labels, constants and fingerprint."""

    def streamed(request: Request) -> Found:
        return Found(splits={split: TensorDataset(*stored) for split, stored in stripes(request).splits.items()})

    monkeypatch.setitem(DATASETS, "stripes", ENTRY)
    monkeypatch.setitem(DATASETS, "streamed", replace(ENTRY, name="streamed", read=streamed))
    held, ours = (load(name, val=6, cache="none", workers=0) for name in ("stripes", "streamed"))
    assert (ours.train.images is None, ours.mean, ours.std) == (True, held.mean, held.std)
    assert torch.equal(ours.train.labels, held.train.labels)
    assert ours.data() == held.data()


@pytest.mark.parametrize("forgotten", [field.name for field in fields(Dataset)])
def test_a_forgotten_part_is_an_error(forgotten: str) -> None:
    """An entry without one of its fields against an error: none has a default."""
    declared: dict[str, Any] = {field.name: getattr(ENTRY, field.name) for field in fields(Dataset)}
    del declared[forgotten]
    with pytest.raises(TypeError, match=forgotten):
        Dataset(**declared)


def test_entries_are_named_once_and_agree() -> None:
    """Keys against names, constants against each other, defaults against their own checks."""
    for name, entry in DATASETS.items():
        assert entry.name == name
        assert (entry.mean is None) == (entry.std is None)
        assert len(entry.mean or ()) == len(entry.std or ())
        for argument in (entry.args or {}).values():
            if argument.default not in (REQUIRED, None):
                assert argument.parse(argument.default) == argument.default


def default_text(argument: Argument) -> str:
    if argument.default is REQUIRED:
        return "required"
    if argument.default is None:
        return "optional"
    return f"{argument.default[0]}" if isinstance(argument.default, tuple) else f"{argument.default}"


def test_the_documentation_lists_every_dataset() -> None:
    """The table in docs/data.md and the names in docs/recipe.md against the table of entries."""
    expected = []
    for name, entry in DATASETS.items():
        args = [f"`{key}` ({default_text(argument)})" for key, argument in (entry.args or {}).items()]
        described = ", ".join(args) or ("its keyword arguments" if entry.args is None else "none")
        target = "as it says" if entry.args is None else "class, multilabel"  # where the reader tells
        expected.append((f"`{name}`", entry.target or target, described))
    page = (ROOT / "docs/data.md").read_text()
    rows = re.findall(r"^\| (`.*?`) \| (.*?) \| (.*?) \|$", page, re.MULTILINE)
    assert rows == expected
    listed = (ROOT / "docs/recipe.md").read_text()
    assert [name for name in DATASETS if name not in listed and name != USER_DATASET] == []
