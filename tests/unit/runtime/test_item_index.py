"""The index of a catalogue and its file: beside brute force on small catalogues; damaged, truncated and foreign files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onerec_trt.core.errors import ArtifactError
from onerec_trt.models.catalogue_index import CatalogueItems, index_arrays, index_in_memory
from onerec_trt.runtime.item_index import ItemIndex, is_index, write_index

CODEBOOK = 37  # no multiple of the bits of a word


@st.composite
def catalogues(draw: st.DrawFn) -> CatalogueItems:
    code = st.integers(0, CODEBOOK - 1) | st.integers(0, 1)  # crowded at 0 and 1
    sids = draw(st.lists(st.tuples(code, code, code), min_size=1, max_size=30))
    ids = draw(st.lists(st.integers(-(2**62), 2**62), min_size=len(sids), max_size=len(sids), unique=True))
    categories = draw(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 3), min_size=len(sids), max_size=len(sids)))
    return CatalogueItems(np.asarray(ids, np.int64), np.asarray(sids, np.int64), np.asarray(categories, np.uint64))


@settings(max_examples=60, deadline=None)
@given(catalogues())
def test_beside_brute_force(catalogue: CatalogueItems) -> None:
    index = index_in_memory(catalogue, CODEBOOK)
    of_sid: dict[tuple[int, ...], list[int]] = {}
    for number, sid in zip(catalogue.ids_n.tolist(), catalogue.sids_n3.tolist(), strict=True):
        of_sid.setdefault(tuple(sid), []).append(number)
    assert (index.items, index.sids) == (len(catalogue.ids_n), len(of_sid))
    assert index.pairs == len({sid[:2] for sid in of_sid})
    entries = index.entries_of(catalogue.sids_n3)
    rows = index.arrays["item_rows"]
    for entry, sid in zip(entries.tolist(), catalogue.sids_n3.tolist(), strict=True):
        assert index.arrays["items"][rows[entry] : rows[entry + 1]].tolist() == sorted(of_sid[tuple(sid)])
    assert (index.entries_at(index.places_with(catalogue.ids_n)) == entries).all()
    for length in range(3):
        prefixes = np.unique(np.concatenate([catalogue.sids_n3, [[CODEBOOK - 1] * 3]])[:, :length], axis=0)
        mask = index.continuations(prefixes)
        for prefix, codes in zip(prefixes.tolist(), mask, strict=True):
            assert set(np.flatnonzero(codes).tolist()) == {sid[length] for sid in of_sid if list(sid[:length]) == prefix}
            assert index.begins_item(np.array([[*prefix, code] for code in range(CODEBOOK)])).tolist() == codes.tolist()


@settings(max_examples=30, deadline=None)
@given(catalogues(), st.randoms())
def test_the_order_of_the_items_changes_nothing(catalogue: CatalogueItems, random) -> None:
    order = list(range(len(catalogue.ids_n)))
    random.shuffle(order)
    shuffled = CatalogueItems(catalogue.ids_n[order], catalogue.sids_n3[order], catalogue.categories_n[order])
    assert index_in_memory(shuffled, CODEBOOK).digest == index_in_memory(catalogue, CODEBOOK).digest


def test_what_no_item_has_is_not_found() -> None:
    index = index_in_memory(CatalogueItems(np.array([7, 9]), np.array([[0, 0, 1], [2, 0, 0]]), np.zeros(2, np.uint64)), 3)
    assert index.entries_of(np.array([[[0, 0, 0], [2, 0, 0]], [[-1, -1, -1], [0, 0, 3]]])).tolist() == [[-1, 1], [-1, -1]]
    assert index.entries_at(index.places_with(np.array([8, 10, 9, -1]))).tolist() == [-1, -1, 1, -1]
    assert not index.continuations(np.array([[-1, 0], [1, 0]])).any()


def test_a_code_outside_the_codebook_begins_nothing() -> None:
    """Its number would be that of other codes: 0, 3 in a codebook of three is 1, 0."""
    index = index_in_memory(CatalogueItems(np.array([7]), np.array([[1, 0, 0]]), np.zeros(1, np.uint64)), 3)
    outside = [[0, 3], [2, -3], [-1, 6]]
    assert not index.continuations(np.array(outside)).any()
    assert not index.begins_item(np.array(outside)).any()
    assert (index.entries_of(np.array([[*codes, 0] for codes in outside])) == -1).all()
    assert index.begins_item(np.array([[1], [3], [-1]])).tolist() == [True, False, False]
    assert index.continuations(np.zeros((1, 0), np.int64)).tolist() == [[False, True, False]]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("index") / "items.index"
    sids = np.random.default_rng(0).integers(0, CODEBOOK, (500, 3))
    write_index(path, CODEBOOK, index_arrays(CatalogueItems(np.arange(500), sids, np.zeros(500, np.uint64)), CODEBOOK))
    return path


def test_what_a_file_holds_is_what_was_written(file: Path) -> None:
    sids = np.random.default_rng(0).integers(0, CODEBOOK, (500, 3))
    expected = index_in_memory(CatalogueItems(np.arange(500), sids, np.zeros(500, np.uint64)), CODEBOOK)
    index = ItemIndex.load(file)
    assert (index.digest, index.codebook) == (expected.digest, CODEBOOK)
    assert all(np.array_equal(array, expected.arrays[name]) for name, array in index.arrays.items())
    assert not index.arrays["entries"].flags.writeable
    assert is_index(file)


@pytest.mark.parametrize("kept", [0, 5, 20, 47, 48, 200, 1500, -1])
def test_a_truncated_file_is_refused(file: Path, tmp_path: Path, kept: int) -> None:
    cut = tmp_path / "cut.index"
    cut.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ArtifactError, match=r"truncated|no index") as caught:
        ItemIndex.load(cut)
    assert caught.value.where == str(cut)
    assert "onerec-trt catalogue" in caught.value.hint


@pytest.mark.parametrize("place", [8, 12, 20, 60, 300, 1400, -1])
def test_a_damaged_file_is_refused(file: Path, tmp_path: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 0x10
    (damaged := tmp_path / "damaged.index").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"damaged|truncated|of version"):
        ItemIndex.load(damaged)


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    (foreign := tmp_path / "foreign.index").write_bytes(b"PAR1" + bytes(1000))
    with pytest.raises(ArtifactError, match="no index of a catalogue"):
        ItemIndex.load(foreign)
    with pytest.raises(ArtifactError, match="index not found"):
        ItemIndex.load(tmp_path / "missing.index")
    with pytest.raises(ArtifactError, match="cannot be read"):
        ItemIndex.load(tmp_path)
    assert not is_index(foreign)
    assert not is_index(tmp_path / "missing.index")


def test_more_behind_the_end_is_damage(file: Path, tmp_path: Path) -> None:
    (longer := tmp_path / "longer.index").write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(ArtifactError, match="damaged"):
        ItemIndex.load(longer)
