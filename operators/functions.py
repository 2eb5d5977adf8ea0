"""Pieces that several ONNX functions share: FP32 norms, E4M3 quantization, scaled FP8 products.

They live in the `onerec.detail` domain, travel in the file like the operators' functions, and are
inlined with them. Type numbers: 1 FP32, 10 FP16, 17 FLOAT8E4M3FN.
"""

from __future__ import annotations

from onnx import TensorProto, helper
from onnxscript import script

from ..core.precision import AMAX_FLOOR, BLOCK, E4M3_MAX
from .operator import DETAIL, op

# Both dequantization scales are 2^-7: TensorRT multiplies them into one FP16 scale, and 2^-14 is the
# smallest product that is still a normal FP16 number. The FP16 product then overflows only beyond
# 2^14 * 65504 = 1.07e9 quantized units: fully correlated full-scale rows longer than 5348 channels.
PRODUCT_SCALE = 2.0**-7
PRODUCT_RESTORE = 2.0**14

# ONNX Runtime takes FP8 as an input of a function only where the function itself feeds it to a standard
# operator, so every operator dequantizes with this constant in its own body, never in a shared piece.
PRODUCT_SCALE_FP16 = helper.make_tensor("product_scale", TensorProto.FLOAT16, [], [PRODUCT_SCALE])


@script(DETAIL, default_opset=op)
def NormInFp32(x, weight, epsilon: float):
    """RMSNorm over the last axis; FP16 or FP32 in, FP32 out."""
    wide = op.Cast(x, to=1)
    square = op.ReduceMean(op.Mul(wide, wide), op.Constant(value_ints=[-1]), keepdims=1)
    root = op.Sqrt(op.Add(square, op.Constant(value_float=epsilon)))
    return op.Mul(op.Div(wide, root), op.Cast(weight, to=1))


@script(DETAIL, default_opset=op)
def QuantizeByScale(x, scale):
    """E4M3 codes of FP32 x divided by a broadcastable FP32 scale."""
    return op.QuantizeLinear(op.Div(x, scale), op.Constant(value_float=1.0), output_dtype=17)


@script(DETAIL, default_opset=op)
def QuantizeRows(x):
    """E4M3 codes and FP32 scales [..., 1] of FP32 x, one scale per row."""
    amax = op.ReduceMax(op.Abs(x), op.Constant(value_ints=[-1]), keepdims=1)
    scale = op.Div(op.Max(amax, op.Constant(value_float=AMAX_FLOOR)), op.Constant(value_float=E4M3_MAX))
    codes = QuantizeByScale(x, scale)
    return codes, scale


@script(DETAIL, default_opset=op)
def QuantizeRowBlocks(x):
    """E4M3 codes [N, K'] and FP32 scales [N, K' / 128] of FP32 x [N, K]; K' is K zero-padded to 128."""
    width = op.Shape(x, start=1)
    block = op.Constant(value_ints=[BLOCK])
    padding = op.Mod(op.Neg(width), block)
    padded = op.Pad(x, op.Concat(op.Constant(value_ints=[0, 0, 0]), padding, axis=0))
    count = op.Div(op.Add(width, padding), block)
    rows = op.Shape(x, end=1)
    blocks = op.Reshape(padded, op.Concat(rows, count, block, axis=0))
    codes, scale = QuantizeRows(blocks)
    flat_codes = op.Reshape(codes, op.Concat(rows, op.Add(width, padding), axis=0))
    return flat_codes, op.Squeeze(scale, op.Constant(value_ints=[2]))


@script(DETAIL, default_opset=op)
def Product(x, weight):
    """FP16 x @ weight, accumulated in FP32, rounded to FP16.

    The casts say so in the graph: TensorRT reads FP32 casts before a product and an FP16 cast right after it as an FP16
    product with FP32 accumulation and FP16 result. Without them it accumulates in FP16.
    """
    return op.Cast(op.MatMul(op.Cast(x, to=1), op.Cast(weight, to=1)), to=10)


@script(DETAIL, default_opset=op)
def Fp8Linear32(x, scale, weight_MK, weight_scale_M):
    """FP32 [..., M] result of an FP8 linear: the product of codes that PRODUCT_SCALE dequantized, scales applied.

    No casts around this product: TensorRT 10.6 cannot build a cast between DequantizeLinear and MatMul.
    """
    product = op.Cast(op.MatMul(x, op.Transpose(weight_MK, perm=[1, 0])), to=1)
    restored = op.Mul(weight_scale_M, op.Constant(value_float=PRODUCT_RESTORE))
    return op.Mul(product, op.Mul(scale, restored))


@script(DETAIL, default_opset=op)
def SwiGlu32(gate_up):
    """SiLU(gate) * up in FP32 of gate and up side by side in the last axis.

    Widened only after the split: TensorRT merges a cast that follows a product into it, which then writes FP32.
    """
    gate16, up16 = op.Split(gate_up, axis=-1, num_outputs=2)
    gate, up = op.Cast(gate16, to=1), op.Cast(up16, to=1)
    return op.Mul(op.Mul(gate, op.Sigmoid(gate)), up)
