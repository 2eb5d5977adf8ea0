"""A mixed recipe: layers stay in FP16, those first that gain most for their time, until the score error reaches a target.

Errors of single layers add up nearly as squares, so a layer gains its squared error, and costs its share of the multiplications. The
search measures the whole model and bisects for the shortest prefix of the order by gain over cost that reaches the target.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from .quantized_parts import parts_by_layer, quantized_parts
from .sensitivity import Probe, Sensitivity, score_error

DEFAULT_TARGET = 0.5  # of the error with everything quantized
FP8_SPEEDUP = 2.0  # of Hopper's tensor core over FP16: 1979 to 989.5 TFLOP/s (NVIDIA H100 data sheet)


class MixedRecipe(BaseModel):
    """Which layers stay in FP16, and what it costs.

    `kept`: their places in the graph, as `keep_fp16` of a recipe has them. `error`: mean absolute error of an item's score in nat.
    `slower`: time of the quantized products against all of them in FP8, at the tensor core's rates: 1.1 is a tenth more. `reached`:
    whether the target was; with every layer in FP16 it always is.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    precision: str
    target: float
    error: float
    error_without: float
    reached: bool
    kept: tuple[str, ...]
    share: float
    slower: float


def search(probe: Probe, found: Sensitivity, target: float | None = None) -> MixedRecipe:
    """The shortest list of layers in the order of gain over cost, without whose quantization the error is at most `target`.

    Args:
        probe: The one that `found` was measured on.
        found: Sensitivity of the precision to start from.
        target: Mean absolute error of an item's score, in nat. Default: half of that with everything quantized.
    """
    if target is None:
        target = DEFAULT_TARGET * found.all_at_once
    parts = quantized_parts(probe.model.config, found.precision)
    layers = parts_by_layer(probe.model.config, parts)
    order = [unit.unit for unit in sorted(found.layers, key=lambda unit: -(unit.error**2) / unit.share)]

    def error_with(kept: int) -> float:
        if kept == 0:
            return found.all_at_once
        return score_error(probe, [part for unit in order[kept:] for part in layers[unit]])

    low, high, error = 0, len(order), error_with(0)
    if error > target:
        error = 0.0  # nothing quantized
        while high - low > 1:  # low misses the target, high reaches it
            middle = (low + high) // 2
            measured = error_with(middle)
            low, high, error = (low, middle, measured) if measured <= target else (middle, high, error)
    else:
        high = 0
    share = probe.multiplications([part for unit in order[:high] for part in layers[unit]]) / probe.multiplications(parts)
    return MixedRecipe(
        precision=found.precision,
        target=target,
        error=error,
        error_without=found.all_at_once,
        reached=error <= target,
        kept=tuple(order[:high]),
        share=share,
        slower=1 + share * (FP8_SPEEDUP - 1),
    )
