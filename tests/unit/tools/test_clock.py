"""The watch beside a measurement, with a stand-in for NVML."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pynvml
import pytest
import torch
from onerec_trt.tools import clock
from onerec_trt.tools.clock import ClockWatch, in_words

GPU = object()
NOTHING = {"readings": 0, "mhz": None, "most_mhz": None, "watts": None, "at_power_limit": None}


@pytest.fixture(autouse=True)
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "INTERVAL_S", 0.001)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=f"number-{index}"))


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Three readings, of which two are at the power limit; is set when they have been taken."""
    taken = threading.Event()
    readings = iter([(1980, 400_000, 0), (1400, 701_000, pynvml.nvmlClocksEventReasonSwPowerCap), (1300, 699_000, 0x4 | 0x20)])
    now: list[int] = []

    def clock_of(gpu: object, kind: int) -> int:
        assert (gpu, kind) == (GPU, pynvml.NVML_CLOCK_SM)
        now[:] = next(readings, ())
        if not now:
            taken.set()
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return now[0]

    for name, value in {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetHandleByUUID": {"GPU-number-1": GPU}.__getitem__,
        "nvmlDeviceGetMaxClockInfo": lambda *_: 1980,
        "nvmlDeviceGetClockInfo": clock_of,
        "nvmlDeviceGetFieldValues": lambda *_: [SimpleNamespace(value=SimpleNamespace(uiVal=now[1]))],
        "nvmlDeviceGetCurrentClocksEventReasons": lambda _: now[2],
    }.items():
        monkeypatch.setattr(pynvml, name, value)
    return taken


def test_it_sums_up_what_the_clock_did(nvml: threading.Event) -> None:
    with ClockWatch() as watch:
        assert nvml.wait(10)
    assert watch.summary() == {"readings": 3, "mhz": 1400, "most_mhz": 1980, "watts": 699, "at_power_limit": 0.67}
    assert in_words(watch.summary()) == "1400 of 1980 MHz, 67 % at the power limit"


def test_without_a_driver_nothing_is_read_and_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", missing)
    with ClockWatch() as watch:
        pass
    assert watch.summary() == NOTHING
    assert in_words(NOTHING) == "unknown"


def test_what_fails_inside_is_not_hidden(nvml: threading.Event) -> None:
    with pytest.raises(ZeroDivisionError), ClockWatch():
        _ = 1 // 0
