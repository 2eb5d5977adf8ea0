"""A real server whose two instances take turns, as on a GPU: answers leave early, and a killed instance holds nobody up."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onerec_trt.core.errors import RequestError
from onerec_trt.server.launch import processes
from onerec_trt.server.repository.store import Repository

from .process_table import server_of_this_process

CLIENTS, ASKED = 6, 12  # requests at the same time, and of each client
IN_TURNS = """
import os
import time
from pathlib import Path

from onerec_trt.server.python_backend.answers import PlainAnswers
from onerec_trt.server.python_backend.gpu_turns import GpuTurns
from onerec_trt.server.python_backend.model import TritonPythonModel as Whole
from onerec_trt.server.python_backend.pacing import Pacing


class Told(Pacing):
    folder: Path

    def hold_off(self):
        (self.folder / str(os.getpid())).touch()
        super().hold_off()


class InTurns:
    def __init__(self, engine, pacing):
        self._engine, self.pacing = engine, pacing
        self.room = engine.room

    def run(self, inputs):
        with self.pacing.turn(len(inputs["lengths"])):
            time.sleep(0.05)
            return self._engine.run(inputs)


class TritonPythonModel(Whole):
    def initialize(self, args):
        super().initialize(args)
        Told.folder = Path(args["model_repository"], "held-off")
        Told.folder.mkdir(exist_ok=True)
        self._engine = InTurns(self._engine, Told(GpuTurns(os.getppid(), 0, "onerec-1"), full=9))
        self._engine.pacing.back()
        self._answers = PlainAnswers(self._engine)
"""


@pytest.fixture(scope="module")
def export(make_export: Callable[[Path, int], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_export(tmp_path_factory.mktemp("export") / "exported", 0)


@pytest.fixture(scope="module")
def running(export: Path, add: Any, start: Any, rewrite: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    repository = Repository(tmp_path_factory.mktemp("served") / "repository")
    add(repository, export, instances=2)
    rewrite(repository.folder("onerec", 1), "model.py", IN_TURNS)
    with start(repository) as server:
        yield server


def held_off(running: Any) -> set[str]:
    """Process numbers of instances that waited before they took the next batch."""
    return {each.name for each in (running.repository.path / "onerec" / "held-off").iterdir()}


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_answers_that_leave_early_are_everyones_own(running: Any, export: Path, asking: Any, reference: Any, protocol: str) -> None:
    expected = reference(export)

    def one_client(seed: int) -> None:
        random = np.random.default_rng(seed)
        with running.client(protocol) as client:
            for number in range(ASKED):
                asked = asking(random)
                if seed == 0 and number % 4 == 1:
                    with pytest.raises(RequestError, match="NaN"):
                        client.recommend(asked.features_SF * np.float16(np.nan), asked.lengths_3)
                    continue
                np.testing.assert_array_equal(client.recommend(asked.features_SF, asked.lengths_3).scores_W, expected(asked)["scores"][0])

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(one_client, range(CLIENTS)))
    assert held_off(running), "nobody ever waited for the other's turn"


def test_an_instance_that_is_killed_with_the_gpu_or_in_line_holds_nobody_up(running: Any, asking: Any) -> None:
    asked, server = asking(np.random.default_rng(1), 9), server_of_this_process()
    failed: list[str] = []

    def one_client(_: int) -> int:
        with running.client() as client:
            for _ in range(ASKED):
                try:
                    client.recommend(asked.features_SF, asked.lengths_3)
                except RequestError as error:
                    failed.append(str(error))
        return ASKED

    with ThreadPoolExecutor(CLIENTS) as pool:
        asking_all = [pool.submit(one_client, number) for number in range(CLIENTS)]
        os.kill(min(processes.stubs(server)), signal.SIGKILL)
        assert sum(each.result(60) for each in asking_all) == CLIENTS * ASKED
    running.wait_for(lambda: any("1 instance(s) died" in line for line in running.said))
    running.wait_for(lambda: sum("version 1 is ready" in line for line in running.said) == 2)  # until then the dead one gets requests
    running.wait_for(lambda: len(processes.stubs(server)) == 2)
    with running.client() as client:
        client.recommend(asked.features_SF, asked.lengths_3)
    assert len(failed) < CLIENTS * ASKED
