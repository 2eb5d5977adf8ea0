"""The catalogue that an instance serves: loaded from the model's folder, and swapped while requests run when another one is served."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from ...core.arrays import Array
from ...core.errors import ArtifactError, OnerecTrtError
from ...runtime.item_index import ItemIndex
from ...runtime.item_rules import ItemRules
from ...runtime.item_runner import ItemRunner, ResidentRunner
from ..repository.catalogues import Catalogues, parse_served
from .answers import Answer, rows_of
from .item_requests import outputs_of

_LOOK_EVERY_S = 0.25
_RETRY_S = 30.0  # after which one that did not load is tried again: a network volume may have been away


class CatalogueAnswers:
    """Of a model that follows a catalogue: allowed items only, with their ids, and which catalogue they are of.

    Args:
        runner: Runs the graph. It gets its first catalogue here.
        catalogues: Of the model.
        told: Called in a thread when another catalogue was loaded, with None, or could not be, with the error.

    Raises:
        ArtifactError: There is no catalogue, or none of those that were served loads.
        GpuError: The GPU's memory is exhausted.
    """

    def __init__(self, runner: ResidentRunner, catalogues: Catalogues, told: Callable[[Exception | None], None]) -> None:
        self._catalogues, self._told = catalogues, told
        self._seen, self._again = b"", math.inf
        self._runner = ItemRunner(runner, self._first(runner))
        threading.Thread(target=self._watch, name="catalogue", daemon=True).start()

    def run(self, room: Mapping[str, Array], contexts: Sequence[int], rules: Sequence[Sequence[ItemRules]]) -> list[Answer]:
        """One catalogue serves the whole batch, from rules to item ids."""
        batch = self._runner.submit(room, [rule for each in rules for rule in each], each=True).result()
        answers: list[Answer] = []
        for rows in rows_of(contexts):
            refused = next((batch.refused[place] for place in range(rows.start, rows.stop) if place in batch.refused), None)
            answers.append(refused or outputs_of(batch, rows, self._runner.io))
        return answers

    def look(self) -> None:
        """Load the catalogue that is served, if it is another one. Where that fails the old one stays, and it is tried again later."""
        content = self._content()
        if content == self._seen and time.monotonic() < self._again:
            return
        self._seen, self._again = content, math.inf
        try:
            served = parse_served(content, self._catalogues.served_path)[0]
            if served != self._runner.catalogue:
                self._runner.swap(self._catalogues.load(served))
                self._told(None)
        except Exception as error:  # noqa: BLE001 - whatever it is, the old one serves on, and the next one is looked for
            self._failed(error)

    def _watch(self) -> None:
        while True:
            time.sleep(_LOOK_EVERY_S)
            self.look()

    def _first(self, runner: ResidentRunner) -> ItemIndex:
        """The newest of those that were served that loads."""
        self._seen = self._content()
        served = parse_served(self._seen, self._catalogues.served_path) if self._seen else ()
        failed: OnerecTrtError | None = None
        for digest in served:
            try:
                index = self._catalogues.load(digest)
                index.require_fits(runner.io)
            except ArtifactError as error:
                failed = failed or error
                continue
            if failed:
                self._failed(failed)
            return index
        hint = "add one with `onerec-trt repository --out REPO --catalogue ITEMS.index`"
        raise failed or ArtifactError("the model follows a catalogue, and has none", where=str(self._catalogues.folder), hint=hint)

    def _failed(self, error: Exception) -> None:
        self._again = time.monotonic() + _RETRY_S
        self._told(error)

    def _content(self) -> bytes:
        """What says which catalogue is served; as at the last look where that cannot be read, and empty at the first one."""
        try:
            return self._catalogues.served_path.read_bytes()
        except OSError:
            return self._seen
