"""The self-test of ONNX Runtime's E4M3 rounding passes here, and can fail."""

from __future__ import annotations

import numpy as np
import pytest
from onerec_trt.core.errors import GateError
from onerec_trt.runtime.onnxruntime_runner import OnnxRuntimeRunner
from onerec_trt.validation import e4m3
from onerec_trt.validation.e4m3 import e4m3_self_test

FINITE_FP16 = 2 * 31 * 1024  # two signs, 31 exponents, 1024 mantissas


def test_the_self_test_compares_every_finite_fp16_value() -> None:
    assert e4m3_self_test() == FINITE_FP16


def test_the_self_test_fails_when_one_value_rounds_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    class RoundsOneTieAway(OnnxRuntimeRunner):
        def __call__(self, inputs):  # type: ignore[no-untyped-def]
            outputs = super().__call__(inputs)
            values = outputs["y"].copy()
            values[inputs["x"] == 17.0] = 18.0  # halfway between 16 and 18; even is 16
            return {"y": values}

    monkeypatch.setattr(e4m3, "OnnxRuntimeRunner", RoundsOneTieAway)
    with pytest.raises(GateError, match="rounds 1 values to E4M3 differently") as caught:
        e4m3_self_test()
    assert caught.value.where == "17.0 became 18.0, expected 16.0"


def test_the_self_test_fails_when_values_do_not_saturate(monkeypatch: pytest.MonkeyPatch) -> None:
    class Overflows(OnnxRuntimeRunner):
        def __call__(self, inputs):  # type: ignore[no-untyped-def]
            return {"y": np.where(np.abs(inputs["x"]) > 464, np.nan, super().__call__(inputs)["y"])}

    monkeypatch.setattr(e4m3, "OnnxRuntimeRunner", Overflows)
    with pytest.raises(GateError, match=r"rounds \d+ values to E4M3 differently"):
        e4m3_self_test()
