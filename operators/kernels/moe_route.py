"""MoeRoute on the GPU: router product on the tensor core, exact selection with ties to the lower expert, weights, shared slots."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import triton
import triton.language as tl

from ...core.errors import BuildError
from ..launch.compile import Build
from ..launch.node import Node, by_rows, dependent, expect, expect_size, static
from ..launch.program import Buffer, Input, Int32, Launch, Output, Program, Scratch, Tensor, cdiv
from ..launch.tiles import RouteTile
from .dependent import await_previous

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
    EXPERT_TILE: tl.constexpr, M_TILE: tl.constexpr, K_TILE: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """M_TILE tokens of a CTA. Experts stand along the first axis, so that weights, which are split in registers, are the left side."""
    if DEPENDENT:
        await_previous()
    row = tl.program_id(0) * M_TILE + tl.arange(0, M_TILE)
    logits_EM = _logits(x_ND, router_ED, row, rows, 0, WIDTH, WIDTH, EXPERTS, EXPERT_TILE, M_TILE, K_TILE, WIDTH % K_TILE == 0)
    choose(logits_EM, bias_E, index_NS, weight_NS, row, rows, EXPERTS, TOP_K, SHARED, EXPERT_TILE, M_TILE)


@triton.jit
def moe_route_part(
    x_ND, router_ED, part_PNE, rows,
    WIDTH: tl.constexpr, PART: tl.constexpr, PARTS: tl.constexpr, EXPERTS: tl.constexpr,
    EXPERT_TILE: tl.constexpr, M_TILE: tl.constexpr, K_TILE: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Logits of M_TILE tokens over PART of the channels."""
    if DEPENDENT:
        await_previous()
    part = tl.program_id(0) % PARTS
    row = tl.program_id(0) // PARTS * M_TILE + tl.arange(0, M_TILE)
    logits_EM = _logits(x_ND, router_ED, row, rows, part * PART, PART, WIDTH, EXPERTS, EXPERT_TILE, M_TILE, K_TILE, PART * PARTS == WIDTH)
    place = part_PNE + (part * rows + row.to(tl.int64))[None, :] * EXPERT_TILE + tl.arange(0, EXPERT_TILE)[:, None]
    tl.store(place, logits_EM, mask=(row < rows)[None, :])


@triton.jit
def moe_route_choose(
    part_PNE, bias_E, index_NS, weight_NS, rows,
    PARTS: tl.constexpr, EXPERTS: tl.constexpr, TOP_K: tl.constexpr, SHARED: tl.constexpr,
    EXPERT_TILE: tl.constexpr, M_TILE: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Add the parts in their order, and select."""
    if DEPENDENT:
        await_previous()
    row = tl.program_id(0) * M_TILE + tl.arange(0, M_TILE)
    place = part_PNE + row.to(tl.int64)[None, :] * EXPERT_TILE + tl.arange(0, EXPERT_TILE)[:, None]
    logits_EM = tl.load(place, mask=(row < rows)[None, :], other=0.0)
    for part in tl.static_range(1, PARTS):
        logits_EM += tl.load(place + part * rows.to(tl.int64) * EXPERT_TILE, mask=(row < rows)[None, :], other=0.0)
    choose(logits_EM, bias_E, index_NS, weight_NS, row, rows, EXPERTS, TOP_K, SHARED, EXPERT_TILE, M_TILE)


@triton.jit
def choose(
    logits_EM, bias_E, index_NS, weight_NS, row, rows,
    EXPERTS: tl.constexpr, TOP_K: tl.constexpr, SHARED: tl.constexpr, EXPERT_TILE: tl.constexpr, M_TILE: tl.constexpr,
):  # fmt: skip
    """Select and weigh the experts of M_TILE tokens, whose rows are given."""
    SLOTS: tl.constexpr = TOP_K + SHARED
    experts = tl.arange(0, EXPERT_TILE)
    expert_EM = tl.broadcast_to(experts[:, None], logits_EM.shape)
    score_EM = tl.sigmoid(logits_EM)
    bias = tl.load(bias_E + experts, mask=experts < EXPERTS, other=0.0)
    key_EM = tl.where(experts[:, None] < EXPERTS, _ordered(score_EM + bias[:, None]), TAKEN)
    total = tl.zeros((M_TILE,), tl.float32)
    chosen = ()
    inside = row < rows
    place = row.to(tl.int64) * SLOTS
    for slot in tl.static_range(TOP_K):
        _, best, score = tl.reduce((key_EM, expert_EM, score_EM), 0, _better)
        key_EM = tl.where(expert_EM == best[None, :], TAKEN, key_EM)
        total += score
        chosen = chosen + (score,)  # type: ignore[assignment]  # noqa: RUF005
        tl.store(index_NS + place + slot, best.to(tl.int64), mask=inside)
    for slot in tl.static_range(TOP_K):
        tl.store(weight_NS + place + slot, tl.div_rn(chosen[slot], total), mask=inside)
    for slot in tl.static_range(TOP_K, SLOTS):
        tl.store(index_NS + place + slot, tl.full((M_TILE,), EXPERTS + slot - TOP_K, tl.int64), mask=inside)
        tl.store(weight_NS + place + slot, tl.full((M_TILE,), 1.0, tl.float32), mask=inside)


@triton.jit
def _better(key, expert, score, other_key, other_expert, other_score):
    """Of two experts the one with the larger key, of equal keys the smaller one: its key, number and score."""
    other = (other_key > key) | ((other_key == key) & (other_expert < expert))
    return tl.where(other, other_key, key), tl.where(other, other_expert, expert), tl.where(other, other_score, score)


@triton.jit
def _logits(
    x_ND, router_ED, row, rows, first,
    PART: tl.constexpr, WIDTH: tl.constexpr, EXPERTS: tl.constexpr,
    EXPERT_TILE: tl.constexpr, M_TILE: tl.constexpr, K_TILE: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """FP32 [experts, tokens] over PART channels from the `first` on; WHOLE: all of them are there.

    An FP32 weight is the sum of two FP16 numbers to 22 bits; their products with FP16 are exact in FP32. Every step is added to an
    FP32 sum outside the tensor core, whose own sum loses its last bits toward zero.
    """
    experts = tl.arange(0, EXPERT_TILE)
    steps = first + tl.arange(0, K_TILE)
    # Rows and experts beyond the edge read the last one: what they give is not stored, or cannot be chosen.
    x = x_ND + tl.minimum(row, rows - 1).to(tl.int64)[None, :] * WIDTH + steps[:, None]
    router = router_ED + tl.minimum(experts, EXPERTS - 1)[:, None] * WIDTH + steps[None, :]
    high_sum = tl.zeros((EXPERT_TILE, M_TILE), tl.float32)
    low_sum = tl.zeros((EXPERT_TILE, M_TILE), tl.float32)
    for start in range(0, PART, K_TILE):
        if WHOLE:
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
    expect(node, 0, "float16")
    constants = route_constants(node, router=1)
    shape = (*node.shape[:-1], constants["TOP_K"] + constants["SHARED"])
    classes = node.tiles.classes(node.capability, "moe_route", (node.width, constants["EXPERTS"]))
    tiles = [each.tile for each in classes if isinstance(each.tile, RouteTile)]
    logits = [constants["EXPERT_TILE"] * tile.parts for tile in tiles if tile.parts > 1]
    variants = by_rows(node.rows, classes, partial(_launches, node, constants))
    outputs = (Tensor("int64", shape), Tensor("float32", shape))
    return node.program(outputs, variants, (Buffer(4 * max(logits) * node.rows),) if logits else ())


def route_constants(node: Node, router: int) -> dict[str, int]:
    """Sizes of a routing whose router FP32 [E, D] is the given input, with the bias FP32 [E] behind it."""
    for index in (router, router + 1):
        expect(node, index, "float32")
    experts = static(node, router, 0)
    expect_size(node, router, node.width)
    expect_size(node, router + 1, experts)
    missing = {"top_k", "shared"} - set(node.attributes)
    if missing:
        raise BuildError(f"attributes are missing: {', '.join(sorted(missing))}", where=node.operator, hint="correct the graph")
    top_k, shared = int(node.attributes["top_k"]), int(node.attributes["shared"])
    if not 1 <= top_k <= experts:
        raise BuildError(f"top_k is {top_k} of {experts} experts", where=node.operator, hint="correct the graph")
    constants = {"WIDTH": node.width, "EXPERTS": experts, "TOP_K": top_k, "SHARED": shared}
    return {**constants, "EXPERT_TILE": max(MIN_EXPERTS, triton.next_power_of_2(experts))}


def step_channels(tile: RouteTile, constants: Mapping[str, int]) -> int:
    """Channels of a step. Tiles are tuned for 64 experts; more of them take fewer, so that a step's weights stay as large."""
    return min(tile.k, max(MIN_CHANNELS, MAX_STEP_WEIGHTS // constants["EXPERT_TILE"]))


def _launches(node: Node, constants: Mapping[str, int], tile: RouteTile) -> tuple[Launch, ...]:
    """One launch, or one for the parts of the logits and one that chooses."""
    rows, place = Int32(node.rows), Scratch(0)
    first, second = route_builds(constants, tile, node.capability)
    grid = (cdiv(node.rows, tile.m) * tile.parts, 1, 1)
    if second is None:
        return (Launch(node.compile(first), grid, (*map(Input, range(3)), Output(0), Output(1), rows)),)
    return (
        Launch(node.compile(first), grid, (Input(0), Input(1), place, rows)),
        Launch(node.compile(second), (cdiv(node.rows, tile.chosen), 1, 1), (place, Input(2), Output(0), Output(1), rows)),
    )


def route_builds(constants: Mapping[str, int], tile: RouteTile, capability: str) -> tuple[Build, Build | None]:
    """How the kernels are compiled for a tile: the whole, or parts of the logits and what chooses."""
    k = step_channels(tile, constants)
    main = {"M_TILE": tile.m, "K_TILE": k}
    if tile.parts == 1:
        types = ("*fp16", "*fp32", "*fp32", "*i64", "*fp32", "i32")
        return dependent(Build(__name__, "moe_route", types, {**constants, **main}, capability, tile.warps, tile.stages)), None
    of_part = {name: constants[name] for name in ("WIDTH", "EXPERTS", "EXPERT_TILE")}
    of_choice = {name: constants[name] for name in ("EXPERTS", "TOP_K", "SHARED", "EXPERT_TILE")} | {"M_TILE": tile.chosen}
    steps = -(-constants["WIDTH"] // (tile.parts * k))  # of the largest part; the last parts may have none
    first = {**of_part, **main, "PART": steps * k, "PARTS": tile.parts}
    second = {**of_choice, "PARTS": tile.parts}
    of_logits = ("*fp32", "*fp32", "*i64", "*fp32", "i32")
    return (
        dependent(Build(__name__, "moe_route_part", ("*fp16", "*fp32", "*fp32", "i32"), first, capability, tile.warps, tile.stages)),
        dependent(Build(__name__, "moe_route_choose", of_logits, second, capability, tile.chosen_warps)),
    )
