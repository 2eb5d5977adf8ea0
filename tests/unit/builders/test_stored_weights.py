"""Copies of a weight in a plan are counted, across the borders of what is read at a time; what is not there is not claimed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onerec_trt.builders import stored_weights as module
from onerec_trt.builders.stored_weights import SMALLEST, stored_weights
from onnx import helper, numpy_helper


def _weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal((256, 256)).astype(np.float16) for name in ("once", "thrice", "absent")} | {
        "small": rng.standard_normal(8).astype(np.float16),
        "zeros": np.zeros((256, 256), np.float16),
    }


def _model(weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    graph = helper.make_graph([], "g", [], [], [numpy_helper.from_array(value, name) for name, value in weights.items()])
    return helper.make_model(graph)


def _plan(path: Path, weights: dict[str, np.ndarray]) -> Path:
    parts = [b"header__", *(weights[name].tobytes() for name in ("thrice", "once", "thrice", "zeros", "small", "thrice")), b"end"]
    path.write_bytes(b"".join(parts))
    return path


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("chunk", [1000, 4096, 1 << 24])
def test_copies_are_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, external: bool, chunk: int) -> None:
    monkeypatch.setattr(module, "_CHUNK", chunk)
    weights = _weights()
    assert weights["once"].nbytes >= SMALLEST
    model, path = _model(weights), tmp_path / "model.onnx"
    if external:
        onnx.save(model, str(path), save_as_external_data=True, location="weights.data", size_threshold=0)
        model = onnx.load(str(path), load_external_data=False)
    found = stored_weights(_plan(tmp_path / "a.plan", weights), model, path)
    assert (found.searched, found.found, found.duplicated) == (3, 2, {"thrice": 3})


def test_weights_that_begin_alike_are_left_out(tmp_path: Path) -> None:
    weights = _weights()
    weights["once"][0] = weights["thrice"][0]
    found = stored_weights(_plan(tmp_path / "a.plan", weights), _model(weights), tmp_path / "model.onnx")
    assert (found.searched, found.found) == (1, 0)


@pytest.mark.parametrize("content", [b"", b"tiny", bytes(1000)])
def test_a_plan_without_weights(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.plan"
    path.write_bytes(content)
    found = stored_weights(path, _model(_weights()), tmp_path / "model.onnx")
    assert (found.searched, found.found, found.duplicated) == (3, 0, {})
