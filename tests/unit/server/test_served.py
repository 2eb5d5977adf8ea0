"""Requests to a real server on the CPU: items as ONNX Runtime gives them, an error of its own for each bad request, nothing for others."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onerec_trt.core.errors import ArtifactError, RequestError
from onerec_trt.server.client import Client
from onerec_trt.server.launch.control import Control
from onerec_trt.server.launch.flags import Endpoints
from onerec_trt.server.repository.store import Repository
from onerec_trt.tools.serving.load import Load, LoadResult, measure_load


@pytest.fixture(scope="module")
def export(make_export: Callable[[Path, int], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_export(tmp_path_factory.mktemp("export") / "exported", 0)


@pytest.fixture(scope="module")
def running(export: Path, add: Any, start: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    repository = Repository(tmp_path_factory.mktemp("served") / "repository")
    add(repository, export, instances=2)
    with start(repository) as server:
        yield server


def test_items_are_those_of_onnxruntime_bit_for_bit_over_every_way_in(running: Any, export: Path, asking: Any, reference: Any) -> None:
    random, expected = np.random.default_rng(1), reference(export)
    for protocol in ("http", "grpc"):
        for shared_memory in (False, True):
            with running.client(protocol, shared_memory=shared_memory) as client:
                for tokens in (1, 5, 32):
                    asked = asking(random, tokens)
                    items = client.recommend(asked.features_SF, asked.lengths_3)
                    np.testing.assert_array_equal(items.sids_W3, expected(asked)["sids"][0])
                    np.testing.assert_array_equal(items.scores_W, expected(asked)["scores"][0])


def test_64_clients_each_get_their_own_items(running: Any, export: Path, asking: Any, reference: Any) -> None:
    expected = reference(export)

    def one_client(seed: int) -> int:
        random = np.random.default_rng(seed)
        with running.client("grpc" if seed % 2 else "http") as client:
            for _ in range(5):
                asked = asking(random)
                items = client.recommend(asked.features_SF, asked.lengths_3)
                np.testing.assert_array_equal(items.scores_W, expected(asked)["scores"][0])
        return 5

    with ThreadPoolExecutor(64) as pool:
        assert sum(pool.map(one_client, range(64))) == 320
    running.wait_for(lambda: largest_batch(running) > 2)  # requests of different length share batches; counted after they were answered


def largest_batch(running: Any) -> int:
    """Contexts in the largest batch that the server has counted."""
    with urllib.request.urlopen(f"http://127.0.0.1:{running.ports['http']}/v2/models/onerec/stats", timeout=10) as answer:
        (statistics,) = json.load(answer)["model_stats"]
    return max((int(each["batch_size"]) for each in statistics["batch_stats"]), default=0)


@pytest.mark.parametrize("rate", [None, 200.0])
def test_load_is_measured_as_clients_see_it(running: Any, tmp_path: Path, rate: float | None) -> None:
    load = Load(f"127.0.0.1:{running.ports['grpc']}", "grpc", "onerec", 4, rate, (3, 9), 2, 0.5, 1)
    found = measure_load(load, tmp_path / "load.json")
    assert LoadResult.model_validate_json((tmp_path / "load.json").read_text()) == found
    assert found.failed == 0
    assert 0 < found.p50_ms <= found.p99_ms
    if rate is None:
        assert found.requests_per_s >= (len(found.samples_ms) - 4) * 2 / 0.5, "each of 4 loops counts from its first answer"
    else:
        assert found.requests_per_s == pytest.approx(len(found.samples_ms) * 2 / 0.5)
    too_long = measure_load(replace(load, contexts=(3, 33)))
    assert too_long.failed > 0, "a request that the server refuses is no sample"


BAD = {
    "NaN": (lambda a: (a.features_SF * np.float16(np.nan), a.lengths_3), "NaN or infinity"),
    "lengths that do not fit": (lambda a: (a.features_SF, a.lengths_3 * 9), "lengths add up to"),
    "a negative length": (lambda a: (a.features_SF, a.lengths_3 - 100), "a length is negative"),
    "lengths with fractions": (lambda a: (a.features_SF, [2.5, 3.5, 3.0]), "'lengths' is float64"),
    "a wrong width": (lambda a: (a.features_SF[:, :3], a.lengths_3), "unexpected shape"),
    "a wrong type": (lambda a: (a.features_SF.astype(np.float32), a.lengths_3), "data-type"),
    "a type of no model": (lambda a: (a.features_SF.astype(np.float64), a.lengths_3), "'features' is float64"),
    "another byte order": (lambda a: (a.features_SF.astype(a.features_SF.dtype.newbyteorder()), a.lengths_3), "'features' is .f2"),
    "too long a context": (lambda a: (np.zeros((40, a.features_SF.shape[1]), np.float16), a.lengths_3), "the model takes 32"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_request_gets_an_error_of_its_own_and_those_around_it_their_items(
    running: Any, export: Path, asking: Any, reference: Any, what: str
) -> None:
    random, expected = np.random.default_rng(2), reference(export)
    spoil, said = BAD[what]
    good = [asking(random, 9) for _ in range(8)]

    def send(arguments: tuple[Any, Any]) -> Any:
        with running.client() as client:
            return client.recommend(*arguments)

    with ThreadPoolExecutor(9) as pool:
        bad = pool.submit(send, spoil(asking(random, 9)))
        found = list(pool.map(send, [(asked.features_SF, asked.lengths_3) for asked in good]))
    with pytest.raises(RequestError, match=said):
        bad.result()
    for asked, items in zip(good, found, strict=True):
        np.testing.assert_array_equal(items.scores_W, expected(asked)["scores"][0])


def test_failed_requests_are_counted_which_the_servers_own_metrics_call_a_success(running: Any, asking: Any) -> None:
    asked = asking(np.random.default_rng(3), 4)
    counted = running.metric("onerec_trt_failed_requests_total", reason="request")
    with running.client() as client, pytest.raises(RequestError, match="NaN"):
        client.recommend(asked.features_SF * np.float16(np.nan), asked.lengths_3)
    assert running.metric("onerec_trt_failed_requests_total", reason="request") == counted + 1


def test_equal_requests_are_computed_each_time_and_never_answered_from_a_cache(running: Any, asking: Any) -> None:
    asked = asking(np.random.default_rng(4), 4)
    before = running.metric("nv_inference_exec_count")
    with running.client() as client:
        for _ in range(3):
            client.recommend(asked.features_SF, asked.lengths_3)
    running.wait_for(lambda: running.metric("nv_inference_exec_count") >= before + 3)  # the server counts after it has answered


def test_the_model_was_warm_when_it_became_ready(running: Any) -> None:
    assert running.metric("onerec_trt_warmed_shapes") == 2


def test_only_who_has_its_key_takes_a_server_for_its_own(running: Any) -> None:
    """Whoever starts another one at its ports must not wait for this one, and then blame a version that this one does not load."""
    control = Control(Endpoints("127.0.0.1", *(running.ports[each] for each in ("http", "grpc", "metrics"))), "the key of another one")
    assert not control.live()
    with pytest.raises(ArtifactError, match="the server cannot load the model: This API is restricted"):
        control.load("onerec", "{}")


def test_a_client_says_what_it_could_not_reach(running: Any) -> None:
    http, grpc = (f"127.0.0.1:{running.ports[protocol]}" for protocol in ("http", "grpc"))
    for url, protocol in ((grpc, "http"), (http, "grpc"), ("127.0.0.1:1", "http"), ("127.0.0.1:1", "grpc")):
        with pytest.raises(RequestError, match=f"(?s)the server does not answer.*where: onerec at {url}.*at which address and port"):
            Client(url, protocol=protocol)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=r"the server refuses: .*nothing"):
        Client(http, "nothing")


def test_apis_that_change_a_server_ask_for_its_key(running: Any) -> None:
    for path in ("/v2/repository/index", "/v2/trace/setting", "/v2/logging"):
        assert running.status(path, method="POST" if "index" in path else "GET") == 403, path
    assert running.status("/v2/models/onerec/ready") == 200
