"""The same photos written as folders, tables, shards and files of Hugging Face."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SPLITS = {"train": 6, "val": 2, "test": 4}
CLASSES = ("cat", "dog")


def encoded(number: int, kind: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((20 + number, 30 - number), Image.Resampling.BICUBIC).save(file, kind)
    return file.getvalue()


def photos() -> Iterable[tuple[str, str, str, bytes]]:
    """Split, class, name and content of each photo; sorted by class within a split, as folders are."""
    number = 0
    for split, count in SPLITS.items():
        for name in CLASSES:
            for _ in range(count // 2):
                number += 1
                yield split, name, f"{number:02}", encoded(number)


def in_folders(root: Path) -> None:
    root.mkdir(exist_ok=True)
    for split, label, name, content in photos():
        path = root / split / label / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def in_table(root: Path, *, file: str = "labels.csv", mark: str = ",") -> Path:
    in_folders(root)
    rows = [["path", "label", "split"]]
    rows += [[f"{split}/{label}/{name}.jpg", label, split] for split, label, name, _ in photos()]
    (root / file).write_text("".join(f"{mark.join(row)}\n" for row in rows))
    return root / file


def in_parquet(root: Path) -> None:
    import datasets  # takes seconds

    root.mkdir(exist_ok=True)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    for split, hub_name in (("train", "train"), ("val", "validation"), ("test", "test")):
        rows = [row for row in photos() if row[0] == split]
        columns = {
            "image": [{"bytes": content, "path": f"{name}.jpg"} for _, _, name, content in rows],
            "label": [label for _, label, _, _ in rows],
        }
        table = datasets.Dataset.from_dict(columns, features=features)
        table.to_parquet(str(root / f"{hub_name}-00000-of-00001.parquet"))


def in_shards(
    root: Path, *, label: Callable[[str], dict[str, Any]] = lambda name: {"cls": CLASSES.index(name)}
) -> None:
    import webdataset

    root.mkdir(exist_ok=True)
    for split in SPLITS:
        pattern = str(root / f"{split}-%03d.tar")
        with webdataset.ShardWriter(pattern, maxcount=3, verbose=0) as writer:
            for part, name, key, content in photos():
                if part == split:
                    writer.write({"__key__": f"{name}/{key}", "jpg": content, **label(name)})


SHARDS = {"train": "train-{000..001}.tar", "val": "val-*.tar", "test": ["test-000.tar", "test-001.tar"]}
WRITTEN: dict[str, tuple[Callable[[Path], Any], str, dict[str, Any]]] = {  # how, dataset.name, dataset.args
    "csv": (in_table, "csv", {"file": "labels.csv"}),
    "tsv": (lambda root: in_table(root, file="labels.tsv", mark="\t"), "csv", {"file": "labels.tsv"}),
    "parquet": (in_parquet, "hf", {}),
    "shards": (in_shards, "webdataset", {**SHARDS, "classes": list(CLASSES)}),
    "json": (
        lambda root: in_shards(root, label=lambda name: {"json": {"kind": name}}),
        "webdataset",
        {**SHARDS, "label": "json", "field": "kind"},
    ),
}
