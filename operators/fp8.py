"""The reference casts to FP8 in PyTorch: per tensor, per row, per block. Contract: docs/numerics.md.

Every quantized value in this project is made by these functions, or a test compares it with them: codes are
saturate(round-to-nearest-even(x / s)) straight from FP32, with s = max(amax, 1e-12) / 448.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.precision import AMAX_FLOOR, BLOCK, E4M3_MAX

E4M3 = torch.float8_e4m3fn


def scale_of(amax: Tensor) -> Tensor:
    """FP32 scale that maps `amax` to the largest E4M3 value, the same on every device."""
    bounded = amax.float().clamp(min=AMAX_FLOOR)
    # By a tensor: on a GPU, PyTorch multiplies by the reciprocal of a number (its BinaryDivTrueKernel.cu), and where that rounds
    # otherwise, FP16 values that lie in the middle of two codes go the other way.
    return bounded / bounded.new_full((), E4M3_MAX)


def to_e4m3(scaled: Tensor) -> Tensor:
    """Round FP32 to E4M3, saturating; torch's own cast gives NaN beyond 464, so clamp first. NaN stays NaN."""
    return scaled.clamp(-E4M3_MAX, E4M3_MAX).to(E4M3)


def quantize_tensor(x: Tensor, scale: Tensor) -> Tensor:
    """E4M3 codes of x for one given scale (or any scale that broadcasts)."""
    return to_e4m3(x.float() / scale)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """E4M3 codes and FP32 scales [..., 1], one per row of the last axis."""
    scale = scale_of(x.float().abs().amax(-1, keepdim=True))
    return quantize_tensor(x, scale), scale


def quantize_row_blocks(x: Tensor) -> tuple[Tensor, Tensor]:
    """E4M3 codes [..., K'] and FP32 scales [..., K' / 128]: one per row and 128 channels; K' is K zero-padded."""
    blocks = pad_to_block(x.float()).unflatten(-1, (-1, BLOCK))
    scale = scale_of(blocks.abs().amax(-1))
    return quantize_tensor(blocks, scale[..., None]).flatten(-2), scale


def dequantize_row_blocks(codes: Tensor, scale: Tensor) -> Tensor:
    """FP32 values [..., K'] of codes and scales made by `quantize_row_blocks`."""
    values: Tensor = codes.float().unflatten(-1, (-1, BLOCK)) * scale[..., None]
    return values.flatten(-2)


def weight_block_amax(weight_NK: Tensor) -> Tensor:
    """AbsMax [N' / 128, K' / 128] of the 128 x 128 blocks of a weight, zero-padded to whole blocks."""
    padded = pad_to_block(pad_to_block(weight_NK.float()).T).T
    blocks: Tensor = padded.abs().unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK))
    return blocks.amax((1, 3))


def expand_block_scale(scale: Tensor, rows: int) -> Tensor:
    """Scales [N' / 128, K' / 128] repeated along N to [rows, K' / 128], as blocked DequantizeLinear wants them."""
    return scale.repeat_interleave(BLOCK, 0)[:rows]


def quantize_weight_blocks(weight_NK: Tensor, scale: Tensor) -> Tensor:
    """E4M3 codes [N, K'] of a weight for block scales [N' / 128, K' / 128]; K' is K zero-padded to whole blocks."""
    blocks = pad_to_block(weight_NK.float()).unflatten(-1, (-1, BLOCK))
    return quantize_tensor(blocks, expand_block_scale(scale, len(weight_NK))[..., None]).flatten(-2)


def pad_to_block(x: Tensor) -> Tensor:
    """Zero-pad the last axis to a multiple of 128."""
    return F.pad(x, (0, -x.shape[-1] % BLOCK))
