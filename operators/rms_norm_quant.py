"""RmsNormQuant{Tensor,Row,Block}: RMSNorm and E4M3 quantisation straight from FP32, in one step.

Each also returns the FP16 norm, which a router reads; where nobody reads it, it is dead and goes away.
"""

from __future__ import annotations

import torch
from onnxscript import script
from torch import Tensor

from ..core.precision import BLOCK
from . import fp8
from .comparison import compare_codes
from .functions import NormInFp32, QuantiseByScale, QuantiseRowBlocks, QuantiseRows
from .operator import FP8_THRESHOLD, ONEREC, Operator, Spec, op
from .rms_norm import norm_in_fp32


def tensor_meaning(x_ND: Tensor, weight_D: Tensor, scale: Tensor, *, epsilon: float) -> tuple[Tensor, Tensor]:
    norm = norm_in_fp32(x_ND, weight_D, epsilon)
    return fp8.quantise_tensor(norm, scale), norm.half()


def row_meaning(x_ND: Tensor, weight_D: Tensor, *, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    norm = norm_in_fp32(x_ND, weight_D, epsilon)
    return *fp8.quantise_rows(norm), norm.half()


def block_meaning(x_ND: Tensor, weight_D: Tensor, *, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    norm = norm_in_fp32(x_ND, weight_D, epsilon)
    return *fp8.quantise_row_blocks(norm), norm.half()


@script(ONEREC, default_opset=op)
def RmsNormQuantTensor(x, weight, scale, epsilon: float):
    norm = NormInFp32(x, weight, epsilon=epsilon)
    codes = QuantiseByScale(norm, scale)
    return codes, op.Cast(norm, to=10)


@script(ONEREC, default_opset=op)
def RmsNormQuantRow(x, weight, epsilon: float):
    norm = NormInFp32(x, weight, epsilon=epsilon)
    codes, scale = QuantiseRows(norm)
    return codes, scale, op.Cast(norm, to=10)


@script(ONEREC, default_opset=op)
def RmsNormQuantBlock(x, weight, epsilon: float):
    norm = NormInFp32(x, weight, epsilon=epsilon)
    codes, scale = QuantiseRowBlocks(norm)
    return codes, scale, op.Cast(norm, to=10)


def _row_specs(x: Tensor, weight: Tensor, *, epsilon: float) -> tuple[Spec, ...]:
    return (Spec(fp8.E4M3, tuple(x.shape)), Spec(torch.float32, (*x.shape[:-1], 1)), Spec(torch.float16, tuple(x.shape)))


def _block_specs(x: Tensor, weight: Tensor, *, epsilon: float) -> tuple[Spec, ...]:
    blocks = -(-x.shape[-1] // BLOCK)
    rows = x.shape[:-1]
    return (Spec(fp8.E4M3, (*rows, blocks * BLOCK)), Spec(torch.float32, (*rows, blocks)), Spec(torch.float16, tuple(x.shape)))


rms_norm_quant_tensor = Operator(
    name="RmsNormQuantTensor",
    meaning=tensor_meaning,
    function=RmsNormQuantTensor,
    helpers=(NormInFp32, QuantiseByScale),
    outputs=lambda x, weight, scale, *, epsilon: (Spec(fp8.E4M3, tuple(x.shape)), Spec(torch.float16, tuple(x.shape))),
    threshold=FP8_THRESHOLD,
)
rms_norm_quant_row = Operator(
    name="RmsNormQuantRow",
    meaning=row_meaning,
    function=RmsNormQuantRow,
    helpers=(NormInFp32, QuantiseByScale, QuantiseRows),
    outputs=_row_specs,
    threshold=FP8_THRESHOLD,
    compare=compare_codes,
)
rms_norm_quant_block = Operator(
    name="RmsNormQuantBlock",
    meaning=block_meaning,
    function=RmsNormQuantBlock,
    helpers=(NormInFp32, QuantiseByScale, QuantiseRows, QuantiseRowBlocks),
    outputs=_block_specs,
    threshold=FP8_THRESHOLD,
    compare=compare_codes,
)
