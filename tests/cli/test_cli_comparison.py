"""What averages are judged against: rows, reference, verdict and files, in train, eval, bn-update and repeat."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

from conftest import Swa
from swa_cli.data.synthetic import read_digits
from swa_cli.models import build_model

PLAIN = """\
from torch import nn

def plain(num_classes, in_channels):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * 64, num_classes))
"""


def weights_of(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


@torch.no_grad()
def in_plain_torch(checkpoint: dict[str, Any], images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Accuracy and NLL of shipped weights: torch, the network, and what the file says of its input."""
    model: nn.Module = build_model.build("convnet", num_classes=10, in_channels=1, args={"width": 4})
    model.load_state_dict(checkpoint["state_dict"])
    mean, std = (torch.tensor(checkpoint["input"][key]).view(-1, 1, 1) for key in ("mean", "std"))
    logits = model.eval()((images / 255 - mean) / std)
    return float((logits.argmax(1) == labels).double().mean()), float(F.cross_entropy(logits, labels))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_table_is_what_the_shipped_weights_give(swa: Swa, recipe: Path, precision: str) -> None:
    """Scores of last_bn and swa, trained in any precision, against plain torch in fp32 on the shipped files."""
    result = swa("train", recipe, f"train.precision={precision}", "--json").json
    assert (result["precision"], result["eval_precision"]) == (precision, "fp32")
    for name in ("last_bn", "swa"):
        checkpoint = weights_of(Path(result["run"]) / "checkpoints" / f"{name}.pt")
        accuracy, nll = in_plain_torch(checkpoint, *read_digits()["test"])
        row = result["weights"][name]
        assert row["accuracy"] == pytest.approx(accuracy, abs=1e-9)
        assert row["nll"] == pytest.approx(nll, rel=1e-5)


def test_scores_in_another_precision_are_asked_for(swa: Swa, finished: Path) -> None:
    """eval.precision=bf16 against fp32: other scores of the same weights, and the file says which."""
    fine, coarse = (swa("eval", finished, f"eval.precision={name}", "--json").json for name in ("fp32", "bf16"))
    assert (fine["precision"], coarse["precision"]) == ("fp32", "bf16")
    assert fine["weights"]["swa"]["nll"] != coarse["weights"]["swa"]["nll"]
    assert fine["weights"]["swa"]["nll"] == pytest.approx(coarse["weights"]["swa"]["nll"], rel=0.05)
    refused = swa("eval", finished, "eval.precision=fp16", "train.device=cpu")
    assert refused.code == 2
    assert "eval.precision" in refused.err


def test_rows_and_reference_of_a_run(swa: Swa, finished: Path) -> None:
    """last, last_bn and swa; the reference has the lower validation loss, and differences are to it."""
    result = json.loads((finished / "result.json").read_text())
    rows = result["weights"]
    assert list(rows) == ["last", "last_bn", "swa"]
    assert [rows[name]["batchnorm"] for name in rows] == ["running", "recomputed", "recomputed"]
    losses = {name: rows[name]["val"]["nll"] for name in ("last", "last_bn")}
    assert result["reference"] == min(losses, key=losses.__getitem__)
    assert rows["swa"]["reference"] == result["reference"]
    reference = rows[result["reference"]]
    for key in ("accuracy", "nll"):
        assert rows["swa"][f"{key}_diff"] == pytest.approx(rows["swa"][key] - reference[key], abs=1e-7)
        assert f"{key}_diff" not in rows["last"]
        assert f"{key}_diff" not in rows["last_bn"]
    assert rows["swa"]["val"]["nll"] == pytest.approx(_last_row(Path(result["run"]))["swa_val_loss"], abs=1e-9)


def _last_row(run: Path) -> dict[str, float]:
    head, *rows = (run / "metrics.csv").read_text().splitlines()
    return {key: float(value) for key, value in zip(head.split(","), rows[-1].split(","), strict=True) if value}


def test_without_a_validation_split_the_reference_is_recomputed(swa: Swa, recipe: Path) -> None:
    """dataset.val=0: last_bn, and no validation scores."""
    result = swa("train", recipe, "dataset.val=0", "--json").json
    assert result["reference"] == "last_bn"
    assert {row["val"] for row in result["weights"].values()} == {None}


def test_one_weight_set_gets_no_verdict(swa: Swa, recipe: Path) -> None:
    """The case of the first edition: n = 1, equal weights, and nothing is said to have helped; likewise a lawa of 1."""
    words = ("train.epochs=2", "swa.start=75%", "swa.every=1ep", "averages.lawa={kind: lawa, window: 1, start: 0ep}")
    ended = swa("train", recipe, *words)
    assert "better" not in ended.out + ended.err
    assert "helped" not in ended.out + ended.err
    result = json.loads(Path("runs/latest/result.json").read_text())
    for name in ("swa", "lawa"):
        row = result["weights"][name]
        assert row["count"] == 1
        assert row["no_verdict"] == f"{name} holds 1 weight set: nothing was averaged"
        assert row["no_verdict"] in ended.out
        assert not [key for key in row if key.endswith("_diff")]
    last, own = (weights_of(Path(f"runs/latest/checkpoints/{name}.pt"))["state_dict"] for name in ("last_bn", "swa"))
    assert all(torch.equal(last[key], own[key]) for key in last)


@pytest.mark.parametrize("rate", ["1e-30", "1e-8", "1e-6", "1e-5"])
def test_an_average_of_equal_weights_is_never_better(swa: Swa, recipe: Path, rate: str) -> None:
    """Weights that hardly move from swa.start on: many in the average, equal by construction, and no verdict."""
    ended = swa("train", recipe, f"swa.lr={rate}", "swa.every=1step", "train.precision=fp32")
    assert "better" not in ended.out
    assert "helped" not in ended.out
    row = json.loads(Path("runs/latest/result.json").read_text())["weights"]["swa"]
    assert row["count"] > 30
    assert "equals the raw weights" in row["no_verdict"]


def test_a_network_without_batchnorm_has_no_such_row(swa: Swa, recipe: Path) -> None:
    """A linear classifier: last and swa, the reference is last, in train, eval and bn-update."""
    Path("nets.py").write_text(PLAIN)
    result = swa("train", recipe, "model={name: nets:plain}", "--json").json
    assert list(result["weights"]) == ["last", "swa"]
    assert result["reference"] == result["weights"]["swa"]["reference"] == "last"
    again = swa("eval", result["run"], "--allow-code", "--json").json
    assert list(again["weights"]) == ["last", "swa"]
    assert not list(Path(result["run"]).glob("checkpoints/last_bn.pt"))


def test_eval_of_a_run_and_of_its_file_have_the_rows_of_the_run(swa: Swa, finished: Path) -> None:
    """`swa eval` of the folder, and of last.pt with refreshed averages, against what the run itself has told."""
    result = json.loads((finished / "result.json").read_text())
    run = Path(result["run"])
    swa("bn-update", run / "checkpoints/last.pt")
    for path in (run, run / "checkpoints/last.pt"):
        again = swa("eval", path, "--json").json
        assert again["reference"] == result["reference"]
        assert list(again["weights"]) == list(result["weights"])
        for name, row in again["weights"].items():
            assert row == {key: value for key, value in result["weights"][name].items() if key != "val"}


def test_eval_of_one_weight_set_compares_nothing(swa: Swa, finished: Path) -> None:
    """swa.pt alone and `--weights last`: one row; `--weights last_bn` gives the row of the run."""
    result = json.loads((finished / "result.json").read_text())
    run = Path(result["run"])
    alone = swa("eval", run / "checkpoints/swa.pt", "--json").json
    assert (list(alone["weights"]), alone["reference"]) == (["swa"], None)
    assert "reference" not in alone["weights"]["swa"]
    assert list(swa("eval", run, "--weights", "last", "--json").json["weights"]) == ["last"]
    for path in (run, run / "checkpoints/last.pt"):
        row = swa("eval", path, "--weights", "last_bn", "--json").json["weights"]["last_bn"]
        assert row["nll"] == result["weights"]["last_bn"]["nll"]


def test_raw_weights_are_refreshed_into_a_file_of_their_own(swa: Swa, finished: Path) -> None:
    """`bn-update last.pt --weights last`: refused in place, with -o the tensors of last_bn.pt; last.pt stays."""
    result = json.loads((finished / "result.json").read_text())
    last = Path(result["run"]) / "checkpoints/last.pt"
    before = last.read_bytes()
    for words in ((), ("-o", last)):
        refused = swa("bn-update", last, "--weights", "last", *words)
        assert refused.code == 2
        assert "--weights last -o" in refused.err
    ended = swa("bn-update", last, "--weights", "last", "-o", "new.pt", "--json")
    assert ended.code == 0
    assert ended.json["weights"]["last"]["batchnorm"] == "recomputed"
    assert last.read_bytes() == before
    new, shipped = weights_of(Path("new.pt")), weights_of(last.with_name("last_bn.pt"))
    assert new["average"] == shipped["average"]
    assert new["average"]["name"] == "last_bn"
    assert all(torch.equal(new["state_dict"][key], shipped["state_dict"][key]) for key in shipped["state_dict"])
    assert swa("eval", "new.pt", "--json").json["weights"]["last_bn"]["nll"] == result["weights"]["last_bn"]["nll"]


def test_a_run_tells_where_it_is_and_what_to_ship(swa: Swa, recipe: Path) -> None:
    """The last lines, quiet or not: folder, file, next command; the file is that of the lowest validation NLL."""
    out = swa("train", recipe, "-q").out.splitlines()
    labels = [line.split()[0] for line in out[-3:]]
    assert labels == ["run", "ship", "next"]
    assert "runs/small-001" in out[-3]
    rows = json.loads(Path("runs/small-001/result.json").read_text())["weights"]
    best = min(rows, key=lambda name: rows[name]["val"]["nll"])
    assert f"runs/small-001/checkpoints/{best}.pt" in out[-2]
    assert swa(*out[-1].split()[2:]).code == 0


BASELINE = ("--seeds", "0-2", "--against", "baseline", "train.epochs=2", "dataset.args={test: 1600}")


def test_the_baseline_is_compared_seed_by_seed(swa: Swa, recipe: Path) -> None:
    """Means, spreads and paired intervals against what is computed by hand from the result.json of each run."""
    answer = swa("repeat", recipe, *BASELINE, "--json").json
    ours = [json.loads(Path(f"runs/small-repeat-001/seed-{seed}/result.json").read_text()) for seed in range(3)]
    theirs = [
        json.loads(Path(f"runs/small-baseline-repeat-001/seed-{seed}/result.json").read_text()) for seed in range(3)
    ]
    assert [list(run["weights"]) for run in theirs] == [["last", "last_bn"]] * 3
    assert answer["against"]["name"] == "baseline"
    assert "cosine from 0.1 to 0 over all 2 epochs" in answer["against"]["schedule"]
    for key in ("accuracy", "nll"):
        own = [run["weights"]["swa"][key] for run in ours]
        base = [run["weights"][run["reference"]][key] for run in theirs]
        raw = [run["weights"][run["reference"]][key] for run in ours]
        row = answer["weights"]["swa"]
        assert row[key]["mean"] == pytest.approx(statistics.mean(own))
        assert row[key]["sd"] == pytest.approx(statistics.stdev(own))
        assert answer["against"]["outcome"][key]["mean"] == pytest.approx(statistics.mean(base))
        for found, other in ((row["against"][key], base), (row[f"{key}_diff"], raw)):
            differences = [mine - other_value for mine, other_value in zip(own, other, strict=True)]
            half = stats.t.ppf(0.975, 2) * statistics.stdev(differences) / math.sqrt(3)
            middle = statistics.mean(differences)
            assert [found[key] for key in ("mean", "low", "high")] == pytest.approx(
                [middle, middle - half, middle + half]
            )
    assert json.loads(Path("runs/small-repeat-001/result.json").read_text()) == answer


def test_a_comparison_goes_on_where_it_was(swa: Swa, recipe: Path) -> None:
    """Two seeds, then three: of both recipes only the third is run, and the table has the paired lines."""
    assert swa("repeat", recipe, "--seeds", "0-1", *BASELINE[2:], "-q").code == 0
    done = {path: path.stat().st_mtime_ns for path in Path("runs").glob("*/seed-*/result.json")}
    assert len(done) == 4
    ended = swa("repeat", recipe, *BASELINE, "-q")
    assert ended.code == 0
    assert all(path.stat().st_mtime_ns == when for path, when in done.items())
    assert len(list(Path("runs").glob("*/seed-*/result.json"))) == 6
    assert any(line.split()[:2] == ["−", "baseline"] for line in ended.out.splitlines())
    assert "swa vs baseline:" in ended.out
    plan = swa("repeat", recipe, *BASELINE, "--dry-run").err
    assert "no averaging, cosine from 0.1 to 0 over all 2 epochs" in " ".join(plan.split())


def test_another_recipe_is_compared_with(swa: Swa, recipe: Path) -> None:
    """--against OTHER.yaml: its average is what counts; the recipe itself, or another task, is refused."""
    other = Path("other.yaml")
    other.write_text(recipe.read_text().replace("name: small", "name: other").replace("lr: 0.1", "lr: 0.05"))
    words = ("--seeds", "0-1", "train.epochs=2", "--against")
    answer = swa("repeat", recipe, *words, other, "--json", "train.threads=1").json
    assert answer["against"]["name"] == "other"
    assert set(answer["against"]["outcome"]["names"].values()) == {"swa"}
    assert answer["against"]["recipe"]["train"]["epochs"] == 4
    same = swa("repeat", recipe, "--seeds", "0-1", "--against", recipe)
    assert same.code == 2
    assert "the same recipe" in same.err
    regression = swa(
        "repeat", recipe, "--seeds", "0-1", "--against", "rotated_digits_regression", "task=classification"
    )
    assert regression.code == 2
    assert "task" in regression.err
    plain = swa("repeat", recipe, "--seeds", "0-1", "swa=null", "--against", "baseline")
    assert plain.code == 2
    assert "its own baseline" in plain.err
