"""MoeExperts: SwiGLU experts in FP16, gated, summed in expert order, residual added; and what its FP8 forms share.

Weights of all experts lie below each other: gate_up [E * 2H, D], down [E * D, H]. The gate multiplies
the FP32 result of the down product. The ONNX functions compute every expert for every token and
select with Where (never 0 * y: an infinity would give NaN); kernels compute the selected ones only.

Letters in names: N tokens, K selected experts of a token, E experts, D d_model, H expert hidden.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from onnxscript import script
from torch import Tensor

from .functions import Product, SwiGlu32
from .moe_dense import GateAndSum, PerExpert, StackedProduct
from .operator import ONEREC, Operator, Spec, op
from .swiglu import swiglu_in_fp32

Expert = Callable[[int, Tensor], Tensor]  # expert number, numbers of its tokens -> FP32 [tokens, D]


def moe_experts_reference(
    x_ND: Tensor, gate_up: Tensor, down: Tensor, index_NK: Tensor, weight_NK: Tensor, residual_ND: Tensor, *, experts: int
) -> tuple[Tensor]:
    """FP16 [N, D]; the hidden activations are rounded to FP16 before and after SwiGLU."""
    up, back = gate_up.unflatten(0, (experts, -1)).float(), down.unflatten(0, (experts, -1)).float()

    def expert(number: int, rows: Tensor) -> Tensor:
        hidden = swiglu_in_fp32((x_ND[rows].float() @ up[number].T).half()).half()
        result: Tensor = hidden.float() @ back[number].T
        return result

    return gated_sum(expert, index_NK, weight_NK, residual_ND, experts)


def gated_sum(expert: Expert, index_NK: Tensor, weight_NK: Tensor, residual_ND: Tensor, experts: int) -> tuple[Tensor]:
    """residual + sum of weight * expert over a token's experts, in expert order, FP32 until the end."""
    total_ND = torch.zeros_like(residual_ND, dtype=torch.float32)
    exists_NK = (index_NK >= 0) & (index_NK < experts)
    slots_KN = torch.where(exists_NK, index_NK, experts).T  # one more row for experts that do not exist
    none = torch.zeros(experts + 1, len(index_NK), device=index_NK.device)
    gate_EN = none.scatter_add(0, slots_KN, weight_NK.T)[:experts]
    hit_EN = none.bool().scatter(0, slots_KN, torch.ones_like(slots_KN, dtype=torch.bool))[:experts]
    counts = hit_EN.sum(1).tolist()  # at once, since a GPU waits here
    for number, rows in enumerate(hit_EN.nonzero()[:, 1].split(counts)):
        total_ND[rows] += expert(number, rows) * gate_EN[number, rows, None]
    return ((total_ND + residual_ND.float()).half(),)


def residual_spec(*inputs: Tensor, **_attributes: int) -> tuple[Spec, ...]:
    """The output is like the last input, the residual."""
    return (Spec(torch.float16, tuple(inputs[-1].shape)),)


@script(ONEREC, default_opset=op)
def MoeExperts(x, gate_up, down, index, weight, residual, experts: int):
    rows = op.Unsqueeze(x, op.Constant(value_ints=[0]))
    hidden = op.Cast(SwiGlu32(StackedProduct(rows, gate_up, experts=experts)), to=10)
    result = op.Cast(StackedProduct(hidden, down, experts=experts), to=1)
    return GateAndSum(result, index, weight, residual, experts=experts)


moe_experts = Operator(
    name="MoeExperts",
    reference=moe_experts_reference,
    function=MoeExperts,
    helpers=(PerExpert, SwiGlu32, Product, StackedProduct, GateAndSum),
    outputs=residual_spec,
)
