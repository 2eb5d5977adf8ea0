"""Faults in few requests are told from near-ties of routers, which two correct engines have as often."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onerec_trt.validation.few_requests import few_requests_gate
from onerec_trt.validation.fp32_reference import Reference
from onerec_trt.validation.gates import Gate

REQUESTS = 600
Judge = Callable[[np.ndarray, np.ndarray], Gate]


@pytest.fixture
def judge(make_hand_made_reference: Callable[..., Reference]) -> Judge:
    """The gate on the errors [n] of an engine and of the quantized model."""

    def gate(engine_n: np.ndarray, quantized_n: np.ndarray) -> Gate:
        n = len(engine_n)
        reference = make_hand_made_reference(np.zeros((n, 2, 3)), np.zeros((n, 2)))
        given = (reference.scoring_nW3 + errors_n[:, None, None].astype(np.float32) for errors_n in (engine_n, quantized_n))
        return few_requests_gate("fp8-row", *given, reference, [f"r{row}" for row in range(n)])

    return gate


def routers_that_fell_the_other_way(*rows: int) -> np.ndarray:
    errors_n = np.full(REQUESTS, 0.01)
    errors_n[list(rows)] = 0.2
    return errors_n


def test_near_ties_on_both_sides_pass(judge: Judge) -> None:
    found = judge(routers_that_fell_the_other_way(*range(9)), routers_that_fell_the_other_way(*range(5, 11)))
    assert found.passed
    assert found.detail.startswith("5 of 600 requests are 3 x as wrong as in the quantized model, 2 the other way; the worst is r0:")


def test_a_better_engine_passes(judge: Judge) -> None:
    assert judge(routers_that_fell_the_other_way(), routers_that_fell_the_other_way(*range(40))).passed


@pytest.mark.parametrize(("affected", "passed"), [(9, True), (10, False), (30, False)])
def test_ten_requests_of_six_hundred_are_enough(judge: Judge, affected: int, passed: bool) -> None:
    """Clopper and Pearson, 10 of 10: 10 / 600 * (2 * 0.005^(1/10) - 1) is 0.003; of 9 it is 0.0017."""
    found = judge(routers_that_fell_the_other_way(*range(affected)), routers_that_fell_the_other_way())
    assert found.passed is passed
    assert found.name == "scoring log-probabilities, few requests"
    assert "the worst is r0: 0.2 nat against 0.01" in found.sentence()


def test_errors_that_are_next_to_nothing_are_not_compared(judge: Judge) -> None:
    quantized_n = np.full(REQUESTS, 0.01)
    quantized_n[:100] = 1e-7
    engine_n = quantized_n.copy()
    engine_n[:100] = 2e-6
    assert judge(engine_n, quantized_n).passed


def test_nan_fails(judge: Judge) -> None:
    errors_n = routers_that_fell_the_other_way()
    errors_n[7] = np.nan
    assert not judge(errors_n, routers_that_fell_the_other_way()).passed
    assert not judge(routers_that_fell_the_other_way(), errors_n).passed
