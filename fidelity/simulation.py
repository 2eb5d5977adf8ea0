"""Some linears of a model in FP8, all else in FP32: what one kind of layer, or one layer, costs by itself.

Weights become the values that their codes stand for, inputs go through the cast that the serving graph makes; products stay in FP32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..calibration.quantize import quantize_weight, weight_amax
from ..calibration.statistics import activation_cast
from ..calibration.targets import Target
from ..core.precision import Granularity
from ..models.onerec import OneRec


@contextmanager
def simulated(model: OneRec, targets: Sequence[Target], input_amax: Mapping[str, float]) -> Iterator[None]:
    """While the block runs, these linears compute with quantized weights and inputs.

    Args:
        model: In FP32.
        targets: The linears, each with its granularity.
        input_amax: AbsMax of what each group of linears reads; needed where a granularity is static.
    """
    with ExitStack() as stack:
        for target in targets:
            stack.enter_context(_one(model.get_submodule(target.name), target, input_amax.get(target.group)))
        yield


@contextmanager
def _one(linear: nn.Module, target: Target, amax: float | None) -> Iterator[None]:
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


def multiplications(model: OneRec, targets: Sequence[Target]) -> dict[str, float]:
    """Multiplications per token of each linear; a routed expert's count by the share of tokens that are sent to it on average."""
    moe = model.config.moe
    share = 1.0 if moe is None else moe.top_k / moe.experts
    return {target.name: target.shape[0] * target.shape[1] * (share if ".experts." in target.name else 1.0) for target in targets}


def device_of(model: OneRec) -> torch.device:
    """Where a model lies."""
    return model.token_embedding.weight.device
