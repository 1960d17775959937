"""`task: multilabel` from the command line: a run, its scores from the files that it writes, every other command."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from conftest import Swa, load, run_swa
from swa_cli.analysis import run_data
from swa_cli.data import sources
from swa_cli.metrics.tasks import TASKS
from swa_cli.models import build_model
from swa_cli.report.terminal import Terminal

DATA_PAGE = (Path(__file__).parents[2] / "docs/data.md").read_text()
CLASSES = ("blue", "green", "red")
RECIPE = """\
name: marks
task: multilabel
model: {name: convnet, args: {width: 4}}
dataset: {name: csv, root: ROOT, workers: 0, args: {file: tags.csv, label: tags, label_delimiter: "|"}}
optimizer: {lr: 0.1}
swa: {start: 50%, every: 1ep, eval_every: 1ep}
averages: {ema: {kind: ema, half_life: 1ep, every: 1step, keep: best}}
snapshots: {every: 1ep}
train: {epochs: 4, batch_size: 12, threads: 1, precision: fp32, class_weights: balanced, keep_best: val_map}
"""


def draw(root: Path) -> None:
    """Squares of three colors on noise, in tags.csv and, as columns of 0 and 1, in flags.csv."""
    random = torch.Generator().manual_seed(0)
    root.mkdir()
    tags, flags = ["path,tags,split"], [f"path,{','.join(reversed(CLASSES))},split"]
    for split, count in (("train", 60), ("val", 24), ("test", 36)):
        for number in range(count):
            has = torch.rand(3, generator=random) < torch.tensor([0.2, 0.3, 0.5])
            pixels = torch.randint(0, 120, (8, 8, 3), generator=random)
            for place in has.nonzero()[:, 0].tolist():
                y, x = torch.randint(0, 5, (2,), generator=random).tolist()
                pixels[y : y + 4, x : x + 4, 2 - place] += 100
            name = f"{split}{number:02}.png"
            Image.fromarray(pixels.to(torch.uint8).numpy()).save(root / name)
            tags.append(f"{name},{'|'.join(each for each, there in zip(CLASSES, has, strict=True) if there)},{split}")
            flags.append(f"{name},{','.join(str(int(there)) for there in has.flip(0))},{split}")
    (root / "tags.csv").write_text("\n".join(tags))
    (root / "flags.csv").write_text("\n".join(flags))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small images with several labels, and the run of a network on them."""
    folder = tmp_path_factory.mktemp("trained")
    draw(folder / "marks")
    (folder / "r.yaml").write_text(RECIPE.replace("ROOT", str(folder / "marks")))
    run_swa("train", folder / "r.yaml", "-q", "-o", folder / "runs")
    return folder


@pytest.fixture
def recipe(trained: Path) -> Path:
    return trained / "r.yaml"


@pytest.fixture
def run(trained: Path) -> Path:
    return trained / "runs/marks-001"


def rows_of(path: str | Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return [*csv.DictReader(file)]


def scores_of(p: Tensor, labels: Tensor) -> dict[str, float]:
    """The scores of probabilities and labels (N, K), by the definitions, in float64."""
    p, positive = p.double(), labels > 0.5
    predicted = p > 0.5
    average_precisions, f1s = [], []
    for k in range(p.shape[1]):
        order = p[:, k].argsort(descending=True)
        hits = positive[order, k].cumsum(0)
        precisions = hits / torch.arange(1, len(p) + 1)
        average_precisions.append(float(precisions[positive[order, k]].mean()))
        both = float((predicted[:, k] & positive[:, k]).sum())
        f1s.append(2 * both / float(predicted[:, k].sum() + positive[:, k].sum()))
    return {
        "map": sum(average_precisions) / 3,
        "macro_f1": sum(f1s) / 3,
        "micro_f1": 2 * float((predicted & positive).sum()) / float(predicted.sum() + positive.sum()),
        "label_accuracy": float((predicted == positive).double().mean()),
        "nll": float(-torch.where(positive, p.log(), (1 - p).log()).mean()),
    }


def flags_of(text: str) -> list[float]:
    return [float(name in text.split("|")) for name in CLASSES]


def test_a_run_by_hand(run: Path, trained: Path) -> None:
    """Columns, and the scores of the shipped average from its weights in float64 and the table of labels."""
    assert list(rows_of(run / "metrics.csv")[0]) == [
        "epoch", "step", "lr", "train_loss", "train_label_accuracy", "val_loss", "val_map",
        "swa_val_loss", "swa_val_map", "swa_count", "ema_val_loss", "ema_val_map", "ema_count", "seconds",
    ]  # fmt: skip
    shipped = load(run / "checkpoints/swa.pt")
    assert shipped["recipe"]["task"] == "multilabel"
    assert (shipped["input"]["classes"], shipped["input"]["outputs"]) == ([*CLASSES], 3)
    model = build_model.build("convnet", num_classes=3, in_channels=3, args={"width": 4})
    model.load_state_dict(shipped["state_dict"])
    rows = [row for row in rows_of(trained / "marks/tags.csv") if row["split"] == "test"]
    pixels = [torch.tensor([*Image.open(trained / "marks" / row["path"]).tobytes()]).view(8, 8, 3) for row in rows]
    images = torch.stack(pixels).permute(0, 3, 1, 2).double() / 255
    mean, std = (torch.tensor(shipped["input"][key], dtype=torch.float64).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        p = model.double().eval()((images - mean) / std).sigmoid()
    labels = torch.tensor([flags_of(row["tags"]) for row in rows])
    found = json.loads((run / "result.json").read_text())["weights"]["swa"]
    expected = scores_of(p, labels)
    assert {key: found[key] for key in expected} == pytest.approx(expected, abs=1e-5)
    assert all(found[f"{key}_se"] > 0 for key in expected)
    assert found["map_diff_se"] >= 0
    assert found["map"] > float(labels.mean()) + 0.2, "a guess has the share of positives as its precision"


def test_the_best_epoch_is_that_of_the_highest_map(run: Path) -> None:
    """best.pt by val_map, and the kept average by its loss, against the rows of metrics.csv."""
    rows = rows_of(run / "metrics.csv")
    maps = [float(row["val_map"]) for row in rows]
    best = load(run / "checkpoints/best.pt")
    assert best["average"]["steps"] == [5 * (1 + maps.index(max(maps)))]
    losses = [float(row["ema_val_loss"]) for row in rows]
    assert load(run / "checkpoints/ema.pt")["average"]["steps"][-1] == 5 * (1 + losses.index(min(losses)))


def test_predictions_give_the_scores(swa: Swa, run: Path) -> None:
    """The csv of eval by hand: every score of every weight set, the ensemble too; the classes of the table."""
    words = ("eval", run, "--per-class", "--predictions", "s.csv", "--ensemble")
    ended = swa(*words, "--json")
    assert ended.code == 0, ended.err
    found, per_class = ended.json["weights"], ended.json["per_class"]
    assert {"last", "last_bn", "best", "swa", "ema", "ensemble"} <= found.keys()
    rows = rows_of("s.csv")
    columns = [f"probability_{name}" for name in CLASSES]
    assert list(rows[0]) == ["weights", "path", "label", "prediction", "loss", *columns]
    assert any(not row["label"] for row in rows)
    for name, scores in found.items():
        own = [row for row in rows if row["weights"] == name]
        assert len({row["path"] for row in own}) == len(own) == 36
        p = torch.tensor([[float(row[column]) for column in columns] for row in own])
        labels = torch.tensor([flags_of(row["label"]) for row in own])
        expected = scores_of(p, labels)
        assert {key: scores[key] for key in expected} == pytest.approx(expected, abs=1e-6), name
        assert sum(float(row["loss"]) for row in own) / 36 == pytest.approx(scores["nll"], abs=1e-6)
        assert [flags_of(row["prediction"]) for row in own] == (p > 0.5).float().tolist()
        assert per_class[name]["map"] == pytest.approx(scores["map"])
        assert [each["support"] for each in per_class[name]["classes"]] == labels.sum(0).int().tolist()
    told = swa(*words[:3]).out
    assert "classes of swa" in told
    assert all(word in told for word in ("AP %", "mAP %", *CLASSES))


@pytest.mark.parametrize("tta", ["none", "flip"])
def test_predict_agrees_with_eval(swa: Swa, run: Path, trained: Path, tta: str) -> None:
    """csv, json and parquet of `swa predict` against the csv of eval on the same files, digit by digit."""
    import pyarrow.parquet as pq

    assert swa("eval", run, "--weights", "swa", "--predictions", "s.csv", f"eval.tta={tta}").code == 0
    test = sorted((trained / "marks").glob("test*.png"))
    for name in ("p.csv", "p.json", "p.parquet"):
        assert swa("predict", run, *test, "--tta", tta, "-o", name).code == 0
    columns = [f"probability_{name}" for name in CLASSES]
    rows = rows_of("p.csv")
    assert list(rows[0]) == ["path", "labels", *columns]
    expected = rows_of("s.csv")
    assert [row["labels"] for row in rows] == [row["prediction"] for row in expected]
    numbers = [[float(row[column]) for column in columns] for row in expected]
    assert [[float(row[column]) for column in columns] for row in rows] == numbers
    for values in (json.loads(Path("p.json").read_text())["predictions"], pq.read_table("p.parquet").to_pylist()):
        assert ["|".join(value["labels"]) for value in values] == [row["prediction"] for row in expected]
        assert [[value[column] for column in columns] for value in values] == numbers


def test_predictions_without_any_label(swa: Swa, run: Path, trained: Path) -> None:
    """Parquet of images whose lists are all empty, which is what it begins with, and stdout; --top has no meaning."""
    import pyarrow.parquet as pq

    shipped = load(run / "checkpoints/swa.pt")
    bias = next(key for key in reversed(shipped["state_dict"]) if key.endswith("bias"))
    shipped["state_dict"][bias] -= 100
    torch.save(shipped, "low.pt")
    assert swa("predict", "low.pt", trained / "marks/test00.png", "-o", "p.parquet").code == 0
    table = pq.read_table("p.parquet")
    assert table["labels"].to_pylist() == [[]]
    assert str(table.schema.field("labels").type.value_type) == "string"
    told = swa("predict", run, trained / "marks/test00.png", trained / "marks/test01.png").out.splitlines()
    assert told[0].split()[:2] == ["path", "labels"]
    assert len(told) == 3
    ended = swa("predict", run, trained / "marks", "--top", "2")
    assert ended.code == 2
    assert "--top 2: all labels above 0.5" in ended.err


def test_columns_of_0_and_1_are_the_same_run(swa: Swa, recipe: Path, run: Path) -> None:
    """flags.csv, with the classes in the same order, against the rows of the run with tags.csv."""
    args = f"dataset.args={{file: flags.csv, labels: [{', '.join(CLASSES)}]}}"
    assert swa("train", recipe, "-q", args).code == 0
    rows, expected = (rows_of(path / "metrics.csv") for path in (Path("runs/latest"), run))
    assert [{**row, "seconds": ""} for row in rows] == [{**row, "seconds": ""} for row in expected]


def test_a_run_goes_on_to_the_same_end(swa: Swa, recipe: Path, tmp_path: Path) -> None:
    """Gone on with from a save inside the last epoch, with mixed labels, against the undisturbed end, to the bit."""
    words = ("output.save_every=4step", "dataset.augment={mixup: 0.5, cutmix: 1.0, flip: true}", "train.loss=focal")
    assert swa("train", recipe, "-q", *words).code == 0
    run = tmp_path / "runs/marks-001"
    whole, rows = load(run / "checkpoints/last.pt"), rows_of(run / "metrics.csv")
    shipped = {name: load(run / f"checkpoints/{name}.pt")["state_dict"] for name in ("best", "swa", "ema")}
    assert load(run / "checkpoints/previous.pt")["step"] == 16
    (run / "checkpoints/last.pt").unlink()
    (run / "result.json").unlink()
    ended = swa("train", "--resume", run, "-q")
    assert ended.code == 0, ended.err
    again = load(run / "checkpoints/last.pt")
    assert all(torch.equal(again["model"][key], value) for key, value in whole["model"].items())
    for name, state in shipped.items():
        found = load(run / f"checkpoints/{name}.pt")["state_dict"]
        assert all(torch.equal(found[key], value) for key, value in state.items()), name
    assert [{**row, "seconds": ""} for row in rows_of(run / "metrics.csv")] == [{**row, "seconds": ""} for row in rows]


def test_every_other_command(swa: Swa, recipe: Path, trained: Path, tmp_path: Path) -> None:
    """plan, repeat, bn-update, average, export, report and each picture: done, or refused in words."""
    run = tmp_path / "marks"
    shutil.copytree(trained / "runs/marks-001", run)
    planned = " ".join(swa("plan", recipe).out.split())
    assert re.search(r"3 classes of \d+ \(blue\) to \d+ \(red\) train samples", planned)
    assert re.search(r"labels per sample, \d+ train samples without any", planned)
    assert "class weights balanced" in planned
    both = swa("repeat", recipe, "--seeds", "0-1", "train.epochs=2", "-q")
    assert both.code == 0, both.err
    assert "mAP %" in both.out
    before = swa("eval", run, "--json").json["weights"]["swa"]
    assert swa("bn-update", run / "checkpoints/swa.pt").code == 0
    assert swa("eval", run, "--json").json["weights"]["swa"]["map"] == pytest.approx(before["map"], abs=1e-6)
    assert swa("average", run, "--greedy", "-o", "greedy.pt").code == 0
    assert swa("export", run / "checkpoints/swa.pt", "--format", "safetensors", "-o", "m.safetensors").code == 0
    from safetensors import safe_open

    with safe_open("m.safetensors", framework="pt") as file:
        about = {key: json.loads(file.metadata()[key]) for key in ("recipe", "input", "scores")}
    assert (about["recipe"]["task"], about["input"]["classes"]) == ("multilabel", [*CLASSES])
    assert about["scores"]["map"] == before["map"]
    for kind in ("curves", "schedule", "window"):
        assert swa("plot", run, kind).code == 0, kind
    for kind in ("calibration", "confusion"):
        ended = swa("plot", run, kind)
        assert ended.code == 2
        assert f"its task is multilabel, and {kind} needs classification" in " ".join(ended.err.split())
    assert swa("report", run, "-o", "page.html").code == 0
    page = Path("page.html").read_text()
    assert "the mean AP is the mAP" in page
    assert "with the highest loss of swa" in page
    assert "Calibration" not in page


def test_the_hardest_images_have_their_labels(swa: Swa, run: Path) -> None:
    """The contact sheet of the page against the csv of eval: files, labels and losses in order."""
    assert swa("eval", run, "--weights", "swa", "--predictions", "s.csv").code == 0
    rows = sorted(rows_of("s.csv"), key=lambda row: -float(row["loss"]))
    _, samples = run_data.hardest(run_data.OpenRun(run, terminal=Terminal(quiet=True)))
    for sample, row in zip(samples, rows, strict=False):
        texts = tuple(row[key] or "no label" for key in ("label", "prediction"))
        assert (sample.name, sample.label, sample.predicted) == (row["path"], *texts)
        assert sample.loss == pytest.approx(float(row["loss"]), abs=1e-5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train.loss=cross_entropy"], "train.loss: is the cross_entropy of one class per image"),
        (["train.focal_gamma=1"], "the loss bce has no gamma"),
        (["dataset.sampler=balanced"], "class_weights: balanced"),
        (["train.class_weights=[1, 2]"], "2 weights for 3 classes"),
        (["task=classification"], "set task: multilabel"),
        (["dataset.args={file: flags.csv, label: red}"], "'dataset.args.label_delimiter=\"|\"'"),
        (["dataset.args={file: tags.csv, label: path}"], "which the training split lacks"),
        (["dataset.args={file: tags.csv, label: tags}"], "If rows have several labels, or none, write 'dataset.args"),
        (["dataset={name: digits}"], "learns labels that are multilabel, and those of digits are class"),
        (["train.early_stopping={patience: 1, metric: val_accuracy}"], "val_map"),
    ],
)
def test_what_does_not_go_with_several_labels(swa: Swa, recipe: Path, words: list[str], said: str) -> None:
    """Losses, samplers, weights, columns and data of another task: exit 2 and the reason or the fix."""
    ended = swa("train", recipe, *words)
    assert ended.code == 2
    assert said in " ".join(ended.err.split())


def test_weights_that_cannot_be_balanced(swa: Swa, trained: Path) -> None:
    """A class that all training images have, and one that none has, against their names."""
    tags = rows_of(trained / "marks/tags.csv")
    for change, said in (
        (lambda text: f"red|{text}", "all training samples are red"),
        (str, "no training samples of x"),
    ):
        lines = [f"{trained}/marks/{row['path']},{change(row['tags'])},{row['split']}" for row in tags]
        Path("tags.csv").write_text("\n".join(["path,tags,split", *lines]))
        classes = "dataset.args.classes=[blue, green, red, x]" if change is str else "dataset.val=10%"
        ended = swa("train", trained / "r.yaml", "dataset.root=.", classes)
        assert ended.code == 2
        assert said in " ".join(ended.err.split())


def test_a_rare_class_is_hinted_at(swa: Swa, trained: Path) -> None:
    """Two labels of one class and many of another: the plan names class_weights, and not the sampler."""
    tags = rows_of(trained / "marks/tags.csv")
    lines = [f"{trained}/marks/{row['path']},red{'|rare' * (i < 2)},{row['split']}" for i, row in enumerate(tags)]
    Path("tags.csv").write_text("\n".join(["path,tags,split", *lines]))
    words = ("plan", trained / "r.yaml", "dataset.root=.", "train.class_weights=none")
    told = " ".join(swa(*words).out.split())
    assert "2 classes of 2 (rare) to 60 (red) train samples, 30 times as many" in told
    assert "train.class_weights=balanced" in told
    assert "dataset.sampler" not in told


def test_the_loss_of_a_run_is_torchs(swa: Swa, recipe: Path, trained: Path) -> None:
    """A run with a rate of 0 against BCEWithLogitsLoss of its saved weights, with negatives per positive."""
    words = ("train.batch_size=60", "model.args={width: 2}", "optimizer.lr=0.0", "train.epochs=1")
    ended = swa("train", recipe, "-q", "--json", *words, "averages=null", "swa=null", "train.keep_best=null")
    assert ended.code == 0, ended.err
    labels = torch.tensor(
        [flags_of(row["tags"]) for row in rows_of(trained / "marks/tags.csv") if row["split"] == "train"]
    )
    weights = (60 - labels.sum(0)) / labels.sum(0)
    point, row = load("runs/latest/checkpoints/last.pt"), rows_of("runs/latest/metrics.csv")[0]
    model = build_model.build("convnet", num_classes=3, in_channels=3, args={"width": 2})
    model.load_state_dict(point["model"])
    names = [row["path"] for row in rows_of(trained / "marks/tags.csv") if row["split"] == "train"]
    pixels = [torch.tensor([*Image.open(trained / "marks" / name).tobytes()]).view(8, 8, 3) for name in names]
    mean, std = (torch.tensor(point["input"][key]).view(3, 1, 1) for key in ("mean", "std"))
    images = (torch.stack(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.no_grad():
        logits = model.train()(images)
    expected = torch.nn.BCEWithLogitsLoss(pos_weight=weights)(logits, labels)
    assert float(row["train_loss"]) == pytest.approx(float(expected), abs=1e-5)
    task = TASKS["multilabel"]
    assert float(row["train_label_accuracy"]) == pytest.approx(float(task.train_score(logits, labels)), abs=1e-6)


# --- docs


def test_the_tables_of_the_documentation_train(swa: Swa) -> None:
    """Both tables and both lines of docs/data.md, with enough photos of the same names: a run each."""
    section = DATA_PAGE.partition("## Several labels per image")[2].partition("\n## ")[0]
    tables = re.findall(r"```csv\n(path,.*?)```", section, re.DOTALL)
    lines = re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)
    assert (len(tables), len(lines)) == (2, 2)
    Path("tiles").mkdir()
    for name in {name for table in tables for name in re.findall(r"\w+\.jpg", table)}:
        Image.new("RGB", (30, 20), (90, 120, 30)).save(f"tiles/{name}")
    for table, line in zip(tables, lines, strict=True):
        Path("tiles/tags.csv").write_text(table)
        values: dict[str, Any] = {"task": "multilabel", **yaml.safe_load(line)}
        values["dataset"] |= {"image_size": 8, "workers": 0}
        values |= {"model": {"name": "convnet", "args": {"width": 2}}, "optimizer": {"lr": 0.1}}
        values["train"] = {"epochs": 1, "batch_size": 1, "threads": 1, "precision": "fp32"}
        Path("r.yaml").write_text(json.dumps(values))
        ended = swa("train", "r.yaml", "--dry-run", "--json")
        assert ended.code == 0, ended.err
        assert ended.json["loss"] > 0
        found = sources.load("csv", root="tiles", workers=0, args=values["dataset"]["args"])
        assert found.class_names == ("forest", "road", "water")
        assert found.train.labels.tolist() == [[0, 1, 1], [1, 0, 0], [0, 0, 0]]
        assert found.val.labels.tolist() == [[1, 0, 1]]
