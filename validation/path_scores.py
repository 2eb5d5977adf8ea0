"""Scores of given items: by the FP32 model, and by whatever scores them, each item once: what was scored before is looked up."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from ..models.beam_search import path_log_probabilities
from ..models.onerec import OneRec
from ..models.requests import Requests

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Score = Callable[[Ints, Ints], Floats]  # numbers of requests [r] and items [r, slots, 3] to log-probabilities [r, slots, 3]


@torch.no_grad()
def model_scores(model: OneRec, requests: Requests, sids_nW3: Ints, batch_size: int) -> Floats:
    """Log-probabilities FP32 [n, W, 3] of the tokens of items, by the FP32 model where it lies."""
    device, scores, first = model.token_embedding.weight.device, [], 0
    for batch in requests.batches(batch_size):
        paths_BW3 = torch.from_numpy(sids_nW3[first : first + len(batch.lengths_B3)])
        inputs = (x.to(device) for x in (batch.features_BSF, batch.lengths_B3, paths_BW3))
        scores.append(path_log_probabilities(model, *inputs).cpu().numpy())
        first += len(paths_BW3)
    return np.concatenate(scores)


def path_scores(sids_nM3: Ints, known_nK3: Ints, scoring_nK3: Floats, slots: int, score: Score) -> Floats:
    """Log-probabilities FP32 [n, M, 3] of the tokens of items.

    Args:
        sids_nM3: The items of each request. They may repeat.
        known_nK3: Items of each request that were scored before.
        scoring_nK3: Their log-probabilities.
        slots: Items of a request that are scored at once; the last ones of a request repeat to fill them.
        score: Scores items of some requests.
    """
    base = int(max(sids_nM3.max(), known_nK3.max())) + 1
    weights = np.array([base**2, base, 1], np.int64)
    wanted_nM, known_nK = sids_nM3 @ weights, known_nK3 @ weights
    tables = [dict(zip(keys, values, strict=True)) for keys, values in zip(known_nK.tolist(), scoring_nK3, strict=True)]
    missing = [sorted(set(wanted) - table.keys()) for wanted, table in zip(wanted_nM.tolist(), tables, strict=True)]
    for first in range(0, max(map(len, missing)), slots):
        rows = np.array([row for row, keys in enumerate(missing) if len(keys) > first], np.int64)
        keys_rs = np.stack([_filled(missing[row][first : first + slots], slots) for row in rows])
        items_rs3 = np.stack([keys_rs // base**2, keys_rs // base % base, keys_rs % base], -1)
        for row, keys, values in zip(rows, keys_rs.tolist(), score(rows, items_rs3), strict=True):
            tables[row].update(zip(keys, values, strict=True))
    return np.stack([[table[key] for key in keys] for keys, table in zip(wanted_nM.tolist(), tables, strict=True)]).astype(np.float32)


def _filled(keys: list[int], slots: int) -> Ints:
    return np.array(keys + keys[-1:] * (slots - len(keys)), np.int64)
