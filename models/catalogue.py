"""From a catalogue, a Parquet file of items, to the index that constrained beams follow: see runtime/item_index.py for the file.

Letters in names: n items, S semantic IDs, P pairs of first and second code.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel

from ..core.arrays import Array
from ..core.artifacts import atomic_file
from ..core.errors import RequestError
from ..runtime.item_index import CODE_BITS, MAX_CODEBOOK, WORD, ItemIndex, index_of, words_of, write_index
from .category_classes import MAX_CLASSES, classify
from .config import LEVELS

_Ints = NDArray[np.int64]
ID_COLUMN, SID_COLUMNS, CATEGORY_COLUMN = "item_id", ("sid_1", "sid_2", "sid_3"), "categories"
MAX_ITEMS = (1 << 31) - 1  # numbers of items are INT32


@dataclass(frozen=True, eq=False)
class Catalogue:
    """Items: ids int64 [n], semantic IDs int64 [n, 3], and category bits uint64 [n], zero where there are none."""

    ids_n: _Ints
    sids_n3: _Ints
    categories_n: NDArray[np.uint64]


class CatalogueSummary(BaseModel):
    """What an index holds. `shared`: semantic IDs of more than one item."""

    out: str
    digest: str
    codebook: int
    items: int
    semantic_ids: int
    shared: int
    pairs: int
    first_codes: int
    category_classes: int


def build_catalogue(path: Path, out: Path, codebook: int, classes: int = MAX_CLASSES) -> CatalogueSummary:
    """Read a catalogue and write its index.

    Args:
        path: The Parquet file.
        out: The index.
        codebook: Tokens of a level.
        classes: Most category classes, as many as the graph takes.

    Raises:
        RequestError: The catalogue is missing or malformed; names the item.
        ArtifactError: The index cannot be written.
    """
    arrays = index_arrays(read_catalogue(path, codebook), codebook, classes)
    digest = write_index(out, codebook, arrays)
    return summary(ItemIndex(digest, codebook, arrays, str(out)))


def summary(index: ItemIndex) -> CatalogueSummary:
    """What an index holds."""
    return CatalogueSummary(
        out=index.where,
        digest=index.digest,
        codebook=index.codebook,
        items=index.items,
        semantic_ids=index.sids,
        shared=int((np.diff(index.arrays["item_rows"]) > 1).sum()),
        pairs=index.pairs,
        first_codes=int((index.arrays["first_classes"] >= 0).sum()),
        category_classes=index.classes,
    )


def index_in_memory(catalogue: Catalogue, codebook: int, classes: int = MAX_CLASSES) -> ItemIndex:
    """The index without a file.

    Raises:
        RequestError: There are more category classes.
    """
    return index_of(codebook, index_arrays(catalogue, codebook, classes))


def index_arrays(catalogue: Catalogue, codebook: int, classes: int = MAX_CLASSES) -> dict[str, Array]:
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
        "item_order": np.argsort(items_n).astype(np.int32),
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


def read_catalogue(path: Path, codebook: int) -> Catalogue:
    """Read a catalogue and check every item of it.

    Raises:
        RequestError: The file is missing, is no Parquet file, lacks a column, or an item is malformed; names the item.
    """
    table = _read(path)
    ids_n = _numbers(path, table, ID_COLUMN)
    sids_n3 = np.stack([_numbers(path, table, name) for name in SID_COLUMNS], 1)
    if CATEGORY_COLUMN in table.column_names:
        categories_n = _numbers(path, table, CATEGORY_COLUMN, np.uint64)
    else:
        categories_n = np.zeros(len(ids_n), np.uint64)
    for row in np.flatnonzero(((sids_n3 < 0) | (sids_n3 >= codebook)).any(1))[:1]:
        what = f"the semantic ID {sids_n3[row].tolist()} of item {ids_n[row]} is outside the codebook of {codebook} tokens"
        raise RequestError(what, where=str(path), hint="give the codebook of the checkpoint's config.json with --codebook")
    ordered = np.sort(ids_n)
    for twice in ordered[1:][ordered[1:] == ordered[:-1]][:1]:
        raise RequestError(f"the item id {twice} occurs more than once", where=str(path), hint="an item has one semantic ID")
    return Catalogue(ids_n, sids_n3, categories_n)


def write_catalogue(path: Path, catalogue: Catalogue) -> None:
    """Write a catalogue as `read_catalogue` takes it.

    Raises:
        ArtifactError: The disk is full or the folder cannot be written.
    """
    columns = {
        ID_COLUMN: pa.array(catalogue.ids_n),
        **{name: pa.array(catalogue.sids_n3[:, level].astype(np.int32)) for level, name in enumerate(SID_COLUMNS)},
        CATEGORY_COLUMN: pa.array(catalogue.categories_n),
    }
    with atomic_file(path) as temporary:
        pq.write_table(pa.table(columns), temporary, compression="zstd", write_page_checksum=True)


def _read(path: Path) -> pa.Table:
    if not path.is_file():
        raise RequestError("catalogue not found", where=str(path), hint="give the path of a Parquet file")
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            names = [name for name in (ID_COLUMN, *SID_COLUMNS, CATEGORY_COLUMN) if name in file.schema_arrow.names]
            table = file.read(columns=names)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise RequestError(f"not a readable Parquet file: {error}", where=str(path), hint="docs/items.md has the format") from None
    missing = [name for name in (ID_COLUMN, *SID_COLUMNS) if table.column_names.count(name) != 1]
    if missing:
        hint = "docs/items.md has the format"
        raise RequestError(f"the catalogue lacks (or repeats) the column(s) {', '.join(missing)}", where=str(path), hint=hint)
    if not 1 <= table.num_rows <= MAX_ITEMS:
        raise RequestError(f"the catalogue holds {table.num_rows} items", where=str(path), hint=f"give 1 to {MAX_ITEMS}")
    return table


def _numbers(path: Path, table: pa.Table, name: str, dtype: type[np.generic] = np.int64) -> Any:
    column = table.column(name)
    if not pa.types.is_integer(column.type):
        raise RequestError(f"the column {name} holds {column.type}, not integers", where=str(path), hint="docs/items.md has the format")
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy())[0])
        raise RequestError(f"the column {name} is null in row {row}", where=str(path), hint="give a value, or drop the item")
    values = column.to_numpy()
    if dtype is np.int64 and values.dtype == np.uint64 and (values > np.uint64(np.iinfo(np.int64).max)).any():
        raise RequestError(f"the column {name} holds numbers beyond INT64", where=str(path), hint="number the items anew")
    return values.astype(dtype)


assert len(SID_COLUMNS) == LEVELS
