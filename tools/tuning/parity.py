"""Kernels on the GPU at hand, compared with PyTorch on rows or requests spread across the batch."""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.errors import GateError, GpuError
from ...operators.launch.case import Case
from ...operators.launch.launch import execute
from ...operators.launch.program import Program
from ...operators.registry import OPERATORS
from ...operators.single_node import as_arrays

DISTINCT_BYTES = 200 << 20  # inputs and outputs in rotation; the L2 cache of an H200 holds 60 MB
MIN_COPIES = 3
CHECKED_ROWS = 256
CHECKED_REQUESTS = 4


def difference_of(case: Case, program: Program, device: str = "cuda") -> float:
    """Largest difference between the program and the PyTorch reference, over rows spread across random inputs.

    Raises:
        GateError: It is above the case's threshold.
    """
    inputs = case.tensors(device)
    chosen = sampled(case, inputs)
    expected = as_arrays([tensor.cpu() for tensor in case.reference(chosen)])
    actual = as_arrays([spread(case, output).cpu() for output in execute(program, inputs)])
    actual += expected[len(actual) :]  # outputs that nobody reads are not made
    difference = OPERATORS[case.operator].compare(actual, expected, as_arrays([tensor.cpu() for tensor in chosen]), case.attributes)
    if difference > case.threshold:
        where = f"{case.operator} {case.label} {case.attributes}"
        raise GateError(f"the kernel differs from PyTorch by {difference:.3g}, at most {case.threshold:.3g}", where=where)
    return difference


def sampled(case: Case, inputs: list[Tensor]) -> list[Tensor]:
    """Inputs of the rows or requests that are checked. Those whose first axis is fixed, such as weights, stay whole."""
    return [spread(case, x) if 0 in each.dynamic else x for each, x in zip(case.inputs, inputs, strict=True)]


def spread(case: Case, tensor: Tensor) -> Tensor:
    """Rows, or whole requests, spread across the batch and ending with its last."""
    alone = case.requests is None
    count = case.rows if case.requests is None else case.requests
    step = max(1, count // (CHECKED_ROWS if alone else CHECKED_REQUESTS)) | alone  # odd for rows: all places of a tile come in turn
    chosen: Tensor = tensor.unflatten(0, (count, -1))[(count - 1) % step :: step]
    return chosen.flatten(0, 1)


def copies_of(bytes_of_one: int) -> int:
    """How many sets of tensors rotate, so that none is in the L2 cache when its turn comes."""
    return max(MIN_COPIES, -(-DISTINCT_BYTES // bytes_of_one))


def this_capability() -> str:
    """Compute capability of the GPU at hand.

    Raises:
        GpuError: There is none.
    """
    if not torch.cuda.is_available():
        raise GpuError("CUDA finds no usable GPU", hint="look at `nvidia-smi` and at CUDA_VISIBLE_DEVICES")
    return "{}.{}".format(*torch.cuda.get_device_capability())
