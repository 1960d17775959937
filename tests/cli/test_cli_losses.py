"""`train.loss`, `train.class_weights` and `dataset.sampler` as a person meets them, and what they are worth."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

import pytest
import torch
from torch import nn

from conftest import Ended, Swa, load
from equal_runs import assert_equal_runs, content

MODULE = """\
import torch
import torch.nn.functional as F
from torch import nn
from swa_cli.data.synthetic import read_digits

class Net(nn.Module):
    def __init__(self, *, num_classes, in_channels):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, 8, 3, padding=1), nn.GELU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(128, num_classes))

    def forward(self, images):
        return self.layers(images)

class Pixels(nn.Module):
    def __init__(self, *, num_classes, in_channels):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, 4, 3, padding=1), nn.GELU(), nn.Conv2d(4, num_classes, 3, padding=1))

    def forward(self, images):
        return self.layers(images)

def uneven():
    # 100 samples of the classes 0 to 4, and 2 of the classes 5 to 9.
    train, test = read_digits()["train"], read_digits()["test"]
    rows = [row for label in range(10) for row in (train[1] == label).nonzero()[: 100 if label < 5 else 2, 0].tolist()]
    sets = {"train": (train[0][rows], train[1][rows]), "test": [part[:100] for part in test]}
    return {**{name: torch.utils.data.TensorDataset(*arrays) for name, arrays in sets.items()}, "num_classes": 10}

def scenes(count, seed):
    images = torch.randint(0, 256, (count, 1, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    masks = (images[:, 0] > 200).long()
    masks[::3, 2:] = 255
    return torch.utils.data.TensorDataset(images, masks)

def masked():
    return {"train": scenes(60, 0), "test": scenes(20, 1), "num_classes": 2, "target": "mask"}

def streamed():
    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 20_000
        def __getitem__(self, row):
            return torch.zeros(1, 8, 8), row % 2
    return {"train": Rows(), "test": Rows(), "num_classes": 2}

class Own:
    scores = {"accuracy": "higher", "loss": "lower"}

    def loss(self, outputs, targets, *, label_smoothing):
        return F.cross_entropy(outputs, targets)

    def predict(self, outputs):
        return outputs.softmax(1)

    def metrics(self, predictions, targets):
        return {"accuracy": (predictions.argmax(1) == targets).float(), "loss": -predictions.log()[:, 0]}

def halved(outputs, targets):
    return 0.5 * F.cross_entropy(outputs, targets)

def listed(outputs, targets):
    return F.cross_entropy(outputs, targets, reduction="none")

def detached(outputs, targets):
    return F.cross_entropy(outputs.detach(), targets)
"""
UNEVEN = """\
name: run
model: {name: "losses:Net"}
dataset: {name: "losses:uneven", val: 0, cache: ram}
optimizer: {lr: 0.02}
train: {epochs: 8, batch_size: 25, threads: 1, precision: fp32}
"""
REGRESSION = ["task=regression", "model.name=convnet", "dataset={name: rotated_digits}"]
HEAVY = "train.class_weights=[1,1,1,1,1,0.5,1,1,1,30]"


@pytest.fixture
def run(swa: Swa, tmp_path: Path):
    """`swa train` on the uneven digits with changes, and the run folder."""
    (tmp_path / "losses.py").write_text(MODULE)
    (tmp_path / "uneven.yaml").write_text(UNEVEN)

    def train(root: str, *words: str) -> Ended:
        return swa("train", "uneven.yaml", *words, "-o", root, "--json")

    return train


def weights(root: str) -> dict[str, torch.Tensor]:
    return content(Path(root) / "run-001", "last")["model"]


@pytest.mark.parametrize(
    "words",
    [
        [HEAVY, "train.label_smoothing=0.1"],
        ["train.loss=focal", HEAVY, "train.clip_norm=0.1"],
        ["train.loss=bce", "train.class_weights=balanced"],
        ["task=segmentation", "model.name=losses:Pixels", "dataset.name=losses:masked", "train.batch_size=10"],
        ["task=segmentation", "model.name=losses:Pixels", "dataset.name=losses:masked", "train.class_weights=[1,9]"],
    ],
    ids=str,
)
def test_batches_of_a_step_count_by_their_weights(run, words: list[str]) -> None:
    """Five batches per step against one batch of the same samples: the mean over all of them, not the mean of means."""
    size = 5 if "task=segmentation" in words else 10
    words = [*words, "train.epochs=2"]
    assert run("whole", *words, f"train.batch_size={5 * size}").code == 0
    assert run("parts", *words, f"train.batch_size={size}", "train.grad_accum_steps=5").code == 0
    for name, value in weights("whole").items():
        torch.testing.assert_close(weights("parts")[name], value, rtol=1e-4, atol=2e-6)


def balanced_accuracy(root: str) -> float:
    """Mean recall over the ten classes of the test images, of the raw weights in plain torch."""
    from swa_cli.data.synthetic import read_digits

    saved = load(f"{root}/run-001/checkpoints/last.pt")
    layers = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.GELU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10))
    layers.load_state_dict({name.removeprefix("layers."): value for name, value in saved["model"].items()})
    images, labels = read_digits()["test"]
    found = layers((images / 255 - saved["input"]["mean"][0]) / saved["input"]["std"][0]).argmax(1)
    return mean(float((found[labels == label] == label).float().mean()) for label in range(10))


@pytest.mark.slow
def test_balanced_accuracy_rises_on_uneven_classes(run) -> None:
    """Classes 1 to 50 in size: class weights and the sampler against neither, in each of two seeds."""
    for seed in range(2):
        scores = {}
        for root, words in (
            ("plain", []),
            ("weights", ["train.class_weights=balanced"]),
            ("sampler", ["dataset.sampler=balanced"]),
        ):
            assert run(f"{root}-{seed}", *words, f"seed={seed}").code == 0
            scores[root] = balanced_accuracy(f"{root}-{seed}")
        assert scores["weights"] > scores["plain"] + 0.1, scores
        assert scores["sampler"] > scores["plain"] + 0.1, scores


def test_the_plan_says_what_is_trained(run, swa: Swa) -> None:
    """The plan of uneven classes: their ratio and what can be done; then what is done."""
    said = " ".join(run("hinted", "train.epochs=1").err.split())
    assert "10 classes of 2 (5) to 100 (0) train samples, 50 times as many" in said
    assert "train.class_weights=balanced" in said
    assert "dataset.sampler=balanced" in said
    words = [
        "train.loss=focal",
        "train.class_weights=balanced",
        "train.label_smoothing=0.1",
        "dataset.sampler=balanced",
    ]
    said = " ".join(run("told", "train.epochs=1", *words).err.split())
    assert "loss focal (gamma 2), class weights balanced: 0.51 (0) to 25.5 (5), label smoothing 0.1" in said
    assert "balanced sampler: each class is drawn equally often" in said
    assert "train.class_weights=balanced" not in said
    even = " ".join(swa("plan", "digits").err.split()) + swa("plan", "digits").out
    assert "times as many" not in even


def test_only_the_training_loss_is_another(run) -> None:
    """Half of the cross-entropy, as a function of one's own, against the plain one: half in train_loss, not in val."""
    words = ["train.epochs=1", "optimizer.lr=0", "dataset.val=40", "optimizer.momentum=0"]
    rows = []
    for root, more in (("plain", []), ("half", ["train.loss=losses:halved"]), ("heavy", [HEAVY])):
        assert run(root, *words, *more).code == 0
        rows.append(content(Path(root) / "run-001", "last")["history"][0])
    plain, half, heavy = rows
    assert half["train_loss"] == pytest.approx(plain["train_loss"] / 2)
    assert heavy["train_loss"] != pytest.approx(plain["train_loss"], rel=1e-5)
    for row in (half, heavy):
        assert row["val_loss"] == pytest.approx(plain["val_loss"])
        assert row["train_accuracy"] == plain["train_accuracy"]


@pytest.mark.parametrize(
    ("words", "key", "message"),
    [
        (["train.loss=hinge"], "train.loss", "is not a loss"),
        (["train.loss=focla"], "train.loss", "focal"),
        (["train.focal_gamma=1"], "train.focal_gamma", "has no gamma"),
        (["train.class_weights=[1,2]"], "train.class_weights", "2 weights for 10 classes"),
        (["train.class_weights=[1,-2]"], "train.class_weights", "0 or more"),
        (["train.class_weights=[0,0]"], "train.class_weights", "above 0"),
        (["train.class_weights=even"], "train.class_weights", "balanced"),
        (["train.loss=torch.nn:CrossEntropyLoss"], "train.loss", "is a class"),
        (["train.loss=torch.nn.functional:mse_loss"], "train.loss", "must match"),
        (["train.loss=torch.nn.functional:relu"], "train.loss", "cannot take"),
        (["train.loss=torch:sum"], "train.loss", "cannot take"),
        (["train.loss=losses:detached"], "train.loss", "without a gradient"),
        (["train.loss=losses:listed"], "train.loss", "a tensor of (25,)"),
        (["train.loss=losses:halved", "train.label_smoothing=0.1"], "train.loss", "takes other arguments"),
        (["train.loss=losses:missing"], "train.loss", "has no attribute"),
        ([*REGRESSION, "train.loss=bce"], "train.loss", "regression has no classes"),
        ([*REGRESSION, "train.class_weights=balanced"], "train.class_weights", "regression has no classes"),
        ([*REGRESSION, "dataset.sampler=balanced"], "dataset.sampler", "regression has no classes"),
        (["task=losses:Own", "train.loss=bce"], "train.loss", "has a loss of its own"),
        (
            ["dataset.name=losses:streamed", "dataset.cache=auto", "dataset.sampler=balanced"],
            "dataset.sampler",
            "targets",
        ),
        (
            ["dataset.name=losses:streamed", "dataset.cache=auto", "train.class_weights=balanced"],
            "train.class_weights",
            "are unknown",
        ),
        (
            ["task=segmentation", "model.name=losses:Pixels", "dataset.name=losses:masked", "dataset.sampler=balanced"],
            "dataset.sampler",
            "are mask",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_is_said_before_the_run(run, words: list[str], key: str, message: str) -> None:
    """A wrong value, or one that the data do not allow, against its key, a reason, and no run folder."""
    ended = run("none", *words)
    assert ended.code == 2
    said = " ".join(ended.err.split())
    assert f"error: {key}" in said
    assert message in said
    assert not Path("none").exists()


@pytest.mark.slow
def test_the_sampler_and_losses_continue_to_the_same_bits(run, swa: Swa) -> None:
    """A run stopped inside an epoch and continued, against the same run without a stop, bit for bit."""
    words = ["dataset.sampler=balanced", "train.loss=bce", "train.class_weights=balanced", "dataset.augment.mixup=0.2"]
    words += ["swa={start: 50%, every: 0.5ep}", "model.name=convnet", "output.save_every=7step", "train.epochs=3"]
    assert run("whole", *words).code == 0
    assert run("parts", *words).code == 0
    folder = Path("parts/run-001")
    # As a kill leaves it: the save before the last one, and no result.
    for name in ("result.json", "checkpoints/last.pt", "checkpoints/swa.pt", "checkpoints/last_bn.pt"):
        (folder / name).unlink()
    step = content(folder, "previous")["step"]
    assert step % 30
    assert swa("train", "--resume", folder, "--allow-code").code == 0
    assert_equal_runs(Path("whole/run-001"), folder)


def test_a_loss_inside_a_checkpoint_needs_permission(run, swa: Swa) -> None:
    """A function that the recipe of a checkpoint names against the refusal, and the flag that allows it."""
    assert (
        run("own", "train.loss=losses:halved", "train.epochs=1", "model.name=convnet", "dataset.name=digits").code == 0
    )
    path = Path("own/run-001/checkpoints/last.pt")
    refused = swa("eval", path)
    assert refused.code == 2
    assert "train.loss losses:halved" in " ".join(refused.err.split())
    assert swa("eval", path, "--allow-code").code == 0
