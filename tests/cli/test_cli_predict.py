"""`swa predict`: photos of all sizes and modes against `swa eval`, plain torch, and what each file is known to show."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.cells import cell_len
from torch import Tensor

from conftest import Swa, run_swa
from swa_cli.analysis import predict
from swa_cli.data.photos import UnlabeledPhotos
from swa_cli.data.randomness import generator
from swa_cli.data.transforms import EvaluationView

KINDS = [("RGB", "jpg"), ("L", "png"), ("P", "gif"), ("RGBA", "webp"), ("CMYK", "jpeg"), ("I;16", "tif")]
CLASSES = ("blue jay", "cat", "dog")
RECIPE = """\
name: photos
model: {name: convnet, args: {width: 4}}
dataset: {name: image_folder, root: ROOT, image_size: 16, val: 0, workers: 0, cache: none}
eval: {batch_size: 7, interpolation: bicubic}
optimizer: {lr: 0.05}
swa: {start: 1ep, every: 1ep}
averages: {ema: {kind: ema, decay: 0.5}}
snapshots: {every: 1ep}
train: {epochs: 3, batch_size: 12, threads: 1, precision: fp32}
"""


def make_photos(root: Path, *, number: int, seed: int) -> None:
    """Photos of three classes, each of a coarse color pattern in noise, in six modes and many sizes."""
    for place in range(number):
        mode, suffix = KINDS[place // 3 % len(KINDS)]
        label = place % 3
        folder = root / CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        random = generator(seed, "photos", place)
        coarse = torch.randint(0, 160, (4, 4, 3), generator=random)
        coarse[:, :, label] += 60
        image = Image.fromarray(coarse.to(torch.uint8).numpy())
        image = image.resize((20 + 3 * (place % 17), 60 - 2 * (place % 13)), Image.Resampling.BICUBIC)
        deep = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
        (deep if mode == "I;16" else image.convert(mode)).save(folder / f"{place:03}.{suffix}")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos and the run of a network on them."""
    folder = tmp_path_factory.mktemp("trained")
    make_photos(folder / "pets/train", number=60, seed=0)
    make_photos(folder / "pets/test", number=41, seed=1)
    (folder / "photos.yaml").write_text(RECIPE.replace("ROOT", str(folder / "pets")))
    run_swa("train", folder / "photos.yaml", "-q", "-o", folder / "runs")
    return folder


@pytest.fixture
def run(swa: Swa, trained: Path) -> Path:
    """The folder of the run."""
    return trained / "runs/photos-001"


def rows_of(path: str) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return [*csv.DictReader(file)]


@pytest.mark.slow
def test_from_photos_to_predictions_in_three_commands(swa: Swa, tmp_path: Path) -> None:
    """new, train and predict, nothing edited but the length, a broken photo in each folder: a row per photo."""
    make_photos(tmp_path / "my \U0001f4f7 pets", number=24, seed=0)
    make_photos(tmp_path / "others", number=9, seed=1)
    for broken in ("my \U0001f4f7 pets/cat/cut.jpg", "others/cut.jpg"):
        (tmp_path / broken).write_bytes(b"\xff\xd8\xff")
    assert swa("new", "--task", "photos", "--data", "my \U0001f4f7 pets", "-o", "r.yaml").code == 0
    ended = swa("train", "r.yaml", "train.epochs=1", "train.threads=1", "dataset.image_size=32")
    assert ended.code == 0, ended.err
    ended = swa("predict", "runs/latest", "others", "-o", "p.csv")
    assert ended.code == 0, ended.err
    rows = rows_of("p.csv")
    assert [row["path"] for row in rows] == sorted(
        f"others/{path.relative_to('others')}" for path in Path("others").glob("*/*")
    )
    assert {row["class"] for row in rows} <= set(CLASSES)
    assert all(1 / 3 - 1e-6 <= float(row["probability"]) <= 1 for row in rows)


@pytest.mark.parametrize("weights", ["swa", "last", "ema"])
def test_the_accuracy_is_that_of_eval(swa: Swa, trained: Path, run: Path, weights: str) -> None:
    """Predicted classes of the test folder against its class folders: the accuracy and NLL of `swa eval`."""
    ended = swa("predict", run, trained / "pets/test", "--weights", weights, "--top", "3", "-o", "p.csv")
    assert ended.code == 0, ended.err
    rows = rows_of("p.csv")
    labels = [Path(row["path"]).parent.name for row in rows]
    accuracy = sum(row["class"] == label for row, label in zip(rows, labels, strict=True)) / len(rows)
    scores = swa("eval", run, "--weights", weights, "--json").json["weights"][weights]
    assert len(rows) == 41
    assert accuracy == scores["accuracy"]
    nll = 0.0
    for row, label in zip(rows, labels, strict=True):
        told = {row[f"class{end}"]: float(row[f"probability{end}"]) for end in ("", "_2", "_3")}
        assert sum(told.values()) == pytest.approx(1, abs=1e-6)
        assert [*told.values()] == sorted(told.values(), reverse=True)
        nll -= np.log(told[label]) / len(rows)
    assert nll == pytest.approx(scores["nll"], abs=1e-6)


def test_an_ensemble_and_views_are_those_of_eval(swa: Swa, trained: Path, run: Path) -> None:
    """The mean prediction of the snapshots, and of mirrored images: the accuracy of `swa eval` with them."""
    test = trained / "pets/test"
    assert swa("predict", run, test, "--ensemble", "--tta", "flip", "-o", "p.csv").code == 0
    rows = rows_of("p.csv")
    accuracy = sum(row["class"] == Path(row["path"]).parent.name for row in rows) / len(rows)
    scores = swa("eval", run, "--ensemble", "--json", "eval.tta=flip").json["weights"]["ensemble"]
    assert accuracy == scores["accuracy"]
    plain = swa("predict", run, test, "--ensemble", "--json").json
    assert plain["members"] == 3
    assert plain["tta"] == "none"
    assert [row["probability"] for row in plain["predictions"]] != [float(row["probability"]) for row in rows]


def test_each_format_says_the_same(swa: Swa, trained: Path, run: Path) -> None:
    """csv, json, parquet, JSON on stdout and the table, of any batch size and number of workers: the same rows."""
    import pandas

    test = trained / "pets/test"
    for name, *words in (("a.csv",), ("b.json", "--batch-size", "1"), ("c.parquet", "dataset.workers=2")):
        ended = swa("predict", run, test, "--top", "2", "-o", name, *words)
        assert ended.code == 0, ended.err
    expected = rows_of("a.csv")
    assert list(expected[0]) == ["path", "class", "probability", "class_2", "probability_2"]
    on_stdout = swa("predict", run, test, "--top", "2", "--json").json
    for found in (
        json.loads(Path("b.json").read_text())["predictions"],
        pandas.read_parquet("c.parquet").to_dict("records"),
        on_stdout["predictions"],
    ):
        assert [row["path"] for row in found] == [row["path"] for row in expected]
        assert [row["class_2"] for row in found] == [row["class_2"] for row in expected]
        probabilities = [float(row["probability"]) for row in expected]
        assert [row["probability"] for row in found] == pytest.approx(probabilities, abs=1e-6)
    assert (on_stdout["weights"], on_stdout["count"], on_stdout["images"]) == ("swa", 3, 41)
    table = swa("predict", run, test, "--top", "2").out.splitlines()
    assert table[0].split() == [*expected[0]]
    assert len(table) == 42
    for line, row in zip(table[1:], expected, strict=True):
        assert line.startswith(row["path"])
        cells = [row["class"], f"{float(row['probability']):.4f}", row["class_2"], f"{float(row['probability_2']):.4f}"]
        assert " ".join(line.split()).endswith(" ".join(cells))
    assert not [*Path().glob(".*.tmp")]


def test_rows_are_written_while_files_are_read(
    swa: Swa, trained: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files that were read and are not written yet, at each moment: those of one batch, of 41 files."""
    waiting = [0, 0]  # now, and the most so far
    read, rows = UnlabeledPhotos.read, predict._ranked

    def counted(photos: UnlabeledPhotos, row: int, view: Any) -> tuple[Tensor, Tensor]:
        waiting[0] += 1
        waiting[1] = max(waiting)
        return read(photos, row, view)

    def written(p: Tensor, **options: Any) -> Any:
        waiting[0] -= len(p)
        return rows(p, **options)

    monkeypatch.setattr(UnlabeledPhotos, "read", counted)
    monkeypatch.setattr(predict, "_ranked", written)
    assert swa("predict", run, trained / "pets/test", "--batch-size", "5", "-o", "p.csv").code == 0
    assert waiting == [0, 5]


def test_broken_files_are_told_and_left_out(swa: Swa, trained: Path, run: Path) -> None:
    """Empty and cut files, a text, a pipe, and what is not searched: exit 0, counts, names; alone: exit 1, no file."""
    photos = Path("photos")
    shutil.copytree(trained / "pets/test/cat", photos)
    whole = next(photos.glob("*.jpg")).read_bytes()
    (photos / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "empty.png").touch()
    os.mkfifo(photos / "pipe.png")
    (photos / ".hidden.jpg").write_bytes(whole)
    (photos / "thumbs.db").touch()
    (photos / "notes.txt").write_text("no image")
    number = len([*photos.iterdir()]) - 6
    ended = swa("predict", run, photos, photos / "notes.txt", "--json")
    assert ended.code == 0
    assert ended.json["images"] == len(ended.json["predictions"]) == number
    reasons = {Path(item["path"]).name: item["reason"] for item in ended.json["broken"]}
    assert reasons.keys() == {"cut.jpg", "empty.png", "pipe.png", "notes.txt"}
    assert all(reasons.values())
    assert reasons["pipe.png"] == "is not a regular file"
    told = " ".join(ended.err.split())
    assert "left out 1 file: 1 .txt" in told
    assert "photos/cut.jpg" in told
    ended = swa("predict", run, photos, "-o", "p.csv")
    assert f"{number} images -> p.csv; 3 broken files left out" in ended.out
    ended = swa("predict", run, photos / "cut.jpg", photos / "empty.png", "-o", "none.csv")
    assert ended.code == 1
    assert "none of 2 image files can be read" in ended.err
    assert not Path("none.csv").exists()


def test_a_network_of_gray_images_takes_any_photo(swa: Swa, recipe: Path) -> None:
    """Digits of the test split, written as PNG in three modes and enlarged twice: the classes that eval scores."""
    from swa_cli.data import sources

    assert swa("train", recipe, "-q").code == 0
    test = sources.load("digits", val="10%", seed=0).test
    for number in range(40):
        image = Image.fromarray(test.images[number, 0].numpy())
        image.convert(("L", "RGB", "LA")[number % 3]).save(f"{number:02}.png")
    ended = swa("predict", "runs/latest", *sorted(Path().glob("*.png")), "--json")
    assert ended.code == 0, ended.err
    found = torch.tensor([int(row["class"]) for row in ended.json["predictions"]])
    content = torch.load("runs/latest/checkpoints/swa.pt", weights_only=True)
    from swa_cli.models import build_model

    model = build_model.build("convnet", num_classes=10, in_channels=1, args={"width": 4}).eval()
    model.load_state_dict(content["state_dict"])
    mean, std = (torch.tensor(content["input"][key]) for key in ("mean", "std"))
    with torch.inference_mode():
        expected = model((test.images[:40] / 255 - mean) / std).argmax(1)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["nowhere.jpg"], ["nowhere.jpg", "no such file"]),
        (["empty"], ["no images in empty", "1 .txt"]),
        (["a.png", "-o", "p.xlsx"], ["p.xlsx", ".csv, .json, .parquet"]),
        (["a.png", "-o", "nowhere/p.csv"], ["nowhere"]),
        (["a.png", "--top", "4"], ["--top 4", "3 classes"]),
        (["a.png", "--weights", "best"], ["'best'", "swa"]),
        (["a.png", "--weights", "all"], ["--weights all", "swa"]),
        (["a.png", "dataset.image_size=32"], ["dataset.image_size"]),
        (["a.png", "--tta", "rotate"], ["--tta rotate"]),
        (["a.png", "eval.image_size=2"], ["2 x 2 pixels", "eval.image_size"]),
        (["a.png", "eval.resize=3"], ["eval.resize", "smaller than the crop"]),
        (["eval.batch_size=3"], ["name images"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_told_before_anything_is_written(swa: Swa, run: Path, words: list[str], parts: list[str]) -> None:
    """Wrong paths, formats, weights and keys: exit 2, what is wrong with which value, and no file."""
    Path("empty").mkdir()
    Path("empty/notes.txt").touch()
    Image.new("RGB", (9, 9)).save("a.png")
    before = sorted(Path().rglob("*"))
    ended = swa("predict", run, *words)
    assert ended.code == 2
    assert ended.out == ""
    told = " ".join(ended.err.split())
    for part in parts:
        assert part in told, told
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize("change", ["dataset.mean=[0.1,0.1,0.1]", "dataset.std=imagenet"])
def test_another_normalization_is_refused(swa: Swa, run: Path, change: str) -> None:
    """The recipe of the run with another mean or std than its weights expect: exit 2 at the key, as of `swa eval`."""
    Image.new("RGB", (9, 9)).save("a.png")
    ended = swa("predict", run, "a.png", "--recipe", run / "recipe.yaml", change)
    key = change.partition("=")[0]
    assert (ended.code, ended.out) == (2, "")
    assert f"{key}: the weights were trained on images normalized with" in ended.err
    assert swa("predict", run, "a.png", "--recipe", run / "recipe.yaml", f"{key}=auto").code == 0


@pytest.mark.parametrize("change", ["eval.crop=none", "eval.resize=9", "eval.image_size=9"])
def test_a_view_that_a_network_does_not_have_is_refused(swa: Swa, recipe: Path, change: str) -> None:
    """Keys of resized images, of a network trained on images as they are: exit 2 at the key, as of `swa plan`."""
    assert swa("train", recipe, "-q").code == 0
    Image.new("L", (9, 9)).save("a.png")
    key = change.partition("=")[0]
    for ended in (swa("plan", recipe, change), swa("predict", "runs/latest", "a.png", change)):
        assert (ended.code, ended.out) == (2, "")
        assert f"{key}: there is no dataset.image_size" in ended.err


def test_columns_of_wide_characters_stand_apart(swa: Swa, run: Path) -> None:
    """A file name of characters of two cells: a space before its class, and the heading in line with it."""
    Image.new("RGB", (9, 9)).save("写真写真写真写真.png")
    head, row = swa("predict", run, "写真写真写真写真.png").out.splitlines()[:2]
    assert row.startswith("写真写真写真写真.png  ")
    found = row.removeprefix("写真写真写真写真.png").split()[0]
    assert head.index("class") + len("class") == cell_len(row.partition(found)[0] + found) or (
        head.index("class") == cell_len(row.partition(found)[0])
    )


def test_a_file_with_several_weight_sets_asks_for_one(swa: Swa, trained: Path, run: Path) -> None:
    """last.pt without --weights: exit 2 with the names; with it, the raw weights as of the run."""
    photo = next((trained / "pets/test/cat").iterdir())
    ended = swa("predict", run / "checkpoints/last.pt", photo)
    assert ended.code == 2
    assert "--weights NAME" in ended.err
    raw = swa("predict", run / "checkpoints/last.pt", photo, "--weights", "last", "--json").json
    assert raw["predictions"] == swa("predict", run, photo, "--weights", "last", "--json").json["predictions"]


def test_a_network_without_images_is_refused(swa: Swa, run: Path) -> None:
    """A checkpoint whose `input` has no channels, or two, or a dataset that prepares its images: exit 2 with why."""
    Image.new("RGB", (9, 9)).save("a.png")
    shipped = torch.load(run / "checkpoints/swa.pt", weights_only=True)
    none: dict[str, Any] = {"channels": None, "size": [], "mean": [], "std": [], "resize": None, "crop": "none"}
    own = shipped["recipe"] | {"dataset": shipped["recipe"]["dataset"] | {"name": "mine:data"}}
    scaled = {"mean": [0.0] * 3, "std": [1.0] * 3}
    (Path("mine.py")).write_text("def data(): ...")
    for changes, part in (
        ({"input": shipped["input"] | none}, "are no images"),
        ({"input": shipped["input"] | {"channels": 2, "mean": [0.0] * 2, "std": [1.0] * 2}}, "2 channels"),
        ({"input": shipped["input"] | scaled, "recipe": own}, "mine:data has prepared its images itself"),
    ):
        torch.save(shipped | changes, "changed.pt")
        ended = swa("predict", "changed.pt", "a.png", "--allow-code")
        assert ended.code == 2
        assert part in " ".join(ended.err.split())


# --- other tasks


def test_masks_do_not_replace_the_working_directory(swa: Swa, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`-o .` in an empty folder: exit 2 with another place."""
    Path("bright.py").write_text(BRIGHT)
    Path("bright.yaml").write_text(SEGMENTATION)
    assert swa("train", "bright.yaml", "-q").code == 0
    Image.new("RGB", (16, 16)).save("a.png")
    Path("empty").mkdir()
    monkeypatch.chdir("empty")
    ended = swa("predict", tmp_path / "runs/latest", tmp_path / "a.png", "--allow-code", "-o", ".")
    assert ended.code == 2, ended.err
    assert "-o FOLDER" in ended.err


def test_masks_have_the_size_of_their_images(swa: Swa) -> None:
    """A network that finds bright pixels, on images of several sizes: palette files of the same size and pixels."""
    Path("bright.py").write_text(BRIGHT)
    Path("bright.yaml").write_text(SEGMENTATION)
    assert swa("train", "bright.yaml", "-q").code == 0
    Path("photos/deep").mkdir(parents=True)
    sizes = {"a.png": (16, 16), "b.jpg": (64, 64), "deep/c.png": (48, 96)}
    for name, (height, width) in sizes.items():
        pixels = np.zeros((height, width), dtype=np.uint8)
        pixels[: height // 2] = 255
        Image.fromarray(pixels).convert("RGB").save(f"photos/{name}")
    words = ("predict", "runs/latest", "photos", "--allow-code")
    for folder, change in (("masks", "eval.crop=center"), ("whole", "eval.crop=none")):
        ended = swa(*words, "-o", folder, "--json", change)
        assert ended.code == 0, ended.err
        assert ended.json["images"] == 3
        for name, (height, width) in sizes.items():
            mask = Image.open(Path(folder, name).with_suffix(".png"))
            assert mask.mode == "P"
            values = np.asarray(mask)
            assert values.shape == (height, width)
            seen = 1.0 if folder == "whole" else 16 / 18 * 16 / 18 * min(height, width) / max(height, width)
            assert (values != 255).mean() == pytest.approx(seen, abs=0.03)
            edge = height // 10
            assert set(np.unique(values[: height // 2 - edge])) <= {1, 255}
            assert set(np.unique(values[height // 2 + edge :])) <= {0, 255}
    unasked = swa("predict", "runs/latest", "photos", "-o", "unasked")
    assert unasked.code == 2
    assert "--allow-code" in unasked.err
    assert swa(*words, "-o", "masks").code == 2  # not empty
    assert swa(*words, "-o", "photos/masks").code == 2  # the next call would read them
    assert swa(*words).code == 2
    shutil.copy("photos/a.png", "photos/b.png")
    ended = swa(*words, "-o", "others")
    assert ended.code == 2
    assert "b.jpg and b.png would both get the mask b.png" in " ".join(ended.err.split())
    assert not Path("others").exists()
    for suffix in ("jpg", "png"):  # as the hint says
        assert swa("predict", "runs/latest", f"photos/b.{suffix}", "--allow-code", "-o", f"of {suffix}").code == 0
        assert Path(f"of {suffix}/b.png").is_file()


BRIGHT = """\
import torch
from torch import nn

def data():
    masks = (torch.arange(24)[:, None, None] + torch.arange(16)[:, None] > 15).long().expand(-1, -1, 16).clone()
    images = (255 * masks[:, None]).to(torch.uint8)
    train, test = (torch.utils.data.TensorDataset(images[part::2], masks[part::2]) for part in (0, 1))
    return {"train": train, "test": test, "num_classes": 2, "target": "mask"}

class Net(nn.Module):
    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, num_classes, 1)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([-1.0, 1.0])[:, None, None, None])
            self.conv.bias.zero_()

    def forward(self, images):
        return self.conv(images)
"""
SEGMENTATION = """\
name: bright
task: segmentation
model: {name: "bright:Net"}
dataset: {name: "bright:data", val: 0, cache: ram, image_size: 16}
optimizer: {lr: 0.0001}
swa: {start: 0ep, every: 1ep}
train: {epochs: 2, batch_size: 4, threads: 1, precision: fp32}
"""


@pytest.mark.parametrize("resize", [None, 10, 20])
@pytest.mark.parametrize("size", [(30, 50), (50, 30), (17, 17), (4, 9)])
def test_the_part_that_a_view_shows(resize: int | None, size: tuple[int, int]) -> None:
    """The view of a white image on black borders, against the part of the view that is told to hold the image."""
    view = EvaluationView((10, 14), resize)
    box, into = view.shown_part(size)
    from swa_cli.data.transforms import Pixels

    shown = view.image(Pixels(torch.full((3, *size), 255, dtype=torch.uint8)))[0] > 0
    expected = torch.zeros(10, 14, dtype=torch.bool)
    expected[into.top : into.top + into.height, into.left : into.left + into.width] = True
    assert torch.equal(shown, expected)
    assert box.top + box.height <= size[0]
    assert box.left + box.width <= size[1]
    values = torch.stack([torch.zeros(10, 14), torch.ones(10, 14)])
    mask = predict.mask_of(values, size=size, view=view)
    assert mask.shape == size
    inside = torch.zeros(size, dtype=torch.bool)
    inside[box.top : box.top + box.height, box.left : box.left + box.width] = True
    assert torch.equal(mask == 1, inside)
    assert torch.equal(mask == 255, ~inside)


def test_numbers_have_a_column_each(swa: Swa) -> None:
    """A run of regression: one column `value`, and the numbers of plain torch."""
    Path("r.yaml").write_text(
        "name: turned\ntask: regression\nmodel: {name: convnet, args: {width: 4}}\ndataset: {name: rotated_digits}\n"
        "optimizer: {lr: 0.01}\nswa: {start: 50%, every: 1ep}\n"
        "train: {epochs: 2, batch_size: 64, threads: 1, precision: fp32}\n"
    )
    assert swa("train", "r.yaml", "-q").code == 0
    content = torch.load("runs/latest/checkpoints/swa.pt", weights_only=True)
    size = tuple(content["input"]["size"])
    pixels = torch.randint(0, 256, size, generator=generator(0, "pixels"), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save("a.png")
    ended = swa("predict", "runs/latest", "a.png", "-o", "p.csv")
    assert ended.code == 0, ended.err
    (row,) = rows_of("p.csv")
    names = content["input"]["classes"] or ["value"]
    assert list(row) == ["path", *names]
    from swa_cli.models import build_model

    model = build_model.build("convnet", num_classes=len(names), in_channels=1, args={"width": 4}).eval()
    model.load_state_dict(content["state_dict"])
    mean, std = (torch.tensor(content["input"][key]) for key in ("mean", "std"))
    with torch.inference_mode():
        expected: Tensor = model((pixels[None, None] / 255 - mean) / std)[0]
    assert [float(row[name]) for name in names] == pytest.approx(expected.tolist(), abs=1e-5)
    assert swa("predict", "runs/latest", "a.png", "--top", "2").code == 2
