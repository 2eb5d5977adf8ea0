"""The runner before it reaches the GPU: a damaged plan, another machine and a missing driver are told apart, in that order."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from onerec_trt.core.errors import ArtifactError, GpuError, RequestError
from onerec_trt.export.contracts import serving_io
from onerec_trt.runtime import loaded_plan, machine
from onerec_trt.runtime.machine import Machine
from onerec_trt.runtime.tensorrt_api import TensorInfo
from onerec_trt.runtime.tensorrt_runner import TensorRtRunner, _filled_up, _tensor

from .plan_files import write_plan

IO = serving_io(64, 8)
HERE = Machine(target="tensorrt", library_version="10.6.0", compute_capability="9.0", driver="580.1", gpu="NVIDIA H200")


@pytest.fixture
def make_plan(tmp_path: Path) -> Callable[..., Path]:
    """Writes a plan of any content with the record it would have."""

    return lambda **changes: write_plan(tmp_path, b"a plan" * 100, "sm90.plan", **{"profiles": (), **changes})


@pytest.fixture
def on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded_plan, "this_machine", lambda _: HERE)


def test_an_input_that_is_no_array_is_named() -> None:
    assert _tensor("features", torch.ones(2)).tolist() == [1, 1]
    assert _tensor("features", np.ones(2)).tolist() == [1, 1]
    with pytest.raises(RequestError, match="input 'lengths' is a list, not an array"):
        _tensor("lengths", [1, 2, 3])


def test_a_context_is_filled_up_behind_its_tokens() -> None:
    features = np.arange(1, 7, dtype=np.float16).reshape(2, 1, 3)
    expected = [[[1, 2, 3], [0, 0, 0]], [[4, 5, 6], [0, 0, 0]]]
    for filled in (_filled_up(features, (2, 2, 3)), _filled_up(torch.from_numpy(features), (2, 2, 3))):
        assert filled.tolist() == expected
        assert filled.dtype in (np.float16, torch.float16)
    assert _filled_up(features, (2, 1, 3)) is features


@pytest.mark.usefixtures("on_this_machine")
def test_a_truncated_plan_never_reaches_the_library(make_plan: Callable[..., Path]) -> None:
    plan = make_plan()
    plan.write_bytes(plan.read_bytes()[:-7])
    with pytest.raises(ArtifactError, match="has 593 bytes, its record says 600"):
        TensorRtRunner.load(plan)


@pytest.mark.usefixtures("on_this_machine")
def test_a_tampered_plan_never_reaches_the_library(make_plan: Callable[..., Path]) -> None:
    plan = make_plan()
    plan.write_bytes(plan.read_bytes().replace(b"plan", b"plot", 1))
    with pytest.raises(ArtifactError, match="does not match its record"):
        TensorRtRunner.load(plan)


@pytest.mark.usefixtures("on_this_machine")
@pytest.mark.parametrize(
    ("change", "message"), [({"library_version": "10.9.0"}, "built by tensorrt 10.9.0"), ({"compute_capability": "8.0"}, "capability 8.0")]
)
def test_a_plan_for_another_machine_is_refused(make_plan: Callable[..., Path], change: dict[str, str], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        TensorRtRunner.load(make_plan(**change))


def test_a_missing_driver_is_said_before_a_missing_library(make_plan: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver() -> str:
        raise machine.pynvml.NVMLError_LibraryNotFound()

    monkeypatch.setattr(machine.pynvml, "nvmlInit", no_driver)
    with pytest.raises(GpuError, match="driver is missing"):
        TensorRtRunner.load(make_plan())


@pytest.mark.usefixtures("on_this_machine")
def test_what_was_checked_is_what_is_loaded(make_plan: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    plan, loaded = make_plan(), []

    def read_before_another_build_ends(path: Path) -> bytes:
        content = path.read_bytes()
        path.write_bytes(b"x" * len(content))
        return content

    def engine(_: object, content: bytes, *__: object, **___: object) -> None:
        loaded.append(content)
        raise torch.OutOfMemoryError("far enough")

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(loaded_plan, "load", lambda _: None)
    monkeypatch.setattr(loaded_plan, "read_plan", read_before_another_build_ends)
    monkeypatch.setattr(loaded_plan, "Engine", engine)
    with pytest.raises(GpuError, match="far enough"):
        TensorRtRunner.load(plan)
    assert loaded == [b"a plan" * 100]


def _engine(*_: object, **__: object) -> SimpleNamespace:
    """A plan whose contexts have other features than its record says."""
    tensors = {tensor.name: TensorInfo(tensor.name, tensor.dtype, tensor.dims) for tensor in (*IO.inputs, *IO.outputs)}
    tensors["features"] = TensorInfo("features", "float16", (-1, -1, 65))
    return SimpleNamespace(inputs=[tensors[t.name] for t in IO.inputs], outputs=[tensors[t.name] for t in IO.outputs])


@pytest.mark.usefixtures("on_this_machine")
def test_a_plan_that_is_not_of_its_contract_is_refused(make_plan: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(loaded_plan, "load", lambda _: None)
    monkeypatch.setattr(loaded_plan, "Engine", _engine)
    with pytest.raises(ArtifactError, match=r"the plan's 'features' is float16 \[-1, -1, 65\], its contract says float16 \[-1, -1, 64\]"):
        TensorRtRunner.load(make_plan())


@pytest.mark.usefixtures("on_this_machine")
def test_what_preflight_remarks_on_is_logged(
    make_plan: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(loaded_plan, "load", lambda _: None)
    monkeypatch.setattr(loaded_plan, "Engine", _engine)
    with caplog.at_level(logging.WARNING), pytest.raises(ArtifactError):
        TensorRtRunner.load(make_plan(driver="590.1"))
    assert "sm90.plan: built with driver 590.1, here is 580.1" in caplog.text
    assert "sm90.plan: not validated: built on its GPU" in caplog.text


def test_a_missing_plan_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="plan not found"):
        TensorRtRunner.load(tmp_path / "sm90.plan")


@pytest.mark.usefixtures("on_this_machine")
def test_exhausted_memory_is_a_typed_error(make_plan: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80.00 GiB.\nmore lines")

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(loaded_plan, "load", lambda _: None)
    monkeypatch.setattr(loaded_plan, "Engine", exhausted)
    with pytest.raises(GpuError, match="memory is exhausted") as caught:
        TensorRtRunner.load(make_plan())
    assert caught.value.what.endswith("Tried to allocate 80.00 GiB.")
    assert "fewer executions" in caught.value.hint
