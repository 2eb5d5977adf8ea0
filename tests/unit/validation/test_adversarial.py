"""The made-up inputs hold what they promise, and the reference answers them as the contract says."""

from __future__ import annotations

import torch
from onerec_trt.operators.beam_step import beam_groups, beam_step
from onerec_trt.operators.context_attention import context_attention
from onerec_trt.operators.context_norm import context_norm
from onerec_trt.operators.operator import Call, Operator
from onerec_trt.validation.adversarial import adversarial_calls
from torch import Tensor


def call(operator: Operator, *inputs: Tensor, **attributes: int | float) -> Call:
    return Call(operator, operator.name, inputs, attributes, operator.reference(*inputs, **attributes))


def by_label(*calls: Call) -> dict[str, Call]:
    return {each.call.label.partition(" with ")[2]: each.call for each in adversarial_calls(calls)}


def test_equal_candidates_come_in_the_order_of_their_numbers() -> None:
    recorded = call(beam_step, torch.randn(4, 8).half(), torch.randn(2, 2), **beam_groups(2, 8, 5))
    made = by_label(recorded)
    assert made["all scores equal"].outputs[2].tolist() == [[0, 1, 2, 3, 4]] * 2
    assert made["the best scores equal"].outputs[1].tolist() == [[0, 0, 0, 1, 1]] * 2
    assert made["the best scores equal"].outputs[2].tolist() == [[0, 3, 6, 0, 3]] * 2


def test_what_is_cut_off_holds_values_that_may_not_leak() -> None:
    chunk, weight, lengths = torch.randn(2, 5, 8).half(), torch.ones(4).half(), torch.tensor([5, 3])
    made = by_label(call(context_norm, chunk, weight, lengths, epsilon=1e-6))
    assert made.keys() == {"empty contexts", "one token", "the last token cut off", "full contexts"}
    assert not made["empty contexts"].outputs[0].any()
    cut = made["the last token cut off"]
    assert cut.inputs[0][0, 4].any()
    assert not cut.outputs[0][0, :, 4].any()
    assert made["full contexts"].outputs[0][1, :, 4].any()


def test_keys_behind_a_context_are_zero_as_the_contract_says() -> None:
    query, keys, lengths = torch.randn(4, 8).half(), torch.randn(2, 2, 5, 4).half(), torch.tensor([5, 3])
    made = by_label(call(context_attention, query, keys, keys, lengths, rows=2))
    assert not made["one token"].inputs[1][:, :, 1:].any()
    assert not made["empty contexts"].outputs[0].any()
    assert made["one token"].outputs[0].isfinite().all()


def test_operators_without_an_edge_are_left_alone() -> None:
    assert adversarial_calls([]) == []
