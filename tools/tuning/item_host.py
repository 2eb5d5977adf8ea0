"""`onerec-trt dev bench-rules`: what the host does for a batch that follows a catalogue, beside the batch that runs. Needs no GPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.artifacts import write_json
from ...core.graph_io import GraphIO
from ...export.contracts import ItemSizes, item_serving_io
from ...models.category_classes import MAX_CLASSES
from ...models.config import LEVELS
from ...runtime.item_index import ItemIndex
from ...runtime.item_rules import OPEN, FoundItems, ItemRules, RuleEncoder, allowed_items_of_each
from ..environment import software

EXCLUDED = 4096
WIDTH, BATCHES = 512, (32, 8, 1)
SAMPLES = 7
Say = Callable[[str], None]


def bench_rules(path: Path, out: Path, samples: int = 21, say: Say = print, commit: str = "") -> dict[str, Any]:
    """Time an index on this machine and write the result; gives it, too.

    Raises:
        ArtifactError: The index does not load, or the result cannot be written.
    """
    index = ItemIndex.load(path)
    begun = time.perf_counter()
    index.prepare()
    prepared_ms = round((time.perf_counter() - begun) * 1e3, 3)
    sizes = ItemSizes(index.codebook, index.sids, EXCLUDED, max(MAX_CLASSES, index.classes))
    io = item_serving_io(LEVELS, WIDTH, sizes)
    cases = []
    for batch in BATCHES:
        sids_BW3 = _some_sids(index, batch)
        for name, rules in {"no rules": [OPEN] * batch, "rules": [all_rules(index, request) for request in range(batch)]}.items():
            taken = host_ms(index, io, sids_BW3, rules, samples)
            say(f"batch {batch}, {name}: {taken} ms")
            cases.append({"batch": batch, "rules": name, "milliseconds": taken})
    facts = {"items": index.items, "semantic_ids": index.sids, "excluded": min(EXCLUDED, index.items), "width": WIDTH, "samples": samples}
    report = {"environment": {**software(("numpy",), commit), **facts}, "prepared_ms": prepared_ms, "cases": cases}
    write_json(out, report)
    return report


def all_rules(index: ItemIndex, request: int) -> ItemRules:
    """Rules of every kind: 4096 seen items, as an array, which servers get, too; a required and a forbidden category."""
    seen = np.random.default_rng((2, request)).choice(index.arrays["items"], min(EXCLUDED, index.items), replace=False)
    return ItemRules(excluded=seen.astype(np.int64), required=0xFF, forbidden=0x300)


def host_ms(
    index: ItemIndex, io: GraphIO, sids_BW3: NDArray[np.int64], rules: Sequence[ItemRules], samples: int = SAMPLES
) -> dict[str, float]:
    """Medians of what the host does for a batch: encode the rules, and look up the items found."""
    index.prepare()
    encoder = RuleEncoder(index, io)

    def encode() -> list[ItemRules]:
        fresh = [replace(each) for each in rules]  # rules keep their sorted ids, and every batch brings other rules
        encoder.inputs(fresh)
        return fresh

    encoded = encode()
    return {"rules": _median_ms(encode, samples), "items": _median_ms(lambda: items_found(index, sids_BW3, encoded), samples)}


def items_found(index: ItemIndex, sids_BW3: NDArray[np.int64], rules: Sequence[ItemRules]) -> tuple[FoundItems, ...]:
    """Items of what a batch found, as a server looks them up."""
    return allowed_items_of_each(index, list(index.entries_of(sids_BW3)), rules)


def _some_sids(index: ItemIndex, batch: int) -> NDArray[np.int64]:
    """Semantic IDs of the catalogue, drawn at random, [B, W, 3]."""
    keys_BW = index.arrays["keys"][np.random.default_rng(3).integers(0, index.sids, (batch, WIDTH))].astype(np.int64)
    return np.stack([keys_BW // index.codebook**below % index.codebook for below in reversed(range(LEVELS))], -1)


def _median_ms(call: Callable[[], object], samples: int) -> float:
    taken = []
    for _ in range(samples):
        begun = time.perf_counter()
        call()
        taken.append((time.perf_counter() - begun) * 1e3)
    return round(statistics.median(taken), 3)
