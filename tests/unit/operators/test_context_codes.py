"""Context{Key,Value}Codes: the quantized norm per head in blocks of tokens; values with their tokens last, padding zero."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onerec_trt.operators import fp8
from onerec_trt.operators.context_codes import TOKENS, key_codes_reference, keys_of_blocks, value_codes_reference, values_of_blocks
from onerec_trt.operators.rms_norm import norm_in_fp32

EPSILON, SCALE = 1e-6, torch.tensor([0.02])
NAMES = ("ContextKeyCodes", "ContextValueCodes")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("tokens", "groups", "d_head"), [(1, 1, 32), (20, 2, 16), (130, 3, 48)])
def test_ragged_sizes(hold, half, name, tokens, groups, d_head):
    lengths = torch.tensor([tokens, 0, (tokens + 1) // 2])
    (codes,) = hold(name, half(3, tokens, groups * d_head), torch.rand(d_head).half(), lengths, SCALE, epsilon=EPSILON).torch
    assert codes.shape[:3] == (3, groups, -(-tokens // TOKENS))
    assert codes[0].any()
    assert not codes[1].any()


def test_blocks_hold_every_token_in_its_order(half):
    chunk, weight, lengths = half(2, 130, 2 * 16), torch.rand(16).half(), torch.tensor([130, 7])
    (keys,) = key_codes_reference(chunk, weight, lengths, SCALE, epsilon=EPSILON)
    (values,) = value_codes_reference(chunk, weight, lengths, SCALE, epsilon=EPSILON)
    meant = fp8.quantize_tensor(norm_in_fp32(chunk.unflatten(-1, (2, 16)), weight, EPSILON).transpose(1, 2), SCALE).float()
    for found in (keys_of_blocks(keys), values_of_blocks(values)):
        assert torch.equal(found[0, :, :130], meant[0])
        assert torch.equal(found[1, :, :7], meant[1, :, :7])
        assert not found[0, :, 130:].any()
        assert not found[1, :, 7:].any()


def test_values_stand_where_a_warp_holds_their_probabilities(half):
    """The 16 places of the tensor core's operand, in tokens: those of the accumulator's registers, lane by lane."""
    chunk, weight = half(1, 16, 16), torch.ones(16).half()
    (values,) = value_codes_reference(chunk, weight, torch.tensor([16]), SCALE, epsilon=EPSILON)
    (keys,) = key_codes_reference(chunk, weight, torch.tensor([16]), SCALE, epsilon=EPSILON)
    tokens = [0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15]
    assert torch.equal(values.float()[0, 0, 0, :, :16], keys.float()[0, 0, 0, tokens].T)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("padding", [float("nan"), float("inf"), 7.0])
def test_padding_changes_nothing(hold, half, name, padding):
    chunk, weight, lengths = half(2, 9, 32), torch.rand(16).half(), torch.tensor([4, 0])
    padded = chunk.clone()
    padded[0, 4:] = padding
    padded[1] = padding
    clean, dirty = (hold(name, each, weight, lengths, SCALE, epsilon=EPSILON) for each in (chunk, padded))
    for before, after in zip((*clean.torch, *clean.onnx), (*dirty.torch, *dirty.onnx), strict=True):
        assert np.array_equal(before, after)


@pytest.mark.parametrize("name", NAMES)
def test_fault_stays_in_its_request(apart, half, name):
    chunk, weight, lengths = half(3, 9, 32), torch.rand(16).half(), torch.tensor([9, 9, 3])
    bad = chunk.clone()
    bad[1, 2, 5] = float("nan")
    apart(name, (chunk, weight, lengths, SCALE), (bad, weight, lengths, SCALE), 1, epsilon=EPSILON)
