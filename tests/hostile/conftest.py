"""What the hostile inputs start from: a working folder after training, and a bound on time and memory."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import run_swa
from hostile.making import GOOD, MEMORY, SECONDS


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder after training: the run is as it was after its first epoch."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "good.yaml").write_text(GOOD)
    run_swa("train", folder / "good.yaml", "-q", "--out", folder)
    (folder / "latest").unlink()
    run = (folder / "good-001").rename(folder / "run")
    for name in ("swa.pt", "swag.pt", "last_bn.pt"):
        (run / "checkpoints" / name).rename(folder / name)
    (run / "checkpoints/previous.pt").rename(run / "checkpoints/last.pt")
    for name in ("result.json", "curves.png"):
        (run / name).unlink()
    return folder


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    """A row that hangs, or takes more memory than any sound answer needs, fails."""

    def give_up(number: int, frame: object) -> None:
        pytest.fail(f"no answer within {SECONDS} s")

    before, (soft, hard) = signal.signal(signal.SIGALRM, give_up), resource.getrlimit(resource.RLIMIT_AS)
    size = Path("/proc/self/statm")
    if size.exists():
        pages = int(size.read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
