"""Rules of a batch on a catalogue whose items share semantic IDs: what they leave, beside brute force; rules that are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onerec_trt.core.errors import RequestError
from onerec_trt.core.graph_io import GraphIO
from onerec_trt.export.contracts import ItemSizes, item_serving_io
from onerec_trt.models.catalogue_index import CatalogueItems, index_in_memory
from onerec_trt.runtime import item_rules as item_rules_module
from onerec_trt.runtime.item_rules import OPEN, ItemRules, RuleEncoder, allowed_items, allowed_items_of_each, entries_without_items

CODEBOOK, CLASSES = 3, 40
ITEMS = CatalogueItems(
    np.random.default_rng(0).permutation(1000)[:90],
    np.random.default_rng(1).integers(0, CODEBOOK, (90, 3)),  # 25 semantic IDs: most have several items
    np.random.default_rng(2).integers(0, 8, 90).astype(np.uint64),
)
INDEX = index_in_memory(ITEMS, CODEBOOK, CLASSES)
ALL = np.arange(INDEX.sids)


def small_io(excluded: int = 30) -> GraphIO:
    return item_serving_io(3, 8, ItemSizes(CODEBOOK, items=25, excluded=excluded, classes=CLASSES))


def items_by_entry(rules: ItemRules) -> list[list[int]]:
    """Allowed items of every semantic ID of the catalogue, in the order of the index."""
    key = ITEMS.sids_n3 @ [CODEBOOK**2, CODEBOOK, 1]
    left: dict[int, list[int]] = {number: [] for number in sorted(set(key.tolist()))}
    for item, number, bits in zip(ITEMS.ids_n.tolist(), key.tolist(), ITEMS.categories_n.tolist(), strict=True):
        if item not in rules.excluded and (not rules.required or bits & rules.required) and not bits & rules.forbidden:
            left[number].append(item)
    return [sorted(items) for items in left.values()]


@st.composite
def some_rules(draw: st.DrawFn) -> ItemRules:
    """Exclusions by the item, repeated and unknown ones among them, and of all the items of some semantic IDs."""
    whole = draw(st.lists(st.sampled_from(ITEMS.sids_n3.tolist()), max_size=5))
    of_whole = [item for item, sid in zip(ITEMS.ids_n.tolist(), ITEMS.sids_n3.tolist(), strict=True) if sid in whole]
    single = draw(st.lists(st.sampled_from(ITEMS.ids_n.tolist()) | st.integers(-3, 2000), max_size=20))
    bits = st.just(0) | st.integers(0, 7)
    return ItemRules(excluded=(*single, *of_whole), required=draw(bits), forbidden=draw(bits))


@settings(deadline=None)
@given(st.lists(some_rules(), min_size=1, max_size=4))
def test_a_batch_beside_brute_force(rules: list[ItemRules]) -> None:
    found = allowed_items_of_each(INDEX, [ALL] * len(rules), rules)
    for each, items, gone in zip(rules, found, entries_without_items(INDEX, rules), strict=True):
        left = items_by_entry(each)
        assert [items.at(entry) for entry in ALL] == left
        touched = INDEX.entries_at(INDEX.places_with(each.excluded_ids))
        assert gone.tolist() == [entry for entry in ALL if entry in touched and not left[entry]]


@pytest.mark.parametrize("requests", [1, 2, 7])
def test_threads_change_nothing(requests: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(5)
    rules = [ItemRules(excluded=draw.choice(ITEMS.ids_n, 20 * (request % 3)), required=request) for request in range(requests)]
    alone = entries_without_items(INDEX, rules)
    monkeypatch.setattr(item_rules_module, "_THREADS", 3)
    monkeypatch.setattr(item_rules_module, "_IDS_OF_A_THREAD", 1)
    divided = entries_without_items(INDEX, rules)
    assert [each.tolist() for each in divided] == [each.tolist() for each in alone]
    assert any(each.size for each in alone) == (requests > 1)


def test_requests_of_one_batch_may_ask_for_different_semantic_ids() -> None:
    rules = [OPEN, ItemRules(forbidden=1), ItemRules(excluded=ITEMS.ids_n[:40].tolist())]
    entries = [np.array([3, -1, 3]), np.zeros(0, np.int64), np.array([24, 0])]
    for each, places, found in zip(rules, entries, allowed_items_of_each(INDEX, entries, rules), strict=True):
        left = items_by_entry(each)
        assert [found.at(place) for place in range(len(places))] == [left[entry] if entry >= 0 else [] for entry in places.tolist()]
        assert found.ids.tolist() == allowed_items(INDEX, places, each).ids.tolist()


@pytest.mark.parametrize(
    "excluded",
    [[1.5], np.array([np.nan]), ["7"], [2**63], [-1, 2**63], [2**64], [[1, 2]], np.array([2**63], np.uint64), [None]],
    ids=str,
)
def test_what_is_no_item_id_is_refused_and_not_rounded(excluded: Any) -> None:
    inputs, refused = RuleEncoder(INDEX, small_io()).inputs_of_each([OPEN, ItemRules(excluded=excluded)])
    assert {place: (error.what, error.where) for place, error in refused.items()} == {1: ("what is excluded are no item ids", "request 1")}
    assert inputs["limits"].tolist() == [[8, 0, 0]] * 2


@pytest.mark.parametrize("dtype", [np.int32, np.uint16, np.uint64, np.int64])
def test_item_ids_may_be_integers_of_any_type(dtype: Any) -> None:
    few = ITEMS.ids_n[:20]
    (expected,), (found,) = (entries_without_items(INDEX, [ItemRules(excluded=each)]) for each in (few.tolist(), few.astype(dtype)))
    assert len(expected)
    assert found.tolist() == expected.tolist()


def test_a_refused_request_runs_without_rules_beside_the_others() -> None:
    everything = ITEMS.ids_n.tolist()
    rules = [
        ItemRules(excluded=everything, required=1),
        ItemRules(excluded=everything[:3], beams=9),
        ItemRules(forbidden=1 << 64),
        ItemRules(excluded=[everything[0]] * 9, forbidden=2, beams=5),
        OPEN,
    ]
    inputs, refused = RuleEncoder(INDEX, small_io(excluded=5)).inputs_of_each(rules)
    assert {place: error.what for place, error in refused.items()} == {
        0: "request 0 excludes 25 semantic IDs, the graph takes 5",
        1: "request 1 asks for 9 beams, the graph keeps 1 to 8",
        2: "category bits of request 2 are no integer of 64 bits",
    }
    (gone,) = entries_without_items(INDEX, rules[3:4])
    assert inputs["limits"].tolist() == [[8, 0, 0]] * 3 + [[5, len(gone), 1], [8, 0, 0]]
    assert inputs["excluded"][3].tolist() == [*gone.tolist(), *[0] * (5 - len(gone))]
    assert inputs["allowed"].any(1).tolist() == [False, False, False, True, False]
    with pytest.raises(RequestError, match="request 0 excludes 25"):
        RuleEncoder(INDEX, small_io(excluded=5)).inputs(rules)
