"""ContextAttentionFp8: near the attention in FP16, the same in ONNX; empty contexts, padding, faults, one token at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onerec_trt.core.difference import difference
from onerec_trt.operators import fp8
from onerec_trt.operators.context_attention import context_attention_reference
from onerec_trt.operators.context_attention_fp8 import LOG2_E, TOP, context_attention_fp8_reference
from onerec_trt.operators.context_codes import key_codes_reference, value_codes_reference, values_of_blocks
from onerec_trt.operators.context_norm import context_norm_reference

EPSILON = 1e-6


class Contexts:
    """Keys and values of random contexts, which are not the same, as codes and in FP16."""

    def __init__(self, half, lengths, groups, tokens, d_head):
        self.lengths, self.weight = torch.tensor(lengths), torch.ones(d_head).half()
        self.chunks = [half(len(lengths), tokens, groups * d_head) for _ in range(2)]
        self.scale = fp8.scale_of(torch.tensor([d_head**0.5]))  # no norm exceeds it

    @property
    def coded(self):
        """Inputs of ContextAttentionFp8 behind the query."""
        given = (self.weight, self.lengths, self.scale)
        (keys,) = key_codes_reference(self.chunks[0], *given, epsilon=EPSILON)
        (values,) = value_codes_reference(self.chunks[1], *given, epsilon=EPSILON)
        return keys, self.scale, values, self.scale, self.lengths

    @property
    def in_fp16(self):
        """Inputs of ContextAttention behind the query."""
        return *(context_norm_reference(each, self.weight, self.lengths, epsilon=EPSILON)[0] for each in self.chunks), self.lengths


@pytest.mark.parametrize("rows", [1, 37])
@pytest.mark.parametrize(("heads", "groups", "d_head", "tokens"), [(1, 1, 32, 1), (6, 2, 48, 20), (4, 4, 128, 150), (6, 1, 64, 5)])
def test_ragged_sizes(hold, half, rows, heads, groups, d_head, tokens):
    contexts = Contexts(half, [tokens, 0, (tokens + 1) // 2], groups, tokens, d_head)
    query = half(3 * rows, heads * d_head)
    for (attended,) in hold("ContextAttentionFp8", query, *contexts.coded, rows=rows):
        assert attended[:rows].any()
        assert not attended[rows : 2 * rows].any(), "an empty context gives zero"


@pytest.mark.parametrize("tokens", [1, 37, 512])
def test_differs_from_attention_in_fp16_by_its_codes(half, tokens):
    """Values and probabilities have a relative error of 2.6 % each, so half of its square twice; queries and keys give a little more."""
    contexts, query = Contexts(half, [tokens] * 2, 2, tokens, 128), half(2 * 64, 512)
    (attended,) = context_attention_fp8_reference(query, *contexts.coded, rows=64)
    (meant,) = context_attention_reference(query, *contexts.in_fp16, rows=64)
    assert 1e-4 < difference(attended.float().numpy(), meant.float().numpy()) < 1.5e-3


def test_grouped_heads_read_their_own_group(half):
    contexts, query = Contexts(half, [9], 2, 9, 32), half(3, 4 * 32)
    (together,) = context_attention_fp8_reference(query, *contexts.coded, rows=3)
    keys, scale, values, _, lengths = contexts.coded
    for group in range(2):
        own = slice(group * 64, (group + 1) * 64)
        one = (keys[:, group : group + 1], scale, values[:, group : group + 1], scale, lengths)
        assert torch.equal(context_attention_fp8_reference(query[:, own].contiguous(), *one, rows=3)[0], together[:, own])


def test_one_token_gives_its_value(half):
    contexts, query = Contexts(half, [1], 1, 3, 32), half(2, 32)
    (attended,) = context_attention_fp8_reference(query, *contexts.coded, rows=2)
    _, _, values, scale, _ = contexts.coded
    value = values.float()[0, 0, 0, :, 0] * scale
    assert torch.allclose(attended.float(), value.expand(2, -1), rtol=0.07, atol=1e-6), "a code of its probability, 1/16 of it at most"


def test_a_kernel_that_learns_the_largest_score_late_makes_the_same_codes(half):
    """Block after block, as a kernel attends: what it has is multiplied by a power of two whenever a score is larger."""
    contexts, query = Contexts(half, [500], 1, 500, 32), half(20, 32) * 3
    keys, scale, values, _, lengths = contexts.coded
    (meant,) = context_attention_fp8_reference(query, keys, scale, values, scale, lengths, rows=20)
    codes, query_scale = fp8.quantize_rows(query)
    top, total, attended = torch.full((20, 1), -1e30), torch.zeros(20, 1), torch.zeros(20, 32)
    ordered = values_of_blocks(values)[0, 0].unflatten(0, (-1, 128))
    for number, (key, value) in enumerate(zip(keys[0, 0].float(), ordered, strict=True)):
        score = codes.float() @ key.T * (query_scale * scale * (LOG2_E * 32**-0.5))
        score[:, max(500 - number * 128, 0) :] = -torch.inf
        above = torch.maximum(top, score.amax(1, keepdim=True).ceil())
        probability, shrink = (score - above + TOP).exp2(), (top - above).exp2()
        total = total * shrink + probability.sum(1, keepdim=True)
        attended = attended * shrink + fp8.to_e4m3(probability).float() @ value
        top = above
    assert difference((attended * scale / total).numpy(), meant.float().numpy()) < 1e-7


def test_sharp_scores_do_not_overflow(hold, half):
    contexts = Contexts(half, [7], 1, 7, 32)
    for (attended,) in hold("ContextAttentionFp8", half(3, 32) * 1000, *contexts.coded, rows=3):
        assert np.isfinite(attended).all()


def test_rows_of_zeros_take_the_mean(hold, half):
    contexts = Contexts(half, [7], 1, 7, 32)
    (attended,) = hold("ContextAttentionFp8", torch.zeros(2, 32).half(), *contexts.coded, rows=2).torch
    _, value, _ = contexts.in_fp16
    assert attended == pytest.approx(value.float().mean(2)[0].expand(2, -1).numpy(), abs=0.05)


def test_bad_request_leaves_its_neighbors_bit_identical(both, half):
    contexts, query = Contexts(half, [6, 6, 6], 2, 6, 32), half(3 * 4, 128)
    clean = both("ContextAttentionFp8", query, *contexts.coded, rows=4)
    contexts.chunks[0][1, 2, 3] = float("nan")
    poisoned = both("ContextAttentionFp8", query, *contexts.coded, rows=4)
    for (before,), (after,) in ((clean.torch, poisoned.torch), (clean.onnx, poisoned.onnx)):
        assert np.array_equal(np.delete(before, slice(4, 8), 0), np.delete(after, slice(4, 8), 0))
        assert np.isnan(after[4:8]).any()


def test_bad_row_leaves_other_rows_of_its_request_alone(apart, half):
    contexts, query = Contexts(half, [6], 2, 6, 32), half(5, 128)
    bad = query.clone()
    bad[2, 3] = float("nan")
    apart("ContextAttentionFp8", (query, *contexts.coded), (bad, *contexts.coded), 2, rows=5)
