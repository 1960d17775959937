"""Published weights: their names and inputs against the libraries' own, the cache, and what is said offline."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import pytest
import torch

from swa_cli.checkpoint import safe_load
from swa_cli.errors import UserError
from swa_cli.models import pretrained
from swa_cli.models.build_model import build


@pytest.mark.parametrize("name", ["resnet50", "vit_b_16", "inception_v3", "efficientnet_v2_l"])
def test_inputs_of_torchvision_are_those_of_its_transforms(name: str) -> None:
    """Size, resize, interpolation and constants of every weights of a network against `weights.transforms()`."""
    from torchvision import models
    from torchvision.transforms.v2.functional import InterpolationMode

    enum = models.get_model_weights(name)
    for weights in enum:
        found, view = pretrained.find(f"torchvision:{name}", weights.name), weights.transforms()
        assert found.size == (view.crop_size[0], view.crop_size[0])
        assert (found.resize, found.mean, found.std) == (*view.resize_size, tuple(view.mean), tuple(view.std))
        assert InterpolationMode(found.interpolation) == view.interpolation
        assert found.url == weights.url
    assert pretrained.find(f"torchvision:{name}", True).name == enum.DEFAULT.name


def test_segmentation_weights_take_images_of_any_size() -> None:
    """Weights that torchvision crops nothing for: no size, and the constants of ImageNet."""
    found = pretrained.find("torchvision:fcn_resnet50", True)
    assert (found.size, found.mean) == (None, (0.485, 0.456, 0.406))


def test_inputs_of_timm_are_those_of_its_configuration() -> None:
    """Tag, size, resize and constants against `pretrained_cfg`; squash resizes the whole image."""
    found = pretrained.find("timm:resnet18", True)
    assert (found.name, found.size, found.resize) == ("a1_in1k", (224, 224), int(224 / 0.95))
    assert found.interpolation == "bicubic"
    lite = pretrained.find("timm:tf_efficientnet_lite0", "in1k")
    assert (lite.mean, lite.std, lite.resize) == ((0.5,) * 3, (0.5,) * 3, 256)
    assert pretrained.find("timm:convnext_tiny", "in12k_ft_in1k_384").resize is None


def test_weights_that_need_another_network_get_it() -> None:
    """Constructor arguments of weights against the networks: input scale of GoogLeNet, image size of a ViT."""
    with torch.device("meta"):
        assert build("torchvision:googlenet", num_classes=3, in_channels=3, published=True).transform_input
        assert not build("torchvision:googlenet", num_classes=3, in_channels=3).transform_input
        vit = build("torchvision:vit_b_16", num_classes=3, in_channels=3, published="IMAGENET1K_SWAG_E2E_V1")
    assert vit.image_size == 384
    gray = build("torchvision:googlenet", num_classes=3, in_channels=1, published=True)  # no red, green and blue
    assert not gray.transform_input


@pytest.mark.parametrize(
    ("network", "weights", "hint"),
    [
        ("torchvision:resnet50", "IMAGENET1K_V9", "did you mean IMAGENET1K_V"),
        ("timm:resnet18", "a1_in1", "did you mean a1_in1k?"),
        ("torchvision:mnasnet1_3x", True, "name a file"),
        ("timm:test_nothing", True, "name a file"),
    ],
)
def test_unknown_weights_are_refused_with_those_that_exist(network: str, weights: str | bool, hint: str) -> None:
    """Names that a library does not have against the closest one, or a file."""
    with pytest.raises(UserError) as caught:
        pretrained.find(network, weights)
    assert caught.value.message.startswith("model.pretrained: ")
    assert hint in caught.value.hint


def load(network: str) -> dict[str, torch.Tensor]:
    found = pretrained.find(network, True)
    return pretrained.load(found, in_channels=3, args={}, read=safe_load.read_archive)


def test_torchvision_weights_come_from_its_cache_or_a_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download of a file that torchvision names, then the cache alone; offline, the file and the folder are told."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    file = Path(pretrained.find("torchvision:shufflenet_v2_x0_5", True).url).name

    def fail(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(UserError) as caught:
        load("torchvision:shufflenet_v2_x0_5")
    assert "no network" in caught.value.message
    assert f"/{file} into {tmp_path}/checkpoints" in caught.value.hint
    seen: list[tuple[str, str | None]] = []

    def download(url: str, target: str, checksum: str | None, *, progress: bool) -> None:
        assert not progress  # it would write across the bar of the terminal
        seen.append((url, checksum))
        torch.save({"weight": torch.arange(3.0)}, target)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    assert load("torchvision:shufflenet_v2_x0_5")["weight"].tolist() == [0, 1, 2]
    [(url, checksum)] = seen
    assert (Path(url).name, checksum) == (file, file.partition("-")[2].removesuffix(".pth"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    assert load("torchvision:shufflenet_v2_x0_5")["weight"].tolist() == [0, 1, 2]


def test_timm_weights_that_are_not_there_name_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network and an empty cache: the folder, the page of the file, and the key that takes it."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError) as caught:
        load("timm:test_byobnet")
    assert "r160_in1k of timm:test_byobnet" in caught.value.message
    assert str(tmp_path) in caught.value.hint
    assert "https://huggingface.co/timm/test_byobnet.r160_in1k" in caught.value.hint
    assert "model.pretrained=./model.safetensors" in caught.value.hint


def test_a_download_tells_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that are reported while a file grows against its size."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setattr(pretrained, "LOOK_EVERY_S", 0.001)
    told: list[int] = []

    def download(_: str, target: str, *__: object, **___: object) -> None:
        torch.save({"weight": torch.zeros(1000)}, target)
        while not told or told[-1] < Path(target).stat().st_size:
            pass

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    found = pretrained.find("torchvision:shufflenet_v2_x0_5", True)
    pretrained.load(found, in_channels=3, args={}, read=safe_load.read_archive, progress=told.append)
    assert told[-1] == sum(path.stat().st_size for path in (tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("network", "in_channels"),
    [("torchvision:shufflenet_v2_x0_5", 3), ("timm:test_byobnet", 1), ("torchvision:regnet_y_400mf", 3)],
)
def test_shapes_are_known_without_a_file(network: str, in_channels: int) -> None:
    """Names, shapes and kinds of number against the library's network; no memory, and no random numbers are drawn."""
    found = pretrained.find(network, True)
    before = torch.get_rng_state()
    given = pretrained.shapes(found, in_channels=in_channels, args={})
    assert torch.equal(torch.get_rng_state(), before)
    network, _, name = network.rpartition(":")
    if network == "timm":
        import timm

        expected = timm.create_model(name, in_chans=in_channels).state_dict()
    else:
        from torchvision import models

        expected = models.get_model(name, weights=None).state_dict()
    assert {key: (value.shape, value.dtype) for key, value in given.items()} == {
        key: (value.shape, value.dtype) for key, value in expected.items()
    }
    assert all(value.untyped_storage().nbytes() <= 8 for value in given.values())


@pytest.mark.parametrize("network", ["torchvision:googlenet", "torchvision:fcn_resnet50"])
def test_shapes_have_the_auxiliary_heads_of_the_files(network: str) -> None:
    """Weights that torchvision publishes with heads that a network made without weights has not."""
    given = pretrained.shapes(pretrained.find(network, True), in_channels=3, args={})
    assert any(key.startswith("aux") for key in given)


def test_sizes_of_files_are_those_that_torchvision_names() -> None:
    """Bytes against MiB of its metadata; timm names none."""
    from torchvision import models

    meta = models.ResNet18_Weights.DEFAULT.meta
    assert pretrained.find("torchvision:resnet18", True).num_bytes == pytest.approx(meta["_file_size"] * 2**20, abs=1)
    assert pretrained.find("timm:resnet18", True).num_bytes is None


@pytest.mark.parametrize(
    ("network", "weights", "words"),
    [
        ("timm:vit_base_patch16_clip_384", "openai_ft_in12k_in1k", ["squash", "404 x 404"]),
        ("timm:deepseek_vit_412m", True, ["border"]),
        ("timm:resnet18", True, []),
        ("timm:convnext_tiny", "in12k_ft_in1k_384", []),
    ],
)
def test_other_crops_of_timm_are_named(network: str, weights: str | bool, words: list[str]) -> None:
    """`crop_mode` of weights whose images are neither cropped at the center nor shown whole, against the note."""
    note = pretrained.find(network, weights).note
    assert bool(note) == bool(words)
    assert all(word in note for word in words)
