"""`swa bn-update` and `swa eval`: the guard against stale statistics, and that both tell the truth."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from conftest import SMALL, copy_runs, load, run_swa
from swa_cli.checkpoint import locks


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `runs` of a finished run with three averages."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "small.yaml").write_text(SMALL)
    words = ["snapshots.every=2ep", "averages.ema={kind: ema, decay: 0.9}", "averages.early={kind: mean, start: 1ep}"]
    run_swa("train", folder / "small.yaml", "-q", "-o", folder / "runs", *words)
    return folder / "runs"


@pytest.fixture
def run(trained: Path, recipe: Path) -> Path:
    """The checkpoints of the finished run, in a copy of its own for each test."""
    return copy_runs(trained, recipe.parent / "runs") / "checkpoints"


def test_eval_of_swa_repeats_the_result_of_train(swa, run: Path) -> None:
    """Scores of swa.pt against those that training printed, exactly."""
    trained = json.loads((run.parent / "result.json").read_text())
    ended = swa("eval", run / "swa.pt", "--json")
    assert ended.code == 0, ended.err
    found = ended.json["weights"]["swa"]
    assert {key: trained["weights"]["swa"][key] for key in found} == found
    assert Path(ended.json["run"]) == run.parent.resolve()


def test_a_resume_point_makes_no_room_for_another_file(swa, run: Path) -> None:
    """bn-update of swa.pt with -o last.pt or previous.pt of a run: exit 2, and the run can still go on from them."""
    before = (run / "last.pt").read_bytes()
    for name in ("last.pt", "previous.pt"):
        ended = swa("bn-update", run / "swa.pt", "-o", run / name)
        assert ended.code == 2
        assert "is the resume point of its run" in " ".join(ended.err.split())
    assert (run / "last.pt").read_bytes() == before


def test_a_result_replaces_no_other_checkpoint_of_a_run(swa, run: Path) -> None:
    """-o in the place of another shipped average or a snapshot: exit 2, and the bytes of before; a new name is free."""
    snapshot = sorted((run.parent / "snapshots").iterdir())[0]
    sources = [run / "swa.pt", run / "early.pt"]
    for target in (run / "ema.pt", snapshot):
        before = target.read_bytes()
        for command in (
            ["bn-update", run / "swa.pt"],
            ["average", *sources],
            ["average", run.parent, "--weights", "swa"],
            ["soup", *sources, "--method", "uniform"],
            ["export", run / "swa.pt", "--format", "state-dict"],
        ):
            ended = swa(*command, "-o", target)
            assert ended.code == 2
            assert f"{target.name}: is a checkpoint of a run" in " ".join(ended.err.split())
        assert target.read_bytes() == before
    assert swa("bn-update", run / "swa.pt", "-o", run / "swa-again.pt").code == 0
    (run.parent / "mine").mkdir()
    for _ in range(2):  # one's own result in a folder that no run writes is replaced
        assert swa("average", *sources, "-o", run.parent / "mine/mean.pt").code == 0


def test_two_processes_do_not_change_one_file(swa, run: Path) -> None:
    """bn-update of a file outside of a run that another process has locked: exit 2; without the lock: refreshed."""
    shutil.copy(run / "swa.pt", "alone.pt")
    before = Path("alone.pt").read_bytes()
    with locks.holding(Path("alone.pt")):
        ended = swa("bn-update", "alone.pt")
        assert ended.code == 2
        assert "another process is working on this file" in " ".join(ended.err.split())
        assert Path("alone.pt").read_bytes() == before
    assert swa("bn-update", "alone.pt").code == 0


def test_hints_name_only_what_a_command_takes(swa, run: Path) -> None:
    """Unknown weights: `all` is offered by eval and bn-update, and not by predict and export, which refuse it."""
    for command, takes_all in (("eval", True), ("bn-update", True), ("predict", False), ("export", False)):
        more = {"predict": ["x.png"], "export": ["--format", "onnx", "-o", "x.onnx"]}.get(command, [])
        Image.new("L", (8, 8)).save("x.png")
        ended = swa(command, run / "last.pt", *more, "--weights", "nope")
        assert ended.code == 2
        hint = " ".join(ended.err.split()).partition("hint: ")[2]
        assert "last, swa, ema, early" in hint
        assert ("all" in hint) is takes_all


def test_the_hint_of_the_guard_works_when_pasted(swa, run: Path) -> None:
    """A checkpoint whose path has spaces: the command that the refusal names, word by word, then eval."""
    path = Path("my runs/last one.pt")
    path.parent.mkdir()
    shutil.copy(run / "last.pt", path)
    refused = " ".join(swa("eval", path).err.split())
    (command,) = re.findall(r"run `(swa bn-update [^`]*)`", refused)
    assert swa(*shlex.split(command)[1:]).code == 0
    assert swa("eval", path).code == 0


def test_stale_guard_then_update_equals_swa_exactly(swa, run: Path) -> None:
    """last.pt: refused with a hint; after bn-update each average equals its file; a second update changes no bit."""
    refused = swa("eval", run / "last.pt")
    assert refused.code == 2
    assert "stale" in refused.err
    assert "bn-update" in refused.err
    before = load(run / "last.pt")
    assert swa("bn-update", run / "last.pt").code == 0
    first = (run / "last.pt").read_bytes()
    assert swa("bn-update", run / "last.pt").code == 0
    assert (run / "last.pt").read_bytes() == first
    updated = swa("eval", run / "last.pt", "--json").json["weights"]
    for name in ("swa", "ema", "early"):
        shipped = swa("eval", run / f"{name}.pt", "--json").json["weights"][name]
        assert {key: updated[name][key] for key in shipped} == shipped, name
    assert len({updated[name]["nll"] for name in ("swa", "ema", "early")}) == 3
    after = load(run / "last.pt")
    assert all(torch.equal(before["model"][key], after["model"][key]) for key in before["model"])
    assert after["averages"]["swa"]["batchnorm"] == "recomputed"


def test_stale_weights_are_scored_on_insistence(swa, run: Path) -> None:
    """--allow-stale-bn scores, and the answer says stale; --weights last needs no insistence."""
    ended = swa("eval", run / "last.pt", "--allow-stale-bn", "--json")
    assert ended.json["weights"]["swa"]["batchnorm"] == "stale"
    assert swa("eval", run / "last.pt", "--weights", "last").code == 0


def test_update_of_swa_changes_nothing(swa, run: Path) -> None:
    """swa.pt after bn-update against before: the same statistics, bit for bit, and the same record."""
    before = load(run / "swa.pt")
    assert swa("bn-update", run / "swa.pt", "-q").code == 0
    after = load(run / "swa.pt")
    first, second = before.pop("state_dict"), after.pop("state_dict")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert before == after


def test_update_with_fewer_samples_is_recorded(swa, run: Path, tmp_path: Path) -> None:
    """--samples 500 -o FILE: the record in the new file, the old file untouched."""
    before = (run / "swa.pt").read_bytes()
    out = tmp_path / "quick.pt"
    ended = swa("bn-update", run / "swa.pt", "--samples", "500", "-o", out, "--json")
    assert ended.code == 0, ended.err
    assert load(out)["samples"] == 500
    assert ended.json["weights"]["swa"]["samples"] == 500
    assert (run / "swa.pt").read_bytes() == before


def test_a_large_training_set_is_read_in_part(swa, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a limit of 1,000 for whole passes: plan, `swa bn-update` and `swa average` take a tenth; `all` takes all."""
    num_train = load(run / "swa.pt")["samples"]
    assert num_train > 1000
    monkeypatch.setattr("swa_cli.recipe.schema.averages.MAX_WHOLE_PASS", 1000)
    part = math.ceil(num_train / 10)
    planned = swa("plan", run.parent / "recipe.yaml")
    assert f"reads {part} of {num_train:,} training samples" in " ".join((planned.out + planned.err).split())
    for words, number in ((["auto"], part), (["all"], num_train), ([], part)):
        samples = ["--samples", *words] if words else []
        ended = swa("bn-update", run / "swa.pt", *samples, "-o", tmp_path / "new.pt", "--json")
        assert ended.code == 0, ended.err
        assert ended.json["weights"]["swa"]["samples"] == load(tmp_path / "new.pt")["samples"] == number
        (tmp_path / "new.pt").unlink()
    ended = swa("average", run.parent, "-o", tmp_path / "mean.pt", "--json")
    assert ended.code == 0, ended.err
    assert load(tmp_path / "mean.pt")["samples"] == part


def test_snapshots_are_scored_and_updated(swa, run: Path) -> None:
    """A snapshot: scored as it is (running), then recomputed."""
    snapshot = sorted((run.parent / "snapshots").iterdir())[-1]
    assert swa("eval", snapshot, "--json").json["weights"]["snapshot"]["batchnorm"] == "running"
    assert swa("bn-update", snapshot, "-q").code == 0
    assert swa("eval", snapshot, "--json").json["weights"]["snapshot"]["batchnorm"] == "recomputed"


def test_foreign_weights_need_a_recipe_and_score_the_same(swa, run: Path, recipe: Path, tmp_path: Path) -> None:
    """The state dict of swa.pt saved plainly: exit 2 without --recipe, with it the accuracy of swa.pt."""
    torch.save(load(run / "swa.pt")["state_dict"], tmp_path / "plain.pt")
    assert "--recipe" in swa("eval", tmp_path / "plain.pt").err
    found = swa("eval", tmp_path / "plain.pt", "--recipe", recipe, "--json").json["weights"]["last"]
    expected = swa("eval", run / "swa.pt", "--json").json["weights"]["swa"]
    assert found["nll"] == expected["nll"]


def test_averaged_model_of_torch_is_stale_until_updated(swa, run: Path, recipe: Path, tmp_path: Path) -> None:
    """A state of torch's AveragedModel: guarded; bn-update -o writes ours, which then needs nothing else."""
    state = load(run / "last.pt")["model"]
    foreign = {"n_averaged": torch.tensor(3), **{f"module.{key}": value for key, value in state.items()}}
    torch.save(foreign, tmp_path / "theirs.pt")
    assert swa("eval", tmp_path / "theirs.pt", "--recipe", recipe).code == 2
    assert swa("bn-update", tmp_path / "theirs.pt", "--recipe", recipe).code == 2  # nowhere to record it
    ended = swa("bn-update", tmp_path / "theirs.pt", "--recipe", recipe, "-o", tmp_path / "ours.pt")
    assert ended.code == 0, ended.err
    scored = swa("eval", tmp_path / "ours.pt", "--json").json["weights"]["swa"]
    assert scored["batchnorm"] == "recomputed"
    assert scored["count"] == 3


def test_network_without_batchnorm_says_so(swa, recipe: Path, tmp_path: Path) -> None:
    """A network without BatchNorm: its average is never stale, and bn-update is a no-op that says so."""
    (tmp_path / "linear_net.py").write_text(
        "from torch import nn\n"
        "def net(num_classes, in_channels):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64 * in_channels, num_classes))\n"
    )
    recipe.write_text(recipe.read_text().replace("{name: convnet, args: {width: 4}}", "{name: 'linear_net:net'}"))
    assert swa("train", recipe, "-q").code == 0
    run = tmp_path / "runs/latest/checkpoints"
    before = (run / "last.pt").read_bytes()
    ended = swa("bn-update", run / "last.pt", "--allow-code")
    assert ended.code == 0
    assert "no BatchNorm" in ended.err
    assert (run / "last.pt").read_bytes() == before
    assert swa("eval", run / "last.pt", "--allow-code", "--json").json["weights"]["swa"]["batchnorm"] == "none"
    torch.save(load(run / "last.pt")["model"], "theirs.pt")
    assert swa("bn-update", "theirs.pt", "--recipe", recipe, "-o", "ours.pt").code == 0
    assert swa("eval", "ours.pt", "--allow-code", "--json").json["weights"]["last"]["batchnorm"] == "none"


def test_code_inside_a_checkpoint_is_not_run(swa, run: Path, tmp_path: Path) -> None:
    """A recipe inside that names os:system, as model and as dataset: exit 2, named, and nothing was run."""
    content = load(run / "swa.pt")
    trap = tmp_path / "trap"
    for section in ("model", "dataset"):
        evil = {**content["recipe"], section: {"name": "os:system", "args": {"command": f"touch {trap}"}}}
        torch.save({**content, "recipe": evil}, "evil.pt")
        for command in ("eval", "bn-update"):
            ended = swa(command, "evil.pt")
            assert ended.code == 2
            assert "os:system" in ended.err
            assert "--allow-code" in ended.err
    assert not trap.exists()


def test_module_beside_the_recipe_is_found_after_training(swa, recipe: Path, tmp_path: Path) -> None:
    """A run of a recipe in another folder with its own module: eval, its recipe.yaml and bn-update still find it."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "beside_net.py").write_text(
        "from torch import nn\n"
        "def net(num_classes, in_channels):\n"
        "    return nn.Sequential(nn.BatchNorm2d(in_channels), nn.Flatten(), nn.Linear(64, num_classes))\n"
    )
    text = recipe.read_text().replace("{name: convnet, args: {width: 4}}", "{name: 'beside_net:net'}")
    (project / "own.yaml").write_text(text)
    assert swa("train", "project/own.yaml", "-q").code == 0
    for words in (
        ["eval", "runs/latest/checkpoints/swa.pt", "--allow-code"],
        ["bn-update", "runs/latest/checkpoints/swa.pt", "--allow-code"],
        ["train", "runs/latest/recipe.yaml", "-q"],
    ):
        path = list(sys.path)
        sys.path[:] = [entry for entry in path if entry != str(project)]
        sys.modules.pop("beside_net")
        assert swa(*words).code == 0, words


def test_weights_keep_the_normalisation_they_were_trained_with(swa, run: Path) -> None:
    """Scores of swa.pt with another validation split against before: the constants are those of the checkpoint."""
    first = swa("eval", run / "swa.pt", "--json").json["weights"]
    assert swa("eval", run / "swa.pt", "dataset.val=1000", "--json").json["weights"] == first


@pytest.mark.parametrize("change", ["dataset.val=50%", "dataset.val_seed=5", "dataset.stratify=false"])
def test_validation_images_that_were_trained_on_are_not_scored(swa, run: Path, change: str) -> None:
    """Keys that hold out other digits: no scores on them and no reference chosen on them, while test scores stay."""
    before = swa("eval", run / "swa.pt", "--json").json["weights"]
    for words in (["--split", "val"], ["--split", "val", "--ensemble"], []):
        ended = swa("eval", run.parent, change, *words)
        assert ended.code == 2
        assert ended.out == ""
        assert "may have been trained on the validation images" in ended.err
    assert swa("eval", run / "swa.pt", change, "--split", "val").code == 2
    assert swa("eval", run / "swa.pt", change, "--json").json["weights"] == before
    assert swa("eval", run.parent, "dataset.val=0", "--json").json["reference"] == "last_bn"


def test_validation_images_below_another_root_are_those_of_other_data(swa, tmp_path: Path) -> None:
    """Another split of a copy of the photos is refused; one of other photos, which nobody has trained on, is scored."""
    for root, gray in (("pets", 0), ("copy", 0), ("others", 100)):
        for row in range(12):
            folder = tmp_path / root / "train" / ("cat", "dog")[row % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), gray + 8 * row).save(folder / f"{row}.png")
    recipe = {
        "name": "pets",
        "model": {"name": "convnet", "args": {"width": 2}},
        "dataset": {"name": "image_folder", "root": "pets", "val": 4, "workers": 0},
        "optimizer": {"lr": 0.01},
        "train": {"epochs": 1, "batch_size": 4},
        "output": {"plots": False},
    }
    (tmp_path / "pets.yaml").write_text(json.dumps(recipe))
    assert swa("train", "pets.yaml", "-o", "pets_runs").code == 0
    words = ["eval", "pets_runs/pets-001/checkpoints/last_bn.pt", "dataset.val=6"]
    assert swa(*words, "dataset.root=copy").code == 2
    assert swa(*words, "dataset.root=others").code == 0


def test_data_of_another_kind_are_refused(swa, run: Path, tmp_path: Path) -> None:
    """Weights of ten digits on a folder of two classes: exit 2, both are named."""
    for label in ("cat", "dog"):
        (tmp_path / "pets" / "train" / label).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "pets" / "train" / label / "0.png")
    ended = swa("eval", run / "swa.pt", "dataset.name=image_folder", "dataset.root=pets", "dataset.val=1")
    assert ended.code == 2
    assert "trained on" in ended.err


def test_old_torch_files_are_read(swa, run: Path, recipe: Path, tmp_path: Path) -> None:
    """A state dict in the format of torch before 1.6 against the same in today's: equal scores."""
    state = load(run / "swa.pt")["state_dict"]
    torch.save(state, "old.pt", _use_new_zipfile_serialization=False)
    torch.save(state, "new.pt")
    old, new = (swa("eval", name, "--recipe", recipe, "--json").json["weights"] for name in ("old.pt", "new.pt"))
    assert old == new


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["eval", "nowhere.pt"], "no such checkpoint"),
        (["eval", "RUN/swa.pt", "--split", "dev"], "--split"),
        (["eval", "RUN/swa.pt", "--weights", "ema"], "choose from swa"),
        (["bn-update", "RUN/swa.pt", "-o", "x.safetensors"], ".pt file"),
        (["bn-update", "RUN/swa.pt", "-o", "RUN"], "-o FILE"),
        (["eval", "RUN/swa.pt", "optimizer.lr=2"], "optimizer.lr"),
        (["eval", "RUN/swa.pt", "dataset.rot=x"], "dataset.root"),
        (["bn-update", "RUN/last.pt", "--weights", "last"], "raw weights"),
        (["bn-update", "RUN/swa.pt", "--samples", "many"], "many"),
        (["bn-update", "RUN/swa.pt", "-o", "nowhere/x.pt"], "no such folder"),
    ],
)
def test_mistakes_end_with_2_and_a_cure(swa, run: Path, words: list[str], message: str) -> None:
    """Likely mistakes: exit 2, the cure in the message, no traceback."""
    ended = swa(*[word.replace("RUN", str(run)) for word in words])
    assert ended.code == 2
    assert message in " ".join(ended.err.split())
    assert "Traceback" not in ended.err
