"""Write the CIFAR-10 folder of the study: links to images of the training set, of which no image is in two splits.

    python docs/study/cifar_subset.py CIFAR_TRAIN_FOLDER OUT

CIFAR_TRAIN_FOLDER has one folder of images per class. OUT gets train/ (10,000 images), val/ (5,000) and test/ (10,000),
with equal numbers of each class.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

SPLITS = {"train": 10_000, "val": 5_000, "test": 10_000}


def write(source: Path, out: Path) -> None:
    """Link the images of all splits; the choice is always the same.

    Raises:
        SystemExit: `source` has no class folders with enough images, or `out` exists.
    """
    classes = sorted(path for path in source.iterdir() if path.is_dir())
    if not classes:
        raise SystemExit(f"{source} has no class folders: unpack the images of CIFAR-10 into one folder per class")
    if out.exists():
        raise SystemExit(f"{out} exists: choose another folder")
    rng = random.Random(0)
    for folder in classes:
        counts = {split: total // len(classes) for split, total in SPLITS.items()}
        files = sorted(path for path in folder.iterdir() if path.is_file())
        if len(files) < sum(counts.values()):
            raise SystemExit(f"{folder} has {len(files)} images, and {sum(counts.values())} are needed")
        chosen = iter(rng.sample(files, sum(counts.values())))
        for split, count in counts.items():
            target = out / split / folder.name
            target.mkdir(parents=True)
            for _ in range(count):
                path = next(chosen)
                (target / path.name).symlink_to(path.resolve())


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
