"""`swa` with the words given, ended at its first optimizer step: prints the seconds since the process was started."""

from __future__ import annotations

import os
import sys
import time

from swa_cli import cli


def main() -> None:
    """Run the command line; torch, when it comes, is asked to tell of the first step of any optimizer."""
    started = float(os.environ["BENCH_STARTED"])

    def stop(*_: object) -> None:
        print(time.monotonic() - started, flush=True)
        os._exit(0)

    class Watch:
        """Waits until training is imported: torch is not to come before the command itself wants it."""

        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "swa_cli.engine.train":
                sys.meta_path.remove(self)
                from torch.optim.optimizer import register_optimizer_step_post_hook

                register_optimizer_step_post_hook(stop)

    sys.meta_path.insert(0, Watch())
    sys.exit(cli.run(sys.argv[1:]) or 1)


if __name__ == "__main__":
    main()
