"""Every fusion, in the order in which a build applies them."""

from __future__ import annotations

from .beam_self_attention_quant import (
    beam_self_attention_1_quant_row_fusion,
    beam_self_attention_1_quant_tensor_fusion,
    beam_self_attention_2_quant_row_fusion,
    beam_self_attention_2_quant_tensor_fusion,
)
from .context_attention import (
    context_attention_quant_tensor_fusion,
    shared_context_attention_fusion,
    shared_context_attention_quant_tensor_fusion,
)
from .fusion import Fusion
from .linear_swiglu import fp8_linear_swiglu_quant_tensor_fusion, linear_swiglu_fusion
from .moe_experts_norm import (
    moe_experts_fp8_block_rms_norm_quant_row_fusion,
    moe_experts_fp8_row_block_rms_norm_quant_row_fusion,
    moe_experts_fp8_row_rms_norm_quant_row_fusion,
    moe_experts_fp8_tensor_rms_norm_quant_tensor_fusion,
    moe_experts_rms_norm_fusion,
)

FUSIONS: tuple[Fusion, ...] = (
    beam_self_attention_1_quant_row_fusion,
    beam_self_attention_2_quant_row_fusion,
    beam_self_attention_1_quant_tensor_fusion,
    beam_self_attention_2_quant_tensor_fusion,
    shared_context_attention_quant_tensor_fusion,
    context_attention_quant_tensor_fusion,
    shared_context_attention_fusion,
    linear_swiglu_fusion,
    fp8_linear_swiglu_quant_tensor_fusion,
    moe_experts_rms_norm_fusion,
    moe_experts_fp8_tensor_rms_norm_quant_tensor_fusion,
    moe_experts_fp8_row_rms_norm_quant_row_fusion,
    moe_experts_fp8_row_block_rms_norm_quant_row_fusion,
    moe_experts_fp8_block_rms_norm_quant_row_fusion,
)
