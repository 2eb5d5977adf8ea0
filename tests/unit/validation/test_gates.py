"""A gate cannot lie: what is not finite never passes, and `passed` cannot contradict the numbers."""

from __future__ import annotations

import math
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onerec_trt.core.errors import GateError
from onerec_trt.validation.gates import Gate, gate, require
from pydantic import ValidationError

Comparison = Literal["<=", ">="]
COMPARISONS: tuple[Comparison, ...] = ("<=", ">=")


@pytest.mark.parametrize("comparison", COMPARISONS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_never_passes(value: float, comparison: Comparison) -> None:
    made = gate("error", "fp8-row", value, comparison, 0.0)
    assert (made.passed, made.value) == (False, None)


@pytest.mark.parametrize(
    ("value", "comparison", "passed"),
    [(1.1, "<=", True), (1.11, "<=", False), (0.9, ">=", False), (1.1, ">=", True), (math.nextafter(1.1, 2), "<=", False)],
)
def test_the_threshold_itself_passes(value: float, comparison: Comparison, passed: bool) -> None:
    assert gate("error", "fp8-row", value, comparison, 1.1).passed is passed


@given(st.floats(), st.sampled_from(COMPARISONS), st.floats(allow_nan=False, allow_infinity=False))
def test_a_stored_gate_survives_only_as_it_was_decided(value: float, comparison: Comparison, threshold: float) -> None:
    stored = gate("error", "fp8-row", value, comparison, threshold).model_dump(mode="json")
    assert Gate.model_validate(stored).passed == stored["passed"]
    with pytest.raises(ValidationError, match="contradicts"):
        Gate.model_validate(stored | {"passed": not stored["passed"]})


@pytest.mark.parametrize(
    "change", [{"value": math.inf}, {"value": math.nan}, {"threshold": math.nan}, {"threshold": math.inf}, {"verdict": "fine"}]
)
def test_a_stored_gate_holds_finite_numbers_and_nothing_else(change: dict[str, Any]) -> None:
    stored: dict[str, Any] = gate("overlap@10", "fp8-row", 0.95, ">=", 0.9).model_dump(mode="json")
    with pytest.raises(ValidationError):
        Gate.model_validate(stored | change)


def test_require_names_every_failed_gate_with_value_threshold_and_reason() -> None:
    gates = [
        gate("overlap@10", "fp8-row", 0.95, ">=", 0.9),
        gate("operator Fp8Linear", "fp8-row", 2e-4, "<=", 1e-6, "worst of 15: step1.blocks.0.cross.q"),
        gate("scoring KL", "fp8-paper", math.nan, "<=", 1.1),
    ]
    with pytest.raises(GateError) as caught:
        require(gates, where="out/report.html")
    message = str(caught.value)
    assert "2 of 3 gates failed" in message
    assert "[fp8-row] operator Fp8Linear: 0.0002, must be <= 1e-06 (worst of 15: step1.blocks.0.cross.q)" in message
    assert "[fp8-paper] scoring KL: not finite, must be <= 1.1" in message
    assert "overlap@10" not in message
    assert (caught.value.exit_code, caught.value.where) == (2, "out/report.html")


def test_require_is_silent_when_all_passed() -> None:
    require([gate("overlap@10", "fp8-row", 0.95, ">=", 0.9)], where="")
