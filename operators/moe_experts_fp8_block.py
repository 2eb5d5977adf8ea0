"""MoeExpertsFp8Block: the experts with 128 x 128 weight blocks and activation scales per token and 128 channels.

Source of the scheme: arXiv 2603.11486. Codes are zero-padded along K to whole blocks, the hidden
channels of gate and of up each to whole blocks too, so that no block straddles the two.
Letters as in moe_experts.py.
"""

from __future__ import annotations

from onnxscript import script
from torch import Tensor

from ..core.precision import BLOCK
from . import fp8
from .functions import QuantizeByScale, QuantizeRowBlocks, QuantizeRows, SwiGlu32
from .moe_dense import GateAndSum, PerExpert, ScaledBlocks, StackedProduct32
from .moe_experts import gated_sum, residual_spec
from .operator import FP8_THRESHOLD, ONEREC, Operator, op
from .swiglu import swiglu_in_fp32


def block_reference(
    codes_ND: Tensor,
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
    """FP16 [N, D] of codes with scales [N, D' / 128]; scales of weights [E * 2H', D' / 128] and [E * D, H' / 128]."""
    up = fp8.dequantize_row_blocks(gate_up, gate_up_scale).unflatten(0, (experts, -1))
    back = fp8.dequantize_row_blocks(down, down_scale).unflatten(0, (experts, -1))
    x = fp8.dequantize_row_blocks(codes_ND, scale)

    def expert(number: int, rows: Tensor) -> Tensor:
        hidden = swiglu_in_fp32((x[rows] @ up[number].T).half())
        result: Tensor = fp8.dequantize_row_blocks(*fp8.quantize_row_blocks(hidden)) @ back[number].T
        return result

    return gated_sum(expert, index_NK, weight_NK, residual_ND, experts)


@script(ONEREC, default_opset=op)
def MoeExpertsFp8Block(codes, scale, gate_up, gate_up_scale, down, down_scale, index, weight, residual, experts: int, promotion: int):
    one = op.Constant(value_float=1.0)
    x = op.Unsqueeze(ScaledBlocks(op.DequantizeLinear(codes, one), scale), op.Constant(value_ints=[0]))
    up = op.DequantizeLinear(gate_up, gate_up_scale, axis=1, block_size=BLOCK)
    hidden = SwiGlu32(op.Cast(StackedProduct32(x, up, experts=experts), to=10))
    hidden_shape = op.Shape(hidden)
    flat = op.Reshape(hidden, op.Concat(op.Constant(value_ints=[-1]), op.Shape(hidden, start=2), axis=0))
    hidden_codes, hidden_scale = QuantizeRowBlocks(flat)
    requantized = op.Reshape(ScaledBlocks(op.DequantizeLinear(hidden_codes, one), hidden_scale), hidden_shape)
    back = op.DequantizeLinear(down, down_scale, axis=1, block_size=BLOCK)
    result = StackedProduct32(requantized, back, experts=experts)
    return GateAndSum(result, index, weight, residual, experts=experts)


moe_experts_fp8_block = Operator(
    name="MoeExpertsFp8Block",
    reference=block_reference,
    function=MoeExpertsFp8Block,
    helpers=(SwiGlu32, QuantizeByScale, QuantizeRows, QuantizeRowBlocks, PerExpert, ScaledBlocks, StackedProduct32, GateAndSum),
    outputs=residual_spec,
    threshold=FP8_THRESHOLD,
)
