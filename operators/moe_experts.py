"""MoeExperts, MoeExpertsFp8{Tensor,Row,Block}: SwiGLU experts, gated, summed in expert order, residual added.

Weights of all experts lie below each other: gate_up [E * 2H, D], down [E * D, H]. The gate multiplies
the FP32 result of the down product. The ONNX functions compute every expert for every token and
select with Where (never 0 * y: an infinity would give NaN); kernels compute the selected ones only.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from onnxscript import script
from torch import Tensor

from ..core.precision import BLOCK
from . import fp8
from .functions import PRODUCT_RESTORE, PRODUCT_SCALE_FP16, QuantiseByScale, QuantiseRowBlocks, QuantiseRows, SwiGlu32
from .moe_dense import ColumnScale, GateAndSum, PerExpert, ScaledBlocks, StackedProduct
from .operator import FP8_THRESHOLD, ONEREC, Operator, Spec, op
from .swiglu import swiglu_in_fp32

Expert = Callable[[int, Tensor], Tensor]  # expert number, chosen rows -> FP32 [chosen, D]


def _gated_sum(expert: Expert, index_NK: Tensor, weight_NK: Tensor, residual_ND: Tensor, experts: int) -> tuple[Tensor]:
    total_ND = torch.zeros_like(residual_ND, dtype=torch.float32)
    for number in range(experts):
        hit_NK = index_NK == number
        rows = hit_NK.any(1).nonzero()[:, 0]
        gate = torch.where(hit_NK[rows], weight_NK[rows], 0).sum(1, keepdim=True)
        total_ND[rows] += expert(number, rows) * gate
    return ((total_ND + residual_ND.float()).half(),)


def fp16_meaning(
    x_ND: Tensor, gate_up: Tensor, down: Tensor, index_NK: Tensor, weight_NK: Tensor, residual_ND: Tensor, *, experts: int
) -> tuple[Tensor]:
    up, back = gate_up.unflatten(0, (experts, -1)).float(), down.unflatten(0, (experts, -1)).float()

    def expert(number: int, rows: Tensor) -> Tensor:
        hidden = swiglu_in_fp32((x_ND[rows].float() @ up[number].T).half()).half()
        return hidden.float() @ back[number].T

    return _gated_sum(expert, index_NK, weight_NK, residual_ND, experts)


def tensor_meaning(
    codes_ND: Tensor,
    scale: Tensor,
    gate_up: Tensor,
    gate_up_scale: Tensor,
    down: Tensor,
    down_scale: Tensor,
    hidden_scale_E: Tensor,
    index_NK: Tensor,
    weight_NK: Tensor,
    residual_ND: Tensor,
    *,
    experts: int,
    promotion: int,
) -> tuple[Tensor]:
    return _scaled_meaning(
        codes_ND, scale, gate_up, gate_up_scale, down, down_scale, hidden_scale_E, index_NK, weight_NK, residual_ND, experts
    )


def row_meaning(
    codes_ND: Tensor,
    scale_N1: Tensor,
    gate_up: Tensor,
    gate_up_scale: Tensor,
    down: Tensor,
    down_scale: Tensor,
    index_NK: Tensor,
    weight_NK: Tensor,
    residual_ND: Tensor,
    *,
    experts: int,
    promotion: int,
) -> tuple[Tensor]:
    return _scaled_meaning(codes_ND, scale_N1, gate_up, gate_up_scale, down, down_scale, None, index_NK, weight_NK, residual_ND, experts)


def _scaled_meaning(
    codes: Tensor,
    scale: Tensor,
    gate_up: Tensor,
    gate_up_scale: Tensor,
    down: Tensor,
    down_scale: Tensor,
    hidden_scale_E: Tensor | None,
    index_NK: Tensor,
    weight_NK: Tensor,
    residual_ND: Tensor,
    experts: int,
) -> tuple[Tensor]:
    up, back = gate_up.unflatten(0, (experts, -1)), down.unflatten(0, (experts, -1))
    up_scale, back_scale = gate_up_scale.view(experts, -1), down_scale.view(experts, -1)

    def expert(number: int, rows: Tensor) -> Tensor:
        row_scale = scale if scale.numel() == 1 else scale[rows]
        gate_up_rows = (codes[rows].float() @ up[number].float().T * (row_scale * up_scale[number])).half()
        hidden = swiglu_in_fp32(gate_up_rows)
        if hidden_scale_E is None:
            hidden_codes, hidden_scale = fp8.quantise_rows(hidden)
        else:
            hidden_scale = hidden_scale_E[number]
            hidden_codes = fp8.quantise_tensor(hidden, hidden_scale)
        return hidden_codes.float() @ back[number].float().T * (hidden_scale * back_scale[number])

    return _gated_sum(expert, index_NK, weight_NK, residual_ND, experts)


def block_meaning(
    codes_NK: Tensor,
    scale: Tensor,
    gate_up: Tensor,
    gate_up_scale: Tensor,
    down: Tensor,
    down_scale: Tensor,
    index_NK: Tensor,
    weight_NK: Tensor,
    residual_ND: Tensor,
    *,
    experts: int,
    promotion: int,
) -> tuple[Tensor]:
    up = fp8.dequantise_row_blocks(gate_up, gate_up_scale).unflatten(0, (experts, -1))
    back = fp8.dequantise_row_blocks(down, down_scale).unflatten(0, (experts, -1))
    x = fp8.dequantise_row_blocks(codes_NK, scale)

    def expert(number: int, rows: Tensor) -> Tensor:
        hidden = swiglu_in_fp32((x[rows] @ up[number].T).half())
        return fp8.dequantise_row_blocks(*fp8.quantise_row_blocks(hidden)) @ back[number].T

    return _gated_sum(expert, index_NK, weight_NK, residual_ND, experts)


# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,attr-defined,call-arg"
@script(ONEREC, default_opset=op)
def MoeExperts(x, gate_up, down, index, weight, residual, experts: int):
    rows = op.Unsqueeze(x, op.Constant(value_ints=[0]))
    hidden = op.Cast(SwiGlu32(op.Cast(StackedProduct(rows, gate_up, experts=experts), to=10)), to=10)
    result = StackedProduct(hidden, down, experts=experts)
    return GateAndSum(result, index, weight, residual, experts=experts)


@script(ONEREC, default_opset=op)
def MoeExpertsFp8Tensor(
    codes,
    scale,
    gate_up,
    gate_up_scale,
    down,
    down_scale,
    hidden_scale,
    index,
    weight,
    residual,
    experts: int,
    promotion: int,
):
    unit = op.Constant(value=PRODUCT_SCALE_FP16)
    rows = op.Unsqueeze(op.DequantizeLinear(codes, unit), op.Constant(value_ints=[0]))
    product = StackedProduct(rows, op.DequantizeLinear(gate_up, unit), experts=experts)
    gate_up_rows = op.Cast(op.Mul(product, op.Mul(scale, ColumnScale(gate_up_scale, experts=experts))), to=10)
    per_expert = op.Unsqueeze(hidden_scale, op.Constant(value_ints=[1, 2]))
    hidden_codes = QuantiseByScale(SwiGlu32(gate_up_rows), per_expert)
    back = StackedProduct(op.DequantizeLinear(hidden_codes, unit), op.DequantizeLinear(down, unit), experts=experts)
    result = op.Mul(back, op.Mul(per_expert, ColumnScale(down_scale, experts=experts)))
    return GateAndSum(result, index, weight, residual, experts=experts)


@script(ONEREC, default_opset=op)
def MoeExpertsFp8Row(codes, scale, gate_up, gate_up_scale, down, down_scale, index, weight, residual, experts: int, promotion: int):
    unit = op.Constant(value=PRODUCT_SCALE_FP16)
    rows = op.Unsqueeze(op.DequantizeLinear(codes, unit), op.Constant(value_ints=[0]))
    product = StackedProduct(rows, op.DequantizeLinear(gate_up, unit), experts=experts)
    gate_up_rows = op.Cast(op.Mul(product, op.Mul(scale, ColumnScale(gate_up_scale, experts=experts))), to=10)
    hidden_codes, hidden_scale = QuantiseRows(SwiGlu32(gate_up_rows))
    back = StackedProduct(op.DequantizeLinear(hidden_codes, unit), op.DequantizeLinear(down, unit), experts=experts)
    result = op.Mul(back, op.Mul(hidden_scale, ColumnScale(down_scale, experts=experts)))
    return GateAndSum(result, index, weight, residual, experts=experts)


@script(ONEREC, default_opset=op)
def MoeExpertsFp8Block(codes, scale, gate_up, gate_up_scale, down, down_scale, index, weight, residual, experts: int, promotion: int):
    one = op.Constant(value_float=1.0)
    x = op.Unsqueeze(ScaledBlocks(op.DequantizeLinear(codes, one), scale), op.Constant(value_ints=[0]))
    up = op.DequantizeLinear(gate_up, gate_up_scale, axis=1, block_size=BLOCK)
    hidden = SwiGlu32(op.Cast(StackedProduct(x, up, experts=experts), to=10))
    hidden_shape = op.Shape(hidden)
    flat = op.Reshape(hidden, op.Concat(op.Constant(value_ints=[-1]), op.Shape(hidden, start=2), axis=0))
    hidden_codes, hidden_scale = QuantiseRowBlocks(flat)
    requantised = op.Reshape(ScaledBlocks(op.DequantizeLinear(hidden_codes, one), hidden_scale), hidden_shape)
    back = op.DequantizeLinear(down, down_scale, axis=1, block_size=BLOCK)
    result = StackedProduct(requantised, back, experts=experts)
    return GateAndSum(result, index, weight, residual, experts=experts)


def _specs(*inputs: Tensor, experts: int, promotion: int = 0) -> tuple[Spec, ...]:
    residual = inputs[-1]
    return (Spec(torch.float16, tuple(residual.shape)),)


moe_experts = Operator(
    name="MoeExperts", meaning=fp16_meaning, function=MoeExperts, helpers=(PerExpert, SwiGlu32, StackedProduct, GateAndSum), outputs=_specs
)
moe_experts_fp8_tensor = Operator(
    name="MoeExpertsFp8Tensor",
    meaning=tensor_meaning,
    function=MoeExpertsFp8Tensor,
    helpers=(PerExpert, SwiGlu32, QuantiseByScale, StackedProduct, ColumnScale, GateAndSum),
    outputs=_specs,
    threshold=FP8_THRESHOLD,
)
moe_experts_fp8_row = Operator(
    name="MoeExpertsFp8Row",
    meaning=row_meaning,
    function=MoeExpertsFp8Row,
    helpers=(PerExpert, SwiGlu32, QuantiseByScale, QuantiseRows, StackedProduct, ColumnScale, GateAndSum),
    outputs=_specs,
    threshold=FP8_THRESHOLD,
)
moe_experts_fp8_block = Operator(
    name="MoeExpertsFp8Block",
    meaning=block_meaning,
    function=MoeExpertsFp8Block,
    helpers=(SwiGlu32, QuantiseByScale, QuantiseRows, QuantiseRowBlocks, PerExpert, ScaledBlocks, StackedProduct, GateAndSum),
    outputs=_specs,
    threshold=FP8_THRESHOLD,
)
