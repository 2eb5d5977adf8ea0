"""The one door to TensorRT: what is missing is named, what TensorRT says is passed on."""

from __future__ import annotations

import gc
import importlib
import weakref
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from onerec_trt.core.errors import BuildError, MissingExtraError
from onerec_trt.runtime import tensorrt_api
from onnx import TensorProto, helper


def _model(operator: str) -> bytes:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node(operator, ["x"], ["y"], name="the_node")], "g", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()


def _ignore(severity: str, message: str) -> None:
    del severity, message


@pytest.mark.parametrize(("target", "extra"), [("tensorrt-rtx", "onerec-trt[rtx]"), ("tensorrt", "onerec-trt[tensorrt]")])
@pytest.mark.parametrize(
    "error", [ModuleNotFoundError("No module named it"), ImportError("libnvinfer.so.10: no such file"), OSError("no library")]
)
def test_missing_bindings_name_the_extra(monkeypatch: pytest.MonkeyPatch, target: Any, extra: str, error: Exception) -> None:
    def fail(name: str) -> ModuleType:
        raise error

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(MissingExtraError) as caught:
        tensorrt_api.load(target)
    assert extra in caught.value.hint
    assert str(error) in caught.value.what


def test_rtx_knows_what_it_builds_without_a_gpu() -> None:
    bindings = tensorrt_api.load("tensorrt-rtx")
    assert {"8.9", "12.0"} <= set(bindings.buildable_without_gpu())
    assert "9.0" not in bindings.buildable_without_gpu()
    assert bindings.version


def test_bindings_without_that_list_build_nothing_without_their_gpu() -> None:
    assert tensorrt_api.Bindings("tensorrt", SimpleNamespace(__version__="10.6.0")).buildable_without_gpu() == ()


def test_the_parser_error_names_the_node(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"node 'the_node', operator NoSuchOperator"):
        tensorrt_api.load("tensorrt-rtx").parse(_model("NoSuchOperator"), tmp_path / "model.onnx", _ignore)


def test_a_logger_outlives_what_was_made_with_it(tmp_path: Path) -> None:
    """TensorRT's plugin registry keeps a pointer to it for as long as the process lives."""

    class Sink:
        def __call__(self, severity: str, message: str) -> None: ...

    alive = weakref.ref(sink := Sink())
    network = tensorrt_api.load("tensorrt-rtx").parse(_model("Relu"), tmp_path / "model.onnx", sink)
    assert network.inputs
    del network, sink
    gc.collect()
    assert alive() is not None


def test_garbage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="cannot read the graph"):
        tensorrt_api.load("tensorrt-rtx").parse(b"no protobuf at all", tmp_path / "model.onnx", _ignore)


def test_builds_and_reports_tensors_messages_and_progress(tmp_path: Path) -> None:
    messages: list[str] = []
    progress = _Progress()
    network = tensorrt_api.load("tensorrt-rtx").parse(
        _model("Relu"), tmp_path / "model.onnx", lambda severity, message: messages.append(severity)
    )
    assert network.inputs == (tensorrt_api.TensorInfo("x", "float32", (-1, 4)),)
    assert network.outputs == (tensorrt_api.TensorInfo("y", "float32", (-1, 4)),)
    built = network.build(compute_capability="8.9", profiles=[{"x": ((1, 4), (2, 4), (3, 4))}], progress=progress)
    assert built.plan.nbytes > 0
    assert "TF32" not in built.builder_flags
    assert "INFO" in messages
    assert progress.open == []
    assert progress.steps > 5


def test_an_impossible_profile_is_refused(tmp_path: Path) -> None:
    network = tensorrt_api.load("tensorrt-rtx").parse(_model("Relu"), tmp_path / "model.onnx", _ignore)
    with pytest.raises(BuildError):
        network.build(compute_capability="8.9", profiles=[{"x": ((1, 5), (2, 5), (3, 5))}])


def test_strong_typing_where_the_flag_is_gone() -> None:
    assert tensorrt_api._strongly_typed(SimpleNamespace(NetworkDefinitionCreationFlag=SimpleNamespace())) == 0
    assert tensorrt_api._strongly_typed(SimpleNamespace(NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1))) == 2


class _Progress:
    """Counts steps; phases must finish after they started."""

    def __init__(self) -> None:
        self.open: list[str] = []
        self.steps = 0

    def started(self, phase: str, parent: str, steps: int) -> None:
        self.open.append(phase)

    def stepped(self, phase: str) -> None:
        self.steps += 1

    def finished(self, phase: str) -> None:
        self.open.remove(phase)


def test_a_plugin_library_is_loaded_once_in_a_process() -> None:
    """The registry refuses a plugin that it has already, so a second load of the same library would fail."""
    loaded: list[str] = []

    def load_library(path: str) -> object | None:
        loaded.append(path)
        return object() if loaded.count(path) == 1 and path != "bad.so" else None

    library = ModuleType("tensorrt")
    library.__dict__["get_plugin_registry"] = lambda: SimpleNamespace(load_library=load_library)
    for path in ("first.so", "first.so", "second.so", "first.so"):
        tensorrt_api._load_plugins(library, path)
    assert loaded == ["first.so", "second.so"]
    for _ in range(2):
        with pytest.raises(BuildError, match="cannot load the plugin library"):
            tensorrt_api._load_plugins(library, "bad.so")
