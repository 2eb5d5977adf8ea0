"""Attention over the context with keys that are the values, and with the quantization of its result in the same kernel."""

from __future__ import annotations

from ...operators.context_attention_quant import context_attention_quant_tensor, shared_context_attention_quant_tensor
from ...operators.shared_context_attention import shared_context_attention
from .fusion import Fusion, Part, one_scale

KEY_AND_VALUE = (1, 2)  # inputs of ContextAttention


shared_context_attention_quant_tensor_fusion = Fusion(
    name="shared-context-attention-quant-tensor",
    parts=(Part("ContextAttention"), Part("QuantTensor")),
    fused=shared_context_attention_quant_tensor,
    fits=one_scale,
    one_tensor=KEY_AND_VALUE,
)
context_attention_quant_tensor_fusion = Fusion(
    name="context-attention-quant-tensor",
    parts=(Part("ContextAttention"), Part("QuantTensor")),
    fused=context_attention_quant_tensor,
    fits=one_scale,
)
shared_context_attention_fusion = Fusion(
    name="shared-context-attention",
    parts=(Part("ContextAttention"),),
    fused=shared_context_attention,
    one_tensor=KEY_AND_VALUE,
)
