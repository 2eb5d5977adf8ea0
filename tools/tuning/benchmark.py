"""`onerec-trt dev bench-operators`: kernels at the shapes that count, through the cubins a plan carries, beside a library in the same run.

A kernel is measured only after a comparison with its operator's PyTorch reference. One that fails is named, and the others are measured.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.artifacts import write_json
from ...core.errors import GateError, OnerecTrtError, RecipeError
from ...operators.kernels.registry import FACTORIES, program_of
from ...operators.launch.case import Library, Measurement
from ...operators.launch.compile import Build, compile_many
from ...operators.launch.launch import bind, new_outputs, new_scratch
from ...operators.launch.program import Kernel, Program, Variant
from ...runtime.machine import driver_version
from ..bench.roofline import Gpu, gpu_of, stand_in
from ..clock import ClockWatch
from ..environment import software
from .parity import copies_of, difference_of, this_capability
from .rates import parts_of, rates, route_and_place
from .timing import Captured, captured, interleaved_us

SAMPLES = 21
DEVICE = "cuda"
REST_S = 0.2  # of the GPU before the first sample of a kernel
TIMING = (
    "CUDA events around a CUDA graph of at least 24 calls, kernel and library in turns; inputs and outputs rotate, at least three "
    "sets and 200 MiB of them; gbytes_per_s counts every input and output once, but of experts only those that are chosen; launches: "
    "each alone in a graph of its own; first: the first sample after a rest; sustained: the median of the later half"
)


def measurements(operators: Collection[str] = ()) -> Iterator[Measurement]:
    """What the table of the documentation shows, kernel by kernel; of these operators alone, if any are named.

    Raises:
        RecipeError: One of them has no kernel.
    """
    if unknown := sorted(set(operators) - set(FACTORIES)):
        raise RecipeError(f"no kernel for {', '.join(unknown)}", where="--operator", hint=f"choose among {', '.join(FACTORIES)}")
    for name, factory in FACTORIES.items():
        if not operators or name in operators:
            yield from factory.cases.measured()


def bench_operators(
    out: Path, samples: int = SAMPLES, say: Callable[[str], None] = print, commit: str = "", operators: Collection[str] = ()
) -> dict[str, Any]:
    """Check and measure every case, and write the result; gives it, too. `require_all` says whether that was all.

    Args:
        out: The JSON file.
        samples: Of each kernel and library.
        say: Is called with each line of progress.
        commit: Of the product. Default: read from git.
        operators: Default: all that have a kernel and a measurement.

    Raises:
        RecipeError: An operator has no kernel.
        GpuError: There is no GPU.
        ArtifactError: The result cannot be written.
    """
    capability = this_capability()
    torch.manual_seed(0)
    cases = list(measurements(operators))
    _compile_all(cases, capability)
    card = torch.cuda.get_device_properties(0).name
    gpu = gpu_of(card)
    if whose := stand_in(card):
        say(f"of_memory_bandwidth goes by {whose}")
    results, differences, clocks, failures = [], [], [], []
    for each in cases:
        name = {"operator": each.case.operator, "shape": each.case.label, "variant": each.variant}
        try:
            result, difference, clock = _measure(each, capability, samples, gpu)
            torch.cuda.empty_cache()
        except (OnerecTrtError, RuntimeError) as error:  # RuntimeError: what CUDA says
            failures.append({**name, "problem": (str(error) or type(error).__name__).splitlines()[0]})
            say(f"{' '.join(name.values())} failed: {failures[-1]['problem']}")
            continue
        results.append(result)
        differences.append({**name, "difference": difference})
        clocks.append({**name, **clock})
        say(line(result))
        for part in result["parts"]:
            say(part_line(part))
    environment = {
        **_environment(capability, commit),
        "memory_bandwidth_of": gpu.name,
        "samples": samples,
        "differences": differences,
        "clocks": clocks,
        "failures": failures,
    }
    report = {"environment": environment, "results": results, "route_and_place": route_and_place(results)}
    write_json(out, report)
    return report


def require_all(report: Mapping[str, Any], out: Path) -> None:
    """Refuse a result from which a kernel is missing.

    Raises:
        GateError: A kernel differs from PyTorch, does not compile, or broke off; names the first.
    """
    if failures := report["environment"]["failures"]:
        first, whole = failures[0], len(failures) + len(report["results"])
        what = f"{len(failures)} of {whole} kernels failed, first {first['operator']} {first['shape']}: {first['problem']}"
        raise GateError(what, where=str(out), hint="the file has the others, and its failures list the reasons")


def _compile_all(cases: Collection[Measurement], capability: str) -> None:
    """Fill the cache of compiled kernels, in parallel processes; what does not compile is named where it is measured."""
    builds: dict[str, Build] = {}

    def remember(build: Build) -> Kernel:
        builds[repr(build)] = build
        return Kernel(b"-", "-", build.warps, 0, 0)

    for each in cases:
        program_of(each.case, capability, compile_with=remember)
    compile_many(builds.values())


def _measure(each: Measurement, capability: str, samples: int, gpu: Gpu) -> tuple[dict[str, Any], float, dict[str, Any]]:
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
    time.sleep(REST_S)
    with ClockWatch() as clock:
        taken = interleaved_us(candidates, samples)
    launches = _launches(program, inputs, outputs, scratch, samples)
    parts = each.parts([launch["kernel"] for launch in launches]) if launches else ()
    median = statistics.median(taken["kernel"])
    result = {
        "operator": case.operator,
        "shape": case.label,
        "variant": each.variant,
        "samples_us": [round(sample, 3) for sample in taken["kernel"]],
        "microseconds": round(median, 3),
        "tflops": round(case.flops / median / 1e6, 1) if case.flops else None,
        "gbytes_per_s": round(moved / median / 1e3, 1),
        **rates(taken["kernel"], case.flops, moved, gpu.bytes_per_second),
        "library": name,
        "library_microseconds": round(statistics.median(taken["library"]), 3) if "library" in taken else None,
        "launches": launches,
        "parts": parts_of(launches, parts),
    }
    return result, difference, clock.summary()


def _launches(
    program: Program, inputs: list[list[Tensor]], outputs: list[list[Tensor]], scratch: list[list[Tensor]], samples: int
) -> list[dict[str, Any]]:
    """The time of every launch of a program by itself, in order, over the scratch that the whole program left; none where it is one."""
    launches = program.variant([tuple(tensor.shape) for tensor in inputs[0]]).launches
    if len(launches) == 1 or any(buffer.clear for buffer in program.scratch):
        return []
    timed = []
    for launch in launches:
        alone = replace(program, variants=(Variant(1, (launch,)),))
        graph = captured([bind(alone, *each) for each in zip(inputs, outputs, scratch, strict=True)])
        time.sleep(REST_S)
        sampled = interleaved_us({"": graph}, samples)
        timed.append(
            {
                "kernel": launch.kernel.entry,
                "microseconds": round(statistics.median(sampled[""]), 3),
                "samples_us": [round(sample, 3) for sample in sampled[""]],
            }
        )
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


def part_line(part: dict[str, Any]) -> str:
    """A part of an operator in one line, below the operator's own."""
    both = (f"{when} {part[when]['microseconds']:.1f} us" + _rate(part[when]["tflops"]) for when in ("first", "sustained"))
    return f"    {part['name']}: {', '.join(both)}"


def _rate(tflops: float | None) -> str:
    return f" {tflops:.0f} TFLOP/s" if tflops else ""


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
