"""MoeExpertsFp8Block: 128 x 128 weight blocks, 1 x 128 activation blocks, widths that are no multiple of 128."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from onerec_trt.core.precision import BLOCK
from onerec_trt.operators import fp8

NAME = "MoeExpertsFp8Block"
SIZES = [(1, 128, 128, 1, 1), (2, 96, 160, 3, 2), (37, 161, 48, 4, 4), (130, 64, 257, 3, 1)]  # rows, D, H, experts, top_k


def quantized(weight):
    """Codes [N, K'] and scales [N, K' / 128] of one weight."""
    scale = fp8.scale_of(fp8.weight_block_amax(weight))
    return fp8.quantize_weight_blocks(weight, scale), fp8.expand_block_scale(scale, len(weight))


def padded(codes, scale):
    """Rows up to whole blocks: zero codes, scales of one."""
    missing = -len(codes) % BLOCK
    raw = F.pad(codes.view(torch.uint8), (0, 0, 0, missing)).view(fp8.E4M3)
    return raw, F.pad(scale, (0, 0, 0, missing), value=1.0)


def packed(experts):
    """Gate and up padded to whole blocks of hidden channels each, so that down's blocks line up with theirs."""
    gate_up = [padded(*quantized(weight)) for pair in zip(experts.gate, experts.up, strict=True) for weight in pair]
    down = [quantized(weight) for weight in experts.down]
    return *(torch.cat(part) for part in zip(*gate_up, strict=True)), *(torch.cat(part) for part in zip(*down, strict=True))


def inputs_of(experts, routed, x=None):
    return (*fp8.quantize_row_blocks(routed.x if x is None else x), *packed(experts), *routed[1:])


@pytest.mark.parametrize(("rows", "width", "hidden", "count", "top_k"), SIZES)
def test_ragged_sizes(hold, make_experts, make_routing, rows, width, hidden, count, top_k):
    experts, routed = make_experts(count, width, hidden), make_routing(rows, width, count, top_k)
    (result,) = hold(NAME, *inputs_of(experts, routed), experts=count, promotion=0).onnx
    assert (result != routed.residual.numpy()).all(1).any()


@pytest.mark.parametrize("hidden", [128, 160])
def test_is_close_to_exact_experts(hold, make_experts, make_routing, hidden):
    """Each E4M3 rounding costs about 0.026: two in gate, two in up, two more in down make 0.065 in all."""
    experts, routed = make_experts(4, 160, hidden), make_routing(37, 160, 4, 2)
    (result,) = hold(NAME, *inputs_of(experts, routed), experts=4, promotion=0).onnx
    exact = experts.exact(*routed).numpy()
    error = np.linalg.norm(result - exact) / np.linalg.norm(exact - routed.residual.numpy())
    assert 0.03 < error < 0.08


def test_loud_block_does_not_cost_the_others_their_precision(hold, make_experts, make_routing):
    """What blocks are for: one scale per 128 channels keeps quiet channels exact beside loud ones."""
    experts, routed = make_experts(2, 256, 128), make_routing(16, 256, 2, 1)
    routed.x[:, :128] *= 1e-3
    experts.gate[..., 128:] = experts.up[..., 128:] = 0  # only the quiet half is read
    experts.gate[..., :128] *= 1e3
    experts.up[..., :128] *= 1e3
    (result,) = hold(NAME, *inputs_of(experts, routed), experts=2, promotion=0).onnx
    exact = experts.exact(*routed).numpy()
    assert np.linalg.norm(result - exact) / np.linalg.norm(exact - routed.residual.numpy()) < 0.09


def test_infinite_expert_harms_only_those_who_select_it(both, make_experts, make_routing):
    routed = make_routing(8, 32, 3, 1)
    inputs = list(inputs_of(make_experts(3, 32, 16), routed))
    inputs[3] = inputs[3].clone()
    inputs[3][2 * 2 * BLOCK :] = float("inf")  # the scales of the third expert
    chosen = (routed.index == 2).any(1).numpy()
    assert 0 < chosen.sum() < 8
    for (result,) in both(NAME, *inputs, experts=3, promotion=0):
        assert np.isfinite(result[~chosen]).all()
        assert not np.isfinite(result[chosen]).all()


def test_row_of_zeros_returns_its_residual(hold, make_experts, make_routing):
    routed = make_routing(3, 32, 4, 2)
    routed.x[1] = 0
    for (result,) in hold(NAME, *inputs_of(make_experts(4, 32, 16), routed), experts=4, promotion=0):
        assert np.array_equal(result[1], routed.residual[1].numpy())


def test_fault_stays_in_its_row(apart, make_experts, make_routing):
    experts, routed = make_experts(4, 161, 48), make_routing(6, 161, 4, 2)
    bad = routed.x.clone()
    bad[2, 7] = float("nan")
    apart(NAME, inputs_of(experts, routed), inputs_of(experts, routed, bad), 2, experts=4, promotion=0)
