"""What the warp-specialized attentions over the context share, for compute capability 9.0: tiles, rings of stages, the producer of queries.

A tile is one or two warpgroup tiles, 64 query rows of a head of a request each. A step is N_TILE tokens. The kernel is persistent: a CTA
is alone on its SM and walks tile after tile. Its roles:

- A consumer per warpgroup tile: four warps. While the tensor core weighs the values of one step, they turn the scores of the next into
  probabilities. While it has nothing to do for one consumer, it works for the other.
- A producer for queries: a warp that loads the rows of a tile while those of the tile before are attended with.
- A producer for keys and one for values: a warp that fills a ring of STAGES stages, ahead into the next tile.

Barriers and who completes them, one set for queries, one for keys and one for values:

| barrier         | arrivals  | from                                           | waited for by |
| --------------- | --------- | ---------------------------------------------- | ------------- |
| full[stage]     | 1         | the producer, and the bytes it loads           | all consumers |
| empty[stage]    | consumers | each consumer, once no product reads the stage | the producer  |

All warps walk the same tiles in the same order and count their steps: step s, over all tiles of the CTA, uses stage s % STAGES
in turn s / STAGES; the t-th tile of the CTA has its queries in stage t % 2. gemm_sm90.py explains phases of barriers.
"""

from collections.abc import Callable

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma
from triton.language.core import _aggregate as aggregate

from .dependent import await_previous
from .gemm_sm90 import WARPGROUP_ROWS

QUERY_STAGES = gl.constexpr(2)


@aggregate
class Ring:
    """Stages that a producer fills and all consumers read, and their barriers. A stage has BOXES boxes."""

    stages: gl.shared_memory_descriptor
    full: gl.shared_memory_descriptor
    empty: gl.shared_memory_descriptor
    COUNT: gl.constexpr
    BOXES: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, stages, full, empty):
        self.stages = stages
        self.full = full
        self.empty = empty
        self.COUNT = gl.constexpr(full.shape[0])
        self.BOXES = gl.constexpr(stages.shape[0] // full.shape[0])

    @gluon.jit
    def wait(self, number, needed=True):
        """Until a stage is full."""
        mbarrier.wait(self.full.index(number % self.COUNT), number // self.COUNT & 1, pred=needed)

    @gluon.jit
    def box(self, number, place: gl.constexpr):
        return self.stages.index(number % self.COUNT * self.BOXES + place)

    @gluon.jit
    def give_back(self, number):
        mbarrier.arrive(self.empty.index(number % self.COUNT), count=1)

    @gluon.jit
    def take(self, number, BYTES: gl.constexpr):
        """Wait until a stage is empty; the barrier that so many bytes will complete."""
        mbarrier.wait(self.empty.index(number % self.COUNT), (number // self.COUNT & 1) ^ 1)
        full = self.full.index(number % self.COUNT)
        mbarrier.expect(full, BYTES)
        return full


@gluon.jit
def make_ring(
    STAGES: gl.constexpr, BOXES: gl.constexpr, BOX: gl.constexpr, TYPE: gl.constexpr, LAYOUT: gl.constexpr, CONSUMERS: gl.constexpr
):
    """A ring without anything in it; a stage has BOXES boxes."""
    stages = gl.allocate_shared_memory(TYPE, [STAGES * BOXES, BOX[0], BOX[1]], LAYOUT)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=CONSUMERS)
    return Ring(stages, full, empty)


class Tiles:
    """Base of what every warp of a kernel is given: where each tile is.

    A kernel's own class names all its fields, since their order decides how they reach the warps, and has `most_tokens`. SHARE query
    heads read the keys of one of GROUPS groups; PARTS tiles hold the rows of a head of a request.
    """

    requests: gl.tensor
    lengths_B: gl.tensor
    output_ND: gl.tensor
    most_tokens: Callable[[], gl.tensor]  # that a request can have
    ROWS: gl.constexpr
    GROUPS: gl.constexpr
    SHARE: gl.constexpr
    HEAD: gl.constexpr
    WARPGROUPS: gl.constexpr
    N_TILE: gl.constexpr
    PARTS: gl.constexpr
    WIDTH: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, **given):
        rows = given["WARPGROUPS"] * WARPGROUP_ROWS.value
        given |= {"PARTS": -(-given["ROWS"] // rows), "WIDTH": given["GROUPS"] * given["SHARE"] * given["HEAD"]}
        for name, value in given.items():
            setattr(self, name, gl.constexpr(value) if isinstance(value, int) else value)

    @gluon.jit
    def tiles(self):
        return self.requests * (self.GROUPS * self.SHARE * self.PARTS)

    @gluon.jit
    def context(self, tile):
        """Number of the tile's keys and values: request times groups plus group."""
        return tile // (self.SHARE * self.PARTS)

    @gluon.jit
    def length(self, tile):
        """Tokens of the tile's request."""
        length = gl.load(self.lengths_B + self.context(tile) // self.GROUPS)
        return gl.minimum(gl.maximum(length, 0), self.most_tokens()).to(gl.int32)

    @gluon.jit
    def steps(self, length):
        """At least one: a request without tokens attends to zeros."""
        return gl.maximum(gl.cdiv(length, self.N_TILE), 1)

    @gluon.jit
    def row_of_request(self, tile):
        """First row of the tile, counted from its request's first."""
        return tile % self.PARTS * (self.WARPGROUPS * WARPGROUP_ROWS)

    @gluon.jit
    def row(self, tile):
        """First row of the tile."""
        return self.context(tile) // self.GROUPS * self.ROWS + self.row_of_request(tile)

    @gluon.jit
    def channel(self, tile):
        """First channel of the tile's head."""
        return (self.context(tile) % self.GROUPS * self.SHARE + tile // self.PARTS % self.SHARE) * self.HEAD

    @gluon.jit
    def store(self, result, tile, warpgroup: gl.constexpr):
        """Store a warpgroup tile of the output, without the rows beyond its request."""
        LAYOUT: gl.constexpr = result.type.layout
        row = self.row_of_request(tile) + warpgroup * WARPGROUP_ROWS + gl.arange(0, WARPGROUP_ROWS, gl.SliceLayout(1, LAYOUT))
        channel = self.channel(tile) + gl.arange(0, self.HEAD, gl.SliceLayout(0, LAYOUT))
        start = self.output_ND + (self.context(tile) // self.GROUPS).to(gl.int64) * (self.ROWS * self.WIDTH)
        gl.store(start + row[:, None] * self.WIDTH + channel[None, :], result, mask=(row < self.ROWS)[:, None])


@gluon.jit
def produce_queries(work):
    """Fill the ring of queries, tile after tile. Rows beyond the request's own are another request's, and not stored."""
    await_previous()
    BYTES: gl.constexpr = work.WARPGROUPS * WARPGROUP_ROWS * work.HEAD * 2
    queries = work.queries
    rows = tma.make_tensor_descriptor(
        work.query_ND, [work.requests * work.ROWS, work.WIDTH], [work.WIDTH, 1], [WARPGROUP_ROWS, work.HEAD], queries.stages.layout
    )
    number = 0
    for tile in range(gl.program_id(0), work.tiles(), work.CTAS):
        full = queries.take(number, BYTES)
        for warpgroup in gl.static_range(work.WARPGROUPS):
            first = work.row(tile) + warpgroup * WARPGROUP_ROWS
            tma.async_copy_global_to_shared(rows, [first, work.channel(tile)], full, queries.box(number, warpgroup))
        number += 1  # noqa: SIM113  Gluon knows no enumerate


@gluon.jit
def hide_padding(score, first, length, N_TILE: gl.constexpr):
    """Scores of a step's tokens, -inf where they are beyond the request's length. `first`: the step's first token."""
    if first + N_TILE > length:
        token = first + gl.arange(0, N_TILE, gl.SliceLayout(0, score.type.layout))
        score = gl.where((token < length)[None, :], score, float("-inf"))
    return score


@gluon.jit
def turn(result, LAYOUT: gl.constexpr, count, warpgroup: gl.constexpr, queries):
    """A warpgroup tile's FP16 result in another layout, by way of the memory of its queries, which are given back."""
    box = queries.box(count, warpgroup)
    box.store(result)
    gl.thread_barrier()
    result = box.load(LAYOUT)
    fence_async_shared()  # the producer writes what was read here
    gl.thread_barrier()  # by all threads, for one of which the next line speaks
    queries.give_back(count)
    return result


@gluon.jit
def exp2(x):
    """2^x in one instruction, subnormal results 0: FP16 rounds them to 0 anyway."""
    return gl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=False, pack=1)
