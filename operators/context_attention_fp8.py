"""ContextAttentionFp8: attention over the context whose two products are E4M3 x E4M3; softmax in FP32.

Queries are quantized here, one scale per row and head; keys and values come as the codes of context_codes.py. Probabilities are
quantized as 2^(s - m + 8): s is the score in powers of two, m the largest one of the row, rounded up to an integer. So they are at most
256, and a kernel that does not know m yet makes the same codes with an earlier one, but for a factor that is a power of two.
"""

from __future__ import annotations

import math

import torch
from onnxscript import script
from torch import Tensor

from . import fp8
from .context_attention import rows_of_groups, rows_of_requests, valid_tokens
from .context_codes import keys_of_blocks, values_of_blocks
from .functions import QuantizeByScale, QuantizeRows
from .operator import FP8_THRESHOLD, ONEREC, Operator, Spec, op

LOG2_E = math.log2(math.e)
TOP = 8.0  # the largest probability is 2^8, the largest power of two among E4M3 values


def context_attention_fp8_reference(
    query_ND: Tensor, key_codes: Tensor, key_scale: Tensor, value_codes: Tensor, value_scale: Tensor, lengths_B: Tensor, *, rows: int
) -> tuple[Tensor]:
    """FP16 [B * rows, D]; a context of length 0 gives 0. Query head h reads group h // (H / G).

    Args:
        query_ND: FP16.
        key_codes: [B, G, T, 128, d] of T blocks of tokens.
        key_scale: FP32 [1].
        value_codes: [B, G, T, d, 128].
        value_scale: FP32 [1].
        lengths_B: INT64; values beyond are zero, keys are not read.
        rows: Query rows of a request.
    """
    _, groups, _, _, d_head = key_codes.shape
    query_BGXd = rows_of_groups(query_ND, rows, groups, d_head)
    keys, values = (keys_of_blocks(key_codes), key_scale), (values_of_blocks(value_codes), value_scale)
    return (rows_of_requests(attend_to_codes(query_BGXd, keys, values, lengths_B).half(), rows),)


def attend_to_codes(query_BGXd: Tensor, keys: tuple[Tensor, Tensor], values: tuple[Tensor, Tensor], lengths_B: Tensor) -> Tensor:
    """FP32 [B, G, X, d], before anything is rounded to FP16.

    Args:
        query_BGXd: Of any type; quantized here.
        keys, values: Codes as FP32 [B, G, S, d] in the order of tokens, and their scale.
        lengths_B: INT64.
    """
    (key_BGSd, key_scale), (value_BGSd, value_scale) = keys, values
    query_codes, query_scale = fp8.quantize_rows(query_BGXd)
    valid_B11S = valid_tokens(lengths_B, key_BGSd.shape[2])
    factor_BGX1 = query_scale * (key_scale * (LOG2_E * key_BGSd.shape[-1] ** -0.5))
    score = (query_codes.float() @ key_BGSd.transpose(2, 3) * factor_BGX1).masked_fill(~valid_B11S, -torch.inf)
    top_BGX1 = score.amax(-1, keepdim=True).ceil() - TOP
    probability = torch.where(valid_B11S, (score - top_BGX1).exp2(), 0)
    weight_BGX1 = value_scale / probability.sum(-1, keepdim=True)
    attended = fp8.to_e4m3(probability).float() @ value_BGSd * weight_BGX1
    return torch.where((lengths_B > 0)[:, None, None, None], attended, 0)


@script(ONEREC, default_opset=op)
def ContextAttentionFp8(query, key_codes, key_scale, value_codes, value_scale, lengths, rows: int):
    unit = op.Constant(value_float=1.0)
    heads = op.Shape(key_codes, end=2)
    batch = op.Shape(key_codes, end=1)
    groups = op.Shape(key_codes, start=1, end=2)
    width = op.Shape(key_codes, start=4)
    rest = op.Constant(value_ints=[-1])
    row_count = op.Reshape(op.Constant(value_int=rows), op.Constant(value_ints=[1]))
    split = op.Reshape(query, op.Concat(batch, row_count, groups, rest, width, axis=0))
    stacked = op.Transpose(split, perm=[0, 2, 3, 1, 4])
    query_rows = op.Reshape(stacked, op.Concat(heads, rest, width, axis=0))
    query_codes, query_scale = QuantizeRows(op.Cast(query_rows, to=1))
    per_head = op.Concat(heads, rest, width, axis=0)
    key = op.Reshape(op.DequantizeLinear(key_codes, unit), per_head)
    product = op.MatMul(op.DequantizeLinear(query_codes, unit), op.Transpose(key, perm=[0, 1, 3, 2]))
    of_keys = op.Mul(key_scale, op.Div(op.Constant(value_float=LOG2_E), op.Sqrt(op.Cast(width, to=1))))
    score = op.Mul(product, op.Mul(query_scale, of_keys))
    tokens = op.Squeeze(op.Shape(key, start=2, end=3))
    position = op.Range(op.Constant(value_int=0), tokens, op.Constant(value_int=1))
    valid = op.Unsqueeze(op.Less(position, op.Unsqueeze(lengths, op.Constant(value_ints=[1]))), op.Constant(value_ints=[1, 2]))
    # The lowest finite value instead of -inf: a context without tokens then gives no NaN.
    masked = op.Where(valid, score, op.Constant(value_float=-3.0e38))
    largest = op.Ceil(op.ReduceMax(masked, op.Constant(value_ints=[-1]), keepdims=1))
    exponent = op.Sub(masked, op.Sub(largest, op.Constant(value_float=TOP)))
    probability = op.Where(valid, op.Pow(op.Constant(value_float=2.0), exponent), op.Constant(value_float=0.0))
    total = op.ReduceSum(probability, op.Constant(value_ints=[-1]), keepdims=1)
    codes = QuantizeByScale(probability, unit)
    by_place = op.Reshape(op.DequantizeLinear(value_codes, unit), op.Concat(rest, width, op.Constant(value_ints=[8, 4, 2, 2]), axis=0))
    value = op.Reshape(op.Transpose(by_place, perm=[0, 2, 4, 3, 5, 1]), per_head)
    mean = op.Mul(op.MatMul(op.DequantizeLinear(codes, unit), value), op.Div(value_scale, total))
    some = op.Unsqueeze(op.Greater(lengths, op.Constant(value_int=0)), op.Constant(value_ints=[1, 2, 3]))
    attended = op.Cast(op.Where(some, mean, op.Constant(value_float=0.0)), to=10)
    split_back = op.Reshape(attended, op.Concat(heads, rest, row_count, width, axis=0))
    return op.Reshape(op.Transpose(split_back, perm=[0, 3, 1, 2, 4]), op.Shape(query))


context_attention_fp8 = Operator(
    name="ContextAttentionFp8",
    reference=context_attention_fp8_reference,
    function=ContextAttentionFp8,
    helpers=(QuantizeRows, QuantizeByScale),
    outputs=lambda query, key_codes, key_scale, value_codes, value_scale, lengths, *, rows: (Spec(torch.float16, tuple(query.shape)),),
    threshold=FP8_THRESHOLD,  # of the codes of probabilities, which no output shows
)
