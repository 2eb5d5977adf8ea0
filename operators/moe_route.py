"""MoeRoute: which experts a token goes to, and with what weight. All of it in FP32.

Sigmoid scores; a bias takes part in the selection only; ties to the lower expert; selected weights
sum to 1. Shared experts follow as further slots with weight 1, numbered after the routed ones.
"""

from __future__ import annotations

import numpy as np
import torch
from onnxscript import script
from torch import Tensor

from ..core.difference import difference
from ..models.ordering import stable_topk
from .operator import ONEREC, Array, Attributes, Operator, Spec, op

TIE_BAND = 1e-5  # biased scores closer than this may be ordered either way by FP32 sums in another order


def moe_route_reference(x_ND: Tensor, router_ED: Tensor, bias_E: Tensor, *, top_k: int, shared: int) -> tuple[Tensor, Tensor]:
    """Expert index INT64 [N, top_k + shared] and weight FP32 [N, top_k + shared]."""
    score_NE = (x_ND.float() @ router_ED.float().T).sigmoid()
    _, index_NK = stable_topk(score_NE + bias_E, top_k)
    chosen_NK = score_NE.gather(1, index_NK)
    weight_NK = chosen_NK / chosen_NK.sum(1, keepdim=True)
    rows, experts = score_NE.shape
    shared_index = torch.arange(experts, experts + shared, device=x_ND.device).expand(rows, -1)
    return torch.cat([index_NK, shared_index], 1), torch.cat([weight_NK, weight_NK.new_ones(rows, shared)], 1)


def compare_routing(actual: list[Array], expected: list[Array], inputs: list[Array], attributes: Attributes) -> float:
    """Difference of the dense gates of those rows whose selection is no near-tie; a changed selection elsewhere counts in full.

    An expert that does not exist makes it infinite, whatever its row.
    """
    x, router, bias = (array.astype(np.float64) for array in inputs)
    biased = np.sort(1 / (1 + np.exp(-(x @ router.T))) + bias, axis=1)[:, ::-1]
    k = int(attributes["top_k"])
    clear = np.ones(len(x), bool) if k == router.shape[0] else biased[:, k - 1] - biased[:, k] > TIE_BAND
    experts = router.shape[0] + int(attributes["shared"])
    index = actual[0].astype(np.int64)
    if ((index < 0) | (index >= experts)).any():
        return float("inf")
    return difference(_dense(actual, experts)[clear], _dense(expected, experts)[clear])


def _dense(outputs: list[Array], experts: int) -> Array:
    gates = np.zeros((len(outputs[0]), experts))
    np.put_along_axis(gates, outputs[0].astype(np.int64), outputs[1].astype(np.float64), 1)
    return gates


@script(ONEREC, default_opset=op)
def MoeRoute(x, router, bias, top_k: int, shared: int):
    score = op.Sigmoid(op.MatMul(op.Cast(x, to=1), op.Transpose(router, perm=[1, 0])))
    k = op.Reshape(op.Constant(value_int=top_k), op.Constant(value_ints=[1]))
    _biased, index = op.TopK(op.Add(score, bias), k, axis=1)
    chosen = op.GatherElements(score, index, axis=1)
    weight = op.Div(chosen, op.ReduceSum(chosen, op.Constant(value_ints=[1]), keepdims=1))
    rows = op.Shape(x, end=1)
    experts = op.Squeeze(op.Shape(router, end=1))
    last = op.Add(experts, op.Constant(value_int=shared))
    shared_row = op.Range(experts, last, op.Constant(value_int=1))
    count = op.Shape(shared_row)
    shape = op.Concat(rows, count, axis=0)
    shared_index = op.Expand(op.Unsqueeze(shared_row, op.Constant(value_ints=[0])), shape)
    shared_weight = op.Expand(op.Constant(value_float=1.0), shape)
    return op.Concat(index, shared_index, axis=1), op.Concat(weight, shared_weight, axis=1)


def _specs(x: Tensor, router: Tensor, bias: Tensor, *, top_k: int, shared: int) -> tuple[Spec, ...]:
    shape = (x.shape[0], top_k + shared)
    return (Spec(torch.int64, shape), Spec(torch.float32, shape))


moe_route = Operator(name="MoeRoute", reference=moe_route_reference, function=MoeRoute, outputs=_specs, compare=compare_routing)
