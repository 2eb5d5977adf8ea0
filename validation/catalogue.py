"""The catalogue of a recipe in validation: its index, runners bound to it, and how many of the items found belong to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from ..core.graph_io import GraphIO
from ..core.recipe import Recipe
from ..models.catalogue import read_catalogue
from ..models.catalogue_index import index_in_memory
from ..runtime.item_index import ItemIndex, is_index
from .gates import Gate, gate


class Bindable(Protocol):
    """A runner that takes resident inputs."""

    @property
    def io(self) -> GraphIO: ...

    def stage_residents(self, arrays: Mapping[str, Any], /) -> Any: ...

    def bind_staged(self, staged: Any, /) -> None: ...


R = TypeVar("R", bound=Bindable)


class ItemValidity(BaseModel):
    """How many of the semantic IDs found belong to an item. `first`: one that does not."""

    found: int
    valid: int
    first: str = ""

    @property
    def share(self) -> float:
        return self.valid / self.found if self.found else 1.0


def recipe_index(recipe: Recipe, codebook: int) -> ItemIndex | None:
    """The index of the recipe's catalogue, which is a Parquet file or an index; None without a catalogue.

    Raises:
        RequestError: The catalogue is malformed, or of another codebook.
        ArtifactError: The index is damaged.
    """
    if recipe.catalogue is None:
        return None
    if is_index(recipe.catalogue):
        return ItemIndex.load(recipe.catalogue)
    return index_in_memory(read_catalogue(recipe.catalogue, codebook), codebook, recipe.export.category_classes)


def bound(runner: R, index: ItemIndex | None) -> R:
    """The runner, with the index bound where its graph follows a catalogue.

    Raises:
        ArtifactError: The index does not fit the graph.
    """
    if runner.io.resident:
        assert index is not None, "a recipe whose beams follow a catalogue names one"
        runner.bind_staged(runner.stage_residents(index.resident(runner.io)))
    return runner


def item_validity(sids_nW3: NDArray[np.int64], index: ItemIndex) -> ItemValidity:
    """How many of the semantic IDs [n, W, 3] are those of items."""
    flat_N3 = sids_nW3.reshape(-1, sids_nW3.shape[-1])
    valid_N = index.entries_of(flat_N3) >= 0
    first = "" if valid_N.all() else f"no item has {flat_N3[int(np.argmin(valid_N))].tolist()}"
    return ItemValidity(found=len(flat_N3), valid=int(valid_N.sum()), first=first)


def validity_gates(recipe: Recipe, validity: ItemValidity | None) -> list[Gate]:
    """Beams that follow a catalogue find its items and nothing else."""
    if recipe.export.items == "open" or validity is None:
        return []
    detail = validity.first or f"{validity.found} items found"
    return [gate("share of valid items", recipe.name, validity.share, ">=", 1.0, detail)]
