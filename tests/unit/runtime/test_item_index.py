"""The index of a catalogue and its file: beside brute force on small catalogues; damaged, truncated and foreign files."""

from __future__ import annotations

import errno
import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onerec_trt.core.errors import ArtifactError
from onerec_trt.models.catalogue_index import CatalogueItems, index_arrays, index_in_memory
from onerec_trt.runtime import item_index
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


UNSOUND: dict[str, Callable[[Any], Any]] = {
    "another codebook": lambda header: header | {"codebook": 7},
    "no codebook": lambda header: {"arrays": header["arrays"], "bytes": header["bytes"]},
    "a codebook that is no number": lambda header: header | {"codebook": "37"},
    "an array too few": lambda header: header | {"arrays": {name: each for name, each in header["arrays"].items() if name != "keys"}},
    "fewer pairs than rows": lambda header: with_place(
        header, "pair_rows", {"shape": [3], "end": header["arrays"]["pair_rows"]["begin"] + 12}
    ),
    "no semantic ID": lambda header: with_place(header, "entries", {"shape": [0], "end": header["arrays"]["entries"]["begin"]}),
    "an axis too many": lambda header: with_place(header, "items", {"shape": [500, 1]}),
    "a place before the file": lambda header: with_place(header, "items", {"begin": -8}),
    "a place behind it": lambda header: with_place(header, "class_patterns", {"begin": header["bytes"], "end": header["bytes"] + 4}),
    "a place of another length": lambda header: with_place(header, "items", {"end": header["arrays"]["items"]["begin"]}),
    "a list": lambda header: [0],
    "far too deep": lambda header: None,
}


def with_place(header: Any, name: str, changes: dict[str, Any]) -> Any:
    arrays = header["arrays"]
    return header | {"arrays": arrays | {name: arrays[name] | changes}}


@pytest.mark.parametrize("what", UNSOUND)
def test_a_head_that_contradicts_itself_is_refused_whatever_its_digest_says(file: Path, tmp_path: Path, what: str) -> None:
    content = file.read_bytes()
    magic, version, size, _ = struct.unpack("<8sII32s", content[:48])
    text = json.dumps(UNSOUND[what](json.loads(content[48 : 48 + size]))).encode() if what != "far too deep" else b"[" * 20_000
    behind = text.ljust(size) + content[48 + size :]
    (unsound := tmp_path / "unsound.index").write_bytes(
        struct.pack("<8sII32s", magic, version, max(size, len(text)), hashlib.sha256(behind).digest()) + behind
    )
    with pytest.raises(ArtifactError, match="the head of the index is damaged"):
        ItemIndex.load(unsound)


def test_what_was_checked_is_what_is_mapped(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another catalogue takes the file's place while it is loaded."""
    path, other, real = tmp_path / "items.index", tmp_path / "other.index", np.memmap
    path.write_bytes(file.read_bytes())
    items = CatalogueItems(np.arange(500) + 1000, np.random.default_rng(0).integers(0, CODEBOOK, (500, 3)), np.zeros(500, np.uint64))
    write_index(other, CODEBOOK, index_arrays(items, CODEBOOK))

    def replaced_before(*arguments: Any) -> Any:
        other.replace(path)
        return real(*arguments)

    monkeypatch.setattr(np, "memmap", replaced_before)
    index = ItemIndex.load(path)
    monkeypatch.undo()
    assert index.digest == ItemIndex.load(file).digest
    assert index.arrays["items"].max() < 1000
    assert ItemIndex.load(path).arrays["items"].min() >= 1000


def test_a_file_that_cannot_be_read_to_its_end_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one on a network volume that is gone."""
    monkeypatch.setattr(item_index, "_header", Mock(side_effect=OSError(errno.ESTALE, "Stale file handle")))
    with pytest.raises(ArtifactError, match="the index cannot be read: Stale file handle"):
        ItemIndex.load(file)


def test_more_behind_the_end_is_damage(file: Path, tmp_path: Path) -> None:
    (longer := tmp_path / "longer.index").write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(ArtifactError, match="damaged"):
        ItemIndex.load(longer)
