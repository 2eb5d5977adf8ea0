"""The persistent matrix product for compute capability 9.0: descriptors made on the device, epilogue under the next tile's loads.

FP8 and FP16, with or without scales and residual. TensorRT-side layouts as they are: x [rows, K], weight [N, K].
"""

from __future__ import annotations

import triton
import triton.language as tl

from .epilogue import scales_of, tile_of


@triton.jit
def gemm(
    x_RK, weight_NK, output_RN, scale, weight_scale_N, residual_RN, rows,
    N: tl.constexpr, K: tl.constexpr,
    SCALED: tl.constexpr, ROW_SCALES: tl.constexpr, RESIDUAL: tl.constexpr, PROMOTE: tl.constexpr,
    M_TILE: tl.constexpr, N_TILE: tl.constexpr, K_TILE: tl.constexpr,
    GROUP: tl.constexpr, PROGRAMS: tl.constexpr, PARTS: tl.constexpr, TAIL: tl.constexpr, PREFETCH: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Whole waves of tiles, then the tiles that are left, cut into TAIL along m so that more programs have work."""
    tiles = tl.cdiv(rows, M_TILE) * ((N + N_TILE - 1) // N_TILE)
    whole = tiles
    if TAIL > 1:
        whole = tiles // PROGRAMS * PROGRAMS
    _walk(
        0, whole, x_RK, weight_NK, output_RN, scale, weight_scale_N, residual_RN, rows,
        N, K, SCALED, ROW_SCALES, RESIDUAL, PROMOTE, M_TILE, N_TILE, K_TILE, GROUP, PROGRAMS, PARTS, 1, PREFETCH, EARLY,
    )  # fmt: skip
    if TAIL > 1:
        _walk(
            whole * TAIL, tiles * TAIL, x_RK, weight_NK, output_RN, scale, weight_scale_N, residual_RN, rows,
            N, K, SCALED, ROW_SCALES, RESIDUAL, PROMOTE, M_TILE // TAIL, N_TILE, K_TILE, GROUP, PROGRAMS, PARTS, TAIL, PREFETCH, EARLY,
        )  # fmt: skip


@triton.jit
def _walk(
    start, stop, x_RK, weight_NK, output_RN, scale, weight_scale_N, residual_RN, rows,
    N: tl.constexpr, K: tl.constexpr,
    SCALED: tl.constexpr, ROW_SCALES: tl.constexpr, RESIDUAL: tl.constexpr, PROMOTE: tl.constexpr,
    M_TILE: tl.constexpr, N_TILE: tl.constexpr, K_TILE: tl.constexpr,
    GROUP: tl.constexpr, PROGRAMS: tl.constexpr, PARTS: tl.constexpr, SLICES: tl.constexpr, PREFETCH: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """This program's share of the pieces from `start` to `stop`; SLICES pieces of M_TILE rows make a tile of the walk."""
    # With promotion a tile is two products side by side: each has a fresh accumulator and one that is kept, and all four of
    # a wide tile would not fit in registers. Both read the same x from shared memory.
    HALF: tl.constexpr = N_TILE // 2
    x = tl.make_tensor_descriptor(x_RK, [rows, K], [K, 1], [M_TILE, K_TILE])
    weight = tl.make_tensor_descriptor(weight_NK, [N, K], [K, 1], [HALF if PROMOTE else N_TILE, K_TILE])
    output = tl.make_tensor_descriptor(output_RN, [rows, N], [N, 1], [M_TILE, N_TILE // PARTS])
    residual = output
    if RESIDUAL and EARLY == 0:
        residual = tl.make_tensor_descriptor(residual_RN, [rows, N], [N, 1], [M_TILE, N_TILE // PARTS])
    STEPS: tl.constexpr = (K + K_TILE - 1) // K_TILE
    ASK: tl.constexpr = STEPS - EARLY if EARLY < STEPS else 0
    for piece in tl.range(start + tl.program_id(0), stop, PROGRAMS, flatten=True):
        tile_row, channel = tile_of(piece // SLICES, rows, N, M_TILE * SLICES, N_TILE, GROUP)
        row = tile_row + piece % SLICES * M_TILE
        if RESIDUAL and PREFETCH:
            _prefetch(residual_RN, row, channel, rows, N, M_TILE, N_TILE)
        added_left = tl.zeros((M_TILE, HALF // 2), tl.int32)
        added_right = added_left
        if PROMOTE:
            left = tl.zeros((M_TILE, HALF), tl.float32)
            right = tl.zeros((M_TILE, HALF), tl.float32)
            for step in range(STEPS):
                if RESIDUAL and EARLY:  # noqa: SIM102 (known at compile time, unlike the step)
                    if step == ASK:
                        added_left = _pairs(residual_RN, row, channel, rows, N, M_TILE, HALF)
                x_tile = x.load([row, step * K_TILE])
                left += tl.dot(x_tile, weight.load([channel, step * K_TILE]).T)
                right += tl.dot(x_tile, weight.load([channel + HALF, step * K_TILE]).T)
            if RESIDUAL and EARLY:  # no register was free for it before
                added_right = _pairs(residual_RN, row, channel + HALF, rows, N, M_TILE, HALF)
        else:
            accumulator = tl.zeros((M_TILE, N_TILE), tl.float32)
            for step in range(STEPS):
                if RESIDUAL and EARLY:
                    if step == ASK:
                        added_left = _pairs(residual_RN, row, channel, rows, N, M_TILE, HALF)
                    if step == min(ASK + 1, STEPS - 1):
                        added_right = _pairs(residual_RN, row, channel + HALF, rows, N, M_TILE, HALF)
                accumulator = tl.dot(x.load([row, step * K_TILE]), weight.load([channel, step * K_TILE]).T, accumulator)
            left, right = _halves(accumulator, M_TILE, HALF)
        if PARTS == 2 and (EARLY > 0 or not RESIDUAL):
            # All is computed before the first store: what the right half reads would wait for it. It takes more registers.
            left = _scaled(left, added_left, row, channel, scale, weight_scale_N, rows, N, SCALED, ROW_SCALES, RESIDUAL, M_TILE, HALF)
            right = _scaled(
                right, added_right, row, channel + HALF, scale, weight_scale_N, rows, N, SCALED, ROW_SCALES, RESIDUAL, M_TILE, HALF
            )
            output.store([row, channel], left)
            output.store([row, channel + HALF], right)
        else:
            _finish(
                left, added_left, row, channel, output, residual, scale, weight_scale_N, rows,
                N, SCALED, ROW_SCALES, RESIDUAL, EARLY, M_TILE, HALF, PARTS // 2,
            )  # fmt: skip
            _finish(
                right, added_right, row, channel + HALF, output, residual, scale, weight_scale_N, rows,
                N, SCALED, ROW_SCALES, RESIDUAL, EARLY, M_TILE, HALF, PARTS // 2,
            )  # fmt: skip


@triton.jit
def _scaled(
    accumulator, added, row, channel, scale, weight_scale_N, rows,
    N: tl.constexpr, SCALED: tl.constexpr, ROW_SCALES: tl.constexpr, RESIDUAL: tl.constexpr,
    M_TILE: tl.constexpr, N_TILE: tl.constexpr,
):  # fmt: skip
    """FP16 of a part, its residual added: either FP16 or in pairs."""
    if SCALED:
        accumulator *= scales_of(row, channel, scale, weight_scale_N, rows, N, ROW_SCALES, M_TILE, N_TILE)
    if RESIDUAL:
        if added.dtype == tl.int32:
            added = _unpacked(added, M_TILE, N_TILE)
        accumulator += added.to(tl.float32)
    return accumulator.to(tl.float16)


@triton.jit
def _finish(
    accumulator, added, row, channel, output, residual, scale, weight_scale_N, rows,
    N: tl.constexpr, SCALED: tl.constexpr, ROW_SCALES: tl.constexpr, RESIDUAL: tl.constexpr, EARLY: tl.constexpr,
    M_TILE: tl.constexpr, N_TILE: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Compute and store a part, then the next: 1 or 2 along n. `added` is the residual in pairs where it was read EARLY."""
    if PARTS == 1:
        if RESIDUAL and EARLY == 0:
            added = residual.load([row, channel])
        result = _scaled(accumulator, added, row, channel, scale, weight_scale_N, rows, N, SCALED, ROW_SCALES, RESIDUAL, M_TILE, N_TILE)
        output.store([row, channel], result)
    else:
        HALF: tl.constexpr = N_TILE // 2
        left, right = _halves(accumulator, M_TILE, HALF)
        added_left, added_right = _halves(added, M_TILE, HALF // 2)
        _finish(
            left, added_left, row, channel, output, residual, scale, weight_scale_N, rows,
            N, SCALED, ROW_SCALES, RESIDUAL, EARLY, M_TILE, HALF, PARTS // 2,
        )  # fmt: skip
        _finish(
            right, added_right, row, channel + HALF, output, residual, scale, weight_scale_N, rows,
            N, SCALED, ROW_SCALES, RESIDUAL, EARLY, M_TILE, HALF, PARTS // 2,
        )  # fmt: skip


@triton.jit
def _halves(tile, M_TILE: tl.constexpr, HALF: tl.constexpr):
    """Left and right half of a tile [M_TILE, 2 HALF]; registers only change their names."""
    return tl.reshape(tile, (M_TILE, 2, HALF)).permute(0, 2, 1).split()


@triton.jit
def _prefetch(residual_RN, row, channel, rows, N: tl.constexpr, M_TILE: tl.constexpr, N_TILE: tl.constexpr):
    """Ask for the lines of the residual's tile; beyond the edge the last row and channel again."""
    LINE: tl.constexpr = 64  # FP16 values of 128 bytes
    numbers = tl.minimum(row + tl.arange(0, M_TILE), rows - 1).to(tl.int64)[:, None]
    channels = tl.minimum(channel + tl.arange(0, N_TILE // LINE) * LINE, N - 1)[None, :]
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [residual_RN + numbers * N + channels], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def _pairs(residual_RN, row, channel, rows, N: tl.constexpr, M_TILE: tl.constexpr, N_TILE: tl.constexpr):
    """The residual's tile on its way to registers, two FP16 values in each [M_TILE, N_TILE / 2]; beyond the edge the last ones again.

    Inline assembly has no layout of its own: values arrive where the accumulator has its, not where a coalesced load would put
    them, which would cost a way through shared memory. Impure, so that the compiler does not put it off to where it is needed.
    """
    numbers = tl.minimum(row + tl.arange(0, M_TILE), rows - 1).to(tl.int64)[:, None]
    pairs = tl.minimum(channel // 2 + tl.arange(0, N_TILE // 2), N // 2 - 1)[None, :]
    pointer = residual_RN.to(tl.pointer_type(tl.int32), bitcast=True) + numbers * (N // 2) + pairs
    return tl.inline_asm_elementwise("ld.global.nc.b32 $0, [$1];", "=r,l", [pointer], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def _unpacked(pairs, M_TILE: tl.constexpr, N_TILE: tl.constexpr):
    """FP16 [M_TILE, N_TILE] of pairs."""
    low = pairs.to(tl.int16).to(tl.float16, bitcast=True)
    high = (pairs >> 16).to(tl.int16).to(tl.float16, bitcast=True)
    return tl.reshape(tl.join(low, high), (M_TILE, N_TILE))
