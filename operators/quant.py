"""Quant{Tensor,Row}: E4M3 quantization of an FP16 tensor that no norm or activation precedes."""

from __future__ import annotations

import torch
from onnxscript import script
from torch import Tensor

from . import fp8
from .comparison import compare_codes
from .functions import QuantizeByScale, QuantizeRows
from .operator import FP8_THRESHOLD, ONEREC, Operator, Spec, op


def tensor_reference(x_ND: Tensor, scale: Tensor) -> tuple[Tensor]:
    return (fp8.quantize_tensor(x_ND, scale),)


def row_reference(x_ND: Tensor) -> tuple[Tensor, Tensor]:
    return fp8.quantize_rows(x_ND)


@script(ONEREC, default_opset=op)
def QuantTensor(x, scale):
    return QuantizeByScale(op.Cast(x, to=1), scale)


@script(ONEREC, default_opset=op)
def QuantRow(x):
    codes, scale = QuantizeRows(op.Cast(x, to=1))
    return codes, scale


quant_tensor = Operator(
    name="QuantTensor",
    reference=tensor_reference,
    function=QuantTensor,
    helpers=(QuantizeByScale,),
    outputs=lambda x, scale: (Spec(fp8.E4M3, tuple(x.shape)),),
    threshold=FP8_THRESHOLD,
)
quant_row = Operator(
    name="QuantRow",
    reference=row_reference,
    function=QuantRow,
    helpers=(QuantizeByScale, QuantizeRows),
    outputs=lambda x: (Spec(fp8.E4M3, tuple(x.shape)), Spec(torch.float32, (*x.shape[:-1], 1))),
    threshold=FP8_THRESHOLD,
    compare=compare_codes,
)
