"""Loading: what is read is what was meant, from files, the command line and checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from swa_cli.errors import Place, Problem, RecipeError, UserError
from swa_cli.recipe.load import Loaded, differences, dump, from_values, load

RECIPES = Path(__file__).parents[2] / "recipes"
SMALLEST = "model: {name: convnet}\ndataset: {name: digits}\noptimizer: {lr: 0.1}\ntrain: {epochs: 3}\n"
VALUES: dict[str, Any] = {
    "model": {"name": "convnet"},
    "dataset": {"name": "digits"},
    "optimizer": {"lr": 0.1},
    "train": {"epochs": 3},
}
CONTRACT = """
name: cifar10-preresnet20
seed: 0
task: classification
model:
  name: preresnet20
  args: {}
dataset:
  name: cifar10
  root: data
  val: 10%
  augment: {crop: 4, flip: true, cutout: 0}
  cache: auto
  workers: 2
  download: true
  args: {}
optimizer:
  name: SGD
  lr: 0.1
  momentum: 0.9
  nesterov: true
  weight_decay: 5e-4
  no_decay: []
schedule:
  name: cosine
  warmup: 1ep
  span: auto
swa:
  start: 75%
  every: 1ep
  lr: 0.05
  anneal: 0ep
  anneal_shape: linear
  batchnorm: {method: pooled, samples: all, augment: true}
  eval_every: 5ep
averages: {}
snapshots: {}
train:
  epochs: 30
  batch_size: 128
  grad_accum_steps: 1
  label_smoothing: 0.0
  clip_norm: 0.0
  precision: auto
  device: auto
  compile: false
  deterministic: false
  threads: auto
eval:
  batch_size: 512
  precision: fp32
  tta: none
output:
  root: runs
  save_every: 1ep
"""


def load_text(folder: Path, text: str | bytes, *overrides: str) -> Loaded:
    path = folder / "r.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
    return load(path, overrides)


def refused(path: Path | str, *overrides: str) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        load(path, overrides)
    return caught.value


def problems_of(folder: Path, text: str | bytes, *overrides: str) -> tuple[Problem, ...]:
    with pytest.raises(RecipeError) as caught:
        load_text(folder, text, *overrides)
    assert caught.value.source == str(folder / "r.yaml")
    return caught.value.problems


def test_missing_keys_name_what_they_are(tmp_path: Path) -> None:
    """Recipes without required keys are held against the four required ones and their sections' lines."""
    problems = problems_of(tmp_path, "seed: 1\noptimizer: {}\n")
    assert [problem.key for problem in problems] == [
        "model.name",
        "dataset.name",
        "train.epochs",
        "optimizer.lr",
    ]
    assert problems[0].place == Place(str(tmp_path / "r.yaml"))
    assert problems[-1].place == Place(str(tmp_path / "r.yaml"), 2, 1, 9, "optimizer: {}")
    assert problems[-1].message == "is missing"
    assert problems[-1].hint == "add `lr:` to the section `optimizer` (learning rate that the schedule scales)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("# nothing\n", "empty"),
        ("---\n", "empty"),
        ("null", "empty"),
        ("- a\n", "no keys"),
        ("just words", "no keys"),
        ("'a'", "no keys"),
    ],
)
def test_a_file_without_keys(tmp_path: Path, text: str, message: str) -> None:
    """Files without a section are held against one problem of the whole file."""
    (problem,) = problems_of(tmp_path, text)
    assert message in problem.message
    assert problem.place == Place(str(tmp_path / "r.yaml"))


def test_the_example_of_the_design(tmp_path: Path) -> None:
    """An option that a later check refuses is held against the promised place: line 7, column 3."""
    text = "model:\n  name: x\ndataset: {name: y}\n\noptimizer:\n  lr: 1\n  momentun: 0.9\ntrain: {epochs: 3}\n"
    loaded = load_text(tmp_path, text)
    error = loaded.locate([Problem("optimizer.momentun", "unknown key", "did you mean `optimizer.momentum`?")])
    (problem,) = error.problems
    assert problem.place == Place(str(tmp_path / "r.yaml"), 7, 3, 8, "  momentun: 0.9")
    assert error.source == str(tmp_path / "r.yaml")


def test_places_of_later_checks(tmp_path: Path) -> None:
    """Keys written, left out, in no section or overridden are held against where a person finds them."""
    loaded = load_text(tmp_path, SMALLEST + "swa: {lr: 0.5}\n", "seed=3", "averages.e.kind=ema")
    keys = ["averages.e.decay", "seed", "snapshots.every", "train.batch_size", "swa.lr", "swa"]
    places = [problem.place for problem in loaded.locate([Problem(key, "m", "h") for key in keys]).problems]
    source, line = str(tmp_path / "r.yaml"), "swa: {lr: 0.5}"
    assert places == [
        Place(source),
        Place(source, 4, 1, 5, "train: {epochs: 3}"),
        Place(source, 5, 1, 3, line),
        Place(source, 5, 11, 3, line),
        Place("command line: averages.e.kind=ema"),
        Place("command line: seed=3"),
    ]


def test_the_recipe_of_the_contract_loads(tmp_path: Path) -> None:
    """Every key of the documented recipe is held against its value."""
    recipe = load_text(tmp_path, CONTRACT).recipe
    assert recipe.optimizer.options == {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
    assert recipe.dataset.augment.flip is True
    assert recipe.swa is not None
    assert recipe.swa.lr == 0.05
    assert recipe.snapshots is None
    assert (recipe.train.clip_norm, recipe.train.threads) == (0.0, "auto")
    assert (recipe.eval.batch_size, recipe.eval.precision, recipe.eval.tta) == (512, "fp32", "none")


def test_the_pitfalls_of_pyyaml(tmp_path: Path) -> None:
    """Texts that PyYAML reads wrongly are held against what was meant: 1e-4 is a number, "no" is text."""
    text = (
        'model: {name: "no", args: {a: 1e-4, b: "1e-4", c: [true, x, 2], d: 12:30, e: 2024-01-01}}\n'
        "dataset: {name: y, root: 012}\n"
        "optimizer: {lr: 1e-4, weight_decay: 5e-4, momentum: .9}\n"
        "train: {epochs: 3}\n"
    )
    recipe = load_text(tmp_path, text).recipe
    assert recipe.model.name == "no"
    assert recipe.model.args == {"a": 1e-4, "b": "1e-4", "c": [True, "x", 2], "d": "12:30", "e": "2024-01-01"}
    assert recipe.dataset.root == "012"
    assert recipe.optimizer.lr == 1e-4
    assert recipe.optimizer.options == {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
    assert type(recipe.dataset.root) is str


@pytest.mark.parametrize("text", [SMALLEST.replace("\n", "\r\n"), "\ufeff" + SMALLEST, "---\n" + SMALLEST + "...\n"])
def test_files_of_other_editors(tmp_path: Path, text: str) -> None:
    """Line ends of Windows, a byte order mark and document markers are held against the plain file."""
    assert load_text(tmp_path, text).recipe == load_text(tmp_path, SMALLEST).recipe


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("optimizer.lr=1e-3", "optimizer.lr", 1e-3),
        (" train.epochs = 7 ", "train.epochs", 7),
        ("swa.start=60%", "swa.start", None),
        ("averages.ema.kind=ema", "averages", None),
        ("model.name=a=b", "model.name", "a=b"),
        ("dataset.root=C: # x", "dataset.root", "C: # x"),
        ('model.name="no"', "model.name", "no"),
        ("model.args={depth: 20, flags: [a, 1]}", "model.args", {"depth": 20, "flags": ["a", 1]}),
        ("model.args.depth=20", "model.args", {"depth": 20}),
        ("optimizer.no_decay=['*.bias', norm]", "optimizer.no_decay", ["*.bias", "norm"]),
        ("swa={}", "swa", None),
        ("eval.precision=fp32", "eval.precision", "fp32"),
        ("eval.precision=bf16", "eval.precision", "bf16"),
        ("eval.precision=fp16", "eval.precision", "fp16"),
        ("eval.batch_size=64", "eval.batch_size", 64),
        ("eval.tta=flip", "eval.tta", "flip"),
    ],
)
def test_overrides(tmp_path: Path, override: str, key: str, value: object) -> None:
    """Each KEY=VALUE is held against the value that the recipe then has, in a new section if need be."""
    found: Any = load_text(tmp_path, SMALLEST, override).recipe
    for part in key.split("."):
        found = getattr(found, part)
    assert found is not None
    assert value is None or found == value


def test_later_overrides_win_and_mend(tmp_path: Path) -> None:
    """A wrong value in the file is held against an override of it, and that against a later one."""
    text = SMALLEST.replace("0.1", "fast").replace("train: {epochs: 3}", "train:")
    recipe = load_text(tmp_path, text, "optimizer.lr=1", "optimizer.lr=0.3", "train.epochs=2").recipe
    assert (recipe.optimizer.lr, recipe.train.epochs) == (0.3, 2)


@pytest.mark.parametrize(
    ("override", "key", "message", "hint"),
    [
        ("seed", "seed", "has no value", "write seed=VALUE"),
        ("=3", "", "is not a key", "optimizer.lr=0.1"),
        ("a..b=3", "a..b", "is not a key", "optimizer.lr=0.1"),
        ("seed=", "seed", "has no value", "write one"),
        ("seed.x=1", "seed.x", "`seed` is a value, not a section", "write seed=VALUE"),
        ("train.epochs.x=1", "train.epochs.x", "`train.epochs` is a value", "train.epochs=VALUE"),
        ("train.epoch=1", "train.epoch", "unknown key", "did you mean `train.epochs`?"),
        ("model.args=[1,", "model.args", "a value is missing", "put the word in quotes for the shell"),
        ("model.args={a: *b}", "model.args", "aliases", "write the value out"),
        ("train.acumulate=2", "train.acumulate", "unknown key", "did you mean `train.grad_accum_steps`?"),
        ("model.args={a: 1, a: 2}", "model.args", "duplicate", "keep one"),
        ("swa.lr=no", "swa.lr", "`no` is not a number", "write digits"),
        ("swa.lr={a: 1}", "swa.lr", "takes a single value", "write one value"),
        ("eval.precision=auto", "eval.precision", "not one of fp32, bf16, fp16", "choose one of them"),
        ("train.tta=flip", "train.tta", "unknown key", "eval.tta"),
        ("train.eval_batch_size=64", "train.eval_batch_size", "unknown key", "batch_size"),
        ("swa=null", "swa", "not in the recipe", "leave the change out"),
        ("swa.lr=null", "swa.lr", "not in the recipe", "leave the change out"),
        ("train.epoch=null", "train.epoch", "not in the recipe", "leave the change out"),
        ("seed.x=null", "seed.x", "not in the recipe", "leave the change out"),
        ("train.epochs.x=~", "train.epochs.x", "not in the recipe", "leave the change out"),
        ("=null", "", "is not a key", "optimizer.lr=0.1"),
        ('swa="null"', "swa", "`swa` is a section", "{key: value}"),
    ],
)
def test_wrong_overrides(tmp_path: Path, override: str, key: str, message: str, hint: str) -> None:
    """Each wrong KEY=VALUE is held against one problem whose place is the command line."""
    (problem,) = problems_of(tmp_path, SMALLEST + "seed: 1\n", override)
    assert problem.place == Place(f"command line: {override}")
    assert problem.key == key
    assert message in problem.message
    assert hint in problem.hint


AVERAGED = """\
model: {name: convnet, args: {width: 4, depth: 2}}
dataset: {name: digits}
optimizer: {lr: 0.1}
swa: {start: 60%, lr: 0.05, batchnorm: {augment: false}}
averages: {a: {kind: ema}, b: {kind: mean}}
train: {epochs: 3}
"""


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["swa=null"], AVERAGED.replace("swa: {start: 60%, lr: 0.05, batchnorm: {augment: false}}\n", "")),
        (["swa=~"], AVERAGED.replace("swa: {start: 60%, lr: 0.05, batchnorm: {augment: false}}\n", "")),
        ([" swa = NULL "], AVERAGED.replace("swa: {start: 60%, lr: 0.05, batchnorm: {augment: false}}\n", "")),
        (["swa.lr=null"], AVERAGED.replace(" lr: 0.05,", "")),
        (["swa.batchnorm.augment=null"], AVERAGED.replace("augment: false", "")),
        (["swa.batchnorm=null"], AVERAGED.replace(", batchnorm: {augment: false}", "")),
        (["averages.a=null"], AVERAGED.replace("a: {kind: ema}, ", "")),
        (["averages=null"], AVERAGED.replace("averages: {a: {kind: ema}, b: {kind: mean}}\n", "")),
        (["model.args=null", "model.args.width=4"], AVERAGED.replace(", depth: 2", "")),
        (["swa=null", "swa.start=50%"], AVERAGED.replace("60%, lr: 0.05, batchnorm: {augment: false}", "50%")),
        (["swa.lr=0.5", "swa.lr=null"], AVERAGED.replace(" lr: 0.05,", "")),
        (["train.batch_size=9", "train.batch_size=null"], AVERAGED),
        (["swa=null", "averages=null"], SMALLEST.replace("convnet", "convnet, args: {width: 4, depth: 2}")),
    ],
)
def test_null_removes_a_key_or_a_section(tmp_path: Path, words: list[str], text: str) -> None:
    """KEY=null on the command line is held against the file in which the key never stood."""
    assert text != AVERAGED or "batch_size" in words[0]
    assert load_text(tmp_path, AVERAGED, *words).recipe == load_text(tmp_path, text).recipe


@pytest.mark.parametrize("section", ["model", "dataset"])
def test_null_below_args_is_a_value(tmp_path: Path, section: str) -> None:
    """null and ~, in a recipe and behind it, nested too, against None; and again after a dump and a checkpoint."""
    name = {"model": "convnet", "dataset": "digits"}[section]
    text = SMALLEST.replace(name, f"{name}, args: {{a: null, b: ~, c: [null, {{d: ~}}], e: 1}}")
    loaded = load_text(tmp_path, text, f"{section}.args.e=null", f"{section}.args.f={{g: null}}")
    args = {"a": None, "b": None, "c": [None, {"d": None}], "e": None, "f": {"g": None}}
    assert getattr(loaded.recipe, section).args == args
    again = load_text(tmp_path, dump(loaded.recipe)).recipe
    stored = from_values(loaded.recipe.model_dump(mode="json", exclude_none=True), source="x.pt").recipe
    assert again == stored == loaded.recipe
    without = load_text(tmp_path, SMALLEST.replace(name, f"{name}, args: {{e: 1}}")).recipe
    assert f"{section}.args.a" in {key for key, *_ in differences(without, loaded.recipe)}


def test_null_of_what_has_to_be_there_and_of_what_is_gone(tmp_path: Path) -> None:
    """A required key removed, and a section removed twice, are held against one problem each and its place."""
    (problem,) = problems_of(tmp_path, AVERAGED, "optimizer.lr=null")
    assert problem.key == "optimizer.lr"
    assert "missing" in problem.message
    assert problem.place == Place(str(tmp_path / "r.yaml"), 3, 1, 9, "optimizer: {lr: 0.1}")
    (problem,) = problems_of(tmp_path, AVERAGED, "swa=null", "swa=~")
    assert (problem.key, problem.place) == ("swa", Place("command line: swa=~"))
    (problem,) = problems_of(tmp_path, AVERAGED, "swa=null", "swa.lr=null")
    assert (problem.key, problem.place) == ("swa.lr", Place("command line: swa.lr=null"))


def test_null_takes_the_place_along(tmp_path: Path) -> None:
    """A later problem of a removed key is held against its section's place, and that of its section against the file's.

    And so is a key that is put back: it stands on the command line.
    """
    source, line = str(tmp_path / "r.yaml"), AVERAGED.splitlines()[3]
    loaded = load_text(tmp_path, AVERAGED, "swa.lr=null")
    (problem,) = loaded.locate([Problem("swa.lr", "m", "h")]).problems
    assert problem.place == Place(source, 4, 1, 3, line)
    loaded = load_text(tmp_path, AVERAGED, "swa=null")
    problems = loaded.locate([Problem("swa.lr", "m", "h"), Problem("swa", "m", "h")]).problems
    assert {problem.place for problem in problems} == {Place(source)}
    loaded = load_text(tmp_path, AVERAGED, "swa=null", "swa.lr=0.5")
    (problem,) = loaded.locate([Problem("swa.start", "m", "h")]).problems
    assert problem.place == Place("command line: swa.lr=0.5")


def test_null_is_only_for_keys_that_may_be_changed() -> None:
    """A removal from a checkpoint's recipe is held against the patterns of what may be changed there."""
    values = {**VALUES, "swa": {"lr": 0.5}, "dataset": {"name": "digits", "root": "/old"}}
    loaded = from_values(values, ["dataset.root=null"], source="a.pt", allowed=["dataset.*"])
    assert loaded.recipe.dataset.root == "data"
    with pytest.raises(RecipeError) as caught:
        from_values(values, ["swa=null"], source="a.pt", allowed=["dataset.*"])
    (problem,) = caught.value.problems
    assert (problem.key, problem.message) == ("swa", "cannot be changed here")


SHIPPED = sorted(path.relative_to(RECIPES).with_suffix("").as_posix() for path in RECIPES.rglob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_goes_by_its_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name in a folder without recipes is held against the file in the repository, changes of it included."""
    monkeypatch.chdir(tmp_path)
    assert load(name).recipe == load(RECIPES / f"{name}.yaml").recipe
    assert load(Path(name), ["seed=7"]).recipe.seed == 7
    (problem,) = refused(name, "train.epoch=1").problems
    assert problem.key == "train.epoch"


def test_a_local_file_wins_over_a_shipped_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with the very name of a shipped recipe is held against its own content."""
    monkeypatch.chdir(tmp_path)
    shipped = load("digits").recipe
    (tmp_path / "digits").write_text(SMALLEST + "name: of-my-own\n")
    loaded = load("digits")
    assert (loaded.recipe.name, loaded.source) == ("of-my-own", "digits")
    assert load(RECIPES / "digits.yaml").recipe == shipped
    (tmp_path / "digits").unlink()
    assert load("digits").recipe == shipped


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("digts", "digits"),
        ("paper/cifar100_vgg", "paper/cifar100_vgg16"),
        ("recipes/imagenet/resnet5.yaml", "imagenet/resnet50"),
        ("resnet5", "imagenet/resnet50"),
        ("digitss", "digits"),
        ("digits.yml", "digits"),
        ("fashion-mnist", "fashion_mnist"),
        ("cifar10_preresnet2", "cifar10_preresnet20"),
        ("paper/cifar100_vgg61", "paper/cifar100_vgg16"),
    ],
)
def test_a_misspelled_name_gets_a_hint(word: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is nearly that of a shipped recipe is held against that name; one that is not, against none."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        load(word)
    assert caught.value.message == f"{word}: there is no such file"
    assert meant in caught.value.hint.replace(",", " ").split()
    with pytest.raises(UserError) as caught:
        load("zzzzzzzz")
    assert not any(name in caught.value.hint for name in SHIPPED)


def test_a_recipe_at_hand_is_the_nearer_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelled name between a local recipe and a shipped one is held against the local one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits2.yaml").write_text(SMALLEST)
    with pytest.raises(UserError) as caught:
        load("digits3.yaml")
    assert "digits2.yaml" in caught.value.hint


def test_a_file_that_cannot_be_had(tmp_path: Path) -> None:
    """Files that are missing, folders, too large or no text are held against a message and an action."""
    (tmp_path / "digits.yaml").write_text(SMALLEST)
    (tmp_path / "image").write_bytes(b"\x89PNG\x00\xff")
    (tmp_path / "nul").write_bytes(b"a: \0")
    (tmp_path / "latin").write_bytes("seed: 1\nname: café".encode("latin-1"))
    (tmp_path / "large").write_bytes(b"#" * (1 << 21))
    wrong = {
        "digit.yaml": ("there is no such file", f"did you mean {tmp_path / 'digits.yaml'}?"),
        "gone": ("there is no such file", "name a recipe"),
        "gone/too": ("there is no such file", "name a recipe"),
        "digits.yaml/x": ("cannot be read (Not a directory)", "name a recipe"),
        ".": ("is a folder", "in it"),
        "image": ("is not text in UTF-8 (line 1)", "UTF-8"),
        "latin": ("is not text in UTF-8 (line 2)", "UTF-8"),
        "nul": ("is not a text file", "name a recipe"),
        "large": ("is larger than any recipe", "name a recipe"),
        "a\0b": ("cannot be read", "name a recipe"),
    }
    for name, (message, hint) in wrong.items():
        with pytest.raises(UserError) as caught:
            load(f"{tmp_path}/{name}")
        assert message in caught.value.message
        assert hint in caught.value.hint


def test_stored_values_and_what_may_be_changed() -> None:
    """Values of a checkpoint are held against the recipe they came from, overrides against patterns."""
    first = from_values(VALUES, ["swa.lr=0.05", "snapshots.every=1ep", "averages.e.kind=ema"], source="a.pt").recipe
    stored = first.model_dump(mode="json")
    allowed = ["dataset.*", "train.device"]
    loaded = from_values(stored, ["dataset.root=/data", "train.device=cpu"], source="a.pt", allowed=allowed)
    assert loaded.recipe.dataset.root == "/data"
    assert from_values(stored, source="a.pt").recipe == first
    assert stored["dataset"]["root"] == "data"
    with pytest.raises(RecipeError) as caught:
        from_values(stored, ["train.epochs=3", "dataset={}"], source="a.pt", allowed=allowed)
    for problem, word in zip(caught.value.problems, ["train.epochs=3", "dataset={}"], strict=True):
        assert problem.place == Place(f"command line: {word}")
        assert problem.hint == "only dataset.*, train.device may be changed here"


@pytest.mark.parametrize("is_reversed", [False, True])
def test_an_empty_section_is_no_difference_of_its_own(is_reversed: bool) -> None:
    """Recipes with and without arguments of the network, in both orders: the argument alone, by its own key."""
    recipes = [
        from_values({**VALUES, "model": {"name": "x", "args": args}}, source="a").recipe for args in ({}, {"k": 4})
    ]
    pair = ["left out", 4]
    if is_reversed:
        recipes.reverse()
        pair.reverse()
    assert differences(*recipes) == [("model.args.k", *pair)]


def test_stored_values_that_are_no_recipe() -> None:
    """Values that loop, have odd keys or types are held against problems of the checkpoint's file."""
    loop: dict[str, Any] = {}
    loop["model"] = loop
    odd = {**VALUES, "model": {"name": "x", "args": {"a": b"x", "b": float("nan")}}, "seed": "3"}
    keys: dict[Any, Any] = {1: 2}
    for values in (loop, keys, odd, {}):
        with pytest.raises(RecipeError) as caught:
            from_values(values, source="a.pt")
        assert {problem.place for problem in caught.value.problems} == {Place("a.pt")}


def test_a_written_recipe_is_as_a_person_would_write_it(tmp_path: Path) -> None:
    """The text is held against the schema's order, and against keys without a value or out of place."""
    text = dump(load_text(tmp_path, SMALLEST, "optimizer.weight_decay=5e-4", "averages.k.kind=lawa").recipe)
    sections = [line.split(":")[0] for line in text.splitlines() if not line.startswith(" ")]
    expected = ["seed", "task", "model", "dataset", "optimizer", "schedule", "averages", "train", "eval", "output"]
    assert sections == expected
    assert "weight_decay: 0.0005" in text
    assert "  save_every: 1ep" in text
    assert not any(word in text for word in ("null", "decay: 0.999", "cycle", "snapshots", "&", "!"))
