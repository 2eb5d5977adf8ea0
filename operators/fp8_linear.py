"""Fp8Linear and Fp8LinearAdd: E4M3 x E4M3 with FP32 accumulation; scales (and residual) in the epilogue.

The activation scale is a constant [1] (static) or one per row [N, 1]; the weight scale is one per
output channel. `promotion` is the number of channels after which a kernel adds its accumulator to
an FP32 one; 0 means never. The definitions here accumulate in FP32, whatever it says.
"""

from __future__ import annotations

import torch
from onnxscript import script
from torch import Tensor

from .functions import PRODUCT_SCALE_FP16, Fp8Linear32
from .operator import ONEREC, Operator, Spec, op


def fp8_linear_reference(
    codes_NK: Tensor, scale: Tensor, weight_codes_MK: Tensor, weight_scale_M: Tensor, *, promotion: int
) -> tuple[Tensor]:
    return (_product(codes_NK, scale, weight_codes_MK, weight_scale_M).half(),)


def fp8_linear_add_reference(
    codes_NK: Tensor, scale: Tensor, weight_codes_MK: Tensor, weight_scale_M: Tensor, residual_NM: Tensor, *, promotion: int
) -> tuple[Tensor]:
    return ((_product(codes_NK, scale, weight_codes_MK, weight_scale_M) + residual_NM.float()).half(),)


def _product(codes_NK: Tensor, scale: Tensor, weight_codes_MK: Tensor, weight_scale_M: Tensor) -> Tensor:
    return (codes_NK.float() @ weight_codes_MK.float().T) * (scale * weight_scale_M)


@script(ONEREC, default_opset=op)
def Fp8Linear(codes, scale, weight_codes, weight_scale, promotion: int):
    unit = op.Constant(value=PRODUCT_SCALE_FP16)
    x = op.DequantizeLinear(codes, unit)
    weight = op.DequantizeLinear(weight_codes, unit)
    return op.Cast(Fp8Linear32(x, scale, weight, weight_scale), to=10)


@script(ONEREC, default_opset=op)
def Fp8LinearAdd(codes, scale, weight_codes, weight_scale, residual, promotion: int):
    unit = op.Constant(value=PRODUCT_SCALE_FP16)
    x = op.DequantizeLinear(codes, unit)
    weight = op.DequantizeLinear(weight_codes, unit)
    product = Fp8Linear32(x, scale, weight, weight_scale)
    return op.Cast(op.Add(product, op.Cast(residual, to=1)), to=10)


fp8_linear = Operator(
    name="Fp8Linear",
    reference=fp8_linear_reference,
    function=Fp8Linear,
    helpers=(Fp8Linear32,),
    outputs=lambda codes, scale, weight, weight_scale, *, promotion: (Spec(torch.float16, (*codes.shape[:-1], weight.shape[0])),),
)
fp8_linear_add = Operator(
    name="Fp8LinearAdd",
    reference=fp8_linear_add_reference,
    function=Fp8LinearAdd,
    helpers=(Fp8Linear32,),
    outputs=lambda codes, scale, weight, weight_scale, residual, *, promotion: (Spec(torch.float16, tuple(residual.shape)),),
)
