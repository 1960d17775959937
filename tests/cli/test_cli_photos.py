"""A folder of photos as people have them: `swa new --task photos`, the run of its recipe, and what that leaves."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from conftest import Swa
from equal_runs import assert_equal_runs
from published import in_cache
from swa_cli.data.image_file import num_cores
from swa_cli.data.randomness import generator

KINDS = [("RGB", "jpg"), ("L", "jfif"), ("P", "png"), ("RGBA", "webp"), ("CMYK", "jpeg"), ("I;16", "tif")]
QUICK = ("train.epochs=2", "dataset.image_size=32", "dataset.val=8", "train.threads=1", "train.precision=fp32")
# In place of a resnet18, whose checkpoints have 90 MB, and with one average.
TINY = (*QUICK, "model={name: convnet, args: {width: 4}}", "averages={}")


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Forty photos of twenty sizes in six modes: one turned by EXIF, one nested, one linked; and two broken ones."""
    for number in range(40):
        mode, suffix = KINDS[number // 2 % len(KINDS)]
        folder = tmp_path / "my pets" / ("Cat", "Dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        size = (40 + 5 * (number % 20), 110 - 3 * (number % 20))
        coarse = torch.randint(0, 256, (3, 4, 3), generator=generator(number, "pets"), dtype=torch.uint8).numpy()
        image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        deep = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
        image = deep if mode == "I;16" else image.convert(mode)
        turned = Image.Exif()
        turned[0x0112] = 6
        image.save(folder / f"{number:02}.{suffix}", **({"exif": turned} if number == 0 else {}))
    nested = tmp_path / "my pets/Cat/holiday/2024"
    nested.mkdir(parents=True)
    (tmp_path / "my pets/Cat/00.jpg").rename(nested / "00.jpg")
    (tmp_path / "my pets/Dog/linked.jpg").symlink_to(nested / "00.jpg")
    whole = (nested / "00.jpg").read_bytes()
    (tmp_path / "my pets/Dog/cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "my pets/Cat/empty.png").write_bytes(b"")
    (tmp_path / "my pets/Cat/notes.txt").write_text("not a photo")
    return tmp_path / "my pets"


@pytest.mark.slow
def test_a_folder_of_photos_trains_from_a_new_recipe(swa: Swa, pets: Path, tmp_path: Path) -> None:
    """The recipe as it is written, but for its length and size: the plan, the files left out, and result.json."""
    written = swa("new", "--task", "photos", "--data", pets, "-o", "r.yaml")
    assert written.code == 0, written.err
    for broken in ("Dog/cut.jpg", "Cat/empty.png"):
        assert broken in " ".join(written.err.split())
    recipe = Path("r.yaml").read_text()
    assert "skip_broken: true" in recipe
    assert re.search(r"^# +mean: auto", recipe, re.MULTILINE)
    ended = swa("train", "r.yaml", *QUICK)
    assert ended.code == 0, ended.err
    told = " ".join(ended.err.split())
    for part in ("2 classes", "pixels", "left out 2 image files", "1 file: 1 .txt", "random_resized_crop"):
        assert part in told, part
    assert "evaluated at 32 x 32 after resizing the shorter side to 37" in told
    result = json.loads(Path("runs/my-pets-001/result.json").read_text())
    assert result["broken_files"] == 2
    assert {"last", "last_bn", "swa", "ema"} == result["weights"].keys()
    shipped = torch.load("runs/my-pets-001/checkpoints/swa.pt", weights_only=True)
    expected = {
        "size": [32, 32],
        "resize": 37,
        "crop": "center",
        "interpolation": "bilinear",
        "classes": ["Cat", "Dog"],
    }
    assert {key: shipped["input"][key] for key in expected} == expected
    pixels = [shipped["input"][key] for key in ("mean", "std")]  # random pixels, enlarged: mean 0.5, less than uniform
    assert all(0.4 < value < 0.6 for value in pixels[0])
    assert all(0.1 < value < 12**-0.5 for value in pixels[1])
    again = swa("eval", "runs/my-pets-001/checkpoints/swa.pt", "--split", "val", "--json")
    assert again.json["weights"]["swa"]["nll"] == pytest.approx(result["weights"]["swa"]["nll"], abs=1e-6)


def test_the_statistics_follow_pretrained_weights(
    swa: Swa, pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new recipe with a network of timm whose weights expect 0.5: that is what its images get, without an edit."""
    assert swa("new", "--task", "photos", "--data", pets, "-o", "r.yaml").code == 0
    in_cache("timm:test_vit", tmp_path, monkeypatch)
    network = (
        "model={name: 'timm:test_vit', pretrained: true}",
        "train.epochs=1",
        "dataset.image_size=160",
        "swa=null",
    )
    ended = swa("train", "r.yaml", *QUICK, *network)
    assert ended.code == 0, ended.err
    shipped = torch.load("runs/my-pets-001/checkpoints/last.pt", weights_only=True)
    assert shipped["input"]["mean"] == shipped["input"]["std"] == [0.5, 0.5, 0.5]


def test_a_broken_file_is_named_with_the_way_to_leave_it_out(swa: Swa, pets: Path) -> None:
    """Without skip_broken: exit 2 before anything is written where it is read then, and the key that helps."""
    assert swa("new", "--task", "photos", "--data", pets, "-o", "r.yaml").code == 0
    ended = swa("train", "r.yaml", *QUICK, "dataset.skip_broken=false", "dataset.augment={}", "dataset.cache=ram")
    assert ended.code == 2
    told = " ".join(ended.err.split())
    assert "2 image files cannot be read" in told
    assert "dataset.skip_broken=true" in told
    assert not Path("runs").exists()


@pytest.fixture
def streamed(tmp_path: Path) -> list[str]:
    """The words of a run on photos in two splits, which stay in their files."""
    for split, number in (("train", 12), ("test", 6)):
        for place in range(number):
            folder = tmp_path / "photos" / split / "ab"[place % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 20), (20 * place,) * 3).save(folder / f"{place:02}.jpg")
    data = "dataset={name: image_folder, root: photos, cache: none, image_size: 16, workers: 0, val: 4}"
    model = "model={name: convnet, args: {width: 2}}"
    assert not Path("r.yaml").exists()
    Path("r.yaml").write_text("name: r\nmodel: {name: convnet}\noptimizer: {lr: 0.05}\nswa: {start: 0%, every: 1ep}\n")
    return ["r.yaml", data, model, "train.epochs=2", "train.batch_size=4", "train.threads=1"]


def cut(path: Path) -> bytes:
    """Halve a file; return what it was."""
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return whole


@pytest.mark.parametrize("command", [("train",), ("train", "--dry-run"), ("plan",)])
@pytest.mark.parametrize("split", ["test", "val"])
def test_a_broken_streamed_file_of_evaluation_stops_before_the_run(
    swa: Swa, streamed: list[str], command: tuple[str, ...], split: str
) -> None:
    """A test photo and all of one validation class cut short: exit 2, by name, with no folder; or left out."""
    if split == "val":
        shutil.copytree("photos/test", "photos/val")
    cut(Path("photos", split, "a/02.jpg"))
    ended = swa(*command, *streamed)
    assert ended.code == 2
    assert f"photos/{split}/a/02.jpg" in " ".join(ended.err.split())
    assert not Path("runs").exists()
    assert swa(*command, *streamed, "dataset.skip_broken=true").code == 0


@pytest.mark.parametrize("command", [("train", "--dry-run"), ("plan",)])
def test_broken_streamed_training_files_fail_a_plan(swa: Swa, streamed: list[str], command: tuple[str, ...]) -> None:
    """Found by the timed steps, where nothing is run: exit 2, by name."""
    for path in Path("photos/train").glob("*/*.jpg"):
        if path.name != "00.jpg":  # the first is read for what the network sees
            cut(path)
    ended = swa(*command, *streamed, "dataset.mean=imagenet", "dataset.std=imagenet", "dataset.val=0")
    assert ended.code == 2
    assert "photos/train/" in ended.err
    assert "dataset.skip_broken=true" in " ".join(ended.err.split())


def test_only_what_is_read_is_looked_at(swa: Swa, streamed: list[str]) -> None:
    """A broken test photo beside commands that read no test photos; replaced by another, its run goes on."""
    words = [*streamed, "-q", "output.save_every=1step"]
    assert swa("train", *words).code == 0
    path = Path("photos/test/a/02.jpg")
    whole = cut(path)
    assert swa("find-lr", *streamed, "--steps", "20").code == 0
    for command in (
        ("eval", "runs/latest", "--split", "val"),
        ("bn-update", "runs/latest/checkpoints/swa.pt", "-o", "refreshed.pt"),
    ):
        ended = swa(*command)
        assert ended.code == 0, ended.err
    extended = ("train", "--resume", "runs/latest", "-q", "--extend-to", "3")
    ended = swa(*extended)
    assert ended.code == 2
    assert str(path) in " ".join(ended.err.split())
    path.write_bytes(whole)
    Image.new("RGB", (40, 30)).save(path)
    ended = swa(*extended)
    assert ended.code == 0, ended.err


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_stopped_run_on_photos_goes_on_to_the_same_end(
    swa: Swa, pets: Path, tmp_path: Path, signal_at: object, workers: int
) -> None:
    """Ended in the middle of an epoch and resumed, with and without loader processes: against the undisturbed run."""
    assert swa("new", "--task", "photos", "--data", pets, "-o", "r.yaml").code == 0
    words = [*TINY, f"dataset.workers={workers}", "train.batch_size=8", "output.save_every=1step"]
    assert swa("train", "r.yaml", "-q", *words).code == 0
    signal_at(3)  # type: ignore[operator]
    assert swa("train", "r.yaml", "-q", *words).code == 130
    assert swa("train", "--resume", "runs/latest", "-q").code == 0
    assert_equal_runs(tmp_path / "runs/my-pets-001", tmp_path / "runs/my-pets-002")


def scored(swa: Swa, *words: str) -> Tensor:
    ended = swa("train", "r.yaml", "-q", "--json", *TINY, *words)
    assert ended.code == 0, ended.err
    state = torch.load(Path(ended.json["run"]) / "checkpoints/last.pt", weights_only=True)["model"]
    return torch.cat([value.flatten().double() for value in state.values()])


def test_loader_processes_change_no_bit(swa: Swa, pets: Path) -> None:
    """The weights after two epochs with 0, 1 and 2 loader processes."""
    assert swa("new", "--task", "photos", "--data", pets, "-o", "r.yaml").code == 0
    first, *others = (scored(swa, f"dataset.workers={workers}") for workers in (0, 1, 2))
    assert all(torch.equal(first, other) for other in others)


def test_more_loader_processes_than_cores_are_warned_of_once(swa: Swa, pets: Path) -> None:
    """One warning in the plan, which names the key and the cores, and none of torch's own."""
    assert swa("new", "--task", "photos", "--data", pets, "-o", "r.yaml").code == 0
    cores = num_cores()
    ended = swa("train", "r.yaml", "--dry-run", *TINY, f"dataset.workers={cores + 1}")
    assert ended.code == 0, ended.err
    assert ended.err.count(f"write dataset.workers={cores}") == 1
    assert "DataLoader" not in ended.err
    assert "dataset.workers" not in swa("train", "r.yaml", "--dry-run", *TINY, "dataset.workers=1").err


@pytest.mark.parametrize(
    "words",
    [("--task", "photos"), ("--data", "pets"), ("--task", "segmentation", "--data", "pets"), ("--task", "photoes")],
)
def test_photos_and_their_folder_go_together(swa: Swa, words: tuple[str, ...]) -> None:
    """One without the other, or another task: exit 2, and the command that is meant."""
    ended = swa("new", *words)
    assert ended.code == 2
    assert "photos" in ended.err


def test_a_folder_that_is_not_there_is_refused(swa: Swa) -> None:
    """Exit 2, and what is wrong with it."""
    ended = swa("new", "--task", "photos", "--data", "nowhere")
    assert ended.code == 2
    assert "nowhere: there is no such folder" in ended.err
