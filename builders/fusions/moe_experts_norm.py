"""Experts and the norm that follows them in a model; their sum, the residual stream, is read behind the norm, too.

The first norm of the next block follows; behind the last block nobody else reads the sum, and the norm before the head stays apart.
The norm is made in the launch that adds up a token's experts. Codes of `fp8-paper` are by rows there: only experts read codes by
blocks.
"""

from __future__ import annotations

from ...operators.moe_experts_norm import (
    moe_experts_fp8_block_rms_norm_quant_row,
    moe_experts_fp8_row_block_rms_norm_quant_row,
    moe_experts_fp8_row_rms_norm_quant_row,
    moe_experts_fp8_tensor_rms_norm_quant_tensor,
    moe_experts_rms_norm,
)
from .fusion import Fusion, Part, one_scale

moe_experts_rms_norm_fusion = Fusion(
    name="moe-experts-rms-norm",
    parts=(Part("MoeExperts"), Part("RmsNorm")),
    fused=moe_experts_rms_norm,
    keeps=True,
)
moe_experts_fp8_tensor_rms_norm_quant_tensor_fusion = Fusion(
    name="moe-experts-fp8-tensor-rms-norm-quant-tensor",
    parts=(Part("MoeExpertsFp8Tensor"), Part("RmsNormQuantTensor")),
    fused=moe_experts_fp8_tensor_rms_norm_quant_tensor,
    fits=one_scale,
    keeps=True,
)
moe_experts_fp8_row_rms_norm_quant_row_fusion = Fusion(
    name="moe-experts-fp8-row-rms-norm-quant-row",
    parts=(Part("MoeExpertsFp8Row"), Part("RmsNormQuantRow")),
    fused=moe_experts_fp8_row_rms_norm_quant_row,
    keeps=True,
)
moe_experts_fp8_row_block_rms_norm_quant_row_fusion = Fusion(
    name="moe-experts-fp8-row-block-rms-norm-quant-row",
    parts=(Part("MoeExpertsFp8RowBlock"), Part("RmsNormQuantRow")),
    fused=moe_experts_fp8_row_block_rms_norm_quant_row,
    keeps=True,
)
moe_experts_fp8_block_rms_norm_quant_row_fusion = Fusion(
    name="moe-experts-fp8-block-rms-norm-quant-row",
    parts=(Part("MoeExpertsFp8Block"), Part("RmsNormQuantRow")),
    fused=moe_experts_fp8_block_rms_norm_quant_row,
    keeps=True,
)
