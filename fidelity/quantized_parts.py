"""What a precision has in FP8, as sensitivity takes it apart: linears, and attention to the context of a block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..calibration.targets import Target, fp8_attention, quantized_targets
from ..core.precision import precision_of
from ..models.config import OneRecConfig
from ..models.layout import CONTEXT_ATTENTION, attention_place, layout


@dataclass(frozen=True)
class ContextAttention:
    """Attention to the context of one block: both of its products."""

    block: int


Part = Target | ContextAttention
CONTEXT_KIND = CONTEXT_ATTENTION.replace(".", " ")  # as the kinds of linears are called


def quantized_parts(config: OneRecConfig, precision: str) -> list[Part]:
    """Everything that a precision has in FP8: linears, then attention to the context."""
    attention = sorted(fp8_attention(config, precision_of(precision)))
    return [*quantized_targets(config, precision), *map(ContextAttention, attention)]


def parts_by_kind(config: OneRecConfig, parts: Sequence[Part]) -> dict[str, list[Part]]:
    """Parts by what they are for, such as `cross q`."""
    kinds = {linear.name: linear.kind for linear in layout(config).linears}
    return _grouped(parts, lambda part: CONTEXT_KIND if isinstance(part, ContextAttention) else kinds[part.name])


def parts_by_layer(config: OneRecConfig, parts: Sequence[Part]) -> dict[str, list[Part]]:
    """Parts by their place in the graph, such as `blocks.3.cross.q`, which is one layer."""
    places = {linear.name: linear.place for linear in layout(config).linears}
    return _grouped(parts, lambda part: attention_place(part.block) if isinstance(part, ContextAttention) else places[part.name])


def multiplications(config: OneRecConfig, part: Part, context: float) -> float:
    """Multiplications per token; a routed expert's count by the share of tokens that are sent to it on average.

    Args:
        config: The model.
        part: One of its linears, or one block's attention.
        context: Tokens that attention reads.
    """
    if isinstance(part, ContextAttention):
        return 2 * context * config.d_model  # a score and a weighed value for each token and head
    outputs, inputs = part.shape
    share = config.moe.top_k / config.moe.experts if config.moe is not None and ".experts." in part.name else 1.0
    return outputs * inputs * share


def _grouped(parts: Sequence[Part], name_of: Callable[[Part], str]) -> dict[str, list[Part]]:
    groups: dict[str, list[Part]] = {}
    for part in parts:
        groups.setdefault(name_of(part), []).append(part)
    return groups
