"""Which linears a precision quantizes, and how: the model's layout joined with the precision."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.precision import BLOCK, PRECISIONS, Granularity
from ..models.config import OneRecConfig
from ..models.layout import Linear, Scheme, layout


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
    kind: Scheme
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
    """Every linear that some precision quantizes, in the model's order, with its granularity in this one."""
    scheme = PRECISIONS[precision]

    def granularity(linear: Linear) -> Granularity:
        if linear.scheme == "linear":
            return scheme.linears
        return scheme.hidden if linear.kind == "expert down" else scheme.experts

    return [
        Target(linear.name, linear.input, linear.scheme, linear.shape, granularity(linear))
        for linear in layout(config).linears
        if linear.scheme is not None
    ]


def quantized_targets(config: OneRecConfig, precision: str) -> list[Target]:
    """The targets that the precision really quantizes; none for fp16."""
    return [target for target in targets_of(config, precision) if target.granularity is not Granularity.NONE]


def linear_names(config: OneRecConfig) -> list[str]:
    """Every linear of the model, quantized or not, in the model's order."""
    return [linear.name for linear in layout(config).linears]
