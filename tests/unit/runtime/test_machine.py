"""The machine: what is missing is said, what is there is named as NVML and CUDA name it."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pynvml
import pytest
import torch
from onerec_trt.core.errors import GpuError, MissingExtraError
from onerec_trt.runtime import machine
from onerec_trt.runtime.machine import this_machine


def _has_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlSystemGetDriverVersion", lambda: "580.159.03")


def _has_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    gpus = [SimpleNamespace(major=8, minor=9, name="NVIDIA L4", multi_processor_count=58)]
    gpus.append(SimpleNamespace(major=9, minor=0, name="NVIDIA H200", multi_processor_count=132))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpus[index])


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", missing)
    with pytest.raises(GpuError, match="driver is missing") as caught:
        this_machine("tensorrt")
    assert "install the NVIDIA driver" in caught.value.hint


def test_a_driver_without_usable_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    _has_driver(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(GpuError, match="no usable GPU") as caught:
        this_machine("tensorrt")
    assert "580.159.03" in caught.value.where


def test_the_library_may_still_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    _has_driver(monkeypatch)
    _has_gpu(monkeypatch)
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # as if it were not installed
    with pytest.raises(MissingExtraError) as caught:
        this_machine("tensorrt")
    assert "onerec-trt[tensorrt]" in caught.value.hint


def test_the_current_gpu_as_it_calls_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    _has_driver(monkeypatch)
    _has_gpu(monkeypatch)
    monkeypatch.setattr(machine, "load", lambda target: SimpleNamespace(version="10.6.0"))
    found = this_machine("tensorrt")
    assert (found.compute_capability, found.driver, found.gpu, found.library_version) == ("9.0", "580.159.03", "NVIDIA H200", "10.6.0")
    assert found.multiprocessors == 132
