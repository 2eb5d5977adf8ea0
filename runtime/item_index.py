"""The index of a catalogue: which semantic IDs belong to items, and to which. One memory-mapped file with a digest.

`models/catalogue.py` builds it. This module knows the file, needs NumPy alone, and answers what a server asks: the arrays that a
plan keeps on its GPU, the items of a semantic ID, and where an item lies.

Letters in names: V codebook, P pairs of first and second code, S semantic IDs, n items, C category classes.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..core.arrays import Array
from ..core.artifacts import atomic_file
from ..core.errors import ArtifactError
from ..core.graph_io import GraphIO, GraphTensor, Role
from .run_numbers import RunNumbers
from .sorted_table import SortedTable

MAGIC, VERSION = b"ORTITEMS", 1
_FIXED = struct.Struct("<8sII32s")  # magic, version, bytes of the header, SHA-256 of everything behind
_ALIGNMENT = 64
_CHUNK = 1 << 22
_LARGEST_HEADER = 1 << 16
LEVELS = 3  # codes of a semantic ID
WORD = 32  # bits of a word of the pair table
CODE_BITS = 16  # of an entry: the code below, its category class above
MAX_CODEBOOK = 1 << CODE_BITS
ANY_CLASS = 0  # of prefixes below which there are more kinds of items than the index has classes for: no rule ends such a prefix
NO_CLASS = -1  # of codes that no item begins with
_HINT = "build it again with `onerec-trt catalogue ITEMS.parquet --out INDEX`"

# Array by array: data type and sizes. V and W follow from the codebook, what others share must be the same, and none is empty.
_ARRAYS: dict[str, tuple[str, tuple[str, ...]]] = {
    "first_classes": ("int32", ("V",)),  # category class of the items that begin with a code
    "pair_bits": ("int32", ("V", "W")),  # bit v % 32 of word v / 32: an item begins with the row's code and v
    "pair_ranks": ("int32", ("V", "W")),  # pairs before those of a word
    "pair_classes": ("int32", ("P",)),
    "pair_rows": ("int32", ("P + 1",)),  # first entry of a pair
    "entries": ("int32", ("S",)),  # third code, and above it the category class of the semantic ID
    "keys": ("int64", ("S",)),  # (first * V + second) * V + third, ascending
    "item_rows": ("int32", ("S + 1",)),  # first item of a semantic ID
    "items": ("int64", ("n",)),  # item ids, ascending within a semantic ID
    "item_patterns": ("int32", ("n",)),  # number of the item's category bits in `patterns`
    "sorted_items": ("int64", ("n",)),  # item ids, ascending
    "sorted_places": ("int32", ("n",)),  # place of each of these in `items`
    "patterns": ("uint64", ("patterns",)),  # different category bits
    "class_rows": ("int32", ("C + 1",)),  # first pattern of a class
    "class_patterns": ("int32", ("patterns of classes",)),  # patterns of the items in a class
}
# What a plan keeps on its GPU, and by what its graph knows it.
RESIDENT: dict[Role, str] = {
    Role.FIRST_CLASSES: "first_classes",
    Role.PAIR_BITS: "pair_bits",
    Role.PAIR_RANKS: "pair_ranks",
    Role.PAIR_CLASSES: "pair_classes",
    Role.PAIR_ROWS: "pair_rows",
    Role.SID_ENTRIES: "entries",
}


def words_of(codebook: int) -> int:
    """Words of a row of the pair table."""
    return -(-codebook // WORD)


def index_header(path: Path) -> dict[str, Any]:
    """What the head of an index file says, without reading the rest.

    Raises:
        ArtifactError: It is no index, of another version, or truncated.
    """
    with _opened(path) as stream:
        return _header(path, stream)[2]


def is_index(path: Path) -> bool:
    """Whether a file begins as an index does."""
    try:
        with path.open("rb") as stream:
            return stream.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


@dataclass(frozen=True, eq=False)
class ItemIndex:
    """An index in memory. Read only, so that threads may share it.

    Attributes:
        digest: SHA-256 of its content: the name of the catalogue in responses.
        codebook: Tokens of a level.
        arrays: By name, as `_ARRAYS` lists them.
        where: Names it in errors.
    """

    digest: str
    codebook: int
    arrays: Mapping[str, Array]
    where: str

    @classmethod
    def load(cls, path: Path) -> ItemIndex:
        """Map a file and check its digest, which reads it once. Replace such a file by renaming another; never write into it.

        Raises:
            ArtifactError: It is missing, cannot be read, is no index, of another version, truncated, or not as it was written.
        """
        with _opened(path) as stream:
            digest, text, header = _header(path, stream)
            found = hashlib.sha256(text)
            while chunk := stream.read(_CHUNK):
                found.update(chunk)
            size = stream.tell()
            # Of the file that was read, whatever lies at its path by now. np.memmap itself makes every look-up slower.
            mapped = np.asarray(np.memmap(stream, np.uint8, "r"))
        if size < header["bytes"]:
            raise ArtifactError(f"the index is truncated: {size} of {header['bytes']} bytes", where=str(path), hint=_HINT)
        if found.hexdigest() != digest:
            raise ArtifactError("the index is damaged: its digest is another", where=str(path), hint=_HINT)
        arrays: dict[str, Array] = {}
        for name, (dtype, _) in _ARRAYS.items():
            place = header["arrays"][name]
            arrays[name] = mapped[place["begin"] : place["end"]].view(dtype).reshape(place["shape"])
        return cls(digest, header["codebook"], arrays, str(path))

    @property
    def sids(self) -> int:
        """Different semantic IDs."""
        return len(self.arrays["entries"])

    @property
    def items(self) -> int:
        """Items; several may share a semantic ID."""
        return len(self.arrays["items"])

    @property
    def pairs(self) -> int:
        """Different beginnings of two codes."""
        return len(self.arrays["pair_classes"])

    @property
    def classes(self) -> int:
        """Category classes."""
        return len(self.arrays["class_rows"]) - 1

    def prepare(self) -> None:
        """Make the tables behind look-ups, which the first look-up would make otherwise: 50 ms and 4 MB for 10 million items."""
        _ = self._by_key, self._by_id, self._entry_numbers

    def resident(self, io: GraphIO) -> dict[str, Array]:
        """The content of a graph's resident inputs by name, filled up to the capacity that the graph was exported with.

        Raises:
            ArtifactError: The graph takes no catalogue, another codebook, or fewer semantic IDs or category classes.
        """
        self.require_fits(io)
        return {io.name(role): self._filled_up(name, io.tensor(role)) for role, name in RESIDENT.items()}

    def entries_of(self, sids_N3: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of each semantic ID in the index, [N]; -1 where no item has it."""
        return self._by_key.find(self._numbers(sids_N3))

    def begins_item(self, codes_NL: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether an item begins with the codes, [N]; one to three codes each."""
        number_N, below = self._numbers(codes_NL), self.codebook ** (LEVELS - codes_NL.shape[1])
        place_N = np.minimum(np.searchsorted(self._keys, number_N * below), self.sids - 1)
        return np.asarray(self._keys[place_N] // below == number_N)

    def places_with(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Place of each item id in `items`, [N]; -1 for an item that the catalogue does not have. Quick for long ascending runs of ids."""
        at = self._by_id.find(ids, in_order=True)
        return np.where(at >= 0, self.arrays["sorted_places"][at], -1).astype(np.int64)

    def entries_at(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of the semantic ID of the item at each place in `items`, [N]; -1 where the place is negative."""
        return np.where(places >= 0, self._entry_numbers.at(places), -1)

    def alone(self, places: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether the item at each place in `items` is the only one of its semantic ID, [N]; not where the place is negative."""
        return (places >= 0) & self._entry_numbers.alone(np.maximum(places, 0))

    def items_of(self, entries_N: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where the items of semantic IDs, given by their number, lie in `items`; none where the number is negative.

        Returns:
            Their places, behind each other; and [N + 1], where among these each semantic ID's begin, and the end.
        """
        begins, counts = self._item_runs(entries_N)
        rows = np.concatenate([[0], counts.cumsum()])
        return np.arange(rows[-1]) + np.repeat(begins - rows[:-1], counts), rows

    def item_counts(self, entries_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of items of each semantic ID, given by its number; 0 where that is negative."""
        return self._item_runs(entries_N)[1]

    def continuations(self, prefixes_NL: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which codes continue each beginning of none to two codes, [N, V]; one with a code outside the codebook goes on nowhere."""
        level = prefixes_NL.shape[1] + 1
        known = np.unique(self._keys // self.codebook ** (LEVELS - level)) if level < LEVELS else self._keys
        mask = np.zeros((len(prefixes_NL), self.codebook), np.bool_)
        number_N = self._numbers(prefixes_NL)
        first_N, last_N = (np.searchsorted(known, (number_N + more) * self.codebook) for more in (0, 1))
        for row, (first, last) in enumerate(zip(first_N, last_N, strict=True)):
            mask[row, known[first:last] % self.codebook] = True
        return mask

    def require_fits(self, io: GraphIO) -> None:
        """Check that a graph takes this catalogue.

        Raises:
            ArtifactError: The graph takes no catalogue, another codebook, or fewer semantic IDs or category classes.
        """
        hint = "export the graph with a larger export.item_capacity or export.category_classes"
        if not io.has(Role.FIRST_CLASSES):
            what = "the graph has open beams and takes no catalogue"
            raise ArtifactError(what, where=self.where, hint="export it with export.items: catalogue")
        if (codebook := io.tensor(Role.FIRST_CLASSES).dims[0]) != self.codebook:
            what = f"the index is of a codebook of {self.codebook} tokens, the graph of one of {codebook}"
            raise ArtifactError(what, where=self.where, hint="build the index with the codebook of the checkpoint's config.json")
        for what, held, role in (("semantic IDs", self.sids, Role.SID_ENTRIES), ("category classes", self.classes, Role.ALLOWED_CLASSES)):
            if held > (capacity := io.tensor(role).dims[-1]):
                raise ArtifactError(f"the index holds {held} {what}, the graph takes {capacity}", where=self.where, hint=hint)

    def _numbers(self, codes_NL: NDArray[np.int64]) -> NDArray[np.int64]:
        """Beginnings of L codes as numbers below V^L, which are the keys where L is 3; -1 where a code is outside the codebook."""
        number_N = np.zeros(codes_NL.shape[:-1], np.int64)
        for level in range(codes_NL.shape[-1]):
            number_N = number_N * self.codebook + codes_NL[..., level]
        inside_N = ((codes_NL >= 0) & (codes_NL < self.codebook)).all(-1)
        return np.where(inside_N, number_N, -1)

    @cached_property
    def _keys(self) -> NDArray[np.int64]:
        return self.arrays["keys"].astype(np.int64, copy=False)

    @cached_property
    def _by_key(self) -> SortedTable:
        return SortedTable(self._keys)

    @cached_property
    def _by_id(self) -> SortedTable:
        return SortedTable(self.arrays["sorted_items"])

    @cached_property
    def _entry_numbers(self) -> RunNumbers:
        return RunNumbers(self.arrays["item_rows"])

    def _item_runs(self, entries_N: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of each semantic ID its first place in `items`, and how many it has."""
        rows = self.arrays["item_rows"]
        begins, ends = (rows[entries_N + more].astype(np.int64) for more in (0, 1))
        return begins, np.where(entries_N >= 0, ends - begins, 0)

    def _filled_up(self, name: str, tensor: GraphTensor) -> Array:
        """Behind the last pair and the last entry lies what nothing points to."""
        array = self.arrays[name]
        if array.shape == tensor.dims:
            return array
        filled: Array = np.zeros(tensor.dims, array.dtype)
        filled[: len(array)] = array
        return filled


def write_index(path: Path, codebook: int, arrays: Mapping[str, Array]) -> str:
    """Write an index, whole or not at all; gives its digest.

    Raises:
        ArtifactError: The disk is full or the folder cannot be written.
    """
    digest, size = hashlib.sha256(), 0
    with atomic_file(path) as temporary, temporary.open("wb") as stream:
        stream.write(bytes(_FIXED.size))
        for number, part in enumerate(_content(codebook, arrays)):
            size = len(part) if number == 0 else size
            digest.update(part)
            stream.write(part)
        stream.seek(0)
        stream.write(_FIXED.pack(MAGIC, VERSION, size, digest.digest()))
    return digest.hexdigest()


def index_of(codebook: int, arrays: Mapping[str, Array]) -> ItemIndex:
    """An index that no file holds, named by the digest that its file would have."""
    digest = hashlib.sha256()
    for part in _content(codebook, arrays):
        digest.update(part)
    return ItemIndex(digest.hexdigest(), codebook, arrays, "an index in memory")


def _content(codebook: int, arrays: Mapping[str, Array]) -> Iterator[bytes | memoryview]:
    """What stands behind the fixed head: the header, then the arrays at the places it names."""
    assert arrays.keys() == _ARRAYS.keys()
    assert all(arrays[name].dtype.name == dtype for name, (dtype, _) in _ARRAYS.items())
    header = _described(codebook, arrays)
    assert _is_sound(header)
    text = json.dumps(header).encode()
    yield text
    at = _FIXED.size + len(text)
    for name, place in header["arrays"].items():
        yield bytes(place["begin"] - at)
        yield np.ascontiguousarray(arrays[name]).data.cast("B") if arrays[name].size else b""
        at = place["end"]


def _described(codebook: int, arrays: Mapping[str, Array]) -> dict[str, Any]:
    """The header. Its own length decides where the first array begins, so that the header is made until both agree."""
    begin = 0
    while True:
        places, end = {}, begin
        for name in _ARRAYS:
            start = -(-end // _ALIGNMENT) * _ALIGNMENT
            end = start + arrays[name].nbytes
            places[name] = {"begin": start, "end": end, "shape": list(arrays[name].shape)}
        header = {"codebook": codebook, "bytes": end, "arrays": places}
        needed = _FIXED.size + len(json.dumps(header))
        if needed <= begin:
            return header
        begin = -(-needed // _ALIGNMENT) * _ALIGNMENT


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as stream:
            yield stream
    except FileNotFoundError:
        raise ArtifactError("index not found", where=str(path), hint=_HINT) from None
    except OSError as error:
        raise ArtifactError(f"the index cannot be read: {error.strerror}", where=str(path), hint=_HINT) from None


def _header(path: Path, stream: BinaryIO) -> tuple[str, bytes, dict[str, Any]]:
    """Digest, text and content of the header, checked as far as reading the arrays depends on it."""
    fixed = stream.read(_FIXED.size)
    if fixed[: len(MAGIC)] != MAGIC:
        raise ArtifactError("this is no index of a catalogue", where=str(path), hint=_HINT)
    if len(fixed) < _FIXED.size:
        raise ArtifactError("the index is truncated within its head", where=str(path), hint=_HINT)
    _, version, size, digest = _FIXED.unpack(fixed)
    if version != VERSION:
        raise ArtifactError(f"the index is of version {version}, this package reads {VERSION}", where=str(path), hint=_HINT)
    text = stream.read(min(size, _LARGEST_HEADER))
    try:
        header = json.loads(text)
        sound = _is_sound(header)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise ArtifactError("the head of the index is damaged or truncated", where=str(path), hint=_HINT)
    return digest.hex(), text, header


def _is_sound(header: Any) -> bool:
    """Whether a header gives every array its place in the file, of a size that goes with those of the others."""
    sizes = {"V": header["codebook"], "W": words_of(header["codebook"])}
    if header["arrays"].keys() != _ARRAYS.keys() or not 1 <= header["codebook"] <= MAX_CODEBOOK:
        return False
    for name, (dtype, axes) in _ARRAYS.items():
        place = header["arrays"][name]
        for axis, size in zip(axes, place["shape"], strict=True):
            letter, plus, _ = axis.partition(" + 1")
            if size - bool(plus) < 1 or sizes.setdefault(letter, size - bool(plus)) != size - bool(plus):
                return False
        nbytes = math.prod(place["shape"]) * np.dtype(dtype).itemsize
        if not 0 <= place["begin"] <= header["bytes"] - nbytes or place["end"] != place["begin"] + nbytes:
            return False
    return True
