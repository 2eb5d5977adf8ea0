"""Launch programs of ContextAttention: which of the two kernels, in which tile.

Both are flash attention forward, an FP32 softmax between two FP16 products on the tensor cores.
"""

from __future__ import annotations

import math

import triton

from ...core.errors import BuildError
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
