"""The made-up inputs hold what they promise, and the reference answers them as the contract says."""

from __future__ import annotations

import torch
from onerec_trt.operators.beam_self_attention import beam_self_attention_1, beam_self_attention_2
from onerec_trt.operators.beam_step import beam_groups, beam_step
from onerec_trt.operators.context_attention import context_attention
from onerec_trt.operators.context_attention_fp8 import context_attention_fp8
from onerec_trt.operators.context_codes import context_key_codes, context_value_codes, values_of_blocks
from onerec_trt.operators.context_features import context_features
from onerec_trt.operators.context_norm import context_norm
from onerec_trt.operators.moe_route import moe_route
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


def test_every_pathway_takes_all_tokens_once() -> None:
    features = torch.randn(2, 6, 4).half()
    features[1, 3:] = float("nan")
    made = by_label(call(context_features, features, torch.tensor([[1, 2, 3], [3, 0, 0]]), width=16))
    assert not made["empty contexts"].outputs[0].any()
    for pathway in range(3):
        alone = made[f"pathway {pathway} alone"]
        placed = alone.outputs[0].view(2, 6, 3, 16)
        assert torch.equal(placed[:, :, pathway, :4], alone.inputs[0])
        assert placed.count_nonzero() == alone.inputs[0].count_nonzero()
    assert made["a share of each pathway"].outputs[0].view(2, 6, 3, 16)[:, 2:4, 1, :4].all(), "also what was padding"


def test_keys_behind_a_context_are_zero_as_the_contract_says() -> None:
    query, keys, lengths = torch.randn(4, 8).half(), torch.randn(2, 2, 5, 4).half(), torch.tensor([5, 3])
    made = by_label(call(context_attention, query, keys, keys, lengths, rows=2))
    assert not made["one token"].inputs[1][:, :, 1:].any()
    assert not made["empty contexts"].outputs[0].any()
    assert made["one token"].outputs[0].isfinite().all()


def test_codes_behind_a_context_are_cut_off_in_their_order() -> None:
    chunk, weight, scale = torch.randn(2, 130, 8).half(), torch.ones(4).half(), torch.tensor([0.02])
    given, epsilon = (chunk, weight, torch.tensor([130, 3]), scale), 1e-6
    norms = [call(each, *given, epsilon=epsilon) for each in (context_key_codes, context_value_codes)]
    cut = [each.call for each in adversarial_calls(norms) if each.call.label.endswith("the last token cut off")]
    keys, values = (norm.outputs[0] for norm in norms)
    attention = call(context_attention_fp8, torch.randn(4, 8).half(), keys, scale, values, scale, given[2], rows=2)
    made = by_label(attention)["the last token cut off"]
    assert torch.equal(values_of_blocks(made.inputs[3]), values_of_blocks(cut[1].outputs[0]))
    assert not torch.equal(values_of_blocks(made.inputs[3]), values_of_blocks(values))
    assert torch.equal(made.inputs[1].float(), keys.float()), "keys behind a context are not read"


def test_a_row_without_probabilities_takes_no_place() -> None:
    made = by_label(call(beam_step, torch.randn(4, 8).half(), torch.randn(2, 2), **beam_groups(2, 8, 5)))
    for what in ("a row of NaN", "a row of -inf"):
        scores, parents, _ = made[what].outputs
        assert scores.isfinite().all()
        assert not parents[1].any()  # the other row of that request
    assert (made["half of the candidates at -inf"].outputs[2] >= 4).all()


def test_equal_experts_are_taken_in_order() -> None:
    x, router, bias = torch.randn(3, 8).half(), torch.randn(4, 8), torch.randn(4)
    made = by_label(call(moe_route, x, router, bias, top_k=2, shared=1))
    assert made["all experts equal"].outputs[0].tolist() == [[0, 1, 4]] * 3
    assert made["all experts but the first equal"].outputs[0].tolist() == [[1, 2, 4]] * 3
    assert made["tokens of zeros"].outputs[0].tolist() == [[0, 1, 4]] * 3
    assert torch.equal(made["tokens of zeros"].outputs[1], torch.tensor([[0.5, 0.5, 1.0]] * 3))


def test_one_position_takes_all_attention_or_an_equal_share() -> None:
    qkv, bos, first, parent = (
        torch.randn(4, 24).half(),
        torch.randn(2, 24).half(),
        torch.randn(6, 24).half(),
        torch.tensor([[2, 1], [0, 0]]),
    )
    made = by_label(call(beam_self_attention_2, qkv, bos, first, parent, rows=2, heads=2))
    value, bos_value, values = qkv[:, 16:].float(), bos[:, 16:].float(), first.view(2, 3, 24)[..., 16:].float()
    assert torch.allclose(made["its own position far ahead"].outputs[0].float(), value, atol=1e-2)
    assert not torch.allclose(made["its own position far behind"].outputs[0].float(), value, atol=1e-2)
    ancestor = values.gather(1, parent[..., None].expand(-1, -1, 8)).flatten(0, 1)
    mean = (value + bos_value.repeat_interleave(2, 0) + ancestor) / 3
    assert torch.allclose(made["equal scores"].outputs[0].float(), mean, atol=2e-3)
    assert made["the last row as every ancestor"].inputs[3].tolist() == [[2, 2], [2, 2]]
    one_before = by_label(call(beam_self_attention_1, qkv, bos, rows=2, heads=2))
    assert one_before.keys() == {"equal scores", "its own position far ahead", "its own position far behind"}


def test_operators_without_an_edge_are_left_alone() -> None:
    assert adversarial_calls([]) == []
