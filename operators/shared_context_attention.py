"""SharedContextAttention: ContextAttention of a model whose keys are its values (S_kv = 1), with the one tensor as one input.

A fused operator: no exported file holds it; a build with plugins puts it in the place of ContextAttention, so that its kernel loads
every token once for both products. Reference and function are those of ContextAttention.
"""

from __future__ import annotations

from onnxscript import script
from torch import Tensor

from .context_attention import ContextAttention, context_attention, context_attention_reference
from .functions import Product
from .operator import ONEREC, Operator, op


def shared_context_attention_reference(query_ND: Tensor, context_BGSd: Tensor, lengths_B: Tensor, *, rows: int) -> tuple[Tensor]:
    """FP16 [B * rows, D]; inputs as those of ContextAttention, the keys for the values, too."""
    return context_attention_reference(query_ND, context_BGSd, context_BGSd, lengths_B, rows=rows)


@script(ONEREC, default_opset=op)
def SharedContextAttention(query, context, lengths, rows: int):
    return ContextAttention(query, context, context, lengths, rows=rows)


shared_context_attention = Operator(
    name="SharedContextAttention",
    reference=shared_context_attention_reference,
    function=SharedContextAttention,
    helpers=(ContextAttention, Product),
    outputs=lambda query, context, lengths, *, rows: context_attention.outputs(query, context, context, lengths, rows=rows),
)
