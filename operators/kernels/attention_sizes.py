"""What the launches of both attentions over the context share: sizes, how many tiles they have, and which tile serves how many requests."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from ..launch.node import WARPGROUP
from ..launch.program import Float32, Launch, Variant, dim
from ..launch.tiles import AttentionTile
from .warp_specialized import MULTIPROCESSORS, WARPGROUP_ROWS

SM90_HEADS = (64, 128)  # channels of a head that a warp-specialized kernel takes: whole rows of swizzled shared memory


@dataclass(frozen=True)
class AttentionSizes:
    """An attention over the context.

    Attributes:
        rows: Beams per request.
        groups: Heads of keys and values.
        share: Query heads that share keys and values.
        head: Channels of a head.
    """

    rows: int
    groups: int
    share: int
    head: int

    @property
    def warp_specialized(self) -> bool:
        """Whether a warp-specialized kernel takes these sizes."""
        return self.head in SM90_HEADS and self.rows >= WARPGROUP_ROWS

    @property
    def scale(self) -> Float32:
        """By which a kernel multiplies scores, whose powers of two it then takes."""
        return Float32(math.log2(math.e) / math.sqrt(self.head))

    def constants(self, tile: AttentionTile) -> dict[str, int | bool]:
        """Those of every kernel."""
        return {"ROWS": self.rows, "GROUPS": self.groups, "SHARE": self.share, "HEAD": self.head, "N_TILE": tile.n}

    def tiles(self, tile: AttentionTile) -> int:
        """Tiles of a request. One of the warp-specialized kernel has rows of a single head."""
        if tile.ctas:
            return self.groups * self.share * -(-self.rows // tile.m)
        return self.groups * -(-self.rows * self.share // tile.m)

    def requests_in_parts(self, tile: AttentionTile) -> int:
        """The most requests whose contexts are cut into parts: those whose whole contexts would leave multiprocessors without a CTA.

        It is a number of requests, not of tokens: how a request is cut depends on no other one's length.
        """
        return MULTIPROCESSORS // self.tiles(tile) if tile.part else 0

    def variants(self, tile: AttentionTile, launches: Callable[[AttentionTile], tuple[Launch, ...]]) -> tuple[Variant, ...]:
        """The launches for few and for many requests, in a usable tile. Input 1 has a first dimension of requests.

        A warpgroup that has a multiprocessor to itself is faster than one of two, but two together are faster than one after the other.
        So the warp-specialized kernel has tiles of one warpgroup as long as all of them run at once.
        Likewise contexts are cut into parts only as long as there are multiprocessors without a whole one.
        """
        whole = Variant(1, launches(replace(tile, part=0)))
        if most := self.requests_in_parts(tile):
            return (Variant(dim(1, 0).le(most), launches(tile)), whole)
        if tile.ctas == 0 or tile.m == WARPGROUP_ROWS:
            return (whole,)
        single = replace(tile, m=WARPGROUP_ROWS, warps=tile.warps - WARPGROUP)
        at_once = (dim(1, 0) * self.tiles(single)).le(tile.ctas)
        return (Variant(at_once, launches(single)), whole)
