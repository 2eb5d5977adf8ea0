"""What the operator gate makes of single E4M3 steps in samples so small that one of them costs more than the threshold.

Two correct implementations round FP32 values that differ in the last bit, so now and then a code falls on the other side of a
rounding boundary. One step is at most an eighth of its value: of n codes of equal size it changes the difference by
(1/8)^2 / (2 n) = 1 / (128 n).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ..core.arrays import Array
from ..operators.fp8 import E4M3
from ..operators.moe_experts_norm import PAIRS
from ..operators.operator import FP8_THRESHOLD, Call
from ..operators.registry import FP8_EXPERTS
from ..operators.single_node import as_arrays

_OF_EQUAL_SIZE = 1 / 128
# From so many codes on, a step of a value of two standard deviations costs no more than the threshold, which then holds alone.
SMALL_SAMPLE = int(4 * _OF_EQUAL_SIZE / FP8_THRESHOLD)
_LARGE_VALUE = 9  # its square in units of the mean square: three standard deviations
_WITH_HIDDEN_CODES = (*FP8_EXPERTS, *(pair.name for pair in PAIRS.values() if pair.experts.name in FP8_EXPERTS))


def without_single_step(call: Call, actual: list[Array], expected: list[Array]) -> list[Array]:
    """The actual outputs with one code set right, where few codes were made and one alone is wrong, by one step.

    Codes of a norm that is fused with experts are right where they are those of the actual sum.

    Args:
        call: The operator's call; codes are those of its outputs that are E4M3.
        actual: Outputs under test, codes as the FP32 values they stand for.
        expected: Those of the reference, likewise.
    """
    made = [place for place, output in enumerate(call.outputs) if output.dtype == E4M3]
    if not made or sum(expected[place].size for place in made) >= SMALL_SAMPLE:
        return actual
    if any(mine.shape != right.shape for mine, right in zip(actual, expected, strict=True)):
        return actual
    if call.operator.name in PAIRS:
        pair = PAIRS[call.operator.name]
        expected = [actual[0], *pair.norm_of(actual[0], as_arrays(call.inputs[pair.inputs :]), call.attributes)]
    steps = [np.abs(_ordered(actual[place]) - _ordered(expected[place])) for place in made]
    if sum(int(step.sum()) for step in steps) != 1:
        return actual
    return [expected[place] if place in made else array for place, array in enumerate(actual)]


def threshold_of(call: Call) -> float:
    """The operator's threshold; where an operator makes few hidden codes, which no output shows, what one step of a large one costs."""
    if call.operator.name in _WITH_HIDDEN_CODES:
        return max(call.operator.threshold, _LARGE_VALUE * _OF_EQUAL_SIZE / _hidden_codes(call))
    if call.operator.name == "ContextAttentionFp8":
        return max(call.operator.threshold, _OF_EQUAL_SIZE / _attending_rows(call))
    return call.operator.threshold


def _hidden_codes(call: Call) -> int:
    """Codes that FP8 experts make of their hidden activations: one per channel of every selected row."""
    gate_up, (index_NK,) = call.inputs[2], [each for each in call.inputs if each.dtype == torch.int64]
    return index_NK.numel() * (len(gate_up) // int(call.attributes["experts"]) // 2)


def _attending_rows(call: Call) -> int:
    """Rows of all heads that attend: each has one probability at most that is nearly its whole weight."""
    query_ND, key_codes = call.inputs[:2]
    return query_ND.numel() // key_codes.shape[-1]


def _ordered(values: Array) -> NDArray[np.int64]:
    """E4M3 values as integers in their order: neighbors differ by 1, both zeros are 0."""
    bits = torch.from_numpy(values.astype(np.float32)).to(E4M3).view(torch.uint8).numpy().astype(np.int64)
    return np.where(bits & 0x80, -(bits & 0x7F), bits & 0x7F)
