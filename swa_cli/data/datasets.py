"""The table of datasets: one entry declares all that is known about a dataset, and how its splits are read.

To add a dataset, add an entry to `DATASETS`; a field that is left out is an error at import. Loading, arguments with
their defaults, sizes known without files, `swa doctor` and the list in docs/data.md derive from this table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from swa_cli.data import arguments, folders, hugging_face, masks, shards, tables, user_dataset
from swa_cli.data.paths import Paths
from swa_cli.data.shard_index import IMAGES, Members
from swa_cli.data.splits import Found, Progress, Target, available_memory
from swa_cli.data.synthetic import CLASSES, NUM_DIGITS, NUM_TEST_DIGITS, draw_scenes, read_digits, read_rotated_digits
from swa_cli.data.torchvision_sets import IDX_FILES, Files, read_arrays, unpacked_dataset
from swa_cli.data.transforms import IGNORED, EvaluationView
from swa_cli.errors import UserError, did_you_mean

USER_DATASET = "package.module:factory"  # the entry for every dataset in a user's own code
HUB_DATASET = "hf:NAME"  # the entry for every dataset of the hub of Hugging Face
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of photos, as most networks expect them


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a reader gets."""

    name: str
    dataset: Dataset
    args: Mapping[str, Any]  # all arguments that the entry declares, checked
    root: Path
    download: bool  # whether missing files may be downloaded
    skip_broken: bool  # whether files that cannot be read, or are missing, are left out later
    classes: Sequence[str] | None  # of weights that are only evaluated: training samples may be missing then
    view: EvaluationView  # of each image, where nothing is drawn
    keep_in: Path | None  # the folder where an index of many files is kept for the next time
    progress: Progress | None


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """An entry of the table."""

    name: str  # `dataset.name`
    target: Target | None  # what a label is; None: the reader tells (for photos in tables class or multilabel)
    class_names: tuple[str, ...] | None  # names of the classes or output numbers; None: the reader tells
    mean: tuple[float, ...] | None  # per channel, of pixels scaled to [0, 1]; None: measured on training samples
    std: tuple[float, ...] | None
    image_size: tuple[int, int] | None  # that the images are resized to without dataset.image_size; None: as they are
    num_train: int | None  # training samples before dataset.val is split off; None: unknown until they are read
    has_val: bool  # whether it may have a validation split; if not, dataset.val is always split off
    args: Mapping[str, arguments.Argument] | None  # keys of `dataset.args`; None: they go to user code unchecked
    files: Files | None  # what is looked for under dataset.root; None: no files, or whatever lies there
    read: Callable[[Request], Found]


def find(name: str) -> Dataset:
    """Return the entry of a dataset.

    Raises:
        UserError: There is no dataset of this name.
    """
    is_on_hub = name.startswith(hugging_face.PREFIX)
    entry = DATASETS.get(HUB_DATASET if is_on_hub else USER_DATASET if is_user_code(name) else name)
    if entry is None:
        hint = f"{did_you_mean(name, DATASETS)}There are {', '.join(DATASETS)}"
        raise UserError(f"dataset.name: unknown dataset {name!r}", hint=hint)
    return entry


def is_user_code(name: str) -> bool:
    """Return whether `dataset.name` is `package.module:factory`."""
    return ":" in name and not name.startswith(hugging_face.PREFIX)


# --- readers


def _read_shapes(request: Request) -> Found:
    args = dict(request.args)
    counts = {split: args.pop(split) for split in ("train", "test")}
    number, size = sum(counts.values()), args["size"]
    num_bytes = number * size**2 * (args["channels"] + 1)
    if num_bytes > available_memory():
        raise UserError(
            f"dataset.args: {number:,} scenes of {size}x{size} pixels take {num_bytes / 2**30:.1f} GiB, "
            f"{available_memory() / 2**30:.1f} GiB are available",
            hint="make train, test or size smaller",
        )
    splits = {
        split: draw_scenes(split, count=count, progress=request.progress, **args) for split, count in counts.items()
    }
    return Found(splits=splits, class_names=CLASSES[args["classes"]])


def _read_arrays(request: Request) -> Found:
    files = request.dataset.files
    assert files is not None
    splits, names = read_arrays(request.name, files, root=request.root, download=request.download)
    return Found(splits=splits, class_names=names)


def _read_photos_with_masks(
    request: Request, *, image_paths: str, mask_paths: str, class_of: Sequence[int], notes: tuple[str, ...] = ()
) -> Found:
    """Read images with masks through torchvision.

    Args:
        request: For a dataset with `files` and an image size.
        image_paths: The attribute of torchvision's class that lists the image files.
        mask_paths: The attribute that lists the mask files.
        class_of: The class of each value in the masks.
        notes: On the dataset.
    """
    files, size = request.dataset.files, request.view.size
    assert files is not None
    assert size is not None, "the entry has one"
    splits = {}
    for split in files.options:
        found = unpacked_dataset(request.name, files, split=split, root=request.root, download=request.download)
        images, labels = (Paths(map(str, getattr(found, attribute))) for attribute in (image_paths, mask_paths))
        splits[split] = masks.MaskDataset(images, labels, tuple(class_of), size)
    return Found(splits=splits, notes=notes)


def _require_one_form(request: Request) -> None:
    """Check that the labels are given in one form: a column of classes, with a delimiter, or a column per class.

    Raises:
        UserError: They are given in two.
    """
    args = request.args
    default = request.dataset.args["label"].default if request.dataset.args else None
    beside = [key for key in ("label_delimiter", "classes") if args[key]]
    beside += ["label"] if args["label"] != default else []
    if args["labels"] and beside:
        raise UserError(
            f"dataset.args.{beside[0]}: is for one column of labels, and dataset.args.labels names a column per class",
            hint=f"leave {' and '.join(beside)} out, or labels",
        )


def _read_table(request: Request) -> Found:
    args = request.args
    _require_one_form(request)
    return tables.find(
        request.root / args["file"],
        root=request.root,
        columns=tables.Columns(
            path=args["path"],
            label=args["label"],
            split=args["split"],
            labels=args["labels"] or (),
            delimiter=args["label_delimiter"],
        ),
        delimiter=args["delimiter"],
        view=request.view,
        classes=args["classes"],
        trained=request.classes,
        allow_missing=request.skip_broken,
        progress=request.progress,
    )


def _read_hugging_face(request: Request) -> Found:
    args = dict(request.args)
    _require_one_form(request)
    return hugging_face.find(
        request.name,
        root=request.root,
        revision=args.pop("revision", None),
        download=request.download,
        view=request.view,
        trained=request.classes,
        progress=request.progress,
        **args,
    )


def _read_shards(request: Request) -> Found:
    args = request.args
    patterns = {split: args[split] for split in ("train", "val", "test") if args[split]}
    if not patterns or ("train" not in patterns and request.classes is None):
        raise UserError(
            "dataset.args.train: is missing",
            hint="name files below dataset.root, such as 'dataset.args.train=train-*.tar'",
        )
    return shards.find(
        request.root,
        patterns=patterns,
        members=Members([name.lower() for name in args["image"] or IMAGES], args["label"].lower(), args["field"]),
        view=request.view,
        classes=args["classes"],
        trained=request.classes,
        progress=request.progress,
    )


def _read_mask_folder(request: Request) -> Found:
    names = request.args["classes"]
    return masks.find(
        request.root,
        class_names=names,
        view=request.view,
        needs_training=request.classes is None,
        keep_in=request.keep_in,
        progress=request.progress,
    )


def _read_class_folders(request: Request) -> Found:
    return folders.find(
        request.root,
        view=request.view,
        classes=request.classes,
        keep_in=request.keep_in,
        progress=request.progress,
    )


# --- the table

_DIGITS = tuple("0123456789")
_CLOTHES = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
_KUZUSHIJI = "o,ki,su,tsu,na,ha,ma,ya,re,wo"
_VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_NUM_SCENES = 2_000  # for training
# The trimaps say 1 pet, 2 background and 3 "not classified": a border of some pixels of unknown class.
_TRIMAP = (IGNORED, 1, 0, IGNORED)
_BY_FLAG: dict[str, Any] = {"train": {"train": True}, "test": {"train": False}}
_BY_NAME: dict[str, Any] = {"train": {"split": "train"}, "test": {"split": "test"}}
_CLASSES = arguments.several_texts(None, "2 or more different class names, in the order of the outputs", least=2)
_SHARDS = arguments.several_texts(None, "file names below dataset.root, such as train-{000..099}.tar or train-*.tar")
_SEVERAL_LABELS = {
    "label_delimiter": arguments.text(None, "the text between several labels, such as '|' or ' '"),
    "labels": arguments.several_texts(None, "the names of the columns of 0 and 1, a class each"),
}
_FROM_HUGGING_FACE = {
    "config": arguments.text(None, "the name of a configuration"),
    "image": arguments.text(None, "the name of the column of the images"),
    "label": arguments.text(None, "the name of the column of the classes"),
    **_SEVERAL_LABELS,
    "classes": _CLASSES,
}
# What several sets have in common; all other fields are left to the entries.
_without_constants = partial(Dataset, mean=None, std=None, image_size=None, files=None)
_photos = partial(_without_constants, target="class", class_names=None, num_train=None, has_val=True)
_tables = partial(_photos, target=None)
_digits = partial(
    _without_constants,
    num_train=NUM_DIGITS - NUM_TEST_DIGITS,
    has_val=False,
    args={"test": arguments.whole(NUM_TEST_DIGITS, 1, NUM_DIGITS - 1)},
)
_small_images = partial(Dataset, target="class", image_size=None, has_val=False, args={}, read=_read_arrays)
_photos_with_masks = partial(
    Dataset,
    target="mask",
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    image_size=(128, 128),  # the photos are of many sizes
    num_train=None,
    has_val=False,
    args={},
)

_ENTRIES = (
    _digits(
        name="digits",
        target="class",
        class_names=_DIGITS,
        read=lambda request: Found(splits=read_digits(num_test=request.args["test"])),
    ),
    _digits(
        name="rotated_digits",
        target="value",
        class_names=("tens of degrees",),
        read=lambda request: Found(splits=read_rotated_digits(num_test=request.args["test"])),
    ),
    _small_images(
        name="mnist",
        class_names=_DIGITS,
        mean=(0.1307,),
        std=(0.3081,),
        num_train=60_000,
        files=Files(torchvision="MNIST", paths=IDX_FILES, options=_BY_FLAG),
    ),
    _small_images(
        name="fashion_mnist",
        class_names=tuple(_CLOTHES.split(",")),
        mean=(0.2860,),
        std=(0.3530,),
        num_train=60_000,
        files=Files(
            torchvision="FashionMNIST",
            paths=IDX_FILES,
            options=_BY_FLAG,
            package="dataset-fashion-mnist",
            package_root="/usr/share/datasets/fashion-mnist",
        ),
    ),
    _small_images(
        name="kmnist",
        class_names=tuple(_KUZUSHIJI.split(",")),
        mean=(0.1918,),
        std=(0.3483,),
        num_train=60_000,
        files=Files(torchvision="KMNIST", paths=IDX_FILES, options=_BY_FLAG),
    ),
    _small_images(
        name="cifar10",
        class_names=None,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        num_train=50_000,
        files=Files(torchvision="CIFAR10", paths=("cifar-10-batches-py/",), options=_BY_FLAG),
    ),
    _small_images(
        name="cifar100",
        class_names=None,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        num_train=50_000,
        files=Files(torchvision="CIFAR100", paths=("cifar-100-python/",), options=_BY_FLAG),
    ),
    _small_images(
        name="svhn",
        class_names=_DIGITS,
        mean=(0.4377, 0.4438, 0.4728),
        std=(0.1980, 0.2010, 0.1970),
        num_train=73_257,
        files=Files(torchvision="SVHN", paths=("train_32x32.mat", "test_32x32.mat"), options=_BY_NAME),
    ),
    _small_images(
        name="stl10",
        class_names=None,
        mean=(0.4467, 0.4398, 0.4066),
        std=(0.2603, 0.2566, 0.2713),
        num_train=5_000,
        files=Files(torchvision="STL10", paths=("stl10_binary/",), options=_BY_NAME),
    ),
    _photos(
        name="image_folder",
        args={},
        read=_read_class_folders,
    ),
    _tables(
        name="csv",
        args={
            "file": arguments.text(arguments.REQUIRED, "the name of a file below dataset.root, such as labels.csv"),
            "path": arguments.text("path", "the name of the column of the paths"),
            "label": arguments.text("label", "the name of the column of the classes"),
            **_SEVERAL_LABELS,
            "split": arguments.text("split", "the name of the column of train, val and test"),
            "delimiter": arguments.delimiter(),
            "classes": _CLASSES,
        },
        read=_read_table,
    ),
    _tables(name="hf", args=_FROM_HUGGING_FACE, read=_read_hugging_face),
    _tables(
        name=HUB_DATASET,
        args={**_FROM_HUGGING_FACE, "revision": arguments.text(None, "a branch, tag or commit")},
        read=_read_hugging_face,
    ),
    _photos(
        name="webdataset",
        args={
            "train": _SHARDS,
            "val": _SHARDS,
            "test": _SHARDS,
            "image": arguments.several_texts(None, "extensions of images, such as jpg or [jpg, png]"),
            "label": arguments.text("cls", "the extension of the labels, such as cls, txt or json"),
            "field": arguments.text(None, "the field of a JSON label that is the class"),
            "classes": _CLASSES,
        },
        read=_read_shards,
    ),
    _without_constants(
        name="shapes",
        target="mask",
        class_names=None,
        num_train=_NUM_SCENES,
        has_val=False,
        args={
            "size": arguments.whole(64, 16, 1024),  # the digits of a smaller scene would be dots
            "train": arguments.whole(_NUM_SCENES, 1, 10**8),
            "test": arguments.whole(500, 1, 10**8),
            "classes": arguments.choice(2, CLASSES),
            "channels": arguments.choice(3, (1, 3)),
            "seed": arguments.whole(0, 0, 2**63 - 1),  # the scenes do not depend on the seed of the recipe
        },
        read=_read_shapes,
    ),
    _photos_with_masks(
        name="oxford_iiit_pet",
        class_names=("background", "pet"),
        files=Files(
            torchvision="OxfordIIITPet",
            paths=("oxford-iiit-pet/images/", "oxford-iiit-pet/annotations/"),
            options={
                "train": {"split": "trainval", "target_types": "segmentation"},
                "test": {"split": "test", "target_types": "segmentation"},
            },
        ),
        read=partial(_read_photos_with_masks, image_paths="_images", mask_paths="_segs", class_of=_TRIMAP),
    ),
    _photos_with_masks(
        name="voc",
        class_names=_VOC_CLASSES,
        files=Files(
            torchvision="VOCSegmentation",
            paths=("VOCdevkit/VOC2012/",),
            options={"train": {"image_set": "train"}, "test": {"image_set": "val"}},
        ),
        read=partial(
            _read_photos_with_masks,
            image_paths="images",
            mask_paths="masks",
            class_of=range(len(_VOC_CLASSES)),
            notes=("voc's test masks are not public: its validation set is the test split here",),
        ),
    ),
    _without_constants(
        name="mask_folder",
        target="mask",
        class_names=None,
        num_train=None,
        has_val=True,
        args={"classes": arguments.mask_classes()},
        read=_read_mask_folder,
    ),
    _without_constants(
        name=USER_DATASET,
        target=None,
        class_names=None,
        num_train=None,
        has_val=True,
        args=None,
        read=lambda request: user_dataset.read(request.name, root=str(request.root), args=request.args),
    ),
)
DATASETS = {dataset.name: dataset for dataset in _ENTRIES}
assert len(DATASETS) == len(_ENTRIES), "each dataset has one entry"
