"""The model of the Python backend with a stand-in for the server's module: who gets which answer, and what is counted."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from onerec_trt.core.arrays import Array
from onerec_trt.core.errors import ArtifactError, GpuError
from onerec_trt.runtime.signature import new_key
from onerec_trt.server.python_backend import model as backend
from onerec_trt.server.python_backend.dlpack import Lent, taken
from onerec_trt.server.repository.store import Repository
from onerec_trt.server.trust import trust_environment, trusted_keys


class Tensor:
    """A tensor of the server, which speaks DLPack."""

    def __init__(self, name: str, content: Any) -> None:
        self._name, self.content = name, content

    @classmethod
    def from_dlpack(cls, name: str, content: Any) -> Tensor:
        return cls(name, torch.from_dlpack(content))

    def name(self) -> str:
        return self._name

    def __dlpack__(self, **given: Any) -> Any:
        return self.content.__dlpack__(**given)

    def __dlpack_device__(self) -> Any:
        return self.content.__dlpack_device__()


class Request:
    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self._tensors = [Tensor(name, array) for name, array in arrays.items()]
        self.sent: list[tuple[Response, str]] = []

    def inputs(self) -> list[Tensor]:
        return self._tensors

    def get_response_sender(self) -> Any:
        return SimpleNamespace(send=lambda response, flags: self.sent.append((response, flags)))


class Response:
    def __init__(self, output_tensors: list[Tensor], error: Any = None) -> None:
        self.outputs, self.error = {tensor.name(): tensor.content.numpy() for tensor in output_tensors}, error


class TritonError(Exception):
    INTERNAL, INVALID_ARG = "internal", "invalid"

    def __init__(self, text: str, code: str) -> None:
        super().__init__(text)
        self.code = code


class Metric:
    def __init__(self) -> None:
        self.value = 0.0

    def increment(self, by: float) -> None:
        self.value += by

    def set(self, value: float) -> None:
        self.value = value


class MetricFamily:
    COUNTER, GAUGE = "counter", "gauge"
    values: ClassVar[dict[tuple[str, str], Metric]] = {}

    def __init__(self, name: str, description: str, kind: str) -> None:
        self.name = name

    def Metric(self, labels: Mapping[str, str]) -> Metric:
        return self.values.setdefault((self.name, labels.get("reason", "")), Metric())


class Logger:
    @staticmethod
    def log_info(text: str) -> None:
        assert "warmed up" in text


@pytest.fixture
def utils(monkeypatch: pytest.MonkeyPatch) -> Any:
    module: Any = ModuleType("triton_python_backend_utils")
    module.Tensor, module.InferenceResponse, module.TritonError = Tensor, Response, TritonError
    module.MetricFamily, module.Logger = MetricFamily, Logger
    module.TRITONSERVER_RESPONSE_COMPLETE_FINAL = "final"
    monkeypatch.setattr(MetricFamily, "values", {})
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)
    monkeypatch.setattr(backend, "end_with_parent", lambda: None)
    return module


@pytest.fixture(scope="module")
def export(make_export: Callable[[Path, int], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_export(tmp_path_factory.mktemp("export") / "exported", 0)


@pytest.fixture
def repository(add: Any, export: Path, tmp_path: Path) -> Repository:
    made = Repository(tmp_path / "repository")
    add(made, export)
    return made


@pytest.fixture
def arguments(repository: Repository) -> dict[str, str]:
    return {
        "model_name": "onerec",
        "model_version": "1",
        "model_repository": str(repository.path / "onerec"),
        "model_instance_device_id": "0",
    }


@pytest.fixture
def loaded(utils: Any, arguments: dict[str, str]) -> backend.TritonPythonModel:
    model = backend.TritonPythonModel()
    model.initialize(arguments)
    return model


def as_request(asked: Any) -> Request:
    return Request({"features": asked.features_SF[None], "lengths": asked.lengths_3[None]})


def test_each_request_gets_its_own_items_in_its_place(loaded: backend.TritonPythonModel, export: Path, asking: Any, reference: Any) -> None:
    random, expected = np.random.default_rng(0), reference(export)
    asked = [asking(random) for _ in range(12)]
    bad = asking(random, 5)
    bad.features_SF[0, 0] = np.nan
    asked.insert(3, bad)
    answers = loaded.execute([as_request(each) for each in asked])
    assert "token 0 of context 0 holds NaN" in str(answers[3].error)
    assert answers[3].error.code == TritonError.INVALID_ARG
    for place, (each, answer) in enumerate(zip(asked, answers, strict=True)):
        if place != 3:
            assert answer.error is None
            for name, array in expected(each).items():
                np.testing.assert_array_equal(answer.outputs[name], array)
    counted = {reason: metric.value for (name, reason), metric in MetricFamily.values.items() if name.startswith("onerec_trt_failed")}
    assert counted == {"request": 1, "model": 0}
    assert MetricFamily.values["onerec_trt_warmed_shapes", ""].value == 2, "one request and the largest batch"
    assert MetricFamily.values["onerec_trt_cuda_graphs", ""].value == 0, "on a CPU"


def test_answers_leave_before_an_instance_that_is_early_waits(
    loaded: backend.TritonPythonModel, export: Path, asking: Any, reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, calls, early = asking(np.random.default_rng(0)), [], [True, False]
    good, bad = as_request(asked), Request({"lengths": asked.lengths_3[None]})
    pacing = SimpleNamespace(early=lambda: early.pop(0), hold_off=lambda: calls.append(len(good.sent)), back=lambda: calls.append("back"))
    monkeypatch.setattr(loaded._engine, "pacing", pacing)
    assert loaded.execute([good, bad]) is None
    assert calls == [1, "back"], "the answer was there before the wait"
    ((answer, flag),), ((refusal, _),) = good.sent, bad.sent
    assert flag == "final"
    np.testing.assert_array_equal(answer.outputs["scores"], reference(export)(asked)["scores"])
    assert refusal.error.code == TritonError.INVALID_ARG
    returned = loaded.execute([again := as_request(asked)])
    assert returned is not None
    np.testing.assert_array_equal(returned[0].outputs["scores"], answer.outputs["scores"])
    assert (again.sent, calls[2:]) == ([], ["back"])


def test_where_the_model_fails_every_request_of_the_batch_is_told_and_counted(
    loaded: backend.TritonPythonModel, asking: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(inputs: Mapping[str, Array]) -> dict[str, Array]:
        raise GpuError("the GPU's memory is exhausted")

    monkeypatch.setattr(loaded._engine, "run", fail)
    random = np.random.default_rng(0)
    answers = loaded.execute([as_request(asking(random)) for _ in range(3)])
    assert [str(answer.error) for answer in answers] == ["the GPU's memory is exhausted"] * 3
    assert MetricFamily.values["onerec_trt_failed_requests_total", "model"].value == 3


def test_a_version_that_was_changed_is_not_loaded(utils: Any, arguments: dict[str, str], repository: Repository) -> None:
    model = repository.folder("onerec", 1) / "model.onnx"
    model.write_bytes(model.read_bytes() + b"x")
    with pytest.raises(ArtifactError, match="does not match the version's description"):
        backend.TritonPythonModel().initialize(arguments)


def test_an_unsigned_version_is_not_loaded_where_a_signature_is_demanded(
    utils: Any, arguments: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = trust_environment([new_key(tmp_path / "key")])
    assert trusted_keys(environment) == (tmp_path / "key.pub",)
    assert trusted_keys(trust_environment([])) == ()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ArtifactError):
        backend.TritonPythonModel().initialize(arguments)


def test_an_array_that_was_lent_is_freed_by_who_took_it_and_stays_whole_until_then() -> None:
    array = np.arange(12.0).reshape(3, 4)
    tensor = torch.from_dlpack(Lent(array[1:]))
    del array
    gc.collect()
    assert tensor.tolist() == [[4, 5, 6, 7], [8, 9, 10, 11]]
    assert taken(tensor).tolist() == tensor.tolist()
