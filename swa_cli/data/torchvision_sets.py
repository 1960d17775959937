"""Published image sets: the MNIST family read from its idx files, all others through torchvision's classes.

Which sets there are, with their files and constants, is declared in `datasets`.
Shapes: N images, C channels, H W pixels.
"""

from __future__ import annotations

import contextlib
import gzip
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swa_cli.data.splits import Arrays
from swa_cli.errors import UserError

IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@dataclass(frozen=True, kw_only=True)
class Files:
    """The files of a published set."""

    torchvision: str  # name of the class in `torchvision.datasets`
    paths: tuple[str, ...]  # what is looked for under the root
    options: Mapping[str, Mapping[str, Any]]  # arguments of the class for "train" and "test"
    package: str = ""  # Debian's package of the files, if there is one
    package_root: str = ""  # where that package puts them

    @property
    def is_idx(self) -> bool:
        """Whether the set is of the MNIST family: four idx files, read here."""
        return self.paths == IDX_FILES

    def folders(self, root: Path) -> list[Path]:
        """Return where the files may lie."""
        return [root, root / self.torchvision / "raw"] if self.is_idx else [root]


def read_arrays(name: str, files: Files, *, root: Path, download: bool) -> tuple[dict[str, Arrays], tuple[str, ...]]:
    """Read a set of small images, after downloading it if allowed and needed.

    Returns:
        The arrays of "train" and "test", and the class names that torchvision knows (none for idx files).

    Raises:
        UserError: The files are missing or damaged.
    """
    if files.is_idx:
        return _read_idx_set(name, files, root=root, download=download), ()
    sets = {
        split: _torchvision_dataset(name, files, split=split, root=root, download=download) for split in files.options
    }
    return {split: _arrays(found) for split, found in sets.items()}, tuple(getattr(sets["train"], "classes", ()))


def unpacked_dataset(name: str, files: Files, *, split: str, root: Path, download: bool) -> Any:
    """Construct the torchvision dataset; download, which unpacks VOC again each time, only if files are missing.

    Raises:
        UserError: The files, or a package that reads them, are missing, or the files are damaged.
    """
    if download:
        with contextlib.suppress(UserError):
            return _torchvision_dataset(name, files, split=split, root=root, download=False)
    return _torchvision_dataset(name, files, split=split, root=root, download=download)


def _torchvision_dataset(name: str, files: Files, *, split: str, root: Path, download: bool) -> Any:
    """Construct the torchvision dataset; what it prints goes to stderr, as stdout is for the answer."""
    from torchvision import datasets  # takes a second, and most sets do without it

    try:
        with contextlib.redirect_stdout(sys.stderr):
            return getattr(datasets, files.torchvision)(str(root), download=download, **files.options[split])
    except ImportError as error:  # SVHN's files are MATLAB's, read by scipy
        raise UserError(f"{name} needs a package that is not installed: {error}", hint="pip install scipy") from error
    except (OSError, RuntimeError, ValueError) as error:  # URLError is an OSError; a truncated list a ValueError
        reason = f"could not be downloaded ({error})" if download else "are missing or damaged"
        raise _missing(name, files, root=root, reason=reason, download=download) from error


def _arrays(dataset: Any) -> Arrays:
    """Convert `data`, (N, H, W, 3) in the CIFARs and (N, 3, H, W) in the others, and `targets` or `labels`."""
    images = torch.from_numpy(np.asarray(dataset.data))
    if images.shape[-1] == 3:
        images = images.permute(0, 3, 1, 2)
    labels = dataset.targets if hasattr(dataset, "targets") else dataset.labels
    images = images.contiguous(memory_format=torch.channels_last)
    return Arrays(images, torch.as_tensor(np.asarray(labels)).long())


def _missing(name: str, files: Files, *, root: Path, reason: str, download: bool) -> UserError:
    cures = [] if download else ["download it with dataset.download=true"]
    cures += ["copy the files there", "set dataset.root to their folder"]
    if files.package:
        cures.append(f"apt install {files.package} and set dataset.root={files.package_root}")
    gz = " (each plain or .gz)" if files.is_idx else ""
    folders = " and ".join(map(str, files.folders(root)))
    return UserError(
        f"the files of {name} {reason}: looked for {', '.join(files.paths)}{gz} in {folders}",
        hint=", or ".join(cures),
    )


# --- idx files


def _read_idx_set(name: str, files: Files, *, root: Path, download: bool) -> dict[str, Arrays]:
    folder = _idx_folder(files, root=root)
    if folder is None:
        if not download:
            raise _missing(name, files, root=root, reason="are missing", download=False)
        _torchvision_dataset(name, files, split="train", root=root, download=True)
        folder = _idx_folder(files, root=root)
        assert folder is not None, "torchvision downloads to root/<class>/raw"
    paths = [_idx_path(folder, file) for file in IDX_FILES]
    return {"train": _read_pair(*paths[:2]), "test": _read_pair(*paths[2:])}


def _idx_folder(files: Files, *, root: Path) -> Path | None:
    """Return the first folder that has all four files."""
    for folder in files.folders(root):
        if all(_idx_path(folder, file).is_file() for file in IDX_FILES):
            return folder
    return None


def _idx_path(folder: Path, file: str) -> Path:
    plain = folder / file
    return plain if plain.is_file() else folder / f"{file}.gz"


def _read_pair(images_path: Path, labels_path: Path) -> Arrays:
    images, labels = _read_idx(images_path), _read_idx(labels_path)
    if images.dim() != 3 or labels.dim() != 1 or len(images) != len(labels):
        shapes = f"images of shape {tuple(images.shape)}, labels of shape {tuple(labels.shape)}"
        raise _damaged(images_path, f"it does not match {labels_path}: {shapes}")
    return Arrays(images[:, None], labels.long())


def _read_idx(path: Path) -> Tensor:
    """Read an idx file of bytes: 0, 0, type 8, number of dimensions, each as big-endian uint32, the data."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, str(error)) from error
    if content[:3] != b"\0\0\x08" or len(content) < 4 + 4 * content[3]:
        raise _damaged(path, "it has no header of an idx file of bytes")
    offset = 4 + 4 * content[3]
    shape = np.frombuffer(content[4:offset], dtype=">u4").astype(int).tolist()
    if len(content) - offset != np.prod(shape):
        raise _damaged(
            path, f"it has {len(content) - offset} bytes of data, its header says {'x'.join(map(str, shape))}"
        )
    return torch.from_numpy(np.frombuffer(content, dtype=np.uint8, offset=offset).reshape(shape).copy())


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"{path} is damaged: {reason}", hint="remove it and download it again")
