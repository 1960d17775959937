"""`swa schema`: print the JSON Schema of recipes."""

from __future__ import annotations

import json

from swa_cli.cli.shared import LOOKING_CODES, NewFile, deliver

EPILOG = f"""\b
Examples:
  swa schema -o recipe.schema.json
  echo '# yaml-language-server: $schema=recipe.schema.json' > recipe.yaml
  swa new >> recipe.yaml

{LOOKING_CODES}"""


def schema(out: NewFile = None) -> None:
    """Print the JSON Schema of recipes, with which editors complete and explain keys and mark mistakes."""
    from swa_cli.recipe.templates import json_schema

    deliver(json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n", out)
