"""The watch beside a measurement, with a stand-in for NVML."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
import torch
from onerec_trt.tools import clock
from onerec_trt.tools.clock import ClockWatch, in_words

GPU = object()
NOTHING = {"readings": 0, "mhz": None, "max_mhz": None, "watts": None, "at_power_limit": None}


@pytest.fixture(autouse=True)
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "INTERVAL_S", 0.001)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=f"number-{index}"))


LIMIT = pynvml.nvmlClocksEventReasonSwPowerCap
BEFORE = (345, 80_000, 0)
DURING = ((1980, 400_000, 0), (1400, 701_000, LIMIT), (1300, 699_000, LIMIT | 0x20))


class Nvml:
    """Gives readings one after the other; `ended` is set when none is left."""

    def __init__(self, *readings: tuple[int, int, int], power: int = pynvml.NVML_SUCCESS) -> None:
        self.ended, self._left, self._power = threading.Event(), iter((BEFORE, *readings)), power

    def field_values(self, gpu: object, _: list[int]) -> list[Any]:
        assert gpu is GPU
        now = next(self._left, None)
        if now is None or self._power != pynvml.NVML_SUCCESS:
            self.ended.set()
            return [SimpleNamespace(nvmlReturn=self._power or pynvml.NVML_ERROR_GPU_IS_LOST, value=SimpleNamespace(uiVal=0))]
        self.mhz, milliwatts, self.reasons = now
        return [SimpleNamespace(nvmlReturn=pynvml.NVML_SUCCESS, value=SimpleNamespace(uiVal=milliwatts))]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Callable[[Nvml], dict[str, Any]]:
    """What a watch sums up of the readings."""

    def watch(nvml: Nvml) -> dict[str, Any]:
        for name, value in {
            "nvmlInit": lambda: None,
            "nvmlShutdown": lambda: None,
            "nvmlDeviceGetHandleByUUID": {"GPU-number-1": GPU}.__getitem__,
            "nvmlDeviceGetMaxClockInfo": lambda *_: 1980,
            "nvmlDeviceGetClockInfo": lambda *_: nvml.mhz,
            "nvmlDeviceGetFieldValues": nvml.field_values,
            "nvmlDeviceGetCurrentClocksEventReasons": lambda _: nvml.reasons,
        }.items():
            monkeypatch.setattr(pynvml, name, value)
        with ClockWatch() as watch:
            assert nvml.ended.wait(10)
        return watch.summary()

    return watch


def test_it_sums_up_what_the_clock_did(watched: Callable[[Nvml], dict[str, Any]]) -> None:
    summary = watched(Nvml(*DURING, *DURING))
    assert summary == {"readings": 6, "mhz": 1400, "max_mhz": 1980, "watts": 699, "at_power_limit": 0.67}
    assert in_words(summary) == "1400 of 1980 MHz, 67 % at the power limit"


def test_few_readings_say_nothing(watched: Callable[[Nvml], dict[str, Any]]) -> None:
    summary = watched(Nvml(*DURING))
    assert summary["readings"] == 3
    assert in_words(summary) == "unknown, 3 readings"


def test_a_gpu_that_does_not_tell_its_power_gives_no_readings(watched: Callable[[Nvml], dict[str, Any]]) -> None:
    assert watched(Nvml(*DURING, power=pynvml.NVML_ERROR_NOT_SUPPORTED)) == NOTHING


def test_without_a_driver_nothing_is_read_and_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", missing)
    with ClockWatch() as watch:
        pass
    assert watch.summary() == NOTHING
    assert in_words(NOTHING) == "unknown, 0 readings"
