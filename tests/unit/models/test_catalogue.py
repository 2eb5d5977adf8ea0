"""A catalogue's file: what is read is what was written; malformed ones are refused by name; category classes, few and many."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onerec_trt.core.errors import RequestError
from onerec_trt.models.catalogue import build_catalogue, read_catalogue, write_catalogue
from onerec_trt.models.catalogue_index import CatalogueItems, index_in_memory
from onerec_trt.runtime.item_index import ANY_CLASS, ItemIndex


def small(items: int = 50, codebook: int = 7) -> CatalogueItems:
    draw = np.random.default_rng(items)
    return CatalogueItems(draw.permutation(items) - 5, draw.integers(0, codebook, (items, 3)), draw.integers(0, 6, items).astype(np.uint64))


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    items = small()
    write_catalogue(tmp_path / "items.parquet", items)
    found = read_catalogue(tmp_path / "items.parquet", 7)
    assert all(np.array_equal(value, vars(items)[name]) for name, value in vars(found).items())
    summary = build_catalogue(tmp_path / "items.parquet", tmp_path / "items.index", 7)
    index = ItemIndex.load(tmp_path / "items.index")
    assert summary.digest == index.digest == index_in_memory(items, 7).digest
    assert (summary.items, summary.semantic_ids) == (50, len(np.unique(items.sids_n3, axis=0)))
    assert summary.shared == sum(np.unique(items.sids_n3, axis=0, return_counts=True)[1] > 1)


def columns(**changes: object) -> dict[str, object]:
    given = {"item_id": [1, 2], "sid_1": [0, 1], "sid_2": [0, 1], "sid_3": [0, 1], "categories": [0, 3]}
    return {name: value for name, value in {**given, **changes}.items() if value is not None}


def test_categories_may_be_left_out(tmp_path: Path) -> None:
    pq.write_table(pa.table(columns(categories=None)), tmp_path / "items.parquet")
    assert read_catalogue(tmp_path / "items.parquet", 2).categories_n.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sid_2": None}, r"lacks \(or repeats\) the column\(s\) sid_2"),
        ({"sid_3": [0, 2]}, r"\[1, 1, 2\] of item 2 is outside the codebook of 2 tokens"),
        ({"sid_1": [-1, 0]}, "of item 1 is outside the codebook"),
        ({"item_id": [4, 4]}, "item id 4 occurs more than once"),
        ({"item_id": ["a", "b"]}, "item_id holds string, not integers"),
        ({"item_id": [4, None]}, "item_id is null in row 1"),
        ({"categories": [0.5, 1.0]}, "categories holds double"),
        ({"item_id": [], "sid_1": [], "sid_2": [], "sid_3": [], "categories": []}, "holds 0 items|not integers"),
    ],
)
def test_malformed_catalogues_are_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    pq.write_table(pa.table(columns(**changes)), path := tmp_path / "items.parquet")
    with pytest.raises(RequestError, match=message) as caught:
        read_catalogue(path, 2)
    assert caught.value.where == str(path)


def test_what_is_no_parquet_file_is_refused(tmp_path: Path) -> None:
    (path := tmp_path / "items.parquet").write_bytes(b"PAR1 and rubbish")
    with pytest.raises(RequestError, match="not a readable Parquet file"):
        read_catalogue(path, 2)
    with pytest.raises(RequestError, match="catalogue not found"):
        read_catalogue(tmp_path / "missing.parquet", 2)


def test_beginnings_without_a_class_are_open_to_every_rule() -> None:
    """With little room, semantic IDs have their classes and beginnings of many kinds of items have none."""
    items = small(items=400)
    kinds = {frozenset(items.categories_n[(items.sids_n3 == sid).all(1)].tolist()) for sid in np.unique(items.sids_n3, axis=0)}
    most = len(kinds) + 1
    index = index_in_memory(items, 7, most)
    assert index.classes == most
    assert (index.arrays["entries"] >> 16 > ANY_CLASS).all()
    assert (index.arrays["first_classes"] == ANY_CLASS).any()
    with pytest.raises(RequestError, match=f"have {len(kinds)} different sets of categories, at most {len(kinds) - 1} fit"):
        index_in_memory(items, 7, most - 1)


def test_classes_are_sets_of_categories() -> None:
    items = small(items=200)
    index = index_in_memory(items, 7)
    rows, patterns, found = (index.arrays[name] for name in ("class_rows", "class_patterns", "patterns"))
    sets = [set(found[patterns[a:b]].tolist()) for a, b in pairwise(rows)]
    assert sets[ANY_CLASS] == set()
    assert len({frozenset(each) for each in sets}) == len(sets)
    for entry, sid in enumerate(np.unique(items.sids_n3, axis=0)):
        assert sets[index.arrays["entries"][entry] >> 16] == set(items.categories_n[(items.sids_n3 == sid).all(1)].tolist())
    for code, number in enumerate(index.arrays["first_classes"]):
        assert sets[number] == set(items.categories_n[items.sids_n3[:, 0] == code].tolist())
