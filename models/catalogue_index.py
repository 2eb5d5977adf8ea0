"""From the items of a catalogue to the arrays of its index: see runtime/item_index.py for what they hold.

Letters in names: n items, S semantic IDs, P pairs of first and second code.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..core.arrays import Array
from ..runtime.item_index import CODE_BITS, MAX_CODEBOOK, WORD, ItemIndex, index_of, words_of
from .category_classes import MAX_CLASSES, classify

# What this folder needs of `runtime`: the stages that hold one count the other among their sources.
INDEX_SOURCES = tuple(f"runtime/{name}.py" for name in ("item_index", "run_numbers", "sorted_table"))
_Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class CatalogueItems:
    """Items: ids int64 [n], semantic IDs int64 [n, 3], and category bits uint64 [n], zero where there are none."""

    ids_n: _Ints
    sids_n3: _Ints
    categories_n: NDArray[np.uint64]


def index_in_memory(catalogue: CatalogueItems, codebook: int, classes: int = MAX_CLASSES) -> ItemIndex:
    """The index without a file.

    Raises:
        RequestError: There are more category classes.
    """
    return index_of(codebook, index_arrays(catalogue, codebook, classes))


def index_arrays(catalogue: CatalogueItems, codebook: int, classes: int = MAX_CLASSES) -> dict[str, Array]:
    """The arrays of an index, whatever the order of the items.

    Raises:
        RequestError: There are more category classes.
    """
    assert codebook <= MAX_CODEBOOK
    first, second, third = catalogue.sids_n3.T
    key_n = (first * codebook + second) * codebook + third
    order_n = np.lexsort((catalogue.ids_n, key_n))
    items_n, key_n = catalogue.ids_n[order_n], key_n[order_n]
    item_rows, keys_S = _runs(key_n)
    pair_rows, pairs_P = _runs(keys_S // codebook)
    first_rows, firsts = _runs(pairs_P // codebook)
    patterns, item_patterns_n = np.unique(catalogue.categories_n[order_n], return_inverse=True)
    found = classify(item_patterns_n, len(patterns), (item_rows, pair_rows, first_rows), classes)
    by_id_n = np.argsort(items_n)
    first_classes = np.full(codebook, -1, np.int32)
    first_classes[firsts] = found.classes[2]
    bits, ranks = _pair_table(pairs_P, codebook)
    return {
        "first_classes": first_classes,
        "pair_bits": bits,
        "pair_ranks": ranks,
        "pair_classes": found.classes[1],
        "pair_rows": pair_rows.astype(np.int32),
        "entries": ((found.classes[0].astype(np.int64) << CODE_BITS) | keys_S % codebook).astype(np.int32),
        "keys": keys_S,
        "item_rows": item_rows.astype(np.int32),
        "items": items_n,
        "item_patterns": item_patterns_n.astype(np.int32),
        "sorted_items": items_n[by_id_n],
        "sorted_places": by_id_n.astype(np.int32),
        "patterns": patterns.astype(np.uint64),
        "class_rows": found.rows,
        "class_patterns": found.patterns,
    }


def _runs(values: _Ints) -> tuple[_Ints, _Ints]:
    """Where runs of equal values begin, and the end; and the value of each run."""
    begins = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
    return np.append(begins, len(values)), values[begins]


def _pair_table(pairs_P: _Ints, codebook: int) -> tuple[Array, Array]:
    """Bits of the pairs, and how many pairs lie before each word."""
    words = words_of(codebook)
    word = pairs_P // codebook * words + pairs_P % codebook // WORD
    size = codebook * words
    bits = np.bincount(word, weights=2.0 ** (pairs_P % codebook % WORD), minlength=size)  # sums of different bits: exact
    counts = np.bincount(word, minlength=size)
    shape = (codebook, words)
    return bits.astype(np.uint32).view(np.int32).reshape(shape), (counts.cumsum() - counts).astype(np.int32).reshape(shape)
