"""GPU memory of this process, for tests that ask whether something grows."""

from __future__ import annotations

import os

import pynvml
import torch


def used_bytes() -> int:
    """What is in use once PyTorch has freed what it only keeps.

    Where NVML cannot tell processes apart it is that of the whole GPU, which nobody else may be using.
    """
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
    pynvml.nvmlInit()
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        used = {process.pid: process.usedGpuMemory for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)}
    finally:
        pynvml.nvmlShutdown()
    free, total = torch.cuda.mem_get_info()
    return int(used.get(os.getpid()) or total - free)
