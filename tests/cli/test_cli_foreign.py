"""`swa eval`, `swa bn-update` and `train.init` on other people's checkpoints, from the command line."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from conftest import load, run_swa
from swa_cli.checkpoint import reader
from swa_cli.models import build_model

RECIPE = """\
name: theirs
model: {name: convnet, args: {width: 4}}
dataset: {name: digits, val: 0}
optimizer: {lr: 0.1}
swa: {start: 1ep, every: 0.5ep, eval_every: 1ep}
train: {epochs: 2, batch_size: 128, threads: 1, precision: fp32}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, whose weights are those of the files below."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "r.yaml").write_text(RECIPE)
    run_swa("train", folder / "r.yaml", "-q", "-o", folder)
    return folder


@pytest.fixture
def theirs(swa, trained: Path, tmp_path: Path) -> dict[str, Any]:
    """A Lightning checkpoint with raw weights and an average, as WeightAveraging writes it; and what went in."""
    shutil.copytree(trained / "theirs-001", tmp_path / "run")
    shutil.copy(trained / "r.yaml", tmp_path)
    point = torch.load("run/checkpoints/last.pt", weights_only=True)
    raw, average = point["model"], {**point["model"], **point["averages"]["swa"]["state"]}
    content = {
        "epoch": 2,
        "global_step": 22,
        "pytorch-lightning_version": "2.6.0",
        "state_dict": {f"model.{key}": value for key, value in average.items()},
        "current_model_state": {f"model.{key}": value for key, value in raw.items()},
        "averaging_state": {"n_averaged": torch.tensor(3)},
        "callbacks": {},
        "hyper_parameters": {"lr": 0.1},
    }
    torch.save(content, "a.ckpt")
    return content


def test_sets_are_listed_guarded_and_scored(swa, theirs: dict[str, Any]) -> None:
    """Both sets are named; the average is refused as stale; raw weights score exactly as those of the run."""
    refused = swa("eval", "a.ckpt", "--recipe", "r.yaml")
    assert refused.code == 2
    assert "checkpoint of Lightning with last, swa (average of 3)" in refused.err
    assert "swa has stale BatchNorm statistics" in " ".join(refused.err.split())
    [command] = re.findall(r"run `swa (.*?)` first", " ".join(refused.err.split()))
    assert swa(*shlex.split(command)).code == 0
    assert swa("eval", "FILE.pt", "--json").json["weights"]["swa"]["batchnorm"] == "recomputed"
    both = swa("eval", "a.ckpt", "--recipe", "r.yaml", "--allow-stale-bn", "--json").json["weights"]
    assert [(name, row["count"], row["batchnorm"]) for name, row in both.items()] == [
        ("last", None, "running"),
        ("last_bn", None, "recomputed"),
        ("swa", 3, "stale"),
    ]
    ours = swa("eval", "run/checkpoints/last.pt", "--weights", "last", "--json").json["weights"]["last"]
    assert both["last"]["nll"] == ours["nll"]
    ours = swa("eval", "run", "--json").json
    assert both["last_bn"]["nll"] == ours["weights"]["last_bn"]["nll"]
    assert both["swa"]["reference"] == ours["reference"] == "last_bn"  # without a validation split
    unknown = swa("eval", "a.ckpt", "--recipe", "r.yaml", "--weights", "ema")
    assert "choose from last, swa" in unknown.err


def test_an_average_is_refreshed_into_a_file_of_ours(swa, theirs: dict[str, Any]) -> None:
    """bn-update of their average against swa.pt of the run that made it: the same statistics and scores."""
    words = ["bn-update", "a.ckpt", "--recipe", "r.yaml", "-o", "ours.pt"]
    assert "naming one of last, swa with --weights" in " ".join(swa(*words).err.split())
    assert swa(*words, "--weights", "swa").code == 0
    found = swa("eval", "ours.pt", "--json").json["weights"]["swa"]
    expected = swa("eval", "run/checkpoints/swa.pt", "--json").json["weights"]["swa"]
    assert (found["batchnorm"], found["count"], found["nll"]) == ("recomputed", 3, expected["nll"])


def test_raw_weights_stay_raw_when_they_are_refreshed(swa, theirs: dict[str, Any]) -> None:
    """bn-update of their raw weights against last_bn of the run: the same scores, and no verdict on an average."""
    assert swa("bn-update", "a.ckpt", "--recipe", "r.yaml", "--weights", "last", "-o", "fresh.pt").code == 0
    assert load("fresh.pt")["average"] == {"name": "last_bn", "kind": "raw", "count": None, "steps": []}
    rows = swa("eval", "fresh.pt", "--json").json["weights"]
    assert list(rows) == ["last_bn"]
    assert "reference" not in rows["last_bn"]
    expected = swa("eval", "a.ckpt", "--recipe", "r.yaml", "--allow-stale-bn", "--json").json["weights"]["last_bn"]
    assert rows["last_bn"]["nll"] == expected["nll"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float8_e4m3fn])
def test_weights_in_another_number_type(swa, theirs: dict[str, Any], dtype: torch.dtype) -> None:
    """Each tensor of a state dict in one type, the counters too: read by all commands, and written as the network's."""
    raw = {key.removeprefix("model."): value.to(dtype) for key, value in theirs["current_model_state"].items()}
    torch.save(raw, "a.pt")
    torch.save({key: value.float() for key, value in raw.items()}, "b.pt")
    for words in (
        ["bn-update", "a.pt", "--weights", "last", "-o", "updated.pt"],
        ["average", "a.pt", "b.pt", "-o", "mean.pt"],
        ["export", "a.pt", "--format", "state-dict", "-o", "plain.pt"],
    ):
        ended = swa(*words, "--recipe", "r.yaml")
        assert ended.code == 0, ended.err
    expected = build_model.build("convnet", num_classes=10, in_channels=1, args={"width": 4})
    expected.load_state_dict(raw)
    for state in (torch.load("plain.pt"), torch.load("mean.pt")["state_dict"], torch.load("updated.pt")["state_dict"]):
        for key, value in expected.state_dict().items():
            assert state[key].dtype == value.dtype, key
            assert "running_" in key or "num_batches" in key or torch.equal(state[key], value), key
    scores = [
        swa("eval", name, "--recipe", "r.yaml", "--json").json["weights"]["last"]["nll"] for name in ("a.pt", "b.pt")
    ]
    assert scores[0] == scores[1]
    assert swa("train", "r.yaml", "--dry-run", "train.init=a.pt").code == 0


def test_a_run_starts_from_them(swa, theirs: dict[str, Any]) -> None:
    """train.init takes the raw weights, or the average if it is named; the plan says which."""
    for words, name in (([], "last"), (["train.init_weights=swa"], "swa")):
        ended = swa("train", "r.yaml", "--dry-run", "train.init=a.ckpt", *words)
        assert ended.code == 0, ended.err
        assert f"initial weights from a.ckpt ({name})" in " ".join(ended.err.split())


def test_weights_of_another_network_are_counted(swa, theirs: dict[str, Any]) -> None:
    """A recipe of another width: how many tensors differ, and three of them, under names without the prefix."""
    Path("wide.yaml").write_text(Path("r.yaml").read_text().replace("width: 4", "width: 8"))
    ended = swa("eval", "a.ckpt", "--recipe", "wide.yaml", "--weights", "last")
    assert ended.code == 2
    said = " ".join(ended.err.split())
    assert "0 tensors missing, 0 unexpected," in said
    assert said.count("(4,), not (8,)") + said.count("(4, 1, 3, 3), not (8, 1, 3, 3)") == 3


def test_a_head_of_other_classes_starts_fresh(swa, theirs: dict[str, Any]) -> None:
    """A head of 5 classes: refused with the option that skips it, which then keeps the seed's head and takes the rest.

    The oracle is the first step of a run: at a rate of 0 nothing but BatchNorm's statistics moves.
    """
    state = {key: value.clone() for key, value in theirs["current_model_state"].items()}
    for key in ("model.classifier.weight", "model.classifier.bias"):
        state[key] = state[key][:5].clone()
    torch.save({"state_dict": state}, "five.pt")
    ended = swa("train", "r.yaml", "train.init=five.pt")
    assert ended.code == 2
    said = " ".join(ended.err.split())
    assert "classifier.weight is (5, 16), not (10, 16)" in said
    assert "'train.init_skip=[classifier.*]'" in said
    words = ["train.epochs=1", "swa={}", "-q", "optimizer.lr=0", "schedule={name: constant, warmup: 0ep}"]
    assert swa("train", "r.yaml", *words).code == 0
    fresh = torch.load("runs/latest/checkpoints/last.pt", weights_only=True)["model"]
    skip = "train.init_skip=[classifier.*]"
    plan = swa("train", "r.yaml", "--dry-run", "train.init=five.pt", skip)
    assert "(last); fresh: classifier.weight, classifier.bias" in " ".join(plan.err.split())
    assert swa("train", "r.yaml", *words, "train.init=five.pt", skip).code == 0
    found = torch.load("runs/latest/checkpoints/last.pt", weights_only=True)["model"]
    for key, value in found.items():
        if key.startswith("classifier."):
            assert torch.equal(value, fresh[key])
        elif not key.endswith(("running_mean", "running_var", "num_batches_tracked")):
            assert torch.equal(value, state[f"model.{key}"])


def test_a_timm_network_from_timms_weights_to_an_export(swa, tmp_path: Path) -> None:
    """A run of `timm:NAME` from a file that timm wrote, with another head: averaged, scored, loaded back by timm."""
    import timm
    from timm.utils import CheckpointSaver

    torch.manual_seed(1)
    pretrained = timm.create_model("test_byobnet", num_classes=100, in_chans=1)
    optimizer = torch.optim.SGD(pretrained.parameters(), lr=0.1)
    CheckpointSaver(pretrained, optimizer, checkpoint_dir=str(tmp_path)).save_checkpoint(epoch=1, metric=0.5)
    text = RECIPE.replace("{name: convnet, args: {width: 4}}", "{name: 'timm:test_byobnet'}").replace("0.1}", "0.01}")
    Path("timm.yaml").write_text(text)
    words = ["train", "timm.yaml", "-q", "train.init=last.pth.tar"]
    refused = swa(*words)
    assert refused.code == 2
    assert "'train.init_skip=[head.fc.*]'" in " ".join(refused.err.split())
    ended = swa(*words, "train.init_skip=[head.fc.*]", "--json")
    assert ended.code == 0, ended.err
    assert ended.json["weights"]["swa"]["batchnorm"] == "recomputed"
    swa_pt = "runs/latest/checkpoints/swa.pt"
    assert swa("eval", swa_pt, "--json").code == 0  # no code of one's own: nothing to allow
    assert swa("export", swa_pt, "--format", "state-dict", "-o", "plain.pt").code == 0
    theirs = timm.create_model("test_byobnet", num_classes=10, in_chans=1)
    theirs.load_state_dict(torch.load("plain.pt", weights_only=True), strict=True)


def test_a_torchvision_network_from_torchvisions_weights(swa, tmp_path: Path) -> None:
    """train.init of a state dict with the head of ImageNet: the head is named, and starts fresh on request."""
    import torchvision

    torch.manual_seed(1)
    torch.save(torchvision.models.shufflenet_v2_x0_5(weights=None).state_dict(), "imagenet.pt")
    pets = [f"dataset={{name: image_folder, root: {tmp_path}/pets, val: 2, image_size: 32}}"]
    for index in range(8):
        path = Path(f"pets/train/{'cat' if index % 2 else 'dog'}/{index}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (30 * index, 9, 9)).save(path)
    words = ["train", "r.yaml", "--dry-run", *pets, "train.batch_size=3", "train.init=imagenet.pt"]
    Path("r.yaml").write_text(
        RECIPE.replace("{name: convnet, args: {width: 4}}", "{name: 'torchvision:shufflenet_v2_x0_5'}")
    )
    said = " ".join(swa(*words).err.split())
    assert "fc.weight is (1000, 1024), not (2, 1024)" in said
    assert "'train.init_skip=[fc.*]'" in said
    ended = swa(*words, "train.init_skip=[fc.*]")
    assert ended.code == 0, ended.err
    assert "initial weights from imagenet.pt (last); fresh: fc.weight, fc.bias" in " ".join(ended.err.split())


@pytest.mark.filterwarnings("ignore")  # of the other library
@pytest.mark.parametrize("callback", ["WeightAveraging", "StochasticWeightAveraging", None])
def test_files_that_lightning_itself_wrote(swa, tmp_path: Path, callback: str | None) -> None:
    """A checkpoint of a real Trainer after 3 epochs: its sets against the weights that Trainer and callback hold."""
    import lightning
    from torch.utils.data import DataLoader, TensorDataset

    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(32, 1, 8, 8, generator=generator), torch.randint(10, (32,), generator=generator)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = build_model.build("convnet", num_classes=10, in_channels=1, args={"width": 4})

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    options = {"WeightAveraging": {}, "StochasticWeightAveraging": {"swa_lrs": 0.05, "swa_epoch_start": 1}}
    used = [getattr(lightning.pytorch.callbacks, callback)(**options[callback])] if callback else []
    trainer = lightning.Trainer(
        max_epochs=3,
        accelerator="cpu",
        callbacks=used,
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = Module()
    trainer.fit(module, DataLoader(TensorDataset(images, labels), batch_size=8))
    trainer.save_checkpoint(tmp_path / "theirs.ckpt")
    found = reader.weight_sets(reader.read(tmp_path / "theirs.ckpt"), module.net)
    raw = {name: value.detach() for name, value in module.net.state_dict().items()}
    assert set(found) == ({"last"} if callback is None else {"last", "swa"})
    if callback == "WeightAveraging":
        average = used[0]._average_model.module.net.state_dict()
        assert all(torch.equal(value, average[name]) for name, value in found["swa"].state_dict.items())
    else:
        assert all(torch.equal(value, raw[name]) for name, value in found["last"].state_dict.items())
    (tmp_path / "r.yaml").write_text(RECIPE)
    ended = swa("eval", "theirs.ckpt", "--recipe", "r.yaml", "--weights", "last", "--json")
    assert ended.code == 0, ended.err


@pytest.mark.parametrize("words", ["show their", "eval their", "bn-update their -o out.pt", "average their -o out.pt"])
@pytest.mark.parametrize(
    ("files", "told"),
    [
        (["model.safetensors.index.json", "model-00001-of-00001.safetensors"], "model.safetensors.index.json "),
        (["config.json", "model.safetensors"], "model.safetensors "),
        ([".metadata", "__0_0.distcp"], "dcp_to_torch_save('their', 'weights.pt')"),
    ],
    ids=["shards", "safetensors", "distributed"],
)
def test_a_folder_of_another_program_is_told_with_its_file(
    swa, tmp_path: Path, words: str, files: list[str], told: str
) -> None:
    """Folders of Hugging Face and of torch.distributed.checkpoint in place of a file or a run: which file to name."""
    (tmp_path / "their").mkdir()
    for name in files:
        (tmp_path / "their" / name).touch()
    ended = swa(*words.split())
    assert ended.code == 2
    assert told in ended.err
