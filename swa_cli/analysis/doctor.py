"""`swa doctor`: show versions, hardware and the data of a recipe, to be pasted into a bug report.

The one idea: what is missing is reported as missing, and nothing makes the command fail.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from swa_cli.data import splits
from swa_cli.data.image_file import num_cores
from swa_cli.engine.context import load_source
from swa_cli.engine.events import Events
from swa_cli.engine.hardware import accelerators, bf16_features, processor, speed_of_bf16
from swa_cli.engine.user_code import make_importable
from swa_cli.recipe.load import Loaded
from swa_cli.recipe.schema import Output
from swa_cli.report.terminal import Terminal
from swa_cli.units import size_text

PACKAGES = (
    *("torch", "torchvision", "numpy", "pillow", "pydantic", "pyyaml", "rich", "typer", "safetensors", "matplotlib"),
    *("scipy", "simplejpeg", "timm", "onnx", "onnxruntime", "tensorboard", "wandb", "mlflow-skinny"),
)


def examine(loaded: Loaded | None, *, version: str, terminal: Terminal) -> dict[str, Any]:
    """Show versions, processor, devices, memory and disk, and the data of a recipe if one is given."""
    root = Path(loaded.recipe.output.root if loaded else Output().root)
    all_memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found: dict[str, Any] = {
        "command": "doctor",
        "swa": version,
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "processor": processor(),
        "cores": num_cores(),
        "bf16": _bf16(),
        "devices": _devices(),
        "memory": {"available": splits.available_memory(), "all": all_memory},
        "disk": _disk(root),
        "data": None if loaded is None else _data(loaded, terminal),
    }
    terminal.facts("swa doctor", _rows(found))
    return found


def _rows(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    packages = ", ".join(f"{name} {version or 'missing'}" for name, version in found["packages"].items())
    features, speed = ", ".join(found["bf16"]["features"]) or "no features of the processor", found["bf16"]["speed"]
    memory, disk, data = found["memory"], found["disk"], found["data"]
    rows = [
        ("swa", found["swa"]),
        ("python", f"{found['python']} on {found['system']}"),
        ("packages", packages),
        ("processor", f"{found['processor']}, {found['cores']} cores to use"),
        ("bf16", f"{features}; matrix products measured {speed} times as fast as in fp32, on one thread"),
        ("devices", ", ".join(found["devices"])),
        ("memory", f"{size_text(memory['available'])} free of {size_text(memory['all'])}"),
        ("disk", f"{size_text(disk['free'])} free at {disk['path']}" if disk["free"] is not None else "cannot be read"),
    ]
    if data is not None:
        rows.append(("recipe", data["recipe"]))
        rows.append(("data", f"{data['name']}, looked for in {data['root']}: {data['state']}"))
    return rows


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _bf16() -> dict[str, Any]:
    threads = torch.get_num_threads()
    try:
        return {"features": bf16_features(), "speed": round(speed_of_bf16(), 2)}
    finally:
        torch.set_num_threads(threads)


def _devices() -> list[str]:
    return ["cpu", *([_described(device) for device in accelerators()] or ["no GPU that torch sees"])]


def _described(device: torch.device) -> str:
    if device.type != "cuda":
        return str(device)
    about = torch.cuda.get_device_properties(device)
    return f"{device} {about.name} ({size_text(about.total_memory)})"


def _disk(root: Path) -> dict[str, Any]:
    """Return the free space of the folder of runs, which may not exist yet."""
    path = root.absolute()
    while not os.path.exists(path) and path != path.parent:  # Path.exists raises where nobody may look
        path = path.parent
    try:
        return {"path": str(path), "free": shutil.disk_usage(path).free}
    except OSError:
        return {"path": str(path), "free": None}


def _data(loaded: Loaded, terminal: Terminal) -> dict[str, Any]:
    """Read the data as a run would, without a download, and return whether they are there."""
    dataset = loaded.recipe.dataset.model_copy(update={"cache": "none", "download": False, "workers": 0})
    recipe = loaded.recipe.model_copy(update={"dataset": dataset})
    make_importable(loaded)
    is_there, state = False, ""
    try:
        with Events([terminal]).loading() as progress:
            source = load_source(recipe, progress=progress)
        assert source.train is not None, "training data are asked for"
        is_there, state = True, f"there, {len(source.train):,} training samples, {source.describe_inputs()}"
    except Exception as error:  # a user's own dataset may raise anything
        state = f"not there: {error}"
    root = str(Path(dataset.root).absolute())
    return {"recipe": loaded.source, "name": dataset.name, "root": root, "there": is_there, "state": state}
