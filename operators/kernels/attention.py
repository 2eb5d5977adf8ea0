"""Context attention for compute capability 9.0 whose warps have roles: two load keys and values, eight attend.

Written in Gluon, like the matrix product in gemm.py, whose barriers work the same. A tile is 128 query rows of a group, two slabs of 64;
a program is alone on its multiprocessor and walks tile after tile.

- A consumer per slab: four warps. While the tensor core weighs the values of one step, they turn the scores of the next into
  probabilities; while it waits for them, it works for the other consumer.
- A producer for keys and one for values: a warp that fills a ring of STAGES stages. Its descriptor ends with the request's own tokens,
  so that what lies beyond reads as zero: 0 times the NaN of a padding would be NaN. It is made anew for every tile, once nothing
  reads through the one before.

| barrier             | arrivals | from                                           | waited for by     |
| full_*[stage]       | 1        | the producer, and the bytes of its tile        | both consumers    |
| empty_*[stage]      | 2        | each consumer, once no product reads the stage | that producer     |

Every role walks the same tiles in the same order and counts their steps; step s uses stage s % STAGES in turn s / STAGES.
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

SLAB = gl.constexpr(64)  # rows of a tensor core instruction
SLABS = gl.constexpr(2)
WARPS = gl.constexpr(4)  # that issue it together
LOWEST = gl.constexpr(-1.0e38)  # below every score; finite, so that a context without tokens gives no NaN


@aggregate
class _Work:
    """What every role is given."""

    query_ND: gl.tensor
    key_BGSd: gl.tensor
    value_BGSd: gl.tensor
    lengths_B: gl.tensor
    output_ND: gl.tensor
    requests: gl.tensor
    tokens: gl.tensor
    scale: gl.tensor
    query_slabs: gl.shared_memory_descriptor
    key_stages: gl.shared_memory_descriptor
    value_stages: gl.shared_memory_descriptor
    full_keys: gl.shared_memory_descriptor
    empty_keys: gl.shared_memory_descriptor
    full_values: gl.shared_memory_descriptor
    empty_values: gl.shared_memory_descriptor
    ROWS: gl.constexpr
    GROUPS: gl.constexpr
    SHARE: gl.constexpr
    HEAD: gl.constexpr
    N_TILE: gl.constexpr
    STAGES: gl.constexpr
    PROGRAMS: gl.constexpr
    BLOCKS: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, **given):
        given |= {"BLOCKS": -(-given["ROWS"] * given["SHARE"] // 128)}
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
    def place(self, tile, slab: gl.constexpr, LAYOUT: gl.constexpr):
        """Elements of a slab in query and output, and which of them exist: SHARE heads of a row, then the next row."""
        group = tile // self.BLOCKS
        number = tile % self.BLOCKS * (SLAB * SLABS) + slab * SLAB + gl.arange(0, SLAB, gl.SliceLayout(1, LAYOUT))
        channel = gl.arange(0, self.HEAD, gl.SliceLayout(0, LAYOUT))
        start = ((group // self.GROUPS).to(gl.int64) * self.ROWS * self.GROUPS + group % self.GROUPS) * (self.SHARE * self.HEAD)
        row = (number // self.SHARE * (self.GROUPS * self.SHARE) + number % self.SHARE) * self.HEAD
        return start + row[:, None] + channel[None, :], (number < self.ROWS * self.SHARE)[:, None]


@gluon.jit
def attention(
    query_ND, key_BGSd, value_BGSd, lengths_B, output_ND, requests, tokens, scale,
    ROWS: gl.constexpr, GROUPS: gl.constexpr, SHARE: gl.constexpr, HEAD: gl.constexpr,
    N_TILE: gl.constexpr, STAGES: gl.constexpr, PROGRAMS: gl.constexpr, REGISTERS: gl.constexpr, FEW_REGISTERS: gl.constexpr,
):  # fmt: skip
    """Give every role its warps. `scale` is log2(e) / sqrt(HEAD); REGISTERS are a consumer's per thread, FEW_REGISTERS the others'."""
    OPERAND: gl.constexpr = gl.NVMMASharedLayout(128, 16)
    query_slabs = gl.allocate_shared_memory(gl.float16, [SLABS, SLAB, HEAD], OPERAND)
    key_stages = gl.allocate_shared_memory(gl.float16, [STAGES, N_TILE, HEAD], OPERAND)
    value_stages = gl.allocate_shared_memory(gl.float16, [STAGES, N_TILE, HEAD], OPERAND)
    full_keys = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty_keys = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    full_values = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty_values = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full_keys.index(stage), count=1)
        mbarrier.init(full_values.index(stage), count=1)
        mbarrier.init(empty_keys.index(stage), count=SLABS)
        mbarrier.init(empty_values.index(stage), count=SLABS)
    fence_async_shared()  # the tensor memory accelerator sees them, too
    work = _Work(
        query_ND=query_ND, key_BGSd=key_BGSd, value_BGSd=value_BGSd, lengths_B=lengths_B, output_ND=output_ND,
        requests=requests, tokens=tokens, scale=scale,
        query_slabs=query_slabs, key_stages=key_stages, value_stages=value_stages,
        full_keys=full_keys, empty_keys=empty_keys, full_values=full_values, empty_values=empty_values,
        ROWS=ROWS, GROUPS=GROUPS, SHARE=SHARE, HEAD=HEAD, N_TILE=N_TILE, STAGES=STAGES, PROGRAMS=PROGRAMS,
    )  # fmt: skip
    gl.warp_specialize(
        [
            (_attend, (0, work)), (_attend, (1, work)),
            (_produce, (key_BGSd, key_stages, full_keys, empty_keys, work)),
            (_produce, (value_BGSd, value_stages, full_values, empty_values, work)),
        ],
        [WARPS, 1, 1],
        [REGISTERS, FEW_REGISTERS, FEW_REGISTERS],
    )  # fmt: skip


@gluon.jit
def _produce(source_BGSd, stages, full, empty, work):
    """Fill the ring, tile after tile, with keys or values."""
    BYTES: gl.constexpr = work.N_TILE * work.HEAD * 2
    number = 0
    for tile in range(gl.program_id(0), work.tiles(), work.PROGRAMS):
        length = work.length(tile)
        for before in gl.static_range(work.STAGES):  # nothing reads through the descriptor any more
            last = number - 1 - before
            mbarrier.wait(full.index(last % work.STAGES), last // work.STAGES & 1, pred=last >= 0)
        start = source_BGSd + (tile // work.BLOCKS).to(gl.int64) * work.tokens * work.HEAD
        shape = [gl.maximum(length, 1), work.HEAD]
        rows = tma.make_tensor_descriptor(start, shape, [work.HEAD, 1], [work.N_TILE, work.HEAD], stages.layout)
        first = (length == 0).to(gl.int32)  # a descriptor has a row at least
        for _ in range(work.steps(length)):
            stage = number % work.STAGES
            mbarrier.wait(empty.index(stage), (number // work.STAGES & 1) ^ 1)
            mbarrier.expect(full.index(stage), BYTES)  # always those of a whole tile
            tma.async_copy_global_to_shared(rows, [first, 0], full.index(stage), stages.index(stage))
            first += work.N_TILE
            number += 1


@gluon.jit
def _attend(slab: gl.constexpr, work):
    """Attend with a slab of every tile. The next tile's rows are asked for before this one's are done."""
    ROW_LAYOUT: gl.constexpr = gl.BlockedLayout([work.HEAD // 16, 8], [256 // work.HEAD, work.HEAD // 8], [WARPS, 1], [1, 0])
    tiles = work.tiles()
    query_rows = work.query_slabs.index(slab)
    tile = gl.program_id(0)
    place, inside = work.place(tile, slab, ROW_LAYOUT)
    query = gl.load(work.query_ND + place, mask=inside & (tile < tiles), other=0.0)
    number = 0
    for tile in range(gl.program_id(0), tiles, work.PROGRAMS):
        gl.thread_barrier()  # no product reads the rows before
        query_rows.store(query)
        fence_async_shared()
        gl.thread_barrier()
        place, inside = work.place(tile, slab, ROW_LAYOUT)
        then, exists = work.place(tile + work.PROGRAMS, slab, ROW_LAYOUT)
        length = work.length(tile)
        attended, total = _attention_of(query_rows, length, number, work)
        query = gl.load(work.query_ND + then, mask=exists & (tile + work.PROGRAMS < tiles), other=0.0)
        total = gl.where(total == 0.0, 1.0, total)  # no tokens at all: the largest probability is 1 otherwise; NaN stays NaN
        result = (attended * (1.0 / total)[:, None]).to(gl.float16)
        gl.store(work.output_ND + place, gl.convert_layout(result, ROW_LAYOUT), mask=inside)
        number += work.steps(length)


@gluon.jit
def _attention_of(query, length, number, work):
    """Weighed values of a slab before they are divided, and the sum of the weights."""
    VALUES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, work.HEAD, 16])
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(0, VALUES, 2)
    ROW: gl.constexpr = gl.SliceLayout(1, VALUES)
    attended = gl.zeros([SLAB, work.HEAD], gl.float32, VALUES)
    score = _scores(query, number, work)
    score = warpgroup_mma_wait(0, deps=[score])
    mbarrier.arrive(work.empty_keys.index(number % work.STAGES), count=1)
    largest = gl.full([SLAB], LOWEST, gl.float32, gl.SliceLayout(1, score.type.layout))
    probability, largest, _ = _softmax(score, largest, 0, length, work)
    total = gl.sum(probability, 1)
    weights = gl.convert_layout(probability.to(gl.float16), WEIGHTS)
    for step in range(1, work.steps(length)):
        score = _scores(query, number + step, work)
        before = number + step - 1
        mbarrier.wait(work.full_values.index(before % work.STAGES), before // work.STAGES & 1)
        attended = warpgroup_mma(weights, work.value_stages.index(before % work.STAGES), attended, is_async=True)
        score = warpgroup_mma_wait(1, deps=[score])
        mbarrier.arrive(work.empty_keys.index((number + step) % work.STAGES), count=1)
        probability, largest, shrink = _softmax(score, largest, step * work.N_TILE, length, work)
        total = total * shrink + gl.sum(probability, 1)
        weights = gl.convert_layout(probability.to(gl.float16), WEIGHTS)
        after = number + step + 1
        mbarrier.wait(work.full_keys.index(after % work.STAGES), after // work.STAGES & 1, pred=step + 1 < work.steps(length))
        attended = warpgroup_mma_wait(0, deps=[attended])
        mbarrier.arrive(work.empty_values.index(before % work.STAGES), count=1)
        attended *= gl.convert_layout(shrink, ROW)[:, None]
    before = number + work.steps(length) - 1
    mbarrier.wait(work.full_values.index(before % work.STAGES), before // work.STAGES & 1)
    attended = warpgroup_mma(weights, work.value_stages.index(before % work.STAGES), attended)
    mbarrier.arrive(work.empty_values.index(before % work.STAGES), count=1)
    return attended, gl.convert_layout(total, ROW)


@gluon.jit
def _scores(query, number, work):
    """The product of a slab's rows with the keys of a step, under way."""
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, work.N_TILE, 16])
    stage = number % work.STAGES
    mbarrier.wait(work.full_keys.index(stage), number // work.STAGES & 1)
    zeros = gl.zeros([SLAB, work.N_TILE], gl.float32, SCORES)
    return warpgroup_mma(query, work.key_stages.index(stage).permute((1, 0)), zeros, use_acc=False, is_async=True)


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
