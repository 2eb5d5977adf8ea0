"""BeamStep: log-softmax, add the beams' scores, keep the best. FP32, equal scores to the smaller flat index."""

from __future__ import annotations

import numpy as np
import torch
from onnxscript import script
from torch import Tensor

from ..core.difference import difference
from ..models.ordering import stable_topk
from .operator import ONEREC, Array, Attributes, Operator, Spec, op

TIE_BAND = 1e-5  # nat; candidates closer than this may be ordered either way by FP32 sums in another order


def beam_step_meaning(logits_NV: Tensor, scores_BR: Tensor, *, width: int, per_row: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores FP32 [B, width], parent row INT64 [B, width] and token INT64 [B, width], best first.

    `per_row` = min(width, V): a row cannot contribute more candidates, so an implementation may
    select that many in each row first.
    """
    batch, rows = scores_BR.shape
    total_BRV = logits_NV.float().log_softmax(-1).view(batch, rows, -1) + scores_BR[..., None]
    best_BW, flat_BW = stable_topk(total_BRV.flatten(1), width)
    vocabulary = logits_NV.shape[1]
    return best_BW, flat_BW // vocabulary, flat_BW % vocabulary


def compare_beams(actual: list[Array], expected: list[Array], inputs: list[Array], attributes: Attributes) -> float:
    """Difference of the sorted scores; each kept candidate must also really have the score it was given, within the tie band."""
    logits, scores = (array.astype(np.float64) for array in inputs)
    shifted = logits - logits.max(1, keepdims=True)
    total = (shifted - np.log(np.exp(shifted).sum(1, keepdims=True))).reshape(*scores.shape, -1) + scores[..., None]
    parent, token = actual[1].astype(np.int64), actual[2].astype(np.int64)
    if parent.min() < 0 or parent.max() >= scores.shape[1] or token.min() < 0 or token.max() >= total.shape[2]:
        return float("inf")
    claimed = total[np.arange(len(total))[:, None], parent, token]
    wrong = np.abs(claimed - expected[0].astype(np.float64)) > TIE_BAND * np.maximum(1, np.abs(expected[0]))
    repeated = any(len(np.unique(row)) != len(row) for row in parent * total.shape[2] + token)
    return float("inf") if wrong.any() or repeated else difference(actual[0], expected[0])


@script(ONEREC, default_opset=op)
def BeamStep(logits, scores, width: int, per_row: int):
    one = op.Constant(value_ints=[1])
    row_k = op.Reshape(op.Constant(value_int=per_row), one)
    total = op.Add(op.LogSoftmax(op.Cast(logits, to=1), axis=-1), op.Reshape(scores, op.Constant(value_ints=[-1, 1])))
    # Two levels: ONNX TopK gives equal values in index order, so the flat order of ties is kept.
    value, token = op.TopK(total, row_k, axis=1)
    flat_shape = op.Concat(op.Shape(scores, end=1), op.Constant(value_ints=[-1]), axis=0)
    best, position = op.TopK(op.Reshape(value, flat_shape), op.Reshape(op.Constant(value_int=width), one), axis=1)
    parent = op.Div(position, row_k)
    return best, parent, op.GatherElements(op.Reshape(token, flat_shape), position, axis=1)


def _specs(logits: Tensor, scores: Tensor, *, width: int, per_row: int) -> tuple[Spec, ...]:
    shape = (scores.shape[0], width)
    return (Spec(torch.float32, shape), Spec(torch.int64, shape), Spec(torch.int64, shape))


beam_step = Operator(name="BeamStep", meaning=beam_step_meaning, function=BeamStep, outputs=_specs, compare=compare_beams)
