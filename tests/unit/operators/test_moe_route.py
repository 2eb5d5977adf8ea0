"""MoeRoute: selection with bias, ties to the lower expert, weights that sum to one, shared experts as further slots."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onerec_trt.operators.moe_route import compare_routing


@pytest.mark.parametrize("rows", [1, 2, 37, 130])
@pytest.mark.parametrize(("experts", "top_k", "shared", "width"), [(1, 1, 0, 32), (5, 2, 1, 96), (53, 3, 2, 161), (3, 3, 1, 17)])
def test_ragged_sizes(hold, half, rows, experts, top_k, shared, width):
    router = torch.randn(experts, width) * width**-0.5
    index, weight = hold("MoeRoute", half(rows, width), router, torch.randn(experts) * 0.1, top_k=top_k, shared=shared).torch
    assert index.shape == weight.shape == (rows, top_k + shared)
    assert weight[:, :top_k].sum(1) == pytest.approx(1.0, rel=1e-5)
    assert (weight[:, top_k:] == 1).all()
    assert (index[:, top_k:] == np.arange(experts, experts + shared)).all()


def test_exact_ties_go_to_the_lower_expert_in_both(both, half):
    router = torch.randn(1, 32).expand(8, -1).contiguous()
    for index, weight in both("MoeRoute", half(64, 32), router, torch.zeros(8), top_k=3, shared=0):
        assert (index == [0, 1, 2]).all()
        assert weight == pytest.approx(1 / 3)


def test_bias_selects_and_does_not_weigh(hold, half):
    x, router = half(16, 32), torch.randn(6, 32) * 0.1
    bias = torch.tensor([0.0, 0.0, 0.0, 0.0, 5.0, 9.0])
    score = (x.float() @ router.T).sigmoid().numpy()[:, [5, 4]]
    for index, weight in hold("MoeRoute", x, router, bias, top_k=2, shared=0):
        assert (index == [5, 4]).all()
        assert weight == pytest.approx(score / score.sum(1, keepdims=True), rel=1e-5)


def test_row_of_zeros_goes_to_the_first_experts(both):
    for index, _ in both("MoeRoute", torch.zeros(2, 32).half(), torch.randn(6, 32), torch.zeros(6), top_k=2, shared=1):
        assert (index == [0, 1, 6]).all()


@pytest.mark.parametrize("fault", [float("nan"), float("inf")])
def test_bad_token_still_gets_experts_that_exist(both, half, fault):
    x = half(5, 32)
    bad = x.clone()
    bad[2, 7] = fault
    router, bias = torch.randn(6, 32), torch.zeros(6)
    clean, poisoned = both("MoeRoute", x, router, bias, top_k=3, shared=1), both("MoeRoute", bad, router, bias, top_k=3, shared=1)
    for before, after in ((clean.torch, poisoned.torch), (clean.onnx, poisoned.onnx)):
        assert after[0].min() >= 0
        assert after[0].max() <= 6
        for first, second in zip(before, after, strict=True):
            assert np.array_equal(np.delete(first, 2, 0), np.delete(second, 2, 0))


class TestComparison:
    """Rows whose selection is a near-tie do not count; everything else counts in full."""

    attributes = {"top_k": 1, "shared": 0}  # noqa: RUF012 (read only)
    one = np.ones((1, 1), np.float32)

    def compare(self, actual, expected, margin):
        inputs = [np.ones((1, 1)), np.zeros((2, 1)), np.array([margin, 0.0])]
        return compare_routing([np.array([[actual]]), self.one], [np.array([[expected]]), self.one], inputs, self.attributes)

    def test_other_expert_on_a_near_tie_is_fine(self):
        assert self.compare(1, 0, margin=1e-6) == 0

    def test_other_expert_elsewhere_is_not(self):
        assert self.compare(1, 0, margin=1e-3) > 0.5

    @pytest.mark.parametrize("index", [-1, 2])
    @pytest.mark.parametrize("margin", [1e-6, 1e-3])
    def test_an_expert_that_does_not_exist_is_not(self, index, margin):
        """Not even the last one by its number from the end."""
        assert self.compare(index, 1, margin=margin) == float("inf")

    def test_same_expert_is_fine(self):
        assert self.compare(0, 0, margin=1e-3) == 0
