"""MoeExpertsFp8{Tensor,Row}: the experts with one weight scale per output channel; activations per tensor or per token.

The input comes quantized; the hidden activations are quantized inside: per token, or with one
calibrated scale per expert. Letters as in moe_experts.py.
"""

from __future__ import annotations

from collections.abc import Callable

from onnxscript import script
from torch import Tensor

from . import fp8
from .functions import QuantizeByScale, QuantizeRows, SwiGlu32
from .moe_dense import ColumnScale, GateAndSum, PerExpert, StackedProduct32
from .moe_experts import Expert, gated_sum, residual_spec
from .operator import FP8_THRESHOLD, ONEREC, Operator, op
from .swiglu import swiglu_in_fp32

# Expert number, FP32 hidden -> E4M3 codes and their scale; or the values that codes stand for, and 1.
Requantize = Callable[[int, Tensor], tuple[Tensor, Tensor]]


def tensor_reference(
    codes_ND: Tensor,
    scale_1: Tensor,
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
    """FP16 [N, D] of codes with one scale [1]; scales of weights [E * 2H] and [E * D]."""

    def requantize(number: int, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return fp8.quantize_tensor(hidden, hidden_scale_E[number]), hidden_scale_E[number]

    scale_N1 = scale_1.expand(len(codes_ND), 1)
    expert = channel_scaled_expert(codes_ND, scale_N1, gate_up, gate_up_scale, down, down_scale, experts, requantize)
    return gated_sum(expert, index_NK, weight_NK, residual_ND, experts)


def row_reference(
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
    """FP16 [N, D] of codes with one scale per token; scales of weights [E * 2H] and [E * D]."""

    def requantize(_number: int, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return fp8.quantize_rows(hidden)

    expert = channel_scaled_expert(codes_ND, scale_N1, gate_up, gate_up_scale, down, down_scale, experts, requantize)
    return gated_sum(expert, index_NK, weight_NK, residual_ND, experts)


def channel_scaled_expert(
    codes_ND: Tensor,
    scale_N1: Tensor,
    gate_up: Tensor,
    gate_up_scale: Tensor,
    down: Tensor,
    down_scale: Tensor,
    experts: int,
    requantize: Requantize,
) -> Expert:
    """An expert whose weights have a scale per output channel; `requantize` says how its hidden activations are quantized."""
    up, back = gate_up.unflatten(0, (experts, -1)), down.unflatten(0, (experts, -1))
    up_scale, back_scale = gate_up_scale.view(experts, -1), down_scale.view(experts, -1)

    def expert(number: int, rows: Tensor) -> Tensor:
        product = codes_ND[rows].float() @ up[number].float().T * (scale_N1[rows] * up_scale[number])
        hidden_codes, hidden_scale = requantize(number, swiglu_in_fp32(product.half()))
        result: Tensor = hidden_codes.float() @ back[number].float().T * (hidden_scale * back_scale[number])
        return result

    return expert


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
    unit = op.Constant(value_float=1.0)
    rows = op.Unsqueeze(op.DequantizeLinear(codes, unit), op.Constant(value_ints=[0]))
    product = StackedProduct32(rows, op.DequantizeLinear(gate_up, unit), experts=experts)
    gate_up_rows = op.Cast(op.Mul(product, op.Mul(scale, ColumnScale(gate_up_scale, experts=experts))), to=10)
    per_expert = op.Unsqueeze(hidden_scale, op.Constant(value_ints=[1, 2]))
    hidden_codes = QuantizeByScale(SwiGlu32(gate_up_rows), per_expert)
    back = StackedProduct32(op.DequantizeLinear(hidden_codes, unit), op.DequantizeLinear(down, unit), experts=experts)
    result = op.Mul(back, op.Mul(per_expert, ColumnScale(down_scale, experts=experts)))
    return GateAndSum(result, index, weight, residual, experts=experts)


@script(ONEREC, default_opset=op)
def MoeExpertsFp8Row(codes, scale, gate_up, gate_up_scale, down, down_scale, index, weight, residual, experts: int, promotion: int):
    unit = op.Constant(value_float=1.0)
    rows = op.Unsqueeze(op.DequantizeLinear(codes, unit), op.Constant(value_ints=[0]))
    product = StackedProduct32(rows, op.DequantizeLinear(gate_up, unit), experts=experts)
    gate_up_rows = op.Cast(op.Mul(product, op.Mul(scale, ColumnScale(gate_up_scale, experts=experts))), to=10)
    hidden_codes, hidden_scale = QuantizeRows(SwiGlu32(gate_up_rows))
    back = StackedProduct32(op.DequantizeLinear(hidden_codes, unit), op.DequantizeLinear(down, unit), experts=experts)
    result = op.Mul(back, op.Mul(hidden_scale, ColumnScale(down_scale, experts=experts)))
    return GateAndSum(result, index, weight, residual, experts=experts)


moe_experts_fp8_tensor = Operator(
    name="MoeExpertsFp8Tensor",
    reference=tensor_reference,
    function=MoeExpertsFp8Tensor,
    helpers=(PerExpert, SwiGlu32, QuantizeByScale, StackedProduct32, ColumnScale, GateAndSum),
    outputs=residual_spec,
    threshold=FP8_THRESHOLD,
)
moe_experts_fp8_row = Operator(
    name="MoeExpertsFp8Row",
    reference=row_reference,
    function=MoeExpertsFp8Row,
    helpers=(PerExpert, SwiGlu32, QuantizeByScale, QuantizeRows, StackedProduct32, ColumnScale, GateAndSum),
    outputs=residual_spec,
    threshold=FP8_THRESHOLD,
)
