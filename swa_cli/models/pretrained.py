"""Weights that torchvision and timm publish: found by name, with the inputs they were trained on, and loaded.

Names, inputs and shapes stand in the libraries, so only `load` may download: through the library, into its own cache.
C channels; H W pixels.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn

from swa_cli.errors import UserError, did_you_mean

LOOK_EVERY_S = 0.2  # at the growth of a download
MEBIBYTE = 1 << 20  # the unit of torchvision's file sizes
# What torchvision's files have beside the networks that its builders make without weights.
WITH_AUXILIARY: Mapping[str, Mapping[str, Any]] = {
    **{name: {"aux_logits": True, "init_weights": False} for name in ("googlenet", "inception_v3")},
    **{
        name: {"aux_loss": True}
        for name in ("fcn_resnet50", "fcn_resnet101", "deeplabv3_resnet50", "deeplabv3_resnet101")
    },
    "deeplabv3_mobilenet_v3_large": {"aux_loss": True},
}
UNTRANSFORMED = (0.5, 0.5, 0.5)  # mean and std of the inputs that `transform_input` of GoogLeNet and Inception makes
HUB = "https://huggingface.co/"
Progress = Callable[[int], None]  # bytes of the download so far


@dataclass(frozen=True)
class Published:
    """Weights that a library publishes, and what they expect.

    `file` is named as in `folder`, and `num_bytes` is None where the library does not say its size. `size` (H, W) is
    None where images of any size fit, and `resize`, the shorter side before a center crop, where the whole image is
    resized; `note` says how the library shows images where that is neither of the two. Mean and std are of pixels from
    0 to 1. `args` are constructor arguments that they need.
    """

    network: str
    name: str
    url: str
    file: str
    num_bytes: int | None
    num_classes: int
    size: tuple[int, int] | None
    resize: int | None
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    args: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def is_on_hub(self) -> bool:
        """Whether they lie on the hub of Hugging Face."""
        return self.url.startswith(HUB)

    @property
    def folder(self) -> Path:
        """The cache of the library."""
        if not self.is_on_hub:
            return Path(torch.hub.get_dir()) / "checkpoints"
        from huggingface_hub import constants

        return Path(constants.HF_HUB_CACHE)

    def cached(self) -> Path | None:
        """Return the file in the cache, if it is there."""
        if not self.is_on_hub:
            return path if (path := self.folder / self.file).is_file() else None
        from huggingface_hub import try_to_load_from_cache

        repository, _, revision = self.url.removeprefix(HUB).partition("@")
        look = partial(try_to_load_from_cache, repository, cache_dir=self.folder, revision=revision or None)
        found = [text for file in (self.file, "pytorch_model.bin") if isinstance(text := look(file), str)]
        return Path(found[0]) if found else None


def find(network: str, weights: str | bool) -> Published:
    """Find the weights of `torchvision:NAME` or `timm:NAME` by their name; True for the library's choice.

    Raises:
        UserError: There are none of that name, or none at all.
    """
    library, _, name = network.partition(":")
    return (_find_in_timm if library == "timm" else _find_in_torchvision)(network, name, weights)


def shapes(published: Published, *, in_channels: int, args: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the state dict that `load` returns with zeros in it that take no memory: nothing is read."""
    network = partial(_network_of_file, published, in_channels=in_channels, args=args)
    try:
        with torch.device("meta"):
            model = network()
    except NotImplementedError:  # its constructor computes with tensors
        with torch.random.fork_rng(devices=[]):
            model = network()
    return {key: torch.zeros((), dtype=value.dtype).expand(value.shape) for key, value in model.state_dict().items()}


def _network_of_file(published: Published, *, in_channels: int, args: Mapping[str, Any]) -> nn.Module:
    library, _, name = published.network.partition(":")
    if library == "timm":
        import timm

        network: nn.Module = timm.create_model(f"{name}.{published.name}", in_chans=in_channels, **args)
        return network
    from torchvision import models

    is_segmentation = name in models.list_models(module=models.segmentation)
    fixed = {"weights_backbone": None} if is_segmentation else {}
    own = {**fixed, **WITH_AUXILIARY.get(name, {}), **published.args}
    return models.get_model(name, weights=None, num_classes=published.num_classes, **own)


def load(
    published: Published,
    *,
    in_channels: int,
    args: Mapping[str, Any],
    read: Callable[[Path], dict[str, Tensor]],
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Return the state dict of published weights, from the library's cache or after a download into it.

    Args:
        published: What `find` found.
        in_channels: C; timm adapts its first convolution to it, torchvision does not.
        args: Constructor arguments of the network.
        read: Reads a file of torchvision, which holds a state dict.
        progress: Called with the bytes that a download has brought so far.

    Raises:
        UserError: They cannot be downloaded; the hint says which file goes where.
    """
    if published.network.startswith("timm:"):
        return _load_from_timm(published, in_channels=in_channels, args=args, progress=progress)
    return _load_from_torchvision(published, read=read, progress=progress)


def _unknown(network: str, weights: str | bool, names: list[str]) -> UserError:
    if not names:
        return UserError(
            f"model.pretrained: {network.partition(':')[0]} publishes no weights of {network}",
            hint="name a file, such as model.pretrained=weights.pth, or leave it out",
        )
    return UserError(
        f"model.pretrained: {network} has no weights {weights!r}",
        hint=f"{did_you_mean(str(weights), names)}choose from {', '.join(names)}, or write ./{weights} for a file",
    )


def _find_in_torchvision(network: str, name: str, weights: str | bool) -> Published:
    from torchvision import models

    try:
        published = list(models.get_model_weights(name))
    except ValueError as error:  # `build_model` says that there is no such network
        raise _unknown(network, weights, []) from error
    names = [found.name for found in published]
    if not names:
        raise _unknown(network, weights, [])
    default = models.get_model_weights(name).DEFAULT
    wanted = default.name if weights in (True, "DEFAULT") else weights
    if wanted not in names:
        raise _unknown(network, weights, names)
    found = published[names.index(wanted)]
    view = found.transforms()
    crop, (resize, *_) = getattr(view, "crop_size", None), view.resize_size
    args: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):  # their weights were trained on another scale of inputs
        args["transform_input"] = True
    if name.startswith("vit_"):
        args["image_size"] = found.meta["min_size"][0]
    return Published(
        network,
        found.name,
        found.url,
        Path(found.url).name,
        round(found.meta["_file_size"] * MEBIBYTE) if "_file_size" in found.meta else None,
        len(found.meta["categories"]),
        None if crop is None else (crop[0], crop[0]),
        None if crop is None else resize,
        view.interpolation.value,
        tuple(view.mean),
        tuple(view.std),
        args,
    )


def _load_from_torchvision(
    published: Published, *, read: Callable[[Path], dict[str, Tensor]], progress: Progress | None
) -> dict[str, Tensor]:
    folder = published.folder
    file = folder / published.file
    if not file.is_file():
        checksum = re.search(r"-([0-9a-f]{8,})\.", file.name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _watching(folder, progress):
                torch.hub.download_url_to_file(published.url, str(file), checksum and checksum[1], progress=False)
        except (URLError, OSError, RuntimeError) as error:  # RuntimeError: the checksum is another one
            raise UserError(
                f"model.pretrained: {published.name} of {published.network} cannot be downloaded: {error}",
                hint=f"put the file {published.url} into {folder}",
            ) from error
    return read(file)


def _find_in_timm(network: str, name: str, weights: str | bool) -> Published:
    from timm.data import resolve_data_config
    from timm.models import get_pretrained_cfg, list_pretrained

    tags = [full.partition(".")[2] for full in list_pretrained(f"{name}.*")]
    default = get_pretrained_cfg(name)
    if not tags or default is None:
        raise _unknown(network, weights, [])
    tag = (default.tag if default.tag in tags else tags[0]) if weights is True else weights
    if tag not in tags:
        raise _unknown(network, weights, tags)
    found = get_pretrained_cfg(f"{name}.{tag}")
    assert found is not None, "it is in the list"
    view = resolve_data_config({}, pretrained_cfg=found.to_dict())
    size: tuple[int, int] = view["input_size"][1:]
    mode, share = view["crop_mode"], view["crop_pct"]
    return Published(
        network,
        str(tag),
        f"{HUB}{found.hf_hub_id}" if found.hf_hub_id else str(found.url),
        (found.hf_hub_filename or "model.safetensors") if found.hf_hub_id else Path(str(found.url)).name,
        None,
        found.num_classes,
        size,
        None if mode == "squash" else int(min(size) / share),
        "bilinear" if view["interpolation"] == "bilinear" else "bicubic",
        tuple(view["mean"]),
        tuple(view["std"]),
        note=_note_of_crop(mode, share, size),
    )


def _note_of_crop(mode: str, share: float, size: tuple[int, int]) -> str:
    """Return how timm shows images to weights for which neither a center crop nor the whole image is meant.

    Its `squash` resizes the whole image to `size` / `share` before the crop, and its `border` fits the whole image into
    that and fills up the rest.
    """
    if mode == "border":
        return "whole images between borders (crop_mode border), and here it is a center crop: eval.crop=none stretches"
    if mode == "squash" and share < 1:
        within = " x ".join(str(int(side / share)) for side in size)
        return f"the center of whole images stretched to {within} (crop_mode squash), and here it is all of the image"
    return ""


def _load_from_timm(
    published: Published, *, in_channels: int, args: Mapping[str, Any], progress: Progress | None
) -> dict[str, Tensor]:
    import timm
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    had_bars, cache = not are_progress_bars_disabled(), published.folder
    name = f"{published.network.partition(':')[2]}.{published.name}"
    disable_progress_bars()  # the terminal shows its own
    try:
        with _watching(cache, progress):
            network = timm.create_model(name, pretrained=True, in_chans=in_channels, **args)
    except (OSError, ValueError) as error:  # of huggingface_hub: offline, and not in its cache
        raise UserError(
            f"model.pretrained: {published.name} of {published.network} cannot be downloaded:"
            f" {str(error).partition(chr(10))[0]}",
            hint=f"load it once where there is a network and copy {cache}, or get model.safetensors from"
            f" {published.url} and write model.pretrained=./model.safetensors",
        ) from error
    finally:
        if had_bars:
            enable_progress_bars()
    state: dict[str, Tensor] = network.state_dict()
    return state


@contextmanager
def _watching(folder: Path, progress: Progress | None) -> Iterator[None]:
    """Report how many bytes the files of a folder have grown by while the block runs."""
    if progress is None:
        yield
        return
    before, ended = _num_bytes(folder), threading.Event()

    def watch() -> None:
        while not ended.wait(LOOK_EVERY_S):
            progress(max(_num_bytes(folder) - before, 0))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _num_bytes(folder: Path) -> int:
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(Path(root) / name).st_size
            except OSError:  # renamed meanwhile
                continue
    return total
