"""The index of WebDataset shards, read from the headers of tar files: where each photo lies, and its label.

The key of a sample is the path of its members up to the first dot in the file name, as webdataset has it; its members
stand next to each other.
Shapes: N photos.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from swa_cli.data.class_labels import LabelTexts
from swa_cli.data.image_file import SUFFIXES
from swa_cli.data.listing import CLUTTER, NAMED, LeftOut
from swa_cli.errors import UserError

IMAGES = tuple(suffix[1:] for suffix in SUFFIXES)
BLOCK = tarfile.BLOCKSIZE  # a member is a header of one block and its content
_META = re.compile(r"__[^.]*__(\.|$)")
_MAX_LABEL = 1 << 20  # bytes
_PART = 1 << 20  # bytes that are read at once
_PER_REPORT = 2048  # members between two reports of progress
_COMPRESSED = {  # first bytes -> the command that unpacks the file
    b"\x1f\x8b": "gunzip -k",
    b"BZh": "bunzip2 -k",
    b"\xfd7zXZ\x00": "unxz -k",
    b"\x28\xb5\x2f\xfd": "unzstd",
}


@dataclass(frozen=True)
class Members:
    """Which members of a sample are read."""

    images: Sequence[str]  # extensions, without the first dot
    label: str  # extension
    field: str | None  # of the JSON object that the label is; None: the label is the whole text

    def kind(self, extension: str) -> str | None:
        """Return `image`, `label`, or None for a member that is not read."""
        if extension == self.label:
            return "label"
        return "image" if extension in self.images else None


@dataclass
class _Sample:
    """The members of a key, as far as they have been read."""

    key: str
    image: tarfile.TarInfo | None = None
    label: str | None = None
    others: list[str] = field(default_factory=list)  # extensions
    links: list[str] = field(default_factory=list)  # names of members without a content of their own


class Index:
    """Where the photos of a split lie, and their labels."""

    def __init__(self, files: Sequence[str], members: Members) -> None:
        self.files, self.members = files, members
        self.labels = LabelTexts()
        self.sizes = array("q")
        self._shards, self._offsets, self._headers = array("i"), array("q"), array("i")
        self._others: Counter[str] = Counter()

    @property
    def left_out(self) -> LeftOut:
        """The members that are not read."""
        return LeftOut(tuple(self._others.most_common()))

    def places(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return the file, the offset, the bytes of the headers before it, and the size of each photo (N,)."""
        return (
            np.frombuffer(self._shards, np.int32),
            np.frombuffer(self._offsets, np.int64),
            np.frombuffer(self._headers, np.int32),
            np.frombuffer(self.sizes, np.int64),
        )

    def read(self, number: int) -> Iterator[int]:
        """Read the headers of a shard; yield now and then how many bytes are done."""
        path = self.files[number]
        sample: _Sample | None = None
        for count, (tar, member) in enumerate(_members(path)):
            folder, _, name = member.name.rpartition("/")
            base, _, extension = name.partition(".")
            key = f"{folder}/{base}" if folder else base
            if sample is None or sample.key != key:
                self._finish(sample, number)
                sample = _Sample(key)
            self._take(sample, member, extension.lower(), tar=tar, path=path)
            if count % _PER_REPORT == 0:
                yield member.offset
        self._finish(sample, number)
        yield os.path.getsize(path)

    def _take(self, sample: _Sample, member: tarfile.TarInfo, extension: str, *, tar: Any, path: str) -> None:
        kind = self.members.kind(extension)
        if not member.isreg() or member.issparse():
            self._others["link"] += 1
            sample.links.append(member.name)
        elif kind is None:
            self._others[f".{extension}" if extension else "without suffix"] += 1
            sample.others.append(extension)
        elif getattr(sample, kind) is not None:
            self._refuse_second(sample, kind, extension, path=path)
        elif kind == "image":
            sample.image = member
        else:
            if member.size > _MAX_LABEL:
                raise UserError(
                    f"{path}: {member.name} has {member.size:,} bytes, which is no label",
                    hint="name the extension of the labels with dataset.args.label=EXTENSION",
                )
            tar.fileobj.seek(member.offset_data)
            content = tar.fileobj.read(member.size)
            if len(content) < member.size:
                raise _damaged(path, f"it ends in {member.name}")
            sample.label = self._label(content, where=f"{path}: {member.name}")

    def _refuse_second(self, sample: _Sample, kind: str, extension: str, *, path: str) -> None:
        first = (
            Path(sample.image.name).name.partition(".")[2].lower() if kind == "image" and sample.image else extension
        )
        raise UserError(
            f"{path}: {sample.key} has two {kind}s, .{first} and .{extension}",
            hint=f"name the one to read with dataset.args.{kind}={first}"
            if first != extension
            else "give each sample a name of its own",
        )

    def _label(self, content: bytes, *, where: str) -> str:
        """Return a label as text: that of the member, or of a field of its JSON object."""
        try:
            text = content.decode().strip()
        except UnicodeDecodeError as error:
            raise UserError(f"{where}: is not a label but binary", hint="write the class as text") from error
        if self.members.field is not None or text.startswith("{"):
            text = _json_field(text, self.members.field, where=where)
        if not text or "\n" in text:
            raise UserError(
                f"{where}: {'is empty' if not text else 'has several lines'}", hint="write one class, such as 7"
            )
        return text

    def _finish(self, sample: _Sample | None, number: int) -> None:
        """Add a sample whose members have all been read."""
        if sample is None or (sample.image is None and sample.label is None):
            return
        path = self.files[number]
        if sample.image is None or sample.label is None:
            missing = "image" if sample.image is None else "label"
            wanted = ", ".join(self.members.images[:NAMED]) if missing == "image" else self.members.label
            others = [f".{extension}" for extension in sample.others if extension]
            likely = [name for name in others if (name.rpartition(".")[2] in IMAGES) == (missing == "image")]
            hint = "put the members of a sample next to each other: tar --sort=name -cf new.tar FOLDER"
            if likely:
                hint = f"name it with dataset.args.{missing}={likely[0][1:]}"
            elif sample.links:
                others = [f"the link {sample.links[0]}"]
                hint = (
                    "put the files themselves in: tar --dereference --hard-dereference --sort=name -cf new.tar FOLDER"
                )
            raise UserError(
                f"{path}: {sample.key} has no {missing} ({wanted})" + f", but {', '.join(others)}" * bool(others),
                hint=hint,
            )
        self._shards.append(number)
        self._offsets.append(sample.image.offset_data)
        self._headers.append(sample.image.offset_data - sample.image.offset)
        self.sizes.append(sample.image.size)
        self.labels.add(sample.label, place=f"{path}: {sample.key}")


def _members(path: str) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Yield the members of a tar file in order, except for folders, hidden files and what systems leave behind.

    Raises:
        UserError: It is compressed, not a tar file, cut short, or goes on behind its end mark.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(8)
            for magic, command in _COMPRESSED.items():
                if start.startswith(magic):
                    raise UserError(
                        f"{path}: is compressed, so photos cannot be read from the middle of it",
                        hint=f"unpack it with {command} '{path}' and name the .tar file (photos are compressed anyway)",
                    )
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # the list would grow with the shard
                    if member.size < 0:  # the next header would be this one again
                        raise tarfile.TarError(f"{member.name} has a negative size")
                    if not member.isdir() and not _is_clutter(member.name):
                        yield tar, member
                file.seek(tar.offset)
                end = file.read(BLOCK)
                is_last = all(not part.strip(b"\0") for part in iter(lambda: file.read(_PART), b""))
    except (tarfile.TarError, OSError) as error:
        raise _damaged(path, str(error)) from error
    if end != bytes(BLOCK):  # tarfile takes any block that is no header for the end
        raise _damaged(path, "it has no end mark" if len(end) < BLOCK else "a header is damaged")
    if not is_last:
        raise UserError(
            f"{path}: has data behind its end mark, as several tar files in a row have",
            hint=f"unpack all with mkdir new && tar --ignore-zeros -xf '{path}' -C new, and pack them again with "
            "tar --sort=name -cf new.tar -C new .",
        )


def _is_clutter(name: str) -> bool:
    """Return whether a part of a path is hidden, as `__meta__` is to webdataset, or left behind by a system."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return any(part.startswith(".") or part.lower() in CLUTTER or _META.match(part) for part in parts)


def _damaged(path: str, reason: str) -> UserError:
    return UserError(f"{path}: is not a whole tar file: {reason}", hint="copy or download it again")


def _json_field(text: str, name: str | None, *, where: str) -> str:
    """Return the class in a field of a JSON object; None stands for a field that was not named."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: is not JSON: {error}", hint="correct it") from error
    value = values.get(name) if isinstance(values, dict) else None
    if not isinstance(value, str | int) or isinstance(value, bool):
        is_what = "is an object" if name is None else f"{name!r} is {json.dumps(value)[:40]}"
        keys = f"with one of {', '.join(values)}" if isinstance(values, dict) and values else "of an object"
        raise UserError(
            f"{where}: {is_what}, not a class", hint=f"name the field of the class, dataset.args.field=FIELD, {keys}"
        )
    return str(value).strip()
