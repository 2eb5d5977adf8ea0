"""Log-probabilities of tokens as every ONNX function computes them, so that both graphs of a model say the same of an item.

A sum of 8192 exponentials in one go is off by up to 4e-6 of itself in ONNX Runtime. So they are summed in tiles, as the kernels
sum them too: those of a tile beside its own largest logit, then the tiles. TensorRT makes the tiles' sums in one pass over the
logits. Beside the row's largest logit it would store every difference, 4 bytes for each logit.

The codebook is filled up to whole groups of eight tiles: of two, plans of TensorRT 10.6 gave wrong sums on an H200.
"""

from __future__ import annotations

from onnx import TensorProto, helper
from onnxscript import script

from ..core.precision import FP16_MAX
from .operator import DETAIL, op

TILE = 128
FILLED = 8 * TILE  # codes that rows are filled up to a multiple of
_LOWEST = -FP16_MAX  # the base of a tile of -inf alone, whose exponentials are then 0 and not NaN
MINUS_INFINITY = helper.make_tensor("minus_infinity", TensorProto.FLOAT16, [], [-float("inf")])


@script(DETAIL, default_opset=op)
def SoftmaxParts(logits):
    """Of FP16 logits [N, V] each row's largest one, and the logarithm of its sum of exp(logit - largest); both FP32 [N, 1].

    A row with NaN or +inf, or of -inf alone, gets parts that make its log-probabilities NaN.
    """
    one = op.Constant(value_ints=[1])
    two = op.Constant(value_ints=[2])
    size = op.Constant(value_ints=[TILE])
    missing = op.Mod(op.Neg(op.Shape(logits, start=1)), op.Constant(value_ints=[FILLED]))
    whole = op.Pad(logits, op.Concat(op.Constant(value_ints=[0, 0, 0]), missing, axis=0), op.Constant(value=MINUS_INFINITY))
    tiles = op.Cast(op.Reshape(whole, op.Concat(op.Constant(value_ints=[0, -1]), size, axis=0)), to=1)
    best = op.ReduceMax(tiles, two, keepdims=1)
    base = op.Max(best, op.Constant(value_float=_LOWEST))
    sums = op.ReduceSum(op.Exp(op.Sub(tiles, base)), two, keepdims=0)
    # By the maxima before the clamp: with `base` here too, TensorRT-RTX stores the tiles in FP32.
    largest_of = op.Squeeze(best, two)
    largest = op.ReduceMax(largest_of, one, keepdims=1)
    scaled = op.Mul(sums, op.Exp(op.Sub(largest_of, largest)))
    # ONNX Runtime's Log rounds otherwise where the number of rows is no multiple of its vectors; this goes row by row.
    return largest, op.ReduceLogSum(scaled, one, keepdims=1)


@script(DETAIL, default_opset=op)
def LogProbability(logits, largest, log_sum):
    """FP32 log-probabilities of FP16 logits, by the parts of their rows.

    One part after the other: the sum of both would be rounded at the size of the largest logit.
    """
    return op.Sub(op.Sub(op.Cast(logits, to=1), largest), log_sum)


LOG_PROBABILITY = (SoftmaxParts, LogProbability)
