"""The up product of the experts for compute capability 9.0 with SwiGLU and quantization in the epilogue, warp-specialized.

moe_ring_sm90.py says who does what. A tile has 128 gate and the same 128 up channels: a thread holds both of each hidden value. One
instruction of 256 multiplies them; where sums are promoted, one of 128 for gate and one for up. Gate and up are rounded to FP16;
SiLU(gate) * up leaves as FP16, as codes of a scale per expert, or as codes with a scale per row and 128 channels, the only scale of its
own values that a tile can know.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import warpgroup_mma, warpgroup_mma_wait
from triton.language.core import _aggregate as aggregate

from .gemm_sm90 import WARPGROUP_ROWS, WARPS
from .moe_gemm import BLOCKS, CHANNEL
from .moe_hidden import IN_FP16, PER_BLOCK, PER_EXPERT
from .moe_ring_sm90 import Ring, make_barriers, product, scale_of_rows, start
from .rows import divider, e4m3, nan_max, saturated_quotient, scale_of
from .swiglu import sigmoid

HIDDEN_TILE = gl.constexpr(128)  # hidden channels of a tile, and of a block


@aggregate
class _Epilogue:
    """What the consumers are given beside the ring. `hidden_scale`: read per expert [E], written per block [B, sorted rows]."""

    result: gl.tensor
    x_scale: gl.tensor
    weight_scale: gl.tensor
    hidden_scale: gl.tensor
    staging: gl.shared_memory_descriptor
    WIDTH: gl.constexpr
    X_SCALE: gl.constexpr
    WEIGHT_SCALE: gl.constexpr
    HIDDEN_SCALE: gl.constexpr
    PROMOTE: gl.constexpr
    HIDDEN: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, **given):
        for name, value in given.items():
            setattr(self, name, gl.constexpr(value) if isinstance(value, int) else value)

    @gluon.jit
    def values(self, tile, row, number, warpgroup: gl.constexpr, ring):
        """Hidden values of 64 rows as they are stored."""
        CHANNELS: gl.constexpr = 256 // ring.x_stages.dtype.primitive_bitwidth  # that an instruction multiplies
        BOTH: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, 2 * HIDDEN_TILE, CHANNELS])
        LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, HIDDEN_TILE, CHANNELS])
        CHANNEL_LAYOUT: gl.constexpr = gl.BlockedLayout([1], [32], [WARPS], [0])
        rows = row + gl.arange(0, WARPGROUP_ROWS, gl.SliceLayout(1, LAYOUT))
        expert = ring.expert(tile)
        column = ring.column(tile)
        # Scales are asked for before the main loop, in layouts that hold each once or twice per thread.
        factor = scale_of_rows(rows, expert, self, LAYOUT)
        gate_scale = gl.full([HIDDEN_TILE], 1.0, gl.float32, CHANNEL_LAYOUT)
        up_scale = gate_scale
        if self.WEIGHT_SCALE == CHANNEL:
            channels = column * HIDDEN_TILE + gl.arange(0, HIDDEN_TILE, CHANNEL_LAYOUT)
            place = self.weight_scale + expert * ring.N + channels
            gate_scale = gl.load(place, mask=channels < self.HIDDEN, other=0.0)
            up_scale = gl.load(place + self.HIDDEN, mask=channels < self.HIDDEN, other=0.0)
        if self.PROMOTE:
            gate, up = _promoted(number, warpgroup, rows, expert * ring.N + column * HIDDEN_TILE, ring, self, LAYOUT)
        else:
            both = product(number, warpgroup, ring, BOTH)
            gate, up = gl.split(both.reshape([WARPGROUP_ROWS, 2, HIDDEN_TILE]).permute((0, 2, 1)))
            gate = gl.convert_layout(gate, LAYOUT)
            up = gl.convert_layout(up, LAYOUT)
        if self.WEIGHT_SCALE == CHANNEL:
            gate *= factor[:, None] * gl.convert_layout(gate_scale, gl.SliceLayout(0, LAYOUT))[None, :]
            up *= factor[:, None] * gl.convert_layout(up_scale, gl.SliceLayout(0, LAYOUT))[None, :]
        gate = gate.to(gl.float16).to(gl.float32)
        up = up.to(gl.float16).to(gl.float32)
        hidden = gate * sigmoid(gate) * up
        if self.HIDDEN % HIDDEN_TILE != 0:  # channels beyond H are those of other rows of the weights
            inside = column * HIDDEN_TILE + gl.arange(0, HIDDEN_TILE, gl.SliceLayout(0, LAYOUT)) < self.HIDDEN
            hidden = gl.where(inside[None, :], hidden, 0.0)
        return _stored(hidden, rows, expert, column, ring, self)


@gluon.jit
def moe_up_sm90(
    x_RK, weight_NK, hidden_RH, x_scale, weight_scale, hidden_scale, table, capacity,
    EXPERTS: gl.constexpr, N: gl.constexpr, K: gl.constexpr, X_STRIDE: gl.constexpr, HIDDEN_STRIDE: gl.constexpr,
    X_SCALE: gl.constexpr, WEIGHT_SCALE: gl.constexpr, HIDDEN_SCALE: gl.constexpr, PROMOTE: gl.constexpr,
    M_TILE: gl.constexpr, K_TILE: gl.constexpr, GROUP: gl.constexpr,
    CTAS: gl.constexpr, STAGES: gl.constexpr, REGISTERS: gl.constexpr, FEW_REGISTERS: gl.constexpr,
):  # fmt: skip
    """Give every role its warps. N is 2 H. HIDDEN_STRIDE: from row to row of the result, H or H rounded up to whole blocks.

    GROUP as that of the ring: with 0 `table` says whose rows are whose, else one expert has all `capacity` rows.
    """
    CONSUMERS: gl.constexpr = M_TILE // WARPGROUP_ROWS
    OPERAND: gl.constexpr = gl.NVMMASharedLayout(128, x_RK.dtype.element_ty.primitive_bitwidth)
    x_stages = gl.allocate_shared_memory(x_RK.dtype.element_ty, [STAGES * CONSUMERS, WARPGROUP_ROWS, K_TILE], OPERAND)
    weight_stages = gl.allocate_shared_memory(x_RK.dtype.element_ty, [STAGES, 2 * HIDDEN_TILE, K_TILE], OPERAND)
    staging = gl.allocate_shared_memory(hidden_RH.dtype.element_ty, [CONSUMERS, WARPGROUP_ROWS, HIDDEN_TILE], OPERAND)
    full, empty = make_barriers(STAGES, CONSUMERS)
    ring = Ring(
        x_RK=x_RK, weight_NK=weight_NK, table=table, capacity=capacity,
        x_stages=x_stages, weight_stages=weight_stages, full=full, empty=empty,
        EXPERTS=EXPERTS, N=N, K=K, X_STRIDE=X_STRIDE, COLUMNS=(N // 2 + HIDDEN_TILE - 1) // HIDDEN_TILE,
        M_TILE=M_TILE, K_TILE=K_TILE, BOX=HIDDEN_TILE, BOXES=2, STAGES=STAGES, CTAS=CTAS, AHEAD=False, GROUP=GROUP,
    )  # fmt: skip
    epilogue = _Epilogue(
        result=hidden_RH, WIDTH=HIDDEN_STRIDE, x_scale=x_scale, weight_scale=weight_scale, hidden_scale=hidden_scale, staging=staging,
        X_SCALE=X_SCALE, WEIGHT_SCALE=WEIGHT_SCALE, HIDDEN_SCALE=HIDDEN_SCALE, PROMOTE=PROMOTE, HIDDEN=N // 2,
    )  # fmt: skip
    start(ring, epilogue, REGISTERS, FEW_REGISTERS)


@gluon.jit
def _promoted(number, warpgroup: gl.constexpr, rows, gate_row, ring, epilogue, LAYOUT: gl.constexpr):
    """Gate and up, each step's product scaled and added in FP32 as in moe_gemm_sm90.py; scales are asked for a step ahead there and here.

    Two sums and one product fill a thread's registers: gate's is added before up's begins.
    """
    zeros = gl.zeros([WARPGROUP_ROWS, HIDDEN_TILE], gl.float32, LAYOUT)
    gate = zeros
    up = zeros
    row_scale, gate_scale, up_scale = _scales_of_step(0, rows, gate_row, ring, epilogue, LAYOUT)
    for step in range(ring.STEPS):
        ring.wait(number)
        after = _scales_of_step(min(step + 1, ring.STEPS - 1), rows, gate_row, ring, epilogue, LAYOUT)
        weight = ring.weight_stages.index(number % ring.STAGES)
        part = warpgroup_mma(ring.x(number, warpgroup), weight.slice(0, HIDDEN_TILE).permute((1, 0)), zeros, use_acc=False)
        gate += part * (row_scale * gate_scale)[:, None]
        if epilogue.HIDDEN_SCALE == PER_EXPERT or epilogue.X_SCALE == BLOCKS:
            # Nothing is under way. Without a wait for gate, ptxas starts up's product before it, and sums of each step go to local memory.
            gate = warpgroup_mma_wait(0, deps=[gate])
        part = warpgroup_mma(ring.x(number, warpgroup), weight.slice(HIDDEN_TILE, HIDDEN_TILE).permute((1, 0)), zeros, use_acc=False)
        ring.release(number)
        up += part * (row_scale * up_scale)[:, None]
        row_scale = after[0]
        gate_scale = after[1]
        up_scale = after[2]
        number += 1
    return gate, up


@gluon.jit
def _scales_of_step(step, rows, gate_row, ring, epilogue, LAYOUT: gl.constexpr):
    """FP32 [64] of x, and one each of the blocks of gate and up weights; 1 where there are none."""
    row_scale = gl.full([WARPGROUP_ROWS], 1.0, gl.float32, gl.SliceLayout(1, LAYOUT))
    gate_scale = 1.0
    up_scale = 1.0
    if epilogue.X_SCALE == BLOCKS:
        row_scale = gl.load(epilogue.x_scale + step * ring.capacity + rows)
    if epilogue.WEIGHT_SCALE == BLOCKS:
        place = epilogue.weight_scale + gate_row * ring.STEPS + step
        gate_scale = gl.load(place)
        up_scale = gl.load(place + epilogue.HIDDEN * ring.STEPS)
    return row_scale, gate_scale, up_scale


@gluon.jit
def _stored(hidden, rows, expert, column, ring, epilogue):
    """Rounded to FP16, or quantized; scales of blocks are written here."""
    if epilogue.HIDDEN_SCALE == IN_FP16:
        stored = hidden.to(gl.float16)
    elif epilogue.HIDDEN_SCALE == PER_EXPERT:
        negative, reciprocal = divider(gl.load(epilogue.hidden_scale + expert))
        stored = e4m3(saturated_quotient(hidden, negative, reciprocal))
    else:
        gl.static_assert(epilogue.HIDDEN_SCALE == PER_BLOCK)
        scale = scale_of(gl.reduce(gl.abs(hidden), 1, nan_max))
        gl.store(epilogue.hidden_scale + column * ring.capacity + rows, scale)
        # Not `quotient`: two instructions less per value, where the power limit decides (docs/kernels/moe-experts.md).
        stored = e4m3(hidden * divider(scale)[1][:, None])
    return stored
