"""Published sets of images with masks, through torchvision: their files, classes and constants."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from swa_cli.data.masks import IGNORED, MaskDataset
from swa_cli.data.published import Published, torchvision_dataset
from swa_cli.errors import UserError

# Of ImageNet: photographs too, and what pretrained networks expect.
_PHOTOGRAPHS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_VOC_CLASSES = (
    "background,aeroplane,bicycle,bird,boat,bottle,bus,car,cat,chair,cow,diningtable,dog,horse,motorbike,person,"
    "pottedplant,sheep,sofa,train,tvmonitor"
)

PUBLISHED_MASKS = {
    "oxford_iiit_pet": Published(
        "OxfordIIITPet",
        ("oxford-iiit-pet/images/", "oxford-iiit-pet/annotations/"),
        *_PHOTOGRAPHS,
        ("background", "pet"),
    ),
    "voc": Published("VOCSegmentation", ("VOCdevkit/VOC2012/",), *_PHOTOGRAPHS, tuple(_VOC_CLASSES.split(","))),
}
# The trimaps say 1 pet, 2 background and 3 "not classified", a border of some pixels: nobody knows its class.
_TRIMAP = (IGNORED, 1, 0, IGNORED)


def read_published_masks(name: str, *, root: Path, download: bool, resize: tuple[int, int]) -> dict[str, MaskDataset]:
    """The splits "train" and "test" of a set, after downloading it if allowed and needed.

    VOC's test masks are not public: its validation set is what the literature scores, and is "test" here.

    Args:
        name: A key of `PUBLISHED_MASKS`.
        root: Where the files are looked for, and downloaded to.
        download: Whether they may be downloaded.
        resize: (H, W) that images and masks are brought to; the pictures are of many sizes.

    Raises:
        UserError: The files are missing or damaged.
    """
    num_classes = len(PUBLISHED_MASKS[name].class_names)
    splits = {}
    meaning: tuple[int, ...] = ()
    for split in ("train", "test"):
        if name == "voc":
            found = _dataset(name, root=root, download=download, image_set="train" if split == "train" else "val")
            images, masks = found.images, found.masks
        else:
            options = {"split": "trainval" if split == "train" else "test", "target_types": "segmentation"}
            found = _dataset(name, root=root, download=download, **options)
            images, masks, meaning = found._images, found._segs, _TRIMAP
        splits[split] = MaskDataset(
            tuple(map(str, images)), tuple(map(str, masks)), num_classes, resize, resize, meaning
        )
    return splits


def _dataset(name: str, *, root: Path, download: bool, **options: Any) -> Any:
    """The torchvision dataset; a download, which unpacks VOC again each time, only where files are missing."""
    known = PUBLISHED_MASKS[name]
    if download:
        with contextlib.suppress(UserError):
            return torchvision_dataset(name, known, root=root, download=False, **options)
    return torchvision_dataset(name, known, root=root, download=download, **options)
