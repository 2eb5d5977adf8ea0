"""The grouped products of PyTorch beside the experts: of the rows and weights of every expert."""

from __future__ import annotations

import torch
from onerec_trt.operators.kernels.moe_library import grouped_products, sorted_rows
from onerec_trt.operators.kernels.moe_scheme import SCHEMES


def test_rows_stand_by_expert_and_in_token_order():
    rows, ends = sorted_rows(torch.tensor([[2, 0], [0, 2], [0, 3]]), 5)
    assert rows.tolist() == [0, 1, 2, 0, 1, 2]
    assert ends.tolist() == [3, 3, 5, 6, 6]
    assert ends.dtype is torch.int32


def test_operands_of_both_products(monkeypatch):
    """FP8 exists on GPUs alone: what it is given."""
    seen = []
    monkeypatch.setattr(torch, "_scaled_grouped_mm", lambda *tensors, **options: seen.append((tensors, options)))
    x, index = torch.arange(6 * 32).view(6, 32).to(torch.float8_e4m3fn), torch.tensor([[1], [0], [1], [0], [1], [1]])
    gate_up, down = torch.ones(2 * 2 * 48, 32).to(x.dtype), torch.ones(2 * 32, 48).to(x.dtype)
    scales = (torch.ones(6, 1), torch.ones(len(gate_up)), torch.ones(len(down)))
    inputs = [x, scales[0], gate_up, scales[1], down, scales[2], index, torch.ones(6, 1), torch.zeros(6, 32).half()]
    grouped_products(SCHEMES["MoeExpertsFp8Row"], 2).prepare(inputs)()
    (up, options), (back, _) = seen
    assert torch.equal(up[0].float(), x.float()[[1, 3, 0, 2, 4, 5]])
    assert [tuple(each.shape) for each in (*up, *back)] == [(6, 32), (2, 32, 96), (6,), (2, 96), (6, 48), (2, 48, 32), (6,), (2, 32)]
    assert options["offs"].tolist() == [2, 6]
    assert up[1].stride()[1] == 1


def test_products_in_bf16():
    torch.manual_seed(0)
    x, gate_up, down = torch.randn(6, 32).half(), torch.randn(2 * 2 * 48, 32).half(), torch.randn(2 * 32, 48).half()
    index = torch.tensor([[1], [0], [1], [0], [1], [1]])
    result = grouped_products(SCHEMES["MoeExperts"], 2).prepare([x, gate_up, down, index, torch.ones(6, 1), x])()
    assert result.shape == (6, 32)
    assert result.isfinite().all()
