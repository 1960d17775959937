"""Published image sets as arrays: their files, classes and constants; read here or through torchvision.

The digits lie in this package. The MNIST family is four idx files, read from wherever they lie; the others
are read by torchvision's classes. `PUBLISHED` is the one table of what is known about each.
Shapes: N images, C channels, H W pixels.

Published sets of images with masks, through torchvision: their files, classes and constants.
"""

from __future__ import annotations

import contextlib
import gzip
import sys
import zlib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swa_cli.data.masks import IGNORED, MaskDataset
from swa_cli.errors import UserError

Arrays = tuple[Tensor, Tensor]  # images (N, C, H, W) uint8, labels (N,) int64


@dataclass(frozen=True)
class Published:
    """What is known about a set; mean and std are of training pixels scaled to [0, 1], per channel."""

    torchvision: str  # name of the class in torchvision.datasets
    files: tuple[str, ...]  # what is looked for
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] = ()  # empty: torchvision's class knows
    package: str = ""  # Debian's package, and where it puts the files
    package_root: str = ""

    @property
    def is_idx(self) -> bool:
        """Whether it is of the MNIST family: four idx files, read here."""
        return self.files == _IDX_FILES


DIGITS = tuple("0123456789")
NUM_DIGITS, NUM_TEST_DIGITS = 1797, 360  # of the digits inside the package; why these: digits.md
_IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_CLOTHES = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"

PUBLISHED = {
    "mnist": Published("MNIST", _IDX_FILES, (0.1307,), (0.3081,), DIGITS),
    "fashion_mnist": Published(
        "FashionMNIST",
        _IDX_FILES,
        (0.2860,),
        (0.3530,),
        tuple(_CLOTHES.split(",")),
        package="dataset-fashion-mnist",
        package_root="/usr/share/datasets/fashion-mnist",
    ),
    "kmnist": Published(
        "KMNIST",
        _IDX_FILES,
        (0.1918,),
        (0.3483,),
        ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    ),
    "cifar10": Published("CIFAR10", ("cifar-10-batches-py/",), (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": Published("CIFAR100", ("cifar-100-python/",), (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn": Published(
        "SVHN",
        ("train_32x32.mat", "test_32x32.mat"),
        (0.4377, 0.4438, 0.4728),
        (0.1980, 0.2010, 0.1970),
        DIGITS,
    ),
    "stl10": Published("STL10", ("stl10_binary/",), (0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713)),
}

NUM_TRAIN = {  # training samples as published, validation ones among them: a run can be planned without the files
    "digits": NUM_DIGITS - NUM_TEST_DIGITS,
    "mnist": 60_000,
    "fashion_mnist": 60_000,
    "kmnist": 60_000,
    "cifar10": 50_000,
    "cifar100": 50_000,
    "svhn": 73_257,
    "stl10": 5_000,
}


def read_digits(*, num_test: int = NUM_TEST_DIGITS) -> tuple[Arrays, Arrays]:
    """The training and the test set of the digits in this package, grey values 0..16 spread over 0..255.

    Args:
        num_test: Images of the test set, the last ones of the file.
    """
    content = gzip.decompress(resources.files("swa_cli.data").joinpath("digits.gz").read_bytes())
    values = torch.frombuffer(bytearray(content), dtype=torch.uint8).long()
    images = (values[: NUM_DIGITS * 64] * 255 // 16).to(torch.uint8).view(NUM_DIGITS, 1, 8, 8)
    labels = values[NUM_DIGITS * 64 :]
    cut = NUM_DIGITS - num_test
    return (images[:cut], labels[:cut]), (images[cut:], labels[cut:])


def read_published(name: str, *, root: Path, download: bool) -> tuple[Arrays, Arrays, tuple[str, ...]]:
    """Read the training and the test set, after downloading them if allowed and needed.

    Args:
        name: A key of `PUBLISHED`.
        root: Where the files are looked for, and downloaded to.
        download: Whether they may be downloaded.

    Returns:
        Training arrays, test arrays, class names.

    Raises:
        UserError: The files are missing or damaged.
    """
    known = PUBLISHED[name]
    if not known.is_idx:
        return _through_torchvision(name, root=root, download=download)
    folder = _idx_folder(known, root=root)
    if folder is None:
        if not download:
            raise _missing(name, known, root=root, reason="are missing", download=False)
        torchvision_dataset(name, known, root=root, download=True, train=True)
        folder = _idx_folder(known, root=root)
        assert folder is not None, "torchvision downloads to root/<class>/raw"
    paths = [_idx_path(folder, file) for file in _IDX_FILES]
    return _read_pair(*paths[:2]), _read_pair(*paths[2:]), known.class_names


def _through_torchvision(name: str, *, root: Path, download: bool) -> tuple[Arrays, Arrays, tuple[str, ...]]:
    known = PUBLISHED[name]
    by_name = name in ("svhn", "stl10")
    train, test = (
        torchvision_dataset(
            name, known, root=root, download=download, **({"split": split} if by_name else {"train": split == "train"})
        )
        for split in ("train", "test")
    )
    return _arrays(train), _arrays(test), known.class_names or tuple(train.classes)


def torchvision_dataset(name: str, known: Published, *, root: Path, download: bool, **options: Any) -> Any:
    """The torchvision dataset; what it prints goes to stderr, as stdout is for the answer.

    Args:
        name: As a recipe says it.
        known: What is known about it.
        root: Where the files are looked for, and downloaded to.
        download: Whether they may be downloaded.
        options: Which part of it, in the words of its class.

    Raises:
        UserError: The files are missing or damaged, or a package that reads them is.
    """
    from torchvision import datasets  # takes a second, and most sets do without it

    try:
        with contextlib.redirect_stdout(sys.stderr):
            return getattr(datasets, known.torchvision)(str(root), download=download, **options)
    except ImportError as error:  # SVHN's files are MATLAB's, read by scipy
        raise UserError(f"{name} needs a package that is not installed: {error}", hint="pip install scipy") from error
    except (OSError, RuntimeError, ValueError) as error:  # URLError is an OSError; a list cut short a ValueError
        reason = f"could not be downloaded ({error})" if download else "are missing or damaged"
        raise _missing(name, known, root=root, reason=reason, download=download) from error


def _arrays(dataset: Any) -> Arrays:
    """`data` is (N, H, W, 3) in the CIFARs, (N, 3, H, W) in the others; labels are `targets` or `labels`."""
    images = torch.from_numpy(np.asarray(dataset.data))
    if images.shape[-1] == 3:
        images = images.permute(0, 3, 1, 2)
    labels = dataset.targets if hasattr(dataset, "targets") else dataset.labels
    return images.contiguous(memory_format=torch.channels_last), torch.as_tensor(np.asarray(labels)).long()


def _missing(name: str, known: Published, *, root: Path, reason: str, download: bool) -> UserError:
    folders = [str(folder) for folder in _folders(known, root=root)]
    cures = [] if download else ["download it with dataset.download=true"]
    cures += ["copy the files there", "set dataset.root to their folder"]
    if known.package:
        cures.append(f"apt install {known.package} and set dataset.root={known.package_root}")
    gz = " (each plain or .gz)" if known.is_idx else ""
    return UserError(
        f"the files of {name} {reason}: looked for {', '.join(known.files)}{gz} in {' and '.join(folders)}",
        hint=", or ".join(cures),
    )


def _folders(known: Published, *, root: Path) -> list[Path]:
    return [root, root / known.torchvision / "raw"] if known.is_idx else [root]


def _idx_folder(known: Published, *, root: Path) -> Path | None:
    """The first folder which holds all four files."""
    for folder in _folders(known, root=root):
        if all(_idx_path(folder, file).is_file() for file in _IDX_FILES):
            return folder
    return None


def _idx_path(folder: Path, file: str) -> Path:
    plain = folder / file
    return plain if plain.is_file() else folder / f"{file}.gz"


def _read_pair(images_path: Path, labels_path: Path) -> Arrays:
    images, labels = _read_idx(images_path), _read_idx(labels_path)
    if images.dim() != 3 or labels.dim() != 1 or len(images) != len(labels):
        shapes = f"images of shape {tuple(images.shape)}, labels of shape {tuple(labels.shape)}"
        raise _damaged(images_path, f"it does not fit to {labels_path}: {shapes}")
    return images[:, None], labels.long()


def _read_idx(path: Path) -> Tensor:
    """Read an idx file of bytes: 0, 0, type 8, number of dimensions, each as big-endian uint32, the data."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, str(error)) from error
    if content[:3] != b"\0\0\x08" or len(content) < 4 + 4 * content[3]:
        raise _damaged(path, "it does not begin as an idx file of bytes does")
    offset = 4 + 4 * content[3]
    shape = np.frombuffer(content[4:offset], dtype=">u4").astype(int).tolist()
    if len(content) - offset != np.prod(shape):
        raise _damaged(path, f"it holds {len(content) - offset} bytes where {'x'.join(map(str, shape))} are announced")
    return torch.from_numpy(np.frombuffer(content, dtype=np.uint8, offset=offset).reshape(shape).copy())


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"{path} is damaged: {reason}", hint="remove it and get it again")


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
