"""The warp-specialized FP8 attention over the context for compute capability 9.0: producer warps load, one or two warpgroups attend.

attention_ring_sm90.py says who does what. What differs from attention_sm90.py:

- Queries arrive in FP16. A consumer quantizes its own rows once for a tile, and the tensor core reads the codes from shared memory.
- Keys and values are codes in blocks of tokens, zero behind a request, so one descriptor of each serves all tiles.
- Probabilities are quantized in registers and stay in their lanes: values stand in the order in which the tensor core then reads them
  (operators/context_codes.py).
- The largest score is rounded up to an integer, so what is multiplied when it grows is a power of two.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, tma, warpgroup_mma, warpgroup_mma_wait
from triton.language.core import _aggregate as aggregate

from .attention_fp8 import LOWEST, TOP
from .attention_ring_sm90 import QUERY_STAGES, Ring, Tiles, exp2, hide_padding, make_ring, produce_queries, turn
from .context_codes import TOKENS
from .dependent import await_previous
from .gemm_sm90 import WARPGROUP_ROWS, WARPS
from .rows import AMAX_FLOOR, E4M3_MAX, divider, e4m3, nan_max, quotient


@aggregate
class _Work(Tiles):
    """What every warp is given."""

    query_ND: gl.tensor
    keys_BGT: gl.tensor
    values_BGT: gl.tensor
    lengths_B: gl.tensor
    output_ND: gl.tensor
    key_scale: gl.tensor
    value_scale: gl.tensor
    requests: gl.tensor
    blocks: gl.tensor
    scale: gl.tensor
    queries: Ring
    keys: Ring
    values: Ring
    codes: gl.shared_memory_descriptor
    ROWS: gl.constexpr
    GROUPS: gl.constexpr
    SHARE: gl.constexpr
    HEAD: gl.constexpr
    WARPGROUPS: gl.constexpr
    N_TILE: gl.constexpr
    CTAS: gl.constexpr
    PARTS: gl.constexpr
    WIDTH: gl.constexpr

    @gluon.jit
    def most_tokens(self):
        return self.blocks * TOKENS


@gluon.jit
def attention_fp8_sm90(
    query_ND, keys_BGT, key_scale, values_BGT, value_scale, lengths_B, output_ND, requests, blocks, scale,
    ROWS: gl.constexpr, GROUPS: gl.constexpr, SHARE: gl.constexpr, HEAD: gl.constexpr,
    WARPGROUPS: gl.constexpr, N_TILE: gl.constexpr, STAGES: gl.constexpr, CTAS: gl.constexpr,
    REGISTERS: gl.constexpr, FEW_REGISTERS: gl.constexpr,
):  # fmt: skip
    """Start every partition. `scale` is log2(e) / sqrt(HEAD)."""
    CODES: gl.constexpr = gl.NVMMASharedLayout(HEAD, 8)  # bytes of a row of HEAD codes
    queries = make_ring(QUERY_STAGES, WARPGROUPS, [WARPGROUP_ROWS, HEAD], gl.float16, gl.NVMMASharedLayout(128, 16), WARPGROUPS)
    keys = make_ring(STAGES, 1, [N_TILE, HEAD], gl.float8e4nv, CODES, WARPGROUPS)
    values = make_ring(STAGES, 1, [HEAD, N_TILE], gl.float8e4nv, gl.NVMMASharedLayout(N_TILE, 8), WARPGROUPS)
    codes = gl.allocate_shared_memory(gl.float8e4nv, [WARPGROUPS, WARPGROUP_ROWS, HEAD], CODES)
    fence_async_shared()  # the tensor memory accelerator sees the barriers, too
    work = _Work(
        query_ND=query_ND, keys_BGT=keys_BGT, values_BGT=values_BGT, lengths_B=lengths_B, output_ND=output_ND,
        key_scale=key_scale, value_scale=value_scale, requests=requests, blocks=blocks, scale=scale,
        queries=queries, keys=keys, values=values, codes=codes,
        ROWS=ROWS, GROUPS=GROUPS, SHARE=SHARE, HEAD=HEAD, WARPGROUPS=WARPGROUPS, N_TILE=N_TILE, CTAS=CTAS,
    )  # fmt: skip
    if WARPGROUPS == 2:
        gl.warp_specialize(
            [(_attend, (0, work)), (_attend, (1, work)), (produce_queries, (work,)), (_produce_keys, (work,)), (_produce_values, (work,))],
            [WARPS, 1, 1, 1],
            [REGISTERS, FEW_REGISTERS, FEW_REGISTERS, FEW_REGISTERS],
        )
    else:
        gl.static_assert(WARPGROUPS == 1)
        gl.warp_specialize(
            [(_attend, (0, work)), (produce_queries, (work,)), (_produce_keys, (work,)), (_produce_values, (work,))],
            [1, 1, 1],
            [FEW_REGISTERS, FEW_REGISTERS, FEW_REGISTERS],
        )


@gluon.jit
def _produce_keys(work):
    """Fill the ring of keys, step after step: N_TILE tokens of all channels. A block of tokens holds whole steps."""
    await_previous()
    keys = work.keys
    tokens = work.requests * (work.GROUPS * TOKENS) * work.blocks
    rows = tma.make_tensor_descriptor(work.keys_BGT, [tokens, work.HEAD], [work.HEAD, 1], [work.N_TILE, work.HEAD], keys.stages.layout)
    number = 0
    for tile in range(gl.program_id(0), work.tiles(), work.CTAS):
        first = work.context(tile) * work.blocks * TOKENS
        for _ in range(work.steps(work.length(tile))):
            full = keys.take(number, work.N_TILE * work.HEAD)
            tma.async_copy_global_to_shared(rows, [first, 0], full, keys.box(number, 0))
            first += work.N_TILE
            number += 1


@gluon.jit
def _produce_values(work):
    """Fill the ring of values, step after step: all channels, each of N_TILE tokens."""
    await_previous()
    values = work.values
    channels = work.requests * (work.GROUPS * work.HEAD) * work.blocks
    rows = tma.make_tensor_descriptor(work.values_BGT, [channels, TOKENS], [TOKENS, 1], [work.HEAD, work.N_TILE], values.stages.layout)
    number = 0
    for tile in range(gl.program_id(0), work.tiles(), work.CTAS):
        block = work.context(tile) * work.blocks
        for step in range(work.steps(work.length(tile))):
            first = step * work.N_TILE
            full = values.take(number, work.HEAD * work.N_TILE)
            channel = (block + first // TOKENS) * work.HEAD
            tma.async_copy_global_to_shared(rows, [channel, first % TOKENS], full, values.box(number, 0))
            number += 1


@gluon.jit
def _attend(warpgroup: gl.constexpr, work):
    """Attend with a warpgroup tile of every tile: a consumer."""
    await_previous()
    VALUES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, work.HEAD, 32])
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, work.N_TILE, 32])
    ROW: gl.constexpr = gl.SliceLayout(1, VALUES)
    keys = work.keys
    values = work.values
    of_keys = gl.load(work.key_scale) * work.scale
    of_values = gl.load(work.value_scale)
    nothing = gl.full([WARPGROUP_ROWS], LOWEST, gl.float32, gl.SliceLayout(1, SCORES))
    number = 0  # of the step whose values are weighed next
    count = 0  # of the tile
    for tile in range(gl.program_id(0), work.tiles(), work.CTAS):
        length = work.length(tile)
        steps = work.steps(length)
        attended = gl.zeros([WARPGROUP_ROWS, work.HEAD], gl.float32, VALUES)
        work.queries.wait(count)
        factor = gl.convert_layout(_quantize(count, warpgroup, work), gl.SliceLayout(1, SCORES)) * of_keys
        keys.wait(number)
        score = warpgroup_mma_wait(0, deps=[_scores(number, warpgroup, work)])
        keys.give_back(number)
        probability, largest, _ = _softmax(score, factor, nothing, 0, length, work)
        total = gl.sum(probability, 1)
        weights = _weights(probability, VALUES)
        for step in range(1, steps):
            score, attended = _ask(number, weights, attended, warpgroup, work)
            probability, largest, shrink = _softmax(score, factor, largest, step * work.N_TILE, length, work)
            total = total * shrink + gl.sum(probability, 1)
            # ptxas would move the wait for the product to before the softmax, which does not depend on it, but not past this loop.
            keys.wait(number + 2, step + 1 < steps)
            attended = warpgroup_mma_wait(0, deps=[attended])
            values.give_back(number)
            weights = _weights(probability, VALUES)  # in the registers that the product was reading
            attended *= gl.convert_layout(shrink, ROW)[:, None]
            number += 1
        codes = _codes(weights)
        values.wait(number)
        attended = warpgroup_mma(codes, values.box(number, 0).permute((1, 0)), attended)
        values.give_back(number)
        _finish(attended, gl.convert_layout(total, ROW), of_values, tile, count, warpgroup, work)
        number += 1
        count += 1  # noqa: SIM113  Gluon knows no enumerate


@gluon.jit
def _quantize(count, warpgroup: gl.constexpr, work):
    """Make codes of a warpgroup tile's queries, in shared memory; their scales. No product reads codes of the tile before any more."""
    LANES: gl.constexpr = work.HEAD // 8  # 16 bytes of FP16 each
    LAYOUT: gl.constexpr = gl.BlockedLayout([LANES // 2, 8], [32 // LANES, LANES], [WARPS, 1], [1, 0])
    query = work.queries.box(count, warpgroup).load(LAYOUT).to(gl.float32)
    # The FP32 quotient by 448; of an infinity NaN, which its row becomes anyway.
    scale = quotient(nan_max(gl.reduce(gl.abs(query), 1, nan_max), AMAX_FLOOR), -E4M3_MAX, 1.0 / E4M3_MAX)
    negative, reciprocal = divider(scale)
    work.codes.index(warpgroup).store(e4m3(quotient(query, negative[:, None], reciprocal[:, None])))
    fence_async_shared()  # the tensor core reads what was written here
    gl.thread_barrier()
    return scale


@gluon.jit
def _scores(number, warpgroup: gl.constexpr, work):
    """The product of a warpgroup tile's codes with the keys of a step, under way."""
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, work.N_TILE, 32])
    zeros = gl.zeros([WARPGROUP_ROWS, work.N_TILE], gl.float32, SCORES)
    keys = work.keys.box(number, 0).permute((1, 0))
    return warpgroup_mma(work.codes.index(warpgroup), keys, zeros, use_acc=False, is_async=True)


@gluon.jit
def _ask(number, weights, attended, warpgroup: gl.constexpr, work):
    """Ask for the scores of the next step and for the values of this one, weighed; wait for the scores alone."""
    codes = _codes(weights)  # before any product is under way: ptxas would wait for each of them otherwise
    work.keys.wait(number + 1)
    work.values.wait(number)
    score = _scores(number + 1, warpgroup, work)
    attended = warpgroup_mma(codes, work.values.box(number, 0).permute((1, 0)), attended, is_async=True)
    score = warpgroup_mma_wait(1, deps=[score])
    work.keys.give_back(number + 1)
    return score, attended


@gluon.jit
def _softmax(score, factor, largest, first, length, work):
    """Probabilities against the largest score so far, rounded up to an integer; that integer, and what earlier ones shrink by."""
    score = hide_padding(score, first, length, work.N_TILE)
    above = gl.maximum(largest, ceil(gl.max(score, 1) * factor))
    probability = exp2(score * factor[:, None] - (above - TOP)[:, None])
    return probability, above, exp2(largest - above)


@gluon.jit
def _weights(probability, VALUES: gl.constexpr):
    """Codes of probabilities as the first operand of a product. No value changes its lane, and none moves in memory."""
    N_TILE: gl.constexpr = probability.shape[1]
    apart = probability.reshape([WARPGROUP_ROWS, N_TILE // 16, 2, 4, 2]).permute((0, 1, 3, 2, 4))
    placed = apart.reshape([WARPGROUP_ROWS, N_TILE])
    placed = gl.convert_layout(placed, gl.DotOperandLayout(0, VALUES, 4))
    return gl.inline_asm_elementwise(
        """{ .reg .b16 a, b;
        cvt.rn.satfinite.e4m3x2.f32 a, $5, $4; cvt.rn.satfinite.e4m3x2.f32 b, $7, $6; mov.b32 $0, {a, b};
        mov.b32 $1, 0; mov.b32 $2, 0; mov.b32 $3, 0; }""",
        "=r,=r,=r,=r,f,f,f,f", [placed], dtype=gl.int32, is_pure=True, pack=4,
    )  # fmt: skip


@gluon.jit
def _codes(packed):
    """What `_weights` packed, as E4M3."""
    return gl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r,r,r,r", [packed], dtype=gl.float8e4nv, is_pure=True, pack=4)


@gluon.jit
def _finish(attended, total, of_values, tile, count, warpgroup: gl.constexpr, work):
    """Scale, divide by the sum of the probabilities and store as FP16. The result turns its layout where the tile's queries were."""
    total = gl.where(total == 0.0, 1.0, total)  # no tokens at all: a probability is above 128 otherwise; NaN stays NaN
    result = (attended * (of_values / total)[:, None]).to(gl.float16)
    LANES: gl.constexpr = work.HEAD // 8  # 16 bytes of FP16 each
    LAYOUT: gl.constexpr = gl.BlockedLayout([LANES // 2, 8], [32 // LANES, LANES], [WARPS, 1], [1, 0])
    work.store(turn(result, LAYOUT, count, warpgroup, work.queries), tile, warpgroup)


@gluon.jit
def ceil(x):
    """The smallest integer that is not below x."""
    return gl.inline_asm_elementwise("cvt.rpi.f32.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1)
