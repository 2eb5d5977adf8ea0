"""Launch programs of ContextAttention: which kernel, in which tile.

All are flash attention forward, an FP32 softmax between two FP16 products on the tensor cores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
import triton

from ...core.errors import BuildError
from ..launch.case import Case, KernelCases, Library, Measurement, TileKey, Trial, Tuning, equal, half, scales
from ..launch.compile import Build
from ..launch.node import HOPPER, NO_ADDRESS, TMA_ALIGNMENT, Node, dependent, expect, expect_size, static
from ..launch.program import Argument, Buffer, Expr, Input, Int32, Launch, Output, Program, Scratch, Tensor, cdiv, dim, maximum, minimum
from ..launch.tiles import AttentionTile
from .attention_sizes import AttentionSizes
from .warp_specialized import ATTENTION_REGISTERS, MULTIPROCESSORS, WARPGROUP_ROWS, warp_specialized_build

FAMILY = "context_attention"
MIN_HEAD = 16  # channels of a tensor core instruction
FP16_BYTES = 2
FP32_BYTES = 4
MERGED_PARTS = 8  # that a CTA reads at a time
ANY_TILE = AttentionTile(128, 64, 2, 4, descriptors=True)  # in place of the warp-specialized kernel, for other heads
TUNED_HEADS = {128: 14, 64: 10}  # of 1B and 0.1B, by channels of a head
TUNED_ROWS = (1, 128, 512)


@dataclass(frozen=True)
class Attention(AttentionSizes):
    """An attention over the context, as its kernels are compiled for it.

    Attributes:
        shared: Whether keys are the values.
        codes: Whether the result is quantized by a scale that is given.
    """

    shared: bool = False
    codes: bool = False

    def usable(self, tile: AttentionTile) -> AttentionTile:
        """The tile, or one of the other kernel and without descriptors where heads or rows do not allow them."""
        if tile.ctas and not self.warp_specialized:
            tile = ANY_TILE
        aligned = self.head * FP16_BYTES % TMA_ALIGNMENT == 0
        return tile if aligned or not tile.descriptors else AttentionTile(tile.m, tile.n, tile.stages, tile.warps)

    @property
    def head_tile(self) -> int:
        """Channels of a head, padded for the tensor core."""
        return max(MIN_HEAD, int(triton.next_power_of_2(self.head)))

    @property
    def queries(self) -> int:
        """Rows of a request times heads."""
        return self.rows * self.groups * self.share

    @property
    def result(self) -> str:
        """Triton's pointer type of the output."""
        return "*fp8e4nv" if self.codes else "*fp16"

    def build(self, tile: AttentionTile, capability: str) -> Build:
        """How the kernel that attends is compiled for a usable tile."""
        constants = self.constants(tile)
        inputs = ("*fp16", "*fp16", "*fp16", "*i64")
        cut = {"HEAD_TILE": self.head_tile, "M_TILE": tile.m}
        if tile.part:
            constants |= cut | {"SHARED": self.shared, "PART": tile.part}
            part_types = (*inputs, "*fp32", "*fp32", "*fp32", "i32", "i32", "fp32")
            stages = min(tile.stages, max(1, tile.part // tile.n))  # no more than it has steps
            part = Build(f"{__package__}.attention_part", "attention_part", part_types, constants, capability, tile.warps, stages)
            return dependent(part)
        constants |= {"CODES": self.codes}
        tensors = (*inputs, self.result)
        if not tile.ctas:
            any_types = (*tensors, "i32", "fp32", "*fp32")
            constants |= cut | {"DESCRIPTORS": tile.descriptors}
            return dependent(Build(f"{__package__}.attention", "attention", any_types, constants, capability, tile.warps, tile.stages))
        # One ring takes the room of two, and one stage more.
        stages = 2 * tile.stages + 1 if self.shared else tile.stages
        constants |= {"SHARED": self.shared, "WARPGROUPS": tile.m // WARPGROUP_ROWS, "STAGES": stages, "CTAS": tile.ctas}
        types = (*tensors, "*fp32", "i32", "i32", "fp32")
        return warp_specialized_build(
            "attention_sm90", types, constants, capability, rows=tile.m, registers=ATTENTION_REGISTERS, where=FAMILY
        )

    def merge_build(self, tile: AttentionTile, capability: str) -> Build:
        """How the kernel that merges parts is compiled."""
        constants = {"QUERIES": self.queries, "HEAD": self.head, "HEAD_TILE": self.head_tile, "PART": tile.part}
        constants |= {"PARTS_TILE": MERGED_PARTS, "CODES": self.codes}
        types = ("*fp32", "*fp32", "*fp32", "*i64", self.result, "*fp32", "i32", "i32")
        return dependent(Build(f"{__package__}.attention_merge", "attention_merge", types, constants, capability, warps=1))

    def launches(self, tile: AttentionTile, node: Node, tensors: tuple[Argument, ...], code_scale: Argument) -> tuple[Launch, ...]:
        """The launches for a node: `tensors` are query, keys, values, lengths and the result."""
        kernel = node.compile(self.build(tile, node.capability))
        tiles, tokens = dim(1, 0) * self.tiles(tile), Int32(dim(1, 2))
        if tile.part:
            *inputs, result = tensors
            sums, queries = tuple(map(Scratch, range(3))), Int32(dim(1, 0) * self.queries)
            merge = node.compile(self.merge_build(tile, node.capability))
            return (
                Launch(kernel, (tiles, self.parts(tile), 1), (*inputs, *sums, queries, tokens, self.scale)),
                Launch(merge, (queries.value, 1, 1), (*sums, inputs[-1], result, code_scale, queries, tokens)),
            )
        if not tile.ctas:
            return (Launch(kernel, (tiles, 1, 1), (*tensors, tokens, self.scale, code_scale)),)
        persistent = (*tensors, code_scale, Int32(dim(1, 0)), tokens, self.scale)
        return (Launch(kernel, (minimum(tiles, tile.ctas), 1, 1), persistent),)

    def parts(self, tile: AttentionTile) -> Expr:
        """Of the longest context that a batch has room for."""
        return maximum(cdiv(dim(1, 2), tile.part), 1)

    def scratch(self, tile: AttentionTile) -> tuple[Buffer, ...]:
        """Weighed values of every part, its largest score and its sum of weights."""
        if not (most := self.requests_in_parts(tile)):
            return ()
        each = minimum(dim(1, 0), most) * self.parts(tile) * (self.queries * FP32_BYTES)
        return (Buffer(each * self.head), Buffer(each), Buffer(each))


def context_attention_program(node: Node) -> Program:
    """ContextAttention: query FP16 [B * rows, D], key and value FP16 [B, G, S, d], lengths INT64 [B] to FP16 [B * rows, D]."""
    return _program(node, shared=False, codes=False)


def shared_context_attention_program(node: Node) -> Program:
    """SharedContextAttention: query FP16 [B * rows, D], context FP16 [B, G, S, d], lengths INT64 [B] to FP16 [B * rows, D]."""
    return _program(node, shared=True, codes=False)


def context_attention_quant_tensor_program(node: Node) -> Program:
    """ContextAttentionQuantTensor: inputs of ContextAttention, scale FP32 [1] to codes [B * rows, D]."""
    return _program(node, shared=False, codes=True)


def shared_context_attention_quant_tensor_program(node: Node) -> Program:
    """SharedContextAttentionQuantTensor: inputs of SharedContextAttention, scale FP32 [1] to codes [B * rows, D]."""
    return _program(node, shared=True, codes=True)


def _program(node: Node, shared: bool, codes: bool) -> Program:
    value = 1 if shared else 2
    lengths = value + 1
    for index in range(lengths):
        expect(node, index, "float16")
    expect(node, lengths, "int64")
    if codes:
        expect(node, lengths + 1, "float32")
        expect_size(node, lengths + 1, 1)
    attention = _attention(node, value, shared, codes)
    tile = node.tiles.tile(node.capability, FAMILY, (attention.head,), attention.rows * attention.share)
    assert isinstance(tile, AttentionTile), tile
    tensors = (Input(0), Input(1), Input(value), Input(lengths), Output(0))
    code_scale: Argument = Input(lengths + 1) if codes else NO_ADDRESS
    tile = attention.usable(tile)
    variants = attention.variants(tile, lambda tile: attention.launches(tile, node, tensors, code_scale))
    output = Tensor("float8_e4m3fn" if codes else "float16", node.shape)
    return node.program((output,), variants, attention.scratch(tile))


def _attention(node: Node, value: int, shared: bool, codes: bool) -> Attention:
    """What a node attends with; its values are the given input."""
    if "rows" not in node.attributes:
        raise BuildError("the attribute rows is missing", where=node.operator, hint="correct the graph")
    rows, groups, head = int(node.attributes["rows"]), static(node, 1, 1), static(node, 1, 3)
    shapes = [list(each.shape) for each in node.inputs]
    if rows < 1 or node.width % (groups * head) or shapes[1][1:] != shapes[value][1:]:
        what = f"its inputs do not fit together: {shapes}, rows {rows}"
        raise BuildError(what, where=node.operator, hint="correct the graph")
    return Attention(rows, groups, node.width // (groups * head), head, shared, codes)


def context_attention_case(requests: int, rows: int, heads: int, groups: int, tokens: int, head: int) -> Case:
    """`rows` beams of each request over contexts of `tokens`, all of them valid."""
    context = (requests, groups, tokens, head)
    key, value = half(*context, dynamic=(0, 2)), half(*context, dynamic=(0, 2))
    return Case(
        "ContextAttention",
        (half(requests * rows, heads * head), key, value, equal(requests, value=tokens)),
        (requests, heads, rows, tokens, head),
        {"rows": rows},
        tile=TileKey(FAMILY, rows * heads // groups, (head,)),
        requests=requests,
        flops=4 * requests * rows * heads * tokens * head,
    )


def fused_case(part: Case, shared: bool, codes: bool) -> Case:
    """A case of context attention as one of a fused operator: keys that are the values, a result that is quantized, or both."""
    query, key, value, lengths = part.inputs
    operator = ("Shared" if shared else "") + part.operator + ("QuantTensor" if codes else "")
    scale = (scales(1, dynamic=()),) if codes else ()
    return replace(part, operator=operator, inputs=(query, key, *(() if shared else (value,)), lengths, *scale))


def _fused_trials(shared: bool, codes: bool) -> Iterator[Trial]:
    """Grouped heads, a context without tokens and one that ends early; in the tiles of the table, as the parts have them."""
    for rows, heads, groups, head, tokens in ((5, 6, 2, 48, 20), (37, 1, 1, 64, 37), (2, 2, 2, 4, 7)):
        case = fused_case(context_attention_case(3, rows, heads, groups, tokens, head), shared, codes)
        yield Trial(case)
        query, *rest = case.tensors("cpu")
        contexts, lengths = rest[: 1 if shared else 2], torch.tensor([tokens, 0, (tokens + 1) // 2])
        beyond = (torch.arange(tokens) >= lengths[:, None])[:, None, :, None]
        yield Trial(case, inputs=(query, *(each.masked_fill(beyond, 0) for each in contexts), lengths, *rest[len(contexts) + 1 :]))


def _trials() -> Iterator[Trial]:
    """NaN in the paddings, keys that are the values, contexts of no token, and one token that takes all."""
    tiles = (AttentionTile(16, 16, 2, 4), AttentionTile(32, 16, 2, 4, descriptors=True), AttentionTile(16, 16, 2, 4, part=16))
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
    """Of one row so few requests that their contexts may be cut into parts."""
    for head, heads in TUNED_HEADS.items():
        for rows in TUNED_ROWS:
            yield Tuning(context_attention_case(8 if rows == 1 else 32, rows, heads, heads, 512, head), (FAMILY,))


def _candidates(case: Case, capability: str) -> Iterator[AttentionTile]:
    """For one row a tile of the smallest instruction; for many rows tiles of which two CTAs share a multiprocessor, too."""
    assert case.tile is not None
    if case.tile.rows <= 32:
        for n, stages, warps in ((32, 4, 4), (64, 2, 4), (64, 3, 4), (128, 2, 4), (128, 3, 8), (64, 3, 2)):
            yield AttentionTile(16, n, stages, warps)
        for n, stages, part in ((64, 3, 64), (128, 2, 128), (64, 3, 128), (64, 3, 256)):
            yield AttentionTile(16, n, stages, 4, part=part)
        return
    for m, n, warps in ((64, 64, 4), (128, 64, 4), (128, 64, 8), (128, 128, 8)):
        for descriptors in (False, True) if capability == HOPPER else (False,):
            yield AttentionTile(m, n, 2, warps, descriptors)
    if capability == HOPPER:
        yield AttentionTile(128, 32, 3, 4, descriptors=True)
        yield AttentionTile(256, 64, 2, 8, descriptors=True)
        yield AttentionTile(128, 128, 2, 12, ctas=MULTIPROCESSORS)
        yield AttentionTile(128, 64, 4, 12, ctas=MULTIPROCESSORS)


def library_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Callable[[], torch.Tensor]:
    """PyTorch's attention of queries [N, D] over full contexts [B, G, S, d]."""
    requests, heads, _, head = key.shape
    rows = query.view(requests, -1, heads, head).transpose(1, 2)
    return lambda: torch.nn.functional.scaled_dot_product_attention(rows, key, value)


def _torch_attention(inputs: list[torch.Tensor]) -> Callable[[], torch.Tensor]:
    return library_attention(inputs[0], inputs[1], inputs[2 if inputs[2].dim() == 4 else 1])


def _measured() -> Iterator[Measurement]:
    """Of the 1B size."""
    for tokens in (512, 3000):
        case = context_attention_case(32, 512, heads=14, groups=14, tokens=tokens, head=128)
        yield Measurement(case, "every context full", Library("scaled_dot_product_attention, without lengths", _torch_attention))


def _fused_measured(shared: bool, codes: bool) -> Iterator[Measurement]:
    """Of the 4B-A0.5B size."""
    for tokens in (512, 3000):
        case = fused_case(context_attention_case(32, 512, heads=11, groups=11, tokens=tokens, head=128), shared, codes)
        yield Measurement(case, "every context full", Library("scaled_dot_product_attention, without lengths", _torch_attention))


def _fused_cases(shared: bool, codes: bool) -> KernelCases:
    return KernelCases(ragged=partial(_fused_trials, shared, codes), measured=partial(_fused_measured, shared, codes) if shared else tuple)


SHARED_CONTEXT_ATTENTION_CASES = _fused_cases(shared=True, codes=False)
CONTEXT_ATTENTION_QUANT_TENSOR_CASES = _fused_cases(shared=False, codes=True)
SHARED_CONTEXT_ATTENTION_QUANT_TENSOR_CASES = _fused_cases(shared=True, codes=True)
CONTEXT_ATTENTION_CASES = KernelCases(ragged=_trials, tuned=_tuned, candidates=_candidates, measured=_measured)
