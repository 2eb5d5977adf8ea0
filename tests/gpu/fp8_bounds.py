"""Between what a result of ContextAttentionFp8 may lie, value by value: a tensor core loses bits of scores, and probabilities flip codes.

In a context of few tokens a single flip moves a whole row by a step of its code, which no mean over values allows for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from onerec_trt.operators import fp8
from onerec_trt.operators.context_attention import rows_of_groups, rows_of_requests, valid_tokens
from onerec_trt.operators.context_attention_fp8 import LOG2_E, TOP
from onerec_trt.operators.context_codes import keys_of_blocks, values_of_blocks
from torch import Tensor

# Of the sum of all magnitudes. The core keeps 13 bits behind the leading one of a sum and cuts off each of 32 products there
# (docs/kernels/context-attention-fp8.md): for products of normal numbers that is at most about 2^-12 of their magnitudes.
LOST = 2.0**-11
LEAST = 2.0**-9  # E4M3's smallest value: where the largest score lies beside an integer, what is below it may go either way
FP16_STEP = 2.0**-10


def fp8_attention_bounds(inputs: Sequence[Tensor], rows: int) -> tuple[Tensor, Tensor]:
    """Lowest and highest values, FP32 [B * rows, D]. Inputs as those of the operator, with keys that are not NaN."""
    query, key_codes, key_scale, value_codes, value_scale, lengths = inputs
    codes, query_scale = fp8.quantize_rows(rows_of_groups(query, rows, key_codes.shape[1], key_codes.shape[-1]))
    keys, values = keys_of_blocks(key_codes), values_of_blocks(value_codes)
    factor = query_scale * key_scale * (LOG2_E * keys.shape[-1] ** -0.5)
    valid = valid_tokens(lengths, keys.shape[2])
    score = (codes.float() @ keys.transpose(2, 3) * factor).masked_fill(~valid, -torch.inf)
    lost = codes.float().abs() @ keys.abs().transpose(2, 3) * factor * LOST
    top = score.amax(-1, keepdim=True).ceil() - TOP
    fewer, more = (torch.where(valid, fp8.to_e4m3((score + move - top).exp2()).float(), 0) for move in (-lost, lost))
    weight = value_scale / torch.where(valid, (score - top).exp2(), 0).sum(-1, keepdim=True)
    middle = (fewer + more) / 2 @ values * weight
    # The second product loses bits, too, and the sum of probabilities moves by what scores lose.
    apart = ((more - fewer) / 2 + more * LOST + LEAST * valid) @ values.abs() * weight
    apart = apart + middle.abs() * (lost.amax(-1, keepdim=True) + FP16_STEP) + FP16_STEP * LEAST
    some = (lengths > 0)[:, None, None, None]
    low, high = (rows_of_requests(torch.where(some, each, 0), rows) for each in (middle - apart, middle + apart))
    return low, high
