"""A server on a GPU whose plan follows a catalogue: items and rules, catalogues swapped under load, the way back, an orderly end.

The server is that of `make test`, or the one that ONEREC_TRT_SERVER names, as `onerec-trt serve --server` takes it.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onerec_trt.models.catalogue_index import index_arrays
from onerec_trt.operators.kernels.beam_step_items_cases import random_catalogue
from onerec_trt.runtime.item_index import ItemIndex, write_index
from onerec_trt.runtime.item_rules import ItemRules
from onerec_trt.runtime.item_runner import ItemRunner
from onerec_trt.runtime.tensorrt_runner import TensorRtRunner
from onerec_trt.server.client import Client, Items
from onerec_trt.server.launch.flags import Endpoints
from onerec_trt.server.launch.supervisor import ServeOptions, serve
from onerec_trt.server.repository.add import Options, add_version
from onerec_trt.server.repository.store import Repository
from onerec_trt.tools.tuning.item_plans import valid_items

from .small_catalogue import BATCH, BEAM, CLASSES, CODEBOOK, CONFIG, CONTEXT, DRIFT_NAT, LENGTHS, build, export

SERVER = Path(os.environ.get("ONEREC_TRT_SERVER") or Path(__file__).parents[2] / ".venv-server")
PATIENCE_S = 240.0
CLIENTS, SWAPS = BATCH, 10

pytestmark = pytest.mark.skipif(not SERVER.exists(), reason="needs a server: make .venv-server/.installed, or ONEREC_TRT_SERVER")


@dataclass
class Served:
    """A server that `serve` watches over, in a thread."""

    repository: Repository
    plan: Path
    paths: list[Path]
    indexes: dict[str, ItemIndex]
    thread: threading.Thread
    said: list[str]
    errors: list[Exception]

    def client(self) -> Client:
        line = next(line for line in self.said if line.startswith("serving on"))
        return Client(f"127.0.0.1:{dict(re.findall(r'(gRPC|HTTP) ([0-9]+)', line))['gRPC']}", protocol="grpc")

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert self.thread.is_alive(), (self.said, self.errors)
            assert time.monotonic() < deadline, self.said
            time.sleep(0.02)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("plan")
    return build(export(root), root / "plans")


@pytest.fixture(scope="module")
def served(plan: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    paths = [folder / "1.index", folder / "2.index"]
    for seed, path in enumerate(paths, 1):
        write_index(path, CODEBOOK, index_arrays(random_catalogue(CODEBOOK, 3000, seed=seed), CODEBOOK, CLASSES))
    repository = Repository(folder / "repository")
    add_version(repository, plan, Options("python", unvalidated=True))
    repository.add_catalogue("onerec", paths[0])
    said: list[str] = []
    errors: list[Exception] = []
    stopped = threading.Event()

    def run() -> None:
        try:
            serve(repository, ServeOptions(SERVER, (), Endpoints("127.0.0.1", 0, 0, 0), shared_memory=False), said.append, stopped)
        except Exception as error:  # noqa: BLE001  the test looks at it
            errors.append(error)

    indexes = {index.digest: index for index in map(ItemIndex.load, paths)}
    server = Served(repository, plan, paths, indexes, threading.Thread(target=run, daemon=True), said, errors)
    server.thread.start()
    try:
        server.wait_for(lambda: any(line.startswith("serving on") for line in said))
        yield server
    finally:
        stopped.set()
        server.thread.join(PATIENCE_S)
    assert not server.thread.is_alive()
    assert errors == []


def context_of(client: int) -> tuple[Any, list[int]]:
    features = np.random.default_rng(client).standard_normal((CONTEXT, CONFIG.feature_width)).astype(np.float16)
    return features, list(LENGTHS)


def rules_of(client: int, index: ItemIndex) -> ItemRules:
    seen = tuple(index.arrays["items"][client : client + 50].tolist())
    return (ItemRules(), ItemRules(excluded=seen), ItemRules(required=6, forbidden=1), ItemRules(beams=5))[client % 4]


def require_allowed(items: Items, served: Served, rules: ItemRules) -> None:
    """Everything found is an item of the catalogue that the answer names, and allowed."""
    assert items.catalogue is not None
    counts = valid_items(served.indexes[items.catalogue], items.sids_W3[None], [rules])
    assert counts["found"] == counts["in the catalogue"] == counts["allowed"] == (rules.beams or BEAM)


def test_items_are_those_of_the_runtime(served: Served) -> None:
    index = next(iter(served.indexes.values()))
    runner = ItemRunner(TensorRtRunner.load(served.plan), index)
    for client in range(CLIENTS):
        (features, lengths), rules = context_of(client), rules_of(client, index)
        with served.client() as ask:
            items = ask.recommend(features, lengths, rules)
        own = runner({"features": features[None], "lengths": np.array([lengths])}, [rules])
        require_allowed(items, served, rules)
        np.testing.assert_array_equal(items.sids_W3, own.sids_BW3[0])
        np.testing.assert_allclose(items.scores_W, own.scores_BW[0], rtol=0, atol=DRIFT_NAT)
        assert items.ids == tuple(tuple(own.items[0].at(place)) for place in range(BEAM))
        assert items.catalogue == index.digest


def test_catalogues_change_under_load_and_no_answer_mixes_two(served: Served) -> None:
    index, ended = next(iter(served.indexes.values())), threading.Event()
    answers: list[list[Items]] = [[] for _ in range(CLIENTS)]

    def ask(client: int) -> None:
        with served.client() as asking:
            while not ended.is_set():
                answers[client].append(asking.recommend(*context_of(client), rules_of(client, index)))

    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(ask, client) for client in range(CLIENTS)]
        try:
            for swap in range(1, SWAPS + 1):
                served.repository.add_catalogue("onerec", served.paths[swap % 2])
                wanted = list(served.indexes)[swap % 2]
                served.wait_for(lambda: all(each and each[-1].catalogue == wanted for each in answers))  # noqa: B023
        finally:
            ended.set()
        for each in clients:
            each.result()
    for client, given in enumerate(answers):
        assert {items.catalogue for items in given} == set(served.indexes)
        for items in given:
            require_allowed(items, served, rules_of(client, index))
    served.repository.rollback_catalogue("onerec")
    with served.client() as asking:
        served.wait_for(lambda: asking.recommend(*context_of(0)).catalogue == list(served.indexes)[1 - SWAPS % 2])
