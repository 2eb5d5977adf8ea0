"""Kernels of both attentions from their ahead-of-time cubins: against PyTorch, bit for bit over runs, and beside bad requests."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from onerec_trt.core.difference import difference
from onerec_trt.operators.kernels.beam_self_attention import beam_self_attention_1_case, beam_self_attention_2_case
from onerec_trt.operators.kernels.context_attention import context_attention_case, fused_case
from onerec_trt.operators.kernels.context_attention_fp8 import context_attention_fp8_case
from onerec_trt.operators.kernels.registry import program_of
from onerec_trt.operators.launch.case import Case
from onerec_trt.operators.launch.launch import bind, execute, new_outputs
from onerec_trt.operators.launch.program import Program
from onerec_trt.operators.launch.tiles import AttentionTile, Tiles
from onerec_trt.operators.registry import OPERATORS
from onerec_trt.operators.single_node import as_arrays
from onerec_trt.tools.tuning.parity import difference_of, this_capability
from torch import Tensor

from .fp8_bounds import fp8_attention_bounds

BEAMS = (1, 16, 130, 512)
CONTEXTS = (1, 37, 512, 777, 3000)
RUNS = 1000
REQUESTS = 5
MANY_ROWS = 1000  # of all heads and requests
# What flips of probabilities' codes may do to so many rows of attention in FP8. A context of one token weighs most: there a flip moves
# the whole row by up to an eighth. Two in 200 such rows move the scale of all by 1e-3, and their difference is 6e-5.
FP8_SCALE, FP8_DIFFERENCE = 2e-3, 1e-4
TILES = (
    AttentionTile(16, 64, 3, 4),
    AttentionTile(16, 64, 3, 4, part=128),
    AttentionTile(64, 128, 1, 4, part=256),
    AttentionTile(64, 128, 2, 4, descriptors=True),
    AttentionTile(128, 64, 2, 4),
    AttentionTile(128, 64, 2, 4, descriptors=True),
    AttentionTile(128, 128, 2, 8, descriptors=True),
    AttentionTile(128, 128, 2, 8),
    AttentionTile(128, 128, 2, 12, ctas=132),
    AttentionTile(128, 128, 2, 12, ctas=7),  # too few for tiles of one warpgroup
    AttentionTile(128, 64, 4, 12, ctas=132),
    AttentionTile(128, 32, 3, 12, ctas=5),
    AttentionTile(64, 128, 2, 8, ctas=7),
)


def ragged(case: Case, fill: float = 0.0) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs with contexts of all lengths from none to full: as the operator's reference wants them, and with `fill` in the padding."""
    inputs = case.tensors("cuda")
    query, key, value, lengths = inputs
    tokens = key.shape[2]
    lengths.copy_(torch.tensor([tokens, 0, tokens // 2, 1, max(0, tokens - 1)], device="cuda"))
    beyond = (torch.arange(tokens, device="cuda") >= lengths[:, None])[:, None, :, None]
    return tuple([query, key.masked_fill(beyond, v), value.masked_fill(beyond, v), lengths] for v in (0.0, fill))


def hold(case: Case, program: Program, inputs: list[Tensor], given: list[Tensor]) -> None:
    actual, expected, exact = (
        as_arrays([each.cpu() for each in found]) for found in (execute(program, given), case.reference(inputs), inputs)
    )
    assert OPERATORS[case.operator].compare(actual, expected, exact, case.attributes) <= case.threshold


@pytest.mark.parametrize("beam", BEAMS)
@pytest.mark.parametrize(("heads", "groups", "head"), [(14, 14, 128), (14, 2, 64), (6, 3, 48), (2, 1, 32)])
def test_context_attention_is_its_reference(beam, heads, groups, head):
    torch.manual_seed(1)
    program = program_of(context_attention_case(REQUESTS, beam, heads, groups, 2, head), this_capability())
    for tokens in CONTEXTS:
        case = context_attention_case(REQUESTS, beam, heads, groups, tokens, head)
        clean, given = ragged(case, float("nan"))
        hold(case, program, clean, given)
        hold(case, program, [clean[0], clean[1], clean[1], clean[3]], [given[0], given[1], given[1], given[3]])


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_every_way_to_cut_a_context_attention(tile):
    for head, tokens in ((128, 777), (64, 512), (48, 100)):
        case = context_attention_case(REQUESTS, 130, 4, 2, tokens, head)
        tiles = Tiles(tuple(case.entries(this_capability(), tile)))
        hold(case, program_of(case, this_capability(), tiles), *ragged(case, float("nan")))


@pytest.mark.parametrize("tile", [AttentionTile(16, 64, 3, 4), *(tile for tile in TILES if tile.ctas or tile.part)], ids=str)
@pytest.mark.parametrize(("shared", "codes"), [(True, False), (False, True), (True, True)])
def test_fused_context_attentions_are_their_references(tile, shared, codes):
    for head, tokens, beam in ((128, 777, 130), (64, 512, 64), (128, 37, 1)):
        part = context_attention_case(REQUESTS, beam, 4, 2, tokens, head)
        case = fused_case(part, shared, codes)
        tiles = Tiles(tuple(case.entries(this_capability(), tile)))
        scale = [torch.tensor([0.004], device="cuda")] if codes else []
        clean, given = ([q, *([k] if shared else [k, v]), n, *scale] for q, k, v, n in ragged(part, float("nan")))
        hold(case, program_of(case, this_capability(), tiles), clean, given)


FP8_TILES = (
    AttentionTile(16, 64, 3, 4),
    AttentionTile(64, 128, 2, 4),
    AttentionTile(128, 64, 2, 8),
    AttentionTile(128, 128, 4, 12, ctas=132),
    AttentionTile(128, 128, 4, 12, ctas=7),  # too few for tiles of one warpgroup
    AttentionTile(128, 64, 6, 12, ctas=5),
    AttentionTile(64, 128, 4, 8, ctas=7),
)


def cut_short(case: Case) -> tuple[list[Tensor], list[Tensor]]:
    """Codes with contexts of all lengths from none to full, and with NaN in the keys behind them."""
    inputs = case.tensors("cuda")
    query, keys, key_scale, values, value_scale, lengths = inputs
    tokens = case.size[3]
    lengths.copy_(torch.tensor([tokens, 0, tokens // 2, 1, max(0, tokens - 1)], device="cuda"))
    token = torch.arange(keys.shape[2] * keys.shape[3], device="cuda").view(1, 1, -1, keys.shape[3], 1)
    bad = keys.float().masked_fill(token >= lengths.view(-1, 1, 1, 1, 1), float("nan")).to(keys.dtype)
    return inputs, [query, bad, key_scale, values, value_scale, lengths]


def hold_fp8(case: Case, program: Program, inputs: list[Tensor], given: list[Tensor]) -> None:
    """Every value is one that scores within what a tensor core loses of them explain; of many rows, all together are not off either."""
    (expected,), (actual,) = case.reference(inputs), execute(program, given)
    low, high = fp8_attention_bounds(inputs, case.attributes["rows"])
    assert ((low <= actual) & (actual <= high)).all()
    if actual.numel() >= MANY_ROWS * case.size[-1]:
        exact, found = expected.double().flatten(), actual.double().flatten()
        assert abs(float(found @ exact / (exact @ exact)) - 1) <= FP8_SCALE
        assert difference(found.cpu().numpy(), exact.cpu().numpy()) <= FP8_DIFFERENCE


@pytest.mark.parametrize("beam", BEAMS)
@pytest.mark.parametrize(("heads", "groups", "head"), [(11, 11, 128), (14, 2, 64), (6, 3, 48), (2, 1, 32)])
def test_fp8_attention_is_its_reference(beam, heads, groups, head):
    torch.manual_seed(1)
    program = program_of(context_attention_fp8_case(REQUESTS, beam, heads, groups, 2, head), this_capability())
    for tokens in CONTEXTS:
        case = context_attention_fp8_case(REQUESTS, beam, heads, groups, tokens, head)
        hold_fp8(case, program, *cut_short(case))


@pytest.mark.parametrize("tile", FP8_TILES, ids=str)
def test_every_way_to_cut_an_fp8_attention(tile):
    for head, tokens in ((128, 777), (64, 512), (48, 100)):
        case = context_attention_fp8_case(REQUESTS, 130, 4, 2, tokens, head)
        tiles = Tiles(tuple(case.entries(this_capability(), tile)))
        hold_fp8(case, program_of(case, this_capability(), tiles), *cut_short(case))


@pytest.mark.parametrize("make", [beam_self_attention_1_case, beam_self_attention_2_case])
@pytest.mark.parametrize(("beam", "heads", "head"), [(1, 14, 128), (16, 23, 128), (130, 10, 64), (512, 14, 128)])
def test_beam_self_attention_is_its_reference(make, beam, heads, head):
    case = make(REQUESTS, beam, heads, head)
    difference_of(case, program_of(case, this_capability()))


CASES: tuple[Callable[[], Case], ...] = (
    lambda: context_attention_case(32, 512, 14, 14, 777, 128),
    lambda: context_attention_case(32, 1, 14, 2, 3000, 128),
    lambda: fused_case(context_attention_case(32, 512, 11, 11, 777, 128), shared=True, codes=True),
    lambda: context_attention_fp8_case(32, 512, 11, 11, 777, 128),
    lambda: beam_self_attention_2_case(32, 512, 14, 128),
)


@pytest.mark.parametrize("make", CASES)
def test_same_input_same_bits(make):
    case = make()
    program, inputs = program_of(case, this_capability()), case.tensors("cuda")
    (expected,) = execute(program, inputs)
    outputs = new_outputs(program, inputs)
    run = bind(program, inputs, outputs)
    for _ in range(RUNS):
        outputs[0].view(torch.uint8).fill_(0x55)
        run()
        assert torch.equal(outputs[0].view(torch.uint8), expected.view(torch.uint8))


@pytest.mark.parametrize("make", CASES)
def test_a_bad_request_stays_alone(make):
    case = make()
    program, inputs = program_of(case, this_capability()), case.tensors("cuda")
    requests, bad = case.requests, 7
    poisoned = [each.clone() for each in inputs]
    for each in poisoned:
        if each.is_floating_point() and each.dim() > 1:  # a static scale is no request's
            each.unflatten(0, (requests, -1))[bad] = float("nan")
    (clean,), (dirty,) = execute(program, inputs), execute(program, poisoned)
    others = torch.arange(requests, device="cuda") != bad
    bits = [each.view(torch.uint8).unflatten(0, (requests, -1))[others] for each in (clean, dirty)]
    assert torch.equal(*bits)
    assert dirty.float().unflatten(0, (requests, -1))[bad].isnan().all()
