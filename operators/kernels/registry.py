"""Every operator that has a kernel: how its launch program is made, and its cases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ..launch.case import Case, KernelCases
from ..launch.compile import Build, compiled
from ..launch.node import Node, early_with_few_rows
from ..launch.program import Kernel, Program
from ..launch.tiles import Tiles
from . import (
    beam_self_attention,
    beam_self_attention_quant,
    beam_step,
    beam_step_cases,
    beam_step_items,
    beam_step_items_cases,
    context_attention,
    context_attention_fp8,
    context_codes,
    context_features,
    context_norm,
    fp8_linear,
    linear,
    linear_swiglu,
    linear_swiglu_cases,
    moe_cases,
    moe_experts,
    moe_experts_norm,
    moe_norm_cases,
    moe_route,
    quant,
    rms_norm,
    rms_norm_quant,
    swiglu,
)
from .moe_scheme import EXPERTS_OF, SCHEMES


@dataclass(frozen=True)
class KernelFactory:
    """What the builder pass asks.

    Attributes:
        make: The launch program of a node; None: it has no kernel and is built natively. Outputs at the end that nobody
            reads may be left out of the program: so is the FP16 norm.
        cases: What is tried with the kernel.
    """

    make: Callable[[Node], Program | None]
    cases: KernelCases = field(default_factory=KernelCases)

    def program(self, node: Node) -> Program | None:
        """The launch program of a node, whose kernels start early where rows are few."""
        program = self.make(node)
        return None if program is None else early_with_few_rows(program, node.rows)


FACTORIES: dict[str, KernelFactory] = {
    "RmsNorm": KernelFactory(rms_norm.rms_norm_program, cases=rms_norm.RMS_NORM_CASES),
    "RmsNormQuantTensor": KernelFactory(rms_norm_quant.rms_norm_quant_tensor_program, cases=rms_norm_quant.RMS_NORM_QUANT_TENSOR_CASES),
    "RmsNormQuantRow": KernelFactory(rms_norm_quant.rms_norm_quant_row_program, cases=rms_norm_quant.RMS_NORM_QUANT_ROW_CASES),
    "RmsNormQuantBlock": KernelFactory(rms_norm_quant.rms_norm_quant_block_program, cases=rms_norm_quant.RMS_NORM_QUANT_BLOCK_CASES),
    "QuantTensor": KernelFactory(quant.quant_tensor_program, cases=quant.QUANT_TENSOR_CASES),
    "QuantRow": KernelFactory(quant.quant_row_program, cases=quant.QUANT_ROW_CASES),
    "SwiGlu": KernelFactory(swiglu.swiglu_program, cases=swiglu.SWIGLU_CASES),
    "SwiGluQuantTensor": KernelFactory(swiglu.swiglu_quant_tensor_program, cases=swiglu.SWIGLU_QUANT_TENSOR_CASES),
    "SwiGluQuantRow": KernelFactory(swiglu.swiglu_quant_row_program, cases=swiglu.SWIGLU_QUANT_ROW_CASES),
    "Linear": KernelFactory(linear.linear_program, cases=linear.LINEAR_CASES),
    "LinearAdd": KernelFactory(linear.linear_add_program, cases=linear.LINEAR_ADD_CASES),
    "Fp8Linear": KernelFactory(fp8_linear.fp8_linear_program, cases=fp8_linear.FP8_LINEAR_CASES),
    "Fp8LinearAdd": KernelFactory(fp8_linear.fp8_linear_add_program, cases=fp8_linear.FP8_LINEAR_ADD_CASES),
    "LinearSwiGlu": KernelFactory(linear_swiglu.linear_swiglu_program, cases=linear_swiglu_cases.LINEAR_SWIGLU_CASES),
    "Fp8LinearSwiGluQuantTensor": KernelFactory(
        linear_swiglu.fp8_linear_swiglu_quant_tensor_program, cases=linear_swiglu_cases.FP8_LINEAR_SWIGLU_QUANT_TENSOR_CASES
    ),
    "ContextFeatures": KernelFactory(context_features.context_features_program, cases=context_features.CONTEXT_FEATURES_CASES),
    "ContextNorm": KernelFactory(context_norm.context_norm_program, cases=context_norm.CONTEXT_NORM_CASES),
    "ContextKeyCodes": KernelFactory(context_codes.context_key_codes_program, cases=context_codes.CONTEXT_KEY_CODES_CASES),
    "ContextValueCodes": KernelFactory(context_codes.context_value_codes_program, cases=context_codes.CONTEXT_VALUE_CODES_CASES),
    "ContextAttentionFp8": KernelFactory(
        context_attention_fp8.context_attention_fp8_program, cases=context_attention_fp8.CONTEXT_ATTENTION_FP8_CASES
    ),
    "ContextAttention": KernelFactory(context_attention.context_attention_program, cases=context_attention.CONTEXT_ATTENTION_CASES),
    "SharedContextAttention": KernelFactory(
        context_attention.shared_context_attention_program, cases=context_attention.SHARED_CONTEXT_ATTENTION_CASES
    ),
    "ContextAttentionQuantTensor": KernelFactory(
        context_attention.context_attention_quant_tensor_program, cases=context_attention.CONTEXT_ATTENTION_QUANT_TENSOR_CASES
    ),
    "SharedContextAttentionQuantTensor": KernelFactory(
        context_attention.shared_context_attention_quant_tensor_program,
        cases=context_attention.SHARED_CONTEXT_ATTENTION_QUANT_TENSOR_CASES,
    ),
    "BeamSelfAttention1": KernelFactory(
        beam_self_attention.beam_self_attention_1_program, cases=beam_self_attention.BEAM_SELF_ATTENTION_1_CASES
    ),
    "BeamSelfAttention2": KernelFactory(
        beam_self_attention.beam_self_attention_2_program, cases=beam_self_attention.BEAM_SELF_ATTENTION_2_CASES
    ),
    "BeamSelfAttention1QuantRow": KernelFactory(
        beam_self_attention_quant.beam_self_attention_1_quant_row_program,
        cases=beam_self_attention_quant.BEAM_SELF_ATTENTION_1_QUANT_ROW_CASES,
    ),
    "BeamSelfAttention2QuantRow": KernelFactory(
        beam_self_attention_quant.beam_self_attention_2_quant_row_program,
        cases=beam_self_attention_quant.BEAM_SELF_ATTENTION_2_QUANT_ROW_CASES,
    ),
    "BeamSelfAttention1QuantTensor": KernelFactory(
        beam_self_attention_quant.beam_self_attention_1_quant_tensor_program,
        cases=beam_self_attention_quant.BEAM_SELF_ATTENTION_1_QUANT_TENSOR_CASES,
    ),
    "BeamSelfAttention2QuantTensor": KernelFactory(
        beam_self_attention_quant.beam_self_attention_2_quant_tensor_program,
        cases=beam_self_attention_quant.BEAM_SELF_ATTENTION_2_QUANT_TENSOR_CASES,
    ),
    "BeamStep": KernelFactory(beam_step.beam_step_program, cases=beam_step_cases.BEAM_STEP_CASES),
    **{
        f"BeamStepItems{level}": KernelFactory(beam_step_items.beam_step_items_program, cases=beam_step_items_cases.items_cases(level))
        for level in (1, 2, 3)
    },
    "MoeRoute": KernelFactory(moe_route.moe_route_program, cases=moe_cases.MOE_ROUTE_CASES),
    **{operator: KernelFactory(moe_experts.moe_experts_program, cases=moe_cases.moe_experts_cases(operator)) for operator in SCHEMES},
    **{
        operator: KernelFactory(moe_experts_norm.moe_experts_norm_program, cases=moe_norm_cases.moe_experts_norm_cases(operator))
        for operator in EXPERTS_OF
    },
}


def program_of(case: Case, capability: str, tiles: Tiles | None = None, compile_with: Callable[[Build], Kernel] = compiled) -> Program:
    """The launch program of a case's node. `tiles` defaults to the committed table."""
    program = FACTORIES[case.operator].program(case.node(capability, tiles, compile_with))
    assert program is not None, f"{case.operator} has no kernel at {case.label}"
    return program
