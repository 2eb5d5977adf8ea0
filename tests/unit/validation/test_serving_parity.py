"""The serving graph's output against the scoring graph's word on it, on hand-made lists."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onerec_trt.validation.fp32_reference import Reference
from onerec_trt.validation.gates import Gate
from onerec_trt.validation.serving_parity import Found, serving_errors, serving_gates

MakeReference = Callable[..., Reference]
A, B, C, D, X = (1, 1, 1), (1, 1, 2), (1, 2, 1), (2, 1, 1), (3, 3, 3)
CODEBOOK = 8
ITEMS, SCORES, LEFT_OUT = "items in range, distinct and in order", "scores are the scoring graph's", "no better item left out"


def tokens(scores_nW: Any) -> Any:
    """Log-probabilities that add up to these scores, the same at every step."""
    return np.repeat(np.asarray(scores_nW, np.float32)[..., None] / 3, 3, 2)


def gates(reference: Reference, sids: Any, scores: Any, own: Any, along_reference: Any, engine: str = "onnxruntime") -> dict[str, Gate]:
    found = Found(np.asarray(sids, np.int64), np.asarray(scores, np.float32), tokens(own))
    errors = serving_errors(found, tokens(along_reference), reference, CODEBOOK, ["r0", "r1"])
    return {gate.name: gate for gate in serving_gates("fp8-row", errors, engine)}


def failed(found: dict[str, Gate]) -> set[str]:
    return {name for name, gate in found.items() if not gate.passed}


@pytest.fixture
def reference(make_hand_made_reference: MakeReference) -> Reference:
    return make_hand_made_reference([[A, B, C]], [[-1.0, -2.0, -3.0]])


def test_an_engine_that_finds_what_fp32_finds_passes(reference: Reference) -> None:
    scores = [[-1.0, -2.0, -3.0]]
    assert failed(gates(reference, [[A, B, C]], scores, scores, scores)) == set()


@pytest.mark.parametrize("wrong", [-1.001, np.nan, 0.0, -np.inf])
def test_one_score_that_the_scoring_graph_does_not_give_fails(reference: Reference, wrong: float) -> None:
    own = [[-1.0, -2.0, -3.0]]
    found = gates(reference, [[A, B, C]], [[wrong, -2.0, -3.0]], own, own)
    assert SCORES in failed(found)
    assert "request r0, item 1" in found[SCORES].detail


@pytest.mark.parametrize(
    ("sids", "scores", "what"),
    [
        ([[A, B, (1, 8, 1)]], [[-1.0, -2.0, -3.0]], "out of range"),
        ([[A, B, (-1, 1, 1)]], [[-1.0, -2.0, -3.0]], "out of range"),
        ([[A, B, A]], [[-1.0, -2.0, -3.0]], "an item twice"),
        ([[A, C, B]], [[-1.0, -3.0, -2.0]], "behind a worse one"),
    ],
)
def test_malformed_items_are_described(reference: Reference, sids: Any, scores: Any, what: str) -> None:
    found = gates(reference, sids, scores, scores, [[-1.0, -2.0, -3.0]])
    assert ITEMS in failed(found)
    assert what in found[ITEMS].detail


def test_a_better_item_that_was_left_out_is_named_with_its_step(reference: Reference) -> None:
    found = gates(reference, [[A, C, X]], [[-1.0, -3.0, -9.0]], [[-1.0, -3.0, -9.0]], [[-1.0, -2.0, -3.0]])
    assert failed(found) == {LEFT_OUT}
    assert "item [1, 1, 2]" in found[LEFT_OUT].detail
    assert "lost at step 2" in found[LEFT_OUT].detail


def test_an_item_that_this_engine_holds_for_worse_may_be_left_out(reference: Reference) -> None:
    found = gates(reference, [[A, B, D]], [[-1.0, -2.0, -3.1]], [[-1.0, -2.0, -3.1]], [[-1.0, -2.0, -3.2]])
    assert failed(found) == set()


def test_plans_may_differ_by_the_noise_of_their_engine(reference: Reference) -> None:
    along_reference = [[-1.1, -2.0, -3.0]]  # the engine is up to 0.1 nat off FP32, 0.033 on average
    close, far, often = [[-1.18, -2.0, -3.0]], [[-1.25, -2.0, -3.0]], [[-1.14, -2.04, -3.04]]
    assert failed(gates(reference, [[A, B, C]], close, along_reference, along_reference, "tensorrt")) == set()
    assert failed(gates(reference, [[A, B, C]], close, along_reference, along_reference)) == {SCORES}
    assert SCORES in failed(gates(reference, [[A, B, C]], far, along_reference, along_reference, "tensorrt"))
    assert failed(gates(reference, [[A, B, C]], often, along_reference, along_reference, "tensorrt")) == {f"{SCORES}, mean"}
