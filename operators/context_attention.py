"""ContextAttention: all rows of a request attend to that request's context; grouped-query, softmax in FP32.

The beams of a user share keys and values, so they are query rows of one attention, not a batch of them.
"""

from __future__ import annotations

import torch
from onnxscript import script
from torch import Tensor

from .functions import Product
from .operator import ONEREC, Operator, Spec, op

PRESCALE = 2.0**-3  # about 1 / sqrt of the usual head widths, 32 to 128


def context_attention_reference(query_ND: Tensor, key_BGSd: Tensor, value_BGSd: Tensor, lengths_B: Tensor, *, rows: int) -> tuple[Tensor]:
    """FP16 [B * rows, D]; a context of length 0 gives 0. Query head h reads group h // (H / G).

    Keys and values beyond a request's length are zero, as ContextNorm leaves them.
    """
    _, groups, tokens, d_head = key_BGSd.shape
    query_BGXd = rows_of_groups(query_ND.float(), rows, groups, d_head)
    valid_B11S = valid_tokens(lengths_B, tokens)
    score = (query_BGXd @ key_BGSd.float().transpose(2, 3) * d_head**-0.5).masked_fill(~valid_B11S, -torch.inf)
    probability = torch.where(valid_B11S, score.softmax(-1), 0)
    return (rows_of_requests((probability @ value_BGSd.float()).half(), rows),)


def rows_of_groups(query_ND: Tensor, rows: int, groups: int, d_head: int) -> Tensor:
    """[B, G, X, d]: the X = H / G * rows query rows that attend to the same keys, head after head."""
    query_BRGHd: Tensor = query_ND.unflatten(0, (-1, rows)).unflatten(2, (groups, -1, d_head))
    return query_BRGHd.permute(0, 2, 3, 1, 4).flatten(2, 3)


def rows_of_requests(attended_BGXd: Tensor, rows: int) -> Tensor:
    """[B * rows, D]: back from `rows_of_groups`."""
    attended_BGHRd: Tensor = attended_BGXd.unflatten(2, (-1, rows))
    return attended_BGHRd.permute(0, 3, 1, 2, 4).flatten(2).flatten(0, 1)


def valid_tokens(lengths_B: Tensor, tokens: int) -> Tensor:
    """BOOL [B, 1, 1, S]: whether a token is one of its request."""
    return (torch.arange(tokens, device=lengths_B.device) < lengths_B[:, None])[:, None, None]


@script(ONEREC, default_opset=op)
def ContextAttention(query, key, value, lengths, rows: int):
    batch = op.Shape(key, end=1)
    groups = op.Shape(key, start=1, end=2)
    width = op.Shape(key, start=3)
    row_count = op.Reshape(op.Constant(value_int=rows), op.Constant(value_ints=[1]))
    rest = op.Constant(value_ints=[-1])
    split = op.Reshape(query, op.Concat(batch, row_count, groups, rest, width, axis=0))
    stacked = op.Transpose(split, perm=[0, 2, 3, 1, 4])
    query_rows = op.Reshape(stacked, op.Concat(batch, groups, rest, width, axis=0))
    # Before the product, whose FP16 result has less room, only a power of two, which rounds nothing; the rest in FP32.
    smaller = op.Cast(op.Mul(op.Cast(query_rows, to=1), op.Constant(value_float=PRESCALE)), to=10)
    rest_of_scale = op.Div(op.Constant(value_float=1 / PRESCALE), op.Sqrt(op.Cast(width, to=1)))
    score = op.Mul(op.Cast(Product(smaller, op.Transpose(key, perm=[0, 1, 3, 2])), to=1), rest_of_scale)
    tokens = op.Squeeze(op.Shape(key, start=2, end=3))
    position = op.Range(op.Constant(value_int=0), tokens, op.Constant(value_int=1))
    valid = op.Unsqueeze(op.Less(position, op.Unsqueeze(lengths, op.Constant(value_ints=[1]))), op.Constant(value_ints=[1, 2]))
    # The lowest finite value instead of -inf: a context without tokens then gives no NaN, but the mean of its values.
    probability = op.Softmax(op.Where(valid, score, op.Constant(value_float=-3.0e38)), axis=-1)
    # Without the casts of Product TensorRT finds its fused attention kernel, but that one accumulates in FP16: on an H200 the
    # error against FP32 grew to 1.2 x that of the packed model with 512 tokens, and to 1.6 x with 3000.
    mean = Product(op.Cast(probability, to=10), value)
    # Values there are zero, and so is their mean; this says it whatever they are, as the kernel does.
    some = op.Unsqueeze(op.Greater(lengths, op.Constant(value_int=0)), op.Constant(value_ints=[1, 2, 3]))
    attended = op.Where(some, mean, op.CastLike(op.Constant(value_float=0.0), mean))
    split_back = op.Reshape(attended, op.Concat(batch, groups, rest, row_count, width, axis=0))
    return op.Reshape(op.Transpose(split_back, perm=[0, 3, 1, 2, 4]), op.Shape(query))


context_attention = Operator(
    name="ContextAttention",
    reference=context_attention_reference,
    function=ContextAttention,
    helpers=(Product,),
    outputs=lambda query, key, value, lengths, *, rows: (Spec(torch.float16, tuple(query.shape)),),
)
