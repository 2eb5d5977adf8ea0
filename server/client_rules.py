"""Rules as a client sends them, and items as it gets them; see repository/served_io.py for the form of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..core.arrays import Array
from ..runtime.item_rules import ItemRules
from .repository import served_io as served

ItemIds = tuple[tuple[int, ...], ...]  # of each semantic ID


def rule_inputs(rules: Sequence[ItemRules], beams: int) -> dict[str, Array]:
    """The optional inputs that carry the rules of each context: all of them, because the server batches requests of the same inputs only.

    Args:
        rules: One for each context.
        beams: Of the model: what a context without a wish gets.

    Raises:
        RequestError: Rules that no model could follow; names the context.
    """
    for row, each in enumerate(rules):
        each.require_numbers(f"context {row}")
    excluded = np.full((len(rules), max(1, *(len(each.excluded_ids) for each in rules))), served.NO_ITEM, np.int64)
    for row, each in enumerate(rules):
        excluded[row, : len(each.excluded_ids)] = each.excluded_ids
    wanted = [beams if each.beams is None else each.beams for each in rules]
    return {
        served.EXCLUDED_ITEMS: excluded,
        served.REQUIRED_CATEGORIES: np.array([[each.required] for each in rules], np.uint64),
        served.FORBIDDEN_CATEGORIES: np.array([[each.forbidden] for each in rules], np.uint64),
        served.BEAMS: np.array(wanted, np.int32)[:, None],
    }


def item_ids(found: Mapping[str, Array], row: int) -> ItemIds:
    """The ids of the items of each semantic ID of one context, out of a model's outputs."""
    ends = found[served.ITEM_COUNTS][row].cumsum().tolist()
    ids = found[served.ITEM_IDS][row].tolist()
    return tuple(tuple(ids[first:last]) for first, last in zip([0, *ends], ends, strict=False))


def catalogue_digest(found: Mapping[str, Array], row: int) -> str:
    """Digest of the catalogue that served one context."""
    digest: bytes = found[served.CATALOGUE][row].tobytes()
    return digest.hex()
