"""What a measurement of a served plan does on a machine with two GPUs, with stand-ins for the GPUs, the server and its clients."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from onerec_trt.core.graph_io import GraphIO
from onerec_trt.export.contracts import serving_io
from onerec_trt.tools.serving import busy as busy_module
from onerec_trt.tools.serving import run as run_module
from onerec_trt.tools.serving.load import Load, LoadResult
from onerec_trt.tools.serving.payload import STRAIGHT_FROM_GPU, STRAIGHT_TO_GPU, WAY_OF_A_BATCH, payload_ms
from onerec_trt.tools.serving.run import Extent, measure_serving
from onerec_trt.tools.serving.statistics import ServerStatistics

from .plans import write_plan

IO = serving_io(64, 8)
EXTENT = Extent(context=9, mixed=(3, 9, 16), batches=(1, 4), samples=3, clients=2, seconds=0.05, arrival_seconds=0.05)
RATES = {1: 600.0, 2: 1200.0}  # by GPUs that answer


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """The CPU in place of GPUs; what was copied to where, and whether the host waited for it."""
    copied: list[tuple[str, bool]] = []
    for name in ("empty", "zeros"):
        real = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *shape, pin_memory=False, device=None, real=real, **options: real(*shape, **options))

    def to(tensor: torch.Tensor, device: str, non_blocking: bool = False) -> torch.Tensor:
        copied.append((device, non_blocking))
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: to(tensor, "cpu"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=f"0{device}"))
    return copied


def test_every_step_of_the_payload_is_timed_and_copies_what_it_says(gpu: list[tuple[str, bool]]) -> None:
    taken = payload_ms(IO, 9, 4, 3, on_gpu=True)
    assert {step: len(samples) for step, samples in taken.items()} == dict.fromkeys(
        (*WAY_OF_A_BATCH, STRAIGHT_TO_GPU, STRAIGHT_FROM_GPU), 3
    )
    runs = 3 + 3  # of each step, first ones and samples
    inputs, outputs, requests = len(IO.inputs), len(IO.outputs), 4
    assert gpu.count(("cuda", True)) == runs * inputs, "the batch at once"
    assert gpu.count(("cuda", False)) == runs * inputs * requests, "each request by itself"
    assert gpu.count(("cpu", True)) == gpu.count(("cpu", False)) == runs * outputs


class Runner:
    """A plan that answers after a moment: a time that rounds to no millisecond has no rate."""

    io: GraphIO = IO

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        assert all(isinstance(array, np.ndarray) for array in inputs.values()), "from memory to memory"
        time.sleep(0.001)
        return {}


@pytest.mark.usefixtures("gpu")
def test_each_server_gets_its_gpus_and_the_last_one_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    described: list[Any] = []
    loads: list[Load] = []

    @contextmanager
    def served(repository: Any, server: Any) -> Iterator[dict[str, int]]:
        described.append(repository.describe("onerec", 1))
        yield {"http": 1, "grpc": 2}

    def measure(load: Load, meanwhile: Any) -> LoadResult:
        loads.append(load)
        for each in meanwhile:
            with each:
                pass
        rate = RATES[described[-1].resources.gpus] if load.rate is None else load.rate
        return LoadResult(requests_per_s=rate, p50_ms=1.0, p99_ms=2.0, failed=0, samples_ms=[1.0, 2.0])

    counted = nullcontext()
    counted.counted = lambda: ServerStatistics(requests=1, queue_ms=0.0, by_size={})  # type: ignore[attr-defined]
    machine = SimpleNamespace(gpu="NVIDIA H200", driver="580.1", library_version="10.6.0")
    stand_ins = {"open_runner": lambda _: Runner(), "served": served, "measure_load": measure, "server_version": lambda _: "2.51.0"}
    for name, stand_in in {**stand_ins, "StatisticsWatch": lambda *_: counted, "this_machine": lambda _: machine}.items():
        monkeypatch.setattr(run_module, name, stand_in)
    utilization = SimpleNamespace(gpu=90)
    monkeypatch.setattr(busy_module, "pynvml", Mock(NVMLError=OSError, nvmlDeviceGetUtilizationRates=Mock(return_value=utilization)))
    result = measure_serving(write_plan(tmp_path / "plans"), None, tmp_path / "serving.json", EXTENT, lambda _: None, "abc")

    assert [(each.resources.instances, each.resources.gpus, each.flavor) for each in described] == [
        (1, 1, "python"),
        (2, 1, "python"),
        (2, 2, "python"),
    ]
    assert [each.batching.context for each in described] == [9] * 3, "batched by what was measured"
    assert [each.clients for each in loads if each.rate is None] == [2, 4, 2, 4, 4, 4, 4, 8]
    assert [each.rate for each in loads if each.rate is not None] == [0.8 * RATES[1]]
    assert (loads[-1].clients, result.loads[-1].gpus) == (8, 2)
    assert result.environment["gpus"] == 2
    assert result.payload_ms is not None
    assert result.payload_ms.keys() == {*WAY_OF_A_BATCH, STRAIGHT_TO_GPU, STRAIGHT_FROM_GPU}
    assert result.summary is not None
    assert result.summary.two_gpu_scaling == 2.0
