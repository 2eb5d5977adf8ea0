"""What outlives a call stays free of its callers' gradients and inference mode."""

from __future__ import annotations

import torch
from onerec_trt.runtime.autograd import without_autograd


def test_a_buffer_learns_nothing_of_gradients() -> None:
    buffer = torch.zeros(3)
    fill = without_autograd(buffer.copy_)
    for _ in range(3):
        fill(torch.ones(3, requires_grad=True) * 2)
    assert buffer.tolist() == [2, 2, 2]
    assert not buffer.requires_grad
    assert buffer.grad_fn is None


def test_a_buffer_made_in_inference_mode_may_be_filled_outside_it() -> None:
    with torch.inference_mode():
        buffer = without_autograd(torch.zeros)(3)
        without_autograd(buffer.copy_)(torch.ones(3))
    buffer.copy_(torch.full((3,), 2.0))
    assert buffer.tolist() == [2, 2, 2]
