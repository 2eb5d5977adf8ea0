"""What the GPU's clock did while something was measured, read from NVML by a thread beside it.

A GPU at its power limit lowers its clock. A kernel's speed there depends on the power it draws as much as on its design.
"""

from __future__ import annotations

import statistics
import threading
from collections.abc import Mapping
from typing import Any, Self

import pynvml
import torch

from .beside import Beside

INTERVAL_S = 0.01
ENOUGH = 5  # readings to speak of
POWER = pynvml.nvmlClocksEventReasonSwPowerCap


class ClockWatch(Beside):
    """Reads clock, power, and whether the power limit lowers the clock, while its block runs; the first time just before.

    A GPU or driver that does not tell them, as some virtual ones do not, gives no readings.
    """

    def __init__(self) -> None:
        super().__init__()
        self._began = threading.Event()
        self._uuid = ""
        self._readings: list[tuple[int, int, bool]] = []  # MHz, mW, whether the power limit lowers the clock
        self._max_mhz: int | None = None

    def __enter__(self) -> Self:
        self._uuid = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
        super().__enter__()
        self._began.wait()
        return self

    def summary(self) -> dict[str, Any]:
        """Median MHz beside the highest that the GPU allows, median watts, and the share of readings at the power limit, from 0 to 1.

        Without readings they are null.
        """
        if not self._readings:
            return {"readings": 0, "mhz": None, "max_mhz": None, "watts": None, "at_power_limit": None}
        clocks, powers, limited = zip(*self._readings, strict=True)
        return {
            "readings": len(self._readings),
            "mhz": round(statistics.median(clocks)),
            "max_mhz": self._max_mhz,
            "watts": round(statistics.median(powers) / 1e3),
            "at_power_limit": round(statistics.mean(limited), 2),
        }

    def _run(self) -> None:
        try:
            pynvml.nvmlInit()
            try:
                gpu = pynvml.nvmlDeviceGetHandleByUUID(self._uuid)
                self._max_mhz = pynvml.nvmlDeviceGetMaxClockInfo(gpu, pynvml.NVML_CLOCK_SM)
                _reading(gpu)  # of the time before
                self._began.set()
                while not self._ended.wait(INTERVAL_S):
                    self._readings.append(_reading(gpu))
            finally:
                pynvml.nvmlShutdown()
        except pynvml.NVMLError:
            pass
        finally:
            self._began.set()


def in_words(summary: Mapping[str, Any]) -> str:
    """A summary as it reads: '1440 of 1980 MHz, 100 % at the power limit'."""
    if summary["readings"] < ENOUGH:
        return f"unknown, {summary['readings']} readings"
    return f"{summary['mhz']} of {summary['max_mhz']} MHz, {100 * summary['at_power_limit']:.0f} % at the power limit"


def _reading(gpu: Any) -> tuple[int, int, bool]:
    power = pynvml.nvmlDeviceGetFieldValues(gpu, [pynvml.NVML_FI_DEV_POWER_INSTANT])[0]
    if power.nvmlReturn != pynvml.NVML_SUCCESS:  # said beside the value, not raised
        raise pynvml.NVMLError(power.nvmlReturn)
    clock = pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_SM)
    return clock, power.value.uiVal, bool(pynvml.nvmlDeviceGetCurrentClocksEventReasons(gpu) & POWER)
