"""The reference runner refuses wrong inputs by name, and its self-test can fail."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onerec_trt.core.errors import GateError, RequestError
from onerec_trt.runtime import onnxruntime_runner
from onerec_trt.runtime.onnxruntime_runner import OnnxRuntimeRunner, e4m3_self_test
from onnx import parser

FINITE_FP16 = 2 * 31 * 1024  # two signs, 31 exponents, 1024 mantissas


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


def test_the_self_test_compares_every_finite_fp16_value() -> None:
    assert e4m3_self_test() == FINITE_FP16


def test_the_self_test_fails_when_one_value_rounds_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    class RoundsOneTieAway(OnnxRuntimeRunner):
        def __call__(self, inputs):  # type: ignore[no-untyped-def]
            outputs = super().__call__(inputs)
            values = outputs["y"].copy()
            values[inputs["x"] == 17.0] = 18.0  # halfway between 16 and 18; even is 16
            return {"y": values}

    monkeypatch.setattr(onnxruntime_runner, "OnnxRuntimeRunner", RoundsOneTieAway)
    with pytest.raises(GateError, match="rounds 1 values to E4M3 differently") as caught:
        e4m3_self_test()
    assert caught.value.where == "17.0 became 18.0, expected 16.0"


def test_the_self_test_fails_when_values_do_not_saturate(monkeypatch: pytest.MonkeyPatch) -> None:
    class Overflows(OnnxRuntimeRunner):
        def __call__(self, inputs):  # type: ignore[no-untyped-def]
            return {"y": np.where(np.abs(inputs["x"]) > 464, np.nan, super().__call__(inputs)["y"])}

    monkeypatch.setattr(onnxruntime_runner, "OnnxRuntimeRunner", Overflows)
    with pytest.raises(GateError, match=r"rounds \d+ values to E4M3 differently"):
        e4m3_self_test()
