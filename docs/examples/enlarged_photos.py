"""Write a small folder of photos of many sizes: CIFAR-10 images, enlarged.

    python docs/examples/enlarged_photos.py CIFAR_TRAIN_FOLDER OUT [--seed N]

CIFAR_TRAIN_FOLDER has one folder of images per class. OUT gets train/ (2,000 images), val/ (500) and test/ (1,000),
with equal numbers of each class and no image twice. The shorter side of a photo has 80 to 320 pixels (log-uniform), and
its ratio of width to height is one of RATIOS; the filter is bicubic, the JPEG quality 90.
"""

from __future__ import annotations

import argparse
import math
import random
from pathlib import Path

from PIL import Image

SPLITS = {"train": 2_000, "val": 500, "test": 1_000}
SHORTER_SIDE = (80, 320)  # pixels
RATIOS = (1.0, 4 / 3, 3 / 4, 3 / 2, 2 / 3, 16 / 9)


def write(source: Path, out: Path, *, seed: int) -> None:
    """Write all splits; the same arguments give the same files.

    Raises:
        SystemExit: `source` has no class folders with enough images, or `out` exists.
    """
    classes = sorted(path for path in source.iterdir() if path.is_dir())
    if not classes:
        raise SystemExit(f"{source} has no class folders: unpack the images of CIFAR-10 into one folder per class")
    if out.exists():
        raise SystemExit(f"{out} exists: choose another folder")
    rng = random.Random(seed)
    for label, folder in enumerate(classes, start=1):
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
                with Image.open(path) as image:
                    large = image.convert("RGB").resize(_size(rng), Image.Resampling.BICUBIC)
                large.save(target / f"{path.stem}.jpg", quality=90)
        print(f"{label} of {len(classes)} classes written", flush=True)


def _size(rng: random.Random) -> tuple[int, int]:
    """Width and height of one photo."""
    low, high = map(math.log, SHORTER_SIDE)
    shorter, ratio = math.exp(rng.uniform(low, high)), rng.choice(RATIOS)
    return round(shorter * max(ratio, 1)), round(shorter * max(1 / ratio, 1))


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Write photos of many sizes, enlarged from CIFAR-10.")
    parser.add_argument("source", type=Path, help="folder with one folder of CIFAR-10 images per class")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of images and sizes")
    options = parser.parse_args()
    write(options.source, options.out, seed=options.seed)


if __name__ == "__main__":
    main()
