"""Errors against FP32, compared with values computed by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onerec_trt.core.artifacts import write_json
from onerec_trt.validation.fp32_reference import Reference
from onerec_trt.validation.scoring_parity import ErrorRatios, ScoringErrors, scoring_errors, scoring_gates

# One request, two paths with probabilities 1/4 and 1/4 in FP32; renormalized over the paths: 1/2 and 1/2.
FP32 = np.log(np.array([[[0.5, 1.0, 0.5], [0.25, 1.0, 1.0]]], np.float32))
SIDS = np.zeros((1, 2, 3), np.int64)


@pytest.fixture
def reference() -> Reference:
    return Reference(SIDS, FP32.sum(-1), FP32.cumsum(-1).min(1), FP32, FP32)


def test_hand_computed_errors(reference: Reference) -> None:
    engine = np.log(np.array([[[0.5, 1.0, 0.5], [0.125, 1.0, 1.0]]], np.float32))  # second path half as likely
    quantized = FP32 + np.float32(0.1)  # every token 0.1 nat off, but the distribution over the paths is the same
    errors = scoring_errors(engine, quantized, reference)
    assert errors.engine == pytest.approx(math.log(2) / 6)
    assert errors.quantized == pytest.approx(0.1, rel=1e-5)
    expected_kl = 0.5 * math.log(0.5 / (2 / 3)) + 0.5 * math.log(0.5 / (1 / 3))
    assert errors.engine_kl == pytest.approx(math.sqrt(2 * expected_kl))
    assert errors.quantized_kl == pytest.approx(0, abs=1e-6)
    assert errors.ratio == pytest.approx(math.log(2) / 6 / 0.1, rel=1e-5)


def test_errors_are_means_over_requests() -> None:
    fp32 = np.concatenate([FP32, FP32])
    reference = Reference(np.zeros((2, 2, 3), np.int64), fp32.sum(-1), fp32.cumsum(-1).min(1), fp32, fp32)
    engine = fp32.copy()
    engine[1] -= 0.3
    assert scoring_errors(engine, fp32, reference).engine == pytest.approx(0.15, rel=1e-5)


def test_an_exact_engine_passes_whatever_the_quantized_model_does(reference: Reference) -> None:
    errors = scoring_errors(FP32, FP32, reference)
    assert (errors.ratio, errors.kl_ratio) == (0, 0)
    assert all(gate.passed for gate in scoring_gates("fp16", errors, 1.1))


def test_an_engine_that_errs_where_the_quantized_model_is_exact_fails(reference: Reference) -> None:
    shifted = FP32.copy()
    shifted[0, 0] += 0.5
    gates = scoring_gates("fp16", scoring_errors(shifted, FP32, reference), 1.1)
    assert [gate.passed for gate in gates] == [False] * 4


@pytest.mark.parametrize(("low", "passed"), [(1.09, True), (1.11, False)])
def test_the_limit_holds_for_the_lower_end(low: float, passed: bool) -> None:
    within = ErrorRatios(mean=1.0, mean_interval=(0.9, 1.2), typical=1.0, typical_interval=(0.9, 1.2))
    for kind in ("mean", "typical"):
        ratios = within.model_copy(update={kind: 1.2, f"{kind}_interval": (low, 1.3)})
        errors = ScoringErrors(engine=0.012, quantized=0.01, engine_kl=0.012, quantized_kl=0.01, ratios=ratios, kl_ratios=within)
        named = {gate.name: gate.passed for gate in scoring_gates("fp8-row", errors, 1.1)}
        assert named.pop("scoring log-probabilities" + (", mean" if kind == "mean" else "")) is passed
        assert set(named.values()) == {True}


def worse(errors_nW3: np.ndarray, how: str) -> np.ndarray:
    """Three halves of the errors everywhere, or forty times those of one request in twenty, about three times the mean."""
    if how == "everywhere":
        return errors_nW3 * 1.5
    changed = errors_nW3.copy()
    changed[::20] *= 40
    return changed


@pytest.mark.parametrize(("how", "gate"), [("everywhere", "scoring KL"), ("somewhere", "scoring log-probabilities, mean")])
def test_an_engine_that_is_worse_is_told_from_one_that_is_not(
    make_hand_made_reference: Callable[..., Reference], how: str, gate: str
) -> None:
    """Errors with the heavy tails of routers that fall the other way: log-normal."""
    rng = np.random.default_rng(0)
    reference = make_hand_made_reference(np.zeros((600, 8, 3)), np.sort(rng.normal(size=(600, 8)))[:, ::-1])
    engine, quantized = (0.01 * rng.normal(size=(600, 8, 3)) * np.exp(rng.normal(size=(600, 1, 1))) for _ in range(2))
    fp32_nW3 = reference.scoring_nW3

    def failed(errors_nW3: np.ndarray) -> set[str]:
        given = [(fp32_nW3 + each).astype(np.float32) for each in (errors_nW3, quantized)]
        return {each.name for each in scoring_gates("fp8-row", scoring_errors(*given, reference), 1.1) if not each.passed}

    assert failed(engine) == set()
    assert gate in failed(worse(engine, how))


@pytest.mark.parametrize("broken", ["engine", "quantized"])
def test_nan_fails_and_can_be_stored(reference: Reference, broken: str, tmp_path: Path) -> None:
    nan = np.full_like(FP32, np.nan)
    inexact = FP32 * np.array([[[1.5], [1.0]]], np.float32)
    errors = scoring_errors(nan, inexact, reference) if broken == "engine" else scoring_errors(inexact, nan, reference)
    assert not any(gate.passed for gate in scoring_gates("fp8-row", errors, 1.1))
    write_json(tmp_path / "errors.json", errors.model_dump(mode="json"))
    again = ScoringErrors.model_validate(json.loads((tmp_path / "errors.json").read_text()))
    assert math.isnan(getattr(again, broken))


def test_one_bad_value_among_thousands_fails(make_hand_made_reference: Callable[..., Reference]) -> None:
    rng = np.random.default_rng(0)
    reference = make_hand_made_reference(np.zeros((100, 10, 3)), np.sort(rng.normal(size=(100, 10)))[:, ::-1])
    engine = reference.scoring_nW3.copy()
    engine[63, 4, 1] = np.nan
    assert not any(gate.passed for gate in scoring_gates("fp8-row", scoring_errors(engine, reference.scoring_nW3 + 1, reference), 1.1))
