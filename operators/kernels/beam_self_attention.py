"""BeamSelfAttention{1,2} on the GPU: one CTA for each row, all heads at once; every projection is read once, in FP32 until the end."""

from __future__ import annotations

import math
from collections.abc import Iterator

import triton
import triton.language as tl

from ...core.errors import BuildError
from ..launch.case import Case, KernelCases, Measurement, Trial, compiled_reference, half, indices
from ..launch.compile import Build
from ..launch.node import NO_ADDRESS, Node, dependent, expect, expect_size
from ..launch.program import Argument, Float32, Input, Int32, Launch, Output, Program, Tensor, Variant, dim
from .dependent import await_previous

WARPS = 4  # of 16 heads of 128 channels each thread keeps 16 values of a projection


@triton.jit
def beam_self_attention(
    qkv_N3D, bos_B3D, first_M3D, parent_N, output_ND, rows, earlier, root,
    HISTORY: tl.constexpr, HEADS: tl.constexpr, HEAD: tl.constexpr, HEADS_TILE: tl.constexpr, HEAD_TILE: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """`rows` of a request now, `earlier` ones of the step before, which the parent index counts; `root` is that of HEAD."""
    if DEPENDENT:
        await_previous()
    WIDTH: tl.constexpr = HEADS * HEAD
    row = tl.program_id(0).to(tl.int64)
    request = row // rows
    place, inside = head_tile(HEADS, HEAD, HEADS_TILE, HEAD_TILE)
    attended, total = weighted_values(qkv_N3D, bos_B3D, first_M3D, parent_N, row, request, earlier, root, place, inside, HISTORY, WIDTH)
    tl.store(output_ND + row * WIDTH + place, (attended / total).to(tl.float16), mask=inside)


@triton.jit
def head_tile(HEADS: tl.constexpr, HEAD: tl.constexpr, HEADS_TILE: tl.constexpr, HEAD_TILE: tl.constexpr):
    """Where the channels of all heads stand in a row, and which places of the tile [HEADS_TILE, HEAD_TILE] hold one."""
    head = tl.arange(0, HEADS_TILE)[:, None]
    channel = tl.arange(0, HEAD_TILE)[None, :]
    inside = (head < HEADS) & (channel < HEAD)
    return head * HEAD + channel, inside


@triton.jit
def weighted_values(
    qkv_N3D, bos_B3D, first_M3D, parent_N, row, request, earlier, root, place, inside, HISTORY: tl.constexpr, WIDTH: tl.constexpr
):
    """A row's values [HEADS_TILE, HEAD_TILE], each weighted by the exponential of its score, and the sum of the weights [HEADS_TILE, 1]."""
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
    return attended, total


def beam_self_attention_1_program(node: Node) -> Program:
    """BeamSelfAttention1: projections FP16 [N, 3 D] of this step, [B, 3 D] of BOS, to FP16 [N, D]."""
    return _program(node, 1)


def beam_self_attention_2_program(node: Node) -> Program:
    """BeamSelfAttention2: the same with those of the step between, FP16 [M, 3 D], and a parent index INT64 [B, rows]."""
    expect(node, 3, "int64")
    return _program(node, 2)


def _program(node: Node, history: int) -> Program:
    constants = attention_constants(node, history)
    types = ("*fp16", "*fp16", "*fp16", "*i64", "*fp16", "i32", "i32", "fp32")
    kernel = node.compile(dependent(Build(__name__, "beam_self_attention", types, constants, node.capability, WARPS)))
    launch = Launch(kernel, (node.rows, 1, 1), attention_arguments(node, history, Output(0)))
    return node.program((Tensor("float16", (dim(0, 0), node.width // 3)),), (Variant(1, (launch,)),))


def attention_constants(node: Node, history: int) -> dict[str, int]:
    """What a kernel over these projections is compiled for, once its inputs are checked."""
    for index in range(history + 1):
        expect(node, index, "float16")
        expect_size(node, index, node.width)
    heads, width = int(node.attributes["heads"]), node.width
    if width % (3 * heads):
        raise BuildError(f"{width} projections are not 3 x {heads} heads", where=node.operator, hint="correct the graph")
    head = width // 3 // heads
    tile = {"HEADS_TILE": triton.next_power_of_2(heads), "HEAD_TILE": triton.next_power_of_2(head)}
    return {"HISTORY": history, "HEADS": heads, "HEAD": head, **tile}


def attention_arguments(node: Node, history: int, *results: Argument) -> tuple[Argument, ...]:
    """Arguments of such a kernel; `results` stand between the projections and the numbers."""
    between: tuple[Argument, ...] = (Input(2), Input(3)) if history == 2 else (NO_ADDRESS, NO_ADDRESS)
    earlier = Int32(dim(2, 0) // dim(1, 0)) if history == 2 else Int32(0)
    root = Float32(math.sqrt(node.width // 3 // int(node.attributes["heads"])))
    return (Input(0), Input(1), *between, *results, Int32(int(node.attributes["rows"])), earlier, root)


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
