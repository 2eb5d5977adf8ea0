"""Batches for training, gathered on a device from a behavior log: features are looked up there, so that only item numbers lie in memory.

Letters in names as in synthetic.py; B users of a batch, S longest context of the world.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .requests import Batch
from .synthetic import BehaviorLog, Catalogue


class CompactLog(NamedTuple):
    """A behavior log in the smallest types that hold it: items int32 [n, T], lengths int16 [n, 3], profiles FP16 [n, P, F]."""

    items_nT: NDArray[np.int32]
    lengths_n3: NDArray[np.int16]
    profile_nPF: NDArray[np.float16]


def compact(log: BehaviorLog) -> CompactLog:
    """The log in small types; nothing is lost, since profiles are exact in FP16."""
    return CompactLog(log.items_nT.astype(np.int32), log.lengths_n3.astype(np.int16), log.profile_nPF.astype(np.float16))


class LogBatches:
    """A log on a device, and any batch of it as `requests_of` and `Requests.batch` would give it.

    Args:
        catalogue: The items.
        logs: Parts of the log, one after the other.
        device: Where it lies.
        dtype: Of the features. Default: FP32, which holds them exactly.
    """

    def __init__(self, catalogue: Catalogue, logs: Sequence[CompactLog], device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        world = catalogue.world
        self.longest = world.static[1] + world.short_term[1] + world.long_term[1]
        self._items_nT, self._lengths_n3, self._profile_nPF = (
            torch.cat([torch.from_numpy(getattr(log, name)) for log in logs]).to(device) for name in CompactLog._fields
        )
        self._features_IF = torch.from_numpy(catalogue.features_IF).to(device, dtype)
        self._sids_I3 = torch.from_numpy(catalogue.sids_I3).to(device)

    def __len__(self) -> int:
        return len(self._items_nT)

    def batch(self, users_B: Tensor) -> Batch:
        """The contexts of these users, padded with zeros to the longest context of the world."""
        items_BT, lengths_B3, profile_BPF = self._items_nT[users_B], self._lengths_n3[users_B].long(), self._profile_nPF[users_B]
        position_S = torch.arange(self.longest, device=users_B.device)
        static_B1, short_B1, long_B1 = lengths_B3.split(1, 1)
        behavior_BS = position_S - static_B1  # place among the behavior tokens, the short-term ones first
        target = items_BT.shape[1] - 1
        step_BS = torch.where(behavior_BS < short_B1, target - short_B1 + behavior_BS, target - short_B1 - long_B1 + behavior_BS - short_B1)
        features_BSF = self._features_IF[items_BT.gather(1, step_BS.clamp(0, target)).long()]
        shown = min(profile_BPF.shape[1], self.longest)
        is_static_BS1 = (behavior_BS < 0)[:, :shown, None]
        features_BSF[:, :shown] = torch.where(is_static_BS1, profile_BPF[:, :shown].to(features_BSF.dtype), features_BSF[:, :shown])
        features_BSF.masked_fill_((position_S >= lengths_B3.sum(1, keepdim=True))[..., None], 0)
        return Batch(features_BSF, lengths_B3, self._sids_I3[items_BT[:, -1].long()])
