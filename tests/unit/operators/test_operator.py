"""Calling operators: the reference runs, calls are recorded with their place, and nothing is recorded outside."""

from __future__ import annotations

import pytest
import torch
from onerec_trt.operators.linear import linear, linear_add
from onerec_trt.operators.operator import largest_difference, recorded_calls, scope


def inputs():
    return torch.randn(3, 4).half(), torch.randn(5, 4).half()


def test_calls_are_recorded_in_order_with_labels_inputs_and_outputs():
    x, weight = inputs()
    with recorded_calls() as calls, scope("step0"):
        with scope("first"):
            (product,) = linear(x, weight)
        linear_add(x, weight, product)
    assert [(call.operator.name, call.label) for call in calls] == [("Linear", "step0.first"), ("LinearAdd", "step0")]
    assert calls[0].inputs == (x, weight)
    assert calls[0].outputs[0] is product
    assert torch.equal(calls[0].operator.reference(*calls[0].inputs)[0], product)


def test_nothing_is_recorded_outside_the_block_or_after_a_failure():
    with pytest.raises(RuntimeError), recorded_calls() as calls, scope("failing"):
        linear(torch.zeros(1, 2).half(), torch.zeros(1, 3).half())
    with recorded_calls() as later:
        linear(*inputs())
    assert calls == []
    assert [call.label for call in later] == [""]


def test_inner_recordings_do_not_leak_into_outer_ones():
    with recorded_calls() as outer:
        with recorded_calls() as inner:
            linear(*inputs())
        linear(*inputs())
    assert (len(outer), len(inner)) == (1, 1)


def test_the_worst_output_counts():
    one, two = torch.ones(2).numpy(), 2 * torch.ones(2).numpy()
    assert largest_difference([one, one], [one, one], [], {}) == 0
    assert largest_difference([one, two], [one, one], [], {}) == largest_difference([two], [one], [], {}) > 0


def test_missing_output_is_no_match():
    with pytest.raises(ValueError, match="zip"):
        largest_difference([], [torch.ones(2).numpy()], [], {})
