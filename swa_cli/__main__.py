"""`swa`, and `python -m swa_cli`, which torchrun starts: handle signals, then import and run the command line."""

from __future__ import annotations

import sys
from typing import NoReturn

from swa_cli import signals
from swa_cli.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, Terminated


def main() -> NoReturn:
    """Run the command line and exit with its code; signals wait for the end of its imports."""
    signals.install()
    try:
        with signals.deferred():
            from swa_cli import cli
        signals.check()
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except Terminated:
        sys.exit(EXIT_TERMINATED)
    cli.main()


if __name__ == "__main__":
    main()
