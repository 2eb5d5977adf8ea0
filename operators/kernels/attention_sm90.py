"""The warp-specialized context attention for compute capability 9.0: two producer warps load keys and values, eight warps attend.

Flash attention forward in Gluon, with the means of gemm_sm90.py, which explains phases of barriers. A tile is 128 query rows of a
group of a request, the rows of all heads that share keys and values: two warpgroup tiles of 64. A step is N_TILE tokens. The kernel is
persistent: a CTA is alone on its multiprocessor and walks tile after tile.

- A consumer per warpgroup tile: four warps. While the tensor core weighs the values of one step, they turn the scores of the next into
  probabilities. While it has nothing to do for one consumer, it works for the other.
- A producer for keys and one for values: a warp that fills a ring of STAGES stages, ahead into the next tile. Its descriptor ends with
  the request's own tokens, so that what lies beyond reads as zero: 0 times the NaN of a padding would be NaN.

Barriers and who completes them, one set for keys and one for values:

| barrier      | arrivals | from                                           | waited for by  |
| ------------ | -------- | ---------------------------------------------- | -------------- |
| full[stage]  | 1        | the producer, and the bytes of its tokens      | both consumers |
| empty[stage] | 2        | each consumer, once no product reads the stage | the producer   |

All warps walk the same tiles in the same order and count their steps: step s, over all tiles of the CTA, uses stage s % STAGES
in turn s / STAGES.
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

from .gemm_sm90 import WARPGROUP_ROWS, WARPS

WARPGROUPS = gl.constexpr(2)
LOWEST = gl.constexpr(-1.0e38)  # below every score; finite, so that a context without tokens gives no NaN


@aggregate
class _Ring:
    """Stages of keys or values, which a producer fills and both consumers read, and their barriers."""

    stages: gl.shared_memory_descriptor
    full: gl.shared_memory_descriptor
    empty: gl.shared_memory_descriptor
    COUNT: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, stages, full, empty):
        self.stages = stages
        self.full = full
        self.empty = empty
        self.COUNT = gl.constexpr(stages.shape[0])

    @gluon.jit
    def wait(self, step, needed=True):
        """Until the tokens of a step are there."""
        mbarrier.wait(self.full.index(step % self.COUNT), step // self.COUNT & 1, pred=needed)

    @gluon.jit
    def tokens(self, step):
        return self.stages.index(step % self.COUNT)

    @gluon.jit
    def give_back(self, step):
        mbarrier.arrive(self.empty.index(step % self.COUNT), count=1)


@aggregate
class _Work:
    """What every warp is given."""

    query_ND: gl.tensor
    key_BGSd: gl.tensor
    value_BGSd: gl.tensor
    lengths_B: gl.tensor
    output_ND: gl.tensor
    requests: gl.tensor
    tokens: gl.tensor
    scale: gl.tensor
    query_tiles: gl.shared_memory_descriptor
    keys: _Ring
    values: _Ring
    ROWS: gl.constexpr
    GROUPS: gl.constexpr
    SHARE: gl.constexpr
    HEAD: gl.constexpr
    N_TILE: gl.constexpr
    CTAS: gl.constexpr
    BLOCKS: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, **given):
        given |= {"BLOCKS": -(-given["ROWS"] * given["SHARE"] // (WARPGROUPS.value * WARPGROUP_ROWS.value))}
        for name, value in given.items():
            setattr(self, name, gl.constexpr(value) if isinstance(value, int) else value)

    @gluon.jit
    def tiles(self):
        return self.requests * (self.GROUPS * self.BLOCKS)

    @gluon.jit
    def length(self, tile):
        """Tokens of the tile's request."""
        length = gl.load(self.lengths_B + tile // (self.GROUPS * self.BLOCKS))
        return gl.minimum(gl.maximum(length, 0), self.tokens).to(gl.int32)

    @gluon.jit
    def steps(self, length):
        """At least one: a request without tokens attends to zeros beyond its end."""
        return gl.maximum(gl.cdiv(length, self.N_TILE), 1)

    @gluon.jit
    def place(self, tile, warpgroup: gl.constexpr, LAYOUT: gl.constexpr):
        """Elements of a warpgroup tile in query and output, and which of them exist: SHARE heads of a row, then the next row."""
        group = tile // self.BLOCKS
        number = (
            tile % self.BLOCKS * (WARPGROUP_ROWS * WARPGROUPS)
            + warpgroup * WARPGROUP_ROWS
            + gl.arange(0, WARPGROUP_ROWS, gl.SliceLayout(1, LAYOUT))
        )
        channel = gl.arange(0, self.HEAD, gl.SliceLayout(0, LAYOUT))
        start = ((group // self.GROUPS).to(gl.int64) * self.ROWS * self.GROUPS + group % self.GROUPS) * (self.SHARE * self.HEAD)
        row = (number // self.SHARE * (self.GROUPS * self.SHARE) + number % self.SHARE) * self.HEAD
        return start + row[:, None] + channel[None, :], (number < self.ROWS * self.SHARE)[:, None]


@gluon.jit
def attention_sm90(
    query_ND, key_BGSd, value_BGSd, lengths_B, output_ND, requests, tokens, scale,
    ROWS: gl.constexpr, GROUPS: gl.constexpr, SHARE: gl.constexpr, HEAD: gl.constexpr,
    N_TILE: gl.constexpr, STAGES: gl.constexpr, CTAS: gl.constexpr, REGISTERS: gl.constexpr, FEW_REGISTERS: gl.constexpr,
):  # fmt: skip
    """Start every partition. `scale` is log2(e) / sqrt(HEAD); REGISTERS are a consumer's per thread, FEW_REGISTERS the others'."""
    OPERAND: gl.constexpr = gl.NVMMASharedLayout(128, 16)
    query_tiles = gl.allocate_shared_memory(gl.float16, [WARPGROUPS, WARPGROUP_ROWS, HEAD], OPERAND)
    keys = _ring(STAGES, N_TILE, HEAD, OPERAND)
    values = _ring(STAGES, N_TILE, HEAD, OPERAND)
    for stage in gl.static_range(STAGES):
        mbarrier.init(keys.full.index(stage), count=1)
        mbarrier.init(values.full.index(stage), count=1)
        mbarrier.init(keys.empty.index(stage), count=WARPGROUPS)
        mbarrier.init(values.empty.index(stage), count=WARPGROUPS)
    fence_async_shared()  # the tensor memory accelerator sees them, too
    work = _Work(
        query_ND=query_ND, key_BGSd=key_BGSd, value_BGSd=value_BGSd, lengths_B=lengths_B, output_ND=output_ND,
        requests=requests, tokens=tokens, scale=scale, query_tiles=query_tiles, keys=keys, values=values,
        ROWS=ROWS, GROUPS=GROUPS, SHARE=SHARE, HEAD=HEAD, N_TILE=N_TILE, CTAS=CTAS,
    )  # fmt: skip
    gl.warp_specialize(
        [(_attend, (0, work)), (_attend, (1, work)), (_produce, (key_BGSd, keys, work)), (_produce, (value_BGSd, values, work))],
        [WARPS, 1, 1],
        [REGISTERS, FEW_REGISTERS, FEW_REGISTERS],
    )


@gluon.jit
def _ring(STAGES: gl.constexpr, N_TILE: gl.constexpr, HEAD: gl.constexpr, LAYOUT: gl.constexpr):
    """A ring without a token."""
    stages = gl.allocate_shared_memory(gl.float16, [STAGES, N_TILE, HEAD], LAYOUT)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    return _Ring(stages, full, empty)


@gluon.jit
def _produce(source_BGSd, ring, work):
    """Fill a ring, tile after tile, with keys or values."""
    BYTES: gl.constexpr = work.N_TILE * work.HEAD * 2
    number = 0
    for tile in range(gl.program_id(0), work.tiles(), work.CTAS):
        length = work.length(tile)
        for back in gl.static_range(ring.COUNT):  # until nothing reads through the descriptor, which is made anew in its place
            last = number - 1 - back
            ring.wait(last, last >= 0)
        start = source_BGSd + (tile // work.BLOCKS).to(gl.int64) * work.tokens * work.HEAD
        shape = [gl.maximum(length, 1), work.HEAD]
        rows = tma.make_tensor_descriptor(start, shape, [work.HEAD, 1], [work.N_TILE, work.HEAD], ring.stages.layout)
        first = (length == 0).to(gl.int32)  # a descriptor has a row at least
        for _ in range(work.steps(length)):
            stage = number % ring.COUNT
            full = ring.full.index(stage)
            mbarrier.wait(ring.empty.index(stage), (number // ring.COUNT & 1) ^ 1)
            mbarrier.expect(full, BYTES)  # beyond the last row zeros arrive: the bytes are always those of all tokens
            tma.async_copy_global_to_shared(rows, [first, 0], full, ring.stages.index(stage))
            first += work.N_TILE
            number += 1


@gluon.jit
def _attend(warpgroup: gl.constexpr, work):
    """Attend with a warpgroup tile of every tile. The next tile's rows are asked for before this one's are done."""
    ROW_LAYOUT: gl.constexpr = gl.BlockedLayout([work.HEAD // 16, 8], [256 // work.HEAD, work.HEAD // 8], [WARPS, 1], [1, 0])
    tiles = work.tiles()
    query_rows = work.query_tiles.index(warpgroup)
    tile = gl.program_id(0)
    place, inside = work.place(tile, warpgroup, ROW_LAYOUT)
    query = gl.load(work.query_ND + place, mask=inside & (tile < tiles), other=0.0)
    number = 0
    for tile in range(gl.program_id(0), tiles, work.CTAS):
        gl.thread_barrier()  # no product reads the rows before
        query_rows.store(query)
        fence_async_shared()
        gl.thread_barrier()
        place, inside = work.place(tile, warpgroup, ROW_LAYOUT)
        then, exists = work.place(tile + work.CTAS, warpgroup, ROW_LAYOUT)
        length = work.length(tile)
        attended, total = _attention_of(query_rows, length, number, work)
        query = gl.load(work.query_ND + then, mask=exists & (tile + work.CTAS < tiles), other=0.0)
        total = gl.where(total == 0.0, 1.0, total)  # no tokens at all: the largest probability is 1 otherwise; NaN stays NaN
        result = (attended * (1.0 / total)[:, None]).to(gl.float16)
        gl.store(work.output_ND + place, gl.convert_layout(result, ROW_LAYOUT), mask=inside)
        number += work.steps(length)


@gluon.jit
def _attention_of(query, length, number, work):
    """Weighed values of a warpgroup tile before they are divided, and the sum of the weights."""
    VALUES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, work.HEAD, 16])
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(0, VALUES, 2)
    ROW: gl.constexpr = gl.SliceLayout(1, VALUES)
    keys = work.keys
    values = work.values
    attended = gl.zeros([WARPGROUP_ROWS, work.HEAD], gl.float32, VALUES)
    score = _scores(query, number, work)
    score = warpgroup_mma_wait(0, deps=[score])
    keys.give_back(number)
    largest = gl.full([WARPGROUP_ROWS], LOWEST, gl.float32, gl.SliceLayout(1, score.type.layout))
    probability, largest, _ = _softmax(score, largest, 0, length, work)
    total = gl.sum(probability, 1)
    weights = gl.convert_layout(probability.to(gl.float16), WEIGHTS)
    for step in range(1, work.steps(length)):
        score = _scores(query, number + step, work)
        before = number + step - 1
        values.wait(before)
        attended = warpgroup_mma(weights, values.tokens(before), attended, is_async=True)
        score = warpgroup_mma_wait(1, deps=[score])
        keys.give_back(number + step)
        probability, largest, shrink = _softmax(score, largest, step * work.N_TILE, length, work)
        total = total * shrink + gl.sum(probability, 1)
        weights = gl.convert_layout(probability.to(gl.float16), WEIGHTS)
        # ptxas would move the wait for the product to before the softmax, which does not depend on it, but not past this loop.
        keys.wait(number + step + 1, step + 1 < work.steps(length))
        attended = warpgroup_mma_wait(0, deps=[attended])
        values.give_back(before)
        attended *= gl.convert_layout(shrink, ROW)[:, None]
    before = number + work.steps(length) - 1
    values.wait(before)
    attended = warpgroup_mma(weights, values.tokens(before), attended)
    values.give_back(before)
    return attended, gl.convert_layout(total, ROW)


@gluon.jit
def _scores(query, number, work):
    """The product of a warpgroup tile's rows with the keys of a step, under way."""
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, work.N_TILE, 16])
    work.keys.wait(number)
    zeros = gl.zeros([WARPGROUP_ROWS, work.N_TILE], gl.float32, SCORES)
    return warpgroup_mma(query, work.keys.tokens(number).permute((1, 0)), zeros, use_acc=False, is_async=True)


@gluon.jit
def _softmax(score, largest, first, length, work):
    """Probabilities against the largest score so far, that score, and what earlier ones shrink by."""
    if first + work.N_TILE > length:
        token = first + gl.arange(0, work.N_TILE, gl.SliceLayout(0, score.type.layout))
        score = gl.where((token < length)[None, :], score, float("-inf"))
    above = gl.maximum(largest, gl.max(score, 1))
    probability = exp2(score * work.scale - (above * work.scale)[:, None])
    return probability, above, exp2((largest - above) * work.scale)


@gluon.jit
def exp2(x):
    """2^x in one instruction, subnormal results 0: FP16 rounds them to 0 anyway."""
    return gl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=False, pack=1)
