"""Which codes continue a beam: the reference in PyTorch for the three levels of an index, with the rules of each request.

runtime/item_index.py says what the arrays hold, runtime/item_rules.py what the rules are. A code is allowed where an item begins
with the beam and the code, where the category class of these items is allowed, and, for the last code, where not all of them are
excluded. A beam that is none (code -1) goes on nowhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..runtime.item_index import CODE_BITS, WORD

BEAMS, EXCLUDED, RESTRICTED = range(3)  # columns of a request's limits


def first_mask(first_classes_V: Tensor, limits_B3: Tensor, allowed_BC: Tensor, rows: int) -> Tensor:
    """Bool [B, R, V] of level 1."""
    classes_BV = first_classes_V.long().expand(len(limits_B3), -1)
    mask_BV = (classes_BV >= 0) & _allowed(classes_BV.clamp(min=0), limits_B3, allowed_BC)
    return mask_BV[:, None].expand(-1, rows, -1)


def second_mask(
    first_BR: Tensor, pair_bits_VN: Tensor, pair_ranks_VN: Tensor, pair_classes_P: Tensor, limits_B3: Tensor, allowed_BC: Tensor
) -> Tensor:
    """Bool [B, R, V] of level 2."""
    codebook = len(pair_bits_VN)
    row_BR = first_BR.clamp(min=0)
    bits_BRNW = _bits(pair_bits_VN[row_BR])
    rank_BRNW = pair_ranks_VN[row_BR].long()[..., None] + bits_BRNW.cumsum(-1) - bits_BRNW
    valid_BRV = bits_BRNW.flatten(2)[..., :codebook].bool() & (first_BR >= 0)[..., None]
    rank_BRV = rank_BRNW.flatten(2)[..., :codebook]
    classes_BRV = pair_classes_P.long()[torch.where(valid_BRV, rank_BRV, 0)]
    return valid_BRV & _allowed(classes_BRV, limits_B3, allowed_BC)


def third_mask(
    first_BR: Tensor,
    second_BR: Tensor,
    pair_bits_VN: Tensor,
    pair_ranks_VN: Tensor,
    pair_rows_P: Tensor,
    entries_S: Tensor,
    limits_B3: Tensor,
    allowed_BC: Tensor,
    excluded_BE: Tensor,
) -> Tensor:
    """Bool [B, R, V] of level 3."""
    codebook = len(pair_bits_VN)
    begin_BR, end_BR = entry_range(first_BR, second_BR, pair_bits_VN, pair_ranks_VN, pair_rows_P)
    longest = int((end_BR - begin_BR).max())
    entry_BRL = begin_BR[..., None] + torch.arange(longest, device=begin_BR.device)
    inside_BRL = entry_BRL < end_BR[..., None]
    word_BRL = entries_S.long()[torch.where(inside_BRL, entry_BRL, 0)]
    kept_BRL = inside_BRL & _allowed(word_BRL >> CODE_BITS, limits_B3, allowed_BC)
    counted_BE = torch.arange(excluded_BE.shape[1], device=excluded_BE.device) < limits_B3[:, EXCLUDED, None]
    for request, excluded_E in enumerate(excluded_BE):
        kept_BRL[request] &= ~torch.isin(entry_BRL[request], excluded_E[counted_BE[request]].long())
    code_BRL = word_BRL & ((1 << CODE_BITS) - 1)
    counts_BRV = torch.zeros(*first_BR.shape, codebook, dtype=torch.int64, device=first_BR.device)
    return counts_BRV.scatter_add_(2, code_BRL, kept_BRL.long()) > 0


def entry_range(
    first_BR: Tensor, second_BR: Tensor, pair_bits_VN: Tensor, pair_ranks_VN: Tensor, pair_rows_P: Tensor
) -> tuple[Tensor, Tensor]:
    """First entry of each beam of two codes and the one behind its last, INT64 [B, R]; equal where it has none."""
    row_BR, column_BR = first_BR.clamp(min=0), second_BR.clamp(min=0)
    bits_BRW = _bits(pair_bits_VN[row_BR, column_BR // WORD])
    lane_BR1 = (column_BR % WORD)[..., None]
    before_BR = (bits_BRW.cumsum(-1) - bits_BRW).gather(-1, lane_BR1)[..., 0]
    known_BR = bits_BRW.gather(-1, lane_BR1)[..., 0].bool() & (first_BR >= 0) & (second_BR >= 0)
    pair_BR = torch.where(known_BR, pair_ranks_VN[row_BR, column_BR // WORD].long() + before_BR, 0)
    begin_BR = torch.where(known_BR, pair_rows_P.long()[pair_BR], 0)
    return begin_BR, torch.where(known_BR, pair_rows_P.long()[pair_BR + 1], 0)


def _bits(words: Tensor) -> Tensor:
    """INT64 [..., 32], bit by bit, lowest first."""
    return (words.long()[..., None] >> torch.arange(WORD, device=words.device)) & 1


def _allowed(classes: Tensor, limits_B3: Tensor, allowed_BC: Tensor) -> Tensor:
    """Bool in the shape [B, ...] of the classes: allowed, or the request does not care."""
    shape = (-1, *([1] * (classes.dim() - 1)))
    request = torch.arange(len(limits_B3), device=classes.device).view(shape)
    return (allowed_BC[request, classes] != 0) | (limits_B3[:, RESTRICTED] == 0).view(shape)
