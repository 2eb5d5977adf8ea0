"""The catalogue of a recipe: its index, and runners bound to it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ..core.graph_io import GraphIO
from ..models.catalogue import read_catalogue
from ..models.catalogue_index import index_in_memory
from ..models.category_classes import MAX_CLASSES
from ..runtime.item_index import ItemIndex, is_index


class Bindable(Protocol):
    """A runner that takes resident inputs."""

    @property
    def io(self) -> GraphIO: ...

    def stage_residents(self, arrays: Mapping[str, Any], /) -> Any: ...

    def bind_staged(self, staged: Any, /) -> None: ...


R = TypeVar("R", bound=Bindable)


def open_index(catalogue: Path, codebook: int, classes: int = MAX_CLASSES) -> ItemIndex:
    """The index of a catalogue, which is a Parquet file or an index.

    Raises:
        RequestError: The catalogue is malformed, or of another codebook.
        ArtifactError: The index is damaged.
    """
    if is_index(catalogue):
        return ItemIndex.load(catalogue)
    return index_in_memory(read_catalogue(catalogue, codebook), codebook, classes)


def bound(runner: R, index: ItemIndex | None) -> R:
    """The runner, with the index bound where its graph follows a catalogue.

    Raises:
        ArtifactError: The index does not fit the graph.
    """
    if runner.io.resident:
        assert index is not None, "a recipe whose beams follow a catalogue names one"
        runner.bind_staged(runner.stage_residents(index.resident(runner.io)))
    return runner
