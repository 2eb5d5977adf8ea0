"""The recipe's `fp8_accumulation` in a graph: after how many channels the kernel of an FP8 product adds its sum to an FP32 one.

Every operator with FP8 products has the attribute `promotion`, experts too. Exported graphs have 0, never.
"""

from __future__ import annotations

import onnx

from ..core.recipe import Fp8Accumulation
from ..operators.operator import DOMAIN

PROMOTION: dict[Fp8Accumulation, int] = {"fast": 0, "promoted": 128}  # channels; 128 are one step of the kernels' main loop


def set_fp8_accumulation(model: onnx.ModelProto, accumulation: Fp8Accumulation) -> None:
    """Set the attribute `promotion` of every operator that has it, in place."""
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.domain == DOMAIN and attribute.name == "promotion":
                attribute.i = PROMOTION[accumulation]
