"""Exports: what cannot be written, or not from this."""

from __future__ import annotations

from hostile.contents import OS_SYSTEM, colour, nan_inside
from hostile.making import Edit, Evil, Make, Row, directory, edited, fifo, file, link, nothing, put, saved
from hostile.theirs import CODE_BESIDE, plain_weights

# Exports: `swa export swa.pt`, with what cannot be written, or not from this.


def exported(name: str, words: str, piece: str, make: Make = nothing) -> Row:
    return Row(f"export-{name}", ["export", *words.split()], piece, make)


def export_with(name: str, edit: Edit, piece: str) -> Row:
    return exported(name, "bad.pt --format torch-export -o a.pt2", piece, edited("swa.pt", "bad.pt", edit))


AS_WEIGHTS, AS_GRAPH = "--format safetensors -o a.safetensors", "--format torch-export -o a.pt2"
EXPORTS = [
    exported("nothing", "", "Missing argument"),
    exported("no-format", "swa.pt -o a.onnx", "Missing option '--format'"),
    exported("no-file", "swa.pt --format onnx", "Missing option"),
    exported("format", "swa.pt --format tflite -o a.onnx", "choose safetensors, torch-export, onnx, state-dict"),
    exported("missing", f"bad.pt {AS_WEIGHTS}", "no such checkpoint"),
    exported("recipe", f"good.yaml {AS_WEIGHTS}", "cannot be read as a checkpoint"),
    exported("folder", f"run {AS_WEIGHTS}", "run:"),
    exported("code", f"bad.pt {AS_WEIGHTS}", CODE_BESIDE, file("bad.pt", saved({"format": 1, "recipe": Evil()}))),
    exported("suffix", "swa.pt --format onnx -o a.pt", "name a .onnx file"),
    exported("no-suffix", "swa.pt --format state-dict -o a", "name a .pt file"),
    exported("no-folder", "swa.pt --format state-dict -o nowhere/a.pt", "nowhere: no such folder"),
    exported("to-folder", "swa.pt --format state-dict -o a.pt", "a.pt:", directory("a.pt")),
    exported("to-fifo", "swa.pt --format state-dict -o a.pt", "a.pt:", fifo("a.pt")),
    exported("to-link", "swa.pt --format state-dict -o a.pt", "a.pt:", link("a.pt", "gone")),
    exported("to-itself", "swa.pt --format state-dict -o ./swa.pt", "swa.pt:"),
    exported("to-last", "swa.pt --format state-dict -o run/checkpoints/last.pt", "run/checkpoints/last.pt:"),
    exported("weights", f"swa.pt --weights ema {AS_WEIGHTS}", "'ema'"),
    exported("several", f"run/checkpoints/last.pt {AS_WEIGHTS}", "--weights NAME"),
    exported("stale", f"run/checkpoints/last.pt --weights swag {AS_WEIGHTS}", "has stale BatchNorm statistics"),
    exported("normalization", f"swa.pt --with-normalization {AS_WEIGHTS}", "--with-normalization:"),
    exported("forbidden", f"swa.pt optimizer.lr=1 {AS_WEIGHTS}", "optimizer.lr: cannot be changed here"),
    exported("no-recipe", f"plain.pt {AS_WEIGHTS}", "--recipe", plain_weights),
    exported(
        "result-broken",
        f"run/checkpoints/last.pt --weights last {AS_WEIGHTS}",
        "result.json",
        file("run/result.json", "["),
    ),
    export_with("nan", nan_inside, "not finite"),
    export_with("no-size", put("input/size", []), "input.size"),
    export_with("size-negative", put("input/size", [-8, 8]), "input.size"),
    export_with("size-endless", put("input/size", [10**9, 10**9]), "cannot be exported"),
    export_with("size-one", put("input/size", [8]), "input.size"),
    export_with("outputs-other", put("input/outputs", 1), "2 of another shape"),
    export_with("channels-other", colour, "1 of another shape"),
    export_with("model-code", lambda content: put("model", OS_SYSTEM)(content["recipe"]), "--allow-code"),
]
