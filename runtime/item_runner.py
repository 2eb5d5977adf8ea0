"""A graph that follows a catalogue, as a server uses it: rules in, items out, and the catalogue swapped while requests run.

A request sees one catalogue from its rules to its items. A catalogue that does not load leaves the old one in place.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..core.errors import RequestError
from ..core.graph_io import GraphIO, Role
from .item_index import ItemIndex
from .item_rules import OPEN, FoundItems, ItemRules, RuleEncoder, allowed_items_of_each


class Submitted(Protocol):
    """A batch under way."""

    def result(self) -> dict[str, Any]: ...


class ResidentRunner(Protocol):
    """What runs the graph: `TensorRtRunner` or `OnnxRuntimeRunner`."""

    @property
    def io(self) -> GraphIO: ...

    def stage_residents(self, arrays: Mapping[str, Any], /) -> Any: ...

    def bind_staged(self, staged: Any, /) -> None: ...

    def submit(self, inputs: Mapping[str, Any], /) -> Submitted: ...


@dataclass(frozen=True, eq=False)
class ItemBatch:
    """What a batch found, best first.

    Attributes:
        catalogue: Digest of the catalogue that served it.
        sids_BW3: Semantic IDs, int64; -1 where a request found fewer than W.
        scores_BW: Log-probabilities in nat, FP32; -inf there.
        items: For each request the item ids of every place.
        refused: What was wrong with the rules of a request, by its place, where others were to be answered all the same.
    """

    catalogue: str
    sids_BW3: NDArray[np.int64]
    scores_BW: NDArray[np.float32]
    items: tuple[FoundItems, ...]
    refused: Mapping[int, RequestError]


class PendingItems:
    """A batch that was submitted."""

    def __init__(self, submitted: Submitted, encoder: RuleEncoder, rules: Sequence[ItemRules], refused: Mapping[int, RequestError]) -> None:
        self._submitted, self._index, self._io, self._refused = submitted, encoder.index, encoder.io, refused
        self._rules = [OPEN if place in refused else each for place, each in enumerate(rules)]

    def result(self) -> ItemBatch:
        """Waits for the outputs; gives them with the items of the catalogue that the batch was submitted to."""
        outputs = self._submitted.result()
        sids_BW3 = _on_host(outputs[self._io.name(Role.FOUND_ITEMS)]).astype(np.int64, copy=False)
        scores_BW = _on_host(outputs[self._io.name(Role.ITEM_SCORES)]).astype(np.float32, copy=False)
        entries_BW = self._index.entries_of(sids_BW3)
        items = allowed_items_of_each(self._index, list(entries_BW), self._rules)
        return ItemBatch(self._index.digest, sids_BW3, scores_BW, items, self._refused)


class ItemRunner:
    """Runs batches against a catalogue that can be swapped. Safe to call from several threads.

    Args:
        runner: Runs the graph; nobody else may bind its resident inputs.
        index: The first catalogue.

    Raises:
        ArtifactError: The graph takes no catalogue, or not this one.
    """

    def __init__(self, runner: ResidentRunner, index: ItemIndex) -> None:
        self._runner, self.io = runner, runner.io
        self._swapping, self._submitting = threading.Lock(), threading.Lock()
        self._encoder: RuleEncoder
        self._previous: ItemIndex | None = None
        self._put(index)

    @property
    def catalogue(self) -> str:
        """Digest of the catalogue that the next batch will see."""
        return self._encoder.index.digest

    def load(self, path: Path) -> str:
        """Swap to the catalogue of an index file; gives its digest.

        Raises:
            ArtifactError: The file is damaged, truncated, or no index, or the graph does not take it. The old catalogue serves on.
        """
        self.swap(index := ItemIndex.load(path))
        return index.digest

    def swap(self, index: ItemIndex) -> None:
        """Let batches submitted from now on see this catalogue; those under way end with theirs.

        Raises:
            ArtifactError: The graph does not take it. The old catalogue serves on.
        """
        with self._swapping:
            before = self._encoder.index
            self._put(index)
            self._previous = before

    def rollback(self) -> str:
        """Swap back to the catalogue before the last swap; gives its digest.

        Raises:
            RequestError: There is none.
        """
        with self._swapping:
            if self._previous is None:
                raise RequestError("there is no catalogue to go back to", where=self.catalogue, hint="load one")
            previous = self._previous
            self._put(previous)
            self._previous = None
            return previous.digest

    def submit(self, inputs: Mapping[str, Any], rules: Sequence[ItemRules] | None = None, *, each: bool = False) -> PendingItems:
        """Submit a batch.

        Args:
            inputs: The graph's other inputs by name.
            rules: One for each request. Default: none.
            each: Answer the others all the same where a rule is impossible, and tell its error in `ItemBatch.refused`. Default: refuse
                the batch.

        Raises:
            RequestError: An input or a rule is impossible, or their numbers differ.
            GpuError: The GPU's memory is exhausted.
        """
        requests = len(inputs[self.io.name(Role.PATHWAY_LENGTHS)])
        given = [OPEN] * requests if rules is None else list(rules)
        if len(given) != requests:
            raise RequestError(f"{len(given)} rules for {requests} requests", hint="give one for each request")
        while True:
            encoder = self._encoder
            encoded, refused = encoder.inputs_of_each(given) if each else (encoder.inputs(given), {})
            with self._submitting:
                if encoder is self._encoder:  # else swapped meanwhile: the rules speak of the old catalogue
                    return PendingItems(self._runner.submit({**inputs, **encoded}), encoder, given, refused)

    def __call__(self, inputs: Mapping[str, Any], rules: Sequence[ItemRules] | None = None) -> ItemBatch:
        """Submit a batch and wait for it; arguments and errors as of `submit`."""
        return self.submit(inputs, rules).result()

    def _put(self, index: ItemIndex) -> None:
        """Everything slow first, beside the batches that run; then the swap, between two of them."""
        staged = self._runner.stage_residents(index.resident(self.io))
        index.prepare()
        encoder = RuleEncoder(index, self.io)
        with self._submitting:
            self._runner.bind_staged(staged)
            self._encoder = encoder


def _on_host(array: Any) -> NDArray[Any]:
    return array if isinstance(array, np.ndarray) else array.cpu().numpy()
