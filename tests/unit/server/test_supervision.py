"""A real server in trouble: bad versions, killed instances, a killed server. What was served goes on, and nothing hangs or stays behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from onerec_trt.core.errors import ArtifactError, RequestError
from onerec_trt.runtime.signature import new_key, sign
from onerec_trt.server.launch import flags, processes, supervisor
from onerec_trt.server.launch.control import Control
from onerec_trt.server.launch.flags import Endpoints
from onerec_trt.server.launch.shared_memory import SHARED_MEMORY, region_prefix
from onerec_trt.server.launch.supervisor import Supervisor
from onerec_trt.server.repository.store import Repository

from .process_table import runs, server_of_this_process

SERVER = Path(__file__).parents[3] / ".venv-server"
VERSIONS = (0, 1)  # seeds of version 1 and 2
PATIENCE_S = 60.0
BROKEN = "raise RuntimeError('this version does not load')\n"
COLD = """
from onerec_trt.server.python_backend.engines import OnnxRuntimeEngine
from onerec_trt.server.python_backend.model import TritonPythonModel


def warm_up(self, shapes):
    raise RuntimeError("this version cannot be warmed up")


OnnxRuntimeEngine.warm_up = warm_up
"""
SLOW = """
import time
from pathlib import Path
from onerec_trt.server.python_backend.model import TritonPythonModel as Whole


class TritonPythonModel(Whole):
    def initialize(self, args):
        super().initialize(args)
        time.sleep(0.5)
        Path(args["model_repository"], "warm").touch()
"""


@pytest.fixture(scope="module")
def exports(make_export: Callable[[Path, int], Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("exports")
    return [make_export(folder / str(seed), seed) for seed in VERSIONS]


@pytest.fixture
def repository(exports: list[Path], add: Any, tmp_path: Path) -> Repository:
    """Two versions; the first is served, by two instances."""
    made = Repository(tmp_path / "repository")
    for export in exports:
        add(made, export, instances=2)
    return made


class Traffic:
    """A client that asks the same all the time; each answer is that of a version, or an error."""

    def __init__(self, running: Any, asked: Any, expected: list[Any]) -> None:
        self.served: list[int] = []
        self.errors: list[str] = []
        self._running, self._asked, self._ended = running, asked, threading.Event()
        self._scores = [each(asked)["scores"][0] for each in expected]
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        with self._running.client() as client:
            while not self._ended.is_set():
                try:
                    scores_W = client.recommend(self._asked.features_SF, self._asked.lengths_3).scores_W
                except RequestError as error:
                    self.errors.append(str(error))
                    time.sleep(0.01)
                    continue
                self.served.append(next(number for number, known in enumerate(self._scores, 1) if np.array_equal(known, scores_W)))

    def end(self) -> None:
        self._ended.set()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "a request hangs"


@pytest.fixture
def traffic(asking: Any, reference: Any, exports: list[Path]) -> Callable[[Any], Any]:
    @contextmanager
    def flowing(running: Any) -> Iterator[Traffic]:
        traffic = Traffic(running, asking(np.random.default_rng(0), 9), [reference(export) for export in exports])
        running.wait_for(lambda: len(traffic.served) > 2)
        try:
            yield traffic
        finally:
            traffic.end()

    return flowing


def said(running: Any, text: str) -> Callable[[], bool]:
    return lambda: any(text in line for line in running.said)


def within_patience(condition: Callable[[], bool], otherwise: str) -> None:
    """Wait for what comes after the end of a server."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.02)


def regions() -> list[str]:
    return [each.name for each in SHARED_MEMORY.iterdir() if each.name.startswith(region_prefix())]


def test_versions_change_under_traffic_without_a_lost_request(repository: Repository, start: Any, traffic: Any, rewrite: Any) -> None:
    with start(repository) as running, traffic(running) as flow:
        repository.promote("onerec", 2)
        running.wait_for(lambda: 2 in flow.served)
        assert repository.rollback("onerec") == 1
        running.wait_for(lambda: flow.served[-1] == 1)
        (repository.path / "onerec" / "7").mkdir()  # half-written, by whoever
        rewrite(repository.folder("onerec", 2), "model.py", SLOW)
        repository.promote("onerec", 2)
        while running.status("/v2/models/onerec/versions/2/ready") != 200:
            time.sleep(0.01)
        assert (repository.path / "onerec" / "warm").exists(), "it was ready before it was warm"
        flow.end()
        assert not flow.errors
        assert re.sub(r"(.)\1+", r"\1", "".join(map(str, flow.served))) == "121" or flow.served[-1] == 2


def test_a_version_whose_warm_up_fails_is_set_aside_and_the_good_one_serves_on(
    repository: Repository, start: Any, traffic: Any, rewrite: Any
) -> None:
    """In both of its instances, which the server's own warm-up would not survive."""
    rewrite(repository.folder("onerec", 2), "model.py", COLD)
    with start(repository) as running, traffic(running) as flow:
        repository.promote("onerec", 2)
        running.wait_for(said(running, "onerec: back to version 1"))
        running.wait_for(lambda: len(flow.served) > 20)
        assert running.status("/v2/models/onerec/ready") == 200
        assert running.status("/v2/health/ready") == 400, "the server's own readiness says nothing of what it serves"
        assert not flow.errors
        assert set(flow.served) == {1}
    assert "this version cannot be warmed up" in (repository.path / "onerec" / "failed-2" / "why.txt").read_text()
    assert repository.promoted("onerec") == repository.versions("onerec") == (1,)


def test_a_version_that_was_changed_is_set_aside_before_the_server_starts(
    repository: Repository, start: Any, traffic: Any, rewrite: Any
) -> None:
    repository.promote("onerec", 2)
    model = repository.folder("onerec", 2) / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    with start(repository) as running, traffic(running) as flow:
        assert running.said[0].startswith("onerec: version 2 was set aside: the file does not match the version's description")
        running.wait_for(lambda: len(flow.served) > 5)
        assert set(flow.served) == {1}


def test_a_model_whose_only_version_does_not_load_ends_the_server_and_is_kept(
    exports: list[Path], add: Any, start: Any, rewrite: Any, tmp_path: Path
) -> None:
    repository = Repository(tmp_path / "repository")
    add(repository, exports[0])
    rewrite(repository.folder("onerec", 1), "model.py", BROKEN)
    with pytest.raises(AssertionError, match="the server cannot load the model"), start(repository):
        pass
    assert repository.promoted("onerec") == (1,)


def test_a_server_that_demands_signatures_serves_what_is_signed_and_nothing_else(
    make_export: Callable[[Path, int], Path], add: Any, start: Any, tmp_path: Path
) -> None:
    export, repository = make_export(tmp_path / "exported", 0), Repository(tmp_path / "repository")
    trusted, stranger = new_key(tmp_path / "key"), new_key(tmp_path / "other")
    sign(export / "model.onnx", tmp_path / "key")
    add(repository, export)
    with start(repository, (trusted,)) as running:
        assert running.status("/v2/models/onerec/ready") == 200
    with pytest.raises(AssertionError, match="signed by another key"), start(repository, (stranger,)):
        pass
    assert repository.promoted("onerec") == (1,)


def test_a_server_that_dies_while_a_version_is_loaded_is_what_is_wrong_not_the_version(repository: Repository, monkeypatch: Any) -> None:
    monkeypatch.setattr(supervisor, "_ENDING_S", PATIENCE_S)
    process = subprocess.Popen(["sleep", "0.3"])  # its connections are closed before it has ended
    control = Control(Endpoints("127.0.0.1", 0, 0, 0), "key")
    monkeypatch.setattr(control, "_call", Mock(side_effect=ConnectionRefusedError))
    repository.promote("onerec", 2)
    with pytest.raises(ArtifactError, match="the server ended with code 0"):
        Supervisor(repository, process, control, (), print).load("onerec")
    assert repository.promoted("onerec")[0] == 2


@pytest.mark.parametrize("problem", [ConnectionRefusedError("refused"), TimeoutError("timed out")])
def test_a_server_that_is_alive_and_cannot_be_reached_is_what_is_wrong_not_the_version(
    repository: Repository, monkeypatch: Any, problem: Exception
) -> None:
    monkeypatch.setattr(supervisor, "_ENDING_S", 0.1)
    repository.promote("onerec", 2)
    with subprocess.Popen(["sleep", "60"]) as process:
        control = Control(Endpoints("127.0.0.1", 0, 0, 0), "key")
        monkeypatch.setattr(control, "_call", Mock(side_effect=problem))
        with pytest.raises(ArtifactError, match=f"the server does not answer: {problem}"):
            Supervisor(repository, process, control, (), print).load("onerec")
        process.kill()
    assert repository.promoted("onerec")[0] == 2


def test_the_server_loads_the_version_that_was_checked_whatever_is_promoted_meanwhile(repository: Repository, monkeypatch: Any) -> None:
    loaded: list[list[int]] = []
    real = supervisor._opened

    def opened(*arguments: Any) -> Any:
        description = real(*arguments)
        if not loaded:
            repository.promote("onerec", 2)
        return description

    def load(model: str, config: str) -> None:
        loaded.append(json.loads(config)["version_policy"]["specific"]["versions"])

    monkeypatch.setattr(supervisor, "_opened", opened)
    with subprocess.Popen(["sleep", "60"]) as process:
        watching = Supervisor(repository, process, Mock(load=load), (), print)
        watching.load("onerec")
        assert loaded == [["1"]]
        watching.watch(Mock(wait=Mock(side_effect=[False, False, True])))
        process.kill()
    assert loaded == [["1"], ["2"]], "the promotion is seen, and seen once"


def test_a_server_that_is_to_end_before_it_is_up_ends_in_peace(repository: Repository) -> None:
    stopped, told = threading.Event(), []
    stopped.set()
    options = supervisor.ServeOptions(SERVER, (), Endpoints("127.0.0.1", 0, 0, 0), shared_memory=False)
    supervisor.serve(repository, options, told.append, stopped)
    assert not told
    assert not regions()


@pytest.mark.parametrize(("answering_s", "instance_s", "in_order"), [(1, 3, True), (0, 0, False)])
def test_a_server_ends_in_order_where_its_instances_have_time_to_and_says_where_not(
    answering_s: int, instance_s: int, in_order: bool, repository: Repository, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves each of the two a second before it asks it to end."""
    monkeypatch.setattr(flags, "_ANSWERING_S", answering_s)
    monkeypatch.setattr(flags, "_INSTANCE_S", instance_s)
    with start(repository) as running:
        pass
    assert not running.error
    assert any("the server did not end in order" in line for line in running.said) is not in_order
    assert not regions()


@pytest.mark.parametrize(
    ("instances", "patience_s"), [([{1: "model.py"}, {1: "model.py"}, {}], 1e6), ([{}], 0.0)], ids=["empty", "overdue"]
)
def test_a_server_that_does_not_end_is_killed_once_it_holds_nothing(
    instances: list[dict[int, str]], patience_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter(instances)
    monkeypatch.setattr(supervisor, "stubs", lambda server: next(left))
    monkeypatch.setattr(supervisor, "_EMPTY_S", 0.0)
    with subprocess.Popen(["sleep", "1e6"], preexec_fn=lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN)) as deaf:
        supervisor._end(deaf, patience_s)
        assert deaf.returncode == -signal.SIGKILL
    assert not list(left)


def test_what_is_served_goes_on_where_nobody_can_tell_what_is_promoted(repository: Repository, start: Any, traffic: Any) -> None:
    with start(repository) as running, traffic(running) as flow:
        repository.config_path("onerec").write_text("name: onerec")
        running.wait_for(said(running, "onerec: version 1 serves on: the model's configuration is malformed"))
        repository.promote("onerec", 2)
        running.wait_for(lambda: flow.served[-1] == 2)
        model = repository.folder("onerec", 2) / "model.onnx"
        model.write_bytes(b"damaged, and nothing was promoted before it")
        repository.config_path("onerec").write_text(repository.config_path("onerec").read_text() + "# touched")
        running.wait_for(said(running, "onerec: version 2 serves on: the file does not match the version's description"))
        flow.end()
        assert not flow.errors
    assert repository.promoted("onerec") == (2,)


def test_a_killed_instance_is_replaced_and_only_its_requests_fail(repository: Repository, start: Any, traffic: Any) -> None:
    with start(repository) as running, traffic(running) as flow:
        server = server_of_this_process()
        victim = min(processes.stubs(server))
        os.kill(victim, signal.SIGKILL)
        running.wait_for(said(running, "1 instance(s) died; starting new ones"))
        running.wait_for(lambda: sum("version 1 is ready" in line for line in running.said) == 2)
        running.wait_for(lambda: len(processes.stubs(server)) == 2)
        assert victim not in processes.stubs(server)
        failed, served = len(flow.errors), len(flow.served)
        running.wait_for(lambda: len(flow.served) > served + 50)
        assert len(flow.errors) == failed, "requests fail only until there are new instances"
        repository.promote("onerec", 2)  # what replaced the instance does not stand in the way of the next version
        running.wait_for(lambda: flow.served[-1] == 2)


def test_a_killed_server_leaves_nothing_behind_and_no_request_hanging(
    repository: Repository, start: Any, traffic: Any, rewrite: Any
) -> None:
    """It was started with a version that does not load, beside a good one."""
    rewrite(repository.folder("onerec", 2), "model.py", BROKEN)
    repository.promote("onerec", 2)
    with start(repository) as running:
        assert said(running, "onerec: back to version 1")()
        with traffic(running) as flow:
            server = server_of_this_process()
            running.wait_for(lambda: len(processes.stubs(server)) == 2)  # those of the version that does not load may be slow to end
            orphans = list(processes.stubs(server))
            assert regions()
            os.kill(server, signal.SIGKILL)
            within_patience(lambda: bool(flow.errors), "the request in flight hangs")
            within_patience(lambda: not running.thread.is_alive(), "nobody sees that the server is gone")
            flow.end()
        (error,) = running.error
        assert isinstance(error, ArtifactError)
        assert "the server ended with code -9" in error.what
        within_patience(lambda: not any(map(runs, orphans)), "an instance outlives its server")
    assert not regions()
