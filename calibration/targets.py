"""What a precision quantizes, and how: the model's layout joined with the precision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from ..core.errors import RecipeError
from ..core.precision import BLOCK, Granularity, Precision, precision_of
from ..models.config import OneRecConfig
from ..models.layout import CONTEXT_ATTENTION, Layout, Linear, Scheme, layout, within_block


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


@lru_cache
def granularities(config: OneRecConfig, scheme: Precision) -> Mapping[str, Granularity]:
    """How each linear that some precision quantizes is quantized in this one, by name; NONE: it stays in FP16.

    Raises:
        RecipeError: A pattern of layers to keep in FP16 matches none, or all of them together leave no linear in FP8.
    """
    known = layout(config)
    found = {linear.name: _granularity(linear, scheme) for linear in known.quantizable()}
    for pattern in scheme.keep_fp16:
        kept = known.quantizable(pattern)
        if not kept and not (scheme.fp8_attention and known.attentions(pattern)):
            raise _no_layer(pattern, known, scheme)
        found |= {linear.name: Granularity.NONE for linear in kept}
    if scheme.keep_fp16 and set(found.values()) == {Granularity.NONE}:
        raise RecipeError("the patterns leave no linear in FP8", where="keep_fp16", hint="choose precision: fp16, or keep fewer layers")
    return found


@lru_cache
def fp8_attention(config: OneRecConfig, scheme: Precision) -> frozenset[int]:
    """Blocks whose attention to the context is in FP8; what calibrates and stores linears does not know it."""
    if not scheme.fp8_attention:
        return frozenset()
    kept = {block for pattern in scheme.keep_fp16 for block in layout(config).attentions(pattern)}
    return frozenset(range(config.n_layers)) - kept


def targets_of(config: OneRecConfig, precision: str, keep_fp16: Iterable[str] = ()) -> list[Target]:
    """Every linear that some precision quantizes, in the model's order, with its granularity in this one.

    Args:
        config: The model.
        precision: One of PRECISIONS.
        keep_fp16: Patterns of layers that stay in FP16. Default: none.

    Raises:
        RecipeError: A pattern matches no layer, or nothing is left in FP8.
    """
    granularity = granularities(config, precision_of(precision, keep_fp16))
    return [
        Target(linear.name, linear.input, linear.scheme, linear.shape, granularity[linear.name])
        for linear in layout(config).linears
        if linear.scheme is not None
    ]


def quantized_targets(config: OneRecConfig, precision: str, keep_fp16: Iterable[str] = ()) -> list[Target]:
    """The targets that the precision really quantizes; none for fp16. Arguments and errors are those of `targets_of`."""
    return [target for target in targets_of(config, precision, keep_fp16) if target.granularity is not Granularity.NONE]


def quantized_products(config: OneRecConfig, scheme: Precision) -> set[str]:
    """Nodes of the graph, step included, that multiply by quantized weights."""
    granularity = granularities(config, scheme)
    quantized = [linear for linear in layout(config).quantizable() if granularity[linear.name] is not Granularity.NONE]
    return {node for linear in quantized for node in linear.nodes}


def linear_names(config: OneRecConfig) -> list[str]:
    """Every linear of the model, quantized or not, in the model's order."""
    return [linear.name for linear in layout(config).linears]


def _granularity(linear: Linear, scheme: Precision) -> Granularity:
    if linear.scheme == "linear":
        return scheme.linears
    return scheme.hidden if linear.kind == "expert down" else scheme.experts


def _no_layer(pattern: str, known: Layout, scheme: Precision) -> RecipeError:
    places = dict.fromkeys(within_block(linear.place) for linear in known.quantizable())
    if scheme.fp8_attention:
        places[CONTEXT_ATTENTION] = None
    hint = f"a pattern matches {', '.join(places)}; or one block's, blocks.0 to blocks.{known.blocks - 1}, such as blocks.0.*"
    return RecipeError(f"'{pattern}' is none of the layers that this precision quantizes", where="keep_fp16", hint=hint)
