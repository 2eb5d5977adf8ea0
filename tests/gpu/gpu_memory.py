"""GPU memory of this process, for tests that ask whether something grows."""

from __future__ import annotations

import os
from typing import NamedTuple

import pynvml
import torch


class Used(NamedTuple):
    """Bytes in use: of tensors that live, and of everything that is not PyTorch's, such as TensorRT's contexts, modules and CUDA graphs.

    What PyTorch holds beyond its tensors is left out. It takes memory in segments of 2 MiB and more, and keeps one as long as any
    tensor lies in it; which one that is depends on what was allocated before, so this may differ by a segment where nothing grew.
    """

    tensors: int
    others: int


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


def used() -> Used:
    """The same, by owner."""
    whole = used_bytes()
    return Used(torch.cuda.memory_allocated(), whole - torch.cuda.memory_reserved())
