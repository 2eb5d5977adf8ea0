"""The warp-specialized matrix product for compute capability 9.0: producer warps load, consumers multiply, store warps move tiles.

Written in Gluon, Triton's language one level below, because Triton waits for each tile it stores. FP8 and FP16, with or without
scales and residual. TensorRT-side layouts as they are: x [rows, K], weight [N, K].

The kernel is persistent: a CTA is alone on its multiprocessor and walks tile after tile. A tile is M_TILE / 64 warpgroup tiles of 64
rows. Warps of a CTA:

- A consumer per warpgroup tile: four warps (a warpgroup) that multiply and finish it. Consumers do not wait for each other, so that
  one finishes while the tensor core works for the others.
- Producers, two for two warpgroup tiles, else one: a warp that loads x, weight or both by TMA into a ring of STAGES stages. It runs
  ahead into the next tile. Two make their descriptors at the same time.
- A store warp per warpgroup tile: it brings the residual into a staging buffer during the main loop, and from there takes the result
  to memory while the next tile is multiplied.

Barriers and who completes them (each arrival below is one thread's):

| barrier            | arrivals         | from                                                   | waited for by  |
| full[stage]        | 1 or 2           | each producer, and the bytes of x and weight           | every consumer |
| empty[stage]       | warpgroup tiles  | each consumer, once no product reads the stage         | every producer |
| staged[warpgroup]  | 1                | store warp: the residual's bytes, or the buffer's free | its consumer   |
| finished[warpgroup]| 1                | consumer, once the result stands in the buffer         | its store warp |

Phases: all warps walk the same tiles in the same order, so that they agree on the number of a step (counted over all tiles of the
CTA) and of a tile. Step s uses stage s % STAGES in turn s / STAGES: `full` is waited for with the turn's parity, `empty` with the
opposite one, which a new barrier counts as over: the first turn waits for nobody. `staged` and `finished` complete once per tile, so
the parity is the tile's. A warp without tiles waits for nothing.
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

from .dependent import await_previous, prefetch
from .epilogue import tile_of

WARPGROUP_ROWS = gl.constexpr(64)  # rows of a WGMMA instruction
WARPS = gl.constexpr(4)  # of a warpgroup, which issues it together


@aggregate
class _Work:
    """What every warp is given."""

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
    CTAS: gl.constexpr
    STAGES: gl.constexpr
    WARPGROUPS: gl.constexpr
    STEPS: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, **given):
        given |= {"WARPGROUPS": given["M_TILE"] // WARPGROUP_ROWS.value, "STEPS": -(-given["K"] // given["K_TILE"])}
        for name, value in given.items():
            setattr(self, name, gl.constexpr(value) if isinstance(value, int) else value)

    @gluon.jit
    def tiles(self):
        return gl.cdiv(self.rows, self.M_TILE) * ((self.N + self.N_TILE - 1) // self.N_TILE)

    @gluon.jit
    def place(self, tile):
        """First row and output channel of a tile."""
        row, channel = tile_of(tile, self.rows, self.N, self.M_TILE, self.N_TILE, self.GROUP)
        return row, channel


@gluon.jit
def gemm_sm90(
    x_RK, weight_NK, output_RN, scale, weight_scale_N, residual_RN, rows,
    N: gl.constexpr, K: gl.constexpr,
    SCALED: gl.constexpr, ROW_SCALES: gl.constexpr, RESIDUAL: gl.constexpr, PROMOTE: gl.constexpr,
    M_TILE: gl.constexpr, N_TILE: gl.constexpr, K_TILE: gl.constexpr,
    GROUP: gl.constexpr, CTAS: gl.constexpr, STAGES: gl.constexpr, REGISTERS: gl.constexpr, FEW_REGISTERS: gl.constexpr,
):  # fmt: skip
    """Start every partition. REGISTERS are a consumer's per thread, FEW_REGISTERS the others'."""
    WARPGROUPS: gl.constexpr = M_TILE // WARPGROUP_ROWS
    OPERAND: gl.constexpr = gl.NVMMASharedLayout(128, x_RK.dtype.element_ty.primitive_bitwidth)
    STAGING: gl.constexpr = gl.NVMMASharedLayout(128, 16)
    x_stages = gl.allocate_shared_memory(x_RK.dtype.element_ty, [STAGES * WARPGROUPS, WARPGROUP_ROWS, K_TILE], OPERAND)
    weight_stages = gl.allocate_shared_memory(x_RK.dtype.element_ty, [STAGES, N_TILE, K_TILE], OPERAND)
    staging = gl.allocate_shared_memory(gl.float16, [WARPGROUPS, WARPGROUP_ROWS, N_TILE], STAGING)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    staged = gl.allocate_shared_memory(gl.int64, [WARPGROUPS, 1], mbarrier.MBarrierLayout())
    finished = gl.allocate_shared_memory(gl.int64, [WARPGROUPS, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=2 if WARPGROUPS == 2 else 1)
        mbarrier.init(empty.index(stage), count=WARPGROUPS)
    for warpgroup in gl.static_range(WARPGROUPS):
        mbarrier.init(staged.index(warpgroup), count=1)
        mbarrier.init(finished.index(warpgroup), count=1)
    fence_async_shared()  # the tensor memory accelerator sees them, too
    work = _Work(
        x_RK=x_RK, weight_NK=weight_NK, output_RN=output_RN, scale=scale, weight_scale_N=weight_scale_N, residual_RN=residual_RN, rows=rows,
        x_stages=x_stages, weight_stages=weight_stages, staging=staging, full=full, empty=empty, staged=staged, finished=finished,
        N=N, K=K, SCALED=SCALED, ROW_SCALES=ROW_SCALES, RESIDUAL=RESIDUAL, PROMOTE=PROMOTE,
        M_TILE=M_TILE, N_TILE=N_TILE, K_TILE=K_TILE, GROUP=GROUP, CTAS=CTAS, STAGES=STAGES,
    )  # fmt: skip
    if WARPGROUPS == 2:
        gl.warp_specialize(
            [
                (_consume, (0, work)), (_consume, (1, work)),
                (_produce, (True, False, work)), (_produce, (False, True, work)), (_store, (0, work)), (_store, (1, work)),
            ],
            [WARPS, 1, 1, 1, 1],
            [REGISTERS, FEW_REGISTERS, FEW_REGISTERS, FEW_REGISTERS, FEW_REGISTERS],
        )  # fmt: skip
    else:
        gl.static_assert(WARPGROUPS == 3)
        gl.warp_specialize(
            [
                (_consume, (0, work)), (_consume, (1, work)), (_consume, (2, work)),
                (_produce, (True, True, work)), (_store, (0, work)), (_store, (1, work)), (_store, (2, work)),
            ],
            [WARPS, WARPS, 1, 1, 1, 1],
            [REGISTERS, REGISTERS, FEW_REGISTERS, FEW_REGISTERS, FEW_REGISTERS, FEW_REGISTERS],
        )  # fmt: skip


@gluon.jit
def _produce(X: gl.constexpr, WEIGHT: gl.constexpr, work):
    """Fill the ring, tile after tile, with x, weight or both: a producer."""
    WIDTH: gl.constexpr = work.x_RK.dtype.element_ty.primitive_bitwidth // 8
    BYTES: gl.constexpr = (X * work.M_TILE + WEIGHT * work.N_TILE) * work.K_TILE * WIDTH
    BOX: gl.constexpr = [work.N_TILE, work.K_TILE]
    if WEIGHT:
        row, channel = work.place(gl.program_id(0))
        if (row == 0) & (channel + work.N_TILE <= work.N):
            lanes = gl.arange(0, 32, gl.BlockedLayout([1], [32], [1], [0]))
            prefetch(work.weight_NK + channel.to(gl.int64) * work.K, lanes, work.N_TILE * work.K * WIDTH, 32)
    await_previous()
    if WEIGHT:
        weight = tma.make_tensor_descriptor(work.weight_NK, [work.N, work.K], [work.K, 1], BOX, work.weight_stages.layout)
    if X:
        x = tma.make_tensor_descriptor(work.x_RK, [work.rows, work.K], [work.K, 1], [WARPGROUP_ROWS, work.K_TILE], work.x_stages.layout)
    number = 0
    for tile in range(gl.program_id(0), work.tiles(), work.CTAS):
        row, channel = work.place(tile)
        for step in range(work.STEPS):
            stage = number % work.STAGES
            full = work.full.index(stage)
            mbarrier.wait(work.empty.index(stage), (number // work.STAGES & 1) ^ 1)
            # Boxes beyond the edges are filled with zeros: the bytes are always those of whole boxes.
            mbarrier.expect(full, BYTES)
            if WEIGHT:
                tma.async_copy_global_to_shared(weight, [channel, step * work.K_TILE], full, work.weight_stages.index(stage))
            if X:
                for warpgroup in gl.static_range(work.WARPGROUPS):
                    target = work.x_stages.index(stage * work.WARPGROUPS + warpgroup)
                    tma.async_copy_global_to_shared(x, [row + warpgroup * WARPGROUP_ROWS, step * work.K_TILE], full, target)
            number += 1


@gluon.jit
def _store(warpgroup: gl.constexpr, work):
    """Bring residuals, take results away: the store warp."""
    await_previous()
    staging = work.staging.index(warpgroup)
    staged = work.staged.index(warpgroup)
    finished = work.finished.index(warpgroup)
    output = tma.make_tensor_descriptor(work.output_RN, [work.rows, work.N], [work.N, 1], [WARPGROUP_ROWS, work.N_TILE], staging.layout)
    residual = output
    if work.RESIDUAL:
        residual = tma.make_tensor_descriptor(
            work.residual_RN, [work.rows, work.N], [work.N, 1], [WARPGROUP_ROWS, work.N_TILE], staging.layout
        )
    parity = 0
    for tile in range(gl.program_id(0), work.tiles(), work.CTAS):
        row, channel = work.place(tile)
        row += warpgroup * WARPGROUP_ROWS
        if work.RESIDUAL:
            mbarrier.expect(staged, WARPGROUP_ROWS * work.N_TILE * 2)
            tma.async_copy_global_to_shared(residual, [row, channel], staged, staging)
        else:
            mbarrier.arrive(staged, count=1)
        mbarrier.wait(finished, parity)
        tma.async_copy_shared_to_global(output, [row, channel], staging)
        tma.store_wait(0)  # until the buffer has been read
        parity ^= 1


@gluon.jit
def _consume(warpgroup: gl.constexpr, work):
    """Multiply and finish a warpgroup tile of every tile: a consumer."""
    await_previous()
    number = 0
    parity = 0
    for tile in range(gl.program_id(0), work.tiles(), work.CTAS):
        row, channel = work.place(tile)
        _multiply_and_finish(row, channel, number, parity, warpgroup, work)
        fence_async_shared()  # the store reads what was written here
        gl.thread_barrier()  # by all threads, for one of which the next line speaks
        mbarrier.arrive(work.finished.index(warpgroup), count=1)
        number += work.STEPS
        parity ^= 1


@gluon.jit
def _multiply_and_finish(row, channel, number, parity, warpgroup: gl.constexpr, work):
    """A warpgroup tile of a tile."""
    CHANNELS: gl.constexpr = 256 // work.x_stages.dtype.primitive_bitwidth  # that an instruction multiplies
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, work.N_TILE, CHANNELS])
    CHANNEL_LAYOUT: gl.constexpr = gl.BlockedLayout([1], [32], [WARPS], [0])
    # Scales are asked for before the main loop, in layouts that hold each once or twice per thread.
    row_scale = 0.0
    channel_scale = 0.0
    if work.SCALED:
        if work.ROW_SCALES:
            numbers = row + warpgroup * WARPGROUP_ROWS + gl.arange(0, WARPGROUP_ROWS, gl.SliceLayout(1, LAYOUT))
            row_scale = gl.load(work.scale + numbers, mask=numbers < work.rows, other=0.0)
        else:
            row_scale = gl.load(work.scale)
        channels = channel + gl.arange(0, work.N_TILE, CHANNEL_LAYOUT)
        channel_scale = gl.load(work.weight_scale_N + channels, mask=channels < work.N, other=0.0)
    accumulator = _promoted(number, warpgroup, work, LAYOUT) if work.PROMOTE else _product(number, warpgroup, work, LAYOUT)
    mbarrier.wait(work.staged.index(warpgroup), parity)
    _finish(accumulator, row_scale, channel_scale, work.staging.index(warpgroup), work)


@gluon.jit
def _product(number, warpgroup: gl.constexpr, work, LAYOUT: gl.constexpr):
    """One product stays in flight; the one before it has left its stage, which is given back."""
    accumulator = gl.zeros([WARPGROUP_ROWS, work.N_TILE], gl.float32, LAYOUT)
    # The first product takes the place of these zeros, so that none are written.
    accumulator = _multiplied(number, warpgroup, accumulator, work, ADD=False)
    number += 1
    for _ in range(1, work.STEPS):
        accumulator = _multiplied(number, warpgroup, accumulator, work, ADD=True)
        mbarrier.arrive(work.empty.index((number + work.STAGES - 1) % work.STAGES), count=1)
        number += 1
    accumulator = warpgroup_mma_wait(0, deps=[accumulator])
    mbarrier.arrive(work.empty.index((number + work.STAGES - 1) % work.STAGES), count=1)
    return accumulator


@gluon.jit
def _multiplied(number, warpgroup: gl.constexpr, accumulator, work, ADD: gl.constexpr):
    """Start the product of a stage, and wait for the one before it."""
    stage = number % work.STAGES
    mbarrier.wait(work.full.index(stage), number // work.STAGES & 1)
    weight = work.weight_stages.index(stage).permute((1, 0))
    x = work.x_stages.index(stage * work.WARPGROUPS + warpgroup)
    accumulator = warpgroup_mma(x, weight, accumulator, use_acc=ADD, is_async=True)
    return warpgroup_mma_wait(1, deps=[accumulator])


@gluon.jit
def _promoted(number, warpgroup: gl.constexpr, work, LAYOUT: gl.constexpr):
    """Each step's product starts anew and is added to an FP32 sum; meanwhile the tensor core works for another consumer."""
    zeros = gl.zeros([WARPGROUP_ROWS, work.N_TILE], gl.float32, LAYOUT)
    total = zeros
    for _ in range(work.STEPS):
        stage = number % work.STAGES
        mbarrier.wait(work.full.index(stage), number // work.STAGES & 1)
        weight = work.weight_stages.index(stage).permute((1, 0))
        product = warpgroup_mma(work.x_stages.index(stage * work.WARPGROUPS + warpgroup), weight, zeros, use_acc=False)
        mbarrier.arrive(work.empty.index(stage), count=1)  # the product that reads the stage is done
        total += product
        number += 1
    return total


@gluon.jit
def _finish(accumulator, row_scale, channel_scale, staging, work):
    """Scale a warpgroup tile, add the residual that stands in the buffer, and put the result in its place."""
    LAYOUT: gl.constexpr = accumulator.type.layout
    if work.SCALED:
        factor = gl.convert_layout(channel_scale, gl.SliceLayout(0, LAYOUT))[None, :]
        factor = row_scale[:, None] * factor if work.ROW_SCALES else row_scale * factor
        accumulator *= factor
    if work.RESIDUAL:
        accumulator += staging.load(LAYOUT).to(gl.float32)
    staging.store(accumulator.to(gl.float16))
