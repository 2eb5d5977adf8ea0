"""Launch programs of ContextAttention: which of the two kernels, in which tile.

Both are flash attention forward, an FP32 softmax between two FP16 products on the tensor cores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import triton

from ...core.errors import BuildError
from ..launch.case import Case, KernelCases, Library, Measurement, TileKey, Trial, Tuning, equal, half
from ..launch.compile import Build
from ..launch.node import HOPPER, TMA_ALIGNMENT, WARPGROUP, Node, expect, static
from ..launch.program import Argument, Float32, Input, Int32, Launch, Output, Program, Tensor, Variant, dim, minimum
from ..launch.tiles import AttentionTile

MIN_HEAD = 16  # channels of a tensor core instruction
FP16_BYTES = 2
LOG2_E = math.log2(math.e)
SM90_ROWS = 128  # query rows of a tile of the warp-specialized kernel
SM90_HEADS = (64, 128)  # channels of a head that it takes: whole rows of swizzled shared memory
SM90_REGISTERS = (168, 232, 40)  # per thread: at launch, consumers, producers
ANY_TILE = AttentionTile(128, 64, 2, 4, descriptors=True)  # in place of the warp-specialized kernel, for other heads
MULTIPROCESSORS = 132  # of an H100 SXM and an H200
TUNED_HEADS = {128: 14, 64: 10}  # of 1B and 0.1B, by channels of a head
TUNED_ROWS = (1, 128, 512)


def context_attention_program(node: Node) -> Program:
    """ContextAttention: query FP16 [B * rows, D], key and value FP16 [B, G, S, d], lengths INT64 [B] to FP16 [B * rows, D]."""
    for index in range(3):
        expect(node, index, "float16")
    expect(node, 3, "int64")
    if "rows" not in node.attributes:
        raise BuildError("the attribute rows is missing", where=node.operator, hint="correct the graph")
    rows, groups, head = int(node.attributes["rows"]), static(node, 1, 1), static(node, 1, 3)
    shapes = [list(each.shape) for each in node.inputs]
    if rows < 1 or node.width % (groups * head) or shapes[1][1:] != shapes[2][1:]:
        what = f"its inputs do not fit together: {shapes}, rows {rows}"
        raise BuildError(what, where=node.operator, hint="correct the graph")
    share = node.width // (groups * head)
    tile = node.tiles.tile(node.capability, "context_attention", (head,), rows * share)
    assert isinstance(tile, AttentionTile), tile
    tile = usable(tile, head)
    kernel = node.compile(attention_build(rows, groups, share, head, tile, node.capability))
    requests, tokens, scale = Int32(dim(1, 0)), Int32(dim(1, 2)), Float32(LOG2_E / math.sqrt(head))
    ctas = dim(1, 0) * (groups * -(-rows * share // tile.m))
    sizes: tuple[Argument, ...] = (tokens, scale)
    if tile.ctas:
        ctas, sizes = minimum(ctas, tile.ctas), (requests, *sizes)
    launch = Launch(kernel, (ctas, 1, 1), (Input(0), Input(1), Input(2), Input(3), Output(0), *sizes))
    return node.program((Tensor("float16", node.shape),), (Variant(1, (launch,)),))


def usable(tile: AttentionTile, head: int) -> AttentionTile:
    """The tile, or one of the other kernel and without descriptors where the head does not allow them."""
    if tile.ctas and head not in SM90_HEADS:
        tile = ANY_TILE
    aligned = head * FP16_BYTES % TMA_ALIGNMENT == 0
    return tile if aligned or not tile.descriptors else AttentionTile(tile.m, tile.n, tile.stages, tile.warps)


def attention_build(rows: int, groups: int, share: int, head: int, tile: AttentionTile, capability: str) -> Build:
    """How the kernel is compiled for a usable tile."""
    constants: dict[str, int | bool] = {"ROWS": rows, "GROUPS": groups, "SHARE": share, "HEAD": head, "N_TILE": tile.n}
    tensors, sizes = ("*fp16", "*fp16", "*fp16", "*i64", "*fp16"), ("i32", "fp32")
    if not tile.ctas:
        constants |= {"HEAD_TILE": max(MIN_HEAD, triton.next_power_of_2(head)), "M_TILE": tile.m, "DESCRIPTORS": tile.descriptors}
        return Build(f"{__package__}.attention", "attention", tensors + sizes, constants, capability, tile.warps, tile.stages)
    if tile.m != SM90_ROWS or capability != HOPPER:
        what = f"no warp-specialized attention for tiles of {tile.m} rows on {capability}"
        raise BuildError(what, where="context_attention", hint=f"choose {SM90_ROWS} rows on {HOPPER}, or ctas = 0")
    at_launch, many, few = SM90_REGISTERS
    constants |= {"STAGES": tile.stages, "CTAS": tile.ctas, "REGISTERS": many, "FEW_REGISTERS": few}
    return Build(
        f"{__package__}.attention_sm90", "attention_sm90", (*tensors, "i32", *sizes), constants, capability, WARPGROUP, registers=at_launch
    )


def context_attention_case(requests: int, rows: int, heads: int, groups: int, tokens: int, head: int) -> Case:
    """`rows` beams of each request over contexts of `tokens`, all of them valid."""
    context = (requests, groups, tokens, head)
    key, value = half(*context, dynamic=(0, 2)), half(*context, dynamic=(0, 2))
    return Case(
        "ContextAttention",
        (half(requests * rows, heads * head), key, value, equal(requests, value=tokens)),
        (requests, heads, rows, tokens, head),
        {"rows": rows},
        tile=TileKey("context_attention", rows * heads // groups, (head,)),
        requests=requests,
        flops=4 * requests * rows * heads * tokens * head,
    )


def _trials() -> Iterator[Trial]:
    """NaN in the paddings, keys that are the values, contexts of no token, and one token that takes all."""
    tiles = (AttentionTile(16, 16, 2, 4), AttentionTile(32, 16, 2, 4, descriptors=True))
    for rows, heads, groups, head, tokens in (
        (1, 4, 2, 48, 20),
        (1, 14, 14, 32, 1),
        (37, 1, 1, 64, 37),
        (5, 6, 2, 128, 33),
        (3, 6, 1, 4, 16),  # rows of 8 bytes: no descriptors
        (2, 2, 2, 40, 7),
    ):
        case = context_attention_case(3, rows, heads, groups, tokens, head)
        query, key, value, lengths = case.tensors("cpu")
        lengths.copy_(torch.tensor([tokens, 0, (tokens + 1) // 2]))
        beyond = (torch.arange(tokens) >= lengths[:, None])[:, None, :, None]
        clean_key, clean_value = key.masked_fill(beyond, 0), value.masked_fill(beyond, 0)
        bad_key, bad_value = key.masked_fill(beyond, float("nan")), value.masked_fill(beyond, float("nan"))
        for tile in tiles:
            yield Trial(case, tile, (query, clean_key, clean_value, lengths), (query, bad_key, bad_value, lengths))
            yield Trial(case, tile, (query, clean_key, clean_key, lengths))
    for tile in tiles:
        yield Trial(context_attention_case(3, 5, 2, 1, 20, 32), tile)
    case = context_attention_case(2, 2, 1, 1, 33, 64)
    query, key, _, lengths = case.tensors("cpu")
    key[1, 0, 30, 5] = float("nan")
    lengths[1] = 31
    yield Trial(case, tiles[0], (query.mul(100), key.mul(100), key.mul(100), lengths))


def _tuned() -> Iterator[Tuning]:
    for head, heads in TUNED_HEADS.items():
        for rows in TUNED_ROWS:
            yield Tuning(context_attention_case(32, rows, heads, heads, 512, head), ("context_attention",))


def _candidates(case: Case, capability: str) -> Iterator[AttentionTile]:
    """For one row a tile of the smallest instruction; for many rows tiles of which two CTAs share a multiprocessor, too."""
    assert case.tile is not None
    if case.tile.rows <= 32:
        for n, stages, warps in ((32, 4, 4), (64, 2, 4), (64, 3, 4), (128, 2, 4), (128, 3, 8), (64, 3, 2)):
            yield AttentionTile(16, n, stages, warps)
        return
    for m, n, warps in ((64, 64, 4), (128, 64, 4), (128, 64, 8), (128, 128, 8)):
        for descriptors in (False, True) if capability == HOPPER else (False,):
            yield AttentionTile(m, n, 2, warps, descriptors)
    if capability == HOPPER:
        yield AttentionTile(128, 32, 3, 4, descriptors=True)
        yield AttentionTile(256, 64, 2, 8, descriptors=True)
        yield AttentionTile(128, 128, 2, 12, ctas=MULTIPROCESSORS)
        yield AttentionTile(128, 64, 4, 12, ctas=MULTIPROCESSORS)


def _torch_attention(inputs: list[torch.Tensor]) -> Callable[[], torch.Tensor]:
    query, key, value, _ = inputs
    requests, heads, _, head = key.shape
    rows = query.view(requests, -1, heads, head).transpose(1, 2)
    return lambda: torch.nn.functional.scaled_dot_product_attention(rows, key, value)


def _measured() -> Iterator[Measurement]:
    """Of the 1B size."""
    for tokens in (512, 3000):
        case = context_attention_case(32, 512, heads=14, groups=14, tokens=tokens, head=128)
        yield Measurement(case, "every context full", Library("scaled_dot_product_attention, without lengths", _torch_attention))


CONTEXT_ATTENTION_CASES = KernelCases(ragged=_trials, tuned=_tuned, candidates=_candidates, measured=_measured)
