"""Some parts of a model in FP8, all else in FP32: what one kind of layer, or one layer, costs by itself.

Weights become the values that their codes stand for, inputs go through the cast that the serving graph makes; products stay in FP32.
Attention to the context is computed from codes as its operator does, but nothing is rounded to FP16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..calibration.quantize import quantize_weight, weight_amax
from ..calibration.statistics import activation_cast
from ..calibration.targets import Target
from ..core.precision import Granularity
from ..export.packed import norm_bound
from ..models.onerec import KeyValue, OneRec
from ..operators import fp8
from ..operators.context_attention_fp8 import attend_to_codes
from .quantized_parts import ContextAttention, Part


@contextmanager
def simulated(model: OneRec, parts: Sequence[Part], input_amax: Mapping[str, float]) -> Iterator[None]:
    """While the block runs, these parts compute with quantized weights and inputs.

    Args:
        model: In FP32.
        parts: Linears, each with its granularity, and attention of blocks.
        input_amax: AbsMax of what each group of linears reads; needed where a granularity is static.
    """
    with ExitStack() as stack:
        for part in parts:
            stack.enter_context(_one(model, part, input_amax))
        yield


def _one(model: OneRec, part: Part, input_amax: Mapping[str, float]) -> AbstractContextManager[None]:
    if isinstance(part, ContextAttention):
        return _attention(model, part.block)
    return _linear(model.get_submodule(part.name), part, input_amax.get(part.group))


@contextmanager
def _attention(model: OneRec, block: int) -> Iterator[None]:
    attention, kv_set = model.get_submodule(f"blocks.{block}.cross_attention"), model.config.kv_set(block)
    norms = [f"context.{role}_norms.{kv_set}.weight" for role in ("key", "value" if model.config.s_kv == 2 else "key")]
    scales = [fp8.scale_of(norm_bound(model.get_parameter(name).detach())) for name in norms]
    vars(attention)["attend"] = partial(_attend, scales)  # before the method of this name
    try:
        yield
    finally:
        del vars(attention)["attend"]


def _attend(scales: Sequence[Tensor], query_BHXd: Tensor, kv: KeyValue, valid_BS: Tensor) -> Tensor:
    """In the place of CrossAttention.attend, with the constant scales of keys and of values."""
    keys, values = ((fp8.quantize_tensor(each, scale).float(), scale) for each, scale in zip(kv, scales, strict=True))
    heads, groups = query_BHXd.shape[1], kv.key_BGSd.shape[1]
    query_BGXd = query_BHXd.unflatten(1, (groups, -1)).flatten(2, 3)
    attended_BGXd = attend_to_codes(query_BGXd, keys, values, valid_BS.sum(1))
    attended_BHXd: Tensor = attended_BGXd.unflatten(2, (heads // groups, -1)).flatten(1, 2)
    return attended_BHXd


@contextmanager
def _linear(linear: nn.Module, target: Target, amax: float | None) -> Iterator[None]:
    exact = linear.weight
    assert isinstance(exact, nn.Parameter)
    static = target.granularity is Granularity.TENSOR
    handle = linear.register_forward_pre_hook(_casting(activation_cast(target.granularity, amax if static else None)))
    try:
        weight_NK = exact.detach()
        dequantized = quantize_weight(weight_NK, target.granularity, weight_amax(weight_NK, target.granularity)).dequantized()
        linear.weight = nn.Parameter(dequantized, requires_grad=False)
        yield
    finally:
        linear.weight = exact
        handle.remove()


def _casting(cast: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Tensor]]:
    return lambda _, inputs: (cast(inputs[0]),)


def device_of(model: OneRec) -> torch.device:
    """Where a model lies."""
    return model.token_embedding.weight.device
