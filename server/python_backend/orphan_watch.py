"""Ends this process when the server that started it is gone: a stub of the Python backend survives a killed server and keeps its memory."""

from __future__ import annotations

import os
import threading
import time

_LOOK_EVERY_S = 0.5


def end_with_parent() -> None:
    """Watch the parent in a thread; the process ends within a second of the parent's end."""
    threading.Thread(target=_watch, args=(os.getppid(),), name="orphan-watch", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_EVERY_S)
    os._exit(1)
