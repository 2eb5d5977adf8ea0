"""The serving graph's output against the scoring graph's word on it, on hand-made lists."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onerec_trt.validation.fp32_reference import Reference
from onerec_trt.validation.gates import Gate
from onerec_trt.validation.outputs import Outputs
from onerec_trt.validation.serving_parity import contains, places, serving_errors, serving_gates

MakeReference = Callable[..., Reference]
A, B, C, D, X = (1, 1, 1), (1, 1, 2), (1, 2, 1), (2, 1, 1), (3, 3, 3)
CODEBOOK = 8
ITEMS, SCORES, LEFT_OUT = "items in range, distinct and in order", "scores are the scoring graph's", "no better item left out"


def tokens(scores_nW: Any) -> Any:
    """Log-probabilities that add up to these scores, the same at every step."""
    return np.repeat(np.asarray(scores_nW, np.float32)[..., None] / 3, 3, -1)


def gates(
    reference: Reference,
    sids: Any,
    scores: Any,
    own: Any,
    along_reference: Any,
    engine: str = "onnxruntime",
    quantized: tuple[Any, Any, Any] | None = None,
    fp32: Any = None,
) -> dict[str, Gate]:
    """`quantized`: the quantized model's beams, its last kept score, and what the engine says of these beams. `fp32`: what
    FP32 says of the items found. Default of both: as the engine."""
    beams, cutoff, of_beams = quantized or (reference.sids_nW3, np.asarray(own).min(1), along_reference)
    outputs = Outputs(
        sids_nW3=np.asarray(sids, np.int64),
        scores_nW=np.asarray(scores, np.float32),
        own_nW3=tokens(own),
        fp32_nW3=tokens(own if fp32 is None else fp32),
        scoring_nW3=tokens(along_reference),
        quantized_nW3=tokens(along_reference),
        quantized_sids_nW3=np.asarray(beams, np.int64),
        quantized_cutoffs_n3=tokens(np.asarray(cutoff, np.float32)).cumsum(-1),
        quantized_own_nW3=tokens(of_beams),
    )
    return {gate.name: gate for gate in serving_gates("fp8-row", serving_errors(outputs, reference, CODEBOOK, ["r0", "r1"]), engine)}


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


def test_items_that_the_engine_overrates_may_take_the_place_of_others(reference: Reference) -> None:
    """Off by 0.4 nat along FP32's beams, and by 1 nat where it found something else."""
    own = [[-1.0, -2.1, -2.2]]
    found = gates(reference, [[A, D, X]], own, own, [[-1.0, -2.4, -3.0]], fp32=[[-1.0, -3.1, -3.2]])
    assert failed(found) == set()


def test_an_item_of_the_quantized_models_beams_alone_counts_as_well(reference: Reference) -> None:
    """FP32 has its doubts about X, this engine has none, and keeps something worse instead."""
    scores, along = [[-1.0, -2.0, -2.9]], [[-1.0, -2.0, -3.0]]
    left_out = gates(reference, [[A, B, D]], scores, scores, along, quantized=([[A, B, X]], [-2.5], [[-1.0, -2.0, -2.5]]))
    assert failed(left_out) == {LEFT_OUT}
    assert "item [3, 3, 3] of the quantized model" in left_out[LEFT_OUT].detail
    found = gates(reference, [[A, B, X]], scores, scores, along, quantized=([[A, B, X]], [-2.5], [[-1.0, -2.0, -2.5]]))
    assert failed(found) == set()


def test_the_quantized_models_last_beam_bounds_what_may_be_dropped(make_hand_made_reference: MakeReference) -> None:
    """FP32 errs by 5 nat somewhere, so that its own last beam says nothing; the engine is the quantized model to the bit."""
    reference = make_hand_made_reference([[A, B, C], [A, B, C]], [[-1.0, -2.0, -3.0], [-6.0, -7.0, -8.0]])
    along, beams = [[-1.0, -2.0, -3.0], [-1.0, -2.0, -3.0]], [[A, B, C], [A, B, C]]
    found = gates(reference, [[A, B, D], [A, B, C]], along, along, along, quantized=(beams, [-3.5, -3.0], along))
    assert failed(found) == {LEFT_OUT}


def test_plans_may_differ_by_the_noise_of_their_engine(reference: Reference) -> None:
    along_reference = [[-1.1, -2.0, -3.0]]  # the engine is up to 0.1 nat off FP32, 0.033 on average
    close, far, often = [[-1.18, -2.0, -3.0]], [[-1.25, -2.0, -3.0]], [[-1.14, -2.04, -3.04]]
    assert failed(gates(reference, [[A, B, C]], close, along_reference, along_reference, "tensorrt")) == set()
    assert failed(gates(reference, [[A, B, C]], close, along_reference, along_reference)) == {SCORES}
    assert SCORES in failed(gates(reference, [[A, B, C]], far, along_reference, along_reference, "tensorrt"))
    assert failed(gates(reference, [[A, B, C]], often, along_reference, along_reference, "tensorrt")) == {f"{SCORES}, mean"}


def test_an_item_stands_where_it_comes_first_and_a_missing_one_behind_all() -> None:
    found, wanted = np.array([[A, B, A], [C, D, B]]), np.array([[A, B], [A, D]])
    assert places(found, wanted).tolist() == [[0, 1], [3, 1]]
    assert contains(found, wanted).tolist() == [[True, True], [False, True]]
