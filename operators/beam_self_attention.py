"""BeamSelfAttention{1,2}: one new position attends to itself and the one or two positions before it.

The history is the projected q, k, v of earlier steps as they were computed; a parent index picks a
beam's ancestor, so no cache is ever reordered. BOS is one row that all beams of a request share.
The first step needs no operator: attending to oneself alone returns the value.
"""

from __future__ import annotations

import torch
from onnxscript import script
from torch import Tensor

from .operator import DETAIL, ONEREC, Operator, Spec, op


def one_before_reference(qkv_N3D: Tensor, bos_B3D: Tensor, *, rows: int, heads: int) -> tuple[Tensor]:
    """FP16 [B * rows, D] from this step's projections and those of BOS."""
    batch = bos_B3D.shape[0]
    query, *own = _split(qkv_N3D.view(batch, rows, -1), heads)
    _, *bos = _split(bos_B3D[:, None], heads)
    return (_attend(query, [tuple(bos), tuple(own)]),)


def two_before_reference(qkv_N3D: Tensor, bos_B3D: Tensor, first_M3D: Tensor, parent_BR: Tensor, *, rows: int, heads: int) -> tuple[Tensor]:
    """Like above with the first token's projections [B * W, 3D]; row r of a request descends from its row parent[r]."""
    batch = bos_B3D.shape[0]
    query, *own = _split(qkv_N3D.view(batch, rows, -1), heads)
    _, *bos = _split(bos_B3D[:, None], heads)
    first = first_M3D.view(batch, -1, first_M3D.shape[-1])
    ancestor = first.gather(1, parent_BR[..., None].expand(-1, -1, first.shape[-1]))
    _, *first_kv = _split(ancestor, heads)
    return (_attend(query, [tuple(bos), tuple(first_kv), tuple(own)]),)


def _split(qkv_BR3D: Tensor, heads: int) -> list[Tensor]:
    """Query, key and value, FP32 [B, R, H, d] each."""
    return list(qkv_BR3D.float().unflatten(-1, (3, heads, -1)).unbind(2))


def _attend(query_BRHd: Tensor, positions: list[tuple[Tensor, ...]]) -> Tensor:
    root = query_BRHd.shape[-1] ** 0.5
    score = torch.stack([(query_BRHd * key).sum(-1) / root for key, _ in positions], -1)
    weights = score.softmax(-1).unbind(-1)
    attended = sum((w[..., None] * value for w, (_, value) in zip(weights, positions, strict=True)), torch.zeros(()))
    return attended.half().flatten(2).flatten(0, 1)


# The functions keep to forms that TensorRT turns into one pass over the projections: each is widened to FP32 after the split
# (a cast before it would be written to memory), and the softmax of two or three numbers is written out.


@script(DETAIL, default_opset=op)
def SplitHeads(qkv, batch, rows, heads: int):
    """Query, key and value, FP32 [B, R, H, d] each; batch and rows are INT64 [1]."""
    head_count = op.Reshape(op.Constant(value_int=heads), op.Constant(value_ints=[1]))
    shape = op.Concat(batch, rows, op.Constant(value_ints=[3]), head_count, op.Constant(value_ints=[-1]), axis=0)
    query, key, value = op.Split(op.Reshape(qkv, shape), axis=2, num_outputs=3)
    axis = op.Constant(value_ints=[2])
    return op.Cast(op.Squeeze(query, axis), to=1), op.Cast(op.Squeeze(key, axis), to=1), op.Cast(op.Squeeze(value, axis), to=1)


@script(DETAIL, default_opset=op)
def HeadScore(query, key):
    """FP32 [B, R, H, 1]: scaled dot product per head."""
    root = op.Sqrt(op.Cast(op.Shape(query, start=3), to=1))
    return op.Div(op.ReduceSum(op.Mul(query, key), op.Constant(value_ints=[3]), keepdims=1), root)


@script(ONEREC, default_opset=op)
def BeamSelfAttention1(qkv, bos, rows: int, heads: int):
    batch = op.Shape(bos, end=1)
    row_count = op.Reshape(op.Constant(value_int=rows), op.Constant(value_ints=[1]))
    one = op.Constant(value_ints=[1])
    query, own_key, own_value = SplitHeads(qkv, batch, row_count, heads=heads)
    _q, bos_key, bos_value = SplitHeads(bos, batch, one, heads=heads)
    bos_score, own_score = HeadScore(query, bos_key), HeadScore(query, own_key)
    largest = op.Max(bos_score, own_score)
    bos_weight, own_weight = op.Exp(op.Sub(bos_score, largest)), op.Exp(op.Sub(own_score, largest))
    total = op.Add(bos_weight, own_weight)
    weighted = op.Add(op.Mul(bos_weight, bos_value), op.Mul(own_weight, own_value))
    attended = op.Cast(op.Div(weighted, total), to=10)
    return op.Reshape(attended, op.Concat(op.Mul(batch, row_count), op.Constant(value_ints=[-1]), axis=0))


@script(ONEREC, default_opset=op)
def BeamSelfAttention2(qkv, bos, first, parent, rows: int, heads: int):
    batch = op.Shape(bos, end=1)
    row_count = op.Reshape(op.Constant(value_int=rows), op.Constant(value_ints=[1]))
    one = op.Constant(value_ints=[1])
    query, own_key, own_value = SplitHeads(qkv, batch, row_count, heads=heads)
    _q0, bos_key, bos_value = SplitHeads(bos, batch, one, heads=heads)
    per_request = op.Div(op.Shape(first, end=1), batch)
    request = op.Range(op.Constant(value_int=0), op.Squeeze(batch), op.Constant(value_int=1))
    base = op.Unsqueeze(op.Mul(request, per_request), op.Constant(value_ints=[1]))
    ancestor = op.Gather(first, op.Reshape(op.Add(parent, base), op.Constant(value_ints=[-1])), axis=0)
    _q1, first_key, first_value = SplitHeads(ancestor, batch, row_count, heads=heads)
    bos_score, first_score, own_score = HeadScore(query, bos_key), HeadScore(query, first_key), HeadScore(query, own_key)
    largest = op.Max(bos_score, first_score, own_score)
    bos_weight, first_weight = op.Exp(op.Sub(bos_score, largest)), op.Exp(op.Sub(first_score, largest))
    own_weight = op.Exp(op.Sub(own_score, largest))
    total = op.Add(op.Add(bos_weight, first_weight), own_weight)
    before = op.Add(op.Mul(bos_weight, bos_value), op.Mul(first_weight, first_value))
    attended = op.Cast(op.Div(op.Add(before, op.Mul(own_weight, own_value)), total), to=10)
    return op.Reshape(attended, op.Concat(op.Mul(batch, row_count), op.Constant(value_ints=[-1]), axis=0))


beam_self_attention_1 = Operator(
    name="BeamSelfAttention1",
    reference=one_before_reference,
    function=BeamSelfAttention1,
    helpers=(SplitHeads, HeadScore),
    outputs=lambda qkv, bos, *, rows, heads: (Spec(torch.float16, (qkv.shape[0], qkv.shape[1] // 3)),),
)
beam_self_attention_2 = Operator(
    name="BeamSelfAttention2",
    reference=two_before_reference,
    function=BeamSelfAttention2,
    helpers=(SplitHeads, HeadScore),
    outputs=lambda qkv, bos, first, parent, *, rows, heads: (Spec(torch.float16, (qkv.shape[0], qkv.shape[1] // 3)),),
)
