"""The same photos by folder, table, Hugging Face and shards: classes, pixels, constants, fingerprints."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from photo_sources import CLASSES, SPLITS, WRITTEN, in_folders
from swa_cli.data.photos import PhotoDataset
from swa_cli.data.sources import Source, changes, load
from swa_cli.data.transforms import EvaluationView, TrainingView, Views

VIEW = EvaluationView((8, 8), 9)


def source(name: str, root: Path, **options: Any) -> Source:
    views = Views(TrainingView(VIEW), VIEW)
    return load(name, **{"root": root, "val": 0, "workers": 0, "views": views, "cache": "none", **options})


@pytest.mark.parametrize("kind", WRITTEN)
def test_the_same_photos_by_each_source(tmp_path: Path, kind: str) -> None:
    """Classes, pixels of every split, constants and what is told against the folders of the same photos."""
    write, name, args = WRITTEN[kind]
    in_folders(tmp_path / "folders")
    write(tmp_path / "other")
    expected = source("image_folder", tmp_path / "folders", cache="ram")
    found = source(name, tmp_path / "other", args=args)
    held = source(name, tmp_path / "other", args=args, cache="ram")
    assert found.class_names == CLASSES
    assert (found.mean, found.std, found.num_classes) == (expected.mean, expected.std, 2)
    assert found.contents[:2] == expected.contents[:2]
    for split in SPLITS:
        ours, theirs, memory = (getattr(each, split) for each in (found, expected, held))
        assert isinstance(ours.dataset, PhotoDataset)
        assert torch.equal(ours.labels, theirs.labels)
        copied = pickle.loads(pickle.dumps(ours.dataset))
        images = torch.stack([copied.read(row, VIEW)[0] for row in range(len(ours))])
        assert torch.equal(images, theirs.images)
        assert torch.equal(memory.images, theirs.images)
        assert torch.equal(memory.labels, theirs.labels)


@pytest.mark.parametrize("kind", WRITTEN)
def test_a_copy_is_the_same_data(tmp_path: Path, kind: str) -> None:
    """Fingerprints of two copies in other folders, and after the label of a photo was changed."""
    write, name, args = WRITTEN[kind]
    for copy in ("one", "two"):
        write(tmp_path / copy)
    one, two = (source(name, tmp_path / copy, args=args).data() for copy in ("one", "two"))
    assert one == two
    assert all(found.sha256 for found in one.values())
    if name == "csv":
        path = tmp_path / "two" / args["file"]
        path.write_text(
            path.read_text().replace("dog/04.jpg,dog", "dog/04.jpg,cat").replace("04.jpg\tdog", "04.jpg\tcat")
        )
    else:
        args = {**args, "classes": ["dog", "cat"]}
    before = {split: {"samples": found.samples, "sha256": found.sha256} for split, found in one.items()}
    changed = changes(before, source(name, tmp_path / "two", args=args).data(), name=name)
    number = {"csv": 1, "hf": 3, "webdataset": 3 * (kind == "json")}[name]  # labels that are numbers stay as they were
    assert len(changed) == number


@pytest.mark.parametrize("kind", WRITTEN)
def test_photos_of_each_source_are_packed(tmp_path: Path, kind: str) -> None:
    """Packed and read again, every split against the photos as they are held in memory."""
    write, name, args = WRITTEN[kind]
    root = tmp_path / "photos"
    write(root)
    expected = source(name, root, args=args, cache="ram")
    source(name, root, args=args, cache="packed", packing="write")
    found = source(name, root, args=args, cache="packed")
    assert found.packed.keys() == SPLITS.keys()
    for split in SPLITS:
        ours, held = getattr(found, split), getattr(expected, split)
        assert ours.dataset.file is not None
        images = torch.stack([ours.dataset.read(row, VIEW)[0] for row in range(len(ours))])
        assert torch.equal(images, held.images)
        assert torch.equal(ours.labels, held.labels)
