"""What is shipped, held against the sources: the wheel, its metadata, the image."""

from __future__ import annotations

import email
import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import swa_cli

ROOT = Path(__file__).parents[1]
SOURCES = ("swa_cli", "recipes", "pyproject.toml", "README.md", "LICENSE")  # as the Dockerfile copies them
BUILD = "import sys; from setuptools import build_meta as build; getattr(build, sys.argv[1])(sys.argv[2])"


def build(kind: str, *, source: Path, into: Path) -> Path:
    """Build as `python -m build` does, without its environment; return the file. A warning of setuptools fails."""
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}  # setuptools warns where it is set
    words = [sys.executable, "-c", BUILD, f"build_{kind}", str(into)]
    ended = subprocess.run(words, cwd=source, env=env, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert not re.search("warning|deprecat", ended.stdout + ended.stderr, re.IGNORECASE), ended.stderr
    (file,) = into.glob("*.tar.gz" if kind == "sdist" else "*.whl")
    return file


def files_below(folder: Path) -> set[str]:
    """The files of the package, those behind its link to recipes/ too."""
    return {
        str(Path(place, name).relative_to(folder.parent))
        for place, _, names in os.walk(folder, followlinks=True)
        for name in names
        if "__pycache__" not in place
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that is made of the sdist that is made of the sources, unpacked."""
    tmp_path = tmp_path_factory.mktemp("built")
    source = tmp_path / "source"
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source)
    (source / "swa_cli/recipe/__pycache__").mkdir()
    (source / "swa_cli/recipe/__pycache__/own.pyc").write_text("")
    with tarfile.open(build("sdist", source=source, into=tmp_path)) as archive:
        archive.extractall(tmp_path, filter="data")
    shutil.rmtree(source)
    (sdist,) = (path for path in tmp_path.iterdir() if path.is_dir())
    with zipfile.ZipFile(build("wheel", source=sdist, into=tmp_path)) as archive:
        archive.extractall(tmp_path / "unpacked")
    return tmp_path / "unpacked"


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    """Its files against those of the sources: modules, recipes, templates, digits, py.typed; nothing else."""
    expected = files_below(ROOT / "swa_cli")
    assert files_below(wheel / "swa_cli") == expected
    kinds = ("py.typed", "data/digits.gz", "report/page/page.html", "recipe/shipped/digits.yaml")
    assert {f"swa_cli/{name}" for name in kinds} <= expected
    (about,) = wheel.glob("*.dist-info")
    assert (about / "licenses/LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_the_metadata_of_the_wheel(wheel: Path) -> None:
    """Version, dependencies, extras and the command, against the package and pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (about,) = wheel.glob("*.dist-info")
    told = email.message_from_string((about / "METADATA").read_text())
    assert told["Version"] == swa_cli.__version__
    assert told["Requires-Python"] == project["requires-python"]
    asked = [each for each in told.get_all("Requires-Dist", []) if "extra ==" not in each]
    assert len(asked) == len(project["dependencies"])
    assert set(told.get_all("Provides-Extra", [])) == set(project["optional-dependencies"])
    assert "swa = swa_cli.__main__:main" in (about / "entry_points.txt").read_text()
    assert told["Description-Content-Type"] == "text/markdown"


def test_an_installed_package_runs(wheel: Path) -> None:
    """`swa recipes` of the unpacked wheel, far from the sources, against recipes/."""
    words = [sys.executable, "-m", "swa_cli", "recipes", "--json"]
    ended = subprocess.run(words, cwd=wheel, env={"PYTHONPATH": str(wheel)}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert len(json.loads(ended.stdout)["recipes"]) == len(list((ROOT / "recipes").rglob("*.yaml")))


def test_the_dockerfile_has_no_finding() -> None:
    """hadolint, which finds what is wrong with a Dockerfile made wrong here."""
    hadolint = Path(sys.executable).with_name("hadolint")

    def findings(text: str) -> list[str]:
        words = [str(hadolint), "--no-color", "--format", "json", "-"]
        ended = subprocess.run(words, input=text, capture_output=True, text=True)
        return [each["code"] for each in json.loads(ended.stdout)]

    text = (ROOT / "Dockerfile").read_text()
    assert findings(text) == []
    assert "DL3042" in findings(text.replace("--no-cache-dir ", ""))


def test_the_builder_of_the_image_gets_what_it_copies() -> None:
    """Each source of a COPY against .dockerignore; the last user is not root, whose number no host knows."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = [
        word for line in lines if line.startswith("COPY ") and "--from" not in line for word in line.split()[1:-1]
    ]
    assert sorted(copied) == sorted(SOURCES)
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert rules[0] == "*"
    for name in copied:
        assert any(fnmatch.fnmatch(name, rule[1:]) for rule in rules if rule.startswith("!"))
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users
    assert int(users[-1]) > 0
