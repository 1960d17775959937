"""What the tests of this folder share: a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chromium import chromium


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    """A Chromium of its own profile."""
    with chromium(tmp_path / "profile") as found:
        yield found
