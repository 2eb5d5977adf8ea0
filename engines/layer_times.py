"""Where a plan's time goes: each layer timed by TensorRT itself, summed by the places in the model that it computes.

Timed layers run one after the other without a CUDA graph, so their sum exceeds the latency a little.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from ..builders.layer_report import places_of_layers


class PlaceTime(BaseModel):
    """Milliseconds of one execution spent in layers that compute the same places of a block, summed over blocks and steps.

    `kernels`: distinct kernels with the number of layers that each ran, the slowest first.
    """

    model_config = ConfigDict(extra="forbid")

    places: str
    layers: int
    milliseconds: float
    kernels: dict[str, int]


def times_by_place(times: Sequence[tuple[str, float]], report: Mapping[str, Any]) -> list[PlaceTime]:
    """Sum layer times by place, the slowest first.

    Args:
        times: Name and milliseconds of every layer that ran.
        report: The engine inspector's JSON of the profile that ran.
    """
    known = places_of_layers(report)
    milliseconds: defaultdict[str, float] = defaultdict(float)
    layers: defaultdict[str, int] = defaultdict(int)
    kernels: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for name, taken in times:
        places, kernel = known.get(name, ("elsewhere", name))
        milliseconds[places] += taken
        layers[places] += 1
        kernels[places][kernel].append(taken)
    ordered = sorted(milliseconds, key=milliseconds.__getitem__, reverse=True)
    return [
        PlaceTime(places=place, layers=layers[place], milliseconds=round(milliseconds[place], 4), kernels=_slowest_first(kernels[place]))
        for place in ordered
    ]


def _slowest_first(kernels: Mapping[str, Sequence[float]]) -> dict[str, int]:
    return {kernel: len(taken) for kernel, taken in sorted(kernels.items(), key=lambda entry: -sum(entry[1]))}
