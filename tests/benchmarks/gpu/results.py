"""bench/gpu.json, a section a part, and the table and picture of what is in it."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import picture, table
from benchmarks.figures import Figure
from benchmarks.machine import in_words

JSON, MARKDOWN, PICTURE, TESTS = "gpu.json", "gpu.md", "gpu.png", "gpu-tests.xml"
COLUMNS = ("network", "epochs", "SGD: accuracy %", "SWA: accuracy %", "SGD: NLL", "SWA: NLL", "published: SGD, SWA")
KINDS = ("sgd", "swa")


def keep(folder: Path, part: str, section: dict[str, Any]) -> None:
    """Put a section into gpu.json; topics that were not measured this time keep their figures."""
    content = read(folder)
    before = content.get(part, {})
    if part == "speed":
        section = {**section, "topics": before.get("topics", {}) | section["topics"]}
    content[part] = section
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"{JSON}.unfinished"
    unfinished.write_text(json.dumps(content, indent=2) + "\n")
    unfinished.replace(folder / JSON)


def read(folder: Path) -> dict[str, Any]:
    """Return what is in gpu.json; nothing where there is none."""
    path = folder / JSON
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return content


def tell(folder: Path) -> tuple[str, bool]:
    """Write the table and the picture; return the table, and whether nothing is missed or missing."""
    content = read(folder)
    lines, figures, is_met = list(_tests(folder)), [], True
    if (speed := content.get("speed")) is not None:
        figures = [Figure(**figure) for topic in speed["topics"].values() for figure in topic["figures"]]
        lines += [*table.markdown(figures, title=in_words(speed["machine"])).splitlines(), ""]
        lines += [f"{figure.name}: {figure.note}" for figure in figures if figure.note]
        lines += [f"{name} is left out: {reason}" for name, reason in speed["left_out"].items()]
        is_met = not speed["left_out"] and not any(figure.is_missed for figure in figures)
    if (paper := content.get("paper")) is not None:
        lines += ["", *_paper(paper)]
        is_met = is_met and not paper["unfinished"]
    text = "\n".join(lines).strip() + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKDOWN).write_text(text)
    if figures:
        picture.draw(figures, title=in_words(content["speed"]["machine"]), path=folder / PICTURE)
    return text, is_met


def _tests(folder: Path) -> Iterator[str]:
    """Yield a line of the last `make gpu-tests`."""
    path = folder / TESTS
    if path.exists():
        (suite,) = ElementTree.parse(path).getroot().iter("testsuite")
        count = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
        yield f"make gpu-tests: {', '.join(f'{number} {key}' for key, number in count.items())}"
        yield ""


def _paper(paper: dict[str, Any]) -> Iterator[str]:
    """Yield the table of the paper's networks."""
    yield f"{in_words(paper['machine'])}; {paper['data']}; seed {paper['seed']}"
    yield ""
    yield f"| {' | '.join(COLUMNS)} |"
    yield "|---" * len(COLUMNS) + "|"
    for row in paper["rows"]:
        accuracy = [f"{100 * row[kind]['accuracy']:.2f} ± {100 * row[kind]['accuracy_se']:.2f}" for kind in KINDS]
        nll = [f"{row[kind]['nll']:.3f} ± {row[kind]['nll_se']:.3f}" for kind in KINDS]
        yield f"| {' | '.join([row['network'], str(row['epochs']), *accuracy, *nll, row['published']])} |"
    for name in paper["unfinished"]:
        yield f"not finished, go on with the same command: {name}"
