"""The door of the benchmark: choose topics, measure them in order, tell, and end with a verdict.

    PYTHONPATH=tests python -m benchmarks [--quick | --long] [--only TOPIC]... [--out DIR] [--markdown]

Exit code 0: every bar is met; 1: one is missed; 2: a contestant is missing or failed, and nothing is written.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path

MET, MISSED, NOT_MEASURED = 0, 1, 2
NEEDED = ("torchvision", "lightning", "psutil")


def main(words: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns its exit code."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"error: {', '.join(missing)} not installed: pip install -e '.[bench]'", file=sys.stderr)
        return NOT_MEASURED
    from benchmarks.processes import ContestantError

    options = _options(words)
    try:
        return _measure(options)
    except ContestantError as failure:
        print(f"error: {failure}", file=sys.stderr)
        return NOT_MEASURED


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    from benchmarks.topics import TOPICS

    parser = argparse.ArgumentParser(prog="benchmarks", description="Ratios to the alternatives, side by side.")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--quick", action="store_true", help="two minutes: does it work, roughly how fast")
    length.add_argument("--long", action="store_true", help="jobs of ten minutes really run: most of an hour")
    parser.add_argument("--only", choices=list(TOPICS), action="append", help="this topic; may be repeated")
    parser.add_argument("--out", type=Path, default=Path("bench"), metavar="DIR", help="for bench.json and bench.png")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    options = parser.parse_args(words)
    if options.long and options.only:
        parser.error("--long is a topic of its own: leave --only out")
    return options


def _measure(options: argparse.Namespace) -> int:
    from rich.console import Console

    from benchmarks import machine, picture, table
    from benchmarks.size import FULL, QUICK
    from benchmarks.topics import TOPICS, Topic, long
    from benchmarks.voice import Voice

    size = QUICK if options.quick else FULL
    topics = dict(TOPICS) if not options.long else {"long": Topic(long.measure, long.EXPECTED_S, long.EXPECTED_S)}
    topics = {name: topic for name, topic in topics.items() if not options.only or name in options.only}
    voice = Voice({name: topic.quick_s if options.quick else topic.full_s for name, topic in topics.items()})
    figures, details = [], {}
    for name, topic in topics.items():
        voice.topic(name)
        found, details[name] = topic.measure(size, voice)
        figures += found
    about = machine.describe()
    options.out.mkdir(parents=True, exist_ok=True)
    content = {"machine": about, "size": "long" if options.long else size.name, "details": details}
    content["figures"] = [figure.as_json() for figure in figures]
    Path(options.out, "bench.json").write_text(json.dumps(content, indent=2) + "\n")
    title = machine.in_words(about)
    picture.draw(figures, title=title, path=options.out / "bench.png")
    if options.markdown:
        print(table.markdown(figures, title=title))
    else:
        table.print_table(figures, title=title, console=Console())
    missed = [figure.name for figure in figures if figure.is_missed]
    print(f"{len(missed)} of {sum(figure.bar is not None for figure in figures)} bars missed", file=sys.stderr)
    return MISSED if missed else MET


if __name__ == "__main__":
    sys.exit(main())
