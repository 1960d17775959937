"""Every command, recipe and example of README and docs/, run as a reader would: in its order, in one folder per page.

Small recipes and small photos have the names that the pages use. What is not run is in `NOT_RUN` with its reason, or in
`RUN_BY` with the test that runs it against an oracle.
"""

from __future__ import annotations

import ast
import itertools
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from conftest import Swa, copy_runs, run_swa
from pages import PAGES, ROOT, Reader, runnable
from photo_sources import encoded, in_parquet
from processes import exit_codes, start_ranks
from published import in_cache
from written_runs import write_repeat

pytestmark = pytest.mark.slow

NOT_RUN = {  # how it begins, and why it cannot run in a test
    "pip install": "it would change the environment of the tests, from the network",
    "pipx install": "likewise",
    "docker": "it builds on images of the network",
    "make": "each target installs, or takes minutes; the continuous integration is made of them",
    "python tests/golden_runs.py": "it takes minutes: it trains every shipped recipe",
    'dataset: {name: "hf:user/pets"': "it is downloaded; test_data_hugging_face.py has a hub of its own",
}
RUN_BY = {  # how it begins, and the test that runs it
    "python tests/trace_run.py": "test_a_small_run_enters_few_files_and_parses_its_recipe_once",
    "import json\n\nclass JsonLines": "test_the_example_of_the_page_writes_every_epoch_once",
    "import torch\nfrom swa_cli import SWA": "test_the_loop_with_swa_runs",
    "from swa_cli import WeightAverage": "test_the_loop_with_weight_average_runs",
    "import lightning": "test_the_callback_for_lightning_runs",
    "from accelerate": "test_the_loop_with_accelerate_runs",
}
DIGITS: dict[str, Any] = {
    "name": "digits-convnet",
    "model": {"name": "convnet", "args": {"width": 4}},
    "dataset": {"name": "digits", "args": {"test": 1600}},
    "optimizer": {"lr": 0.1},
    "swa": {"start": "50%"},
    "snapshots": {"every": "1ep"},
    "train": {"epochs": 4, "batch_size": 64, "precision": "fp32"},
}
LONG = DIGITS | {
    "averages": {"swag": {"kind": "swag", "rank": 3}},
    "snapshots": {"every": "5ep", "cumulative": True},
    "train": DIGITS["train"] | {"epochs": 40},
}
WITHOUT_AVERAGES = {key: DIGITS[key] for key in ("model", "dataset", "optimizer", "train")}
PHOTOS: dict[str, Any] = {
    "model": {"name": "convnet", "args": {"width": 2}},
    "dataset": {"name": "image_folder", "root": "pets", "image_size": 16, "workers": 0},
    "optimizer": {"lr": 0.1},
    "swa": {"start": "50%"},
    "train": {"epochs": 2, "batch_size": 8, "precision": "fp32"},
}
SMALL_PHOTOS = ("model={name: convnet, args: {width: 2}}", "train.epochs=2", "train.batch_size=8", "dataset.workers=0")
WITH_A_HEAD = "torchvision:shufflenet_v2_x0_5"  # the smallest network of torchvision whose head is `fc`


def write(file: str, recipe: Mapping[str, Any], **sections: Any) -> None:
    Path(file).write_text(yaml.safe_dump({**recipe, **sections}))


def pets() -> None:
    """Photos of two classes in splits, with a table of them, and photos without a class."""
    rows = ["path,label,split"]
    for number, (split, label) in enumerate(6 * list(itertools.product(("train", "test"), ("cat", "dog")))):
        path = Path("pets", split, label, f"{number}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(number % 20))
        rows.append(f"{split}/{label}/{number}.jpg,{label},{split}")
    Path("pets/labels.csv").write_text("\n".join(rows))
    Path("photos").mkdir()
    for number in range(3):
        Path(f"photos/{number}.jpg").write_bytes(encoded(number))


@pytest.fixture(scope="module")
def long_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of `LONG`: 40 epochs, a snapshot every fifth, and a swag average."""
    folder = tmp_path_factory.mktemp("long")
    (folder / "long.yaml").write_text(yaml.safe_dump(LONG))
    run_swa("train", folder / "long.yaml", "-q", "-o", folder / "runs")
    return folder / "runs"


@pytest.fixture
def reader(swa: Swa, signal_at: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Reader:
    """A reader for whom `--processes N` forks processes from one that has imported torch; others launch as users do."""

    def launch(words: list[str], *, processes: int, **_: Any) -> int:
        return max(code or 0 for code in exit_codes(*start_ranks(Path.cwd(), words, processes)))

    monkeypatch.setattr("swa_cli.engine.distributed.launch", launch)
    return Reader(swa, signal_at)


Prepare = Callable[[Reader, pytest.FixtureRequest], None]


def runs(_: Reader, request: pytest.FixtureRequest) -> None:
    copy_runs(request.getfixturevalue("long_runs"), Path("runs"))


def averages(reader: Reader, request: pytest.FixtureRequest) -> None:
    runs(reader, request)
    write("recipe.yaml", WITHOUT_AVERAGES, name="NAME", swa={"start": "50%"}, snapshots={"every": "1ep"})


def after_the_run(reader: Reader, request: pytest.FixtureRequest) -> None:
    shutil.rmtree("runs")
    runs(reader, request)


def swap(reader: Reader, _: pytest.FixtureRequest) -> None:
    write("recipe.yaml", WITHOUT_AVERAGES, name="RUN", swap={"workers": 2, "start": "50%"})
    reader.train("recipe.yaml")
    Path("RUN").symlink_to("runs/RUN-001")


def theirs(reader: Reader, request: pytest.FixtureRequest) -> None:
    """Files of another program: plain state dicts of the network of recipe.yaml."""
    runs(reader, request)
    write("recipe.yaml", DIGITS)
    reader.succeed("export", "runs/latest/checkpoints/swa.pt", "--format", "state-dict", "-o", "theirs.pt")
    for name in ("average", "a", "b"):
        shutil.copy("theirs.pt", f"{name}.pt")


def howto(reader: Reader, request: pytest.FixtureRequest) -> None:
    theirs(reader, request)
    pets()
    write("pets.yaml", PHOTOS)
    write("finetune", PHOTOS, model={"name": WITH_A_HEAD})


def finetuning(reader: Reader, request: pytest.FixtureRequest) -> None:
    pets()
    shutil.copytree("pets/train", "photos", dirs_exist_ok=True)
    in_cache(WITH_A_HEAD, Path.cwd(), request.getfixturevalue("monkeypatch"))
    small = ("dataset.image_size=32", "dataset.workers=0", "train.epochs=4", "train.batch_size=8")
    reader.changes = [f"model.name={WITH_A_HEAD}", *small]


def soups(reader: Reader, _: pytest.FixtureRequest) -> None:
    reader.changes = []
    write("start.yaml", DIGITS, name="start")
    reader.train("start.yaml")
    model = DIGITS["model"] | {"pretrained": "runs/start-001/checkpoints/last.pt"}
    write("recipe.yaml", DIGITS, name="name", model=model)
    for number, name in enumerate("abc"):
        reader.train("recipe.yaml", f"name={name}", "dataset.val_seed=0", f"seed={number}")
    shutil.copy("runs/c-001/checkpoints/swa.pt", "other.pt")


def first_run(_: Reader, __: pytest.FixtureRequest) -> None:
    pets()
    write("digits", DIGITS, train=DIGITS["train"] | {"epochs": 30})


def digits(reader: Reader, _: pytest.FixtureRequest) -> None:
    reader.changes = []
    write("digits", DIGITS)


def one_epoch(_: Reader, __: pytest.FixtureRequest) -> None:
    """Recipes of which many runs are made."""
    for file in ("digits", "recipe.yaml"):
        write(file, DIGITS, train=DIGITS["train"] | {"epochs": 1})


def small_recipe(_: Reader, __: pytest.FixtureRequest) -> None:
    write("recipe.yaml", DIGITS)


def written(reader: Reader, _: pytest.FixtureRequest) -> None:
    """Two repeats with their scores written, and a sweep of two trials."""
    for number, name in enumerate(("a", "b", "digits-convnet-baseline")):
        scores = [((0.9, 0.3 + 0.1 * number), (0.9 - 0.01 * seed, 0.3)) for seed in range(3)]
        write_repeat(Path(f"runs/{name}-repeat-001"), f"optimizer.lr={0.1 + number}", swa=scores)
    write("digits.yaml", DIGITS, name="digits")
    reader.succeed("sweep", "digits.yaml", "swa.lr=0.02,0.05")


def data(reader: Reader, _: pytest.FixtureRequest) -> None:
    pets()
    in_parquet(Path("pets_parquet"))
    shards()
    reader.changes = ["dataset.workers=0", "train.batch_size=2"]


def shards() -> None:
    """A hundred shards of a photo each, and one of validation."""
    import webdataset

    Path("shards").mkdir()
    for split, count in (("train", 100), ("val", 1)):
        for number in range(count):
            with webdataset.TarWriter(f"shards/{split}-{number:03}.tar") as writer:
                writer.write({"__key__": f"{number:04}", "jpg": encoded(number % 20), "cls": number % 2})


def several_labels(_: Reader, __: pytest.FixtureRequest) -> None:
    """Four tiles in a table that has both ways of writing labels."""
    Path("tiles").mkdir()
    rows = ["road|water,0,1,1,train", "forest,1,0,0,train", ",0,0,0,train", "forest|water,1,0,1,val"]
    for number in range(len(rows)):
        Image.new("RGB", (30, 20), (90, 120, 30)).save(f"tiles/{number}.jpg")
    table = [f"{number}.jpg,{row}\n" for number, row in enumerate(rows)]
    Path("tiles/tags.csv").write_text("path,tags,forest,road,water,split\n" + "".join(table))


@pytest.fixture(scope="module")
def resnet_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of a `torchvision:resnet18` recipe on photos of ten classes."""
    folder = tmp_path_factory.mktemp("resnet")
    for number in range(30):
        path = folder / "ten" / ("test" if number >= 20 else "train") / f"class-{number % 10}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(number % 20))
    dataset = PHOTOS["dataset"] | {"root": str(folder / "ten"), "image_size": 32, "val": 0}
    recipe = PHOTOS | {"name": "resnet", "model": {"name": "torchvision:resnet18"}, "dataset": dataset}
    (folder / "resnet.yaml").write_text(yaml.safe_dump(recipe))
    run_swa("train", folder / "resnet.yaml", "-q", "-o", folder / "runs")
    return folder / "runs"


def resnet(_: Reader, request: pytest.FixtureRequest) -> None:
    shutil.rmtree("runs", ignore_errors=True)
    copy_runs(request.getfixturevalue("resnet_runs"), Path("runs"))


def predict(reader: Reader, request: pytest.FixtureRequest) -> None:
    resnet(reader, request)
    pets()
    for name in ("a.jpg", "b.png", "photo.jpg"):
        Image.new("RGB", (50, 40), (90, 120, 30)).save(name)


def new_photos(reader: Reader, _: pytest.FixtureRequest) -> None:
    pets()
    reader.changes = SMALL_PHOTOS


def without_downloads(reader: Reader, _: pytest.FixtureRequest) -> None:
    """Digits in the place of CIFAR-10, which is not here."""
    reader.changes = ["dataset.name=digits", "dataset.val=10%", "train.batch_size=8"]


def few_scenes(reader: Reader, _: pytest.FixtureRequest) -> None:
    reader.changes = ["dataset.args.train=16", "dataset.args.test=4"]


def reset(reader: Reader, _: pytest.FixtureRequest) -> None:
    reader.changes = []


def whole_recipe(reader: Reader, _: pytest.FixtureRequest) -> None:
    """Digits in the place of CIFAR-10, and a run of the same network to start from."""
    write("start.yaml", DIGITS, name="NAME", model={"name": "preresnet20"}, train={"epochs": 1, "batch_size": 64})
    reader.train("start.yaml")
    without_downloads(reader, _)
    reader.changes = [*reader.changes, "dataset.image_size=16", "eval.image_size=16"]


BEFORE: dict[str, dict[str, Prepare]] = {  # page -> the heading above a block -> what is made before the block
    "README.md": {
        "Your own photos": new_photos,
        "The commands": digits,
        "The recipe": without_downloads,
        "What a run leaves": resnet,
    },
    "averages.md": {"While it trains": averages, "After the run": after_the_run, "Large batches": swap},
    "batchnorm.md": {"": theirs},
    "checkpoints.md": {"Open a checkpoint": resnet},
    "compare.md": {"One table": written},
    "data.md": {"": data, "Several labels": several_labels},
    "explained.md": {"Where to start": digits},
    "faq.md": {"SWA or EMA": theirs, "Which `swa.lr`": one_epoch},
    "finetuning.md": {"": finetuning, "Several fine-tunings": soups},
    "first_run.md": {"Train": first_run, "Ask whether": one_epoch},
    "howto.md": {"The averaged": howto},
    "photos.md": {"": new_photos},
    "predict.md": {"Predict": predict, "Export": after_the_run},
    "processes.md": {"One machine": small_recipe, "Many runs": one_epoch},
    "recipe.md": {"": whole_recipe},
    "sweep.md": {"": one_epoch},
    "your_own.md": {"Several labels": few_scenes, "Optimizers": reset},
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_of_a_page_runs(page: Path, reader: Reader, request: pytest.FixtureRequest) -> None:
    """Each command ends with 0, each recipe makes a real step, each example in Python raises nothing."""
    before = dict(BEFORE.get(page.name, {}))
    for block, text in runnable(page):
        for heading in [heading for heading in before if block.heading.startswith(heading)]:
            before.pop(heading)(reader, request)
        if not text.startswith((*NOT_RUN, *RUN_BY)):
            try:
                said = reader.run(block, text)
            except BaseException as error:
                raise AssertionError(f"{block.place}: {text[:200]}: {error}") from error
            if page.name == "README.md" and text.startswith("swa report"):  # of a run that has all pictures
                assert "left out" not in said
    assert before == {}


def test_what_is_not_run_is_on_a_page() -> None:
    """Each entry of `NOT_RUN` and `RUN_BY` begins something that a page shows, and its test is there."""
    shown = [text for page in PAGES for _, text in runnable(page)]
    unused = [start for start in (*NOT_RUN, *RUN_BY) if not any(text.startswith(start) for text in shown)]
    assert unused == []
    functions = {
        node.name
        for path in (ROOT / "tests").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    assert set(RUN_BY.values()) <= functions
