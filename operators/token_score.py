"""TokenScore: the log-probability of one given token per row, FP32. What the scoring graph scores paths with."""

from __future__ import annotations

import torch
from onnxscript import script
from torch import Tensor

from .log_probability import LOG_PROBABILITY, LogProbability, SoftmaxParts
from .operator import ONEREC, Operator, Spec, op


def token_score_reference(logits_NV: Tensor, tokens_BW: Tensor) -> tuple[Tensor]:
    """FP32 [B, W]; where there is one row per request, all its tokens are read from that row."""
    batch, width = tokens_BW.shape
    log_probability = logits_NV.float().log_softmax(-1).view(batch, -1, logits_NV.shape[1])
    return (log_probability.expand(-1, width, -1).gather(2, tokens_BW[..., None])[..., 0],)


@script(ONEREC, default_opset=op)
def TokenScore(logits, tokens):
    largest, log_sum = SoftmaxParts(logits)
    rows = op.Shape(logits, end=1)
    # [rows, tokens per row]: one row per request reads all of that request's tokens.
    grouped = op.Reshape(tokens, op.Concat(rows, op.Constant(value_ints=[-1]), axis=0))
    chosen = LogProbability(op.GatherElements(logits, grouped, axis=1), largest, log_sum)
    return op.Reshape(chosen, op.Shape(tokens))


token_score = Operator(
    name="TokenScore",
    reference=token_score_reference,
    function=TokenScore,
    helpers=LOG_PROBABILITY,
    outputs=lambda logits, tokens: (Spec(torch.float32, tuple(tokens.shape)),),
)
