"""Where the command `onerec-trt` begins: imports nothing that an extra brings, so that a missing extra can be named."""

from __future__ import annotations

import sys

from ..core.extras import missing_extra


def main() -> None:
    """Run the command line; a module that is not installed becomes a message that names its extra."""
    try:
        from .cli import main as run

        run()
    except ModuleNotFoundError as error:
        missing = missing_extra(error)
        if missing is None:
            raise
        print(f"{type(missing).__name__}: {missing}", file=sys.stderr)
        sys.exit(missing.exit_code)
