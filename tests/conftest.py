"""What several rooms' tests share: the command line run in this process, and small recipes."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from processes import OF_A_TERMINAL, render_blank_figures, render_real_figures, skip_fsync, use_one_thread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The same inputs in every run, however slow the machine is at the moment.
settings.register_profile(
    "suite",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("suite")
OF_A_LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.out)


Swa = Callable[..., Ended]
OnStep = Callable[[Callable[[Any, Any], object]], None]  # the plan event of a run, its step event


def pytest_configure(config: pytest.Config) -> None:
    """Give Hugging Face's packages, which read this when they are imported, a folder of the tests and no network."""
    folder = tempfile.TemporaryDirectory(prefix="swa-hugging-face-")
    config.add_cleanup(folder.cleanup)
    os.environ.update(HF_HOME=folder.name, HF_HUB_OFFLINE="1")


SMALL = """\
name: small
model: {name: convnet, args: {width: 4}}
dataset: {name: digits, augment: {crop: 1}}
optimizer: {lr: 0.1}
swa: {start: 50%, every: 0.5ep, eval_every: 1ep}
train: {epochs: 4, batch_size: 64, threads: 1}
"""


def run_swa(*words: str | Path) -> None:
    """Run a command that succeeds, in this process with one thread: for what several tests share."""
    from swa_cli import cli

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    code = cli.run([str(word) for word in words])
    torch.set_num_threads(threads)
    assert code == 0


def copy_runs(source: Path, target: Path) -> Path:
    """Copy a folder of runs, as if they had been trained in the copy; return its latest run."""
    shutil.copytree(source, target, symlinks=True)
    for file in target.glob("*/*.json"):
        file.write_text(file.read_text().replace(str(source), str(target)))
    return (target / "latest").resolve()


def load(path: str | Path) -> dict[str, Any]:
    """Load a checkpoint as any program can."""
    return torch.load(path, weights_only=True)


@pytest.fixture(autouse=True, scope="session")
def _no_terminal_and_no_launcher() -> None:
    """What they set here would speak to the commands under test too."""
    for name in (*OF_A_TERMINAL, *OF_A_LAUNCHER):
        os.environ.pop(name, None)


@pytest.fixture(autouse=True, scope="session")
def _cheap_runs() -> Iterator[None]:
    """Runs of tests and fixtures wait for no disk, use one thread, and render no figure, a third of a small run."""
    with pytest.MonkeyPatch.context() as patch:
        skip_fsync(patch.setattr)
        use_one_thread(patch.setattr)
        render_blank_figures(patch.setattr)
        yield


@pytest.fixture(autouse=True, scope="module")
def _cheap_collections() -> None:
    """Keep what is there already, a million objects of modules and tests, out of all later garbage collections.

    A run collects at its end, and each full collection would look at all of them: half a second.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Bits depend on the number of threads: every test runs with one, and leaves torch as it was."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _real_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Render the figures of tests marked `pictures`."""
    if request.node.get_closest_marker("pictures") is not None:
        render_real_figures(monkeypatch.setattr)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are written, in their order."""
    from matplotlib.figure import Figure

    seen: list[Figure] = []
    real = Figure.savefig

    def keep(figure: Figure, *args: Any, **options: Any) -> None:
        seen.append(figure)
        real(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return seen


@pytest.fixture
def swa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Swa:
    """Run `swa WORDS...` in a fresh folder, as a person would, and say how it ended."""
    from swa_cli import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*words: str | Path) -> Ended:
        capsys.readouterr()
        code = cli.run([str(word) for word in words])
        out, err = capsys.readouterr()
        return Ended(code, out, err)

    return run


@pytest.fixture
def on_step(monkeypatch: pytest.MonkeyPatch) -> OnStep:
    """Let a function hear of each optimizer update of every run, and of what that run is; what it raises ends the run.

    A new function takes the place of the one before.
    """
    from swa_cli.analysis.run_output import RunOutput

    def listen(hear: Callable[[Any, Any], object]) -> None:
        monkeypatch.setattr(RunOutput, "step", lambda output, event: hear(output.run, event), raising=False)

    return listen


@pytest.fixture
def signal_at(on_step: OnStep) -> Callable[..., None]:
    """Let this process get a signal after the update that makes a step; a later call takes the place of an earlier."""

    def arm(step: int, number: int = signal.SIGINT, times: int = 1) -> None:
        def hear(_: Any, event: Any) -> None:
            if event.step == step:
                for _ in range(times):
                    os.kill(os.getpid(), number)

        on_step(hear)

    return arm


@pytest.fixture
def signal_at_end(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let this process get a signal once, when a run in a folder of a name has written its result.json."""
    from swa_cli.checkpoint.run_folder import RunFolder

    write = RunFolder.write_text

    def arm(folder: str, number: int) -> None:
        def written(run: RunFolder, name: str, text: str) -> None:
            write(run, name, text)
            if (run.path.name, name) == (folder, "result.json"):
                monkeypatch.setattr(RunFolder, "write_text", write)
                os.kill(os.getpid(), number)

        monkeypatch.setattr(RunFolder, "write_text", written)

    return arm


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe on real digits that trains in about a second."""
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.fixture(scope="session")
def _finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    (folder / "small.yaml").write_text(SMALL)
    run_swa("train", folder / "small.yaml", "-q", "-o", folder / "runs")
    return folder / "runs"


@pytest.fixture
def finished(recipe: Path, _finished: Path) -> Path:
    """The folder of a finished run of `recipe`: the test's own copy of one training, as `swa train` would leave it."""
    return copy_runs(_finished, recipe.parent / "runs")
