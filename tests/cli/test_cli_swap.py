"""SWAP through the command line: its workers against runs of their own, its mean against float64, kills, mistakes."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from conftest import Swa, copy_runs
from equal_runs import assert_equal_runs, content, flat
from processes import exit_codes, said_in, start
from swa_cli.checkpoint.run_folder import RunFolder
from swa_cli.data import sources
from swa_cli.engine import validate
from swa_cli.engine.run import Run
from swa_cli.models import build_model

RECIPE = """\
name: tiny
model: {name: convnet, args: {width: 4, dropout: 0.2}}
dataset: {name: digits, augment: {crop: 1}}
optimizer: {lr: 0.2}
swap: {workers: 2, start: 50%}
train: {epochs: 4, batch_size: 128, threads: 1, precision: fp32}
"""
RUN = Path("runs/tiny-001")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    return tmp_path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing has disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "tiny.yaml").write_text(RECIPE)
    process = start(folder, ["train", "tiny.yaml"])
    assert exit_codes(process) == [0], said_in(folder)
    return folder / RUN


@pytest.fixture
def trained(tiny: Path, whole: Path) -> Path:
    """The same run in the test's own folder."""
    return copy_runs(whole.parent, tiny / "runs")


def assert_equal_points(first: Path, second: Path) -> None:
    """The resume points of two runs, bit for bit."""
    one, two = (dict(flat(content(run, "last"))) for run in (first, second))
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert torch.equal(value, two[key]) if isinstance(value, torch.Tensor) else value == two[key], key


def test_workers_are_runs_of_their_own(tiny: Path, swa: Swa) -> None:
    """Workers in turn against `swa train swap.worker=W train.init=...`, by bits; their parts differ, the split not."""
    result = swa("train", "tiny.yaml", "--json").json
    for number in (1, 2):
        words = [f"swap.worker={number}", f"train.init={RUN}/checkpoints/last.pt"]
        assert swa("train", "tiny.yaml", *words).code == 0
        assert_equal_points(RUN / "workers" / str(number), Path(f"runs/tiny-{number + 1:03d}"))
        own = json.loads(Path(f"runs/tiny-{number + 1:03d}/result.json").read_text())["weights"]["last"]
        assert own["nll"] == result["weights"][f"worker-{number}"]["nll"]
    assert swa("train", RUN / "workers/2/recipe.yaml", "-o", "again").code == 0
    assert_equal_points(RUN / "workers/2", Path("again/tiny-001"))
    first, second = (content(RUN / "workers" / str(number), "last") for number in (1, 2))
    weights = [name for name, value in first["model"].items() if value.is_floating_point()]
    assert not any(torch.equal(first["model"][name], second["model"][name]) for name in weights)
    assert [row["epoch"] for row in first["history"]] == [1, 2]
    assert content(RUN, "last")["epoch"] == 2


def test_mean_of_the_workers(tiny: Path, swa: Swa) -> None:
    """swa.pt against the float64 mean of its sources with BatchNorm by `bn-update`, and against `swa average`."""
    result = swa("train", "tiny.yaml", "swap.workers=3", "swap.batchnorm.method=exact", "--json").json
    workers = [name for number in (1, 2, 3) for name in (f"worker-{number}", f"worker-{number}_bn")]
    assert list(result["weights"]) == ["last", "last_bn", *workers, "swa"]
    shipped = content(RUN, "swa")
    sources = [f"workers/{number}/checkpoints/last.pt" for number in (1, 2, 3)]
    assert [source["file"] for source in shipped["sources"]] == sources
    assert shipped["average"] == {"name": "swa", "kind": "mean", "count": 3, "steps": [60, 60, 60]}
    states = [torch.load(RUN / source, weights_only=True)["model"] for source in sources]
    for name, value in shipped["state_dict"].items():
        if "running" not in name and "num_batches" not in name:
            mean = torch.stack([state[name].double() for state in states]).mean(0)
            torch.testing.assert_close(value.double(), mean, rtol=0, atol=1e-7)
    assert swa("bn-update", RUN / "checkpoints/swa.pt", "-o", "again.pt").code == 0
    again = torch.load("again.pt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, again[name]) for name, value in shipped["state_dict"].items())
    averaged = swa("average", *(RUN / source for source in sources), "-o", "soup.pt", "--json").json
    assert averaged["batchnorm_method"] == "exact"
    for name, value in torch.load("soup.pt", weights_only=True)["state_dict"].items():
        torch.testing.assert_close(value, shipped["state_dict"][name], rtol=1e-6, atol=1e-6)


def raw_states(run: Path) -> dict[str, dict[str, torch.Tensor]]:
    """What the files of a run hold of its two workers, each before its twin with recomputed statistics."""
    states = {}
    for name in ("worker-1", "worker-2"):
        states[name] = content(run / "workers" / name[-1], "last")["model"]
        states[f"{name}_bn"] = content(run, f"{name}_bn")["state_dict"]
    return states


@torch.no_grad()
def losses(state: dict[str, torch.Tensor], arrays: Any, about: dict[str, Any]) -> torch.Tensor:
    """The NLL of each digit (N,): torch, the network, and what a file says of its input."""
    model = build_model.build("convnet", num_classes=10, in_channels=1, args={"width": 4, "dropout": 0.2})
    model.load_state_dict(state)
    mean, std = (torch.tensor(about[key], dtype=torch.float64).view(-1, 1, 1) for key in ("mean", "std"))
    logits = model.double().eval()((arrays.images.double() / 255 - mean) / std)
    return F.cross_entropy(logits, arrays.labels, reduction="none")


@pytest.mark.parametrize("seed", [1, 2])
def test_the_reference_is_the_best_worker(tiny: Path, swa: Swa, seed: int) -> None:
    """The worker, raw or with fresh statistics, of lowest validation NLL in float64; swa's differences are to it."""
    result: dict[str, Any] = swa("train", "tiny.yaml", f"seed={seed}", "--json").json
    states, about, data = raw_states(RUN), content(RUN, "swa")["input"], sources.load("digits", seed=seed)
    for name in ("worker-1", "worker-2"):
        one, two = states[name], states[f"{name}_bn"]
        assert [key for key in one if not torch.equal(one[key], two[key]) and "running" not in key] == []
        assert not any(torch.equal(one[key], two[key]) for key in one if "running" in key)
    on_val = {name: float(losses(state, data.val, about).mean()) for name, state in states.items()}
    for name, loss in on_val.items():
        assert result["weights"][name]["val"]["nll"] == pytest.approx(loss, abs=1e-5)
    assert result["reference"] == min(on_val, key=on_val.__getitem__)
    row = result["weights"]["swa"]
    assert row["reference"] == result["reference"]
    assert [name for name, other in result["weights"].items() if "reference" in other] == ["swa"]
    own, other = (
        losses(state, data.test, about) for state in (content(RUN, "swa")["state_dict"], states[result["reference"]])
    )
    assert row["nll_diff"] == pytest.approx(float((own - other).mean()), abs=1e-5)
    assert row["nll_diff_se"] == pytest.approx(float((own - other).std()) / 360**0.5, abs=1e-5)
    again = swa("eval", RUN, "--json").json
    assert again["reference"] == result["reference"]
    for values in result["weights"].values():
        del values["val"]
    assert again["weights"] == result["weights"]


def test_what_is_shipped_is_the_best_on_validation(tiny: Path, swa: Swa) -> None:
    """The file that the last lines name, that of a worker too, against the lowest validation NLL of all rows."""
    out = swa("train", "tiny.yaml", "-q").out
    (line,) = [line for line in out.splitlines() if line.split()[:1] == ["ship"]]
    rows = json.loads((RUN / "result.json").read_text())["weights"]
    best = min(rows, key=lambda name: rows[name]["val"]["nll"])
    is_worker = best.startswith("worker-") and not best.endswith("_bn")
    file = f"workers/{best[7:]}/checkpoints/last.pt" if is_worker else f"checkpoints/{best}.pt"
    assert line.split()[1] == str(RUN / file)
    assert (RUN / file).is_file()


def test_without_validation_images_the_reference_is_the_first_worker(tiny: Path, swa: Swa) -> None:
    """dataset.val=0: worker-1 with statistics recomputed as those of the mean are, in train and eval."""
    result = swa("train", "tiny.yaml", "dataset.val=0", "--json").json
    again = swa("eval", RUN, "--json").json
    for told in (result, again):
        assert (told["reference"], told["weights"]["swa"]["reference"]) == ("worker-1_bn", "worker-1_bn")


@pytest.mark.parametrize(
    ("within", "event"),
    [
        ("tiny-001/checkpoints/.last", 6),  # in the common phase
        ("workers/1", 2),  # before the first worker
        ("workers/1", 9),
        ("workers/1", 26),  # inside an epoch of it
        ("workers/2", 1),  # between the two
        ("workers/2", 13),
        ("workers/2", 34),
        ("checkpoints/.swa.pt", 1),
        ("result.json", 1),
    ],
)
def test_killed_and_gone_on(tiny: Path, whole: Path, swa: Swa, within: str, event: int) -> None:
    """SIGKILL at an event in the files of each phase, then --resume, against the undisturbed run, bit for bit."""
    process = start(tiny, ["train", "tiny.yaml", "output.save_every=7step"], kill_at=event, within=within)
    assert exit_codes(process) == [-signal.SIGKILL], said_in(tiny)
    ended = swa("train", "--resume", RUN)
    assert ended.code == 0, ended.err
    assert_equal_runs(whole, RUN)
    for number in ("1", "2"):
        assert_equal_points(whole / "workers" / number, RUN / "workers" / number)


def test_stopped_in_the_last_validation_of_a_worker(
    tiny: Path, whole: Path, swa: Swa, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGINT there, then --resume: the worker has the row of its last epoch, and the run its end."""
    real = validate.validate

    def stopped(run: Run) -> dict[str, Any]:
        if run.context.recipe.swap.worker == 1 and run.step == run.plan.total_steps:  # type: ignore[union-attr]
            monkeypatch.setattr(validate, "validate", real)
            os.kill(os.getpid(), signal.SIGINT)
        return real(run)

    monkeypatch.setattr(validate, "validate", stopped)
    assert swa("train", "tiny.yaml").code == 130
    assert content(RUN / "workers/1", "last")["step"] == content(whole / "workers/1", "last")["step"]
    ended = swa("train", "--resume", RUN)
    assert ended.code == 0, ended.err
    assert_equal_runs(whole, RUN)
    assert_equal_points(whole / "workers/1", RUN / "workers/1")


def test_stopped_in_the_final_passes(tiny: Path, whole: Path, swa: Swa, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGINT once the workers are done, then --resume, against the undisturbed run, bit for bit."""
    finish = validate.finish

    def stopped(run: Run, folder: RunFolder) -> dict[str, Any]:
        monkeypatch.setattr(validate, "finish", finish)
        os.kill(os.getpid(), signal.SIGINT)
        return finish(run, folder)

    monkeypatch.setattr(validate, "finish", stopped)
    assert swa("train", "tiny.yaml").code == 130
    assert not (RUN / "result.json").exists()
    ended = swa("train", "--resume", RUN)
    assert ended.code == 0, ended.err
    assert_equal_runs(whole, RUN)


@pytest.mark.slow
def test_stopped_in_a_worker_and_moved(tiny: Path, swa: Swa) -> None:
    """SIGINT in the first worker: exit code 130 with its step saved; moved elsewhere, the run goes on to its end."""
    words = ["train", "tiny.yaml", "train.epochs=12", "swap.start=1ep"]
    process = start(tiny, words, kill_at=1, within="workers/1/checkpoints/.last", by=signal.SIGINT)
    codes, said = exit_codes(process), said_in(tiny)
    assert codes == [130], said
    assert "which is saved" in said
    assert f"continue with `swa train --resume {RUN}`" in said
    assert 0 < content(RUN / "workers/1", "last")["step"] < 11 * 20
    assert not (RUN / "workers/2").exists()
    shutil.move(RUN, "elsewhere")
    ended = swa("train", "--resume", "elsewhere")
    assert ended.code == 0, ended.err
    assert "worker 1 of 2, continued after step" in ended.err
    assert swa("train", "--resume", "elsewhere").code == 2


@pytest.mark.parametrize(
    ("words", "key", "message"),
    [
        (["swa.start=50%"], "swa", "is of the weights along one trajectory"),
        (["averages.ema.kind=ema"], "averages", "is of the weights along one trajectory"),
        (["snapshots.every=1ep"], "snapshots", "is of the weights along one trajectory"),
        (["train.early_stopping.patience=3"], "train.early_stopping", "would end one phase before the other"),
        (["train.max_time=1h"], "train.max_time", "would end one phase before the other"),
        (["train.fsdp=true"], "train.fsdp", "deals a network out over processes"),
        (["dataset.repeats=4", "swap.batch_size=2"], "dataset.repeats", "fill a batch of 2 samples"),
        (
            ["dataset={name: digits, repeats: 4, augment: {mixup: 0.2}}", "swap.batch_size=7"],
            "dataset.repeats",
            "mixup and cutmix need another image",
        ),
        (["swap.start=0%"], "swap.start", "0% of 4 epochs leaves nothing before"),
        (["swap.start=4ep"], "swap.start", "4ep of 4 epochs leaves nothing to the workers"),
        (["swap.start=1cycle"], "swap.start", "is not a number of epochs"),
        (["swap.start=9step"], "swap.start", "is not a number of epochs"),
        (["train.epochs=1"], "train.epochs", "1 cannot be divided"),
        (["swap.workers=1"], "swap.workers", "2"),
        (["swap.batch_size=1294"], "swap.batch_size", "is more than the 1,293 training samples"),
        (["swap.lr=0.5"], "swap.lr", "is not a multiple of the rate"),
        (["swap.worker=3", "train.init=a.pt"], "swap.worker", "3 of 2 workers"),
        (["swap.worker=1"], "swap.worker", "train.init names none"),
        (["swap.worker=1", "train.init=a.pt", "train.init_skip=[x]"], "train.init_skip", "all of the common weights"),
        (["schedule.warmup=5step"], "schedule.warmup", "5step is another time in the common phase than in a worker"),
        (["schedule={name: multistep, milestones: [2ep, 5step]}"], "schedule.milestones", "5step is another time"),
    ],
    ids=str,
)
def test_mistakes(tiny: Path, swa: Swa, words: list[str], key: str, message: str) -> None:
    """A recipe that is no SWAP run: the key with its place, exit code 2, nothing written."""
    ended = swa("train", "tiny.yaml", *words)
    assert ended.code == 2
    assert f"error: {key}" in ended.err
    assert message in " ".join(ended.err.split())
    assert "hint:" in ended.err
    assert not Path("runs").exists()


def test_all_mistakes_at_once(tiny: Path, swa: Swa) -> None:
    """Mistakes beside the section are told together with those in it."""
    ended = swa("train", "tiny.yaml", "swap.start=0%", "swa.start=50%", "schedule.warmup=9ep")
    assert [f"error: {key}:" in ended.err for key in ("swap.start", "swa", "schedule.warmup")] == [True] * 3
    assert "3 problems in tiny.yaml" in ended.err


def test_loggers_hear_the_common_phase_alone(tiny: Path, swa: Swa) -> None:
    """A logger of one's own: made once, with the epochs of the common phase, and ended once."""
    (tiny / "heard.py").write_text(
        "class Log:\n"
        "    heard = []\n"
        "    def __init__(self): self.heard.append('made')\n"
        "    def plan(self, event): self.heard.append(event.folder.name)\n"
        "    def epoch(self, event): self.heard.append(event.row['epoch'])\n"
        "    def end(self, event): self.heard.append('end')\n"
    )
    assert swa("train", "tiny.yaml", "-q", "output.loggers=[heard:Log]").code == 0
    import heard  # type: ignore[import-not-found]

    assert heard.Log.heard == ["made", "tiny-001", 1, 2, "end"]
    assert (RUN / "workers/1/metrics.csv").is_file()


def test_a_batch_of_a_worker_that_is_too_small_is_named(tiny: Path, swa: Swa) -> None:
    """BatchNorm with one value per channel in a batch of one: the key of the worker, whose hint then works."""
    network = ["model={name: 'torchvision:resnet18'}", "train.batch_size=4", "swap.workers=4"]
    refused = swa("train", "tiny.yaml", "--dry-run", *network)
    assert refused.code == 2
    said = " ".join(refused.err.split())
    assert "swap.batch_size" in said
    assert "write swap.batch_size=2 or more" in said
    assert swa("train", "tiny.yaml", "--dry-run", *network, "swap.batch_size=2").code == 0


@pytest.mark.usefixtures("trained")
def test_no_more_epochs(swa: Swa) -> None:
    """--extend-to of a finished SWAP run: refused, with the reason."""
    ended = swa("train", "--resume", RUN, "--extend-to", "9")
    assert (ended.code, "begin where its common phase has ended" in ended.err) == (2, True)


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("name", ["workers", "workers/1"])
def test_links_are_not_followed(swa: Swa, name: str) -> None:
    """A symbolic link where a worker's folder belongs is refused."""
    (RUN / "result.json").unlink()
    shutil.move(RUN / name, "outside")
    (RUN / name).symlink_to(Path("outside").resolve())
    ended = swa("train", "--resume", RUN)
    assert ended.code != 0
    assert "is a symbolic link" in ended.err


@pytest.mark.usefixtures("trained")
def test_a_worker_of_another_run_is_refused(swa: Swa) -> None:
    """The folder of a worker of another seed in place of the own: told, and neither trained nor averaged."""
    assert swa("train", "tiny.yaml", "seed=1").code == 0
    (RUN / "result.json").unlink()
    shutil.rmtree(RUN / "workers/2")
    shutil.copytree("runs/tiny-002/workers/2", RUN / "workers/2")
    ended = swa("train", "--resume", RUN)
    assert ended.code == 2
    assert "error: seed" in ended.err
    assert swa("eval", RUN).code == 2


def rate(epochs: float) -> float:
    """A cosine of 10 epochs from 0.1 to 0 after a linear warmup of 1."""
    return 0.05 * (1 + math.cos(math.pi * (epochs - 1) / 9))


@pytest.mark.parametrize(
    ("words", "common", "batch_size", "factor"),
    [
        ([], 7, 100, 0.5),
        (["swap.workers=3"], 7, 66, 0.33),
        (["swap.start=66%", "swap.batch_size=64"], 7, 64, 0.32),
        (["swap.start=2ep", "swap.lr=0.25x"], 2, 100, 0.25),
        (["swap.start=1%", "train.batch_size=50", "train.grad_accum_steps=4"], 1, 100, 0.5),
        (["swap.start=99%"], 9, 100, 0.5),
    ],
    ids=str,
)
def test_plan(tiny: Path, swa: Swa, words: list[str], common: int, batch_size: int, factor: float) -> None:
    """Epochs, batches and rates of both phases of `swa plan` against closed forms."""
    base = ["train.epochs=10", "train.batch_size=200", "optimizer.lr=0.1", "swap.start=70%"]
    plan = swa("plan", "tiny.yaml", *base, *words, "--json").json
    assert (plan["epochs"], plan["steps_per_epoch"]) == (common, 1293 // 200)
    assert plan["learning_rates"][1:] == pytest.approx([rate(epoch) for epoch in range(1, common)])
    worker = plan["worker"]
    assert (worker["epochs"], worker["batch_size"]) == (10 - common, batch_size)
    assert worker["total_steps"] == (10 - common) * (1293 // batch_size)
    assert worker["learning_rates"] == pytest.approx([factor * rate(epoch) for epoch in range(common, 10)])


@pytest.mark.slow
@pytest.mark.pictures
def test_what_looks_at_runs(tiny: Path, swa: Swa) -> None:
    """eval, show, compare, report, pictures and a dry run of a SWAP run: its workers are there, with their scores."""
    result: dict[str, Any] = swa("train", "tiny.yaml", "--json").json
    scored = swa("eval", RUN, "--json").json["weights"]
    assert {name: row["nll"] for name, row in scored.items()} == {
        name: row["nll"] for name, row in result["weights"].items()
    }
    assert [line.split(" vs ")[0] for line in swa("eval", RUN).out.splitlines() if " vs " in line] == ["swa"]
    shown = swa("show", RUN, "--json").json
    assert {f"checkpoints/{name}.pt" for name in ("last_bn", "worker-1_bn", "worker-2_bn")} < shown["files"].keys()
    assert {f"workers/{number}/checkpoints/last.pt" for number in (1, 2)} < shown["files"].keys()
    assert [row["file"] for row in swa("show", RUN / "checkpoints/swa.pt", "--json").json["sources"]] == [
        f"workers/{number}/checkpoints/last.pt" for number in (1, 2)
    ]
    assert "part of the run" in swa("show", RUN / "workers/1").out
    assert RunFolder(RUN / "workers/1").title == f"{RUN.name}/workers/1"
    (table,) = swa("compare", RUN, RUN / "workers/1", "--json").json["tables"]
    assert table["rows"][0]["params"].keys() == {"swap.worker", "train.init"}
    assert swa("report", RUN, "-o", "page.html").code == 0
    page = Path("page.html").read_text()
    assert "common phase epochs 1 to 2, batch 128; 2 workers x epochs 3 to 4, batch 64, rate x 0.5" in page
    assert "worker-2, validation" in page
    differences = re.findall(r'<tr class="difference"><td>− ([^<]*)</td>', page)
    assert differences == [result["reference"]]
    assert all(f"<tr><td>{name}</td>" in page for name in result["weights"])
    assert f"  − {result['reference']} " in swa("show", RUN).out
    assert swa("plot", RUN, "curves", "-o", "curves.svg").code == 0
    marks = re.findall(r">(\S+), test: ([\d.]+)</text>", Path("curves.svg").read_text())
    assert [name for name, _ in marks] == list(result["weights"])  # of the loss; those of the accuracy are in percent
    for name, value in marks:
        assert float(value) == pytest.approx(result["weights"][name]["nll"], abs=0.000501)
    assert swa("plot", RUN, "plane", "--grid", "3", "--samples", "100").code == 0
    points = [point["name"] for point in json.loads(next(RUN.glob("plane-*.json")).read_text())["points"]]
    assert points == ["last_bn", "worker-1_bn", "worker-2_bn"]
    dry = swa("train", "tiny.yaml", "--dry-run")
    assert "2 workers x epochs 3 to 4, batch 64, rate x 0.5; BatchNorm of their mean recomputed" in " ".join(
        dry.err.split()
    )
