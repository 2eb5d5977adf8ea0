"""Gate 3, the items: how many of the semantic IDs found belong to an item of the catalogue."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from ..runtime.item_index import ItemIndex
from .gates import Gate, gate


class ItemValidity(BaseModel):
    """How many of the semantic IDs found belong to an item. `first`: one that does not."""

    found: int
    valid: int
    first: str = ""

    @property
    def share(self) -> float:
        return self.valid / self.found if self.found else 1.0


def item_validity(sids_nW3: NDArray[np.int64], index: ItemIndex) -> ItemValidity:
    """How many of the semantic IDs [n, W, 3] are those of items."""
    flat_N3 = sids_nW3.reshape(-1, sids_nW3.shape[-1])
    valid_N = index.entries_of(flat_N3) >= 0
    first = "" if valid_N.all() else f"no item has {flat_N3[int(np.argmin(valid_N))].tolist()}"
    return ItemValidity(found=len(flat_N3), valid=int(valid_N.sum()), first=first)


def validity_gate(recipe: str, validity: ItemValidity) -> Gate:
    """Beams that follow a catalogue find its items and nothing else."""
    detail = validity.first or f"{validity.found} items found"
    return gate("share of valid items", recipe, validity.share, ">=", 1.0, detail)
