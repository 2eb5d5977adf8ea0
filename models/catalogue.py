"""Reads a catalogue, a Parquet file of items, and makes it the index that constrained beams follow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel

from ..core.artifacts import atomic_file
from ..core.errors import RequestError
from ..runtime.item_index import ItemIndex, write_index
from .catalogue_index import CatalogueItems, index_arrays
from .category_classes import MAX_CLASSES
from .config import LEVELS

_Ints = NDArray[np.int64]
ID_COLUMN, SID_COLUMNS, CATEGORY_COLUMN = "item_id", ("sid_1", "sid_2", "sid_3"), "categories"
MAX_ITEMS = (1 << 31) - 1  # numbers of items are INT32


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
        first_codes=int((index.arrays["first_classes"].astype(np.int64) >= 0).sum()),
        category_classes=index.classes,
    )


def read_catalogue(path: Path, codebook: int) -> CatalogueItems:
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
    return CatalogueItems(ids_n, sids_n3, categories_n)


def write_catalogue(path: Path, catalogue: CatalogueItems) -> None:
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
