"""A gate: one number against one threshold, and how it is reported."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, PlainSerializer, model_validator

from ..core.errors import GateError


def _json_number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


Measured = Annotated[float, PlainSerializer(_json_number, when_used="json")]  # may be NaN or infinite, which JSON takes as a string


class Gate(BaseModel):
    """One criterion. A value that is not finite never passes; it is stored as None."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str
    recipe: str
    value: float | None
    threshold: float
    comparison: Literal["<=", ">="]
    passed: bool
    detail: str = ""

    @model_validator(mode="after")
    def _honest(self) -> Gate:
        if self.passed != _holds(self.value, self.comparison, self.threshold):
            raise ValueError(f"gate {self.name}: 'passed' contradicts {self.value} {self.comparison} {self.threshold}")
        return self

    def sentence(self) -> str:
        """`name: value, must be <= threshold (detail)`."""
        shown = "not finite" if self.value is None else f"{self.value:.4g}"
        return f"{self.name}: {shown}, must be {self.comparison} {self.threshold:.4g}" + (f" ({self.detail})" if self.detail else "")


def gate(name: str, recipe: str, value: float, comparison: Literal["<=", ">="], threshold: float, detail: str = "") -> Gate:
    """Compare a value with a threshold."""
    finite = value if math.isfinite(value) else None
    passed = _holds(finite, comparison, threshold)
    return Gate(name=name, recipe=recipe, value=finite, threshold=threshold, comparison=comparison, passed=passed, detail=detail)


def require(gates: Sequence[Gate], *, where: str) -> None:
    """Stop when a gate failed.

    Raises:
        GateError: Names every failed gate, its value, its threshold and why.
    """
    failed = [g for g in gates if not g.passed]
    if failed:
        raise GateError(
            f"{len(failed)} of {len(gates)} gates failed:\n" + "\n".join(f"    [{g.recipe}] {g.sentence()}" for g in failed),
            where=where,
            hint="do not ship this plan; the report shows the error per layer and per operator",
        )


def _holds(value: float | None, comparison: str, threshold: float) -> bool:
    if value is None:
        return False
    return value <= threshold if comparison == "<=" else value >= threshold
