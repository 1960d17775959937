"""The pages of the documentation: their blocks of code, and a reader who runs the blocks of a page in one folder."""

from __future__ import annotations

import glob
import json
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from processes import said_in
from swa_cli.errors import EXIT_INTERRUPTED

if TYPE_CHECKING:
    from conftest import Ended, Swa

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
BASE: dict[str, Any] = {  # what the parts of recipes that pages show are put into
    "model": {"name": "convnet", "args": {"width": 4}},
    "dataset": {"name": "digits"},
    "optimizer": {"lr": 0.1},
    "train": {"epochs": 9, "batch_size": 8},
}
WITH_CHANGES = ("train", "plan", "repeat", "find-lr", "sweep")


class Block(NamedTuple):
    """A block of code of a page."""

    place: str
    heading: str
    language: str
    text: str


def blocks(page: Path, *languages: str) -> list[Block]:
    """The blocks of a page in these languages, or all."""
    text = page.read_text()
    found = []
    for match in BLOCK.finditer(text):
        place = f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 1}"
        headings = re.findall(r"^##+ (.*)$", BLOCK.sub("", text[: match.start()]), re.MULTILINE)
        found.append(Block(place, headings[-1] if headings else "", match[2], match[3]))
    return [block for block in found if not languages or block.language in languages]


def shell_lines(block: Block) -> list[str]:
    """The lines of a block of commands, with continued lines joined and without comments; a script has none."""
    text = block.text.replace("\\\n", " ")
    if block.language == "console":
        text = "\n".join(re.findall(r"^\$ (.*)$", text, re.MULTILINE))
    elif text.startswith("#!"):
        return []
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def recipes_in(text: str) -> Iterator[dict[str, Any]]:
    """The recipes that a block of YAML shows, each in a small recipe; a line that repeats a key begins another one."""
    starts = re.findall(r"^(\w+):", text, re.MULTILINE)
    for part in text.splitlines() if len(set(starts)) < len(starts) else [text]:
        whole = {**BASE, **yaml.safe_load(part)}
        for key in BASE:
            is_complete = key in ("model", "dataset") and "name" in whole[key]
            whole[key] = whole[key] if is_complete else {**BASE[key], **whole[key]}
        yield whole


def runnable(page: Path) -> Iterator[tuple[Block, str]]:
    """What a reader of a page may run, in the order of the page: commands, scripts, and whole blocks of the rest."""
    for block in blocks(page, "bash", "console", "python", "yaml"):
        is_script = block.text.startswith("#!")
        if block.language in ("bash", "console") and not is_script:
            yield from ((block, line) for line in shell_lines(block))
        else:
            yield block, block.text


@dataclass
class Reader:
    """Runs what pages show in the working directory.

    Args:
        swa: The command line.
        signal_at: Stops the next run after a step.
        changes: What makes a run small, added to each command that takes changes of a recipe.
        names: What examples in Python suppose and make.
    """

    swa: Swa
    signal_at: Callable[..., None]
    changes: Sequence[str] = ()
    names: dict[str, Any] = field(default_factory=dict)

    def run(self, block: Block, text: str) -> str:
        """Run a command, an example in Python, or one step of a recipe; return the messages of the command."""
        if block.language == "python":
            exec(text, self.names)
        elif block.language == "yaml":
            for whole in recipes_in(text):
                Path("shown.yaml").write_text(yaml.safe_dump(whole))
                self.train("shown.yaml", "--dry-run")
        else:
            return self.command(text)
        return ""

    def train(self, *words: str) -> None:
        """Run `swa train WORDS...` with the changes that make it small."""
        self.succeed("train", *words, *self.changes)

    def command(self, line: str) -> str:
        """Run a line of a shell, with patterns of files and `> FILE` as a shell has them; return its messages."""
        line, _, target = line.partition(" > ")
        program, *given = shlex.split(line, comments=True)
        assert program == "swa", line
        given = [re.sub("^/shared/", "shared/", word) for word in given]  # a folder of several machines lies here too
        words = [found for word in given for found in (sorted(glob.glob(word)) or [word])]
        if "--resume" in words and "--extend-to" not in words:  # of a run that was stopped
            self.signal_at(3)
            ended = self.swa("train", "recipe.yaml")
            assert ended.code == EXIT_INTERRUPTED, ended.err
            self.signal_at(-1)
        takes_changes = {*words} & {*WITH_CHANGES} and "--resume" not in words
        few = ("--grid", "3", "--samples", "50") if "plane" in words else ()
        ended = self.succeed(*words, *(self.changes if takes_changes else ()), *few)
        if target:
            Path(target).write_text(ended.out)
        if "train" in words and "--processes" in words and "--resume" not in words:
            processes = json.loads(Path("runs/latest/run.json").read_text())["processes"]
            assert processes == int(words[words.index("--processes") + 1])
        return ended.err

    def succeed(self, *words: str) -> Ended:
        """Run `swa WORDS...`, which has to end well."""
        ended = self.swa(*words)
        assert ended.code == 0, f"swa {' '.join(words)}: {ended.err or said_in(Path.cwd())}"
        return ended
