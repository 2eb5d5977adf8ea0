"""Stress: outliers planted into a model whose results they leave alone, and what each scheme makes of them.

Factors are powers of two, so that the planted model computes exactly what it did before, in FP32. The published claim that FP8 loses
nothing rests on the absence of such outliers (arXiv 2603.11486); these show what their presence would look like. E4M3 has exponents of
its own: between its largest value and its smallest normal one lies a factor of 2^15, so that a spread of a thousand alone costs little.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..models.onerec import MixtureOfExperts, OneRec, SwiGlu

FACTORS = (2.0**10, 2.0**13, 2.0**16)  # the first is the power of two next to a thousand; the last is beyond E4M3's exponents
EVERY = (
    499  # one row in so many is an outlier token, the first of a batch always: fewer than one in a hundred, so that AbsP99 is a usual value
)
NEVER = -1e4  # selection bias of an expert that no token is sent to


@torch.no_grad()
def plant_channel(model: OneRec, swiglu: str, channel: int, factor: float) -> str:
    """Make one hidden channel of a SwiGLU larger, and the weights that read it smaller by as much.

    Args:
        model: Changed in place.
        swiglu: The module, such as `blocks.1.ffn` or `blocks.1.ffn.experts.0`.
        channel: The hidden channel.
        factor: A power of two.

    Returns:
        Name of the activation that has the outlier.
    """
    module = model.get_submodule(swiglu)
    assert isinstance(module, SwiGlu)
    module.up.weight[channel] *= factor
    module.down.weight[:, channel] /= factor
    return f"{swiglu}.down.input"


@contextmanager
def planted_token(model: OneRec, linear: str, factor: float, every: int = EVERY) -> Iterator[str]:
    """While the block runs, every n-th row that a linear reads is larger, and its result smaller by as much.

    No weight of a trained model does this by itself, so hooks do. Hooks of quantization that are set later see the larger rows.

    Yields:
        Name of the activation that has the outliers.
    """
    module = model.get_submodule(linear)

    def scale_of(x: Tensor) -> Tensor:
        rows = torch.arange(x[..., 0].numel(), device=x.device).view(x.shape[:-1])
        return torch.where(rows % every == 0, factor, 1.0)[..., None]

    def enlarge(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor]:
        return (inputs[0] * scale_of(inputs[0]),)

    def restore(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        return output / scale_of(inputs[0])

    handles = [module.register_forward_pre_hook(enlarge), module.register_forward_hook(restore)]
    try:
        yield f"{linear}.input"
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def plant_dead_expert(model: OneRec, block: int, expert: int) -> str:
    """Keep every token away from one expert; the name of its block's mixture of experts. Changes the model in place."""
    name = f"blocks.{block}.ffn"
    module = model.get_submodule(name)
    assert isinstance(module, MixtureOfExperts)
    module.selection_bias[expert] = NEVER
    return name
