"""Ends an instance whose CUDA context is lost: after an error such as an illegal address CUDA refuses every later call of the process.

It would fail each batch at once, be free again before the others, and so draw most requests.
"""

from __future__ import annotations

import os
import sys

import torch


def end_if_lost(device: torch.device) -> None:
    """End this process if its GPU does not answer any more; `serve` replaces instances that end."""
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        print(f"this instance ends, since {device} is lost to it: {error}", file=sys.stderr, flush=True)
        os._exit(1)
