"""Cases that the matrix products share: ragged sizes, shapes of the published models that are tuned, and candidate tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product as combinations

from ...core.dtypes import DTYPES
from ..launch.case import MANY_ROWS, Case, TileKey, Trial, Tuning
from ..launch.node import HOPPER
from ..launch.tiles import GemmTile
from .product import Product
from .warp_specialized import MULTIPROCESSORS

SHAPES = ((1408, 1408), (1408, 4224), (1408, 5632), (5632, 1408))  # (K, N): o, q k v, gate or up, down of 0.5B and of experts
PLAIN_SHAPES = SHAPES[:3]  # a model's down projection always has a residual
FEW_ROW_SHAPES = ((1408, 5632), (5632, 1408))
FEW_ROWS = (8, 32, 64, 256, 512, 768)
STEP_BYTES = 128  # of an operand's row in one step of the main loop
SMALL, LARGE = GemmTile(16, 32, 128, 2, 4), GemmTile(32, 64, 128, 2, 4, group=2)
FEW, FEW_IN_PARTS, IN_PARTS = (replace(SMALL, slices=4), replace(SMALL, n=16, warps=2, slices=2, parts=2), replace(SMALL, parts=3))
RAGGED = (
    (1, 96, 40, SMALL),
    (37, 200, 72, SMALL),
    (70, 272, 136, LARGE),
    (1, 640, 64, LARGE),
    (21, 600, 40, FEW),
    (3, 600, 24, FEW_IN_PARTS),
    (21, 600, 40, IN_PARTS),
)
Make = Callable[[int, int, int], Case]  # of rows, K and N


def product_key(product: Product, rows: int) -> TileKey:
    """Where the tile of a product stands."""
    return TileKey(product.family, rows, (product.k, product.n))


def product_trials(*makes: Make) -> Iterator[Trial]:
    """Sizes that no tile divides."""
    for rows, k, n, tile in RAGGED:
        for make in makes:
            yield Trial(make(rows, k, n), tile)


def product_tuning(make: Make) -> Iterator[Tuning]:
    """Many rows without a residual."""
    for shape in PLAIN_SHAPES:
        yield _tuning(make(MANY_ROWS, *shape))


def residual_tuning(make: Make, plain_family: str, few_rows: tuple[int, ...] = FEW_ROWS) -> Iterator[Tuning]:
    """With a residual. Of few rows a product with a residual stands for the one without."""
    for rows, shape in combinations(few_rows, FEW_ROW_SHAPES):
        yield _tuning(make(rows, *shape), plain_family)
    for shape in SHAPES:
        yield _tuning(make(MANY_ROWS, *shape))


def _tuning(case: Case, *more_families: str) -> Tuning:
    assert case.tile is not None
    return Tuning(case, (case.tile.family, *more_families))


def product_candidates(case: Case, capability: str) -> Iterator[GemmTile]:
    """Tiles by row count and compute capability."""
    k = STEP_BYTES // DTYPES[case.inputs[0].dtype].bytes
    if capability != HOPPER:
        promoted = bool(case.attributes.get("promotion"))
        yield from _plain(case.rows, k if promoted else k // 2, stages=(2, 3))
    elif case.rows < 256:
        yield from _plain(case.rows, k, stages=(6,))
        yield from _in_parts(case.rows, k)
    else:
        if case.rows < MANY_ROWS // 4:
            yield from _plain(case.rows, k, stages=(4, 6))
            yield GemmTile(128, 64, k, 4, 8)
            yield from _in_parts(case.rows, k)
        yield from _persistent(k)


def _plain(rows: int, k: int, stages: tuple[int, ...]) -> Iterator[GemmTile]:
    heights = (16,) if rows <= 16 else (16, 32) if rows <= 32 else (64,) if rows <= 128 else (64, 128)
    for m in heights:
        for n in (32, 64, 128):
            for depth in stages:
                yield GemmTile(m, n, k, depth, 4 if m * n <= 128 * 64 else 8)


def _in_parts(rows: int, k: int) -> Iterator[GemmTile]:
    """K over the warps of a CTA, over CTAs, or both."""
    if rows <= 32:
        for n, slices in ((16, 4), (16, 8), (16, 16), (32, 4), (32, 8)):
            for parts in (1, 2, 4):
                yield GemmTile(16, n, k, 1, slices, slices=slices, parts=parts)
    m, n, stages = (16, 32, 8) if rows <= 16 else (32, 32, 8) if rows <= 32 else (64, 64, 4) if rows <= 128 else (128, 64, 4)
    for parts in (2, 3, 4):
        yield GemmTile(m, n, k, stages, 4, parts=parts)


def _persistent(k: int) -> Iterator[GemmTile]:
    """128 rows leave room for more stages, 192 have consumers that take turns. Tiles 256 wide asked less of the L2 cache; none won."""
    for group in (4, 8, 16, 32):
        yield GemmTile(128, 128, k, 5, 12, group, ctas=MULTIPROCESSORS)
        yield GemmTile(192, 128, k, 4, 16, group, ctas=MULTIPROCESSORS)
    yield GemmTile(128, 128, k, 6, 12, ctas=MULTIPROCESSORS)
