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
    """How a memory-bound kernel cuts its rows.

    Attributes:
        rows: Rows of a program.
        chunk: Columns read at a time; 256 per warp of a row give 16 bytes of FP16 to each lane.
        warps: Of a program.
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
        warps: Of a program; of the persistent kernel those of all roles, which follow from m.
        group: Row tiles that are walked before the next column of tiles, so that weights stay in the L2 cache.
        programs: Programs of the persistent kernel, which is for compute capability 9.0; 0 is the kernel with one program per tile and
            ordinary loads.
    """

    m: int
    n: int
    k: int
    stages: int
    warps: int
    group: int = 8
    programs: int = 0


@dataclass(frozen=True)
class AttentionTile:
    """How an attention is cut.

    Attributes:
        m: Query rows of a program: those of all heads that share keys and values.
        n: Tokens of one step of the loop over the context.
        stages: Steps in flight.
        warps: Of a program; of the kernel whose warps have roles those of all roles.
        descriptors: Whether keys and values come through tensor-memory-accelerator descriptors, not by ordinary loads.
        programs: Programs of the kernel whose warps have roles, which is for compute capability 9.0; 0 is the kernel with one program
            per tile.
    """

    m: int
    n: int
    stages: int
    warps: int
    descriptors: bool = False
    programs: int = 0


Tile = RowTile | GemmTile | AttentionTile


@dataclass(frozen=True)
class Entry:
    """One line of the table. `shape` is (width,) of a row kernel, (K, N) of a product, (d,) of an attention with so many query rows."""

    capability: str
    family: str
    rows: int
    shape: tuple[int, ...]
    tile: Tile

    def key(self) -> tuple[Any, ...]:
        return ([int(part) for part in self.capability.split(".")], self.family, self.shape, self.rows)


@dataclass(frozen=True)
class RowClass:
    """The tile for row counts up to `most`; None is without end."""

    most: int | None
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
        return _merged([RowClass(most, tile) for most, tile in zip([*bounds, None], nearest, strict=True)])

    def tile(self, capability: str, family: str, shape: Sequence[int], rows: int) -> Tile:
        """The tile for one row count, which must be known.

        Raises:
            BuildError: The table has no tiles of this family for this compute capability.
        """
        return next(e.tile for e in self.classes(capability, family, shape) if e.most is None or rows <= e.most)

    def on(self, multiprocessors: int) -> Tiles:
        """The table for a GPU with so many multiprocessors: of kernels whose programs are alone on theirs, none has to wait for another."""

        def cut(tile: Tile) -> Tile:
            return tile if isinstance(tile, RowTile) else replace(tile, programs=min(tile.programs, multiprocessors))

        return Tiles(tuple(replace(entry, tile=cut(entry.tile)) for entry in self.entries))

    def with_entries(self, new: Sequence[Entry]) -> Tiles:
        """A table in which the new entries take the place of those they are for."""
        merged = {(e.capability, e.family, e.rows, e.shape): e for e in (*self.entries, *new)}
        return Tiles(tuple(sorted(merged.values(), key=Entry.key)))

    def write(self, path: Path) -> None:
        """Write the table, one entry per line."""
        lines = ",\n".join("  " + json.dumps({**asdict(e), "tile": _without_defaults(e.tile)}) for e in self.entries)
        write_text(path, f"[\n{lines}\n]\n")


def _merged(classes: list[RowClass]) -> list[RowClass]:
    """Neighbors with the same tile are one: a kernel is compiled once."""
    followers: list[RowClass | None] = [*classes[1:], None]
    return [each for each, after in zip(classes, followers, strict=True) if after is None or after.tile != each.tile]


def _distance(known: Sequence[int], wanted: Sequence[int]) -> float:
    return sum(math.log(a / b) ** 2 for a, b in zip(known, wanted, strict=True))


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
    cut = values["tile"]
    tile: Tile = GemmTile(**cut) if "k" in cut else AttentionTile(**cut) if "m" in cut else RowTile(**cut)
    numbers = (rows, *shape, *(value for value in asdict(tile).values()))
    if not all(isinstance(number, int) and number >= 0 for number in numbers) or min(rows, *shape) < 1:
        raise ValueError(f"an entry holds something else than positive numbers: {values}")
    return Entry(values["capability"], values["family"], rows, shape, tile)


@cache
def committed_tiles() -> Tiles:
    """The table that ships with the package."""
    return read_tiles()
