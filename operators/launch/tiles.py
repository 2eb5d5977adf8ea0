"""The committed table of tile configurations: which tile a kernel uses for a shape on a compute capability.

`onerec-trt dev tune` writes a new one (tools/tuning/tune.py); a shape that was not measured takes the nearest one that was.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from ...core.artifacts import read_json, write_text
from ...core.errors import ArtifactError, BuildError

TABLE = Path(__file__).parents[1] / "kernels" / "tiles.json"
CAPABILITIES = ("8.9", "9.0", "12.0")


@dataclass(frozen=True)
class RowTile:
    """How a memory-bound kernel cuts its rows; moe_rank.py has its own use of one. A tile's class is the `kind` of its entry in the table.

    Attributes:
        rows: Rows of a CTA.
        chunk: Columns read at a time; 256 per warp of a row give 16 bytes of FP16 to each lane.
        warps: Of a CTA.
        registers: Most per thread; 0 leaves it to the compiler. Fewer registers let more rows be in flight.
    """

    rows: int
    chunk: int
    warps: int
    registers: int = 0


@dataclass(frozen=True)
class GemmTile:
    """How a matrix product is cut.

    Attributes:
        m: Rows of a tile.
        n: Output channels of a tile.
        k: Input channels of one step of the main loop.
        stages: Steps in flight.
        warps: Of a CTA; of the warp-specialized kernel all of them, which follow from m.
        group: Row tiles that are walked before the next column of tiles, so that weights stay in the L2 cache.
        ctas: CTAs of the persistent, warp-specialized kernel for compute capability 9.0; 0 is the kernel with one CTA per tile and
            ordinary loads.
        slices: Warps of a CTA that share its input channels, in the kernel for few rows (gemm_few.py): all of them. 0 is another kernel.
        parts: CTAs that share the input channels of a tile. With more than one a second launch adds their sums.
    """

    m: int
    n: int
    k: int
    stages: int
    warps: int
    group: int = 8
    ctas: int = 0
    slices: int = 0
    parts: int = 1


@dataclass(frozen=True)
class AttentionTile:
    """How an attention is cut.

    Attributes:
        m: Query rows of a CTA: those of all heads that share keys and values.
        n: Tokens of one step of the loop over the context.
        stages: Steps in flight.
        warps: Of a CTA; of the warp-specialized kernel all of them.
        descriptors: Whether keys and values come through TMA descriptors, not by ordinary loads.
        ctas: CTAs of the persistent, warp-specialized kernel for compute capability 9.0; 0 is the kernel with one CTA per tile.
        part: Tokens of the context of a CTA where rows and requests are few; a second launch merges the parts of a request. 0 is never.
    """

    m: int
    n: int
    stages: int
    warps: int
    descriptors: bool = False
    ctas: int = 0
    part: int = 0


@dataclass(frozen=True)
class ExpertTile:
    """How both products of the experts are cut.

    Attributes:
        up_m: Sorted rows of a tile of the up product.
        down_m: Of the down product.
        n: Output channels of a tile; an up product that computes the activation, too, has 128 of gate and up each.
        up_stages: Steps in flight of the up product.
        down_stages: Of the down product.
        warps: Of a CTA with ordinary loads; those of the warp-specialized kernels follow from their rows.
        ctas: CTAs of the persistent, warp-specialized kernels for compute capability 9.0; 0 are the kernels with one CTA per tile and
            ordinary loads, whose products have equal rows.
    """

    up_m: int
    down_m: int
    n: int
    up_stages: int
    down_stages: int
    warps: int
    ctas: int = 0


@dataclass(frozen=True)
class RouteTile:
    """How routing is cut.

    Attributes:
        m: Tokens of a CTA that computes logits; it has all experts.
        k: Channels of one step of its main loop.
        stages: Steps in flight.
        warps: Of such a CTA.
        parts: CTAs that share the channels of a token. With more than one a second launch adds their logits and chooses.
        chosen: Tokens of a CTA of that launch.
        chosen_warps: Its warps.
    """

    m: int
    k: int
    stages: int
    warps: int
    parts: int = 1
    chosen: int = 16
    chosen_warps: int = 4


Tile = RowTile | GemmTile | AttentionTile | ExpertTile | RouteTile
KINDS: dict[str, type[Tile]] = {
    "row": RowTile,
    "gemm": GemmTile,
    "attention": AttentionTile,
    "experts": ExpertTile,
    "route": RouteTile,
}
_KIND_OF = {tile: kind for kind, tile in KINDS.items()}


@dataclass(frozen=True)
class Entry:
    """One line of the table.

    `shape` is (width,) of a row kernel, (K, N) of a product, (D, H) of experts, (d,) of an attention with so many query rows.
    """

    capability: str
    family: str
    rows: int
    shape: tuple[int, ...]
    tile: Tile

    def key(self) -> tuple[Any, ...]:
        return ([int(part) for part in self.capability.split(".")], self.family, self.shape, self.rows)


@dataclass(frozen=True)
class RowClass:
    """The tile for row counts up to `max_rows`; None is without end."""

    max_rows: int | None
    tile: Tile


@dataclass(frozen=True)
class Tiles:
    """A table of tiles."""

    entries: tuple[Entry, ...]

    def classes(self, capability: str, family: str, shape: Sequence[int]) -> list[RowClass]:
        """A tile for every row count, fewest rows first; each row count of the table serves those nearest to it, as ratios.

        Raises:
            BuildError: The table has no tiles of this family for this compute capability.
        """
        known = [e for e in self.entries if (e.capability, e.family) == (capability, family) and len(e.shape) == len(shape)]
        if not known:
            hint = f"set build.plugins to false to build without kernels; they exist for compute capability {', '.join(CAPABILITIES)}"
            raise BuildError(f"no tiles of {family} for compute capability {capability}", where=str(TABLE), hint=hint)
        counts = sorted({entry.rows for entry in known})
        bounds = [math.isqrt(low * high) for low, high in pairwise(counts)]
        nearest = [min((e for e in known if e.rows == rows), key=lambda e: (_distance(e.shape, shape), e.shape)).tile for rows in counts]
        return merged([RowClass(bound, tile) for bound, tile in zip([*bounds, None], nearest, strict=True)])

    def tile(self, capability: str, family: str, shape: Sequence[int], rows: int) -> Tile:
        """The tile for one row count, which must be known.

        Raises:
            BuildError: The table has no tiles of this family for this compute capability.
        """
        return tile_for(self.classes(capability, family, shape), rows)

    def on(self, multiprocessors: int) -> Tiles:
        """The table for a GPU with so many multiprocessors: a persistent kernel has one CTA per multiprocessor at most."""

        def cut(tile: Tile) -> Tile:
            return tile if isinstance(tile, RowTile | RouteTile) else replace(tile, ctas=min(tile.ctas, multiprocessors))

        return Tiles(tuple(replace(entry, tile=cut(entry.tile)) for entry in self.entries))

    def with_entries(self, new: Sequence[Entry]) -> Tiles:
        """A table in which the new entries take the place of those they are for."""
        merged = {(e.capability, e.family, e.rows, e.shape): e for e in (*self.entries, *new)}
        return Tiles(tuple(sorted(merged.values(), key=Entry.key)))

    def write(self, path: Path) -> None:
        """Write the table, one entry per line."""
        lines = ",\n".join("  " + json.dumps(_line(entry)) for entry in self.entries)
        write_text(path, f"[\n{lines}\n]\n")


def tile_for(classes: Sequence[RowClass], rows: int | None) -> Tile:
    """The tile of the class that has so many rows; None is more than any number."""
    return next(each.tile for each in classes if each.max_rows is None or (rows is not None and rows <= each.max_rows))


def merged(classes: list[RowClass]) -> list[RowClass]:
    """Neighbors with the same tile are one: a kernel is compiled once."""
    followers: list[RowClass | None] = [*classes[1:], None]
    return [each for each, after in zip(classes, followers, strict=True) if after is None or after.tile != each.tile]


def _distance(known: Sequence[int], wanted: Sequence[int]) -> float:
    return sum(math.log(a / b) ** 2 for a, b in zip(known, wanted, strict=True))


def _line(entry: Entry) -> dict[str, Any]:
    return {**asdict(entry), "tile": {"kind": _KIND_OF[type(entry.tile)], **_without_defaults(entry.tile)}}


def _without_defaults(tile: Tile) -> dict[str, Any]:
    return {f.name: value for f in fields(tile) if (value := getattr(tile, f.name)) != f.default}


def read_tiles(path: Path = TABLE) -> Tiles:
    """Read a table.

    Raises:
        ArtifactError: It is missing, or an entry is not as it must be.
    """
    values = read_json(path)
    try:
        return Tiles(tuple(map(_entry, values)))
    except (TypeError, KeyError, ValueError) as error:
        raise ArtifactError(f"not a table of tiles: {error}", where=str(path), hint="restore it from version control") from None


def _entry(values: dict[str, Any]) -> Entry:
    shape, rows = tuple(values["shape"]), values["rows"]
    cut = dict(values["tile"])
    tile = KINDS[cut.pop("kind")](**cut)
    numbers = (rows, *shape, *asdict(tile).values())
    if not all(isinstance(number, int) and number >= 0 for number in numbers) or min(rows, *shape) < 1:
        raise ValueError(f"an entry holds something else than positive numbers: {values}")
    return Entry(values["capability"], values["family"], rows, shape, tile)


@cache
def committed_tiles() -> Tiles:
    """The table that ships with the package."""
    return read_tiles()
