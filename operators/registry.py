"""Every operator of the domain by name, and the ONNX functions that travel in the file."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from .beam_self_attention import beam_self_attention_1, beam_self_attention_2
from .beam_self_attention_quant import (
    beam_self_attention_1_quant_row,
    beam_self_attention_1_quant_tensor,
    beam_self_attention_2_quant_row,
    beam_self_attention_2_quant_tensor,
)
from .beam_step import beam_step
from .beam_step_items import beam_step_items_1, beam_step_items_2, beam_step_items_3
from .context_attention import context_attention
from .context_attention_fp8 import context_attention_fp8
from .context_attention_quant import context_attention_quant_tensor, shared_context_attention_quant_tensor
from .context_codes import context_key_codes, context_value_codes
from .context_features import context_features
from .context_norm import context_norm
from .fp8_linear import fp8_linear, fp8_linear_add
from .linear import linear, linear_add
from .linear_swiglu import fp8_linear_swiglu_quant_tensor, linear_swiglu
from .moe_experts import moe_experts
from .moe_experts_fp8 import moe_experts_fp8_row, moe_experts_fp8_tensor
from .moe_experts_fp8_block import moe_experts_fp8_block
from .moe_experts_fp8_row_block import moe_experts_fp8_row_block
from .moe_experts_norm import (
    moe_experts_fp8_block_rms_norm_quant_row,
    moe_experts_fp8_row_block_rms_norm_quant_row,
    moe_experts_fp8_row_rms_norm_quant_row,
    moe_experts_fp8_tensor_rms_norm_quant_tensor,
    moe_experts_rms_norm,
)
from .moe_route import moe_route
from .operator import DETAIL, ONEREC, OPSET, Operator
from .quant import quant_row, quant_tensor
from .rms_norm import rms_norm
from .rms_norm_quant import rms_norm_quant_block, rms_norm_quant_row, rms_norm_quant_tensor
from .shared_context_attention import shared_context_attention
from .swiglu import swiglu, swiglu_quant_row, swiglu_quant_tensor
from .token_score import token_score

OPERATORS: dict[str, Operator] = {
    operator.name: operator
    for operator in (
        context_features,
        context_norm,
        context_key_codes,
        context_value_codes,
        context_attention,
        context_attention_fp8,
        beam_self_attention_1,
        beam_self_attention_2,
        rms_norm,
        rms_norm_quant_tensor,
        rms_norm_quant_row,
        rms_norm_quant_block,
        quant_tensor,
        quant_row,
        linear,
        linear_add,
        fp8_linear,
        fp8_linear_add,
        swiglu,
        swiglu_quant_tensor,
        swiglu_quant_row,
        moe_route,
        moe_experts,
        moe_experts_fp8_tensor,
        moe_experts_fp8_row,
        moe_experts_fp8_row_block,
        moe_experts_fp8_block,
        beam_step,
        beam_step_items_1,
        beam_step_items_2,
        beam_step_items_3,
        token_score,
        # Fused operators: put into a graph by builders/fusions/, never by the export.
        beam_self_attention_1_quant_row,
        beam_self_attention_2_quant_row,
        beam_self_attention_1_quant_tensor,
        beam_self_attention_2_quant_tensor,
        shared_context_attention,
        context_attention_quant_tensor,
        shared_context_attention_quant_tensor,
        linear_swiglu,
        fp8_linear_swiglu_quant_tensor,
        moe_experts_rms_norm,
        moe_experts_fp8_tensor_rms_norm_quant_tensor,
        moe_experts_fp8_row_rms_norm_quant_row,
        moe_experts_fp8_row_block_rms_norm_quant_row,
        moe_experts_fp8_block_rms_norm_quant_row,
    )
}

FP8_EXPERTS = tuple(each.name for each in (moe_experts_fp8_tensor, moe_experts_fp8_row, moe_experts_fp8_row_block, moe_experts_fp8_block))


def functions_of(operators: Iterable[Operator]) -> list[onnx.FunctionProto]:
    """The functions of the given operators and everything they call, each once, in a stable order."""
    protos = {}
    for operator in operators:
        for function in (*operator.helpers, operator.function):
            proto = function.to_function_proto()
            protos[proto.domain, proto.name] = proto
    return [protos[key] for key in sorted(protos)]


def opset_imports() -> list[onnx.OperatorSetIdProto]:
    """The opsets a file with these operators imports."""
    domains = (("", OPSET), (ONEREC.domain, ONEREC.version), (DETAIL.domain, DETAIL.version))
    return [onnx.helper.make_opsetid(domain, version) for domain, version in domains]
