"""The answer for programs: one JSON object."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def json_text(values: Mapping[str, Any], *, indent: int | None = None) -> str:
    """JSON as the standard has it: a score that is not finite becomes null, for which there is no other word.

    A byte of a name that is no character becomes `?`.
    """
    text = json.dumps(_finite(values), indent=indent, ensure_ascii=False, allow_nan=False)
    return text.encode(errors="replace").decode()


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
