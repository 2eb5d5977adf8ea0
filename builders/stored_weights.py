"""Which weights of a graph a plan stores more than once: its bytes are searched for a piece of each.

A weight that TensorRT stores in another layout or type is not found, and says nothing; copies in the layout of the
graph, one for each profile or decoding step, are what makes a plan grow.
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.external_data_helper import ExternalDataInfo

from ..runtime.plan_record import StoredWeights

PIECE = 64  # bytes compared; a piece of a trained weight this long does not occur by chance
SMALLEST = 1 << 16  # bytes; smaller weights do not matter for a plan's size
_WORD = 8  # TensorRT aligns weights to more than that, so that only whole words need be looked at
_CHUNK = 1 << 24  # words read at a time


def stored_weights(plan: Path, model: onnx.ModelProto, beside: Path) -> StoredWeights:
    """How many times each large weight lies in a plan as it lies in the graph.

    Args:
        plan: The plan's file.
        model: The graph; its external data need not be loaded.
        beside: Path in whose folder the external data lies.
    """
    pieces = {piece: name for name, piece in _pieces(model, beside)}
    counts: Counter[str] = Counter()
    if not pieces or plan.stat().st_size < PIECE:
        return StoredWeights(searched=len(pieces), found=0, duplicated={})
    with plan.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for offset in _candidates(content, list(pieces)):
            name = pieces.get(content[offset : offset + PIECE])
            if name is not None:
                counts[name] += 1
    duplicated = {name: count for name, count in sorted(counts.items()) if count > 1}
    return StoredWeights(searched=len(pieces), found=len(counts), duplicated=duplicated)


def _candidates(content: mmap.mmap, pieces: list[bytes]) -> Iterator[int]:
    """Offsets at which some piece's first word lies."""
    first: NDArray[np.uint64] = np.frombuffer(b"".join(piece[:_WORD] for piece in pieces), np.uint64)
    begins = np.zeros(1 << 16, bool)  # by the lowest two bytes: rules almost every word out at the cost of one look-up
    begins[first.view(np.uint16)[:: _WORD // 2]] = True
    words = len(content) // _WORD
    for start in range(0, words, _CHUNK):
        part = np.frombuffer(content, np.uint64, min(_CHUNK, words - start), start * _WORD)
        likely = np.flatnonzero(begins[part.view(np.uint16)[:: _WORD // 2]])
        hits = likely[np.isin(part[likely], first)]
        del part  # a view keeps the mapping from being closed
        yield from ((start + int(hit)) * _WORD for hit in hits)


def _pieces(model: onnx.ModelProto, beside: Path) -> Iterator[tuple[str, bytes]]:
    """The first bytes of every large weight. Weights that begin alike, such as constants, cannot be told apart and are left out."""
    found: dict[bytes, list[str]] = {}
    for initializer in model.graph.initializer:
        size, piece = _beginning(initializer, beside)
        if size >= SMALLEST and len(set(piece)) > 1:
            found.setdefault(piece, []).append(initializer.name)
    yield from ((names[0], piece) for piece, names in found.items() if len(names) == 1)


def _beginning(initializer: onnx.TensorProto, beside: Path) -> tuple[int, bytes]:
    """A weight's size in bytes, and its first ones."""
    if initializer.data_location != onnx.TensorProto.EXTERNAL:
        return len(initializer.raw_data), initializer.raw_data[:PIECE]
    place = ExternalDataInfo(initializer)
    with (beside.parent / place.location).open("rb") as stream:
        stream.seek(place.offset or 0)
        return int(place.length or 0), stream.read(PIECE)
