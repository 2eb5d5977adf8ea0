"""MoeExperts and its FP8 forms with the norm that follows them in a model, as one operator: the sum, then what the norm makes of it.

Fused operators: no exported file holds them; a build with plugins puts them in the place of their parts. References and functions
are made of those of the parts, so the norm reads the sum as it is rounded to FP16. That sum, the residual stream, is the first output:
later nodes read it, too. Letters in names as in moe_experts.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import onnx
import torch
from onnx import helper
from torch import Tensor

from . import fp8
from .moe_experts import moe_experts
from .moe_experts_fp8 import moe_experts_fp8_row, moe_experts_fp8_tensor
from .moe_experts_fp8_block import moe_experts_fp8_block
from .moe_experts_fp8_row_block import moe_experts_fp8_row_block
from .operator import DOMAIN, VERSION, Array, Attributes, Operator, Spec
from .rms_norm import rms_norm
from .rms_norm_quant import rms_norm_quant_row, rms_norm_quant_tensor


@dataclass(frozen=True)
class Pair:
    """The parts of a fused operator. The inputs of the norm behind its x follow those of the experts."""

    experts: Operator
    norm: Operator

    @property
    def name(self) -> str:
        """Of the fused operator."""
        return self.experts.name + self.norm.name

    @cached_property
    def inputs(self) -> int:
        """How many the experts have."""
        return len(self.experts.function.to_function_proto().input)

    def to_function_proto(self) -> onnx.FunctionProto:
        """The body of the experts' function, and a call of the norm's.

        ONNX Runtime takes FP8 into a function only where a standard operator reads it there: a call of the experts' would be refused.
        """
        made, norm = onnx.FunctionProto(), self.norm.function.to_function_proto()
        made.CopyFrom(self.experts.function.to_function_proto())
        made.name = self.name
        (total,) = made.output
        inputs, outputs = ([f"norm_{name}" for name in names] for names in (norm.input[1:], norm.output))
        made.input.extend(inputs)
        made.output.extend(outputs)
        made.node.append(helper.make_node(norm.name, [total, *inputs], outputs, domain=DOMAIN))
        for name in norm.attribute:
            made.attribute.append(name)
            made.node[-1].attribute.append(onnx.AttributeProto(name=name, ref_attr_name=name, type=onnx.AttributeProto.FLOAT))
        made.opset_import.append(helper.make_opsetid(DOMAIN, VERSION))
        return made

    def reference(self, *inputs: Tensor, epsilon: float, **attributes: int) -> tuple[Tensor, ...]:
        """The experts' sum, FP16 [N, D], and what the norm makes of it: its norm, or codes, scales where they are made, and norm."""
        (total_ND,) = self.experts.reference(*inputs[: self.inputs], **attributes)
        return total_ND, *self.norm.reference(total_ND, *inputs[self.inputs :], epsilon=epsilon)

    def outputs(self, *inputs: Tensor, epsilon: float, **attributes: int) -> tuple[Spec, ...]:
        """The sum is like the residual, the last input of the experts."""
        before, behind = inputs[: self.inputs], inputs[self.inputs :]
        return *self.experts.outputs(*before, **attributes), *self.norm.outputs(before[-1], *behind, epsilon=epsilon)

    def norm_of(self, total: Array, behind: Sequence[Array], attributes: Attributes) -> list[Array]:
        """What the norm's reference makes of a sum; `behind` are the norm's other inputs. E4M3 codes as the values they stand for."""
        inputs = (torch.from_numpy(array) for array in behind)
        made = self.norm.reference(torch.from_numpy(total).half(), *inputs, epsilon=attributes["epsilon"])
        return [(each.float() if each.dtype == fp8.E4M3 else each).numpy() for each in made]

    def compare(self, actual: list[Array], expected: list[Array], inputs: list[Array], attributes: Attributes) -> float:
        """The largest difference: of the sum from the reference's, and on either side of the norm from that of the side's own sum.

        A sum may differ by the experts' threshold. In codes of its norm that would cost more than the norm's threshold allows.
        """
        if actual[0].shape != expected[0].shape:
            return float("inf")
        before, behind = inputs[: self.inputs], inputs[self.inputs :]
        differences = [self.experts.compare(actual[:1], expected[:1], before, attributes)]
        for total, *norm in (actual, expected):
            differences.append(self.norm.compare(norm, self.norm_of(total, behind, attributes), [total, *behind], attributes))
        return max(differences)


def _operator(pair: Pair) -> Operator:
    return Operator(
        name=pair.name,
        reference=pair.reference,
        function=pair,
        helpers=tuple(dict.fromkeys((*pair.experts.helpers, *pair.norm.helpers, pair.norm.function))),
        outputs=pair.outputs,
        threshold=max(pair.experts.threshold, pair.norm.threshold),
        compare=pair.compare,
    )


PAIRS = {
    pair.name: pair
    for pair in (
        Pair(moe_experts, rms_norm),
        Pair(moe_experts_fp8_tensor, rms_norm_quant_tensor),
        Pair(moe_experts_fp8_row, rms_norm_quant_row),
        Pair(moe_experts_fp8_row_block, rms_norm_quant_row),
        # What follows these experts in a model is quantized per row: only experts read codes of blocks.
        Pair(moe_experts_fp8_block, rms_norm_quant_row),
    )
}
(
    moe_experts_rms_norm,
    moe_experts_fp8_tensor_rms_norm_quant_tensor,
    moe_experts_fp8_row_rms_norm_quant_row,
    moe_experts_fp8_row_block_rms_norm_quant_row,
    moe_experts_fp8_block_rms_norm_quant_row,
) = map(_operator, PAIRS.values())
