"""How the operators of the experts differ: the type of their operands, what shares a scale, and how hidden activations are stored."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from ...core.dtypes import DType
from ..moe_experts_norm import PAIRS


class Share(IntEnum):
    """What shares a scale. Kernels know the numbers."""

    NONE = 0  # FP16 has no scales
    TENSOR = 1
    EXPERT = 2
    ROW = 3
    CHANNEL = 4
    BLOCK = 5  # 128 input channels of a row, or of an output channel


@dataclass(frozen=True)
class Scheme:
    """The numerics of one operator.

    Attributes:
        family: Under which its tiles stand in the table.
        operand: Of both products, activations and weights.
        x: What shares a scale of the input: NONE, TENSOR, ROW or BLOCK.
        weight: The same of weights: NONE, CHANNEL or BLOCK (then 128 x 128 weights).
        hidden: The same of the hidden activations: NONE, EXPERT, ROW or BLOCK.
    """

    family: str
    operand: DType
    x: Share
    weight: Share
    hidden: Share


_E4M3: DType = "float8_e4m3fn"
SCHEMES = {
    "MoeExperts": Scheme("moe_experts", "float16", Share.NONE, Share.NONE, Share.NONE),
    "MoeExpertsFp8Tensor": Scheme("moe_experts_fp8_tensor", _E4M3, Share.TENSOR, Share.CHANNEL, Share.EXPERT),
    "MoeExpertsFp8Row": Scheme("moe_experts_fp8_row", _E4M3, Share.ROW, Share.CHANNEL, Share.ROW),
    "MoeExpertsFp8RowBlock": Scheme("moe_experts_fp8_row_block", _E4M3, Share.ROW, Share.CHANNEL, Share.BLOCK),
    "MoeExpertsFp8Block": Scheme("moe_experts_fp8_block", _E4M3, Share.BLOCK, Share.BLOCK, Share.BLOCK),
}
# Experts that are fused with the norm behind them, by the fused operator.
EXPERTS_OF = {pair.name: pair.experts.name for pair in PAIRS.values()}


def scheme_of(operator: str) -> Scheme:
    """Of experts, fused with a norm or not."""
    return SCHEMES[EXPERTS_OF.get(operator, operator)]
