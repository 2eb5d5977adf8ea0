"""Experts in batched products give the output, the gradients and the counts of experts one by one."""

from __future__ import annotations

import torch
from onerec_trt.models.config import MoeConfig
from onerec_trt.models.experts_at_once import experts_at_once
from onerec_trt.models.onerec import MixtureOfExperts


def test_output_gradients_and_counts_are_those_of_experts_one_by_one() -> None:
    torch.manual_seed(0)
    moe = MixtureOfExperts(12, MoeConfig(experts=5, top_k=2, hidden=7, shared=1))
    x = torch.randn(3, 4, 12)
    results = []
    for at_once in (False, True):
        moe.zero_grad()
        if at_once:
            with experts_at_once(moe):
                output = moe(x)
        else:
            output = moe(x)
        output.square().sum().backward()
        gradients = [parameter.grad.clone() for parameter in moe.parameters() if parameter.grad is not None]
        assert moe.last_selected is not None
        results.append((output.detach(), gradients, moe.last_selected))
    (output, gradients, counts), (batched_output, batched_gradients, batched_counts) = results
    torch.testing.assert_close(batched_output, output, rtol=1e-5, atol=1e-6)
    assert len(batched_gradients) == len(gradients) == len(list(moe.parameters()))
    for actual, expected in zip(batched_gradients, gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(batched_counts, counts)


def test_the_usual_forward_pass_is_back_afterwards() -> None:
    moe = MixtureOfExperts(4, MoeConfig(experts=2, top_k=1, hidden=4, shared=0))
    with experts_at_once(moe):
        assert "forward" in vars(moe)
    assert "forward" not in vars(moe)
