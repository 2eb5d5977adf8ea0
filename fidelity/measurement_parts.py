"""Parts of a long measurement: each is kept in a file as soon as it is done, and none is begun when the time is over."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from ..core.artifacts import atomic_file, read_model, write_json
from ..validation.fp32_reference import REFERENCE_FILE, Reference, read_answers, write_answers

Model = TypeVar("Model", bound=BaseModel)
_MEASURE_AGAIN = "another version of onerec-trt measured it: remove it, and the same command measures it again"


class MeasurementParts:
    """Parts as JSON files of a folder, and the FP32 reference: what is there is not measured again.

    Args:
        folder: Of one measurement; created with the first part.
        deadline: On the clock of `time.monotonic`; no part begins after it.
        say: Gets a line when a part is done.
    """

    def __init__(self, folder: Path, deadline: float, say: Callable[[str], None]) -> None:
        self._folder, self._deadline, self._say = folder, deadline, say

    def reference(self, answer: Callable[[], Reference]) -> Reference:
        """FP32's answers, which several parts stand beside: those of an earlier call, or made now.

        Raises:
            ArtifactError: Those of an earlier call are damaged, or another version's.
        """
        path = self._folder / REFERENCE_FILE
        if not path.exists():
            started = time.monotonic()
            answered = answer()
            with atomic_file(path) as temporary:
                write_answers(answered, temporary)
            self._say(f"FP32 reference in {time.monotonic() - started:.0f} s")
        return read_answers(path)

    def get(self, name: str, kind: type[Model], measure: Callable[[], Model]) -> Model | None:
        """A part, read or measured now; None where it is missing and the time is over.

        Raises:
            ArtifactError: The part of an earlier call is damaged, or another version's.
        """
        path = self._folder / f"{name}.json"
        if path.exists():
            return read_model(path, kind, hint=_MEASURE_AGAIN)
        started = time.monotonic()
        if started >= self._deadline:
            return None
        found = measure()
        write_json(path, found.model_dump(mode="json"))
        self._say(f"{name} in {time.monotonic() - started:.0f} s")
        return found
