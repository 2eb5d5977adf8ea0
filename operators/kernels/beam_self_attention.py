"""BeamSelfAttention{1,2} on the GPU: one CTA for each row, all heads at once; every projection is read once, in FP32 until the end."""

from __future__ import annotations

import math
from collections.abc import Iterator

import triton
import triton.language as tl

from ...core.errors import BuildError
from ..launch.case import Case, KernelCases, Measurement, Trial, compiled_reference, half, indices
from ..launch.compile import Build
from ..launch.node import NO_ADDRESS, Node, expect, expect_size
from ..launch.program import Argument, Float32, Input, Int32, Launch, Output, Program, Tensor, Variant, dim

WARPS = 4  # of 16 heads of 128 channels each thread keeps 16 values of a projection


@triton.jit
def beam_self_attention(
    qkv_N3D, bos_B3D, first_M3D, parent_N, output_ND, rows, earlier, root,
    HISTORY: tl.constexpr, HEADS: tl.constexpr, HEAD: tl.constexpr, HEADS_TILE: tl.constexpr, HEAD_TILE: tl.constexpr,
):  # fmt: skip
    """`rows` of a request now, `earlier` ones of the step before, which the parent index counts; `root` is that of HEAD."""
    WIDTH: tl.constexpr = HEADS * HEAD
    row = tl.program_id(0).to(tl.int64)
    request = row // rows
    head = tl.arange(0, HEADS_TILE)[:, None]
    channel = tl.arange(0, HEAD_TILE)[None, :]
    inside = (head < HEADS) & (channel < HEAD)
    place = head * HEAD + channel
    own = qkv_N3D + row * (3 * WIDTH) + place
    bos = bos_B3D + request * (3 * WIDTH) + place
    query = tl.load(own, mask=inside, other=0.0).to(tl.float32)
    own_score = tl.sum(query * tl.load(own + WIDTH, mask=inside, other=0.0).to(tl.float32), 1, keep_dims=True) / root
    bos_score = tl.sum(query * tl.load(bos + WIDTH, mask=inside, other=0.0).to(tl.float32), 1, keep_dims=True) / root
    largest = tl.maximum(own_score, bos_score)
    first = bos
    first_score = bos_score
    if HISTORY == 2:
        ancestor = request * earlier + tl.load(parent_N + row)
        first = first_M3D + ancestor * (3 * WIDTH) + place
        first_score = tl.sum(query * tl.load(first + WIDTH, mask=inside, other=0.0).to(tl.float32), 1, keep_dims=True) / root
        largest = tl.maximum(largest, first_score)
    own_weight = tl.exp(own_score - largest)
    bos_weight = tl.exp(bos_score - largest)
    total = own_weight + bos_weight
    attended = bos_weight * tl.load(bos + 2 * WIDTH, mask=inside, other=0.0).to(tl.float32)
    if HISTORY == 2:
        first_weight = tl.exp(first_score - largest)
        total += first_weight
        attended += first_weight * tl.load(first + 2 * WIDTH, mask=inside, other=0.0).to(tl.float32)
    attended += own_weight * tl.load(own + 2 * WIDTH, mask=inside, other=0.0).to(tl.float32)
    tl.store(output_ND + row * WIDTH + place, (attended / total).to(tl.float16), mask=inside)


def beam_self_attention_1_program(node: Node) -> Program:
    """BeamSelfAttention1: projections FP16 [N, 3 D] of this step, [B, 3 D] of BOS, to FP16 [N, D]."""
    return _program(node, 1)


def beam_self_attention_2_program(node: Node) -> Program:
    """BeamSelfAttention2: the same with those of the step between, FP16 [M, 3 D], and a parent index INT64 [B, rows]."""
    expect(node, 3, "int64")
    return _program(node, 2)


def _program(node: Node, history: int) -> Program:
    for index in range(history + 1):
        expect(node, index, "float16")
        expect_size(node, index, node.width)
    heads, rows, width = int(node.attributes["heads"]), int(node.attributes["rows"]), node.width
    if width % (3 * heads):
        raise BuildError(f"{width} projections are not 3 x {heads} heads", where=node.operator, hint="correct the graph")
    head = width // 3 // heads
    tiles = {"HEADS_TILE": triton.next_power_of_2(heads), "HEAD_TILE": triton.next_power_of_2(head)}
    types = ("*fp16", "*fp16", "*fp16", "*i64", "*fp16", "i32", "i32", "fp32")
    constants = {"HISTORY": history, "HEADS": heads, "HEAD": head, **tiles}
    kernel = node.compile(Build(__name__, "beam_self_attention", types, constants, node.capability, WARPS))
    between: tuple[Argument, ...] = (Input(2), Input(3)) if history == 2 else (NO_ADDRESS, NO_ADDRESS)
    earlier = Int32(dim(2, 0) // dim(1, 0)) if history == 2 else Int32(0)
    arguments = (Input(0), Input(1), *between, Output(0), Int32(rows), earlier, Float32(math.sqrt(head)))
    launch = Launch(kernel, (node.rows, 1, 1), arguments)
    return node.program((Tensor("float16", (dim(0, 0), width // 3)),), (Variant(1, (launch,)),))


def beam_self_attention_1_case(requests: int, rows: int, heads: int, head: int) -> Case:
    """BeamSelfAttention1 of `requests` times `rows` beams."""
    width = 3 * heads * head
    inputs = (half(requests * rows, width), half(requests, width))
    return Case("BeamSelfAttention1", inputs, (requests * rows, heads * head), {"rows": rows, "heads": heads}, requests=requests)


def beam_self_attention_2_case(requests: int, rows: int, heads: int, head: int, earlier: int = 0) -> Case:
    """BeamSelfAttention2, with `earlier` beams in the step before (default: as many as now)."""
    earlier, width = earlier or rows, 3 * heads * head
    inputs = (half(requests * rows, width), half(requests, width), half(requests * earlier, width), indices(requests, rows, below=earlier))
    return Case("BeamSelfAttention2", inputs, (requests * rows, heads * head), {"rows": rows, "heads": heads}, requests=requests)


def _trials_1() -> Iterator[Trial]:
    for requests, rows, heads, head in ((1, 1, 1, 32), (3, 5, 3, 48), (2, 7, 14, 64)):
        yield Trial(beam_self_attention_1_case(requests, rows, heads, head))


def _trials_2() -> Iterator[Trial]:
    """Fewer or as many beams in the step before; each also with NaN in the last BOS."""
    for requests, rows, heads, head, earlier in ((1, 1, 1, 32, 1), (3, 5, 3, 48, 2), (2, 7, 14, 64, 7)):
        case = beam_self_attention_2_case(requests, rows, heads, head, earlier)
        yield Trial(case)
        qkv, bos, first, parent = case.tensors("cpu")
        bos[-1, -1] = float("nan")
        yield Trial(case, inputs=(qkv, bos, first, parent))


def _measured() -> Iterator[Measurement]:
    """Of the 1B size."""
    case = beam_self_attention_2_case(32, 512, heads=14, head=128)
    yield Measurement(case, "FP16", compiled_reference(case))


BEAM_SELF_ATTENTION_1_CASES = KernelCases(agreement="roundings", ragged=_trials_1)
BEAM_SELF_ATTENTION_2_CASES = KernelCases(agreement="roundings", ragged=_trials_2, measured=_measured)
