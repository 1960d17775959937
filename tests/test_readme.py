"""What README says, held against what is there."""

from __future__ import annotations

import ast
import itertools
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from swa_cli.recipe import load

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
OWN_LOOPS = re.findall(
    r"```python\n(.*?)```",
    README.partition("## In your own loop")[2] + (ROOT / "docs/own_loop.md").read_text(),
    re.DOTALL,
)


def test_each_promise_names_tests_that_exist() -> None:
    """Every `test_...` in docs/promises.md against the functions in tests/."""
    names = {
        node.name
        for path in (ROOT / "tests").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    promised = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/promises.md").read_text()))
    assert len(promised) > 15
    assert promised <= names, promised - names


def test_the_map_has_every_file() -> None:
    """The paths in the map of CONTRIBUTING.md against the files of swa_cli, package by package."""
    tree = (ROOT / "CONTRIBUTING.md").read_text().partition("## The map")[2]
    listed, package = [], ""
    for indent, name in re.findall(r"^( +)([\w/]+(?:\.py|/))(?: |$)", tree, re.MULTILINE):
        if name.endswith("/"):
            package = name
        else:
            listed.append(name if len(indent) == 2 else package + name)
    there = {str(path.relative_to(ROOT / "swa_cli")) for path in (ROOT / "swa_cli").rglob("*.py")}
    assert sorted(listed) == sorted(name for name in there if not name.endswith("__.py"))


def test_loops_of_ones_own_are_short() -> None:
    """Every example of the section: at most 15 lines."""
    assert OWN_LOOPS
    assert all(len(example.splitlines()) <= 15 for example in OWN_LOOPS)


@pytest.mark.parametrize("page", ["README.md", "docs/recipe.md"])
def test_each_recipe_shown_is_one(page: str, tmp_path: Path) -> None:
    """The recipe of README and that of docs/recipe.md against the loader, which refuses any key that is not."""
    shown = [
        text for text in re.findall(r"```yaml\n(.*?)```", (ROOT / page).read_text(), re.DOTALL) if "train:" in text
    ]
    assert len(shown) == 1
    path = tmp_path / "shown.yaml"
    path.write_text(shown[0])
    assert load.load(path, []).recipe.train.epochs == 30


def example_of(word: str) -> str:
    """The one example that has this word in its imports."""
    (found,) = [example for example in OWN_LOOPS if re.search(rf"^(from|import) .*\b{word}\b", example, re.MULTILINE)]
    return found


class Setting:
    """A small network and loader, as the examples suppose them."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        self.inputs = torch.randn(400, 3)
        labels = torch.randint(2, (400,))
        self.loader = DataLoader(TensorDataset(self.inputs, labels), batch_size=4, shuffle=True)
        self.trained: list[Tensor] = []

    @property
    def names(self) -> dict[str, Any]:
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        loss = nn.functional.cross_entropy
        return {
            "model": self.model,
            "optimizer": optimizer,
            "train_loader": self.loader,
            "loss_function": loss,
            "epochs": 3,
            "start": 2,
        }

    def epoch(self, model: nn.Module, optimizer: Any, backward: Any) -> None:
        for samples, labels in self.loader:
            optimizer.zero_grad()
            backward(nn.functional.cross_entropy(model(samples), labels))
            optimizer.step()
        self.trained.append(self.model[0].weight.detach().double().clone())  # type: ignore[union-attr]

    def check(self, *, averaged: bool) -> None:
        """The float64 mean of the weights of the last two epochs, and the data's mean and variance."""
        model = self.model
        if averaged:
            mean = (self.trained[-1] + self.trained[-2]) / 2
            torch.testing.assert_close(model[0].weight.double(), mean, rtol=1e-6, atol=1e-7)  # type: ignore[union-attr]
        expected = model[0](self.inputs).detach().double()
        torch.testing.assert_close(model[1].running_mean.double(), expected.mean(0), rtol=1e-5, atol=1e-6)  # type: ignore[union-attr]
        torch.testing.assert_close(model[1].running_var.double(), expected.var(0), rtol=1e-5, atol=1e-6)  # type: ignore[union-attr]


def test_the_loop_with_swa_runs() -> None:
    """README's optimizer on 100 batches: five averages, the weights kept aside, the data's mean and variance."""
    setting = Setting()
    names = setting.names
    exec(example_of("SWA"), names)
    assert names["optimizer"].param_groups[0]["n_avg"] == 5
    assert "sgd_buffer" in names["optimizer"].state[setting.model[0].weight]
    setting.check(averaged=False)


def test_the_loop_with_weight_average_runs() -> None:
    """README's own loop against the float64 mean of the weights, and the data's mean and variance."""
    setting = Setting()
    names = setting.names
    names["train_one_epoch"] = lambda model: setting.epoch(model, names["optimizer"], lambda loss: loss.backward())
    (example,) = [
        text for text in OWN_LOOPS if "lightning" not in text and "accelerate" not in text and "SWA(" not in text
    ]
    exec(example, names)
    setting.check(averaged=True)


@pytest.mark.filterwarnings("ignore")  # of the other library
def test_the_callback_for_lightning_runs(tmp_path: Path) -> None:
    """README's callback in a real Trainer against the float64 mean of the last two epochs' weights."""
    import lightning

    setting = Setting()
    names: dict[str, Any] = {}
    exec(example_of("lightning"), names)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = setting.model

        def forward(self, inputs: Tensor) -> Tensor:
            return self.net(inputs)

        def training_step(self, batch: Any, _: int) -> Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def on_train_epoch_end(self) -> None:
            setting.trained.append(self.net[0].weight.detach().double().clone())

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = lightning.Trainer(
        max_epochs=3,
        accelerator="cpu",
        callbacks=[names["WeightAveraging"](start=2)],
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), setting.loader)
    setting.check(averaged=True)


@pytest.mark.filterwarnings("ignore")  # of the other library
def test_the_loop_with_accelerate_runs() -> None:
    """README's loop with a real Accelerator against the float64 mean of the last two epochs' weights."""
    setting = Setting()
    names = setting.names

    def train_one_epoch(accelerator: Any, model: nn.Module, optimizer: Any, loader: Any) -> None:
        setting.loader = loader
        setting.epoch(model, optimizer, accelerator.backward)

    names["train_one_epoch"] = train_one_epoch
    exec(example_of("accelerate"), names)
    setting.check(averaged=True)


def test_readme_is_short() -> None:
    """README's lines against the 200 that a newcomer reads."""
    assert len(README.splitlines()) <= 200


@pytest.fixture
def pets(tmp_path: Path) -> None:
    """JPEG files of several sizes in two splits of two classes."""
    generator = torch.Generator().manual_seed(0)
    for split, label in itertools.product(("train", "test"), ("cat", "dog")):
        (tmp_path / "pets" / split / label).mkdir(parents=True)
        for index in range(12):
            pixels = torch.randint(256, (70 + index, 80, 3), generator=generator, dtype=torch.uint8).numpy()
            Image.fromarray(pixels).save(tmp_path / "pets" / split / label / f"{index}.jpg")


@pytest.mark.usefixtures("pets")
def test_own_photos_train_as_shown(swa, tmp_path: Path) -> None:
    """The commands under "Your own photos": one epoch, every test image scored, new photos predicted."""
    shown = README.partition("## Your own photos")[2].partition("## ")[0]
    commands = [shlex.split(line, comments=True)[1:] for line in re.findall(r"^swa .*", shown, re.MULTILINE)]
    assert [words[0] for words in commands] == ["new", "train", "predict"]
    shutil.copytree(tmp_path / "pets/test/dog", tmp_path / "photos")
    assert swa(*commands[0]).code == 0
    ended = swa(
        *commands[1], "model={name: convnet, args: {width: 2}}", "train.epochs=1", "train.batch_size=8", "--json"
    )
    assert ended.code == 0, ended.err
    assert ended.json["samples"] == 24
    ended = swa(*commands[2])
    assert ended.code == 0, ended.err
    assert (tmp_path / "predictions.csv").read_text().count("\nphotos/") == 12


@pytest.mark.slow
def test_ten_lines_of_plain_torch_predict_what_swa_predicts(
    swa, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The example in docs/predict.md on a turned gray photo against `swa predict`: the class, and 1e-5."""
    random = torch.Generator().manual_seed(0)
    for label, number in itertools.product(("cat", "dog"), range(4)):
        (tmp_path / "pets" / label).mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(256, (40, 44, 3), generator=random, dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(tmp_path / "pets" / label / f"{number}.jpg")
    (tmp_path / "pets.yaml").write_text(
        "model: {name: torchvision:resnet18}\noptimizer: {lr: 0.01}\nswa: {start: 0ep}\n"
        "dataset: {name: image_folder, root: pets, image_size: 32, interpolation: bicubic, val: 2}\n"
        "train: {epochs: 1, batch_size: 4, threads: 1, precision: fp32}\n"
    )
    assert swa("train", "pets.yaml", "-q").code == 0
    turned = Image.Exif()
    turned[0x0112] = 6
    pixels = torch.randint(256, (61, 90), generator=random, dtype=torch.uint8).numpy()
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", exif=turned)
    (row,) = swa("predict", "runs/latest", "photo.jpg", "--json").json["predictions"]
    page = (ROOT / "docs/predict.md").read_text().partition("## Predict")[2].partition("\n## ")[0]
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    lines = [line for line in example.splitlines() if line and not re.match("import|from", line)]
    assert len(lines) == 10
    exec(example, names := {})
    name, probability = capsys.readouterr().out.split()
    assert name == row["class"]
    assert float(probability) == pytest.approx(row["probability"], abs=1e-5)
    assert names["how"]["crop"] == "center"


def test_readme_has_the_commands() -> None:
    """The commands that a newcomer needs against the lines of README; test_pages.py runs them."""
    assert set(re.findall(r"^swa ([a-z-]+) .* # ", README, re.MULTILINE)) >= {
        *("new", "recipes", "plan", "train", "eval", "average", "repeat", "bn-update"),
        *("plot", "report", "show", "compare", "doctor", "schema", "predict"),
    }
