"""The runner of exported graphs on CPU refuses wrong inputs by name, knows its contract, and keeps resident inputs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onerec_trt.core.errors import ArtifactError, MissingExtraError, RequestError
from onerec_trt.core.graph_io import METADATA_KEY, GraphIO, GraphTensor, Role
from onerec_trt.runtime.onnxruntime_runner import OnnxRuntimeRunner
from onnx import parser


@pytest.fixture
def model() -> onnx.ModelProto:
    text = '<ir_version: 10, opset_import: ["": 21]> g (float16[N,4] x, int64[N,3] lengths) => (float16[N,4] y, int64[N,3] same) {'
    return parser.parse_model(text + " y = Add(x, x) same = Identity(lengths) }")


@pytest.fixture
def inputs() -> dict[str, np.ndarray]:
    return {"x": np.ones((2, 4), np.float16), "lengths": np.ones((2, 3), np.int64)}


def test_outputs_go_by_name_from_memory_and_from_a_file(model: onnx.ModelProto, inputs: dict[str, np.ndarray], tmp_path: Path) -> None:
    onnx.save(model, tmp_path / "model.onnx")
    for source in (model, tmp_path / "model.onnx"):
        outputs = OnnxRuntimeRunner(source, threads=1)(inputs)
        assert list(outputs) == ["y", "same"]
        np.testing.assert_array_equal(outputs["y"], np.full((2, 4), 2, np.float16))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"lengths": None}, id="missing"),
        pytest.param({"sids": np.zeros((2, 1, 3), np.int64)}, id="unknown"),
        pytest.param({"x": np.ones((2, 4), np.float32)}, id="another type"),
        pytest.param({"x": np.ones((2, 5), np.float16)}, id="another width"),
        pytest.param({"x": np.ones(8, np.float16)}, id="another rank"),
    ],
)
def test_wrong_inputs_are_refused(model: onnx.ModelProto, inputs: dict[str, np.ndarray], change: dict[str, np.ndarray | None]) -> None:
    wrong = {name: array for name, array in (inputs | change).items() if array is not None}
    with pytest.raises(RequestError, match="refused the inputs") as caught:
        OnnxRuntimeRunner(model, threads=1)(wrong)
    assert caught.value.where == "x, lengths"


@pytest.mark.parametrize(("threads", "expected"), [(0, 3), (1, 1)])
def test_threads_are_capped_and_sleep_while_they_wait(
    model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch, threads: int, expected: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    options = OnnxRuntimeRunner(model, threads=threads)._session.get_session_options()
    assert options.intra_op_num_threads == expected
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_a_file_that_does_not_load_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    for path in (tmp_path / "model.onnx", tmp_path / "missing.onnx"):
        with pytest.raises(ArtifactError, match="cannot load the graph") as caught:
            OnnxRuntimeRunner(path, threads=1)
        assert caught.value.where == str(path)


def test_a_missing_library_names_its_extra(model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as if it were not installed
    with pytest.raises(MissingExtraError) as caught:
        OnnxRuntimeRunner(model)
    assert "onerec-trt[compiler]" in caught.value.hint


def test_a_graph_without_a_contract_says_so(model: onnx.ModelProto) -> None:
    with pytest.raises(ArtifactError, match="does not say what its inputs and outputs are"):
        _ = OnnxRuntimeRunner(model, threads=1).io


def test_a_resident_input_is_bound_once_and_swapped(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> None:
    """`lengths` plays the resident input here, with rows for two requests."""
    x = GraphTensor(name="x", role=Role.CONTEXT_FEATURES, dtype="float16", axes=("batch", 4))
    lengths = GraphTensor(name="lengths", role=None, dtype="int64", axes=(2, 3), kind="resident")
    io = GraphIO(inputs=(x, lengths), outputs=(), min_context=1)
    onnx.helper.set_model_props(model, {METADATA_KEY: io.model_dump_json()})
    runner = OnnxRuntimeRunner(model, threads=1)
    assert runner.io == io
    with pytest.raises(RequestError, match="refused the inputs"):
        runner({"x": inputs["x"]})
    for number in (5, 6):
        content = np.full((2, 3), number)
        runner.bind_resident("lengths", content)
        content[:] = 0
        assert (runner({"x": inputs["x"]})["same"] == number).all()
    with pytest.raises(RequestError, match="no resident input"):
        runner.bind_resident("x", inputs["x"])
    with pytest.raises(RequestError, match=r"has shape \[1, 3\]"):
        runner.bind_resident("lengths", content[:1])
    with pytest.raises(RequestError, match=r"'lengths' is .i8, the plan takes int64"):
        runner.bind_resident("lengths", content.astype(content.dtype.newbyteorder()))
    assert (runner({"x": inputs["x"]})["same"] == 6).all()


@pytest.mark.parametrize("batches", [(1, 2), (2, 1), (2, 3)])
def test_batches_that_differ_are_refused_and_not_broadcast(batches: tuple[int, int]) -> None:
    text = '<ir_version: 10, opset_import: ["": 21]> g (float16[N,4] x, float16[M,4] z) => (float16[K,4] y) { y = Add(x, z) }'
    model = parser.parse_model(text)
    taken = tuple(GraphTensor(name=name, role=None, dtype="float16", axes=("batch", 4)) for name in "xz")
    onnx.helper.set_model_props(model, {METADATA_KEY: GraphIO(inputs=taken, outputs=(), min_context=1).model_dump_json()})
    runner = OnnxRuntimeRunner(model, threads=1)
    x, z = (np.ones((batch, 4), np.float16) for batch in batches)
    with pytest.raises(RequestError, match="inputs are of different batch sizes") as caught:
        runner({"x": x, "z": z})
    assert caught.value.where == "a model in memory"
    assert (runner({"x": x, "z": x})["y"] == 2).all()


@pytest.mark.parametrize("given", [None, "abc", 5, [[1, 2]]])
def test_what_is_no_array_is_refused_by_name(model: onnx.ModelProto, inputs: dict[str, np.ndarray], given: Any) -> None:
    with pytest.raises(RequestError, match=f"input 'lengths' is a {type(given).__name__}, not an array"):
        OnnxRuntimeRunner(model, threads=1)({**inputs, "lengths": given})


def test_another_byte_order_is_refused_and_not_read_as_this_machines(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> None:
    swapped = inputs["lengths"].astype(inputs["lengths"].dtype.newbyteorder())
    with pytest.raises(RequestError, match=r"input 'lengths' is .i8, which is not this machine's byte order"):
        OnnxRuntimeRunner(model, threads=1)({**inputs, "lengths": swapped})


@pytest.mark.parametrize("kind", ["ModelRequiresCompilation", "NotFound", "EngineError", "RuntimeException"])
def test_whatever_onnxruntime_raises_is_typed(
    model: onnx.ModelProto, inputs: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """It calls a weights file that may not be read `ModelRequiresCompilation: SystemError : 13`."""
    raised = getattr(onnxruntime.capi.onnxruntime_pybind11_state, kind)("SystemError : 13")
    runner = OnnxRuntimeRunner(model)

    def fail(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", fail)
    with pytest.raises(ArtifactError, match="failed while it ran the graph: SystemError : 13"):
        runner(inputs)
    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with pytest.raises(ArtifactError, match="cannot load the graph: SystemError : 13"):
        OnnxRuntimeRunner(model)
