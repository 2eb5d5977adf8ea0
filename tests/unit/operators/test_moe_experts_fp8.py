"""MoeExpertsFp8{Tensor,Row}: scaled products inside experts; expected values from a slow loop over the dequantized weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onerec_trt.operators import fp8

SIZES = [(1, 32, 17, 1, 1), (2, 96, 160, 5, 2), (37, 161, 48, 4, 4), (130, 64, 33, 6, 3)]  # rows, D, H, experts, top_k
NAMES = ["MoeExpertsFp8Tensor", "MoeExpertsFp8Row"]


def packed(experts):
    """Codes and scales of gate_up [E * 2H, D] and down [E * D, H], one scale per output channel."""
    gate_up, gate_up_scale = fp8.quantize_rows(torch.cat([experts.gate, experts.up], 1).flatten(0, 1))
    down, down_scale = fp8.quantize_rows(experts.down.flatten(0, 1))
    return gate_up, gate_up_scale[:, 0], down, down_scale[:, 0]


def inputs_of(name, experts, routed, x=None):
    x = routed.x.float() if x is None else x
    weights = packed(experts)
    if name == "MoeExpertsFp8Row":
        return (*fp8.quantize_rows(x), *weights, *routed[1:])
    calibration = routed.x.float()
    scale = (calibration.abs().max() / 448).reshape(1)
    hidden = torch.nn.functional.silu(calibration @ experts.gate.mT) * (calibration @ experts.up.mT)
    hidden_scale = hidden.abs().amax((1, 2)) / 448
    return (fp8.quantize_tensor(x, scale), scale, *weights, hidden_scale, *routed[1:])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("rows", "width", "hidden", "count", "top_k"), SIZES)
def test_ragged_sizes(hold, make_experts, make_routing, name, rows, width, hidden, count, top_k):
    experts, routed = make_experts(count, width, hidden), make_routing(rows, width, count, top_k)
    (result,) = hold(name, *inputs_of(name, experts, routed), experts=count, promotion=0).onnx
    assert (result != routed.residual.numpy()).all(1).any()


@pytest.mark.parametrize("name", NAMES)
def test_is_close_to_exact_experts(hold, make_experts, make_routing, name):
    """Each E4M3 rounding costs about 0.026: two in gate, two in up, two more in down make 0.065 in all."""
    experts, routed = make_experts(4, 128, 160), make_routing(37, 128, 4, 2)
    (result,) = hold(name, *inputs_of(name, experts, routed), experts=4, promotion=0).onnx
    exact = experts.exact(*routed).numpy()
    error = np.linalg.norm(result - exact) / np.linalg.norm(exact - routed.residual.numpy())
    assert 0.03 < error < 0.08


def test_each_expert_has_its_own_hidden_scale(hold, make_experts, make_routing):
    experts, routed = make_experts(2, 32, 16), make_routing(64, 32, 2, 1)
    inputs = list(inputs_of("MoeExpertsFp8Tensor", experts, routed))
    (fine,) = hold("MoeExpertsFp8Tensor", *inputs, experts=2, promotion=0).onnx
    inputs[6] = torch.tensor([inputs[6][0], 1e-6])
    for (result,) in hold("MoeExpertsFp8Tensor", *inputs, experts=2, promotion=0):
        first = (routed.index == 0)[:, 0].numpy()
        assert result[first] == pytest.approx(fine[first], rel=2e-3, abs=1e-3)
        assert result[~first] == pytest.approx(routed.residual.numpy()[~first], abs=1e-2), "saturated to almost nothing"


@pytest.mark.parametrize("name", NAMES)
def test_infinite_expert_harms_only_those_who_select_it(both, make_experts, make_routing, name):
    routed = make_routing(8, 32, 3, 1)
    inputs = list(inputs_of(name, make_experts(3, 32, 16), routed))
    inputs[3] = inputs[3].view(3, -1).clone()
    inputs[3][2] = float("inf")
    inputs[3] = inputs[3].flatten()
    chosen = (routed.index == 2).any(1).numpy()
    assert 0 < chosen.sum() < 8
    for (result,) in both(name, *inputs, experts=3, promotion=0):
        assert np.isfinite(result[~chosen]).all()
        assert not np.isfinite(result[chosen]).all()


@pytest.mark.parametrize("name", NAMES)
def test_row_of_zeros_returns_its_residual(hold, make_experts, make_routing, name):
    routed = make_routing(3, 32, 4, 2)
    routed.x[1] = 0
    for (result,) in hold(name, *inputs_of(name, make_experts(4, 32, 16), routed), experts=4, promotion=0):
        assert np.array_equal(result[1], routed.residual[1].numpy())


@pytest.mark.parametrize("name", NAMES)
def test_fault_stays_in_its_row(apart, make_experts, make_routing, name):
    experts, routed = make_experts(4, 32, 16), make_routing(6, 32, 4, 2)
    bad = routed.x.float()
    bad[2, 7] = float("nan")
    apart(name, inputs_of(name, experts, routed), inputs_of(name, experts, routed, bad), 2, experts=4, promotion=0)
