"""All experts of a block as three batched products: the same numbers as expert by expert, in a few launches instead of hundreds.

Every expert sees every row, so this wastes arithmetic to save launches: it pays where rows are few and experts are small, as in
training of a reference model on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .onerec import MixtureOfExperts, SwiGlu


@contextmanager
def experts_at_once(model: nn.Module) -> Iterator[None]:
    """While the block runs, every mixture of experts of the model computes all its experts in batched products."""
    mixtures = [module for module in model.modules() if isinstance(module, MixtureOfExperts)]
    try:
        for moe in mixtures:
            moe.forward = partial(_forward, moe)  # type: ignore[method-assign]  # of this instance, until the block ends
        yield
    finally:
        for moe in mixtures:
            vars(moe).pop("forward", None)


def _forward(moe: MixtureOfExperts, x: Tensor) -> Tensor:
    rows_ND = x.reshape(-1, x.shape[-1])
    with torch.autocast(x.device.type, enabled=False):  # which expert a row goes to is decided in FP32, as in every other forward pass
        index_NK, weight_NK = moe.route(rows_ND)
    gate_NE = torch.zeros(len(rows_ND), len(moe.experts), device=x.device, dtype=weight_NK.dtype).scatter(1, index_NK, weight_NK)
    gate_NX = torch.cat([gate_NE, gate_NE.new_ones(len(rows_ND), len(moe.shared))], 1)
    experts: list[SwiGlu] = [expert for group in (moe.experts, moe.shared) for expert in group if isinstance(expert, SwiGlu)]
    gate_XHD, up_XHD, down_XDH = (torch.stack([getattr(expert, part).weight for expert in experts]) for part in ("gate", "up", "down"))
    rows_XND = rows_ND.expand(len(experts), -1, -1)
    hidden_XNH = F.silu(rows_XND @ gate_XHD.mT) * (rows_XND @ up_XHD.mT)
    result_XND = (hidden_XNH * gate_NX.T[..., None].to(hidden_XNH.dtype)) @ down_XDH.mT
    return result_XND.sum(0).reshape(x.shape)
