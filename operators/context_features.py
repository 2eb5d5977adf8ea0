"""ContextFeatures: a token's features in the columns of its pathway, so that one product is the linears of all pathways."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from onnxscript import script
from torch import Tensor

from .operator import ONEREC, Operator, Spec, op


def context_features_reference(features_BSF: Tensor, lengths_BP: Tensor, *, width: int) -> tuple[Tensor]:
    """FP16 [B * S, P * K]: each of P pathways has K = `width` columns, of which a token's features fill the first F; the rest is zero.

    Pathways follow each other in a request, as long as `lengths_BP` says. A token behind them has no pathway and is zero.
    """
    position_S1 = torch.arange(features_BSF.shape[1], device=features_BSF.device)[:, None]
    ends_BP = lengths_BP.cumsum(1)
    inside_BSP = (position_S1 >= (ends_BP - lengths_BP)[:, None]) & (position_S1 < ends_BP[:, None])
    padded_BS1K = F.pad(features_BSF, (0, width - features_BSF.shape[2]))[:, :, None]
    placed_BSPK = torch.where(inside_BSP[..., None], padded_BS1K, 0)
    return (placed_BSPK.flatten(0, 1).flatten(1),)


@script(ONEREC, default_opset=op)
def ContextFeatures(features, lengths, width: int):
    one = op.Constant(value_ints=[1])
    tokens = op.Squeeze(op.Shape(features, start=1, end=2))
    position = op.Unsqueeze(op.Range(op.Constant(value_int=0), tokens, op.Constant(value_int=1)), one)
    ends = op.CumSum(lengths, op.Constant(value_int=1))
    from_start = op.GreaterOrEqual(position, op.Unsqueeze(op.Sub(ends, lengths), one))
    inside = op.And(from_start, op.Less(position, op.Unsqueeze(ends, one)))
    columns = op.Reshape(op.Constant(value_int=width), one)
    padding = op.Sub(columns, op.Shape(features, start=2))
    padded = op.Pad(features, op.Concat(op.Constant(value_ints=[0, 0, 0, 0, 0]), padding, axis=0))
    # One choice for all pathways: a builder makes one kernel of it, which writes the columns of each where they belong.
    zero = op.CastLike(op.Constant(value_float=0.0), features)
    placed = op.Where(op.Unsqueeze(inside, op.Constant(value_ints=[3])), op.Unsqueeze(padded, op.Constant(value_ints=[2])), zero)
    row = op.Mul(columns, op.Shape(lengths, start=1))
    return op.Reshape(placed, op.Concat(op.Constant(value_ints=[-1]), row, axis=0))


def _specs(features: Tensor, lengths: Tensor, *, width: int) -> tuple[Spec, ...]:
    batch, tokens, _ = features.shape
    return (Spec(torch.float16, (batch * tokens, lengths.shape[1] * width)),)


context_features = Operator(name="ContextFeatures", reference=context_features_reference, function=ContextFeatures, outputs=_specs)
