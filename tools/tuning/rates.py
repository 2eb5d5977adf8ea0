"""Rates of a kernel from its samples: of the first, after a rest, and sustained, when the GPU may have reached its power limit."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from ...operators.kernels.moe_cases import RANK_AND_PLACE
from ...operators.launch.case import Part

Samples = Sequence[float]  # microseconds, in the order they were taken


def rates(samples_us: Samples, flops: int = 0, moved: float = 0.0, bytes_per_second: float = 0.0) -> dict[str, Any]:
    """Microseconds and what they amount to, of the first sample and of the median of the later half.

    Args:
        samples_us: Of one kernel, or sums of several kernels' samples.
        flops: Of its products; 0: no rate.
        moved: Bytes that it must read and write; 0: no rate.
        bytes_per_second: Of the GPU's memory, by its data sheet.
    """
    taken = {"first": samples_us[0], "sustained": statistics.median(samples_us[len(samples_us) // 2 :])}
    return {
        name: {
            "microseconds": round(us, 3),
            "tflops": round(flops / us / 1e6, 1) if flops else None,
            "of_memory_bandwidth": round(moved / us * 1e6 / bytes_per_second, 4) if moved else None,
        }
        for name, us in taken.items()
    }


def parts_of(launches: Sequence[dict[str, Any]], parts: Iterable[Part]) -> list[dict[str, Any]]:
    """The sums of launches that do one thing, each of which was timed by itself."""
    return [
        {
            "name": part.name,
            "kernels": [launches[number]["kernel"] for number in part.launches],
            **rates([sum(each) for each in zip(*(launches[number]["samples_us"] for number in part.launches), strict=True)], part.flops),
        }
        for part in parts
    ]


def route_and_place(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What comes before the products of experts: the router, and the launches that bring its rows in order, for each kind of experts."""
    routes = {result["shape"].partition("x")[0]: result for result in results if result["operator"] == "MoeRoute"}
    found = []
    for result in results:
        route = routes.get(result["shape"].partition("x")[0])
        for part in result["parts"]:
            if route is not None and part["name"] == RANK_AND_PLACE:
                both = {when: round(route[when]["microseconds"] + part[when]["microseconds"], 3) for when in ("first", "sustained")}
                found.append({"operator": result["operator"], "shape": result["shape"], "variant": result["variant"], "microseconds": both})
    return found
