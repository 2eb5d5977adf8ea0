"""{,Shared}ContextAttentionQuantTensor: attention over the context and the E4M3 quantization of its FP16 result by one given scale.

Fused operators: no exported file holds them; a build with plugins puts them in the place of their parts. References and functions
call those of the parts, so the result is rounded to FP16 before it is quantized, as it is between the parts.
"""

from __future__ import annotations

from onnxscript import script
from torch import Tensor

from .context_attention import ContextAttention, context_attention, context_attention_reference
from .functions import Product, QuantizeByScale
from .operator import FP16_THRESHOLD, ONEREC, Operator, op
from .quant import QuantTensor, quant_tensor, tensor_reference
from .shared_context_attention import SharedContextAttention, shared_context_attention, shared_context_attention_reference

# Of the codes of two FP16 results that differ by FP16_THRESHOLD, a relative error of sqrt(2 * 1e-6). A code flips with a chance of
# that error by the code's step, about 0.09 of the value, and by that step; half the mean square is 0.036 of the error.
THRESHOLD = 0.036 * (2 * FP16_THRESHOLD) ** 0.5


def quantized_reference(
    query_ND: Tensor, key_BGSd: Tensor, value_BGSd: Tensor, lengths_B: Tensor, scale: Tensor, *, rows: int
) -> tuple[Tensor]:
    """E4M3 codes [B * rows, D] for one scale [1]; the other inputs as those of ContextAttention."""
    return tensor_reference(*context_attention_reference(query_ND, key_BGSd, value_BGSd, lengths_B, rows=rows), scale)


def shared_quantized_reference(query_ND: Tensor, context_BGSd: Tensor, lengths_B: Tensor, scale: Tensor, *, rows: int) -> tuple[Tensor]:
    """Likewise, of SharedContextAttention."""
    return tensor_reference(*shared_context_attention_reference(query_ND, context_BGSd, lengths_B, rows=rows), scale)


@script(ONEREC, default_opset=op)
def ContextAttentionQuantTensor(query, key, value, lengths, scale, rows: int):
    return QuantTensor(ContextAttention(query, key, value, lengths, rows=rows), scale)


@script(ONEREC, default_opset=op)
def SharedContextAttentionQuantTensor(query, context, lengths, scale, rows: int):
    return QuantTensor(SharedContextAttention(query, context, lengths, rows=rows), scale)


context_attention_quant_tensor = Operator(
    name="ContextAttentionQuantTensor",
    reference=quantized_reference,
    function=ContextAttentionQuantTensor,
    helpers=(ContextAttention, Product, QuantTensor, QuantizeByScale),
    outputs=lambda query, key, value, lengths, scale, *, rows: quant_tensor.outputs(
        *context_attention.outputs(query, key, value, lengths, rows=rows), scale
    ),
    threshold=THRESHOLD,
)
shared_context_attention_quant_tensor = Operator(
    name="SharedContextAttentionQuantTensor",
    reference=shared_quantized_reference,
    function=SharedContextAttentionQuantTensor,
    helpers=(SharedContextAttention, ContextAttention, Product, QuantTensor, QuantizeByScale),
    outputs=lambda query, context, lengths, scale, *, rows: quant_tensor.outputs(
        *shared_context_attention.outputs(query, context, lengths, rows=rows), scale
    ),
    threshold=THRESHOLD,
)
