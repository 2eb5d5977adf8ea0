"""Beam self-attention whose result is quantized at once: E4M3 codes leave the kernel, the FP16 result never goes through memory."""

from __future__ import annotations

from ...operators.beam_self_attention_quant import (
    beam_self_attention_1_quant_row,
    beam_self_attention_1_quant_tensor,
    beam_self_attention_2_quant_row,
    beam_self_attention_2_quant_tensor,
)
from .fusion import Fusion, Part, one_scale

beam_self_attention_1_quant_row_fusion = Fusion(
    name="beam-self-attention-1-quant-row",
    parts=(Part("BeamSelfAttention1"), Part("QuantRow")),
    fused=beam_self_attention_1_quant_row,
)
beam_self_attention_2_quant_row_fusion = Fusion(
    name="beam-self-attention-2-quant-row",
    parts=(Part("BeamSelfAttention2"), Part("QuantRow")),
    fused=beam_self_attention_2_quant_row,
)
beam_self_attention_1_quant_tensor_fusion = Fusion(
    name="beam-self-attention-1-quant-tensor",
    parts=(Part("BeamSelfAttention1"), Part("QuantTensor")),
    fused=beam_self_attention_1_quant_tensor,
    fits=one_scale,
)
beam_self_attention_2_quant_tensor_fusion = Fusion(
    name="beam-self-attention-2-quant-tensor",
    parts=(Part("BeamSelfAttention2"), Part("QuantTensor")),
    fused=beam_self_attention_2_quant_tensor,
    fits=one_scale,
)
