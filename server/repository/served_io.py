"""What clients of a served model give and get. It is the graph's contract, but where a graph follows a catalogue.

There the server holds the catalogue and encodes rules: a request names items and categories, and none of the graph's own rule inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...core.graph_io import BATCH, CONTEXT, GraphIO, GraphTensor, Role

# Optional inputs of a request.
EXCLUDED_ITEMS = "excluded_items"  # INT64 [n]: item ids that must not come out
REQUIRED_CATEGORIES = "required_categories"  # UINT64 [1]: bits, of which an item needs at least one
FORBIDDEN_CATEGORIES = "forbidden_categories"  # UINT64 [1]: bits that an item must not have
BEAMS = "beams"  # INT32 [1]: beams after each step, and semantic IDs at most
# Outputs beside the graph's own.
ITEM_IDS = "item_ids"  # INT64 [n]: ids of the first semantic ID's items, then those of the next; ascending within one
ITEM_COUNTS = "item_counts"  # INT32 [W]: how many items each semantic ID has
CATALOGUE = "catalogue"  # UINT8 [32]: digest of the catalogue that served the request

NO_ITEM = int(np.iinfo(np.int64).min)  # fills up lists of item ids, where contexts of one request have lists of different length
_RULES = (Role.REQUEST_LIMITS, Role.ALLOWED_CLASSES, Role.EXCLUDED_SIDS)
_DIGEST_BYTES = 32


@dataclass(frozen=True)
class ServedTensor:
    """An input or output of a served model: `dims` without the batch, -1 for what may have any size."""

    name: str
    dtype: str
    dims: tuple[int, ...]
    optional: bool = False


def follows_catalogue(io: GraphIO) -> bool:
    """Whether the graph's beams follow a catalogue."""
    return io.has(Role.FIRST_CLASSES)


def context_io(io: GraphIO) -> GraphIO:
    """The contract without the inputs of a catalogue and of rules: what a request has to bring in any case."""
    if not follows_catalogue(io):
        return io
    return io.model_copy(update={"inputs": tuple(tensor for tensor in io.per_request if tensor.role not in _RULES)})


def served_inputs(io: GraphIO) -> tuple[ServedTensor, ...]:
    """What a request brings."""
    return (*map(_served, context_io(io).per_request), *(RULE_INPUTS.values() if follows_catalogue(io) else ()))


def served_outputs(io: GraphIO) -> tuple[ServedTensor, ...]:
    """What it gets."""
    if not follows_catalogue(io):
        return tuple(map(_served, io.outputs))
    beams = io.tensor(Role.ITEM_SCORES).dims[-1]
    items = (
        ServedTensor(ITEM_IDS, "int64", (-1,)),
        ServedTensor(ITEM_COUNTS, "int32", (beams,)),
        ServedTensor(CATALOGUE, "uint8", (_DIGEST_BYTES,)),
    )
    return (*map(_served, io.outputs), *items)


RULE_INPUTS: Mapping[str, ServedTensor] = {
    tensor.name: tensor
    for tensor in (
        ServedTensor(EXCLUDED_ITEMS, "int64", (-1,), optional=True),
        ServedTensor(REQUIRED_CATEGORIES, "uint64", (1,), optional=True),
        ServedTensor(FORBIDDEN_CATEGORIES, "uint64", (1,), optional=True),
        ServedTensor(BEAMS, "int32", (1,), optional=True),
    )
}


def _served(tensor: GraphTensor) -> ServedTensor:
    assert tensor.axes[0] == BATCH
    return ServedTensor(tensor.name, tensor.dtype, tuple(-1 if axis == CONTEXT else int(axis) for axis in tensor.axes[1:]))
