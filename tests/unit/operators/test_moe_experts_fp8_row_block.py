"""MoeExpertsFp8RowBlock: per-token inputs, per-channel weights, hidden activations by 128 channels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onerec_trt.operators import fp8

NAME = "MoeExpertsFp8RowBlock"
SIZES = [(1, 32, 17, 1, 1), (2, 96, 160, 5, 2), (37, 161, 48, 4, 4), (130, 64, 256, 6, 3)]  # rows, D, H, experts, top_k


def inputs_of(experts, routed, x=None):
    gate_up, gate_up_scale = fp8.quantize_rows(torch.cat([experts.gate, experts.up], 1).flatten(0, 1))
    down, down_scale = fp8.quantize_rows(experts.down.flatten(0, 1))
    codes, scale = fp8.quantize_rows(routed.x.float() if x is None else x)
    return (codes, scale, gate_up, gate_up_scale[:, 0], down, down_scale[:, 0], *routed[1:])


@pytest.mark.parametrize(("rows", "width", "hidden", "count", "top_k"), SIZES)
def test_ragged_sizes(hold, make_experts, make_routing, rows, width, hidden, count, top_k):
    experts, routed = make_experts(count, width, hidden), make_routing(rows, width, count, top_k)
    (result,) = hold(NAME, *inputs_of(experts, routed), experts=count, promotion=0).onnx
    assert (result != routed.residual.numpy()).all(1).any()


def test_is_close_to_exact_experts(hold, make_experts, make_routing):
    """As MoeExpertsFp8Row: each E4M3 rounding costs about 0.026, six of them 0.065."""
    experts, routed = make_experts(4, 128, 160), make_routing(37, 128, 4, 2)
    (result,) = hold(NAME, *inputs_of(experts, routed), experts=4, promotion=0).onnx
    exact = experts.exact(*routed).numpy()
    error = np.linalg.norm(result - exact) / np.linalg.norm(exact - routed.residual.numpy())
    assert 0.03 < error < 0.08


def test_a_loud_block_costs_the_others_nothing(hold, make_experts, make_routing):
    """Hidden channels from 128 on are a million times louder and reach nobody: one scale per row would leave the others no code."""
    experts, routed = make_experts(2, 32, 256), make_routing(16, 32, 2, 1)
    routed.residual.zero_()
    experts.up[:, :128] *= 1e-3
    experts.down[:, :, 128:] = 0
    (expected,) = hold(NAME, *inputs_of(experts, routed), experts=2, promotion=0).onnx
    experts.up[:, 128:] *= 1e3
    (loud,) = hold(NAME, *inputs_of(experts, routed), experts=2, promotion=0).onnx
    assert np.linalg.norm(loud.astype(np.float32) - expected) < 0.01 * np.linalg.norm(expected)


def test_row_of_zeros_returns_its_residual(hold, make_experts, make_routing):
    routed = make_routing(3, 32, 4, 2)
    routed.x[1] = 0
    for (result,) in hold(NAME, *inputs_of(make_experts(4, 32, 16), routed), experts=4, promotion=0):
        assert (result[1] == routed.residual.numpy()[1]).all()
