"""Statistics per layer as the plots show them: the experts of a block become one row, everything else keeps its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from ...calibration.summary import TensorSummary
from ...models.layout import block_of, label_of, of_all_experts
from .run import RecipeRun

Part = Literal["weights", "activations"]
Value = TypeVar("Value")


@dataclass(frozen=True)
class LayerRow:
    """One row of a plot: a tensor, or the same tensor of all experts of a block.

    Experts are merged on the cautious side: largest AbsMax and AbsP99, lowest signal-to-noise ratio, mean variance, summed histograms.
    Their predicted score errors count as independent, as rows do: squares add up.
    """

    label: str
    tensors: int
    variance: float
    absmax: float
    absp99: float
    snr_db: float | None
    score_error: float | None
    histogram: tuple[int, ...]


def layer_rows(tensors: Sequence[TensorSummary]) -> list[LayerRow]:
    """Rows in the order of the model: context, blocks by number, heads."""
    groups: dict[str, list[TensorSummary]] = {}
    for tensor in tensors:
        groups.setdefault(of_all_experts(tensor.name), []).append(tensor)
    return [_merged(name, groups[name]) for name in sorted(groups, key=_place)]


def rows_of(run: RecipeRun, part: Part) -> tuple[tuple[float, ...], list[LayerRow]]:
    """Edges of the histograms in log10 |x|, and the rows of a recipe's weights or activations."""
    tensors = run.quantization.weights if part == "weights" else run.quantization.activations
    return run.quantization.histogram_log10_edges, layer_rows(tensors)


def distinct(runs: Sequence[RecipeRun], value_of: Callable[[RecipeRun], Value]) -> list[tuple[list[RecipeRun], Value]]:
    """Runs grouped by an equal value, so that what recipes share is shown once."""
    groups: list[tuple[list[RecipeRun], Value]] = []
    for run in runs:
        value = value_of(run)
        same = next((members for members, known in groups if known == value), None)
        if same is None:
            groups.append(([run], value))
        else:
            same.append(run)
    return groups


def of_recipes(members: Sequence[RecipeRun], runs: Sequence[RecipeRun]) -> str:
    """For titles: nothing when all recipes share what is shown, else their names."""
    return "" if len(members) == len(runs) else ": " + ", ".join(run.name for run in members)


def _merged(name: str, tensors: Sequence[TensorSummary]) -> LayerRow:
    ratios = [tensor.snr_db for tensor in tensors if tensor.snr_db is not None]
    errors = [tensor.score_error for tensor in tensors if tensor.score_error is not None]
    return LayerRow(
        label=label_of(name),
        tensors=len(tensors),
        variance=sum(tensor.variance for tensor in tensors) / len(tensors),
        absmax=max(tensor.absmax for tensor in tensors),
        absp99=max(tensor.absp99 for tensor in tensors),
        snr_db=min(ratios, default=None),
        score_error=math.hypot(*errors) if errors else None,
        histogram=_summed(tensor.histogram for tensor in tensors),
    )


def _summed(histograms: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(map(sum, zip(*histograms, strict=True)))


def _place(name: str) -> tuple[int, int]:
    block = block_of(name)
    if block is not None:
        return (1, block)
    return (0, 0) if name.startswith("context") else (2, 0)
