"""`swa export`: write a weight set for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from swa_cli import __version__
from swa_cli.cli.shared import EXIT_CODES, AllowCode, Changes, Checkpoint, Json, Quiet, RecipeOption, answer, importing

EPILOG = f"""\b
Examples:
  swa export runs/latest/checkpoints/swa.pt --format onnx -o model.onnx
  swa export swa.pt --format torch-export --with-normalization -o model.pt2
  swa export theirs.ckpt --recipe recipe.yaml --format safetensors \\
    -o theirs.safetensors
  swa export last.pt --weights last --format state-dict -o raw.pt

{EXIT_CODES}"""

FORMATS = ("safetensors", "torch-export", "onnx", "state-dict")


def export(
    ckpt: Checkpoint,
    format_: Annotated[str, typer.Option("--format", metavar="|".join(FORMATS), help="Kind of file to write.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The file to write.")],
    changes: Changes = None,
    weights: Annotated[
        str | None, typer.Option("--weights", metavar="NAME", help="Weight set; default: the only one in the file.")
    ] = None,
    with_normalization: Annotated[
        bool,
        typer.Option(
            "--with-normalization", help="Let the graph take pixels from 0 to 1 instead of normalized images."
        ),
    ] = False,
    allow_stale_bn: Annotated[
        bool, typer.Option("--allow-stale-bn", help="Also export an average with stale BatchNorm statistics.")
    ] = False,
    recipe: RecipeOption = None,
    allow_code: AllowCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write one weight set as safetensors, torch-export, ONNX or a plain state dict, checked against torch.

    The graphs of torch-export and ONNX take batches of any size; the other formats hold weights alone. All but a
    state dict carry recipe, average and scores as metadata. ONNX needs `pip install 'swa-cli[onnx]'`. A file of swa is
    exported as it is. For one of another program, changes to its recipe are limited to dataset.*, eval.* and
    train.{device,precision,threads}.
    """
    if format_ not in FORMATS:
        raise typer.BadParameter(f"--format {format_}: choose {', '.join(FORMATS)}")
    with importing():
        from swa_cli.analysis.export import Request, export_checkpoint
    from swa_cli.report.terminal import Terminal

    request = Request(
        ckpt,
        out,
        format_,
        version=__version__,
        weights=weights,
        with_normalization=with_normalization,
        allow_stale_bn=allow_stale_bn,
    )
    terminal = Terminal(quiet=quiet, json=as_json)
    result = export_checkpoint(request, changes or [], terminal=terminal, recipe=recipe, allow_code=allow_code)
    answer(result, as_json=as_json)
