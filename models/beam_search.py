"""Reference beam search and path scoring: plain PyTorch on whole prefixes, no cache, the tie rule explicit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..runtime.item_index import ItemIndex
from .config import LEVELS
from .onerec import OneRec
from .ordering import stable_topk


class Beams(NamedTuple):
    """The best items of each request, best first: semantic IDs int64 [B, W, 3], log-probabilities FP32 [B, W].

    `cutoffs_B3`: score FP32 of the last beam kept after each step.
    """

    sids_BW3: Tensor
    scores_BW: Tensor
    cutoffs_B3: Tensor


@torch.no_grad()
def beam_search(model: OneRec, features_BSF: Tensor, lengths_B3: Tensor, widths: Sequence[int], index: ItemIndex | None = None) -> Beams:
    """Decode three tokens, keeping `widths[t]` beams after step t.

    At step t at most (beams so far) * codebook candidates exist, so fewer than `widths[t]` beams may be
    kept. Equal scores: the smaller flat index (beam * codebook + token) first.

    With the index of a catalogue only beginnings of items are kept. Where there are fewer, the rest are -1 with the score -inf.
    """
    assert len(widths) == LEVELS
    context = model.context(features_BSF, lengths_B3)
    batch, codebook = features_BSF.shape[0], model.config.codebook
    prefixes = lengths_B3.new_zeros(batch, 1, 0)
    scores_BR = torch.zeros(batch, 1, device=features_BSF.device)
    cutoffs: list[Tensor] = []
    for width in widths:
        logits_BRV = model.decode(context, prefixes.clamp(min=0))[:, :, -1]
        total_BRV = logits_BRV.float().log_softmax(-1) + scores_BR[..., None]
        if index is not None:
            going_on = torch.from_numpy(index.continuations(prefixes.flatten(0, 1).cpu().numpy()))
            total_BRV = total_BRV.masked_fill(~going_on.view_as(total_BRV), -torch.inf)
        flat = total_BRV.flatten(1)
        scores_BR, flat_BW = stable_topk(flat, min(width, flat.shape[1]))
        cutoffs.append(scores_BR[:, -1])
        parents = prefixes.gather(1, (flat_BW // codebook)[..., None].expand(-1, -1, prefixes.shape[-1]))
        prefixes = torch.cat([parents, (flat_BW % codebook)[..., None]], -1)
        if index is not None:
            prefixes = torch.where(scores_BR.isneginf()[..., None], -1, prefixes)
    return Beams(prefixes, scores_BR, torch.stack(cutoffs, 1))


@torch.no_grad()
def path_log_probabilities(model: OneRec, features_BSF: Tensor, lengths_B3: Tensor, sids_BW3: Tensor) -> Tensor:
    """Log-probability of each token of each given path, FP32 [B, W, 3]: what the scoring graph computes."""
    logits_BWTV = model(features_BSF, lengths_B3, sids_BW3[..., : LEVELS - 1])
    chosen_BW3: Tensor = logits_BWTV.float().log_softmax(-1).gather(-1, sids_BW3[..., None]).squeeze(-1)
    return chosen_BW3
