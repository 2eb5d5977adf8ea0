"""Rules of a request out of its optional inputs, and its items into outputs; see repository/served_io.py for their form."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...core.arrays import Array, dtype_name
from ...core.errors import RequestError
from ...core.graph_io import GraphIO, Role
from ...runtime.item_rules import ItemRules
from ...runtime.item_runner import ItemBatch
from ..repository import served_io as served


def rules_of(given: Mapping[str, Array], contexts: int, where: str) -> tuple[ItemRules, ...]:
    """The rules of each context of a request.

    Args:
        given: The optional inputs that it brings.
        contexts: How many it has.
        where: Names the model in errors.

    Raises:
        RequestError: An input is of a wrong type or shape.
    """
    for name, array in given.items():
        _check(served.RULE_INPUTS[name], array, contexts, where)
    return tuple(_rules({name: array[row] for name, array in given.items()}) for row in range(contexts))


def outputs_of(batch: ItemBatch, rows: slice, io: GraphIO) -> dict[str, Array]:
    """What a request gets of a batch, by name."""
    items = batch.items[rows]
    most = max(1, *(len(each.ids) for each in items))  # the server's Python backend takes no empty tensor: the whole batch would fail
    ids_BN: Array = np.full((len(items), most), served.NO_ITEM, np.int64)
    for row, each in enumerate(items):
        ids_BN[row, : len(each.ids)] = each.ids
    digest = np.frombuffer(bytes.fromhex(batch.catalogue), np.uint8)
    return {
        io.name(Role.FOUND_ITEMS): batch.sids_BW3[rows],
        io.name(Role.ITEM_SCORES): batch.scores_BW[rows],
        served.ITEM_IDS: ids_BN,
        served.ITEM_COUNTS: np.stack([np.diff(each.rows) for each in items]).astype(np.int32),
        served.CATALOGUE: np.tile(digest, (len(items), 1)),
    }


def _check(tensor: served.ServedTensor, array: Array, contexts: int, where: str) -> None:
    if (dtype := dtype_name(array.dtype)) != tensor.dtype:
        raise RequestError(f"input '{tensor.name}' is {dtype}, the model takes {tensor.dtype}", where=where)
    (wanted,) = tensor.dims
    if array.ndim != 2 or len(array) != contexts or wanted not in (-1, array.shape[1]):
        what = f"input '{tensor.name}' has shape {list(array.shape)}, the model takes {[contexts, wanted]}"
        raise RequestError(what, where=where, hint="give a row for each context; a -1 stands for any size")


def _rules(given: Mapping[str, Array]) -> ItemRules:
    """The rules of one context, from its row of each input."""
    excluded = given.get(served.EXCLUDED_ITEMS, np.zeros(0, np.int64))
    single = {name: int(row[0]) for name, row in given.items() if name != served.EXCLUDED_ITEMS}
    return ItemRules(
        excluded=excluded[excluded != served.NO_ITEM],
        required=single.get(served.REQUIRED_CATEGORIES, 0),
        forbidden=single.get(served.FORBIDDEN_CATEGORIES, 0),
        beams=single.get(served.BEAMS),
    )
