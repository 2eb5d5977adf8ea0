"""ContextNorm: RMSNorm of one key or value chunk per head, laid out for attention, padding zeroed."""

from __future__ import annotations

import torch
from onnxscript import script
from torch import Tensor

from .functions import NormInFp32
from .operator import ONEREC, Operator, Spec, op
from .rms_norm import norm_in_fp32


def context_norm_reference(chunk_BSX: Tensor, weight_d: Tensor, lengths_B: Tensor, *, epsilon: float) -> tuple[Tensor]:
    """FP16 [B, G, S, d] of FP16 [B, S, G * d]; tokens at or beyond a request's length are zero."""
    d_head = weight_d.shape[0]
    norm_BSGd = norm_in_fp32(chunk_BSX.unflatten(-1, (-1, d_head)), weight_d, epsilon).half()
    valid_BS = torch.arange(chunk_BSX.shape[1], device=chunk_BSX.device) < lengths_B[:, None]
    return (torch.where(valid_BS[:, :, None, None], norm_BSGd, 0).transpose(1, 2),)


@script(ONEREC, default_opset=op)
def ContextNorm(chunk, weight, lengths, epsilon: float):
    groups = op.Concat(op.Constant(value_ints=[0, 0, -1]), op.Shape(weight), axis=0)
    norm = op.Cast(NormInFp32(op.Reshape(chunk, groups), weight, epsilon=epsilon), to=10)
    tokens = op.Squeeze(op.Shape(chunk, start=1, end=2))
    position = op.Range(op.Constant(value_int=0), tokens, op.Constant(value_int=1))
    valid = op.Less(position, op.Unsqueeze(lengths, op.Constant(value_ints=[1])))
    mask = op.Unsqueeze(valid, op.Constant(value_ints=[2, 3]))
    zero = op.CastLike(op.Constant(value_float=0.0), norm)
    return op.Transpose(op.Where(mask, norm, zero), perm=[0, 2, 1, 3])


def _specs(chunk: Tensor, weight: Tensor, lengths: Tensor, *, epsilon: float) -> tuple[Spec, ...]:
    batch, tokens, width = chunk.shape
    d_head = weight.shape[0]
    return (Spec(torch.float16, (batch, width // d_head, tokens, d_head)),)


context_norm = Operator(name="ContextNorm", reference=context_norm_reference, function=ContextNorm, helpers=(NormInFp32,), outputs=_specs)
