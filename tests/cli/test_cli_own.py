"""A person's own package outside the repository: network, data and task, errors in it, and what is refused of it."""

from __future__ import annotations

import csv
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from conftest import load

# Two inputs of a network go through a BatchNorm each; the task tells whether they are near, and has a loss of its own.
NETWORK = """\
import torch
from torch import nn

class Pair(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.norm_left, self.norm_right = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
        self.net = nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, *, left, right):
        return {"score": self.net(torch.cat([self.norm_left(left), self.norm_right(right)], 1))[:, 0]}
"""
DATA = """\
import torch

class Pairs(torch.utils.data.Dataset):
    def __init__(self, count, seed):
        generator = torch.Generator().manual_seed(seed)
        self.left = 5 + 2 * torch.randn(count, 3, generator=generator)
        self.right = self.left + torch.randn(count, 3, generator=generator)

    def __len__(self):
        return len(self.left)

    def __getitem__(self, row):
        near = (self.left[row] - self.right[row]).norm() < 1.5
        return {"left": self.left[row], "right": self.right[row]}, {"near": float(near), "row": row}

def pairs():
    return {"train": Pairs(200, 0), "val": Pairs(40, 1), "test": Pairs(60, 2), "target": "own"}
"""
TASK = """\
import torch
import torch.nn.functional as F

class Nearness:
    scores = {"hits": "higher", "loss": "lower", "distance": "lower"}

    def loss(self, outputs, targets, *, label_smoothing):
        return F.binary_cross_entropy_with_logits(outputs["score"], targets["near"])

    def predict(self, outputs):
        return outputs["score"].sigmoid()

    def metrics(self, predictions, targets):
        near = targets["near"]
        return {
            "loss": F.binary_cross_entropy(predictions, near, reduction="none"),
            "hits": ((predictions > 0.5) == (near > 0.5)).float(),
            "distance": (predictions - near).abs(),
        }
"""
RECIPE = """\
name: own
task: pairwise.task:Nearness
model: {name: "pairwise.network:Pair", args: {width: 6}}
dataset: {name: "pairwise.data:pairs", workers: 0}
optimizer: {lr: 0.1}
schedule: {name: constant}
swa: {start: 50%, every: 0.5ep, eval_every: 1ep}
averages: {swag: {kind: swag, rank: 2, every: 0.2ep}}
snapshots: {every: 1ep}
train: {epochs: 4, batch_size: 20, threads: 1, precision: fp32}
"""


@pytest.fixture
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A recipe beside the package `pairwise`, in a folder that is neither the repository nor where commands are run."""
    folder = tmp_path_factory.mktemp("project")
    package = folder / "pairwise"
    package.mkdir()
    for name, text in (("__init__", ""), ("network", NETWORK), ("data", DATA), ("task", TASK)):
        (package / f"{name}.py").write_text(text)
    (folder / "own.yaml").write_text(RECIPE)
    path = list(sys.path)
    yield folder
    sys.path[:] = path
    for name in [name for name in sys.modules if name.split(".")[0] == "pairwise"]:
        del sys.modules[name]


def edit(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


def by_hand(state: dict[str, torch.Tensor], project: Path) -> dict[str, float]:
    """Scores of the test pairs in float64, from the weights alone."""
    sys.path.append(str(project))
    from pairwise.data import Pairs
    from pairwise.network import Pair

    test, model = Pairs(60, 2), Pair(width=6)
    model.load_state_dict(state)
    model.double().eval()
    with torch.no_grad():
        p = model(left=test.left.double(), right=test.right.double())["score"].sigmoid()
    near = ((test.left - test.right).norm(dim=1) < 1.5).double()
    return {
        "loss": float(nn.functional.binary_cross_entropy(p, near)),
        "hits": float(((p > 0.5) == (near > 0.5)).double().mean()),
        "distance": float((p - near).abs().mean()),
    }


@pytest.mark.slow
def test_the_next_command_of_a_run_with_code_works(swa, project: Path) -> None:
    """What the end of `swa train` says to do next, pasted: the page, which names what allows the code, too."""
    ended = swa("train", project / "own.yaml")
    assert ended.code == 0, ended.err
    (command,) = re.findall(r"swa report .*", ended.out + ended.err)
    assert "--allow-code" in command
    assert swa(*shlex.split(command)[1:]).code == 0
    assert "swa eval runs/latest --allow-code" in Path("report.html").read_text()


@pytest.mark.slow
def test_a_sweep_of_an_own_task_is_drawn_where_its_code_is_allowed(swa, project: Path) -> None:
    """The direction of scores is in the code of the task: exit 2 without --allow-code; what the sweep prints works."""
    ended = swa("sweep", project / "own.yaml", "optimizer.lr=0.05,0.1")
    assert ended.code == 0, ended.err
    page, picture = re.findall(r"swa (?:report|plot) .*", ended.out + ended.err)
    refused = swa("plot", "runs/own-sweep-001", "sweep")
    assert refused.code == 2
    assert "add --allow-code" in refused.err
    for name in [name for name in sys.modules if name.split(".")[0] == "pairwise"]:
        del sys.modules[name]
    sys.path[:] = [path for path in sys.path if path != str(project)]
    for command in (page, picture):
        pasted = swa(*shlex.split(command)[1:])
        assert pasted.code == 0, pasted.err


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_own_package_trains_updates_and_evaluates(swa, project: Path, tmp_path: Path, workers: int) -> None:
    """Three commands on a network with two inputs, dict batches and an own loss; scores and statistics by hand."""
    trained = swa("train", project / "own.yaml", "--json", "-q", f"dataset.workers={workers}")
    assert trained.code == 0, trained.err
    run = tmp_path / "runs/own-001"
    rows = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    assert list(rows[0])[3:9] == ["train_loss", "train_hits", "val_loss", "val_hits", "swa_val_loss", "swa_val_hits"]
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])

    shown = swa("show", run)
    assert shown.code == 0, shown.err
    assert "hits" in shown.out
    assert "swa vs " not in shown.out  # a verdict needs the task, which is not imported

    shipped = load(run / "checkpoints/swa.pt")
    updated = swa("bn-update", run / "checkpoints/swa.pt", "--allow-code", "--json", "-q")
    assert updated.code == 0, updated.err
    state = load(run / "checkpoints/swa.pt")["state_dict"]
    assert all(torch.equal(state[key], value) for key, value in shipped["state_dict"].items())
    evaluated = swa("eval", run, "--allow-code", "--json", "-q")
    assert evaluated.code == 0, evaluated.err

    expected = by_hand(state, project)
    for scores in (trained.json["weights"]["swa"], evaluated.json["weights"]["swa"]):
        for key, value in expected.items():
            assert scores[key] == pytest.approx(value, abs=1e-6)
        assert {"hits_se", "hits_diff", "hits_diff_se", "loss_diff", "distance_diff_se"} <= scores.keys()
    from pairwise.data import Pairs

    for side in ("left", "right"):
        variance, mean = torch.var_mean(getattr(Pairs(200, 0), side).double(), 0)
        assert torch.allclose(state[f"norm_{side}.running_mean"].double(), mean, rtol=1e-6)
        assert torch.allclose(state[f"norm_{side}.running_var"].double(), variance, rtol=1e-6)


def test_exact_statistics_draws_ensembles_and_seeds_take_own_code(swa, project: Path, tmp_path: Path) -> None:
    """What else scores or measures: exact BatchNorm, draws, an ensemble, held data, a tuple batch, two seeds."""
    recipe = project / "own.yaml"
    words = [
        "-q",
        "train.epochs=2",
        "swa.batchnorm.method=exact",
        "dataset.cache=ram",
        "train.early_stopping.patience=9",
    ]
    trained = swa("train", recipe, *words, "train.early_stopping.metric=val_distance")
    assert trained.code == 2
    assert "choose from train_loss, train_hits, val_loss, val_hits, swa_val_loss" in trained.err
    assert swa("train", recipe, *words, "train.early_stopping.metric=val_hits").code == 0
    run = tmp_path / "runs/latest"
    for options in (["--ensemble"], ["--draws", "2", "--weights", "swag"]):
        ended = swa("eval", run, "--allow-code", "--json", "-q", *options)
        assert ended.code == 0, ended.err
        assert 0 < ended.json["weights"][options[0][2:] if options[0] == "--ensemble" else "swag"]["hits"] <= 1
    assert [row.keys() for row in swa("eval", run, "--allow-code", "--ensemble", "--json", "-q").json["ensemble"]] == [
        {"members", "hits", "loss"}
    ] * 2
    both = swa("repeat", recipe, "--seeds", "0-1", "--json", "-q", "train.epochs=1", "swa.start=0%")
    assert both.code == 0, both.err
    assert both.json["weights"]["swa"]["hits_diff"]["values"]


def test_a_function_of_the_task_may_call_the_network(swa, project: Path) -> None:
    """`batch_to_args` that names what a tuple holds, against a run with dict batches: the same weights to the bit."""
    assert swa("train", project / "own.yaml", "-q").code == 0
    edit(
        project / "pairwise/data.py",
        '{"left": self.left[row], "right": self.right[row]}',
        "(self.right[row], self.left[row])",
    )
    with (project / "pairwise/task.py").open("a") as file:
        file.write("\n    def batch_to_args(self, inputs):\n        return (), dict(zip(('right', 'left'), inputs))\n")
    for name in [name for name in sys.modules if name.startswith("pairwise")]:
        del sys.modules[name]
    assert swa("train", project / "own.yaml", "-q").code == 0
    first, second = (load(Path(f"runs/own-{number}/checkpoints/last.pt"))["model"] for number in ("001", "002"))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_code_that_a_checkpoint_names_as_its_task_is_not_run(swa, project: Path, tmp_path: Path) -> None:
    """eval, bn-update and resume of a file whose recipe names a task: exit 2 without --allow-code, and no import."""
    assert swa("train", project / "own.yaml", "-q").code == 0
    content = load(tmp_path / "runs/own-001/checkpoints/swa.pt")
    trap = {**content["recipe"], "task": "this:s", "model": {"name": "convnet"}, "dataset": {"name": "digits"}}
    torch.save({**content, "recipe": trap}, "evil.pt")
    for words in (["eval", "evil.pt"], ["bn-update", "evil.pt"]):
        ended = swa(*words)
        assert ended.code == 2
        assert "import and run code: task this:s" in ended.err
    assert "this" not in sys.modules


@pytest.mark.parametrize(
    ("file", "before", "after", "said"),
    [
        ("task", '"hits": "higher", "loss": "lower"', '"loss": "lower", "hits": "higher"', "has the scores"),
        ("task", '"higher"', '"up"', "says 'up' of hits"),
        ("task", "scores =", "score =", "has the scores None"),
        ("task", "def predict(self, outputs)", "def predict(self)", "predict of pairwise.task:Nearness takes other"),
        ("task", ", *, label_smoothing", "", "loss of pairwise.task:Nearness takes other arguments"),
        ("task", "def metrics", "def measures", "has no function metrics"),
        ("task", '"distance": (predictions', '"away": (predictions', "metrics of pairwise.task:Nearness returned"),
        ("task", ").float(),", ").float().mean(),", "returned () as hits of 2 samples"),
        ("task", 'targets["near"])\n', 'targets["near"], reduction="none")\n', "is no scalar tensor"),
        ("data", '"right": self.right[row]}', '"right": "text"}', "gave str as a part of a sample"),
        ("data", 'target": "own"', 'target": "other"', "return one of class, multilabel, mask, value, own"),
        ("data", ', "target": "own"', "", "does not return the number of classes"),
        ("data", '"right": self.right[row]}', '"right": self.right[row][row == 77 :]}', "of the dataset differ: left"),
    ],
)  # fmt: skip
def test_own_code_of_the_wrong_kind_is_refused_before_a_run(
    swa, project: Path, tmp_path: Path, file: str, before: str, after: str, said: str
) -> None:
    """Each way in which own code is not as promised: exit 2 or, where a sample tells only later, 1; one message."""
    edit(project / f"pairwise/{file}.py", before, after)
    ended = swa("train", project / "own.yaml")
    assert ended.code == (1 if "differ" in said else 2), ended.err
    assert said in " ".join(ended.err.split())
    assert "Traceback" not in ended.err
    assert (tmp_path / "runs").exists() == ("differ" in said)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("task=pairwise.task:Farness", "task: pairwise.task has no attribute 'Farness'"),
        ("task=pairwise.tusk:Nearness", "task: cannot import pairwise.tusk"),
        ("task=pairwise:data", "task: pairwise:data has no function loss"),
        (
            "task=classification",
            "task: classification learns labels that are class, and those of pairwise.data:pairs are own",
        ),
        ("model={name: convnet}", "model.name: convnet needs the channels of images"),
        ("dataset.augment={flip: true}", "dataset.augment: changes images, and pairwise.data:pairs gives inputs left"),
    ],
)
def test_names_and_sections_that_do_not_go_together(swa, project: Path, word: str, said: str) -> None:
    """Changes to a recipe of one's own code: exit 2 with the key and what does not fit."""
    ended = swa("train", project / "own.yaml", word)
    assert ended.code == 2
    assert said in " ".join(ended.err.split())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "before", "after", "code", "frames"),
    [
        ("network", "self.net = ", "self.net = wrong = 1 / 0 or ", 2, ["network.py"]),
        ("network", "return {", "self.fail()\n        return {", 2, ["network.py"]),
        ("data", "return {", 'raise KeyError("no such pair")\n    return {', 2, ["data.py"]),
        ("data", "near = (", "assert row != 77, 'row 77'\n        near = (", 1, ["data.py"]),
        ("task", "return F.binary_cross_entropy_with_logits(", "return F.nll_loss(", 2, ["task.py"]),
        ("task", "near = targets", 'assert len(targets["near"]) < 20\n        near = targets', 1, ["task.py"]),
        ("task", "near = targets", "near = = targets", 2, ["task.py"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_own_code_shows_own_frames_alone(
    swa, project: Path, file: str, before: str, after: str, code: int, frames: list[str], workers: int
) -> None:
    """Errors in network, data and task, before and in a run: the files in the frames and the exit code by hand."""
    edit(project / f"pairwise/{file}.py", before, after)
    ended = swa("train", project / "own.yaml", "-q", f"dataset.workers={workers}")
    assert ended.code == code, ended.err
    shown = [line for line in ended.err.splitlines() if line.startswith('  File "')]
    assert [Path(line.split('"')[1]).name for line in shown] == frames
    assert ended.err.startswith("error: ")
    assert "Traceback" not in ended.err
    assert "this is in your own code" in ended.err
    assert ("Nothing was run." in ended.err) == (code == 2)
    assert ("nothing was saved yet: start it again" in ended.err) == (code == 1)
    if "row 77" in after:
        assert "AssertionError: row 77" in ended.err
        assert "assert row != 77" in ended.err


def test_an_error_of_own_code_after_a_save_says_how_to_go_on(swa, project: Path) -> None:
    """A loss that fails in epoch 3 of 4: exit 1, the frame, and the command that goes on."""
    counter = "calls.append(1)\n        assert len(calls) < 25\n        return F.binary"
    edit(project / "pairwise/task.py", "return F.binary_cross_entropy_with", f"{counter}_cross_entropy_with")
    edit(project / "pairwise/task.py", "class Nearness", "calls = []\n\nclass Nearness")
    ended = swa("train", project / "own.yaml", "-q")
    assert ended.code == 1
    assert "assert len(calls) < 25" in ended.err
    assert "continue with `swa train --resume runs/own-001 --allow-code`" in ended.err
