"""The grouped product of the experts for compute capability 9.0, warp-specialized; moe_ring_sm90.py says who does what.

FP16 [sorted rows, N] of x @ the expert's [N, K]; scales and gate as in moe_gemm.py.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import warpgroup_mma
from triton.language.core import _aggregate as aggregate

from .gemm_sm90 import WARPGROUP_ROWS, WARPS
from .moe_gemm import BLOCKS, CHANNEL
from .moe_ring_sm90 import Ring, make_barriers, product, scale_of_rows, start


@aggregate
class _Epilogue:
    """What the consumers are given beside the ring."""

    result: gl.tensor
    x_scale: gl.tensor
    weight_scale: gl.tensor
    gate_R: gl.tensor
    staging: gl.shared_memory_descriptor
    WIDTH: gl.constexpr
    X_SCALE: gl.constexpr
    WEIGHT_SCALE: gl.constexpr
    GATED: gl.constexpr
    PROMOTE: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, **given):
        for name, value in given.items():
            setattr(self, name, gl.constexpr(value) if isinstance(value, int) else value)

    @gluon.jit
    def values(self, tile, row, number, warpgroup: gl.constexpr, ring):
        """FP16 result of 64 rows."""
        CHANNELS: gl.constexpr = 256 // ring.x_stages.dtype.primitive_bitwidth  # that an instruction multiplies
        LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, ring.BOX, CHANNELS])
        CHANNEL_LAYOUT: gl.constexpr = gl.BlockedLayout([1], [32], [WARPS], [0])
        rows = row + gl.arange(0, WARPGROUP_ROWS, gl.SliceLayout(1, LAYOUT))
        expert = ring.expert(tile)
        channel = tile % ring.COLUMNS * ring.BOX
        # Scales are asked for before the main loop, in layouts that hold each once or twice per thread.
        factor = scale_of_rows(rows, expert, self, LAYOUT)
        if self.GATED:
            factor *= gl.load(self.gate_R + rows)
        channel_scale = gl.full([ring.BOX], 1.0, gl.float32, CHANNEL_LAYOUT)
        if self.WEIGHT_SCALE == CHANNEL:
            channels = channel + gl.arange(0, ring.BOX, CHANNEL_LAYOUT)
            channel_scale = gl.load(self.weight_scale + expert * ring.N + channels, mask=channels < ring.N, other=0.0)
        if self.PROMOTE:
            accumulator = _promoted(number, warpgroup, rows, expert * ring.N + channel, ring, self, LAYOUT)
        else:
            accumulator = product(number, warpgroup, ring, LAYOUT)
        if self.WEIGHT_SCALE == CHANNEL:
            accumulator *= factor[:, None] * gl.convert_layout(channel_scale, gl.SliceLayout(0, LAYOUT))[None, :]
        else:
            accumulator *= factor[:, None]
        return accumulator.to(gl.float16)


@gluon.jit
def moe_gemm_sm90(
    x_RK, weight_NK, output_RN, x_scale, weight_scale, gate_R, table, capacity,
    EXPERTS: gl.constexpr, N: gl.constexpr, K: gl.constexpr, X_STRIDE: gl.constexpr,
    X_SCALE: gl.constexpr, WEIGHT_SCALE: gl.constexpr, GATED: gl.constexpr, PROMOTE: gl.constexpr,
    M_TILE: gl.constexpr, N_TILE: gl.constexpr, K_TILE: gl.constexpr,
    CTAS: gl.constexpr, STAGES: gl.constexpr, REGISTERS: gl.constexpr, FEW_REGISTERS: gl.constexpr,
):  # fmt: skip
    """Give every role its warps. REGISTERS are a consumer's per thread, FEW_REGISTERS a producer's."""
    CONSUMERS: gl.constexpr = M_TILE // WARPGROUP_ROWS
    OPERAND: gl.constexpr = gl.NVMMASharedLayout(128, x_RK.dtype.element_ty.primitive_bitwidth)
    x_stages = gl.allocate_shared_memory(x_RK.dtype.element_ty, [STAGES * CONSUMERS, WARPGROUP_ROWS, K_TILE], OPERAND)
    weight_stages = gl.allocate_shared_memory(x_RK.dtype.element_ty, [STAGES, N_TILE, K_TILE], OPERAND)
    staging = gl.allocate_shared_memory(gl.float16, [CONSUMERS, WARPGROUP_ROWS, N_TILE], gl.NVMMASharedLayout(128, 16))
    full, empty = make_barriers(STAGES, CONSUMERS)
    ring = Ring(
        x_RK=x_RK, weight_NK=weight_NK, table=table, capacity=capacity,
        x_stages=x_stages, weight_stages=weight_stages, full=full, empty=empty,
        EXPERTS=EXPERTS, N=N, K=K, X_STRIDE=X_STRIDE, COLUMNS=(N + N_TILE - 1) // N_TILE,
        M_TILE=M_TILE, K_TILE=K_TILE, BOX=N_TILE, BOXES=1, STAGES=STAGES, CTAS=CTAS, AHEAD=GATED, GROUP=0,
    )  # fmt: skip
    epilogue = _Epilogue(
        result=output_RN, WIDTH=N, x_scale=x_scale, weight_scale=weight_scale, gate_R=gate_R, staging=staging,
        X_SCALE=X_SCALE, WEIGHT_SCALE=WEIGHT_SCALE, GATED=GATED, PROMOTE=PROMOTE,
    )  # fmt: skip
    start(ring, epilogue, REGISTERS, FEW_REGISTERS)


@gluon.jit
def _promoted(number, warpgroup: gl.constexpr, rows, weight_row, ring, epilogue, LAYOUT: gl.constexpr):
    """Each step's product starts anew and is scaled and added in FP32; meanwhile the tensor core works for another consumer.

    Scales are asked for a step ahead: a product takes less time than they need to come.
    """
    SCALED: gl.constexpr = epilogue.X_SCALE == BLOCKS or epilogue.WEIGHT_SCALE == BLOCKS
    zeros = gl.zeros([WARPGROUP_ROWS, ring.BOX], gl.float32, LAYOUT)
    total = zeros
    if SCALED:
        scale = _scale_of_step(0, rows, weight_row, ring, epilogue, LAYOUT)
    for step in range(ring.STEPS):
        ring.wait(number)
        if SCALED:
            following = _scale_of_step(min(step + 1, ring.STEPS - 1), rows, weight_row, ring, epilogue, LAYOUT)
        part = warpgroup_mma(ring.x(number, warpgroup), ring.weight(number), zeros, use_acc=False)
        ring.release(number)
        if SCALED:
            total += part * scale[:, None]
            scale = following
        else:
            total += part
        number += 1
    return total


@gluon.jit
def _scale_of_step(step, rows, weight_row, ring, epilogue, LAYOUT: gl.constexpr):
    """FP32 [64] of a step's channels. A block of weights has one scale, that of its first channel."""
    scale = gl.full([WARPGROUP_ROWS], 1.0, gl.float32, gl.SliceLayout(1, LAYOUT))
    if epilogue.X_SCALE == BLOCKS:
        scale = gl.load(epilogue.x_scale + step * ring.capacity + rows)
    if epilogue.WEIGHT_SCALE == BLOCKS:
        scale *= gl.load(epilogue.weight_scale + weight_row * ring.STEPS + step)
    return scale
