"""Parts of the model over which the layer times of a plan are added up, so that plans can be compared that fuse differently."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PRODUCTS = "matrix products"
CONTEXT = "attention to the context"
SELF = "self-attention"
ACTIVATION = "SwiGLU"
NORMS = "norms and residuals"
BEAM = "beam steps, heads, embedding"
ELSEWHERE = "elsewhere"
PARTS = (PRODUCTS, CONTEXT, SELF, ACTIVATION, NORMS, BEAM, ELSEWHERE)

# A fused layer computes several places and counts for the first of these parts that any of them belongs to.
_SIGNS = (
    (BEAM, ("beam", "head", "head_norm", "node_embedding")),
    (ACTIVATION, ("ffn.activation",)),
    (NORMS, ("cross.norm", "self.norm", "ffn.norm")),
    (SELF, ("self.attention", "self.quantize")),
    (CONTEXT, ("cross.attention", "cross.quantize", "context.")),
    (PRODUCTS, ("cross.q", "cross.o", "self.qkv", "self.o", "ffn.gate_up", "ffn.down")),
)


def part_of(places: str) -> str:
    """The part of places such as 'blocks.*.self.o, blocks.*.ffn.norm', as layer times name them."""
    names = [name.removeprefix("blocks.*.") for name in places.split(", ")]
    for part, signs in _SIGNS:
        if any(name.startswith(sign) for name in names for sign in signs):
            return part
    return ELSEWHERE


def milliseconds_by_part(times: Mapping[str, Any]) -> dict[str, float]:
    """Milliseconds of every part, from an entry of `layer_times`; what its places do not list is elsewhere."""
    found: dict[str, float] = dict.fromkeys(PARTS, 0.0)
    for place in times["places"]:
        found[part_of(place["places"])] += place["milliseconds"]
    found[ELSEWHERE] += max(0.0, times["milliseconds"] - sum(found.values()))
    return found
