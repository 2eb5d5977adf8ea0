"""BeamStep: log-softmax, add the beams' scores, keep the best. FP32, equal scores to the smaller flat index, NaN after -inf.

The candidates of a request lie in groups of neighbors. The `width` best candidates lie in the `width` groups whose best
candidate is best, equal ones to the earlier group: every candidate that a left-out group holds has `width` better or
earlier ones, the first of each kept group. So two small top-k replace one over all candidates, and candidates are read once.
"""

from __future__ import annotations

import numpy as np
import torch
from onnxscript import script
from torch import Tensor

from ..core.difference import difference
from ..core.errors import ExportError
from ..models.ordering import stable_topk
from .log_probability import LOG_PROBABILITY, LogProbability, SoftmaxParts
from .operator import DETAIL, ONEREC, Array, Attributes, Operator, Spec, op

TIE_BAND = 1e-5  # nat; candidates closer than this may be ordered either way by FP32 sums in another order
_LARGEST_GROUP = 64  # of 512 x 8192 candidates at width 512: 65536 groups, then 32768 candidates of the groups kept
_LOWEST, _BELOW = -(2.0**126), -(2.0**127)  # stand for -inf and NaN in the order; scores lie above, and top-k gets finite numbers only
_EXACT_IN_FP32 = 1 << 24  # group numbers are sorted as FP32, the type in which every TensorRT has top-k


def beam_groups(rows: int, vocabulary: int, width: int) -> dict[str, int]:
    """Attributes of a BeamStep of `rows` beams per request: `width`, candidates in a group, and groups to keep.

    Raises:
        ExportError: There are more groups than FP32 can number.
    """
    assert 1 <= width <= rows * vocabulary, f"{width} beams of {rows * vocabulary} candidates"
    group = next(size for size in (_LARGEST_GROUP >> shift for shift in range(7)) if vocabulary % size == 0)
    groups = rows * vocabulary // group
    if groups >= _EXACT_IN_FP32:
        what = f"{rows} beams of a codebook of {vocabulary} make {groups} groups of candidates, the most are {_EXACT_IN_FP32 - 1}"
        raise ExportError(what, where="export.beam", hint="keep fewer beams, or choose a codebook that is a multiple of 64")
    return {"width": width, "group": group, "kept": min(width, groups)}


def beam_step_reference(logits_NV: Tensor, scores_BR: Tensor, *, width: int, group: int, kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores FP32 [B, width], parent row INT64 [B, width] and token INT64 [B, width], best first.

    A row with NaN or +inf, or of -inf alone, has no probabilities: its scores are NaN and come after those of all other rows.
    """
    batch, rows = scores_BR.shape
    total_BRV = logits_NV.float().log_softmax(-1).view(batch, rows, -1) + scores_BR[..., None]
    best_BW, flat_BW = stable_topk(total_BRV.flatten(1), width)
    vocabulary = logits_NV.shape[1]
    return best_BW, flat_BW // vocabulary, flat_BW % vocabulary


def compare_beams(actual: list[Array], expected: list[Array], inputs: list[Array], attributes: Attributes) -> float:
    """Difference of the sorted scores; each kept candidate must also really have the score it was given, within the tie band.

    NaN and infinities must stand at the same places.
    """
    logits, scores = (array.astype(np.float64) for array in inputs)
    with np.errstate(invalid="ignore", divide="ignore"):  # rows without probabilities
        shifted = logits - logits.max(1, keepdims=True)
        total = (shifted - np.log(np.exp(shifted).sum(1, keepdims=True))).reshape(*scores.shape, -1) + scores[..., None]
    parent, token = actual[1].astype(np.int64), actual[2].astype(np.int64)
    beyond = (parent < 0) | (parent >= scores.shape[1]) | (token < 0) | (token >= total.shape[2])
    if beyond.any():
        return float("inf")
    claimed = total[np.arange(len(total))[:, None], parent, token]
    wrong = ~np.isclose(claimed, expected[0].astype(np.float64), rtol=0, atol=TIE_BAND * np.maximum(1, np.abs(expected[0])), equal_nan=True)
    repeated = any(len(np.unique(row)) != len(row) for row in parent * total.shape[2] + token)
    return float("inf") if wrong.any() or repeated else difference(actual[0], expected[0])


@script(DETAIL, default_opset=op)
def BeamOrder(total):
    """FP32 scores as finite numbers in the order of BeamStep: NaN after -inf."""
    return op.Where(op.IsNaN(total), op.Constant(value_float=_BELOW), op.Max(total, op.Constant(value_float=_LOWEST)))


@script(ONEREC, default_opset=op)
def BeamStep(logits, scores, width: int, group: int, kept: int):
    one = op.Constant(value_ints=[1])
    rest = op.Constant(value_ints=[-1])
    batch = op.Shape(scores, end=1)
    vocabulary = op.Shape(logits, start=1)
    size = op.Reshape(op.Constant(value_int=group), one)
    before = op.Reshape(scores, op.Constant(value_ints=[-1, 1]))
    largest, log_sum = SoftmaxParts(logits)

    # The best of each group. Rounding keeps the order, so that it has the score it will have as a candidate.
    groups = op.Reshape(logits, op.Concat(rest, size, axis=0))
    best_of = op.Reshape(op.ReduceMax(groups, one, keepdims=0), op.Concat(op.Shape(logits, end=1), rest, axis=0))
    group_total = op.Add(LogProbability(best_of, largest, log_sum), before)
    by_request = op.Reshape(BeamOrder(group_total), op.Concat(batch, rest, axis=0))
    _best, unordered = op.TopK(by_request, op.Reshape(op.Constant(value_int=kept), one), axis=1)
    # In the order of their numbers, so that equal candidates stand in their flat order: TopK gives the earlier one first.
    ordered, _order = op.TopK(op.Cast(unordered, to=1), op.Reshape(op.Constant(value_int=kept), one), axis=1, largest=0)
    number = op.Cast(ordered, to=7)

    # The candidates of these groups: those of all requests lie behind each other, `first` is a request's first group or row.
    request = op.Unsqueeze(op.Range(op.Constant(value_int=0), op.Squeeze(batch), op.Constant(value_int=1)), one)
    per_row = op.Div(vocabulary, size)
    row_count = op.Shape(scores, start=1)
    row = op.Add(op.Div(number, per_row), op.Mul(request, row_count))
    place = op.Add(number, op.Mul(request, op.Mul(row_count, per_row)))
    chosen = op.Gather(groups, op.Reshape(place, rest), axis=0)
    own = op.Gather(op.Concat(largest, log_sum, before, axis=1), op.Reshape(row, rest), axis=0)
    own_largest, own_log_sum, past = op.Split(own, axis=1, num_outputs=3)
    total = op.Add(LogProbability(chosen, own_largest, own_log_sum), past)
    candidates = op.Reshape(total, op.Concat(batch, rest, axis=0))
    _best, position = op.TopK(BeamOrder(candidates), op.Reshape(op.Constant(value_int=width), one), axis=1)
    best = op.GatherElements(candidates, position, axis=1)
    flat = op.Add(op.Mul(op.GatherElements(number, op.Div(position, size), axis=1), size), op.Mod(position, size))
    return best, op.Div(flat, vocabulary), op.Mod(flat, vocabulary)


def _specs(logits: Tensor, scores: Tensor, *, width: int, group: int, kept: int) -> tuple[Spec, ...]:
    shape = (scores.shape[0], width)
    return (Spec(torch.float32, shape), Spec(torch.int64, shape), Spec(torch.int64, shape))


beam_step = Operator(
    name="BeamStep",
    reference=beam_step_reference,
    function=BeamStep,
    helpers=(*LOG_PROBABILITY, BeamOrder),
    outputs=_specs,
    compare=compare_beams,
)
