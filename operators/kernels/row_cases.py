"""Cases that the memory-bound kernels share: ragged rows, rows with NaN and infinity, sizes that are tuned, and candidate tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..launch.case import MANY_ROWS, Case, Trial, Tuning
from ..launch.tiles import RowTile
from ..operator import Attributes

EPSILON: Attributes = {"epsilon": 1e-6}
CODES_ONLY = (True, True, False)  # nobody reads the norm
MODEL_WIDTHS = (1408, 3584)
HIDDEN_WIDTHS = (5632, 14336)
RAGGED = ((1, 96, RowTile(1, 128, 1)), (5, 640, RowTile(4, 256, 4)), (3, 200, RowTile(2, 512, 4)))
Make = Callable[[int, int], Case]  # of rows and width


def row_trials(make: Make, *, halves: bool = False, bad_rows: bool = True) -> Iterator[Trial]:
    """Ragged rows, among them one of zeros and one with a value near FP16's largest; with `bad_rows` also one of NaN, one of infinity.

    `halves`: whether the width of a case is half of its input's.
    """
    for rows, width, tile in RAGGED:
        case = make(rows, width // 2 if halves else width)
        x, *others = case.tensors("cpu")
        x.mul_(3)
        x[rows // 2, 7] = 60000.0
        if rows > 1:
            x[0] = 0
        yield Trial(case, tile, (x, *others))
    if bad_rows:
        case = make(4, 256)
        x, *others = case.tensors("cpu")
        x[1, 3], x[2, 5] = float("nan"), float("inf")
        yield Trial(case, RowTile(4, 256, 4), (x, *others))


def row_tuning(make: Make, widths: tuple[int, ...]) -> Iterator[Tuning]:
    """Few rows and many."""
    for rows in (64, MANY_ROWS):
        for width in widths:
            case = make(rows, width)
            assert case.tile is not None
            yield Tuning(case, (case.tile.family,))


def row_candidates(case: Case, _capability: str) -> Iterator[RowTile]:
    """Warps per row from 1 to 8, as long as a lane keeps between 8 and 112 values of it; more than two rows per CTA never won.

    Half a chunk moves 8 bytes per lane instead of 16 and wastes no lane where the width is an odd multiple of it.
    """
    assert case.tile is not None
    (width,) = case.tile.shape
    for warps in (1, 2, 4, 8):
        if not 8 <= width / (32 * warps) <= 112:
            continue
        chunk = 256 * warps
        yield RowTile(1, chunk, warps)
        if 0 < width % chunk <= chunk // 2:
            yield RowTile(1, chunk // 2, warps)
        yield RowTile(1, 2 * chunk, warps) if warps >= 4 else RowTile(2, chunk, 2 * warps)
