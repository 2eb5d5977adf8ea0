"""The machine at hand, as plans and timing caches are tied to it: TensorRT, GPU and driver.

PyTorch is imported where it is used: a builder's process needs this module, and not that library.
"""

from __future__ import annotations

from dataclasses import dataclass

import pynvml

from ..core.errors import GpuError
from .tensorrt_api import Target, load


@dataclass(frozen=True)
class Machine:
    """What a plan is built or run on: the TensorRT installed there, the GPU's compute capability and name, and its driver.

    `multiprocessors`: of the GPU, or of the part of it that is visible; 0 where it is not known.
    """

    target: Target
    library_version: str
    compute_capability: str
    driver: str
    gpu: str
    multiprocessors: int = 0


def this_machine(target: Target) -> Machine:
    """PyTorch's current GPU, by default the first that CUDA_VISIBLE_DEVICES leaves visible, its driver and the installed library.

    Raises:
        GpuError: There is no NVIDIA driver, or no GPU that CUDA can use.
        MissingExtraError: The library is not installed.
    """
    import torch

    driver = driver_version()
    if not torch.cuda.is_available():
        hint = "look at `nvidia-smi` and at CUDA_VISIBLE_DEVICES; a driver older than PyTorch's CUDA also hides the GPU"
        raise GpuError("the NVIDIA driver is there, but CUDA finds no usable GPU", where=f"driver {driver}", hint=hint)
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return Machine(
        target=target,
        library_version=load(target).version,
        compute_capability=f"{properties.major}.{properties.minor}",
        driver=driver,
        gpu=properties.name,
        multiprocessors=properties.multi_processor_count,
    )


def driver_version() -> str:
    """Version of the NVIDIA driver, such as '580.159.03'.

    Raises:
        GpuError: There is none, or it does not answer.
    """
    try:
        pynvml.nvmlInit()
        try:
            return str(pynvml.nvmlSystemGetDriverVersion())
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        hint = "install the NVIDIA driver, or run this on a machine with a GPU; builds for target tensorrt-rtx need none"
        raise GpuError(f"the NVIDIA driver is missing or does not answer: {error}", where="NVML", hint=hint) from None
