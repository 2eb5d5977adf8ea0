"""What is tuned: shapes and row counts of the published sizes, and the candidate tiles of each kind of kernel."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from ...operators.launch.tiles import AttentionTile, GemmTile, RowTile, Tile
from ...operators.operator import Attributes
from .cases import EPSILON, OperatorCase, context_attention_case

MANY_ROWS = 16384  # 32 requests of 512 beams
HOPPER = "9.0"
MULTIPROCESSORS = 132  # of an H100 SXM and an H200
PRODUCT_SHAPES = ((1408, 1408), (1408, 4224), (1408, 5632), (5632, 1408))  # (K, N): o, q k v, gate or up, down of 0.5B and of experts
PLAIN_SHAPES = PRODUCT_SHAPES[:3]  # a model's down projection always has a residual
FEW_ROW_SHAPES = ((1408, 5632), (5632, 1408))
FEW_ROWS = (16, 128, 768)
ROW_WIDTHS = (1408, 3584)
HIDDEN_WIDTHS = (5632, 14336)
BEAMS = (1, 128, 512)
HEADS = {128: 14, 64: 10}  # of 1B and 0.1B, by channels of a head
TOKENS = 512
FP8_STEP = 128  # channels of a step of the main loop: 128 bytes


NONE: Attributes = {}
PRODUCTS: tuple[tuple[str, str, Attributes], ...] = (
    ("Fp8Linear", "fp8_linear", {"promotion": 0}),
    ("Fp8Linear", "fp8_linear_promoted", {"promotion": 128}),
    ("Linear", "linear", NONE),
)


def cases() -> Iterator[tuple[OperatorCase, tuple[str, ...]]]:
    """Each case, and the families of the table its tile is for. Of few rows a product with a residual stands for the one without."""
    for operator, families, attributes, read in (
        ("RmsNormQuantRow", ("rms_norm_quant",), EPSILON, (True, True, False)),
        ("RmsNorm", ("rms_norm",), EPSILON, ()),
        ("QuantRow", ("quant",), NONE, ()),
    ):
        for rows in (64, MANY_ROWS):
            for width in ROW_WIDTHS:
                yield OperatorCase(operator, rows, (width,), attributes, read), families
    for operator, families in (("SwiGluQuantRow", ("swiglu_quant",)), ("SwiGlu", ("swiglu",))):
        for rows in (64, MANY_ROWS):
            for width in HIDDEN_WIDTHS:
                yield OperatorCase(operator, rows, (width,)), families
    for operator, name, attributes in PRODUCTS:
        for rows, shape in product(() if name == "fp8_linear_promoted" else FEW_ROWS, FEW_ROW_SHAPES):
            yield OperatorCase(f"{operator}Add", rows, shape, attributes), (f"{name}_add", name)
        for shape in PRODUCT_SHAPES:
            yield OperatorCase(f"{operator}Add", MANY_ROWS, shape, attributes), (f"{name}_add",)
        for shape in PLAIN_SHAPES:
            yield OperatorCase(operator, MANY_ROWS, shape, attributes), (name,)
    for head, heads in HEADS.items():
        for beam in BEAMS:
            yield context_attention_case(32, beam, heads, heads, TOKENS, head), ("context_attention",)


def candidates(case: OperatorCase, capability: str) -> list[Tile]:
    """Tiles worth a try. Those that do not compile or fit are left out later."""
    if case.operator == "ContextAttention":
        return list(_attention_candidates(case.tile_rows, capability))
    if "Linear" not in case.operator:
        return list(_row_candidates(case.shape[0]))
    step = FP8_STEP // 2 if case.operator.startswith("Linear") else FP8_STEP
    promoted = bool(case.attributes.get("promotion"))
    if capability != HOPPER:
        return list(_plain(case.rows, step // 2 if not promoted else step, stages=(2, 3)))
    if case.rows < 256:
        return list(_plain(case.rows, step, stages=(6,)))
    if case.rows < MANY_ROWS // 4:
        return [*_plain(case.rows, step, stages=(4,)), *_persistent(step)]
    return list(_persistent(step))


def _attention_candidates(rows: int, capability: str) -> Iterator[AttentionTile]:
    """For one row a tile of the smallest instruction; for many rows also tiles of which two CTAs share an SM."""
    if rows <= 32:
        for n, stages, warps in ((32, 4, 4), (64, 2, 4), (64, 3, 4), (128, 2, 4), (128, 3, 8), (64, 3, 2)):
            yield AttentionTile(16, n, stages, warps)
        return
    for m, n, warps in ((64, 64, 4), (128, 64, 4), (128, 64, 8), (128, 128, 8)):
        for descriptors in (False, True) if capability == HOPPER else (False,):
            yield AttentionTile(m, n, 2, warps, descriptors)
    if capability == HOPPER:
        yield AttentionTile(128, 32, 3, 4, descriptors=True)
        yield AttentionTile(256, 64, 2, 8, descriptors=True)
        yield AttentionTile(128, 128, 2, 12, ctas=MULTIPROCESSORS)
        yield AttentionTile(128, 64, 4, 12, ctas=MULTIPROCESSORS)


def _row_candidates(width: int) -> Iterator[RowTile]:
    """Warps per row from 1 to 8, as long as a lane keeps between 8 and 112 values of it; more than two rows per CTA were never faster.

    Half a chunk moves 8 bytes per lane instead of 16 and wastes no lane where the width is an odd multiple of it.
    """
    for warps in (1, 2, 4, 8):
        if not 8 <= width / (32 * warps) <= 112:
            continue
        chunk = 256 * warps
        yield RowTile(1, chunk, warps)
        if 0 < width % chunk <= chunk // 2:
            yield RowTile(1, chunk // 2, warps)
        yield RowTile(1, 2 * chunk, warps) if warps >= 4 else RowTile(2, chunk, 2 * warps)


def _plain(rows: int, k: int, stages: tuple[int, ...]) -> Iterator[GemmTile]:
    heights = (16,) if rows <= 16 else (64,) if rows <= 128 else (64, 128)
    for m in heights:
        for n in (32, 64, 128):
            for depth in stages:
                yield GemmTile(m, n, k, depth, 4 if m * n <= 128 * 64 else 8)


def _persistent(k: int) -> Iterator[GemmTile]:
    """Tiles of 128 rows leave room for more stages, those of 192 have three consumers that take turns. Tiles 256 wide were never faster."""
    for group in (4, 8, 16, 32):
        yield GemmTile(128, 128, k, 5, 12, group, ctas=MULTIPROCESSORS)
        yield GemmTile(192, 128, k, 4, 16, group, ctas=MULTIPROCESSORS)
    yield GemmTile(128, 128, k, 6, 12, ctas=MULTIPROCESSORS)
