"""Pieces of the dense MoE functions: stacked weights, batched products, the gated sum."""

from __future__ import annotations

from onnxscript import script

from ..core.precision import BLOCK
from .functions import Product
from .operator import DETAIL, op


@script(DETAIL, default_opset=op)
def PerExpert(stacked, experts: int):
    """[E, X, Y] of weights [E * X, Y]."""
    count = op.Reshape(op.Constant(value_int=experts), op.Constant(value_ints=[1]))
    return op.Reshape(stacked, op.Concat(count, op.Constant(value_ints=[-1]), op.Shape(stacked, start=1), axis=0))


@script(DETAIL, default_opset=op)
def StackedProduct(x, stacked, experts: int):
    """FP16 [E, N, M]: FP16 x [E or 1, N, K] @ each expert's FP16 weight [E * M, K]^T."""
    return Product(x, op.Transpose(PerExpert(stacked, experts=experts), perm=[0, 2, 1]))


@script(DETAIL, default_opset=op)
def StackedProduct32(x, stacked, experts: int):
    """The same of FP32 values and not rounded: codes made from the result must not depend on an FP16 rounding in between."""
    return op.MatMul(x, op.Transpose(PerExpert(stacked, experts=experts), perm=[0, 2, 1]))


@script(DETAIL, default_opset=op)
def ColumnScale(scale, experts: int):
    """FP32 [E, 1, M] of weight scales [E * M]."""
    count = op.Reshape(op.Constant(value_int=experts), op.Constant(value_ints=[1]))
    shape = op.Concat(count, op.Constant(value_ints=[1, -1]), axis=0)
    return op.Reshape(scale, shape)


@script(DETAIL, default_opset=op)
def ScaledBlocks(values, scale):
    """FP32 [N, K] of dequantized activation codes [N, K] and scales [N, K / 128]."""
    shape = op.Concat(op.Shape(scale), op.Constant(value_ints=[BLOCK]), axis=0)
    blocks = op.Mul(op.Reshape(values, shape), op.Unsqueeze(scale, op.Constant(value_ints=[2])))
    return op.Reshape(blocks, op.Shape(values))


@script(DETAIL, default_opset=op)
def GateAndSum(result, index, weight, residual, experts: int):
    """FP16 [N, D]: residual + sum over experts of result [E, N, D] where selected, times the gate."""
    count = op.Constant(value_int=experts)
    numbers = op.Range(op.Constant(value_int=0), count, op.Constant(value_int=1))
    hit = op.Equal(op.Unsqueeze(index, op.Constant(value_ints=[0])), op.Unsqueeze(numbers, op.Constant(value_ints=[1, 2])))
    gates = op.Where(hit, op.Unsqueeze(weight, op.Constant(value_ints=[0])), op.Constant(value_float=0.0))
    gate = op.ReduceSum(gates, op.Constant(value_ints=[2]), keepdims=1)
    chosen = op.Cast(op.ReduceMax(op.Cast(hit, to=1), op.Constant(value_ints=[2]), keepdims=1), to=9)
    gated = op.Where(chosen, op.Mul(result, gate), op.Constant(value_float=0.0))
    total = op.ReduceSum(gated, op.Constant(value_ints=[0]), keepdims=0)
    return op.Cast(op.Add(total, op.Cast(residual, to=1)), to=10)
