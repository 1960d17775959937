"""Say what a file or a folder is that is read as no checkpoint, and how its weights become one.

Only names are looked at: those of the parts of a zip archive, or of the files in a folder.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

TRUST = " where you trust who wrote it, since this runs its code"
# Of a folder of Hugging Face, in which there may be weights of an adapter, too.
WEIGHT_FILES = ("*.safetensors.index.json", "model.safetensors", "*.safetensors", "pytorch_model.bin")


def of_archive(names: Sequence[str], path: Path) -> tuple[str, str] | None:
    """Return what a zip archive is that `torch.save` has not written, and a hint; None if it may have."""
    file = repr(str(path))
    if any(name.endswith("/constants.pkl") for name in names):
        code = f"import torch; torch.save(torch.jit.load({file}, 'cpu').state_dict(), 'weights.pt')"
        return "is a TorchScript network, which is code beside its weights", f"take its weights out{TRUST}: {run(code)}"
    if any(name.endswith("/models/model.json") or name == "serialized_exported_program.json" for name in names):
        code = f"import torch; torch.save(dict(torch.export.load({file}).state_dict), 'weights.pt')"
        return "is a program of torch.export, which is more than weights", f"take its weights out{TRUST}: {run(code)}"
    if names and all(name.endswith(".npy") for name in names):
        arrays = f"{{key: torch.from_numpy(value) for key, value in numpy.load({file}).items()}}"
        code = f"import numpy, torch; torch.save({arrays}, 'weights.pt')"
        return "is an archive of NumPy arrays", f"write them as tensors, under the names of the network: {run(code)}"
    if "model.weights.h5" in names:
        return "is a network of Keras", "write its weights with torch.save, under the names and in the shapes of torch"
    if not any(name.endswith("/data.pkl") for name in names):
        return "is a zip archive that torch.save has not written", "name a file that torch.save wrote"
    return None


def of_folder(path: Path) -> str | None:
    """Return the hint for a folder of another program that holds weights; None for any other."""
    if (path / ".metadata").is_file() and any(path.glob("*.distcp")):
        module = "torch.distributed.checkpoint.format_utils"
        code = f"from {module} import dcp_to_torch_save; dcp_to_torch_save({str(path)!r}, 'weights.pt')"
        return f"it is a distributed checkpoint of torch; write its weights into one file{TRUST}: {run(code)}"
    if (path / "recipe.yaml").exists() or (path / "checkpoints").exists():  # a run, with files of its user
        return None
    found = (file for pattern in WEIGHT_FILES for file in sorted(path.glob(pattern)) if file.is_file())
    file = next(found, None)
    return None if file is None else f"it holds weights of another program: name {file} in its place"


def run(code: str) -> str:
    """Return the shell command that runs a line of Python."""
    is_plain = not any(character in code for character in '"$`\\!')
    return f'python -c "{code}"' if is_plain else f"python -c {shlex.quote(code)}"
