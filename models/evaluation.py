"""Hit rates of ranked items, and the popularity baseline a model has to beat."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

_Ints = NDArray[np.int64]


def hits(sids_BW3: _Ints, targets_B3: _Ints, k: int) -> NDArray[np.bool_]:
    """Whether the target is among the first k items of each request, bool [B]. Fewer than k items count as they are."""
    first_Bk3 = sids_BW3[:, :k]
    return np.asarray(target_places(first_Bk3, targets_B3) < first_Bk3.shape[1])


def target_places(sids_BW3: _Ints, targets_B3: _Ints) -> _Ints:
    """Where the target stands among the items of each request, int64 [B], from 0 on; W where it is not among them."""
    assert sids_BW3.shape[0] == targets_B3.shape[0]
    same_BW = (sids_BW3 == targets_B3[:, None]).all(-1)
    return np.asarray(np.where(same_BW.any(1), same_BW.argmax(1), same_BW.shape[1]), np.int64)


def popularity_baseline(targets_n3: _Ints, k: int) -> _Ints:
    """The k most frequent items, most frequent first, ties to the smaller semantic ID: int64 [k, 3] or fewer."""
    counts = Counter(map(tuple, targets_n3.tolist()))
    best = sorted(counts, key=lambda sid: (-counts[sid], sid))[:k]
    return np.array(best, np.int64).reshape(-1, targets_n3.shape[1])


def popularity_hits(train_targets_n3: _Ints, targets_B3: _Ints, k: int) -> NDArray[np.bool_]:
    """Hits [B] of a recommender that gives every request the k most frequent items of the training targets."""
    best = popularity_baseline(train_targets_n3, k)
    return hits(np.broadcast_to(best, (len(targets_B3), *best.shape)), targets_B3, k)
