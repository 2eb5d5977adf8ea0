"""How busy GPUs are while something is measured: the share of time in which a kernel ran, read from NVML by a thread beside it."""

from __future__ import annotations

import statistics

import pynvml
import torch

from ..beside import Beside

_INTERVAL_S = 0.1  # NVML's own figure is of the last 1/6 to 1 s (nvmlUtilization_t)


class BusyWatch(Beside):
    """Reads the first so many of PyTorch's GPUs while its block runs. A GPU or driver that does not tell gives no readings.

    Args:
        gpus: How many; 0 on a machine without.
    """

    def __init__(self, gpus: int) -> None:
        super().__init__()
        self._uuids = [f"GPU-{torch.cuda.get_device_properties(device).uuid}" for device in range(gpus)]
        self._readings: list[list[int]] = [[] for _ in self._uuids]  # percent

    def shares(self) -> list[float]:
        """Of each GPU the mean share from 0 to 1; those without readings are left out."""
        return [round(statistics.mean(each) / 100, 3) for each in self._readings if each]

    def _run(self) -> None:
        if not self._uuids:
            return
        try:
            pynvml.nvmlInit()
            try:
                handles = [pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in self._uuids]
                while not self._ended.wait(_INTERVAL_S):
                    for handle, readings in zip(handles, self._readings, strict=True):
                        readings.append(int(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu))
            finally:
                pynvml.nvmlShutdown()
        except pynvml.NVMLError:
            pass
