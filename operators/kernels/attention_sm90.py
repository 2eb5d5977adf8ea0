"""The warp-specialized context attention for compute capability 9.0: producer warps load, one or two warpgroups attend.

Flash attention forward in Gluon; attention_ring_sm90.py says who does what. Where keys are the values (SHARED) one ring serves both
products: half the bytes. The descriptor of keys or values ends with the request's own tokens, so that what lies beyond reads as zero:
0 times the NaN of a padding would be NaN.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, tma, warpgroup_mma, warpgroup_mma_wait
from triton.language.core import _aggregate as aggregate

from .attention_ring_sm90 import QUERY_STAGES, Ring, Tiles, exp2, hide_padding, make_ring, produce_queries, turn
from .dependent import await_previous
from .gemm_sm90 import WARPGROUP_ROWS, WARPS
from .rows import divider, e4m3

LOWEST = gl.constexpr(-1.0e38)  # below every score; finite, so that a context without tokens gives no NaN


@aggregate
class _Work(Tiles):
    """What every warp is given."""

    query_ND: gl.tensor
    key_BGSd: gl.tensor
    value_BGSd: gl.tensor
    lengths_B: gl.tensor
    output_ND: gl.tensor
    code_scale: gl.tensor
    requests: gl.tensor
    tokens: gl.tensor
    scale: gl.tensor
    queries: Ring
    keys: Ring
    values: Ring
    ROWS: gl.constexpr
    GROUPS: gl.constexpr
    SHARE: gl.constexpr
    HEAD: gl.constexpr
    SHARED: gl.constexpr
    CODES: gl.constexpr
    WARPGROUPS: gl.constexpr
    N_TILE: gl.constexpr
    CTAS: gl.constexpr
    PARTS: gl.constexpr
    WIDTH: gl.constexpr

    @gluon.jit
    def most_tokens(self):
        return self.tokens


@gluon.jit
def attention_sm90(
    query_ND, key_BGSd, value_BGSd, lengths_B, output_ND, code_scale, requests, tokens, scale,
    ROWS: gl.constexpr, GROUPS: gl.constexpr, SHARE: gl.constexpr, HEAD: gl.constexpr, SHARED: gl.constexpr, CODES: gl.constexpr,
    WARPGROUPS: gl.constexpr, N_TILE: gl.constexpr, STAGES: gl.constexpr, CTAS: gl.constexpr,
    REGISTERS: gl.constexpr, FEW_REGISTERS: gl.constexpr,
):  # fmt: skip
    """Start every partition. `scale` is log2(e) / sqrt(HEAD); with CODES the result over `code_scale` leaves as E4M3."""
    OPERAND: gl.constexpr = gl.NVMMASharedLayout(128, 16)
    queries = make_ring(QUERY_STAGES, WARPGROUPS, [WARPGROUP_ROWS, HEAD], gl.float16, OPERAND, WARPGROUPS)
    keys = make_ring(STAGES, 1, [N_TILE, HEAD], gl.float16, OPERAND, WARPGROUPS)
    values = keys
    if not SHARED:
        values = make_ring(STAGES, 1, [N_TILE, HEAD], gl.float16, OPERAND, WARPGROUPS)
    fence_async_shared()  # the tensor memory accelerator sees the barriers, too
    work = _Work(
        query_ND=query_ND, key_BGSd=key_BGSd, value_BGSd=value_BGSd, lengths_B=lengths_B, output_ND=output_ND, code_scale=code_scale,
        requests=requests, tokens=tokens, scale=scale, queries=queries, keys=keys, values=values,
        ROWS=ROWS, GROUPS=GROUPS, SHARE=SHARE, HEAD=HEAD, SHARED=SHARED, CODES=CODES, WARPGROUPS=WARPGROUPS,
        N_TILE=N_TILE, CTAS=CTAS,
    )  # fmt: skip
    if WARPGROUPS == 2:
        gl.warp_specialize(
            [
                (_attend, (0, work)), (_attend, (1, work)),
                (produce_queries, (work,)), (_produce, (key_BGSd, keys, work)), (_produce_values, (work,)),
            ],
            [WARPS, 1, 1, 1],
            [REGISTERS, FEW_REGISTERS, FEW_REGISTERS, FEW_REGISTERS],
        )  # fmt: skip
    else:
        gl.static_assert(WARPGROUPS == 1)
        gl.warp_specialize(
            [(_attend, (0, work)), (produce_queries, (work,)), (_produce, (key_BGSd, keys, work)), (_produce_values, (work,))],
            [1, 1, 1],
            [FEW_REGISTERS, FEW_REGISTERS, FEW_REGISTERS],
        )


@gluon.jit
def _produce_values(work):
    """Fill the ring of values, if they have one."""
    if not work.SHARED:
        _produce(work.value_BGSd, work.values, work)


@gluon.jit
def _produce(source_BGSd, ring, work):
    """Fill a ring, tile after tile, with keys or values."""
    await_previous()
    BYTES: gl.constexpr = work.N_TILE * work.HEAD * 2
    number = 0
    for tile in range(gl.program_id(0), work.tiles(), work.CTAS):
        length = work.length(tile)
        for back in gl.static_range(ring.COUNT):  # until nothing reads through the descriptor, which is made anew in its place
            last = number - 1 - back
            ring.wait(last, last >= 0)
        start = source_BGSd + work.context(tile).to(gl.int64) * work.tokens * work.HEAD
        shape = [gl.maximum(length, 1), work.HEAD]
        rows = tma.make_tensor_descriptor(start, shape, [work.HEAD, 1], [work.N_TILE, work.HEAD], ring.stages.layout)
        first = (length == 0).to(gl.int32)  # a descriptor has a row at least
        for _ in range(work.steps(length)):
            full = ring.take(number, BYTES)  # beyond the last row zeros arrive: the bytes are always those of all tokens
            tma.async_copy_global_to_shared(rows, [first, 0], full, ring.box(number, 0))
            first += work.N_TILE
            number += 1


@gluon.jit
def _attend(warpgroup: gl.constexpr, work):
    """Attend with a warpgroup tile of every tile: a consumer."""
    await_previous()
    VALUES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, work.HEAD, 16])
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(0, VALUES, 2)
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, work.N_TILE, 16])
    ROW: gl.constexpr = gl.SliceLayout(1, VALUES)
    keys = work.keys
    values = work.values
    nothing = gl.full([WARPGROUP_ROWS], LOWEST, gl.float32, gl.SliceLayout(1, SCORES))
    reciprocal = 1.0
    if work.CODES:
        reciprocal = divider(gl.load(work.code_scale))[1]
    number = 0  # of the step whose values are weighed next
    count = 0  # of the tile
    for tile in range(gl.program_id(0), work.tiles(), work.CTAS):
        length = work.length(tile)
        steps = work.steps(length)
        attended = gl.zeros([WARPGROUP_ROWS, work.HEAD], gl.float32, VALUES)
        work.queries.wait(count)
        keys.wait(number)
        score = warpgroup_mma_wait(0, deps=[_scores(count, number, warpgroup, work)])
        if not work.SHARED:
            keys.give_back(number)
        probability, largest, _ = _softmax(score, nothing, 0, length, work)
        total = gl.sum(probability, 1)
        weights = gl.convert_layout(probability.to(gl.float16), WEIGHTS)
        for step in range(1, steps):
            score, attended = _ask(count, number, weights, attended, warpgroup, work)
            probability, largest, shrink = _softmax(score, largest, step * work.N_TILE, length, work)
            total = total * shrink + gl.sum(probability, 1)
            weights = gl.convert_layout(probability.to(gl.float16), WEIGHTS)
            # ptxas would move the wait for the product to before the softmax, which does not depend on it, but not past this loop.
            keys.wait(number + 2, step + 1 < steps)
            attended = warpgroup_mma_wait(0, deps=[attended])
            values.give_back(number)
            attended *= gl.convert_layout(shrink, ROW)[:, None]
            number += 1
        values.wait(number)
        attended = warpgroup_mma(weights, values.box(number, 0), attended)
        values.give_back(number)
        _finish(attended, gl.convert_layout(total, ROW), reciprocal, tile, count, warpgroup, work)
        number += 1
        count += 1  # noqa: SIM113  Gluon knows no enumerate


@gluon.jit
def _scores(count, number, warpgroup: gl.constexpr, work):
    """The product of a warpgroup tile's rows with the keys of a step, under way."""
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, work.N_TILE, 16])
    zeros = gl.zeros([WARPGROUP_ROWS, work.N_TILE], gl.float32, SCORES)
    keys = work.keys.box(number, 0).permute((1, 0))
    return warpgroup_mma(work.queries.box(count, warpgroup), keys, zeros, use_acc=False, is_async=True)


@gluon.jit
def _ask(count, number, weights, attended, warpgroup: gl.constexpr, work):
    """Ask for the scores of the next step and for the values of this one, weighed; wait for the scores alone."""
    work.keys.wait(number + 1)
    if not work.SHARED:
        work.values.wait(number)
    score = _scores(count, number + 1, warpgroup, work)
    attended = warpgroup_mma(weights, work.values.box(number, 0), attended, is_async=True)
    score = warpgroup_mma_wait(1, deps=[score])
    if not work.SHARED:
        work.keys.give_back(number + 1)
    return score, attended


@gluon.jit
def _finish(attended, total, reciprocal, tile, count, warpgroup: gl.constexpr, work):
    """Divide by the sum of the weights and store, as FP16 or codes. The result turns its layout where the tile's queries were."""
    total = gl.where(total == 0.0, 1.0, total)  # no tokens at all: the largest probability is 1 otherwise; NaN stays NaN
    result = (attended * (1.0 / total)[:, None]).to(gl.float16)
    WIDE: gl.constexpr = 16 if work.CODES else 8  # channels of 16 bytes
    LANES: gl.constexpr = work.HEAD // WIDE
    LAYOUT: gl.constexpr = gl.BlockedLayout([LANES // 2, WIDE], [32 // LANES, LANES], [WARPS, 1], [1, 0])
    gl.thread_barrier()  # no product reads the queries any more
    result = turn(result, LAYOUT, count, warpgroup, work.queries)
    if work.CODES:
        # Not the quotient, which would keep both consumers from their probabilities: 1 of 5 million codes is another.
        result = e4m3(result.to(gl.float32) * reciprocal)
    work.store(result, tile, warpgroup)


@gluon.jit
def _softmax(score, largest, first, length, work):
    """Probabilities against the largest score so far, that score, and what earlier ones shrink by."""
    score = hide_padding(score, first, length, work.N_TILE)
    above = gl.maximum(largest, gl.max(score, 1))
    probability = exp2(score * work.scale - (above * work.scale)[:, None])
    return probability, above, exp2((largest - above) * work.scale)
