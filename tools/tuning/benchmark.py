"""`onerec-trt dev bench-operators`: kernels at the shapes that count, through the cubins a plan carries, beside a library in the same run.

A kernel is measured only after a comparison with its operator's PyTorch reference.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.artifacts import write_json
from ...operators.kernels.registry import FACTORIES, program_of
from ...operators.launch.case import Library, Measurement
from ...operators.launch.launch import bind, new_outputs, new_scratch
from ...operators.launch.program import Program, Variant
from ...runtime.machine import driver_version
from ..clock import ClockWatch
from ..environment import software
from .parity import copies_of, difference_of, this_capability
from .timing import Captured, captured, interleaved_us

SAMPLES = 21
DEVICE = "cuda"
TIMING = (
    "CUDA events around a CUDA graph of at least 24 calls, kernel and library in turns; inputs and outputs rotate, at least three "
    "sets and 200 MiB of them; gbytes_per_s counts every input and output once, but of experts only those that are chosen; launches: "
    "each alone in a graph of its own"
)


def measurements() -> Iterator[Measurement]:
    """What the table of the documentation shows, kernel by kernel."""
    for factory in FACTORIES.values():
        yield from factory.cases.measured()


def bench_operators(out: Path, samples: int = SAMPLES, say: Callable[[str], None] = print, commit: str = "") -> dict[str, Any]:
    """Check and measure every case, and write the result; gives it, too. `commit` is read from git where none is given.

    Raises:
        GpuError: There is no GPU, or it fails.
        GateError: A kernel differs from PyTorch.
        ArtifactError: The result cannot be written.
    """
    capability = this_capability()
    torch.manual_seed(0)
    results, differences, clocks = [], [], []
    for each in measurements():
        result, difference, clock = _measure(each, capability, samples)
        results.append(result)
        name = {"operator": each.case.operator, "shape": each.case.label, "variant": each.variant}
        differences.append({**name, "difference": difference})
        clocks.append({**name, **clock})
        say(line(result))
        torch.cuda.empty_cache()
    environment = {**_environment(capability, commit), "samples": samples, "differences": differences, "clocks": clocks}
    report = {"environment": environment, "results": results}
    write_json(out, report)
    return report


def _measure(each: Measurement, capability: str, samples: int) -> tuple[dict[str, Any], float, dict[str, Any]]:
    """The result, the difference from PyTorch, and what the clock did while samples of kernel and library were taken."""
    case = each.case
    program = program_of(case, capability)
    difference = difference_of(case, program)
    first = case.tensors(DEVICE)
    outputs = [new_outputs(program, first)]
    inputs = [first, *(case.tensors(DEVICE) for _ in range(copies_of(_bytes(first) + _bytes(outputs[0])) - 1))]
    outputs += [new_outputs(program, i) for i in inputs[1:]]
    moved = statistics.mean(each.read_bytes(i) for i in inputs) + _bytes(outputs[0])
    scratch = [new_scratch(program, i) for i in inputs]
    candidates = {"kernel": captured([bind(program, *tensors) for tensors in zip(inputs, outputs, scratch, strict=True)])}
    name = each.library.name
    try:
        candidates["library"] = _captured_library(each.library, inputs)
    except (RuntimeError, NotImplementedError) as error:
        name += f"; failed: {str(error).splitlines()[0]}"
    with ClockWatch() as clock:
        taken = interleaved_us(candidates, samples)
    median = statistics.median(taken["kernel"])
    result = {
        "operator": case.operator,
        "shape": case.label,
        "variant": each.variant,
        "samples_us": [round(sample, 3) for sample in taken["kernel"]],
        "microseconds": round(median, 3),
        "tflops": round(case.flops / median / 1e6, 1) if case.flops else None,
        "gbytes_per_s": round(moved / median / 1e3, 1),
        "library": name,
        "library_microseconds": round(statistics.median(taken["library"]), 3) if "library" in taken else None,
        "launches": _launches(program, inputs, outputs, scratch, samples),
    }
    return result, difference, clock.summary()


def _launches(
    program: Program, inputs: list[list[Tensor]], outputs: list[list[Tensor]], scratch: list[list[Tensor]], samples: int
) -> list[dict[str, Any]]:
    """Median time of every launch of a program by itself, in order, over the scratch that the whole program left; none where it is one."""
    launches = program.variant([tuple(tensor.shape) for tensor in inputs[0]]).launches
    if len(launches) == 1 or any(buffer.clear for buffer in program.scratch):
        return []
    timed = []
    for launch in launches:
        alone = replace(program, variants=(Variant(1, (launch,)),))
        sampled = interleaved_us({"": captured([bind(alone, *each) for each in zip(inputs, outputs, scratch, strict=True)])}, samples)
        timed.append({"kernel": launch.kernel.entry, "microseconds": round(statistics.median(sampled[""]), 3)})
    return timed


def _captured_library(library: Library, inputs: list[list[Tensor]]) -> Captured:
    calls = [library.prepare(each) for each in inputs]
    calls[0]()  # compiles, and says what it cannot do, outside of a capture
    return captured(calls)


def _bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def line(result: dict[str, Any]) -> str:
    """One result in one line."""
    rate = f"{result['tflops']:7.0f} TFLOP/s" if result["tflops"] else f"{result['gbytes_per_s']:7.0f} GB/s  "
    library = result["library_microseconds"]
    beside = f"{library:8.1f} us {result['library']}" if library else result["library"]
    return f"{result['operator']:16} {result['shape']:18} {result['variant']:40} {result['microseconds']:8.1f} us {rate} | {beside}"


def _environment(capability: str, commit: str) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "compute_capability": capability,
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "driver": driver_version(),
        **software(("onerec-trt", "torch", "triton", "numpy"), commit),
        "timing": TIMING,
    }
