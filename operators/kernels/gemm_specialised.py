"""The matrix product for compute capability 9.0 whose warps have roles: some load, some multiply, some carry tiles in and out.

Written in Gluon, Triton's language one level below, because Triton waits for each tile it stores. FP8 and FP16, with or without
scales and residual. TensorRT-side layouts as they are: x [rows, K], weight [N, K].

A tile is M_TILE / 64 slabs of 64 rows. Roles of a program, which is alone on its multiprocessor:

- A consumer per slab: four warps that multiply and finish their slab. They do not wait for each other, so that one finishes its
  slab while the tensor core works for the others.
- The producer: a warp that loads x and weight into a ring of STAGES stages. It runs ahead into the next tile.
- A carrier per slab: a warp that brings the slab's residual into a staging buffer during the main loop, and from there takes the
  result to memory while the next tile is multiplied.

Barriers and who completes them (each arrival below is one thread's):

| barrier         | arrivals | from                                                | waited for by       |
| full[stage]     | 1        | producer, and the bytes of x and weight             | every consumer      |
| empty[stage]    | slabs    | each consumer, once no product reads the stage      | producer            |
| staged[slab]    | 1        | carrier: the residual's bytes, or the buffer's free | the slab's consumer |
| finished[slab]  | 1        | consumer, once the result stands in the buffer      | the slab's carrier  |

Phases: every role walks the same tiles in the same order, so that all agree on the number of a step (counted over all tiles of the
program) and of a tile. Step s uses stage s % STAGES in turn s / STAGES: `full` is waited for with the turn's parity, `empty` with the
opposite one, which a new barrier counts as over: the first turn waits for nobody. `staged` and `finished` complete once per tile, so
the parity is the tile's. A role without tiles waits for nothing.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.language.core import _aggregate as aggregate

from .epilogue import tile_of

SLAB = gl.constexpr(64)  # rows of a tensor core instruction
WARPS = gl.constexpr(4)  # that issue it together


@aggregate
class _Work:
    """What every role is given."""

    x_RK: gl.tensor
    weight_NK: gl.tensor
    output_RN: gl.tensor
    scale: gl.tensor
    weight_scale_N: gl.tensor
    residual_RN: gl.tensor
    rows: gl.tensor
    x_stages: gl.shared_memory_descriptor
    weight_stages: gl.shared_memory_descriptor
    staging: gl.shared_memory_descriptor
    full: gl.shared_memory_descriptor
    empty: gl.shared_memory_descriptor
    staged: gl.shared_memory_descriptor
    finished: gl.shared_memory_descriptor
    N: gl.constexpr
    K: gl.constexpr
    SCALED: gl.constexpr
    ROW_SCALES: gl.constexpr
    RESIDUAL: gl.constexpr
    PROMOTE: gl.constexpr
    M_TILE: gl.constexpr
    N_TILE: gl.constexpr
    K_TILE: gl.constexpr
    GROUP: gl.constexpr
    PROGRAMS: gl.constexpr
    STAGES: gl.constexpr
    SLABS: gl.constexpr
    STEPS: gl.constexpr

    @gluon.constexpr_function
    def __init__(
        self, x_RK, weight_NK, output_RN, scale, weight_scale_N, residual_RN, rows,
        x_stages, weight_stages, staging, full, empty, staged, finished,
        N, K, SCALED, ROW_SCALES, RESIDUAL, PROMOTE, M_TILE, N_TILE, K_TILE, GROUP, PROGRAMS, STAGES, SLABS,
    ):  # fmt: skip
        self.x_RK, self.weight_NK, self.output_RN = x_RK, weight_NK, output_RN
        self.scale, self.weight_scale_N, self.residual_RN, self.rows = scale, weight_scale_N, residual_RN, rows
        self.x_stages, self.weight_stages, self.staging = x_stages, weight_stages, staging
        self.full, self.empty, self.staged, self.finished = full, empty, staged, finished
        self.N, self.K, self.STEPS = gl.constexpr(N), gl.constexpr(K), gl.constexpr(-(-K // K_TILE))
        self.SCALED, self.ROW_SCALES = gl.constexpr(SCALED), gl.constexpr(ROW_SCALES)
        self.RESIDUAL, self.PROMOTE = gl.constexpr(RESIDUAL), gl.constexpr(PROMOTE)
        self.M_TILE, self.N_TILE, self.K_TILE = gl.constexpr(M_TILE), gl.constexpr(N_TILE), gl.constexpr(K_TILE)
        self.GROUP, self.PROGRAMS = gl.constexpr(GROUP), gl.constexpr(PROGRAMS)
        self.STAGES, self.SLABS = gl.constexpr(STAGES), gl.constexpr(SLABS)

    @gluon.jit
    def tiles(self):
        return gl.cdiv(self.rows, self.M_TILE) * ((self.N + self.N_TILE - 1) // self.N_TILE)

    @gluon.jit
    def place(self, tile):
        """First row and output channel of a tile."""
        return tile_of(tile, self.rows, self.N, self.M_TILE, self.N_TILE, self.GROUP)


@gluon.jit
def gemm_specialised(
    x_RK, weight_NK, output_RN, scale, weight_scale_N, residual_RN, rows,
    N: gl.constexpr, K: gl.constexpr,
    SCALED: gl.constexpr, ROW_SCALES: gl.constexpr, RESIDUAL: gl.constexpr, PROMOTE: gl.constexpr,
    M_TILE: gl.constexpr, N_TILE: gl.constexpr, K_TILE: gl.constexpr,
    GROUP: gl.constexpr, PROGRAMS: gl.constexpr, STAGES: gl.constexpr, REGISTERS: gl.constexpr, FEW_REGISTERS: gl.constexpr,
):  # fmt: skip
    """Give every role its warps. REGISTERS are a consumer's per thread, FEW_REGISTERS the others'."""
    SLABS: gl.constexpr = M_TILE // SLAB
    OPERAND: gl.constexpr = gl.NVMMASharedLayout(128, x_RK.dtype.element_ty.primitive_bitwidth)
    STAGING: gl.constexpr = gl.NVMMASharedLayout(128, 16)
    x_stages = gl.allocate_shared_memory(x_RK.dtype.element_ty, [STAGES * SLABS, SLAB, K_TILE], OPERAND)
    weight_stages = gl.allocate_shared_memory(x_RK.dtype.element_ty, [STAGES, N_TILE, K_TILE], OPERAND)
    staging = gl.allocate_shared_memory(gl.float16, [SLABS, SLAB, N_TILE], STAGING)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    staged = gl.allocate_shared_memory(gl.int64, [SLABS, 1], mbarrier.MBarrierLayout())
    finished = gl.allocate_shared_memory(gl.int64, [SLABS, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=SLABS)
    for slab in gl.static_range(SLABS):
        mbarrier.init(staged.index(slab), count=1)
        mbarrier.init(finished.index(slab), count=1)
    fence_async_shared()  # the tensor memory accelerator sees them, too
    work = _Work(
        x_RK, weight_NK, output_RN, scale, weight_scale_N, residual_RN, rows,
        x_stages, weight_stages, staging, full, empty, staged, finished,
        N, K, SCALED, ROW_SCALES, RESIDUAL, PROMOTE, M_TILE, N_TILE, K_TILE, GROUP, PROGRAMS, STAGES, SLABS,
    )  # fmt: skip
    if SLABS == 2:
        gl.warp_specialize(
            [
                (_consume, (0, work)),
                (_consume, (1, work)),
                (_produce, (work,)),
                (_carry, (0, work)),
                (_carry, (1, work)),
            ],
            [WARPS, 1, 1, 1],
            [REGISTERS, FEW_REGISTERS, FEW_REGISTERS, FEW_REGISTERS],
        )
    else:
        gl.static_assert(SLABS == 3)
        gl.warp_specialize(
            [
                (_consume, (0, work)),
                (_consume, (1, work)),
                (_consume, (2, work)),
                (_produce, (work,)),
                (_carry, (0, work)),
                (_carry, (1, work)),
                (_carry, (2, work)),
            ],
            [WARPS, WARPS, 1, 1, 1, 1],
            [REGISTERS, REGISTERS, FEW_REGISTERS, FEW_REGISTERS, FEW_REGISTERS, FEW_REGISTERS],
        )


@gluon.jit
def _produce(work):
    """Fill the ring, tile after tile."""
    BYTES: gl.constexpr = (work.M_TILE + work.N_TILE) * work.K_TILE * (work.x_RK.dtype.element_ty.primitive_bitwidth // 8)
    x = tma.make_tensor_descriptor(work.x_RK, [work.rows, work.K], [work.K, 1], [SLAB, work.K_TILE], work.x_stages.layout)
    weight = tma.make_tensor_descriptor(work.weight_NK, [work.N, work.K], [work.K, 1], [work.N_TILE, work.K_TILE], work.weight_stages.layout)
    number = 0
    for tile in range(gl.program_id(0), work.tiles(), work.PROGRAMS):
        row, channel = work.place(tile)
        for step in range(work.STEPS):
            stage = number % work.STAGES
            mbarrier.wait(work.empty.index(stage), (number // work.STAGES & 1) ^ 1)
            # Boxes beyond the edges are filled with zeros: the bytes are always those of whole boxes.
            mbarrier.expect(work.full.index(stage), BYTES)
            tma.async_copy_global_to_shared(weight, [channel, step * work.K_TILE], work.full.index(stage), work.weight_stages.index(stage))
            for slab in gl.static_range(work.SLABS):
                target = work.x_stages.index(stage * work.SLABS + slab)
                tma.async_copy_global_to_shared(x, [row + slab * SLAB, step * work.K_TILE], work.full.index(stage), target)
            number += 1


@gluon.jit
def _carry(slab: gl.constexpr, work):
    """Bring residuals, take results away."""
    staging = work.staging.index(slab)
    staged = work.staged.index(slab)
    finished = work.finished.index(slab)
    output = tma.make_tensor_descriptor(work.output_RN, [work.rows, work.N], [work.N, 1], [SLAB, work.N_TILE], staging.layout)
    residual = output
    if work.RESIDUAL:
        residual = tma.make_tensor_descriptor(work.residual_RN, [work.rows, work.N], [work.N, 1], [SLAB, work.N_TILE], staging.layout)
    parity = 0
    for tile in range(gl.program_id(0), work.tiles(), work.PROGRAMS):
        row, channel = work.place(tile)
        row += slab * SLAB
        if work.RESIDUAL:
            mbarrier.expect(staged, SLAB * work.N_TILE * 2)
            tma.async_copy_global_to_shared(residual, [row, channel], staged, staging)
        else:
            mbarrier.arrive(staged, count=1)
        mbarrier.wait(finished, parity)
        tma.async_copy_shared_to_global(output, [row, channel], staging)
        tma.store_wait(0)  # until the buffer has been read
        parity ^= 1


@gluon.jit
def _consume(slab: gl.constexpr, work):
    """Multiply and finish a slab of every tile."""
    HALF: gl.constexpr = work.N_TILE // 2
    CHANNELS: gl.constexpr = 256 // work.x_stages.dtype.primitive_bitwidth  # that an instruction multiplies
    WHOLE_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, work.N_TILE, CHANNELS])
    HALF_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, HALF, CHANNELS])
    ROW_LAYOUT: gl.constexpr = gl.SliceLayout(1, HALF_LAYOUT)
    CHANNEL_LAYOUT: gl.constexpr = gl.BlockedLayout([1], [32], [WARPS], [0])
    staging = work.staging.index(slab)
    staged = work.staged.index(slab)
    finished = work.finished.index(slab)
    number = 0
    parity = 0
    for tile in range(gl.program_id(0), work.tiles(), work.PROGRAMS):
        row, channel = work.place(tile)
        # Scales are asked for before the main loop, in layouts that hold each once or twice per thread.
        row_scale = 0.0
        left_scale = 0.0
        right_scale = 0.0
        if work.SCALED:
            if work.ROW_SCALES:
                numbers = row + slab * SLAB + gl.arange(0, SLAB, ROW_LAYOUT)
                row_scale = gl.load(work.scale + numbers, mask=numbers < work.rows, other=0.0)
            else:
                row_scale = gl.load(work.scale)
            channels = channel + gl.arange(0, HALF, CHANNEL_LAYOUT)
            left_scale = gl.load(work.weight_scale_N + channels, mask=channels < work.N, other=0.0)
            right_scale = gl.load(work.weight_scale_N + HALF + channels, mask=channels + HALF < work.N, other=0.0)
        if work.PROMOTE:
            left = gl.zeros([SLAB, HALF], gl.float32, HALF_LAYOUT)
            right = gl.zeros([SLAB, HALF], gl.float32, HALF_LAYOUT)
            zeros = gl.zeros([SLAB, HALF], gl.float32, HALF_LAYOUT)
            for _ in range(work.STEPS):
                stage = number % work.STAGES
                x = work.x_stages.index(stage * work.SLABS + slab)
                weight = work.weight_stages.index(stage)
                mbarrier.wait(work.full.index(stage), number // work.STAGES & 1)
                left += warpgroup_mma(x, weight.slice(0, HALF, 0).permute((1, 0)), zeros, use_acc=False)
                part = warpgroup_mma(x, weight.slice(HALF, HALF, 0).permute((1, 0)), zeros, use_acc=False)
                mbarrier.arrive(work.empty.index(stage), count=1)
                right += part
                number += 1
        else:
            accumulator = gl.zeros([SLAB, work.N_TILE], gl.float32, WHOLE_LAYOUT)
            for step in range(work.STEPS):
                stage = number % work.STAGES
                x = work.x_stages.index(stage * work.SLABS + slab)
                mbarrier.wait(work.full.index(stage), number // work.STAGES & 1)
                accumulator = warpgroup_mma(x, work.weight_stages.index(stage).permute((1, 0)), accumulator, use_acc=step > 0, is_async=True)
                # One product stays in flight; the one before it has left its stage.
                accumulator = warpgroup_mma_wait(1, deps=[accumulator])
                mbarrier.arrive(work.empty.index((number + work.STAGES - 1) % work.STAGES), count=1, pred=step > 0)
                number += 1
            accumulator = warpgroup_mma_wait(0, deps=[accumulator])
            mbarrier.arrive(work.empty.index((number + work.STAGES - 1) % work.STAGES), count=1)
            left, right = gl.reshape(accumulator, [SLAB, 2, HALF]).permute([0, 2, 1]).split()
            left = gl.convert_layout(left, HALF_LAYOUT, assert_trivial=True)
            right = gl.convert_layout(right, HALF_LAYOUT, assert_trivial=True)
        mbarrier.wait(staged, parity)
        _finish(left, row_scale, left_scale, staging.slice(0, HALF, 1), work.SCALED, work.ROW_SCALES, work.RESIDUAL)
        _finish(right, row_scale, right_scale, staging.slice(HALF, HALF, 1), work.SCALED, work.ROW_SCALES, work.RESIDUAL)
        fence_async_shared()  # the store reads what was written here
        gl.thread_barrier()  # by all threads, for one of which the next line speaks
        mbarrier.arrive(finished, count=1)
        parity ^= 1


@gluon.jit
def _finish(accumulator, row_scale, channel_scale, staging, SCALED: gl.constexpr, ROW_SCALES: gl.constexpr, RESIDUAL: gl.constexpr):
    """Scale a part, add the residual that stands in the buffer, and put the result in its place."""
    LAYOUT: gl.constexpr = accumulator.type.layout
    if SCALED:
        factor = gl.convert_layout(channel_scale, gl.SliceLayout(0, LAYOUT))[None, :]
        if ROW_SCALES:
            accumulator *= row_scale[:, None] * factor
        else:
            accumulator *= row_scale * factor
    if RESIDUAL:
        accumulator += staging.load(LAYOUT).to(gl.float32)
    staging.store(accumulator.to(gl.float16))

