"""What is timed beside the kernels of the experts: the two grouped products of PyTorch, of rows that are sorted already.

Routing, activation, quantization and sums are left out, so that it bounds from below what PyTorch takes for a node.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..launch.case import Library
from .moe_scheme import Scheme


def grouped_products(scheme: Scheme, experts: int) -> Library:
    """Of the node's own input rows and weights; hidden activations are random. FP8 has a scale per row and per output channel."""
    if scheme.operand == "float16":
        return Library("torch._grouped_mm, both products in BF16, rows sorted before", lambda inputs: _in_bf16(inputs, experts))
    name = "torch._scaled_grouped_mm, both products, row-wise, fast accumulation, to BF16, rows sorted before"
    return Library(name, lambda inputs: _in_fp8(inputs, experts))


def sorted_rows(index_NS: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """Tokens in the order of their experts [N * S], and where each expert's rows end [E], INT32."""
    chosen = index_NS.flatten()
    ends = chosen.bincount(minlength=experts).cumsum(0).to(torch.int32)
    return chosen.argsort(stable=True) // index_NS.shape[1], ends


def _in_bf16(inputs: list[Tensor], experts: int) -> Callable[[], Tensor]:
    x_ND, gate_up, down = (tensor.bfloat16() for tensor in inputs[:3])
    rows, ends = sorted_rows(inputs[-3], experts)
    x, up, back = x_ND[rows], _stacked(gate_up, experts), _stacked(down, experts)
    hidden = torch.randn(len(x), back.shape[1], dtype=x.dtype, device=x.device)

    def call() -> Tensor:
        torch._grouped_mm(x, up, offs=ends)
        result: Tensor = torch._grouped_mm(hidden, back, offs=ends)
        return result

    return call


def _in_fp8(inputs: list[Tensor], experts: int) -> Callable[[], Tensor]:
    x_NK, gate_up, down = inputs[0], inputs[2], inputs[4]
    rows, ends = sorted_rows(inputs[-3], experts)
    x, up, back = x_NK.view(torch.uint8)[rows].view(x_NK.dtype), _stacked(gate_up, experts), _stacked(down, experts)
    hidden = torch.randn(len(x), back.shape[1], device=x.device).mul_(100).clamp_(-448, 448).to(x.dtype)
    row_scale = torch.full((len(x),), 0.01, device=x.device)
    up_scale, down_scale = (torch.full((experts, each.shape[2]), 0.01, device=x.device) for each in (up, back))

    def call() -> Tensor:
        _scaled(x, up, row_scale, up_scale, ends)
        return _scaled(hidden, back, row_scale, down_scale, ends)

    return call


def _scaled(x: Tensor, weight: Tensor, row_scale: Tensor, weight_scale: Tensor, ends: Tensor) -> Tensor:
    result: Tensor = torch._scaled_grouped_mm(x, weight, row_scale, weight_scale, offs=ends, out_dtype=torch.bfloat16, use_fast_accum=True)
    return result


def _stacked(weight: Tensor, experts: int) -> Tensor:
    """Weights [E * N, K] as the product wants them, [E, K, N] with K next to each other."""
    stacked: Tensor = weight.unflatten(0, (experts, -1)).transpose(1, 2)
    return stacked
