"""MoeRoute on the GPU: router product on the tensor core, exact selection with ties to the lower expert, weights, shared slots."""

from __future__ import annotations

import triton
import triton.language as tl

from ...core.errors import BuildError
from ..launch.compile import Build
from ..launch.node import Node, by_rows, expect, expect_size, static
from ..launch.program import Argument, Input, Int32, Launch, Output, Program, Tensor, cdiv
from ..launch.tiles import GemmTile

MIN_EXPERTS = 64  # rows of a tensor core instruction of compute capability 9.0
MIN_CHANNELS = 16  # of a step: the smallest instruction of the tensor core
MAX_STEP_WEIGHTS = 64 * 128  # of a step, all experts; they lie in shared memory in FP32, once per stage
TAKEN = tl.constexpr(-(1 << 31))  # below every key, and the key of experts that do not exist
WEIGHT_UNIT = tl.constexpr(2.0**-8)  # router weights up to 2^24 fit into FP16 in this unit
LOW_UNIT = tl.constexpr(2.0**-12)  # of what FP16 leaves of them


@triton.jit
def moe_route(
    x_ND, router_ED, bias_E, index_NS, weight_NS, rows,
    WIDTH: tl.constexpr, EXPERTS: tl.constexpr, TOP_K: tl.constexpr, SHARED: tl.constexpr,
    EXPERT_TILE: tl.constexpr, M_TILE: tl.constexpr, K_TILE: tl.constexpr,
):  # fmt: skip
    """M_TILE tokens of a CTA. Experts stand along the first axis, so that weights, which are split in registers, are the left side."""
    SLOTS: tl.constexpr = TOP_K + SHARED
    row = tl.program_id(0) * M_TILE + tl.arange(0, M_TILE)
    experts = tl.arange(0, EXPERT_TILE)
    score_EM = tl.sigmoid(_logits(x_ND, router_ED, row, rows, WIDTH, EXPERTS, EXPERT_TILE, M_TILE, K_TILE))
    bias = tl.load(bias_E + experts, mask=experts < EXPERTS, other=0.0)
    key_EM = tl.where(experts[:, None] < EXPERTS, _ordered(score_EM + bias[:, None]), TAKEN)
    total = tl.zeros((M_TILE,), tl.float32)
    chosen = ()
    inside = row < rows
    place = row.to(tl.int64) * SLOTS
    for slot in tl.static_range(TOP_K):
        best = tl.min(tl.where(key_EM == tl.max(key_EM, 0)[None, :], experts[:, None], EXPERT_TILE), 0)
        hit = experts[:, None] == best[None, :]
        key_EM = tl.where(hit, TAKEN, key_EM)
        score = tl.sum(tl.where(hit, score_EM, 0.0), 0)
        total += score
        chosen = chosen + (score,)  # type: ignore[assignment]  # noqa: RUF005
        tl.store(index_NS + place + slot, best.to(tl.int64), mask=inside)
    for slot in tl.static_range(TOP_K):
        tl.store(weight_NS + place + slot, tl.div_rn(chosen[slot], total), mask=inside)
    for slot in tl.static_range(TOP_K, SLOTS):
        tl.store(index_NS + place + slot, tl.full((M_TILE,), EXPERTS + slot - TOP_K, tl.int64), mask=inside)
        tl.store(weight_NS + place + slot, tl.full((M_TILE,), 1.0, tl.float32), mask=inside)


@triton.jit
def _logits(
    x_ND, router_ED, row, rows,
    WIDTH: tl.constexpr, EXPERTS: tl.constexpr, EXPERT_TILE: tl.constexpr, M_TILE: tl.constexpr, K_TILE: tl.constexpr,
):  # fmt: skip
    """FP32 [experts, tokens]. An FP32 weight is the sum of two FP16 numbers to 22 bits; their products with FP16 are exact in FP32.

    Every step is added to an FP32 sum outside the tensor core, whose own sum loses its last bits toward zero.
    """
    experts = tl.arange(0, EXPERT_TILE)
    steps = tl.arange(0, K_TILE)
    # Rows and experts beyond the edge read the last one: what they give is not stored, or cannot be chosen.
    x = x_ND + tl.minimum(row, rows - 1).to(tl.int64)[None, :] * WIDTH + steps[:, None]
    router = router_ED + tl.minimum(experts, EXPERTS - 1)[:, None] * WIDTH + steps[None, :]
    high_sum = tl.zeros((EXPERT_TILE, M_TILE), tl.float32)
    low_sum = tl.zeros((EXPERT_TILE, M_TILE), tl.float32)
    for start in range(0, WIDTH, K_TILE):
        if WIDTH % K_TILE == 0:
            x_tile, weight = tl.load(x), tl.load(router)
        else:
            x_tile = tl.load(x, mask=steps[:, None] < WIDTH - start, other=0.0)
            weight = tl.load(router, mask=steps[None, :] < WIDTH - start, other=0.0)
        weight *= WEIGHT_UNIT
        high = weight.to(tl.float16)
        low = ((weight - high.to(tl.float32)) * (1.0 / LOW_UNIT)).to(tl.float16)
        high_sum += tl.dot(high, x_tile, max_num_imprecise_acc=K_TILE)
        low_sum += tl.dot(low, x_tile, max_num_imprecise_acc=K_TILE)
        x += K_TILE
        router += K_TILE
    return (high_sum + low_sum * LOW_UNIT) * (1.0 / WEIGHT_UNIT)


@triton.jit
def _ordered(value):
    """32-bit integers in the order of FP32 values; NaN comes above infinity, as in a descending sort of PyTorch."""
    bits = value.to(tl.int32, bitcast=True)
    return tl.where(value == value, bits ^ ((bits >> 31) & 0x7FFFFFFF), 0x7FFFFFFF)


def moe_route_program(node: Node) -> Program:
    """MoeRoute: x FP16 [N, D], router FP32 [E, D], bias FP32 [E] to index INT64 [N, S] and weight FP32 [N, S]; S = top_k + shared."""
    for index, dtype in enumerate(("float16", "float32", "float32")):
        expect(node, index, dtype)
    experts = static(node, 1, 0)
    expect_size(node, 1, node.width)
    expect_size(node, 2, experts)
    missing = {"top_k", "shared"} - set(node.attributes)
    if missing:
        raise BuildError(f"attributes are missing: {', '.join(sorted(missing))}", where=node.operator, hint="correct the graph")
    top_k, shared = int(node.attributes["top_k"]), int(node.attributes["shared"])
    if not 1 <= top_k <= experts:
        raise BuildError(f"top_k is {top_k} of {experts} experts", where=node.operator, hint="correct the graph")
    constants = {"WIDTH": node.width, "EXPERTS": experts, "TOP_K": top_k, "SHARED": shared}
    constants["EXPERT_TILE"] = max(MIN_EXPERTS, triton.next_power_of_2(experts))
    arguments: tuple[Argument, ...] = (*map(Input, range(3)), Output(0), Output(1), Int32(node.rows))

    def launch(tile: GemmTile) -> tuple[Launch, ...]:
        build = route_build(constants, tile, node.capability)
        return (Launch(node.compile(build), (cdiv(node.rows, tile.m), 1, 1), arguments),)

    shape = (*node.shape[:-1], top_k + shared)
    classes = node.tiles.classes(node.capability, "moe_route", (node.width, experts))
    return node.program((Tensor("int64", shape), Tensor("float32", shape)), by_rows(node.rows, classes, launch))


def route_build(constants: dict[str, int], tile: GemmTile, capability: str) -> Build:
    """How the kernel is compiled for a tile; `n` of the tile is not used: a CTA has all experts.

    Tiles are tuned for 64 experts. More of them take fewer channels in a step, so that a step's weights stay as large.
    """
    types = ("*fp16", "*fp32", "*fp32", "*i64", "*fp32", "i32")
    k = min(tile.k, max(MIN_CHANNELS, MAX_STEP_WEIGHTS // constants["EXPERT_TILE"]))
    cut = {"M_TILE": tile.m, "K_TILE": k}
    return Build(__name__, "moe_route", types, {**constants, **cut}, capability, tile.warps, tile.stages)
