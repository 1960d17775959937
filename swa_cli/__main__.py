"""`python -m swa_cli`: the same as the command `swa`; what torchrun starts."""

from swa_cli.cli import main

main()
