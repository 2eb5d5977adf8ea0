"""MoeExpertsFp8RowBlock: the experts with one weight scale per output channel, one input scale per token, hidden scales by blocks.

The hidden activations have a scale per token and 128 channels: the only one that a product knows when it has computed a tile, so that
it can quantize its own result. Letters as in moe_experts.py.
"""

from __future__ import annotations

from onnxscript import script
from torch import Tensor

from . import fp8
from .functions import QuantizeByScale, QuantizeRowBlocks, QuantizeRows, SwiGlu32
from .moe_dense import ColumnScale, GateAndSum, PerExpert, ScaledBlocks, StackedProduct32
from .moe_experts import gated_sum, residual_spec
from .moe_experts_fp8 import channel_scaled_expert
from .operator import FP8_THRESHOLD, ONEREC, Operator, op


def row_block_reference(
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
        values = fp8.dequantize_row_blocks(*fp8.quantize_row_blocks(hidden))[:, : hidden.shape[1]]
        return values, values.new_ones(1)

    expert = channel_scaled_expert(codes_ND, scale_N1, gate_up, gate_up_scale, down, down_scale, experts, requantize)
    return gated_sum(expert, index_NK, weight_NK, residual_ND, experts)


@script(ONEREC, default_opset=op)
def MoeExpertsFp8RowBlock(codes, scale, gate_up, gate_up_scale, down, down_scale, index, weight, residual, experts: int, promotion: int):
    unit = op.Constant(value_float=1.0)
    rows = op.Unsqueeze(op.DequantizeLinear(codes, unit), op.Constant(value_ints=[0]))
    product = StackedProduct32(rows, op.DequantizeLinear(gate_up, unit), experts=experts)
    hidden = SwiGlu32(op.Cast(op.Mul(product, op.Mul(scale, ColumnScale(gate_up_scale, experts=experts))), to=10))
    width = op.Shape(hidden, start=2)
    flat = op.Reshape(hidden, op.Concat(op.Constant(value_ints=[-1]), width, axis=0))
    hidden_codes, hidden_scale = QuantizeRowBlocks(flat)
    padded = ScaledBlocks(op.DequantizeLinear(hidden_codes, unit), hidden_scale)
    requantized = op.Reshape(op.Slice(padded, op.Constant(value_ints=[0]), width, op.Constant(value_ints=[1])), op.Shape(hidden))
    back = StackedProduct32(requantized, op.DequantizeLinear(down, unit), experts=experts)
    result = op.Mul(back, ColumnScale(down_scale, experts=experts))
    return GateAndSum(result, index, weight, residual, experts=experts)


moe_experts_fp8_row_block = Operator(
    name="MoeExpertsFp8RowBlock",
    reference=row_block_reference,
    function=MoeExpertsFp8RowBlock,
    helpers=(
        SwiGlu32,
        QuantizeByScale,
        QuantizeRows,
        QuantizeRowBlocks,
        PerExpert,
        ColumnScale,
        ScaledBlocks,
        StackedProduct32,
        GateAndSum,
    ),
    outputs=residual_spec,
    threshold=FP8_THRESHOLD,
)
