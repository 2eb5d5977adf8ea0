"""Context{Key,Value}Codes: the RMSNorm of one chunk per head as E4M3 codes by one given scale, in blocks of tokens for FP8 attention.

A tensor core reads FP8 operands along the axis that it sums over: channels for scores, tokens for the values that are weighed. So values
are laid out with their tokens last, once per request, in the order of tokens in which a warp holds its probabilities.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from onnxscript import script
from torch import Tensor

from . import fp8
from .functions import NormInFp32, QuantizeByScale
from .operator import DETAIL, FP8_THRESHOLD, ONEREC, Operator, Spec, op
from .rms_norm import norm_in_fp32

TOKENS = 128  # of a block
# Of 16 scores in a row a lane of a warp holds 2q, 2q + 1, 8 + 2q and 9 + 2q (accumulator of wgmma); of 16 FP8 operands it must hold
# 4q to 4q + 3 (its fragment of A). So token 8b + 2q + j stands at place 4q + 2b + j, and probabilities change no lane. Source: PTX ISA,
# wgmma.mma_async, register fragments.
ORDER = (2, 4, 2)  # sizes of b, q and j; places have q, b and j


def key_codes_reference(chunk_BSX: Tensor, weight_d: Tensor, lengths_B: Tensor, scale: Tensor, *, epsilon: float) -> tuple[Tensor]:
    """Codes [B, G, T, 128, d] of FP16 [B, S, G * d] by one scale [1]; T blocks of tokens, zero from a request's length on."""
    return (fp8.quantize_tensor(_token_blocks(chunk_BSX, weight_d, lengths_B, epsilon), scale),)


def value_codes_reference(chunk_BSX: Tensor, weight_d: Tensor, lengths_B: Tensor, scale: Tensor, *, epsilon: float) -> tuple[Tensor]:
    """Codes [B, G, T, d, 128] likewise, their tokens last and in the tensor core's order."""
    blocks_BGTnd = _token_blocks(chunk_BSX, weight_d, lengths_B, epsilon)
    ordered_BGTnd = blocks_BGTnd[:, :, :, token_of_place()]
    return (fp8.quantize_tensor(ordered_BGTnd.transpose(3, 4), scale),)


def token_of_place() -> Tensor:
    """INT64 [128]: which token of a block stands at each place among its values."""
    token: Tensor = torch.arange(TOKENS).unflatten(0, (-1, *ORDER))
    return token.transpose(1, 2).flatten()


def keys_of_blocks(codes_BGTnd: Tensor) -> Tensor:
    """FP32 [B, G, T * 128, d] of key codes."""
    return codes_BGTnd.float().flatten(2, 3)


def values_of_blocks(codes_BGTdn: Tensor) -> Tensor:
    """FP32 [B, G, T * 128, d] of value codes, in the order of tokens."""
    ordered_BGTnd: Tensor = codes_BGTdn.float().transpose(3, 4)
    return ordered_BGTnd[:, :, :, token_of_place().argsort()].flatten(2, 3)


def _token_blocks(chunk_BSX: Tensor, weight_d: Tensor, lengths_B: Tensor, epsilon: float) -> Tensor:
    """FP32 norm [B, G, T, 128, d]."""
    tokens = chunk_BSX.shape[1]
    norm_BSGd = norm_in_fp32(chunk_BSX.unflatten(-1, (-1, weight_d.shape[0])), weight_d, epsilon)
    valid_BS = torch.arange(tokens, device=chunk_BSX.device) < lengths_B[:, None]
    norm_BGSd = torch.where(valid_BS[:, :, None, None], norm_BSGd, 0).transpose(1, 2)
    blocks_BGTnd: Tensor = F.pad(norm_BGSd, (0, 0, 0, -tokens % TOKENS)).unflatten(2, (-1, TOKENS))
    return blocks_BGTnd


@script(DETAIL, default_opset=op)
def MaskedHeads32(chunk, weight, lengths, epsilon: float):
    """FP32 norm [B, G, T * 128, d]: tokens are padded with zeros to whole blocks."""
    groups = op.Concat(op.Constant(value_ints=[0, 0, -1]), op.Shape(weight), axis=0)
    norm = NormInFp32(op.Reshape(chunk, groups), weight, epsilon=epsilon)
    tokens = op.Shape(chunk, start=1, end=2)
    position = op.Range(op.Constant(value_int=0), op.Squeeze(tokens), op.Constant(value_int=1))
    valid = op.Less(position, op.Unsqueeze(lengths, op.Constant(value_ints=[1])))
    masked = op.Where(op.Unsqueeze(valid, op.Constant(value_ints=[2, 3])), norm, op.Constant(value_float=0.0))
    padding = op.Mod(op.Neg(tokens), op.Constant(value_ints=[TOKENS]))
    padded = op.Pad(masked, op.Concat(op.Constant(value_ints=[0, 0, 0, 0, 0]), padding, op.Constant(value_ints=[0, 0]), axis=0))
    return op.Transpose(padded, perm=[0, 2, 1, 3])


@script(ONEREC, default_opset=op)
def ContextKeyCodes(chunk, weight, lengths, scale, epsilon: float):
    norm = MaskedHeads32(chunk, weight, lengths, epsilon=epsilon)
    shape = op.Concat(op.Constant(value_ints=[0, 0, -1, TOKENS]), op.Shape(weight), axis=0)
    return QuantizeByScale(op.Reshape(norm, shape), scale)


@script(ONEREC, default_opset=op)
def ContextValueCodes(chunk, weight, lengths, scale, epsilon: float):
    norm = MaskedHeads32(chunk, weight, lengths, epsilon=epsilon)
    width = op.Shape(weight)
    blocks = op.Reshape(norm, op.Concat(op.Constant(value_ints=[-1, 8, 2, 4, 2]), width, axis=0))
    ordered = op.Transpose(blocks, perm=[0, 5, 1, 3, 2, 4])
    shape = op.Concat(op.Shape(norm, end=2), op.Constant(value_ints=[-1]), width, op.Constant(value_ints=[TOKENS]), axis=0)
    return QuantizeByScale(op.Reshape(ordered, shape), scale)


def _key_specs(chunk: Tensor, weight: Tensor, lengths: Tensor, scale: Tensor, *, epsilon: float) -> tuple[Spec, ...]:
    batch, tokens, width = chunk.shape
    d_head = weight.shape[0]
    return (Spec(fp8.E4M3, (batch, width // d_head, (tokens + TOKENS - 1) // TOKENS, TOKENS, d_head)),)


def _value_specs(chunk: Tensor, weight: Tensor, lengths: Tensor, scale: Tensor, *, epsilon: float) -> tuple[Spec, ...]:
    (keys,) = _key_specs(chunk, weight, lengths, scale, epsilon=epsilon)
    batch, groups, blocks, tokens, d_head = keys.shape
    return (Spec(fp8.E4M3, (batch, groups, blocks, d_head, tokens)),)


context_key_codes = Operator(
    name="ContextKeyCodes",
    reference=key_codes_reference,
    function=ContextKeyCodes,
    helpers=(MaskedHeads32, NormInFp32, QuantizeByScale),
    outputs=_key_specs,
    threshold=FP8_THRESHOLD,
)
context_value_codes = Operator(
    name="ContextValueCodes",
    reference=value_codes_reference,
    function=ContextValueCodes,
    helpers=(MaskedHeads32, NormInFp32, QuantizeByScale),
    outputs=_value_specs,
    threshold=FP8_THRESHOLD,
)
