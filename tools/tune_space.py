"""What is tuned: shapes and row counts of the published sizes, and the candidate tiles of each kind of kernel."""

from __future__ import annotations

from collections.abc import Iterator

from ..operators.kernels.tiles import AttentionTile, GemmTile, RowTile, Tile
from ..operators.operator import Attributes
from .operator_cases import EPSILON, OperatorCase, context_attention_case

MANY_ROWS = 16384  # 32 requests of 512 beams
HOPPER = "9.0"
MULTIPROCESSORS = 132  # of an H100 SXM and an H200
PRODUCT_SHAPES = ((1408, 1408), (1408, 4224), (1408, 5632), (5632, 1408))  # (K, N): o, q k v, gate or up, down of 0.5B and of experts
FEW_ROW_SHAPES = ((1408, 5632), (5632, 1408))
FEW_ROWS = (16, 128, 768)
ROW_WIDTHS = (1408, 3584)
HIDDEN_WIDTHS = (5632, 14336)
BEAMS = (1, 128, 512)
HEADS = {128: 14, 64: 10}  # of 1B and 0.1B, by channels of a head
TOKENS = 512


NONE: Attributes = {}
PRODUCTS: tuple[tuple[str, str, Attributes], ...] = (
    ("Fp8LinearAdd", "fp8_linear", {"promotion": 0}),
    ("Fp8LinearAdd", "fp8_linear_promoted", {"promotion": 128}),
    ("LinearAdd", "linear", NONE),
)


def cases() -> Iterator[tuple[OperatorCase, tuple[str, ...]]]:
    """Each case, and the families of the table its tile is for. A product with a residual stands for the one without."""
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
        both = (f"{name}_add", name)
        few = () if name == "fp8_linear_promoted" else [(rows, shape) for rows in FEW_ROWS for shape in FEW_ROW_SHAPES]
        for rows, shape in (*few, *((MANY_ROWS, shape) for shape in PRODUCT_SHAPES)):
            yield OperatorCase(operator, rows, shape, attributes), both
    for head, heads in HEADS.items():
        for beam in BEAMS:
            yield context_attention_case(32, beam, heads, heads, TOKENS, head), ("context_attention",)


def candidates(case: OperatorCase, capability: str) -> list[Tile]:
    """Tiles worth a try. Those that do not compile or fit are left out later."""
    if case.operator == "ContextAttention":
        return list(_attention_candidates(case.tile_rows, capability))
    if "Linear" not in case.operator:
        return list(_row_candidates(case.shape[0]))
    step = 64 if case.operator.startswith("Linear") else 128  # 128 bytes
    promoted = bool(case.attributes.get("promotion"))
    if capability != HOPPER:
        return list(_plain(case.rows, step // 2 if not promoted else step, stages=(2, 3)))
    if case.rows < 256:
        return list(_plain(case.rows, step, stages=(4, 6)))
    if case.rows < MANY_ROWS // 4:
        return [*_plain(case.rows, step, stages=(4,)), *_persistent_few(step)]
    return list(_persistent_many(step, scaled=case.operator.startswith("Fp8"), promoted=promoted))


def _attention_candidates(rows: int, capability: str) -> Iterator[AttentionTile]:
    """For one row a tile of the smallest instruction; for many rows tiles of which two programs share a multiprocessor, too."""
    if rows <= 32:
        for n in (32, 64, 128):
            for stages in (2, 3):
                yield AttentionTile(16, n, stages, 4)
        yield AttentionTile(16, 64, 3, 2)
        yield AttentionTile(16, 128, 3, 8)
        return
    for m, n, warps in ((64, 64, 4), (64, 128, 4), (128, 32, 4), (128, 64, 4), (128, 64, 8), (128, 128, 8), (256, 64, 8)):
        for stages in (2, 3):
            for descriptors in (False, True) if capability == HOPPER else (False,):
                if m <= max(64, rows):
                    yield AttentionTile(m, n, stages, warps, descriptors)


def _row_candidates(width: int) -> Iterator[RowTile]:
    """Warps per row from 1 to 8, as long as a lane keeps between 8 and 112 values of it.

    Half a chunk moves 8 bytes per lane instead of 16 and wastes no lane where the width is an odd multiple of it.
    """
    for warps_of_row in (1, 2, 4, 8):
        if not 8 <= width / (32 * warps_of_row) <= 112:
            continue
        chunk = 256 * warps_of_row
        for warps in (1, 2, 4, 8):
            if warps >= warps_of_row:
                yield RowTile(warps // warps_of_row, chunk, warps)
                if 0 < width % chunk <= chunk // 2:
                    yield RowTile(warps // warps_of_row, chunk // 2, warps)
        yield RowTile(max(1, 4 // warps_of_row), 2 * chunk, max(4, warps_of_row))


def _plain(rows: int, k: int, stages: tuple[int, ...]) -> Iterator[GemmTile]:
    heights = (16,) if rows <= 16 else (32, 64) if rows <= 128 else (64, 128)
    for m in heights:
        for n in (32, 64, 128):
            for depth in stages:
                yield GemmTile(m, n, k, depth, 4 if m * n <= 128 * 64 else 8)


def _persistent_few(k: int) -> Iterator[GemmTile]:
    for m, n, warps in ((64, 128, 4), (128, 64, 4), (128, 128, 8), (64, 256, 4), (128, 256, 8)):
        yield GemmTile(m, n, k, 4 if m * n < 128 * 256 else 3, warps, programs=MULTIPROCESSORS, parts=2)


def _persistent_many(k: int, scaled: bool, promoted: bool) -> Iterator[GemmTile]:
    """Large tiles live with what the L2 cache delivers; of small ones two blocks take turns on a multiprocessor."""
    epilogues = ((3, 2, False, False), (3, 2, True, False), (4, 4, False, False), (4, 4, True, False), (3, 4, True, True))
    for m, n in ((128, 256), (256, 128)):
        for stages, parts, prefetch, whole in epilogues:
            for tail in (1, 2) if scaled else (1,):
                yield GemmTile(m, n, k, stages, 8, programs=MULTIPROCESSORS, parts=parts, tail=tail, prefetch=prefetch, whole=whole)
    for group in (4, 16):
        yield GemmTile(128, 256, k, 3, 8, group=group, programs=MULTIPROCESSORS, parts=2, prefetch=True)
    for prefetch in (False, True):
        yield GemmTile(128, 128, k, 4, 8, programs=MULTIPROCESSORS, parts=2, prefetch=prefetch)
        for warps in (8,) if promoted else (4, 8):
            yield GemmTile(128, 128, k, 3, warps, programs=2 * MULTIPROCESSORS, parts=4, prefetch=prefetch)
