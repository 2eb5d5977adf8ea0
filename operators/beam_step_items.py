"""BeamStepItems1, 2, 3: the beam step that follows a catalogue, for each of the three tokens of a semantic ID.

As BeamStep, with the log-softmax over the whole codebook, so that scores stay the model's log-probabilities. But only codes that
the index and the request's rules allow are candidates, and a request keeps no more beams than it asks for. Where there are fewer
candidates, the places behind them hold the score -inf, the parent 0 and the token -1.
"""

from __future__ import annotations

import numpy as np
import torch
from onnx import TensorProto, helper
from onnxscript import script
from torch import Tensor

from ..core.difference import difference
from ..models.ordering import stable_topk
from ..runtime.item_index import WORD
from .beam_step import TIE_BAND
from .item_mask import BEAMS, first_mask, second_mask, third_mask
from .log_probability import LOG_PROBABILITY, LogProbability, SoftmaxParts
from .operator import DETAIL, ONEREC, Array, Attributes, Operator, Spec, op

NO_TOKEN = -1
# Stand for -inf, NaN and no candidate in the order; scores lie above, and top-k gets finite numbers only.
_LOWEST, _BELOW, _NONE = -(2.0**126), -(2.0**127), -(1.75 * 2.0**127)

POWERS_OF_TWO = helper.make_tensor("powers_of_two", TensorProto.INT64, [WORD], [1 << bit for bit in range(WORD)])

Beams = tuple[Tensor, Tensor, Tensor]


def constrained_beams(logits_NV: Tensor, scores_BR: Tensor, mask_BRV: Tensor, limits_B3: Tensor, width: int) -> Beams:
    """Scores FP32 [B, width], parent row INT64 [B, width] and token INT64 [B, width] of the best candidates, best first.

    A row with NaN or +inf, or of -inf alone, has no probabilities: its scores are NaN and come after those of all other rows.
    """
    total_BRV = logits_NV.float().log_softmax(-1).view_as(mask_BRV) + scores_BR[..., None]
    order_BRV = torch.where(total_BRV.isnan(), _BELOW, total_BRV.clamp(min=_LOWEST))
    order_BRV = torch.where(mask_BRV, order_BRV, _NONE)
    vocabulary = mask_BRV.shape[2]
    _, flat_BW = stable_topk(order_BRV.flatten(1), width)
    place_W = torch.arange(width, device=flat_BW.device)
    found_BW = mask_BRV.flatten(1).gather(1, flat_BW) & (place_W < limits_B3[:, BEAMS, None])
    best_BW = torch.where(found_BW, total_BRV.flatten(1).gather(1, flat_BW), -torch.inf)
    return best_BW, torch.where(found_BW, flat_BW // vocabulary, 0), torch.where(found_BW, flat_BW % vocabulary, NO_TOKEN)


def beam_step_items_1_reference(
    logits_NV: Tensor, scores_BR: Tensor, first_classes_V: Tensor, limits_B3: Tensor, allowed_BC: Tensor, *, width: int
) -> Beams:
    """The first token."""
    mask_BRV = first_mask(first_classes_V, limits_B3, allowed_BC, scores_BR.shape[1])
    return constrained_beams(logits_NV, scores_BR, mask_BRV, limits_B3, width)


def beam_step_items_2_reference(
    logits_NV: Tensor,
    scores_BR: Tensor,
    first_BR: Tensor,
    pair_bits_VN: Tensor,
    pair_ranks_VN: Tensor,
    pair_classes_P: Tensor,
    limits_B3: Tensor,
    allowed_BC: Tensor,
    *,
    width: int,
) -> Beams:
    """The second token of beams whose first is `first_BR`, INT64."""
    mask_BRV = second_mask(first_BR, pair_bits_VN, pair_ranks_VN, pair_classes_P, limits_B3, allowed_BC)
    return constrained_beams(logits_NV, scores_BR, mask_BRV, limits_B3, width)


def beam_step_items_3_reference(
    logits_NV: Tensor,
    scores_BR: Tensor,
    first_BR: Tensor,
    second_BR: Tensor,
    pair_bits_VN: Tensor,
    pair_ranks_VN: Tensor,
    pair_rows_P: Tensor,
    entries_S: Tensor,
    limits_B3: Tensor,
    allowed_BC: Tensor,
    excluded_BE: Tensor,
    *,
    width: int,
) -> Beams:
    """The third token of beams of two, INT64."""
    mask_BRV = third_mask(first_BR, second_BR, pair_bits_VN, pair_ranks_VN, pair_rows_P, entries_S, limits_B3, allowed_BC, excluded_BE)
    return constrained_beams(logits_NV, scores_BR, mask_BRV, limits_B3, width)


def mask_of(inputs: list[Tensor]) -> Tensor:
    """Bool [B, R, V] of the inputs of any of the three."""
    if len(inputs) == 5:
        classes, limits, allowed = inputs[2:]
        return first_mask(classes, limits, allowed, inputs[1].shape[1])
    return second_mask(*inputs[2:]) if len(inputs) == 8 else third_mask(*inputs[2:])


def compare_item_beams(actual: list[Array], expected: list[Array], inputs: list[Array], _attributes: Attributes) -> float:
    """Difference of the sorted scores; each kept candidate must be allowed and really have the score it was given.

    Places without a candidate must be the same, and NaN and infinities must stand at the same places.
    """
    mask_BRV = mask_of([torch.from_numpy(np.asarray(each)) for each in inputs]).numpy()
    logits, scores = (array.astype(np.float64) for array in inputs[:2])
    with np.errstate(invalid="ignore", divide="ignore"):  # rows without probabilities
        shifted = logits - logits.max(1, keepdims=True)
        total = (shifted - np.log(np.exp(shifted).sum(1, keepdims=True))).reshape(mask_BRV.shape) + scores[..., None]
    parent, token = actual[1].astype(np.int64), actual[2].astype(np.int64)
    found = token != NO_TOKEN
    if not np.array_equal(found, expected[2] != NO_TOKEN) or (parent[~found] != 0).any():
        return float("inf")
    vocabulary = mask_BRV.shape[2]
    if ((parent < 0) | (parent >= scores.shape[1]) | (token >= vocabulary) | (token < NO_TOKEN)).any():
        return float("inf")
    request = np.arange(len(total))[:, None]
    claimed = np.where(found, total[request, parent, token.clip(0)], -np.inf)
    allowed = mask_BRV[request, parent, token.clip(0)] | ~found
    band = TIE_BAND * np.maximum(1, np.abs(np.where(np.isfinite(expected[0]), expected[0], 0)))
    wrong = ~np.isclose(claimed, expected[0].astype(np.float64), rtol=0, atol=band, equal_nan=True) | ~allowed
    flat = parent * vocabulary + token
    repeated = any(len(np.unique(row[kept])) != kept.sum() for row, kept in zip(flat, found, strict=True))
    return float("inf") if wrong.any() or repeated else difference(actual[0], expected[0])


@script(DETAIL, default_opset=op)
def WordBits(words):
    """FP32 [..., 32] of INT32 words [...]: bit by bit, lowest first; and before each bit the number of those that are set."""
    # A negative word stands for the unsigned one: Mod takes the sign of the divisor.
    unsigned = op.Mod(op.Cast(words, to=7), op.Constant(value_int=4294967296))
    shifted = op.Div(op.Unsqueeze(unsigned, op.Constant(value_ints=[-1])), op.Constant(value=POWERS_OF_TWO))
    bits = op.Cast(op.Mod(shifted, op.Constant(value_int=2)), to=1)
    before = op.CumSum(bits, op.Constant(value_int=-1), exclusive=1)
    return bits, before


@script(DETAIL, default_opset=op)
def ClassAllowed(classes, limits, allowed):
    """Bool [B, M] of category classes INT64 [B, M]: allowed, or the request does not care."""
    one = op.Constant(value_ints=[1])
    restricted = op.Slice(limits, op.Constant(value_ints=[2]), op.Constant(value_ints=[3]), one)
    free = op.Equal(restricted, op.CastLike(op.Constant(value_int=0), restricted))
    listed = op.GatherElements(allowed, classes, axis=1)
    return op.Or(op.Greater(listed, op.CastLike(op.Constant(value_int=0), listed)), free)


@script(DETAIL, default_opset=op)
def KeepItems(total, mask, limits, code, vocabulary, width: int):
    """The best of candidates [B, M] in flat order, with the parent row and the token of each.

    `code` INT64 [B, M] is the flat index row * V + token of each candidate, `vocabulary` INT64 [1] is V.
    """
    one = op.Constant(value_ints=[1])
    keep = op.Reshape(op.Constant(value_int=width), one)
    finite = op.Where(op.IsNaN(total), op.Constant(value_float=_BELOW), op.Max(total, op.Constant(value_float=_LOWEST)))
    order = op.Where(mask, finite, op.Constant(value_float=_NONE))
    _best, position = op.TopK(order, keep, axis=1)
    place = op.Range(op.Constant(value_int=0), op.Constant(value_int=width), op.Constant(value_int=1))
    beams = op.Cast(op.Slice(limits, op.Constant(value_ints=[0]), one, one), to=7)
    kept = op.Cast(op.GatherElements(op.Cast(mask, to=6), position, axis=1), to=9)
    found = op.And(kept, op.Less(place, beams))
    best = op.Where(found, op.GatherElements(total, position, axis=1), op.Constant(value_float=-float("inf")))
    flat = op.GatherElements(code, position, axis=1)
    parent = op.Where(found, op.Div(flat, vocabulary), op.Constant(value_int=0))
    token = op.Where(found, op.Mod(flat, vocabulary), op.Constant(value_int=-1))
    return best, parent, token


@script(DETAIL, default_opset=op)
def AllTotals(logits, scores):
    """Totals FP32 [B, R * V] of every candidate, and their flat indices INT64 [B, R * V]."""
    largest, log_sum = SoftmaxParts(logits)
    row = op.Reshape(scores, op.Constant(value_ints=[-1, 1]))
    total = op.Add(LogProbability(logits, largest, log_sum), row)
    by_request = op.Reshape(total, op.Concat(op.Shape(scores, end=1), op.Constant(value_ints=[-1]), axis=0))
    count = op.Squeeze(op.Shape(by_request, start=1))
    numbers = op.Range(op.Constant(value_int=0), count, op.Constant(value_int=1))
    return by_request, op.Expand(op.Unsqueeze(numbers, op.Constant(value_ints=[0])), op.Shape(by_request))


@script(ONEREC, default_opset=op)
def BeamStepItems1(logits, scores, first_classes, limits, allowed, width: int):
    total, flat = AllTotals(logits, scores)
    vocabulary = op.Shape(logits, start=1)
    code = op.Mod(flat, vocabulary)
    classes = op.Cast(op.Gather(first_classes, code, axis=0), to=7)
    zero = op.Constant(value_int=0)
    mask = op.And(op.GreaterOrEqual(classes, zero), ClassAllowed(op.Max(classes, zero), limits, allowed))
    best, parent, token = KeepItems(total, mask, limits, flat, vocabulary, width=width)
    return best, parent, token


@script(ONEREC, default_opset=op)
def BeamStepItems2(logits, scores, first, pair_bits, pair_ranks, pair_classes, limits, allowed, width: int):
    zero = op.Constant(value_int=0)
    one = op.Constant(value_ints=[1])
    rows = op.Reshape(op.Max(first, zero), op.Constant(value_ints=[-1]))
    vocabulary = op.Shape(logits, start=1)
    bits, before = WordBits(op.Gather(pair_bits, rows, axis=0))
    start = op.Unsqueeze(op.Cast(op.Gather(pair_ranks, rows, axis=0), to=7), op.Constant(value_ints=[-1]))
    rank = op.Add(start, op.Cast(before, to=7))
    # Words become rows of the codebook, whose last word it may cut.
    by_row = op.Constant(value_ints=[0, -1])
    begin = op.Constant(value_ints=[0])
    bit = op.Slice(op.Reshape(bits, by_row), begin, vocabulary, one)
    number = op.Slice(op.Reshape(rank, by_row), begin, vocabulary, one)
    alive = op.Reshape(op.GreaterOrEqual(first, zero), op.Constant(value_ints=[-1, 1]))
    valid = op.And(op.Greater(bit, op.Constant(value_float=0.0)), alive)
    total, flat = AllTotals(logits, scores)
    shape = op.Shape(total)
    pair = op.Reshape(op.Where(valid, number, zero), shape)
    classes = op.Cast(op.Gather(pair_classes, pair, axis=0), to=7)
    mask = op.And(op.Reshape(valid, shape), ClassAllowed(classes, limits, allowed))
    best, parent, token = KeepItems(total, mask, limits, flat, vocabulary, width=width)
    return best, parent, token


@script(DETAIL, default_opset=op)
def EntryRange(first, second, pair_bits, pair_ranks, pair_rows):
    """First entry of each beam [B, R] and the one behind its last, INT64; both 0 where it has none."""
    zero = op.Constant(value_int=0)
    last = op.Constant(value_ints=[-1])
    column = op.Max(second, zero)
    size = op.Constant(value_int=32)
    words = op.Shape(pair_bits, start=1)
    place = op.Add(op.Mul(op.Max(first, zero), words), op.Div(column, size))
    bits, before = WordBits(op.Gather(op.Reshape(pair_bits, last), place, axis=0))
    lane = op.Unsqueeze(op.Mod(column, size), last)
    bit = op.Squeeze(op.GatherElements(bits, lane, axis=-1), last)
    earlier = op.Cast(op.Squeeze(op.GatherElements(before, lane, axis=-1), last), to=7)
    alive = op.And(op.GreaterOrEqual(first, zero), op.GreaterOrEqual(second, zero))
    known = op.And(op.Greater(bit, op.Constant(value_float=0.0)), alive)
    rank = op.Cast(op.Gather(op.Reshape(pair_ranks, last), place, axis=0), to=7)
    pair = op.Where(known, op.Add(rank, earlier), zero)
    begin = op.Where(known, op.Cast(op.Gather(pair_rows, pair, axis=0), to=7), zero)
    end = op.Where(known, op.Cast(op.Gather(pair_rows, op.Add(pair, op.Constant(value_int=1)), axis=0), to=7), zero)
    return begin, end


@script(DETAIL, default_opset=op)
def Excluded(begin, end, limits, excluded, vocabulary):
    """INT64 [B, R * V]: 1 at row * V + number of an excluded entry, counted from the first of its row.

    `begin` and `end` INT64 [B, R] are the entries of each row.
    """
    one = op.Constant(value_ints=[1])
    zero = op.Constant(value_int=0)
    entry = op.Cast(excluded, to=7)
    listed = op.Range(zero, op.Squeeze(op.Shape(excluded, start=1)), op.Constant(value_int=1))
    count = op.Cast(op.Slice(limits, one, op.Constant(value_ints=[2]), one), to=7)
    counted = op.Unsqueeze(op.Less(listed, count), op.Constant(value_ints=[-1]))
    number = op.Unsqueeze(entry, op.Constant(value_ints=[-1]))
    after = op.GreaterOrEqual(number, op.Unsqueeze(begin, one))
    before = op.Less(number, op.Unsqueeze(end, one))
    within = op.Cast(op.And(op.And(after, before), counted), to=1)  # [B, E, R]; an entry is in one row at most
    row = op.ArgMax(within, axis=2, keepdims=0)
    found = op.Greater(op.ReduceMax(within, op.Constant(value_ints=[2]), keepdims=0), op.Constant(value_float=0.0))
    candidates = op.Mul(op.Shape(begin, start=1), vocabulary)
    place = op.Add(op.Mul(row, vocabulary), op.Sub(entry, op.GatherElements(begin, row, axis=1)))
    target = op.Where(found, place, candidates)  # the last place takes those in no row
    shape = op.Concat(op.Shape(begin, end=1), op.Add(candidates, one), axis=0)
    none = op.Expand(zero, shape)
    marked = op.ScatterElements(none, target, op.Expand(op.Constant(value_int=1), op.Shape(target)), axis=1)
    return op.Slice(marked, op.Constant(value_ints=[0]), candidates, one)


@script(ONEREC, default_opset=op)
def BeamStepItems3(logits, scores, first, second, pair_bits, pair_ranks, pair_rows, entries, limits, allowed, excluded, width: int):
    zero = op.Constant(value_int=0)
    last = op.Constant(value_ints=[-1])
    vocabulary = op.Shape(logits, start=1)
    begin, end = EntryRange(first, second, pair_bits, pair_ranks, pair_rows)
    # The candidates of a row are its entries, in the order of their codes: a row has at most as many as the codebook.
    column = op.Constant(value_ints=[-1, 1])
    number = op.Range(zero, op.Squeeze(vocabulary), op.Constant(value_int=1))
    entry = op.Add(op.Reshape(begin, column), number)
    inside = op.Less(entry, op.Reshape(end, column))
    word = op.Cast(op.Gather(entries, op.Where(inside, entry, zero), axis=0), to=7)
    shift = op.Constant(value_int=65536)
    code = op.Mod(word, shift)
    largest, log_sum = SoftmaxParts(logits)
    total = op.Add(LogProbability(op.GatherElements(logits, code, axis=1), largest, log_sum), op.Reshape(scores, column))
    by_request = op.Concat(op.Shape(scores, end=1), last, axis=0)
    row_count = op.Squeeze(op.Shape(scores, start=1))
    row = op.Mod(op.Range(zero, op.Squeeze(op.Shape(logits, end=1)), op.Constant(value_int=1)), row_count)
    flat = op.Add(op.Mul(op.Reshape(row, column), vocabulary), code)
    classes = op.Reshape(op.Div(word, shift), by_request)
    listed = op.Equal(Excluded(begin, end, limits, excluded, vocabulary), zero)
    mask = op.And(op.And(op.Reshape(inside, by_request), ClassAllowed(classes, limits, allowed)), listed)
    best, parent, token = KeepItems(op.Reshape(total, by_request), mask, limits, op.Reshape(flat, by_request), vocabulary, width=width)
    return best, parent, token


def _specs(_logits: Tensor, scores: Tensor, *_others: Tensor, width: int) -> tuple[Spec, ...]:
    shape = (scores.shape[0], width)
    return (Spec(torch.float32, shape), Spec(torch.int64, shape), Spec(torch.int64, shape))


beam_step_items_1 = Operator(
    name="BeamStepItems1",
    reference=beam_step_items_1_reference,
    function=BeamStepItems1,
    helpers=(*LOG_PROBABILITY, AllTotals, ClassAllowed, KeepItems),
    outputs=_specs,
    compare=compare_item_beams,
)
beam_step_items_2 = Operator(
    name="BeamStepItems2",
    reference=beam_step_items_2_reference,
    function=BeamStepItems2,
    helpers=(*LOG_PROBABILITY, AllTotals, WordBits, ClassAllowed, KeepItems),
    outputs=_specs,
    compare=compare_item_beams,
)
beam_step_items_3 = Operator(
    name="BeamStepItems3",
    reference=beam_step_items_3_reference,
    function=BeamStepItems3,
    helpers=(*LOG_PROBABILITY, WordBits, EntryRange, Excluded, ClassAllowed, KeepItems),
    outputs=_specs,
    compare=compare_item_beams,
)
LEVEL_OF = {operator.name: level for level, operator in enumerate((beam_step_items_1, beam_step_items_2, beam_step_items_3), 1)}
