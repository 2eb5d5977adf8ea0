"""Typed errors for users: what is wrong, where, and what to do about it.

Invariants of our own code are asserts; everything a user can cause is one of these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class OnerecTrtError(Exception):
    """Base of every error a user can cause or fix.

    Args:
        what (str): What is wrong, in one sentence.
        where (str): The file, tensor, request or key it concerns. Default: empty.
        hint (str): What to do next. Default: empty.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.hint = what, where, hint

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.hint:
            lines.append(f"  to do: {self.hint}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.what, self.where, self.hint))


def first_problem(error: ValidationError) -> str:
    """Where a file that pydantic read is first wrong, and how: the path of the key, and what pydantic says of it."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def _rebuild(kind: type[OnerecTrtError], what: str, where: str, hint: str) -> OnerecTrtError:
    return kind(what, where=where, hint=hint)


class RecipeError(OnerecTrtError):
    """A recipe has an unknown key, a wrong type, or values that contradict each other."""


class ArtifactError(OnerecTrtError):
    """A file is missing, does not match its record, or cannot be written."""


class CheckpointError(OnerecTrtError):
    """A checkpoint is truncated, of another size, or holds values that cannot be served."""


class RequestError(OnerecTrtError):
    """A request file or a request in it is malformed, empty, or longer than the profile."""


class CalibrationError(OnerecTrtError):
    """Calibration saw too little, or saw values that FP16 or FP8 cannot hold."""


class ExportError(OnerecTrtError):
    """The graph could not be written, or the lint found a fault in it."""


class BuildError(OnerecTrtError):
    """TensorRT refused the graph or the options."""


class GpuError(OnerecTrtError):
    """There is no usable GPU: it or its driver is missing, its memory is exhausted, or it fails."""


class GateError(OnerecTrtError):
    """A parity gate failed: the plan must not be shipped."""

    exit_code = 2


class MissingExtraError(OnerecTrtError):
    """An optional dependency is needed and not installed."""
