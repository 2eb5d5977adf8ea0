"""The engine of the Python backend for plans, with stand-ins for the runner, the GPU and its turns."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from onerec_trt.core.errors import ArtifactError, GpuError
from onerec_trt.export.contracts import serving_io
from onerec_trt.server.python_backend import tensorrt_engine
from onerec_trt.server.python_backend.tensorrt_engine import TensorRtEngine
from onerec_trt.server.repository.batching import Batching
from onerec_trt.server.repository.limits import Limits

IO = serving_io(6, 4)
LIMITS = (Limits(min_batch=1, max_batch=4, min_context=2, max_context=3072),)


class Runner:
    """A plan that says what it was asked; it captures a graph for every shape but one."""

    io = IO
    stage_residents = bind_staged = None

    def __init__(self, asked: list[str]) -> None:
        self.asked, self.graphs, self.ran = asked, 0, []  # type: tuple[list[str], int, list[tuple[int, ...]]]
        self.problem: Exception | None = None

    def warm_up(self, batch: int, context: int) -> None:
        self.asked.append(f"warm {batch} x {context}")
        self.graphs += (batch, context) != (1, 256)

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self.asked.append("run")
        if self.problem is not None:
            raise self.problem
        self.ran.append(tuple(inputs["features"].shape))
        return {"scores": inputs["lengths"].sum(1).float()}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happened in which order: `turn`, `end` of it, `wait` for the GPU, and what the runner was asked."""
    found: list[str] = []

    @contextmanager
    def turn(expected: float) -> Iterator[None]:
        found.append("turn")
        try:
            yield
        finally:
            found.append("end")

    real_empty, real_to = torch.empty, torch.Tensor.to
    monkeypatch.setattr(tensorrt_engine, "GpuTurns", lambda *_: SimpleNamespace(turn=turn))
    monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory=False, **options: real_empty(*shape, **options))
    monkeypatch.setattr(
        torch.Tensor, "to", lambda self, to, **options: self if to == torch.device("cuda", 1) else real_to(self, to, **options)
    )
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(synchronize=lambda: found.append("wait")))
    return found


@pytest.fixture
def loaded(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[TensorRtEngine, Runner, dict[str, Any]]:
    """An engine whose server fills batches up to two requests of 300 tokens, its runner, and how that was loaded."""
    how: dict[str, Any] = {}
    runner = Runner(asked)

    def load(plan: Path, **options: Any) -> Runner:
        how.update(options)
        return runner

    monkeypatch.setattr(tensorrt_engine.TensorRtRunner, "load", load)
    batching = Batching(max_batch=4, preferred=2, max_queue=0, context=300, why="")
    description: Any = SimpleNamespace(name="a", version=1, limits=LIMITS, batching=batching, parameters={}, io=IO)
    return TensorRtEngine(Path("a.plan"), description, 1, ()), runner, how


def test_the_largest_shape_is_warmed_up_first_and_each_runs_as_a_served_batch_before_the_model_is_ready(
    loaded: tuple[TensorRtEngine, Runner, dict[str, Any]], asked: list[str]
) -> None:
    engine, runner, how = loaded
    shapes = engine.shapes()
    assert shapes == [(4, 3072), (4, 256), (2, 512), (1, 3072), (1, 512), (1, 256)]
    assert how == {"graphs": len(shapes), "capture_in_use": False, "trust": ()}
    assert engine.warm_up(shapes) == len(shapes) - 1, "graphs, as the runner counts them"
    assert asked[: len(shapes)] == [f"warm {batch} x {context}" for batch, context in shapes]
    assert runner.ran == [(batch, context, 6) for batch, context in shapes]


def test_a_turn_lasts_until_the_answers_have_left_the_gpu(loaded: tuple[TensorRtEngine, Runner, dict[str, Any]], asked: list[str]) -> None:
    engine = loaded[0]
    room = {name: engine.room(name, shape) for name, shape in IO.shapes(2, 5).items()}
    room["features"][...] = 1
    room["lengths"][...] = [[1, 2, 0], [0, 1, 4]]
    assert engine.run(room)["scores"].tolist() == [3, 5]
    assert asked == ["wait", "turn", "run", "wait", "end"], "inputs are there before the turn begins"


def test_inputs_that_lie_elsewhere_are_laid_out_first(
    loaded: tuple[TensorRtEngine, Runner, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, lent, laid_out = loaded[0], loaded[0].room, []
    features, given = engine.room("features", (2, 5, 6)), np.array([[1, 2, 0], [0, 1, 4]])
    features[...] = 1

    def room(name: str, shape: tuple[int, ...]) -> Any:
        laid_out.append(name)
        return lent(name, shape)

    monkeypatch.setattr(engine, "room", room)
    assert engine.run({"features": features, "lengths": given})["scores"].tolist() == [3, 5]
    assert engine.run({"features": features, "lengths": given + 1})["scores"].tolist() == [6, 8]
    assert laid_out == ["lengths", "features", "lengths"], "what was lent is lent for one batch"


def test_a_batch_that_fails_ends_its_turn(loaded: tuple[TensorRtEngine, Runner, dict[str, Any]], asked: list[str]) -> None:
    engine, runner, _ = loaded
    runner.problem = GpuError("the GPU's memory is exhausted")
    with pytest.raises(GpuError, match="exhausted"):
        engine.run({name: np.zeros(shape, np.int64) for name, shape in IO.shapes(1, 5).items()})
    assert asked[-1] == "end"


@pytest.mark.parametrize("problem", [RuntimeError("CUDA error: an illegal memory access"), ArtifactError("TensorRT cannot run the plan")])
def test_an_instance_that_its_gpu_is_lost_to_ends(
    loaded: tuple[TensorRtEngine, Runner, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: Any, problem: Exception
) -> None:
    engine, runner, _ = loaded
    runner.problem = problem
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    inputs = {name: np.zeros(shape, np.int64) for name, shape in IO.shapes(1, 5).items()}
    with pytest.raises(type(problem)):
        engine.run(inputs)
    assert not ended, "the batch failed, and the GPU answers"
    monkeypatch.setattr(torch.cuda, "synchronize", Mock(side_effect=RuntimeError("CUDA error: an illegal memory access")))
    with pytest.raises(type(problem)):
        engine.run(inputs)
    assert ended == [1]
    assert "this instance ends, since cuda:1 is lost to it: CUDA error" in capsys.readouterr().err
