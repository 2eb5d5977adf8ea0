"""A real server whose model follows a catalogue: items, rules of each request, and catalogues swapped while requests run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onerec_trt.core.errors import ArtifactError, RequestError
from onerec_trt.models.catalogue_index import CatalogueItems, index_arrays
from onerec_trt.runtime.item_index import ItemIndex, write_index
from onerec_trt.runtime.item_rules import ItemRules
from onerec_trt.runtime.item_runner import ItemRunner
from onerec_trt.runtime.onnxruntime_runner import OnnxRuntimeRunner
from onerec_trt.server.repository.store import Repository

CODEBOOK, WIDTH, CAPACITY, EXCLUDED = 9, 40, 200, 8
CONTEXT = np.zeros((2, 3), np.float16), np.array([0, 0, 2])
SWAPS = 8


def write_catalogue(path: Path, seed: int) -> ItemIndex:
    """60 items, several of which share a semantic ID; their ids tell the catalogue."""
    draw = np.random.default_rng(seed)
    ids = draw.permutation(1000)[:60] + 1000 * seed
    items = CatalogueItems(ids, draw.integers(0, 4, (60, 3)), draw.integers(0, 8, 60, np.uint64))
    write_index(path, CODEBOOK, index_arrays(items, CODEBOOK, 40))
    return ItemIndex.load(path)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("catalogues")
    return [folder / "1.index", folder / "2.index"]


@pytest.fixture(scope="module")
def indexes(paths: list[Path]) -> list[ItemIndex]:
    return [write_catalogue(path, seed) for seed, path in enumerate(paths, 1)]


@pytest.fixture(scope="module")
def export(make_export: Any, item_graph: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "exported"
    exported: Path = make_export(folder, 0, item_graph(CODEBOOK, WIDTH, CAPACITY, EXCLUDED))
    return exported


@pytest.fixture(scope="module")
def running(export: Path, paths: list[Path], indexes: list[ItemIndex], add: Any, start: Any, tmp_path_factory: Any) -> Iterator[Any]:
    repository = Repository(tmp_path_factory.mktemp("served") / "repository")
    add(repository, export, instances=2)
    repository.add_catalogue("onerec", paths[0])
    with start(repository) as server:
        yield server


@pytest.fixture(scope="module")
def expected(export: Path, indexes: list[ItemIndex]) -> Callable[[ItemRules, str], Any]:
    """What the runtime finds for rules, with the catalogue of a digest."""
    graph = OnnxRuntimeRunner(export / "model.onnx", threads=1)
    runners = {index.digest: ItemRunner(graph, index) for index in indexes}

    def found(rules: ItemRules, catalogue: str) -> Any:
        runner = runners[catalogue]
        index = next(each for each in indexes if each.digest == catalogue)
        runner.swap(index)  # both runners have one graph
        return runner({"features": CONTEXT[0][None], "lengths": CONTEXT[1][None]}, [rules])

    return found


def rules_of_many(index: ItemIndex) -> list[ItemRules]:
    some = index.arrays["items"][[3, 17, 40]].tolist()
    return [ItemRules(), ItemRules(excluded=some), ItemRules(required=2, forbidden=1), ItemRules(beams=5), ItemRules(forbidden=6, beams=7)]


def require_same(items: Any, batch: Any) -> None:
    np.testing.assert_array_equal(items.sids_W3, batch.sids_BW3[0])
    np.testing.assert_allclose(items.scores_W, batch.scores_BW[0], rtol=1e-6)  # ONNX Runtime sums otherwise in larger batches
    assert items.ids == tuple(tuple(batch.items[0].at(place)) for place in range(WIDTH))
    assert items.catalogue == batch.catalogue


def test_items_and_rules_are_those_of_the_runtime_over_every_way_in(running: Any, indexes: list[ItemIndex], expected: Any) -> None:
    for protocol, shared_memory in (("http", False), ("grpc", True)):
        with running.client(protocol, shared_memory=shared_memory) as client:
            for rules in rules_of_many(indexes[0]):
                items = client.recommend(*CONTEXT, rules)
                require_same(items, expected(rules, indexes[0].digest))
    several = rules_of_many(indexes[0])
    with running.client() as client:
        together = client.recommend_batch(np.tile(CONTEXT[0], (len(several), 1, 1)), np.tile(CONTEXT[1], (len(several), 1)), several)
    for rules, items in zip(several, together, strict=True):
        require_same(items, expected(rules, indexes[0].digest))
    assert any(len(ids) > 1 for ids in together[0].ids), "several items share a semantic ID"


BAD = {
    "no beams": (ItemRules(beams=0), "asks for 0 beams"),
    "too many beams": (ItemRules(beams=WIDTH + 1), "asks for 41 beams"),
    "too many exclusions": (None, "the graph takes 8"),
}


@pytest.mark.parametrize("what", BAD)
def test_impossible_rules_get_an_error_of_their_own(running: Any, indexes: list[ItemIndex], expected: Any, what: str) -> None:
    rules, said = BAD[what]
    bad = rules or ItemRules(excluded=indexes[0].arrays["items"].tolist())
    good = rules_of_many(indexes[0])

    def send(given: ItemRules) -> Any:
        with running.client() as client:
            return client.recommend(*CONTEXT, given)

    with ThreadPoolExecutor(6) as pool:
        refused = pool.submit(send, bad)
        found = list(pool.map(send, good))
    with pytest.raises(RequestError, match=said):
        refused.result()
    for given, items in zip(good, found, strict=True):
        require_same(items, expected(given, indexes[0].digest))


def test_a_request_that_finds_no_item_is_answered_with_none_and_others_with_theirs(
    running: Any, indexes: list[ItemIndex], expected: Any
) -> None:
    nothing, good = ItemRules(required=1 << 60), rules_of_many(indexes[0])
    for protocol in ("http", "grpc"):
        with running.client(protocol) as client:
            empty = client.recommend(*CONTEXT, nothing)
        assert empty.ids == ((),) * WIDTH
        assert (empty.sids_W3 == -1).all()
        assert np.isneginf(empty.scores_W).all()
    with running.client() as client:
        together = client.recommend_batch(
            np.tile(CONTEXT[0], (len(good) + 1, 1, 1)), np.tile(CONTEXT[1], (len(good) + 1, 1)), [nothing, *good]
        )
    for rules, items in zip([nothing, *good], together, strict=True):
        require_same(items, expected(rules, indexes[0].digest))


def test_malformed_rules_are_refused(running: Any) -> None:
    context = {"features": CONTEXT[0][None], "lengths": CONTEXT[1][None]}
    with running.client() as client:
        with pytest.raises(RequestError, match="data-type"):
            client.infer({**context, "beams": np.ones((1, 1), np.int64)})
        with pytest.raises(RequestError, match="shape"):
            client.infer({**context, "beams": np.ones((1, 2), np.int32)})


def test_catalogues_change_under_load_and_no_request_is_lost_or_sees_two(
    running: Any, paths: list[Path], indexes: list[ItemIndex], expected: Any
) -> None:
    rules = ItemRules(forbidden=1)
    wanted = {index.digest: expected(rules, index.digest) for index in indexes}
    ended, lock = threading.Event(), threading.Lock()
    answers: list[Any] = []

    def ask() -> None:
        with running.client() as client:
            while not ended.is_set():
                items = client.recommend(*CONTEXT, rules)
                with lock:
                    answers.append(items)

    loaded = running.metric("onerec_trt_catalogues_total", result="loaded")
    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(ask) for _ in range(4)]
        for swap in range(1, SWAPS + 1):
            running.repository.add_catalogue("onerec", paths[swap % 2])
            loaded += 2  # of both instances
            running.wait_for(lambda: running.metric("onerec_trt_catalogues_total", result="loaded") == loaded)  # noqa: B023
            running.wait_for(lambda: bool(answers) and answers[-1].catalogue == indexes[swap % 2].digest)  # noqa: B023
        ended.set()
        for client in clients:
            client.result()
    assert {each.catalogue for each in answers} == set(wanted)
    for items in answers:
        require_same(items, wanted[items.catalogue])


def test_what_is_damaged_is_not_served_and_one_can_go_back(
    running: Any, paths: list[Path], indexes: list[ItemIndex], tmp_path: Path
) -> None:
    repository, served = running.repository, indexes[SWAPS % 2].digest

    def catalogue() -> str:
        with running.client() as client:
            found: str = client.recommend(*CONTEXT).catalogue
            return found

    damaged = tmp_path / "damaged.index"
    damaged.write_bytes(paths[0].read_bytes()[:-9])
    foreign = tmp_path / "foreign.index"
    items = CatalogueItems(np.array([1]), np.zeros((1, 3), np.int64), np.zeros(1, np.uint64))
    write_index(foreign, CODEBOOK + 1, index_arrays(items, CODEBOOK + 1, 40))
    for path, said in ((damaged, "truncated"), (foreign, "codebook of 10 tokens"), (tmp_path / "none.index", "not found")):
        with pytest.raises(ArtifactError, match=said):
            repository.add_catalogue("onerec", path)
    assert catalogue() == served

    other = next(index.digest for index in indexes if index.digest != served)
    catalogues = repository.catalogues("onerec")
    catalogues.path(other).write_bytes(damaged.read_bytes())  # a copy that broke off, by whoever
    failed = running.metric("onerec_trt_catalogues_total", result="failed")
    before = catalogues.served_path.read_bytes()
    catalogues.served_path.write_text(f'{{"digests": ["{other}", "{served}"]}}')
    running.wait_for(
        lambda: running.metric("onerec_trt_catalogues_total", result="failed") >= failed + 2
    )  # more where one read half a file
    assert catalogue() == served
    assert running.status("/v2/models/onerec/ready") == 200

    catalogues.served_path.write_bytes(before)
    repository.add_catalogue("onerec", next(path for path, index in zip(paths, indexes, strict=True) if index.digest == other))
    running.wait_for(lambda: catalogue() == other)
    assert repository.rollback_catalogue("onerec") == served
    running.wait_for(lambda: all(catalogue() == served for _ in range(4)))
