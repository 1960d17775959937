"""Completion in shells, by the protocol that `swa --install-completion` installs; and whole texts of help."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from swa_cli.cli import _command, complete, plot
from swa_cli.recipe import templates
from swa_cli.recipe.load import load, shipped_names
from swa_cli.recipe.schema import Recipe

Complete = Callable[..., list[str]]
COMMANDS = _command().commands


@pytest.fixture
def completions(swa, monkeypatch: pytest.MonkeyPatch) -> Complete:
    """Complete the last word of a line as bash asks for it, which makes words of its own of each `=`."""

    def ask(line: str) -> list[str]:
        words = line.replace("=", " = ").split(" ") if "=" in line else line.split(" ")
        words = [word for word in words[:-1] if word] + [words[-1]]
        monkeypatch.setenv("_SWA_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", "\n".join(words))
        monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
        ended = swa()
        assert (ended.code, ended.err) == (0, "")
        return ended.out.split()

    return ask


def test_names_of_recipes(completions: Complete, tmp_path: Path) -> None:
    """Every shipped recipe and the YAML files of the folder, for each command that takes a recipe."""
    (tmp_path / "own.yaml").write_text("")
    (tmp_path / "own.txt").write_text("")
    assert completions("swa train ") == [*shipped_names(), "own.yaml"]
    for command in ("plan", "repeat", "doctor", "recipes", "plot"):
        assert {"digits", "digits_swap"} <= set(completions(f"swa {command} dig"))
    assert completions("swa train own.") == ["own.yaml"]


def test_keys_one_section_at_a_time(completions: Complete) -> None:
    """The sections and top keys; the keys of one section; a sole key with its value in the recipe or its choices."""
    recipe = load("digits").recipe
    top = completions("swa train digits ")
    assert {"seed=", "optimizer.", "swa.", "train."} <= set(top)
    assert all(each.count(".") + each.count("=") == 1 for each in top)
    found = completions("swa train digits opt")
    assert {"optimizer.lr=", "optimizer.name=", "optimizer.momentum="} <= set(found)
    assert all(each.startswith("optimizer.") for each in found)
    assert completions("swa train digits optimizer.lr") == ["optimizer.lr=", f"optimizer.lr={recipe.optimizer.lr}"]
    assert "schedule.name=cosine" in completions("swa train digits schedule.na")
    assert "averages.ema.half_life=" in completions("swa train digits averages.")
    assert completions("swa train digits nothing.li") == []
    assert completions("swa train digits swap.lr") == ["swap.lr=", "swap.lr=VALUE"]  # bash puts no space after `=`


def test_every_key_of_the_schema_is_offered() -> None:
    """The keys that are completed against a walk over the JSON Schema's own sections."""
    offered = dict(complete._keys(Recipe, "", names=("a",)))
    sections = [*templates.all_sections(Recipe)]
    listed = {key.section for section in sections for key in templates.keys(section) if key.many == "listed"}
    assert len(listed) == 2
    for section in sections:
        for key in templates.keys(section):
            if key.section is None and section not in listed:
                assert any(name == key.name or name.endswith(f".{key.name}") for name in offered), key.name


@pytest.mark.parametrize("line", ["swa train digits schedule.name=co", "swa repeat digits seed=1 schedule.name=co"])
def test_values_after_the_equals_sign(completions: Complete, line: str) -> None:
    """Bash, whose words end at `=`, replaces only the value; other shells complete the whole word."""
    assert completions(line) == ["constant", "cosine", "cosine_restarts"]
    whole = [item.value for item in complete.complete_changes("schedule.name=", {"recipe": "digits"})]
    assert f"schedule.name={completions(line)[0]}" in whole
    assert completions("swa train digits dataset.download=") == ["true", "false"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("swa plot runs/x ", [*plot.KINDS]),
        ("swa plot runs/x cal", ["calibration"]),
        ("swa plot runs/x --format p", ["png", "pdf"]),
        ("swa export x.pt --format s", ["safetensors", "state-dict"]),
        ("swa eval x.pt --split t", ["test", "train"]),
        ("swa repeat digits --against b", ["baseline"]),
        ("swa predict x.pt --tta ", ["none", "flip", "flip_translate"]),
        ("swa soup --method g", ["greedy"]),
        ("swa re", ["recipes", "repeat", "report"]),
        ("swa new --", ["--task", "--data", "--out"]),
        ("swa train --dry", ["--dry-run"]),
    ],
)
def test_choices(completions: Complete, line: str, expected: list[str]) -> None:
    """Kinds of pictures, formats, splits, methods, commands and options, by what was typed of them."""
    assert [each for each in completions(line) if each != "--help"] == expected


def test_runs_and_their_checkpoints(completions: Complete, tmp_path: Path) -> None:
    """Folders with a run.json or repeat.json, here and in runs/; their checkpoints; the snapshots of one."""
    for name, file in [("a-001", "run.json"), ("b-repeat-001", "repeat.json"), ("other", "x.json")]:
        (tmp_path / "runs" / name / "checkpoints").mkdir(parents=True)
        (tmp_path / "runs" / name / file).write_text("{}")
        (tmp_path / "runs" / name / "checkpoints/swa.pt").write_text("")
    (tmp_path / "runs/latest").symlink_to("a-001")
    (tmp_path / "runs/a-001/snapshots").mkdir()
    (tmp_path / "runs/a-001/snapshots/step-5.pt").write_text("")
    runs = ["runs/a-001", "runs/b-repeat-001", "runs/latest"]
    for line in ("swa compare ", "swa report runs/", "swa train --resume ", "swa compare runs/a-001 "):
        assert completions(line) == runs
    assert completions("swa eval runs/a")[:2] == ["runs/a-001/checkpoints/swa.pt", "runs/a-001"]
    inside = completions("swa average runs/a-001/")
    assert inside == ["runs/a-001/checkpoints/swa.pt", "runs/a-001/snapshots/step-5.pt"]
    assert completions("swa export runs/l") == ["runs/latest/checkpoints/swa.pt"]
    assert "optimizer.lr=" in completions("swa train --resume runs/latest optimizer.l")


@pytest.mark.parametrize(
    ("words", "position", "found", "loaded"),
    [
        ("swa train digits opt", 3, "optimizer.lr=", ["swa_cli.recipe.schema"]),
        ("swa tra", 1, "train", []),
        ("swa show r", 2, "", []),
    ],
)
def test_completion_is_quick(words: str, position: int, found: str, loaded: list[str]) -> None:
    """What a process has imported that completes a key, a command and a run: recipes are read for the key alone."""
    program = (
        f"import os, sys; os.environ.update(_SWA_COMPLETE='complete_bash', COMP_WORDS='{words}',"
        f" COMP_CWORD='{position}'); from swa_cli import cli; code = cli.run([]);"
        " print(code, *({'torch', 'numpy', 'matplotlib', 'swa_cli.recipe.schema'} & set(sys.modules)), file=sys.stderr)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.stderr.split() == ["0", *loaded]
    assert found in ended.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_script_of_bash(swa) -> None:
    """What `swa --show-completion bash` prints is a script that bash parses, and that asks by the protocol above."""
    from typer._completion_shared import get_completion_script

    script = get_completion_script(prog_name="swa", complete_var="_SWA_COMPLETE", shell="bash")
    assert "_SWA_COMPLETE=complete_bash" in script
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_the_help_lists_each_command_with_its_whole_sentence(swa) -> None:
    """`swa --help` on 80 columns against the first sentence of each command's docstring."""
    listed = swa("--help").out
    assert max(map(len, listed.splitlines())) <= 80
    assert "..." not in listed.partition("Commands:")[2].partition("Examples:")[0]
    words = " ".join(listed.split())
    for name, command in COMMANDS.items():
        sentence = " ".join(command.callback.__doc__.partition("\n\n")[0].split()).removesuffix(".")
        assert f"{name} {sentence}" in words


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_each_command_is_whole(swa, name: str) -> None:
    """Every option and its whole help on 80 columns, against what the command declares."""
    shown = swa(name, "--help").out
    assert max(map(len, shown.splitlines())) <= 80
    words = " ".join(shown.split())
    for param in COMMANDS[name].params:
        if param.name != "help" and not getattr(param, "hidden", False):
            assert " ".join(param.help.split()) in words
            assert all(flag in words for flag in param.opts if flag.startswith("-"))
