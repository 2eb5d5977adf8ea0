"""Where a plan's time goes: each layer timed by TensorRT itself, summed by the places in the model that it computes.

Timed layers run one after the other without a CUDA graph, so their sum need not be the latency.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from .inspector_report import places_of_layers


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
        report: The engine inspector's JSON.
    """
    known = places_of_layers(report)
    taken: dict[str, dict[str, list[float]]] = {}  # milliseconds by place and kernel
    for name, milliseconds in times:
        places, kernel = known.get(name, ("elsewhere", name))
        taken.setdefault(places, {}).setdefault(kernel, []).append(milliseconds)
    return sorted((_place_time(places, kernels) for places, kernels in taken.items()), key=lambda place: -place.milliseconds)


def _place_time(places: str, kernels: Mapping[str, Sequence[float]]) -> PlaceTime:
    slowest_first = sorted(kernels, key=lambda kernel: -sum(kernels[kernel]))
    return PlaceTime(
        places=places,
        layers=sum(map(len, kernels.values())),
        milliseconds=round(sum(map(sum, kernels.values())), 4),
        kernels={kernel: len(kernels[kernel]) for kernel in slowest_first},
    )
