"""The examples in docs, run as they stand."""

from __future__ import annotations

from pathlib import Path

from conftest import Swa

EXAMPLES = Path(__file__).parents[2] / "docs/examples"


def test_a_network_dataset_and_task_of_ones_own(swa: Swa) -> None:
    """The example trains to more than guessing gives, and its shipped file is evaluated to the scores of the run."""
    trained = swa("train", EXAMPLES / "larger_digit.yaml", "train.epochs=6", "train.threads=1", "--json")
    assert trained.code == 0, trained.err
    scores = trained.json["weights"]["swa"]
    assert scores["accuracy"] > 0.8
    assert {"accuracy", "loss", "brier"} <= scores.keys()
    ship = "runs/larger-digit-001/checkpoints/swa.pt"
    assert swa("eval", ship).code == 2, "code that a checkpoint names is not run unasked"
    evaluated = swa("eval", ship, "--allow-code", "--json")
    assert evaluated.code == 0, evaluated.err
    assert evaluated.json["weights"]["swa"]["loss"] == scores["loss"]
