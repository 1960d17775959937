"""Render the page of `swa report`: one HTML file without network access, other files or scripts from elsewhere.

`page.html` and `chart.html` are the templates. Text from recipes and files is escaped and stripped of control
characters wherever a template writes it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from swa_cli.report.console_text import printable


def render(template: str, **values: Any) -> Markup:
    """Render a template of this folder."""
    return Markup(_environment().get_template(template).render(values))


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )


def _printable(value: Any) -> Any:
    """Replace control characters of text; markup has been through this before."""
    return value if isinstance(value, Markup) else printable(str(value))
