"""Names that mean something to a terminal, a page or a file system: they are printed as they are, and go nowhere."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from hostile.making import GOOD

CLASSES = ("[red]x[bold]", "<img src=x onerror=alert(1)>", "\x1b]0;title\x07\x1b[31mred", "$x_1$ {b} 100%")


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """A recipe of images whose classes have such names."""
    for split in ("train", "test"):
        for index, name in enumerate(CLASSES):
            folder = tmp_path / "pets" / split / name
            folder.mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (8, 8), (60 * index, 60 * number, 9)).save(folder / f"{number}.png")
    text = GOOD.replace("{name: digits, val: 0}", "{name: image_folder, root: pets, val: 0, workers: 0}")
    path = tmp_path / "pets.yaml"
    path.write_text(text.replace("batch_size: 256", "batch_size: 4"))
    return path


def test_class_names_reach_no_terminal_and_no_page_as_commands(swa, pets: Path, tmp_path: Path) -> None:
    """Classes named by markup, HTML, escapes and formulas, in each output: exit 0, no escape, and no element."""
    said = [
        swa("train", pets),
        swa("show", "runs/latest"),
        swa("show", "runs/latest/checkpoints/swa.pt"),
        swa("eval", "runs/latest"),
        swa("plot", "runs/latest", "confusion", "-o", "confusion.svg"),
        swa("report", "runs/latest", "-o", "page.html"),
    ]
    assert [ended.code for ended in said] == [0] * len(said), [ended.err for ended in said]
    texts = [ended.out + ended.err for ended in said]
    assert CLASSES[0] in "".join("".join(texts).split())  # lines are wrapped
    pages = [(tmp_path / name).read_text() for name in ("confusion.svg", "page.html")]
    assert not any(CLASSES[1] in page for page in pages)
    for text in [*texts, *pages, (tmp_path / "runs/latest/log.txt").read_text()]:
        assert "\x1b" not in text
        assert "\x07" not in text


def test_a_class_of_no_characters_is_shown(swa, trained: Path, tmp_path: Path) -> None:
    """A class name with a byte that is no character, in a checkpoint: exit 0 and JSON, in which it is a `?`."""
    content = torch.load(trained / "swa.pt", weights_only=True)
    content["input"]["classes"][0] = "bad\udcff"
    torch.save(content, tmp_path / "bad.pt")
    assert swa("show", "bad.pt").code == 0
    ended = swa("show", "bad.pt", "--json")
    assert ended.code == 0
    assert ended.json["input"]["classes"][0] == "bad?"


@pytest.fixture
def odd(tmp_path: Path) -> Iterator[Path]:
    """A folder whose name has a byte that is no character."""
    folder = os.fsencode(tmp_path) + b"/odd\xff"
    os.mkdir(folder)
    yield Path(os.fsdecode(folder))
    os.chdir(tmp_path)


def test_paths_that_are_not_utf8_are_refused_before_a_run(swa, odd: Path, tmp_path: Path) -> None:
    """A recipe there, and the working directory itself: exit 2, what to rename, and no run folder."""
    (odd / "good.yaml").write_text(GOOD)
    (tmp_path / "good.yaml").write_text(GOOD)
    for words in (["train", odd / "good.yaml"], ["train", "good.yaml", "-o", odd], ["show", odd / "none.pt"]):
        ended = swa(*words)
        assert ended.code == 2
        assert "Traceback" not in ended.err
    os.chdir(odd)
    ended = swa("train", tmp_path / "good.yaml")
    assert ended.code == 2
    assert "not UTF-8" in ended.err
    assert "-o DIR" in ended.err
    assert [path.name for path in odd.iterdir()] == ["good.yaml"]
    assert not (tmp_path / "runs").exists()


def test_a_name_that_is_derived_is_no_longer_than_one_that_is_given(swa, tmp_path: Path) -> None:
    """A network of a long name without `name`: the run folder has at most 100 characters before its number."""
    module = "m" * 120
    (tmp_path / f"{module}.py").write_text("from swa_cli.models.convnet import ConvNet\n")
    (tmp_path / "long.yaml").write_text(
        GOOD.replace("name: good\n", "").replace("name: convnet", f"name: '{module}:ConvNet'")
    )
    assert swa("train", "long.yaml", "-q").code == 0
    [folder] = [path.name for path in (tmp_path / "runs").iterdir() if path.name != "latest"]
    assert folder.startswith("digits-mmm")
    assert len(folder) <= 104
    assert swa("train", "long.yaml", f"name={'x' * 100}", "-q").code == 0


@pytest.mark.parametrize("key", ["model.name", "task", "dataset.name"])
def test_a_module_that_ends_the_program_is_no_success(swa, tmp_path: Path, key: str) -> None:
    """A script without a guard, which ends with `sys.exit(0)`, as one's own code: exit 2 and what to put there."""
    (tmp_path / "script.py").write_text("import sys\nsys.exit(0)\n")
    (tmp_path / "good.yaml").write_text(GOOD)
    word = f"{key}=script:Net" if key != "model.name" else "model={name: 'script:Net'}"
    ended = swa("train", "good.yaml", word)
    assert ended.code == 2
    assert "cannot import" in ended.err
    assert "__main__" in ended.err
