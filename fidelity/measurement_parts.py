"""Parts of a long measurement: each is kept in a file as soon as it is done, and none is begun when the time is over."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from ..core.artifacts import read_json, write_json

Model = TypeVar("Model", bound=BaseModel)


class MeasurementParts:
    """Parts as JSON files of a folder: what is there is not measured again.

    Args:
        folder: Of one measurement; created with the first part.
        deadline: On the clock of `time.monotonic`; no part begins after it.
        say: Gets a line when a part is done.
    """

    def __init__(self, folder: Path, deadline: float, say: Callable[[str], None]) -> None:
        self._folder, self._deadline, self._say = folder, deadline, say

    def get(self, name: str, kind: type[Model], measure: Callable[[], Model]) -> Model | None:
        """A part, read or measured now; None where it is missing and the time is over."""
        path = self._folder / f"{name}.json"
        if path.exists():
            return kind.model_validate(read_json(path))
        started = time.monotonic()
        if started >= self._deadline:
            return None
        found = measure()
        write_json(path, found.model_dump(mode="json"))
        self._say(f"{name} in {time.monotonic() - started:.0f} s")
        return found
