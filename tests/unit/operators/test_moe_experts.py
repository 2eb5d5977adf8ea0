"""MoeExperts: torch against ONNX and against a slow loop; unselected infinities, faults, order of summation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

SIZES = [(1, 32, 17, 1, 1), (2, 96, 160, 5, 2), (37, 161, 48, 4, 4), (130, 64, 33, 6, 3)]  # rows, D, H, experts, top_k


def packed(experts):
    """gate_up [E * 2H, D] and down [E * D, H] in FP16."""
    return torch.cat([experts.gate, experts.up], 1).flatten(0, 1).half(), experts.down.flatten(0, 1).half()


@pytest.mark.parametrize(("rows", "width", "hidden", "count", "top_k"), SIZES)
def test_ragged_sizes(hold, make_experts, make_routing, rows, width, hidden, count, top_k):
    experts, routed = make_experts(count, width, hidden), make_routing(rows, width, count, top_k)
    (result,) = hold("MoeExperts", routed.x, *packed(experts), *routed[1:], experts=count).onnx
    assert result == pytest.approx(experts.exact(*routed).numpy(), rel=5e-3, abs=1e-2)


def test_infinite_expert_harms_only_those_who_select_it(both, make_experts, make_routing):
    """0 * infinity would give every token NaN."""
    experts, routed = make_experts(3, 32, 16), make_routing(8, 32, 3, 1)
    experts.gate[2] = experts.up[2] = float("inf")
    chosen = (routed.index == 2).any(1).numpy()
    assert chosen.any()
    assert not chosen.all()
    for (result,) in both("MoeExperts", routed.x, *packed(experts), *routed[1:], experts=3):
        assert np.isfinite(result[~chosen]).all()
        assert not np.isfinite(result[chosen]).any()


def test_expert_without_tokens_is_no_trouble(hold, make_experts, make_routing):
    routed = make_routing(4, 32, 3, 2)
    assert 4 not in routed.index
    hold("MoeExperts", routed.x, *packed(make_experts(5, 32, 16)), *routed[1:], experts=5)


def test_order_of_the_slots_does_not_matter(both, make_experts, make_routing):
    """Experts are summed in expert order, so the same selection gives the same bits."""
    routed, weights = make_routing(16, 32, 5, 3), packed(make_experts(5, 32, 16))
    swapped = (routed.index.flip(1), routed.weight.flip(1), routed.residual)
    first = both("MoeExperts", routed.x, *weights, *routed[1:], experts=5)
    second = both("MoeExperts", routed.x, *weights, *swapped, experts=5)
    assert np.array_equal(first.torch[0], second.torch[0])
    assert np.array_equal(first.onnx[0], second.onnx[0])


def test_row_of_zeros_returns_its_residual(hold, make_experts, make_routing):
    routed = make_routing(3, 32, 4, 2)
    routed.x[1] = 0
    for (result,) in hold("MoeExperts", routed.x, *packed(make_experts(4, 32, 16)), *routed[1:], experts=4):
        assert np.array_equal(result[1], routed.residual[1].numpy())


def test_fault_stays_in_its_row(apart, make_experts, make_routing):
    weights, routed = packed(make_experts(4, 32, 16)), make_routing(6, 32, 4, 2)
    bad = routed.x.clone()
    bad[2, 7] = float("nan")
    apart("MoeExperts", (routed.x, *weights, *routed[1:]), (bad, *weights, *routed[1:]), 2, experts=4)
