"""Items out of a graph that follows a catalogue: brute force with every rule, swaps under load, rollback, and what does not load."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onerec_trt.core.errors import ArtifactError, RequestError
from onerec_trt.models.catalogue_index import CatalogueItems, index_arrays, index_in_memory
from onerec_trt.runtime import item_index
from onerec_trt.runtime.item_index import ItemIndex, write_index
from onerec_trt.runtime.item_rules import ItemRules
from onerec_trt.runtime.item_runner import ItemBatch, ItemRunner
from onerec_trt.runtime.onnxruntime_runner import OnnxRuntimeRunner

from .item_graph import item_graph, level_logits

CODEBOOK, WIDTH, CAPACITY, SWAPS = 9, 400, 200, 1000  # so many beams that every item comes out


def catalogue(seed: int, items: int = 60) -> CatalogueItems:
    draw = np.random.default_rng(seed)
    ids = draw.permutation(1000)[:items] + 1000 * seed
    sids = draw.integers(0, CODEBOOK, (items, 3)) // draw.integers(1, 4, (items, 1))
    return CatalogueItems(ids, sids, draw.integers(0, 8, items, np.uint64))


def requests(count: int) -> dict[str, np.ndarray]:
    return {"features": np.zeros((count, 2, 3), np.float16), "lengths": np.ones((count, 3), np.int64)}


@pytest.fixture(scope="module")
def graph() -> OnnxRuntimeRunner:
    return OnnxRuntimeRunner(item_graph(CODEBOOK, WIDTH, CAPACITY), threads=1)


def items_of(batch: ItemBatch, request: int) -> list[tuple[tuple[int, ...], list[int]]]:
    """Semantic ID and item ids of every place that has one."""
    found = batch.sids_BW3[request]
    assert ((found >= 0).all(1) == np.isfinite(batch.scores_BW[request])).all()
    assert (found[np.isneginf(batch.scores_BW[request])] == -1).all()
    return [(tuple(sid), batch.items[request].at(place)) for place, sid in enumerate(found.tolist()) if sid[0] >= 0]


def expected(items: CatalogueItems, rules: ItemRules) -> dict[tuple[int, ...], list[int]]:
    """Every allowed item by its semantic ID."""
    found: dict[tuple[int, ...], list[int]] = {}
    for number, sid, bits in zip(items.ids_n.tolist(), items.sids_n3.tolist(), items.categories_n.tolist(), strict=True):
        if number not in rules.excluded and (not rules.required or bits & rules.required) and not bits & rules.forbidden:
            found.setdefault(tuple(sid), []).append(number)
    return {sid: sorted(numbers) for sid, numbers in found.items()}


bits = st.integers(0, 7)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 20), st.lists(st.tuples(bits, bits, st.lists(st.integers(0, 59), max_size=8)), min_size=1, max_size=4))
def test_exactly_the_allowed_items_best_first(graph: OnnxRuntimeRunner, seed: int, drawn: list[tuple[int, int, list[int]]]) -> None:
    items = catalogue(seed)
    index = index_in_memory(items, CODEBOOK, 40)
    rules = [ItemRules(required=a, forbidden=b, excluded=(*items.ids_n[places].tolist(), 10**9)) for a, b, places in drawn]
    batch = ItemRunner(graph, index)(requests(len(rules)), rules)
    assert batch.catalogue == index.digest
    log = level_logits(CODEBOOK).astype(np.float64)
    log -= np.log(np.exp(log).sum(1, keepdims=True))
    for request, rule in enumerate(rules):
        wanted = expected(items, rule)
        found = items_of(batch, request)
        assert dict(found) == wanted
        scores = [sum(log[level, code] for level, code in enumerate(sid)) for sid, _ in found]
        assert batch.scores_BW[request, : len(found)] == pytest.approx(np.array(scores), abs=1e-5)
        assert (np.diff(scores) <= 1e-5).all()


def test_fewer_beams_are_a_beam_search_of_that_width(graph: OnnxRuntimeRunner) -> None:
    items = catalogue(3)
    index = index_in_memory(items, CODEBOOK, 40)
    batch = ItemRunner(graph, index)(requests(3), [ItemRules(beams=5), ItemRules(), ItemRules(beams=1)])
    narrow = ItemRunner(OnnxRuntimeRunner(item_graph(CODEBOOK, 5, CAPACITY), threads=1), index)(requests(1))
    assert items_of(batch, 0) == items_of(narrow, 0)
    assert len(items_of(batch, 0)) == 5
    assert len(items_of(batch, 2)) == 1
    assert dict(items_of(batch, 1)) == expected(items, ItemRules())


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (ItemRules(beams=0), "asks for 0 beams"),
        (ItemRules(beams=WIDTH + 1), "asks for 401 beams"),
        (ItemRules(required=1 << 64), "no integer of 64 bits"),
        (ItemRules(forbidden=-1), "no integer of 64 bits"),
        (ItemRules(excluded=catalogue(3).ids_n.tolist()), "excludes .* the graph takes 8"),
    ],
)
def test_impossible_rules_are_refused(graph: OnnxRuntimeRunner, rules: ItemRules, message: str) -> None:
    runner = ItemRunner(graph, index_in_memory(catalogue(3), CODEBOOK, 40))
    with pytest.raises(RequestError, match=message):
        runner(requests(1), [rules])
    with pytest.raises(RequestError, match="1 rules for 2 requests"):
        runner(requests(2), [ItemRules()])


def test_swaps_under_load_lose_no_request_and_mix_no_catalogue(graph: OnnxRuntimeRunner) -> None:
    catalogues = [catalogue(seed) for seed in (1, 2)]
    indexes = [index_in_memory(each, CODEBOOK, 40) for each in catalogues]
    wanted = {index.digest: expected(each, ItemRules(forbidden=1)) for index, each in zip(indexes, catalogues, strict=True)}
    runner = ItemRunner(graph, indexes[0])
    done, served, wrong = threading.Event(), [], []

    def client() -> None:
        while not done.is_set() or len(served) < 20:
            batch = runner(requests(2), [ItemRules(forbidden=1)] * 2)
            served.append(batch.catalogue)
            if any(dict(items_of(batch, request)) != wanted[batch.catalogue] for request in range(2)):
                wrong.append(batch)

    clients = [threading.Thread(target=client) for _ in range(2)]
    for each in clients:
        each.start()
    for swap, index in enumerate(itertools.islice(itertools.cycle(reversed(indexes)), SWAPS)):
        runner.swap(index)
        while swap < 2 and index.digest not in served and any(each.is_alive() for each in clients):
            time.sleep(0.001)  # all swaps together may take no longer than one batch
    done.set()
    for each in clients:
        each.join()
    assert wrong == []
    assert set(served) == set(wanted)
    assert runner.catalogue == indexes[0].digest


def test_a_batch_under_way_ends_with_its_catalogue(graph: OnnxRuntimeRunner) -> None:
    old, new = (catalogue(seed) for seed in (1, 2))
    runner = ItemRunner(graph, index_in_memory(old, CODEBOOK, 40))
    pending = runner.submit(requests(1))
    runner.swap(index_in_memory(new, CODEBOOK, 40))
    batch = pending.result()
    assert batch.catalogue == index_in_memory(old, CODEBOOK, 40).digest
    assert dict(items_of(batch, 0)) == expected(old, ItemRules())
    assert dict(items_of(runner(requests(1)), 0)) == expected(new, ItemRules())


@pytest.mark.parametrize("slow", ["the index is read", "its content is staged"])
def test_batches_go_on_while_a_catalogue_is_loaded(
    graph: OnnxRuntimeRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    old, new = (index_in_memory(catalogue(seed), CODEBOOK, 40) for seed in (1, 2))
    write_index(path := tmp_path / "new.index", CODEBOOK, new.arrays)
    runner = ItemRunner(graph, old)
    begun, go_on = threading.Event(), threading.Event()
    owner, name = (ItemIndex, "load") if slow == "the index is read" else (graph, "stage_residents")
    real = getattr(owner, name)

    def held(*args: object) -> object:
        begun.set()
        assert go_on.wait(60)
        return real(*args)

    monkeypatch.setattr(owner, name, held)
    loading = threading.Thread(target=runner.load, args=(path,))
    loading.start()
    assert begun.wait(60)
    assert [runner(requests(1)).catalogue for _ in range(2)] == [old.digest] * 2
    go_on.set()
    loading.join()
    assert runner(requests(1)).catalogue == new.digest


def test_no_batch_waits_for_the_tables_of_its_catalogue(graph: OnnxRuntimeRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    items = catalogue(1)
    runner = ItemRunner(graph, index_in_memory(items, CODEBOOK, 40))
    made: list[str] = []
    for name in ("SortedTable", "RunNumbers"):
        monkeypatch.setattr(item_index, name, lambda _, name=name: made.append(name))
    rules = ItemRules(excluded=items.ids_n[:4].tolist(), required=3)
    assert dict(items_of(runner(requests(1), [rules]), 0)) == expected(items, rules)
    assert made == []


def test_what_does_not_load_leaves_the_old_catalogue(graph: OnnxRuntimeRunner, tmp_path: Path) -> None:
    items = catalogue(1)
    runner = ItemRunner(graph, index_in_memory(items, CODEBOOK, 40))
    before = runner.catalogue
    good = tmp_path / "good.index"
    write_index(good, CODEBOOK, index_arrays(catalogue(2), CODEBOOK, 40))
    (damaged := tmp_path / "damaged.index").write_bytes(good.read_bytes()[:-9])
    large = index_in_memory(catalogue(4, items=700), CODEBOOK)
    other = index_in_memory(CatalogueItems(np.array([1]), np.zeros((1, 3), np.int64), np.zeros(1, np.uint64)), CODEBOOK + 1)
    with pytest.raises(ArtifactError, match="truncated"):
        runner.load(damaged)
    with pytest.raises(ArtifactError, match="semantic IDs, the graph takes 200"):
        runner.swap(large)
    with pytest.raises(ArtifactError, match="codebook of 10 tokens, the graph of one of 9"):
        runner.swap(other)
    with pytest.raises(RequestError, match="no catalogue to go back to"):
        runner.rollback()
    assert runner.catalogue == before
    assert dict(items_of(runner(requests(1)), 0)) == expected(items, ItemRules())
    assert runner.load(good) == runner.catalogue == ItemIndex.load(good).digest
    assert runner.rollback() == before
    assert dict(items_of(runner(requests(1)), 0)) == expected(items, ItemRules())
