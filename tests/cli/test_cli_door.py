"""The door itself: help, exit codes, streams, and one clear message for every mistake."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
from ast import literal_eval
from contextlib import suppress
from pathlib import Path

import pytest

from processes import ENDS_WITHIN_S, failing
from swa_cli.cli.shared import importing


@pytest.mark.parametrize(
    "words",
    [["-h"], ["train", "-h"], ["bn-update", "--help"], ["eval", "-h"], ["repeat", "-h"], ["export", "-h"]]
    + [[name, "-h"] for name in ("predict", "new", "recipes", "schema", "show", "compare", "doctor", "plan")],
    ids=" ".join,
)
def test_help_ends_with_examples_and_exit_codes(swa, words: list[str]) -> None:
    """Each help on 80 columns: exit 0, examples, exit codes, no line that would wrap."""
    ended = swa(*words)
    assert ended.code == 0
    assert "Examples:" in ended.out
    assert "Exit codes:" in ended.out.partition("Examples:")[2]
    assert max(map(len, ended.out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["eval", "x.pt"], "swa eval"),
        (["predict", "x.pt", "a.png"], "swa predict"),
        (["repeat", "x.yaml"], "swa repeat"),
        (["train", "small.yaml", "--processes", "2"], "--processes"),
    ],
)
def test_what_is_for_one_process_refuses_several(
    swa, recipe: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], what: str
) -> None:
    """Started by torchrun: exit 2 in all processes, and one message, of the first."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        ended = swa(*words)
        assert (ended.code, ended.out) == (2, "")
        said.append(ended.err)
    assert f"{what} is for one process, and torchrun has started 2" in " ".join(said[0].split())
    assert "run it without torchrun" in said[0]
    assert said[1] == ""


def test_design_example_of_an_error(swa, tmp_path: Path) -> None:
    """A misspelt key: file, line, column, caret, suggestion, as DESIGN 7 shows; exit 2 and nothing written."""
    path = tmp_path / "bad.yaml"
    path.write_text(
        "model: {name: convnet}\ndataset: {name: digits}\noptimizer:\n  lr: 0.1\n  momentun: 0.9\ntrain:\n  epoch: 2\n"
    )
    ended = swa("train", "bad.yaml")
    assert ended.code == 2
    assert ended.out == ""
    assert "--> bad.yaml:7:3" in ended.err
    assert "did you mean `train.epochs`?" in ended.err
    assert "Nothing was run." in ended.err
    assert sorted(tmp_path.iterdir()) == [path]
    path.write_text(path.read_text().replace("epoch:", "epochs:"))
    ended = swa("train", "bad.yaml")  # an option of the class: shown once torch is loaded, at its place
    assert ended.code == 2
    assert "--> bad.yaml:5:3" in ended.err
    assert "did you mean `optimizer.momentum`?" in ended.err
    assert sorted(tmp_path.iterdir()) == [path]


def test_cross_checks_show_the_place(swa, recipe: Path) -> None:
    """A start after the end on the command line: its place, exit 2."""
    ended = swa("train", recipe, "swa.start=9ep")
    assert ended.code == 2
    assert "--> command line: swa.start=9ep" in ended.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train"], "name a recipe"),
        (["train", "nowhere.yaml"], "nowhere.yaml"),
        (["train", "small.yaml", "--resume", "runs/x"], "leave the recipe out"),
        (["train", "--resume", "runs/nowhere"], "no such run folder"),
        (["train", "small.yaml", "optimizer.lrr=0.2"], "optimizer.lr"),
        (["train", "small.yaml", "train.batch_size=5000"], "training samples"),
        (["train", "small.yaml", "optimizer.name=SDG"], "SGD"),
        (["train", "small.yaml", "model.name=convnett"], "convnet"),
        (["train", "small.yaml", "model.name=vgg16", "model.args={}"], "32"),
        (["train", "small.yaml", "model.name=nowhere.module:Net"], "nowhere"),
        (["train", "small.yaml", "model.name=torchvision:alexnet", "model.args={}"], "cannot take images of 1 x 8 x 8"),
        (["train", "small.yaml", "-o", "small.yaml"], "cannot hold run folders"),
        (["train", "small.yaml", "optimizer.fused=true", "optimizer.foreach=true"], "refuses its options"),
        (["train", "small.yaml", "dataset.name=cifar10", "dataset.download=false"], "cifar"),
        (["train", "small.yaml", "dataset.name=image_folder", "dataset.root=nowhere"], "nowhere"),
        (["train", "small.yaml", "train.device=cuda:9"], "cuda"),
        (["train", "small.yaml", "train.precision=fp16", "train.device=cpu"], "fp16"),
        (["train", "small.yaml", "optimizer.no_decay=[nothing.*]"], "matches no parameter"),
        (["frobnicate"], "frobnicate"),
        (["train", "small.yaml", "--frobnicate"], "frobnicate"),
    ],
)
def test_mistakes_end_with_2_and_nothing_written(
    swa, recipe: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    """Likely mistakes: exit 2, the value or the cure in the message, no traceback, no file."""
    ended = swa(*words)
    assert ended.code == 2, ended.err
    assert message in ended.err
    assert "Traceback" not in ended.err
    assert ended.out == ""
    assert sorted(tmp_path.iterdir()) == [recipe]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["soup", "a", "b", "-o", "x.pt", "--method", "best"], "'greedy', 'uniform', 'model_stock'"),
        (["sweep", "small.yaml", "seed=1,2", "--pruner", "nope"], "'none', 'asha'"),
        (["average", "run", "-o", "x.pt", "--last", "0"], "0: write a number of at least 1."),
        (["average", "run", "-o", "x.pt", "--last", "{x}"], "{x}: write a whole number."),
        (["plot", "run", "curves", "--width", "nan"], "nan: write a number of at most 20."),
        (["plot", "run", "curves", "--width", "wide"], "wide: write a number."),
        (["plan", "small.yaml", "--processes", "2", "--gigabits", "nan"], "nan: write a number of at least 0.001."),
    ],
    ids=str,
)
def test_wrong_values_of_options_are_told_in_our_words(swa, recipe: Path, words: list[str], message: str) -> None:
    """Values out of range or of another kind, against the wording of pydantic, by which typer checks them."""
    ended = swa(*words)
    assert ended.code == 2
    said = " ".join(ended.err.split())
    assert message in said
    assert words[-2] in said
    assert not any(word in said for word in ("Input should", "Value error"))


def test_streams_piped(swa, recipe: Path) -> None:
    """A run without a terminal: the answer on stdout, rows on stderr, no control codes, no line over 80."""
    ended = swa("train", recipe)
    assert ended.code == 0
    assert "swa" in ended.out
    assert "epoch" in ended.err
    assert "\x1b" not in ended.out + ended.err
    rows = [line for line in ended.err.splitlines() if line[:5].strip().isdigit()]
    assert len(rows) == 4
    assert max(map(len, ended.out.splitlines() + rows)) <= 80


def test_quiet_says_only_the_answer(swa, recipe: Path) -> None:
    """-q: no conversation; --json: one object on stdout."""
    assert swa("train", recipe, "-q").err == ""
    ended = swa("train", recipe, "-q", "--json")
    assert json.loads(ended.out)["command"] == "train"
    assert len(ended.out.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_with_their_codes_and_a_way_to_go_on(
    swa, recipe: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """Ctrl-C and SIGTERM in a long run: 130 and 143, the command to continue, and an average that can be used."""
    words = [sys.executable, "-m", "swa_cli", "train", str(recipe), "train.epochs=5000", "swa={start: 0%}"]
    with subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        last = tmp_path / "runs/small-001/checkpoints/last.pt"
        deadline = time.monotonic() + ENDS_WITHIN_S
        while not last.exists() and process.poll() is None and time.monotonic() < deadline:
            os.sched_yield()
        process.send_signal(number)
        _, said = process.communicate(timeout=ENDS_WITHIN_S)
    assert process.returncode == code, said
    assert "swa train --resume" in said
    assert "Traceback" not in said
    assert swa("bn-update", last, "-o", "usable.pt").code == 0
    assert swa("eval", "usable.pt", "--json").json["weights"]["swa"]["count"] >= 1


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_shown_for_each_shell(swa, shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """--show-completion in each shell against the words that it needs: the command's name and its variable."""
    monkeypatch.setattr("shellingham.detect_shell", lambda: (shell, f"/bin/{shell}"))
    ended = swa("--show-completion")
    assert ended.code == 0
    assert "_SWA_COMPLETE" in ended.out
    assert "swa" in ended.out


def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    """HOME is a file: matplotlib, which keeps a cache there, says nothing in the process of a command."""
    (tmp_path / "home").write_text("")
    program = (
        "import contextlib, sys; sys.argv = ['swa', '--version']; from swa_cli import cli\n"
        "with contextlib.suppress(SystemExit): cli.main()\n"
        "import matplotlib; print(matplotlib.get_cachedir())"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MPL", "XDG"))}
    env = kept | {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    assert ended.stderr == ""
    assert str(tmp_path) in ended.stdout.splitlines()[-1]  # the cache is a folder for this process


@pytest.mark.parametrize("closed", ["0<&-", "1>&- 2>&-", "0<&- 1>&- 2>&-"])
def test_no_file_takes_the_number_of_a_closed_stream(tmp_path: Path, closed: str) -> None:
    """What a command finds at the numbers 0 to 2 that were closed: os.devnull, for its children too, without torch."""
    program = (
        "import os, sys; from swa_cli import cli\n"
        "def look(words):\n"
        "    paths = [os.path.realpath(f'/proc/self/fd/{number}') for number in range(3)]\n"
        "    found = [*zip(paths, map(os.get_inheritable, range(3)))]\n"
        "    open('found', 'w').write(repr((found, 'torch' in sys.modules)))\n"
        "    return 7\n"
        "cli.run = look; cli.main()"
    )
    words = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", program]
    ended = subprocess.run(words, cwd=tmp_path, stdin=subprocess.PIPE, capture_output=True)
    assert ended.returncode == 7, ended.stderr
    found, has_torch = literal_eval((tmp_path / "found").read_text())
    numbers = [int(each[0]) for each in closed.split()]
    assert [found[number] for number in numbers] == [(os.devnull, True)] * len(numbers)
    assert not has_torch


@pytest.mark.parametrize("words", ["recipes nope", "frobnicate", "--traceback recipes nope", "train nowhere.yaml"])
@pytest.mark.parametrize("stream", ["full", "gone"])
def test_a_stderr_that_fails_leaves_the_exit_code(tmp_path: Path, words: str, stream: str) -> None:
    """Mistakes, with stderr on a full disk and a pipe without a reader: exit 2 as with any other stderr."""
    command = [sys.executable, "-m", "swa_cli", *words.split()]
    with failing(stream) as file:
        assert subprocess.run(command, cwd=tmp_path, stderr=file).returncode == 2


def test_an_answer_without_a_reader_ends_quietly(tmp_path: Path) -> None:
    """A table on a pipe whose reader has gone, as in `swa recipes | true`: exit 1, and not a word."""
    with failing("gone") as file:
        ended = subprocess.run([sys.executable, "-m", "swa_cli", "recipes"], stdout=file, stderr=subprocess.PIPE)
    assert (ended.returncode, ended.stderr) == (1, b"")


@pytest.mark.parametrize("is_enabled", [True, False])
def test_imports_leave_the_garbage_collector_as_it_was(is_enabled: bool) -> None:
    """The collector inside a block of imports that fails, where it is off, and after it."""
    (gc.enable if is_enabled else gc.disable)()
    inside = []
    try:
        with suppress(ImportError), importing():
            inside.append(gc.isenabled())
            raise ImportError
        assert inside == [False]
        assert gc.isenabled() is is_enabled
    finally:
        gc.enable()


def test_mistakes_that_only_later_checks_see_come_together_each_at_its_place(swa, tmp_path: Path) -> None:
    """Network, dataset argument and optimizer, and then a device and a network of a library: lines and columns."""
    text = """\
model:
  name: nonet
dataset:
  name: digits
  args: {bogus: 1}
optimizer:
  name: SDG
  lr: 0.1
train: {epochs: 2, batch_size: 64}
"""
    (tmp_path / "r.yaml").write_text(text)
    refused = swa("train", "r.yaml")
    assert refused.code == 2
    assert all(f"r.yaml:{place}" in refused.err for place in ("2:9", "5:10", "7:9"))
    assert "3 problems" in refused.err
    (tmp_path / "r.yaml").write_text(text.replace("nonet", "torchvision:resnet19"))
    alone = swa("train", "r.yaml", "optimizer.name=SGD", "dataset.args=null")
    assert alone.code == 2
    assert "r.yaml:2:9" in alone.err
    other = swa(
        "train", "r.yaml", "optimizer.name=SGD", "dataset.args=null", "model.name=convnet", "dataset.name=digitz"
    )
    assert "command line: dataset.name=digitz" in other.err
