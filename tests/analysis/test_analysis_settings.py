"""Which runs are found in which folders, how they are grouped, and which keys tell them apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from swa_cli.analysis.settings import Setting, differing, find, short_names, titles
from swa_cli.engine.evaluate import to_ship
from swa_cli.errors import UserError
from swa_cli.recipe import load
from swa_cli.report.terminal import Terminal
from written_runs import RECIPE, Scores, write_repeat, write_run

GOOD: Scores = (0.9, 0.3)


class Heard(Terminal):
    """A terminal that keeps warnings."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.said: list[str] = []

    def warning(self, text: str) -> None:
        self.said.append(text)


def found_in(*paths: Path, **options: bool) -> list[Setting]:
    """The settings of some folders, which are found without a warning."""
    terminal = Heard()
    found = find(paths, terminal=terminal, **options)
    assert terminal.said == []
    return found


def shape(settings: list[Setting]) -> list[tuple[str, list[int]]]:
    """Label and seeds of each setting."""
    return [(setting.label, [run.recipe.seed for run in setting.runs]) for setting in settings]


def test_a_pattern_that_includes_everything(tmp_path: Path) -> None:
    """Runs, a repeat, a sweep, links, a file and another folder: each run once, and one warning for the rest."""
    runs = tmp_path / "runs"
    write_repeat(runs / "a-repeat-001", swa=[(GOOD, GOOD), (GOOD, GOOD)])
    for seed in (1, 0):
        write_run(runs / f"b-00{seed + 1}", "optimizer.lr=0.2", f"seed={seed}", test={"last": GOOD})
    sweep = runs / "c-sweep-001"
    write_run(sweep / "trial-000", "swa.lr=0.01", test={"last": GOOD})
    write_run(sweep / "trial-001", "swa.lr=0.02", epochs=[{"epoch": 1, "val_loss": 1.0, "val_accuracy": 0.5}])
    write_repeat(sweep / "seeds/trial-000", "swa.lr=0.01", swa=[(GOOD, GOOD)])
    (sweep / "sweep.json").write_text("{}")
    (sweep / "recipe.yaml").write_text(RECIPE)
    (runs / "latest").symlink_to("b-002")
    (runs / "gone").symlink_to("b-009")
    (runs / "page.html").write_text("")
    (runs / "notes").mkdir()
    terminal = Heard()
    found = find(sorted(runs.iterdir()), terminal=terminal)
    assert shape(found) == [
        ("a-repeat-001", [0, 1]),
        ("b-001 +1", [0, 1]),
        ("c-sweep-001/trial-000", [0]),
        ("c-sweep-001/trial-001", [0]),
        ("seeds/trial-000", [0]),
    ]
    assert len(terminal.said) == 1
    assert all(name in terminal.said[0] for name in ("gone", "page.html", "notes"))
    assert not any(name in terminal.said[0] for name in ("latest", "recipe.yaml"))


def test_a_seed_that_is_named_beside_its_repeat_is_no_further_run(tmp_path: Path) -> None:
    """seed-0 before and after its repeat, and through a link, against the repeat alone."""
    repeat = write_repeat(tmp_path / "r", swa=[(GOOD, GOOD), (GOOD, GOOD)])
    (tmp_path / "link").symlink_to(repeat / "seed-0")
    alone = shape(found_in(repeat))
    assert shape(found_in(repeat / "seed-0", repeat, tmp_path / "link")) == alone == [("r", [0, 1])]


def test_a_second_run_of_the_same_seed_is_no_further_seed(tmp_path: Path) -> None:
    """Two runs with seed 0 and one with seed 1: seeds 0 and 1 together, the copy alone, and said."""
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_run(tmp_path / name, f"seed={seed}", f"name=n{name}", test={"last": GOOD})
    terminal = Heard()
    found = find([tmp_path / name for name in "abc"], terminal=terminal)
    assert shape(found) == [("a +1", [0, 1]), ("b", [0])]
    assert len(terminal.said) == 1
    assert str(tmp_path / "b") in terminal.said[0]


def test_a_repeat_whose_seeds_have_other_recipes_is_several_settings(tmp_path: Path) -> None:
    """A seed with a changed rate in the folder of a repeat: two settings, each named by its own folder."""
    repeat = write_repeat(tmp_path / "r", swa=[(GOOD, GOOD), (GOOD, GOOD)])
    write_run(repeat / "seed-2", "seed=2", "optimizer.lr=0.2", test={"last": GOOD})
    assert shape(found_in(repeat)) == [("r/seed-0 +1", [0, 1]), ("r/seed-2", [2])]


@pytest.mark.parametrize(
    "change", ["optimizer.lr=0.2", "train.epochs=5", "averages.e.kind=ema", "dataset.root=elsewhere"]
)
def test_other_recipes_and_other_samples_are_other_settings(tmp_path: Path, change: str) -> None:
    """A changed key, and scores on another number of samples, against two settings; other threads against one."""
    write_run(tmp_path / "a", test={"last": GOOD})
    write_run(tmp_path / "b", "seed=1", change, test={"last": GOOD})
    write_run(tmp_path / "c", "seed=1", test={"last": GOOD}, samples=90)
    write_run(tmp_path / "d", "seed=1", "train.threads=2", test={"last": GOOD})
    assert len(found_in(tmp_path / "a", tmp_path / "b")) == 2
    assert len(found_in(tmp_path / "a", tmp_path / "c")) == 2
    assert len(found_in(tmp_path / "a", tmp_path / "d")) == 1


def test_the_seeds_that_have_finished_count(tmp_path: Path) -> None:
    """Seeds 0 to 2, of which one has finished: it alone counts; without it all do, with their last scores."""
    for seed in (1, 2):
        rows = [{"epoch": n, "val_loss": 1.0 / n, "val_accuracy": seed / 10} for n in range(1, seed + 1)]
        write_run(tmp_path / f"s{seed}", f"seed={seed}", epochs=rows)
    write_run(tmp_path / "s0", test={"last": GOOD}, val={"last": (0.8, 0.6)})
    (setting,) = found_in(*(tmp_path / f"s{seed}" for seed in (2, 1, 0)))
    assert (list(setting.counted), setting.state) == ([0], "1 of 3 seeds finished")
    (setting,) = found_in(tmp_path / "s1", tmp_path / "s2")
    assert list(setting.counted) == [1, 2]
    assert setting.scores("last") == {"val": {1: {"nll": 1.0, "accuracy": 0.1}, 2: {"nll": 0.5, "accuracy": 0.2}}}
    (setting,) = found_in(tmp_path / "s2")
    assert setting.state == "epoch 2 of 4"


def test_an_unfinished_run_stands_by_its_best_weight_set(tmp_path: Path) -> None:
    """The last evaluations of last and swa, which are of different epochs; a run without a row has no scores."""
    rows = [
        {"epoch": 1, "val_loss": 0.9, "val_accuracy": 0.5, "swa_count": 0},
        {
            "epoch": 2,
            "val_loss": 0.8,
            "val_accuracy": 0.6,
            "swa_count": 1,
            "swa_val_loss": 0.4,
            "swa_val_accuracy": 0.7,
        },
        {"epoch": 3, "val_loss": 0.7, "val_accuracy": 0.65, "swa_count": 2},
    ]
    write_run(tmp_path / "a", epochs=rows)
    (setting,) = found_in(tmp_path / "a")
    assert (setting.best, setting.names) == ("swa", ["last", "swa"])
    assert setting.scores("swa") == {"val": {0: {"nll": 0.4, "accuracy": 0.7}}}
    write_run(tmp_path / "b")
    (setting,) = found_in(tmp_path / "b")
    assert (setting.best, setting.names, setting.state) == ("last", [], "epoch 0 of 4")


@pytest.mark.parametrize(
    "val",
    [
        {"last": (0.5, 0.4), "swa": (0.6, 0.3)},
        {"last": (0.5, 0.2), "swa": (0.6, 0.3)},
        {"last": (0.5, None), "swa": (0.6, 0.3)},
        {"last": (0.5, 0.2), "swa": (0.6, None)},
        None,
    ],
)
def test_one_run_stands_by_the_weights_that_it_ships(tmp_path: Path, val: dict[str, Scores] | None) -> None:
    """The chosen weight set against that of the end of a run, from the same result.json."""
    write_run(tmp_path / "a", test={"last": GOOD, "swa": GOOD}, val=val)
    (setting,) = found_in(tmp_path / "a")
    result = setting.first.result
    assert result is not None
    assert setting.best == to_ship(result.weights, loss_key="nll", averages=result.averages)[0]


def test_one_weight_set_stands_for_all_seeds(tmp_path: Path) -> None:
    """Seeds that would ship different weight sets: that of the lowest mean, of those that every seed has, by hand."""
    losses = {0: (0.30, 0.50), 1: (0.60, 0.20)}  # of last and swa: means 0.45 and 0.35
    for seed, (last, swa) in losses.items():
        val: dict[str, Scores] = {"last": (0.5, last), "swa": (0.5, swa)}
        if seed == 0:
            val["ema"] = (0.9, 0.01)
        write_run(tmp_path / f"s{seed}", f"seed={seed}", test=dict.fromkeys(val, GOOD), val=val)
    (setting,) = found_in(tmp_path / "s0", tmp_path / "s1")
    assert setting.best == "swa"


def test_what_is_no_run_is_refused_where_nothing_else_is_named(tmp_path: Path) -> None:
    """A missing folder, files alone, the folder of runs itself, one run that is not enough."""
    run = write_run(tmp_path / "runs/a", test={"last": GOOD})
    (tmp_path / "x.txt").write_text("")
    for paths, word in (
        ([tmp_path / "nowhere", run], "nowhere"),
        ([tmp_path / "x.txt"], "x.txt"),
        ([tmp_path / "runs"], "runs/*"),
    ):
        with pytest.raises(UserError) as caught:
            find(paths, terminal=Heard())
        assert word in caught.value.message + str(caught.value.hint)
    with pytest.raises(UserError, match="at least two"):
        found_in(run, may_be_one=False)
    assert len(found_in(run)) == 1
    assert len(found_in(run, run, may_be_one=False)) == 1


@pytest.mark.parametrize("text", ["epoch,val_loss\n1,x\n", "a,b\n1,2\n", "epoch\n1,2\n", 'epoch\n"'])
def test_metrics_that_swa_did_not_write_are_refused(tmp_path: Path, text: str) -> None:
    """A text for a number, no epochs, too many values, an open quote: the file is named."""
    run = write_run(tmp_path / "a")
    (run / "metrics.csv").write_text(text)
    (setting,) = found_in(run)
    with pytest.raises(UserError, match=r"metrics\.csv: is not as swa writes it"):
        _ = setting.best


# The keys that differ.


def keys_of(tmp_path: Path, *changes: list[str]) -> dict[str, list[object]]:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return differing([load.load(tmp_path / "recipe.yaml", words).recipe for words in changes])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([[], ["seed=1", "name=other", "train.threads=2", "output.save_every=2ep"]], {}),
        ([["swa.lr=0.01"], ["swa.lr=0.02"], ["swa.lr=0.01"]], {"swa.lr": [0.01, 0.02, 0.01]}),
        ([[], ["swa=null"]], {"swa": [True, None]}),
        ([["swa.lr=0.01"], ["swa=null"], ["swa.lr=0.02"]], {"swa.lr": [0.01, None, 0.02]}),
        ([[], ["averages.e={kind: ema, half_life: 10%}"]], {"averages": [None, True]}),
        (
            [
                ["averages.f={kind: lawa, window: 3}"],
                ["averages={e: {kind: ema, half_life: 10%}, f: {kind: lawa, window: 3}}"],
            ],
            {"averages.e": [None, True]},
        ),
        (
            [["schedule.name=constant", "swa=null"], ["schedule.name=cosine", "swa=null"]],
            {"schedule.name": ["constant", "cosine"]},
        ),
        (
            [["schedule.name=constant"], ["schedule={name: cosine, warmup: 1ep}"]],
            {"schedule.name": ["constant", "cosine"], "schedule.warmup": [None, "1ep"]},
        ),
        ([["model.args={}"], ["model.args.width=8"]], {"model.args.width": [None, 8]}),
    ],
)
def test_the_keys_that_tell_recipes_apart(
    tmp_path: Path, changes: list[list[str]], expected: dict[str, list[object]]
) -> None:
    """Recipes with some changes: those keys by hand; a section is one key, not one for each default."""
    assert keys_of(tmp_path, *changes) == expected


def test_short_names_of_keys() -> None:
    """The last two words, or as many as tell two keys apart."""
    keys = ["swa.lr", "optimizer.lr", "swa", "dataset.augment.crop", "averages.a.swa.lr", "averages.b.kind"]
    assert short_names(keys) == ["swa.lr", "optimizer.lr", "swa", "augment.crop", "a.swa.lr", "b.kind"]


def test_titles_tell_folders_apart(tmp_path: Path) -> None:
    """Folders of equal names, and seeds of repeats, against as few words as tell them apart."""
    repeat = write_repeat(tmp_path / "a", swa=[(GOOD, GOOD)])
    paths = [tmp_path / "x/run", tmp_path / "y/run", tmp_path / "z", repeat / "seed-0"]
    assert titles(paths) == ["x/run", "y/run", "z", "a/seed-0"]
