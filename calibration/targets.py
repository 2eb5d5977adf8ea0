"""Which linears a precision quantizes, known from the model's configuration alone, and which of them read the same tensor.

Source: arXiv 2603.11486, table of the FP8 operators: attention projections, dense FFN and experts; never the router,
the context pathways or the heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from ..core.precision import BLOCK, PRECISIONS, Granularity
from ..models.config import OneRecConfig
from ..models.onerec import OneRec

Kind = Literal["linear", "expert"]


@dataclass(frozen=True)
class Target:
    """One linear under `blocks`.

    Args:
        name: Module name, e.g. `blocks.0.self_attention.q`.
        group: Name of the tensor it reads; linears of one group share an activation scale.
        kind: `expert` for routed and shared experts, else `linear`.
        shape: Outputs N and inputs K.
        granularity: How its activations are quantized; NONE leaves it in FP16.
    """

    name: str
    group: str
    kind: Kind
    shape: tuple[int, int]
    granularity: Granularity

    @property
    def weight_scale_shape(self) -> tuple[int, ...]:
        """[N] for row scales, [N / 128, K / 128] rounded up for blocks."""
        outputs, inputs = self.shape
        return (-(-outputs // BLOCK), -(-inputs // BLOCK)) if self.granularity is Granularity.BLOCK else (outputs,)

    @property
    def stored_shape(self) -> tuple[int, int]:
        """[N, K] of the stored codes; K is zero-padded to whole blocks where there are blocks."""
        outputs, inputs = self.shape
        return (outputs, -(-inputs // BLOCK) * BLOCK) if self.granularity is Granularity.BLOCK else (outputs, inputs)


def targets_of(config: OneRecConfig, precision: str) -> list[Target]:
    """Every linear under `blocks` except routers, in the model's order, with its granularity in this precision."""
    scheme = PRECISIONS[precision]
    granularity: dict[Kind, Granularity] = {"linear": scheme.linears, "expert": scheme.experts}
    return [
        Target(name, group, kind, shape, granularity[kind])
        for layer in range(config.n_layers)
        for name, group, kind, shape in _of_layer(config, layer)
    ]


def quantized_targets(config: OneRecConfig, precision: str) -> list[Target]:
    """The targets that the precision really quantizes; none for fp16."""
    return [target for target in targets_of(config, precision) if target.granularity is not Granularity.NONE]


def linear_names(config: OneRecConfig) -> list[str]:
    """Every linear of the model, quantized or not, in the model's order."""
    with torch.device("meta"):
        return [name for name, module in OneRec(config).named_modules() if isinstance(module, nn.Linear)]


_Row = tuple[str, str, Kind, tuple[int, int]]


def _of_layer(config: OneRecConfig, layer: int) -> Iterator[_Row]:
    block, square = f"blocks.{layer}", (config.d_model, config.d_model)
    for name in ("q", "o"):
        yield f"{block}.cross_attention.{name}", f"{block}.cross_attention.{name}", "linear", square
    for name in ("q", "k", "v"):
        yield f"{block}.self_attention.{name}", f"{block}.self_attention.qkv", "linear", square
    yield f"{block}.self_attention.o", f"{block}.self_attention.o", "linear", square
    ffn = f"{block}.ffn"
    if not config.is_moe(layer):
        yield from _of_ffn(ffn, f"{ffn}.gate_up", "linear", config.d_model, config.ffn_hidden)
        return
    assert config.moe is not None
    experts = [*(f"{ffn}.experts.{i}" for i in range(config.moe.experts)), *(f"{ffn}.shared.{i}" for i in range(config.moe.shared))]
    for expert in experts:
        yield from _of_ffn(expert, f"{ffn}.gate_up", "expert", config.d_model, config.moe.hidden)


def _of_ffn(name: str, input_group: str, kind: Kind, d_model: int, hidden: int) -> Iterator[_Row]:
    yield f"{name}.gate", input_group, kind, (hidden, d_model)
    yield f"{name}.up", input_group, kind, (hidden, d_model)
    yield f"{name}.down", f"{name}.down", kind, (d_model, hidden)
