"""{,Shared}ContextAttentionQuantTensor: attention over the context and the E4M3 quantization of its FP16 result by one given scale.

Fused operators: no exported file holds them; a build with plugins puts them in the place of their parts. References and functions
call those of the parts, so the result is rounded to FP16 before it is quantized, as it is between the parts.
"""

from __future__ import annotations

import torch
from onnxscript import script
from torch import Tensor

from .comparison import difference_explaining
from .context_attention import ContextAttention, context_attention, context_attention_reference
from .functions import Product, QuantizeByScale
from .operator import ONEREC, Array, Attributes, Operator, op
from .quant import QuantTensor, quant_tensor, tensor_reference
from .shared_context_attention import SharedContextAttention, shared_context_attention, shared_context_attention_reference


def quantized_reference(
    query_ND: Tensor, key_BGSd: Tensor, value_BGSd: Tensor, lengths_B: Tensor, scale: Tensor, *, rows: int
) -> tuple[Tensor]:
    """E4M3 codes [B * rows, D] for one scale [1]; the other inputs as those of ContextAttention."""
    return tensor_reference(*context_attention_reference(query_ND, key_BGSd, value_BGSd, lengths_B, rows=rows), scale)


def shared_quantized_reference(query_ND: Tensor, context_BGSd: Tensor, lengths_B: Tensor, scale: Tensor, *, rows: int) -> tuple[Tensor]:
    """Likewise, of SharedContextAttention."""
    return tensor_reference(*shared_context_attention_reference(query_ND, context_BGSd, lengths_B, rows=rows), scale)


def compare_rounded(actual: list[Array], _expected: list[Array], inputs: list[Array], attributes: Attributes) -> float:
    """How far the FP16 result of the reference is from one that gives the actual codes. The threshold is that of attention in FP16."""
    *attending, scale = (torch.from_numpy(array) for array in inputs)
    attend = context_attention_reference if len(attending) == 4 else shared_context_attention_reference
    (attended,) = attend(*attending, rows=int(attributes["rows"]))
    return difference_explaining(actual[0], (attended.float() / scale).numpy())


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
    compare=compare_rounded,
)
shared_context_attention_quant_tensor = Operator(
    name="SharedContextAttentionQuantTensor",
    reference=shared_quantized_reference,
    function=SharedContextAttentionQuantTensor,
    helpers=(SharedContextAttention, ContextAttention, Product, QuantTensor, QuantizeByScale),
    outputs=lambda query, context, lengths, scale, *, rows: quant_tensor.outputs(
        *shared_context_attention.outputs(query, context, lengths, rows=rows), scale
    ),
    compare=compare_rounded,
)
