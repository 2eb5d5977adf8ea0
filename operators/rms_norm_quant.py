"""RmsNormQuant{Tensor,Row,Block}: RMSNorm and E4M3 quantization straight from FP32, in one step.

Each also returns the FP16 norm, which a router reads; where nobody reads it, it is not computed.
"""

from __future__ import annotations

import torch
from onnxscript import script
from torch import Tensor

from ..core.precision import BLOCK
from . import fp8
from .comparison import compare_codes
from .functions import NormInFp32, QuantizeByScale, QuantizeRowBlocks, QuantizeRows
from .operator import FP8_THRESHOLD, ONEREC, Operator, Spec, op
from .rms_norm import norm_in_fp32


def tensor_reference(x_ND: Tensor, weight_D: Tensor, scale: Tensor, *, epsilon: float) -> tuple[Tensor, Tensor]:
    norm = norm_in_fp32(x_ND, weight_D, epsilon)
    return fp8.quantize_tensor(norm, scale), norm.half()


def row_reference(x_ND: Tensor, weight_D: Tensor, *, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    norm = norm_in_fp32(x_ND, weight_D, epsilon)
    return *fp8.quantize_rows(norm), norm.half()


def block_reference(x_ND: Tensor, weight_D: Tensor, *, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    norm = norm_in_fp32(x_ND, weight_D, epsilon)
    return *fp8.quantize_row_blocks(norm), norm.half()


@script(ONEREC, default_opset=op)
def RmsNormQuantTensor(x, weight, scale, epsilon: float):
    norm = NormInFp32(x, weight, epsilon=epsilon)
    codes = QuantizeByScale(norm, scale)
    return codes, op.Cast(norm, to=10)


@script(ONEREC, default_opset=op)
def RmsNormQuantRow(x, weight, epsilon: float):
    norm = NormInFp32(x, weight, epsilon=epsilon)
    codes, scale = QuantizeRows(norm)
    return codes, scale, op.Cast(norm, to=10)


@script(ONEREC, default_opset=op)
def RmsNormQuantBlock(x, weight, epsilon: float):
    norm = NormInFp32(x, weight, epsilon=epsilon)
    codes, scale = QuantizeRowBlocks(norm)
    return codes, scale, op.Cast(norm, to=10)


def _row_specs(x: Tensor, weight: Tensor, *, epsilon: float) -> tuple[Spec, ...]:
    return (Spec(fp8.E4M3, tuple(x.shape)), Spec(torch.float32, (*x.shape[:-1], 1)), Spec(torch.float16, tuple(x.shape)))


def _block_specs(x: Tensor, weight: Tensor, *, epsilon: float) -> tuple[Spec, ...]:
    blocks = -(-x.shape[-1] // BLOCK)
    rows = x.shape[:-1]
    return (Spec(fp8.E4M3, (*rows, blocks * BLOCK)), Spec(torch.float32, (*rows, blocks)), Spec(torch.float16, tuple(x.shape)))


rms_norm_quant_tensor = Operator(
    name="RmsNormQuantTensor",
    reference=tensor_reference,
    function=RmsNormQuantTensor,
    helpers=(NormInFp32, QuantizeByScale),
    outputs=lambda x, weight, scale, *, epsilon: (Spec(fp8.E4M3, tuple(x.shape)), Spec(torch.float16, tuple(x.shape))),
    threshold=FP8_THRESHOLD,
)
rms_norm_quant_row = Operator(
    name="RmsNormQuantRow",
    reference=row_reference,
    function=RmsNormQuantRow,
    helpers=(NormInFp32, QuantizeByScale, QuantizeRows),
    outputs=_row_specs,
    threshold=FP8_THRESHOLD,
    compare=compare_codes,
)
rms_norm_quant_block = Operator(
    name="RmsNormQuantBlock",
    reference=block_reference,
    function=RmsNormQuantBlock,
    helpers=(NormInFp32, QuantizeByScale, QuantizeRows, QuantizeRowBlocks),
    outputs=_block_specs,
    threshold=FP8_THRESHOLD,
    compare=compare_codes,
)
