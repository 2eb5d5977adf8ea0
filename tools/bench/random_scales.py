"""Static activation scales for a model of random weights: for benchmarks only, never for a served model.

One forward pass of the packed model in per-token FP8 on random features; the largest value a group of linears reads, over all
rows and steps, is its AbsMax.
"""

from __future__ import annotations

import torch

from ...core.errors import CalibrationError
from ...core.precision import E4M3_MAX
from ...export.packed import TensorSource
from ...export.serving import ServingModel
from ...models.config import PATHWAYS
from ...models.layout import layout
from ...operators.operator import recorded_calls

SCALES_FROM = "random weights, static scales from one forward pass"  # as the benchmark's result says it
_REQUESTS, _TOKENS, _BEAM = 2, 16, 8  # a few rows are enough: random values are much alike


def input_amax(source: TensorSource, seed: int) -> dict[str, float]:
    """AbsMax of the tensor each group of linears reads, by the group's name.

    Args:
        source: The model packed in fp8-row.
        seed: Of the features.

    Raises:
        CalibrationError: The model has experts, whose inner activations this does not see.
    """
    if source.config.moe is not None:
        hint = "calibrate a trained checkpoint, or measure fp8-row"
        raise CalibrationError("static scales of a model with experts cannot be made from random weights", hint=hint)
    model = ServingModel(source, (_BEAM,) * 3).eval()
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(_REQUESTS, _TOKENS, source.config.feature_width, generator=generator).half()
    lengths = torch.tensor([[_TOKENS // len(PATHWAYS)] * len(PATHWAYS)] * _REQUESTS)
    with torch.no_grad(), recorded_calls() as calls:
        model(features, lengths)
    inputs = {linear.prepared: linear.input for linear in layout(source.config).linears if linear.scheme is not None}
    amax: dict[str, float] = {}
    for call in calls:
        place = call.label.partition(".")[2]  # its label is such as `step0.blocks.3.cross.norm`
        if (group := inputs.get(place)) is not None:
            amax[group] = max(amax.get(group, 0.0), float(call.outputs[1].max()) * E4M3_MAX)
    return amax
