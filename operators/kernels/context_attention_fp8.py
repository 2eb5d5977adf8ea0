"""Launch programs of ContextAttentionFp8: which of the two kernels, in which tile.

Both are flash attention forward, an FP32 softmax between two E4M3 products on the tensor cores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import triton

from ...core.errors import BuildError
from ..context_codes import TOKENS, keys_of_blocks, values_of_blocks
from ..launch.case import Case, Example, KernelCases, Library, Measurement, TileKey, Trial, Tuning, equal, half
from ..launch.compile import Build
from ..launch.node import HOPPER, Node, dependent, expect, expect_size, static
from ..launch.program import Argument, Input, Int32, Launch, Output, Program, Tensor, dim, minimum
from ..launch.tiles import AttentionTile
from ..operator import FP8_THRESHOLD
from .attention_sizes import AttentionSizes
from .context_attention import TUNED_HEADS, TUNED_ROWS, library_attention
from .fp8_linear import accumulator_loss
from .warp_specialized import ATTENTION_REGISTERS, MULTIPROCESSORS, WARPGROUP_ROWS, warp_specialized_build

FAMILY = "context_attention_fp8"
MIN_HEAD = 32  # channels of a tensor core instruction
SCALE = 0.025  # of example codes: about sqrt(128) / 448, by the bound of norms of 128 channels
ANY_TILE = AttentionTile(128, 64, 2, 8)  # in place of the warp-specialized kernel, for other heads


@dataclass(frozen=True)
class Fp8Attention(AttentionSizes):
    """An attention over the context in FP8, as its kernels are compiled for it."""

    def usable(self, tile: AttentionTile) -> AttentionTile:
        """The tile, or one of the other kernel where heads or rows do not allow it."""
        return ANY_TILE if tile.ctas and not self.warp_specialized else tile

    def build(self, tile: AttentionTile, capability: str) -> Build:
        """How the kernel is compiled for a usable tile."""
        constants = self.constants(tile)
        tensors = ("*fp16", "*fp8e4nv", "*fp32", "*fp8e4nv", "*fp32", "*i64", "*fp16")
        if TOKENS % tile.n:
            raise BuildError(f"{tile.n} tokens are no part of {TOKENS}", where=FAMILY, hint="choose a tile with n a power of two")
        if not tile.ctas:
            constants |= {"HEAD_TILE": max(MIN_HEAD, triton.next_power_of_2(self.head)), "M_TILE": tile.m}
            any_types, module = (*tensors, "i32", "fp32"), f"{__package__}.attention_fp8"
            return dependent(Build(module, "attention_fp8", any_types, constants, capability, tile.warps, tile.stages))
        constants |= {"WARPGROUPS": tile.m // WARPGROUP_ROWS, "STAGES": tile.stages, "CTAS": tile.ctas}
        types = (*tensors, "i32", "i32", "fp32")
        return warp_specialized_build(
            "attention_fp8_sm90", types, constants, capability, rows=tile.m, registers=ATTENTION_REGISTERS, where=FAMILY
        )

    def launch(self, tile: AttentionTile, node: Node) -> Launch:
        """The launch for a node."""
        kernel = node.compile(self.build(tile, node.capability))
        tensors: tuple[Argument, ...] = (*(Input(number) for number in range(6)), Output(0))
        tiles, blocks = dim(1, 0) * self.tiles(tile), Int32(dim(1, 2))
        if not tile.ctas:
            return Launch(kernel, (tiles, 1, 1), (*tensors, blocks, self.scale))
        return Launch(kernel, (minimum(tiles, tile.ctas), 1, 1), (*tensors, Int32(dim(1, 0)), blocks, self.scale))


def context_attention_fp8_program(node: Node) -> Program:
    """ContextAttentionFp8: query FP16 [B * rows, D], key codes [B, G, T, 128, d], value codes [B, G, T, d, 128] to FP16 [B * rows, D]."""
    for index, dtype in enumerate(("float16", "float8_e4m3fn", "float32", "float8_e4m3fn", "float32", "int64")):
        expect(node, index, dtype)
    for scale in (2, 4):
        expect_size(node, scale, 1)
    attention = _attention(node)
    tile = node.tiles.tile(node.capability, FAMILY, (attention.head,), attention.rows * attention.share)
    assert isinstance(tile, AttentionTile), tile
    variants = attention.variants(attention.usable(tile), lambda tile: (attention.launch(tile, node),))
    return node.program((Tensor("float16", node.shape),), variants)


def _attention(node: Node) -> Fp8Attention:
    if "rows" not in node.attributes:
        raise BuildError("the attribute rows is missing", where=node.operator, hint="correct the graph")
    rows, groups, head = int(node.attributes["rows"]), static(node, 1, 1), static(node, 1, 4)
    keys, values = (list(node.inputs[index].shape[3:]) for index in (1, 3))
    if rows < 1 or node.width % (groups * head) or keys != [TOKENS, head] or values != [head, TOKENS]:
        what = f"its inputs do not fit together: {[list(each.shape) for each in node.inputs]}, rows {rows}"
        raise BuildError(what, where=node.operator, hint="correct the graph")
    return Fp8Attention(rows, groups, node.width // (groups * head), head)


def context_attention_fp8_case(requests: int, rows: int, heads: int, groups: int, tokens: int, head: int) -> Case:
    """`rows` beams of each request over contexts of `tokens`, all of them valid; scores of a standard deviation of 1."""
    shape, scale = (requests, groups, -(-tokens // TOKENS)), Example("float32", (1,), _scale, ())
    keys, values = (Example("float8_e4m3fn", (*shape, *block), _norms, (0, 2)) for block in ((TOKENS, head), (head, TOKENS)))
    return Case(
        "ContextAttentionFp8",
        (half(requests * rows, heads * head), keys, scale, values, scale, equal(requests, value=tokens)),
        (requests, heads, rows, tokens, head),
        {"rows": rows},
        tile=TileKey(FAMILY, rows * heads // groups, (head,)),
        requests=requests,
        flops=4 * requests * rows * heads * tokens * head,
        # Scores that lose bits in the tensor core flip codes of probabilities: docs/kernels/context-attention-fp8.md.
        tolerance=FP8_THRESHOLD + accumulator_loss(tokens),
    )


def _scale(shape: tuple[int, ...], device: str) -> torch.Tensor:
    return torch.full(shape, SCALE, device=device)


def _norms(shape: tuple[int, ...], device: str) -> torch.Tensor:
    return torch.randn(shape, device=device) / SCALE


def _trials() -> Iterator[Trial]:
    """Contexts of several blocks and of no token, NaN in keys behind a context, a NaN in a row, one token that takes all."""
    tiles = (AttentionTile(16, 32, 2, 4), AttentionTile(32, 128, 2, 4))
    for rows, heads, groups, head, tokens in (
        (1, 4, 2, 48, 20),
        (37, 1, 1, 64, 140),
        (5, 6, 2, 128, 33),
        (3, 6, 1, 4, 16),
        (2, 2, 2, 40, 300),
    ):
        case = context_attention_fp8_case(3, rows, heads, groups, tokens, head)
        query, keys, key_scale, values, value_scale, lengths = case.tensors("cpu")
        lengths.copy_(torch.tensor([tokens, 0, (tokens + 1) // 2]))
        token = torch.arange(keys.shape[2] * TOKENS).view(1, 1, -1, TOKENS, 1)
        bad = torch.where(token < lengths.view(-1, 1, 1, 1, 1), keys.float(), float("nan")).to(keys.dtype)
        for tile in tiles:
            rest = (key_scale, values, value_scale, lengths)
            yield Trial(case, tile, (query, keys, *rest), (query, bad, *rest))
        query[-1, 0] = float("nan")
        query[0] *= 1000
        yield Trial(case, tiles[0], (query, keys, key_scale, values, value_scale, lengths))
    for tile in tiles:
        yield Trial(context_attention_fp8_case(3, 5, 2, 1, 20, 32), tile)


def _tuned() -> Iterator[Tuning]:
    for head, heads in TUNED_HEADS.items():
        for rows in TUNED_ROWS:
            yield Tuning(context_attention_fp8_case(32, rows, heads, heads, 512, head), (FAMILY,))


def _candidates(case: Case, capability: str) -> Iterator[AttentionTile]:
    assert case.tile is not None
    if case.tile.rows <= 32:
        for n, stages, warps in ((64, 2, 4), (64, 3, 4), (128, 2, 4), (128, 3, 4), (128, 3, 8)):
            yield AttentionTile(16, n, stages, warps)
        return
    for m, n, warps in ((64, 64, 4), (64, 128, 4), (128, 64, 8), (128, 128, 8)):
        yield AttentionTile(m, n, 2, warps)
    if capability == HOPPER:
        yield AttentionTile(128, 128, 4, 12, ctas=MULTIPROCESSORS)
        yield AttentionTile(128, 64, 6, 12, ctas=MULTIPROCESSORS)


def _torch_attention(inputs: list[torch.Tensor]) -> Callable[[], torch.Tensor]:
    query, keys, key_scale, values, value_scale, _ = inputs
    key, value = ((made * scale).half() for made, scale in ((keys_of_blocks(keys), key_scale), (values_of_blocks(values), value_scale)))
    return library_attention(query, key, value)


def _measured() -> Iterator[Measurement]:
    """Of the 4B-A0.5B size."""
    for tokens in (512, 3000):
        case = context_attention_fp8_case(32, 512, heads=11, groups=11, tokens=tokens, head=128)
        yield Measurement(case, "every context full", Library("scaled_dot_product_attention in FP16, without lengths", _torch_attention))


CONTEXT_ATTENTION_FP8_CASES = KernelCases(agreement="roundings", ragged=_trials, tuned=_tuned, candidates=_candidates, measured=_measured)
