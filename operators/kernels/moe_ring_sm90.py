"""What the warp-specialized kernels of the experts share, for compute capability 9.0: the ring of stages and those who fill it.

A tile is M_TILE sorted rows, M_TILE / 64 warpgroup tiles of 64 rows, the first of which belong to its expert: groups begin at multiples
of 64, so that no warpgroup tile has two experts. Roles of a CTA, which is alone on its SM:

- A consumer per warpgroup tile: four warps that multiply and finish its rows. One whose rows are of another expert, or empty, waits with
  the others and multiplies nothing, so that the tensor core works for those that have some.
- Producers, a warp for x and one for weights: they load into a ring of STAGES stages, ahead into the next tile.

Barriers and who completes them:

| barrier      | arrivals  | from                                             | waited for by  |
| ------------ | --------- | ------------------------------------------------ | -------------- |
| full[stage]  | 2         | each producer, and the bytes of x and of weights | every consumer |
| empty[stage] | consumers | each consumer, once no product reads the stage   | both producers |

Every role walks the same tiles in the same order: step s, counted over all tiles of the CTA, uses stage s % STAGES in turn s / STAGES.
`full` is waited for with the turn's parity, `empty` with the opposite one, which a new barrier counts as over.

An epilogue belongs to a kernel. It says where results go and makes those of 64 rows of a tile: `result`, `WIDTH` channels in a row of it,
`staging`, and `values(tile, row, number, warpgroup, ring)`.
`x_scale` holds the scales of x, of which X_SCALE says what shares one.
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
from .gemm_sm90 import WARPGROUP_ROWS, WARPS
from .moe_gemm import EXPERT, ROW, TENSOR
from .moe_place import ENTRY


@aggregate
class Ring:
    """The operands of the tiles of one launch.

    x [capacity, K] in rows of X_STRIDE; weights [experts * N, K]. A stage holds BOXES boxes of 128 weight rows: those of a tile's output
    channels, or the gate rows and, N / 2 further on, the up rows.

    GROUP 0: a table says which rows are whose. Else there is one expert that has all rows, and so many row tiles are walked before the next
    column of tiles, so that weights stay in the L2 cache.
    """

    x_RK: gl.tensor
    weight_NK: gl.tensor
    table: gl.tensor
    capacity: gl.tensor
    x_stages: gl.shared_memory_descriptor
    weight_stages: gl.shared_memory_descriptor
    full: gl.shared_memory_descriptor
    empty: gl.shared_memory_descriptor
    EXPERTS: gl.constexpr
    N: gl.constexpr
    K: gl.constexpr
    X_STRIDE: gl.constexpr
    COLUMNS: gl.constexpr
    M_TILE: gl.constexpr
    K_TILE: gl.constexpr
    BOX: gl.constexpr
    BOXES: gl.constexpr
    STAGES: gl.constexpr
    CTAS: gl.constexpr
    AHEAD: gl.constexpr
    GROUP: gl.constexpr
    CONSUMERS: gl.constexpr
    STEPS: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, **given):
        given |= {"CONSUMERS": given["M_TILE"] // WARPGROUP_ROWS.value, "STEPS": -(-given["K"] // given["K_TILE"])}
        for name, value in given.items():
            setattr(self, name, gl.constexpr(value) if isinstance(value, int) else value)

    @gluon.jit
    def tiles(self):
        rows = gl.load(self.table) if self.GROUP == 0 else gl.cdiv(self.capacity, self.M_TILE)
        return rows * self.COLUMNS

    @gluon.jit
    def entry(self, tile):
        """Where the table speaks of a tile."""
        return self.table + ENTRY + tile // self.COLUMNS * ENTRY

    @gluon.jit
    def expert(self, tile):
        expert = 0
        if self.GROUP == 0:
            expert = gl.load(self.entry(tile))
        return expert

    @gluon.jit
    def row(self, tile):
        """First sorted row."""
        if self.GROUP == 0:
            row = gl.load(self.entry(tile) + 1)
        else:
            row = tile_of(tile, self.capacity, self.COLUMNS * self.BOX, self.M_TILE, self.BOX, self.GROUP)[0]
        return row

    @gluon.jit
    def column(self, tile):
        """Which box of output channels a tile has."""
        if self.GROUP == 0:
            column = tile % self.COLUMNS
        else:
            column = tile_of(tile, self.capacity, self.COLUMNS * self.BOX, self.M_TILE, self.BOX, self.GROUP)[1] // self.BOX
        return column

    @gluon.jit
    def filled(self, tile):
        """Rows that there are, at least one."""
        return gl.load(self.entry(tile) + 2) if self.GROUP == 0 else self.capacity - self.row(tile)

    @gluon.jit
    def wait(self, number):
        mbarrier.wait(self.full.index(number % self.STAGES), number // self.STAGES & 1)

    @gluon.jit
    def release(self, number):
        mbarrier.arrive(self.empty.index(number % self.STAGES), count=1)

    @gluon.jit
    def x(self, number, warpgroup: gl.constexpr):
        return self.x_stages.index(number % self.STAGES * self.CONSUMERS + warpgroup)

    @gluon.jit
    def weight(self, number):
        return self.weight_stages.index(number % self.STAGES).permute((1, 0))


@gluon.jit
def make_barriers(STAGES: gl.constexpr, CONSUMERS: gl.constexpr):
    """`full` and `empty` of a ring without anything in it."""
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=2)
        mbarrier.init(empty.index(stage), count=CONSUMERS)
    fence_async_shared()  # the tensor memory accelerator sees them, too
    return full, empty


@gluon.jit
def start(ring, epilogue, REGISTERS: gl.constexpr, FEW_REGISTERS: gl.constexpr):
    """Give every role its warps. REGISTERS are a consumer's per thread, FEW_REGISTERS a producer's."""
    if ring.CONSUMERS == 2:
        gl.warp_specialize(
            [(consume, (0, ring, epilogue)), (consume, (1, ring, epilogue)), (produce_x, (ring,)), (produce_weights, (ring,))],
            [WARPS, 1, 1],
            [REGISTERS, FEW_REGISTERS, FEW_REGISTERS],
        )
    else:
        gl.static_assert(ring.CONSUMERS == 3)
        gl.warp_specialize(
            [
                (consume, (0, ring, epilogue)), (consume, (1, ring, epilogue)), (consume, (2, ring, epilogue)),
                (produce_x, (ring,)), (produce_weights, (ring,)),
            ],
            [WARPS, WARPS, 1, 1],
            [REGISTERS, REGISTERS, FEW_REGISTERS, FEW_REGISTERS],
        )  # fmt: skip


@gluon.jit
def consume(warpgroup: gl.constexpr, ring, epilogue):
    """Multiply and finish 64 rows of every tile, and store them: the store of one tile has read the buffer long before the next ends."""
    await_previous()
    staging = epilogue.staging.index(warpgroup)
    BOX: gl.constexpr = [WARPGROUP_ROWS, ring.BOX]
    result = tma.make_tensor_descriptor(epilogue.result, [ring.capacity, epilogue.WIDTH], [epilogue.WIDTH, 1], BOX, staging.layout)
    number = 0
    for tile in range(gl.program_id(0), ring.tiles(), ring.CTAS):
        row = ring.row(tile) + warpgroup * WARPGROUP_ROWS
        if ring.filled(tile) > warpgroup * WARPGROUP_ROWS:
            values = epilogue.values(tile, row, number, warpgroup, ring)
            tma.store_wait(0)  # the buffer has been read
            gl.thread_barrier()
            staging.store(values)
            fence_async_shared()  # the store reads what was written here
            gl.thread_barrier()
            tma.async_copy_shared_to_global(result, [row, ring.column(tile) * ring.BOX], staging)
        else:
            skip(number, ring)
        number += ring.STEPS
    tma.store_wait(0)


@gluon.jit
def produce_x(ring):
    """Load the rows of every tile. Boxes beyond the edges are filled with zeros: the bytes are always those of whole boxes."""
    BYTES: gl.constexpr = ring.M_TILE * ring.K_TILE * (ring.x_stages.dtype.primitive_bitwidth // 8)
    await_previous()
    x = tma.make_tensor_descriptor(
        ring.x_RK, [ring.capacity, ring.X_STRIDE], [ring.X_STRIDE, 1], [WARPGROUP_ROWS, ring.K_TILE], ring.x_stages.layout
    )
    number = 0
    for tile in range(gl.program_id(0), ring.tiles(), ring.CTAS):
        row = ring.row(tile)
        for step in range(ring.STEPS):
            full = ring.full.index(number % ring.STAGES)
            mbarrier.wait(ring.empty.index(number % ring.STAGES), (number // ring.STAGES & 1) ^ 1)
            mbarrier.expect(full, BYTES)
            for warpgroup in gl.static_range(ring.CONSUMERS):
                tma.async_copy_global_to_shared(x, [row + warpgroup * WARPGROUP_ROWS, step * ring.K_TILE], full, ring.x(number, warpgroup))
            number += 1


@gluon.jit
def prefetch_first(ring):
    """Ask for the weights of the first tile while the launch before this one still runs. The one before that wrote the table."""
    gl.static_assert(ring.BOXES == 1)
    tile = gl.program_id(0)
    channel = tile % ring.COLUMNS * ring.BOX
    if (tile < gl.load(ring.table, cache_modifier=".cg") * ring.COLUMNS) & (channel + ring.BOX <= ring.N):
        row = gl.load(ring.entry(tile), cache_modifier=".cg") * ring.N + channel
        lanes = gl.arange(0, 32, gl.BlockedLayout([1], [32], [1], [0]))
        BYTES: gl.constexpr = ring.BOX * ring.K * (ring.x_stages.dtype.primitive_bitwidth // 8)
        prefetch(ring.weight_NK + row.to(gl.int64) * ring.K, lanes, BYTES, 32)


@gluon.jit
def produce_weights(ring):
    """Load the weights of every tile's expert."""
    WIDTH: gl.constexpr = ring.x_stages.dtype.primitive_bitwidth // 8
    BYTES: gl.constexpr = ring.BOXES * ring.BOX * ring.K_TILE * WIDTH
    LAYOUT: gl.constexpr = ring.weight_stages.layout
    if ring.AHEAD:
        prefetch_first(ring)
    await_previous()
    weight = tma.make_tensor_descriptor(ring.weight_NK, [ring.EXPERTS * ring.N, ring.K], [ring.K, 1], [ring.BOX, ring.K_TILE], LAYOUT)
    number = 0
    for tile in range(gl.program_id(0), ring.tiles(), ring.CTAS):
        row = ring.expert(tile) * ring.N + ring.column(tile) * ring.BOX
        for step in range(ring.STEPS):
            stage = number % ring.STAGES
            full = ring.full.index(stage)
            mbarrier.wait(ring.empty.index(stage), (number // ring.STAGES & 1) ^ 1)
            mbarrier.expect(full, BYTES)
            for box in gl.static_range(ring.BOXES):
                target = ring.weight_stages.index(stage).slice(box * ring.BOX, ring.BOX)
                tma.async_copy_global_to_shared(weight, [row + box * (ring.N // 2), step * ring.K_TILE], full, target)
            number += 1


@gluon.jit
def skip(number, ring):
    """Keep pace with the other consumers where a tile has no rows for this one."""
    for _ in range(ring.STEPS):
        ring.wait(number)
        ring.release(number)
        number += 1


@gluon.jit
def scale_of_rows(rows, expert, epilogue, LAYOUT: gl.constexpr):
    """FP32 [64] of x, in rows of a result of LAYOUT; 1 where x has no scales, or those of blocks."""
    scale = gl.full([WARPGROUP_ROWS], 1.0, gl.float32, gl.SliceLayout(1, LAYOUT))
    if epilogue.X_SCALE == TENSOR:
        scale *= gl.load(epilogue.x_scale)
    elif epilogue.X_SCALE == EXPERT:
        scale *= gl.load(epilogue.x_scale + expert)
    elif epilogue.X_SCALE == ROW:
        scale *= gl.load(epilogue.x_scale + rows)
    return scale


@gluon.jit
def product(number, warpgroup: gl.constexpr, ring, LAYOUT: gl.constexpr):
    """One product stays in flight; the one before it has left its stage, which is given back."""
    accumulator = gl.zeros([WARPGROUP_ROWS, ring.BOXES * ring.BOX], gl.float32, LAYOUT)
    # The first product takes the place of these zeros, so that none are written (docs/kernels/moe-experts.md has the gain).
    accumulator = _multiplied(number, warpgroup, accumulator, ring, ADD=False)
    number += 1
    for _ in range(1, ring.STEPS):
        accumulator = _multiplied(number, warpgroup, accumulator, ring, ADD=True)
        ring.release(number + ring.STAGES - 1)
        number += 1
    accumulator = warpgroup_mma_wait(0, deps=[accumulator])
    ring.release(number + ring.STAGES - 1)
    return accumulator


@gluon.jit
def _multiplied(number, warpgroup: gl.constexpr, accumulator, ring, ADD: gl.constexpr):
    """Start the product of a stage, and wait for the one before it."""
    ring.wait(number)
    accumulator = warpgroup_mma(ring.x(number, warpgroup), ring.weight(number), accumulator, use_acc=ADD, is_async=True)
    return warpgroup_mma_wait(1, deps=[accumulator])
