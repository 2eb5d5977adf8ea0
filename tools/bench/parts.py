"""Parts of the model over which the layer times of a plan are added up, so that plans can be compared that fuse differently."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...models.layout import PLACES, Role

EXPERTS = "experts"
ROUTER = "router"
PRODUCTS = "matrix products"
CONTEXT = "attention to the context"
SELF = "self-attention"
ACTIVATION = "SwiGLU"
NORMS = "norms and residuals"
BEAM = "beam steps, heads, embedding"
ELSEWHERE = "elsewhere"
PARTS = (EXPERTS, ROUTER, PRODUCTS, CONTEXT, SELF, ACTIVATION, NORMS, BEAM, ELSEWHERE)

# A fused layer computes several places and counts for the first of these parts that any of them belongs to. A fused node of ours has
# the place of its first part alone, such as experts with the norm behind them.
_PART_OF_ROLE: Mapping[Role, str] = {
    "experts": EXPERTS,
    "router": ROUTER,
    "beam": BEAM,
    "activation": ACTIVATION,
    "norm": NORMS,
    "self-attention": SELF,
    "context attention": CONTEXT,
    "product": PRODUCTS,
}


def part_of(places: str) -> str:
    """The part of places such as 'blocks.*.self.o, blocks.*.ffn.norm', as layer times name them."""
    names = [name.removeprefix("blocks.*.") for name in places.split(", ")]
    roles = {role for name in names for place, role in PLACES.items() if name.startswith(place)}
    return next((part for role, part in _PART_OF_ROLE.items() if role in roles), ELSEWHERE)


def milliseconds_by_part(times: Mapping[str, Any]) -> dict[str, float]:
    """Milliseconds of every part, from an entry of `layer_times`; what its places do not list is elsewhere."""
    found: dict[str, float] = dict.fromkeys(PARTS, 0.0)
    for place in times["places"]:
        found[part_of(place["places"])] += place["milliseconds"]
    found[ELSEWHERE] += max(0.0, times["milliseconds"] - sum(found.values()))
    return found
