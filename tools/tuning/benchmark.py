"""`onerec-trt dev bench-operators`: kernels at the shapes that count, through the cubins a plan carries, beside a library in the same run.

A kernel is measured only after a comparison with its operator's PyTorch reference.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.artifacts import write_json
from ...operators.launch.launch import bind, new_outputs
from ...operators.registry import OPERATORS
from ...runtime.machine import driver_version
from ..clock import ClockWatch
from ..environment import software
from .cases import EPSILON, OperatorCase, beam_attention_case, beam_step_case, context_attention_case, copies_of, this_capability
from .timing import Captured, captured, interleaved_us

SAMPLES = 21
ROWS = 16384  # 32 requests of 512 beams
TIMING = (
    "CUDA events around a CUDA graph of at least 24 calls, kernel and library in turns; inputs and outputs rotate, at least three "
    "sets and 200 MiB of them; gbytes_per_s counts every input and output once"
)
Call = Callable[[list[Tensor]], Any]


@dataclass(frozen=True)
class Library:
    """Another way to compute an operator. `call` takes the operator's inputs."""

    name: str
    call: Call


@dataclass(frozen=True)
class Measurement:
    """One line of the result."""

    case: OperatorCase
    variant: str
    library: Library


def measurements() -> Iterator[Measurement]:
    """What the table of the documentation shows."""
    for n in (1408, 4224, 5632):
        yield _product(n, 0, Library("torch._scaled_mm, row-wise, fast accumulation, to BF16, without the residual", _row_wise))
        yield _product(n, 128, Library("torch._scaled_mm, 1x128 x 128x128 blocks, to BF16, without the residual", _block_wise))
    for rows in (65536, ROWS):
        case = OperatorCase("RmsNormQuantRow", rows, (1408,), EPSILON, (True, True, False))
        yield Measurement(case, "without the FP16 norm", _compiled(case))
    case = OperatorCase("SwiGluQuantRow", ROWS, (5632,))
    yield Measurement(case, "row scales", _compiled(case))
    yield from _attentions()
    yield from _beam_steps()
    yield from _fp16_baselines()


def _product(n: int, promotion: int, library: Library) -> Measurement:
    case = OperatorCase("Fp8LinearAdd", ROWS, (1408, n), {"promotion": promotion})
    return Measurement(case, f"row scales, residual, promotion {f'every {promotion}' if promotion else 'never'}", library)


def _fp16_baselines() -> Iterator[Measurement]:
    for n in (1408, 5632):
        addmm = Library("torch.addmm", lambda i: torch.addmm(i[2], i[0], i[1].T))
        yield Measurement(OperatorCase("LinearAdd", ROWS, (1408, n)), "FP16, residual", addmm)
    norm = Library("torch.nn.functional.rms_norm", lambda i: torch.nn.functional.rms_norm(i[0], (1408,), i[1], EPSILON["epsilon"]))
    yield Measurement(OperatorCase("RmsNorm", ROWS, (1408,), EPSILON), "FP16", norm)


def _attentions() -> Iterator[Measurement]:
    """Of the 1B size."""
    for tokens in (512, 3000):
        case = context_attention_case(32, 512, heads=14, groups=14, tokens=tokens, head=128)
        yield Measurement(case, "every context full", Library("scaled_dot_product_attention, without lengths", _attend))
    case = beam_attention_case("BeamSelfAttention2", 32, 512, heads=14, head=128)
    yield Measurement(case, "FP16", _compiled(case))


def _beam_steps() -> Iterator[Measurement]:
    """Of the schedules 512-512-512 and 128-256-512."""
    for requests, beam, width in ((32, 1, 512), (32, 512, 512), (1, 512, 512), (32, 1, 128), (32, 128, 256), (32, 256, 512)):
        library = Library("log_softmax and topk of PyTorch, which leaves the order of equal scores open", partial(_beam_step, width=width))
        yield Measurement(beam_step_case(requests, beam, 8192, width), f"width {width}", library)


def _beam_step(inputs: list[Tensor], width: int) -> tuple[Tensor, Tensor, Tensor]:
    logits, scores = inputs
    total = (logits.float().log_softmax(-1).view(*scores.shape, -1) + scores[..., None]).flatten(1)
    best, flat = total.topk(width)
    return best, flat // logits.shape[1], flat % logits.shape[1]


def _attend(inputs: list[Tensor]) -> Tensor:
    query, key, value, _ = inputs
    requests, heads, _, head = key.shape
    rows = query.view(requests, -1, heads, head).transpose(1, 2)
    return torch.nn.functional.scaled_dot_product_attention(rows, key, value)


def _row_wise(inputs: list[Tensor]) -> Tensor:
    codes, scale, weight, weight_scale = inputs[:4]
    return torch._scaled_mm(codes, weight.T, scale, weight_scale[None], out_dtype=torch.bfloat16, use_fast_accum=True)


def _block_wise(inputs: list[Tensor]) -> Tensor:
    """Random block scales, in bytes as many as a quantizer would make; made once per set of inputs."""
    codes, _, weight, _ = inputs[:4]
    blocks = weight.shape[1] // 128
    key = codes.data_ptr()
    if key not in _block_scales:
        activation = torch.rand(blocks, codes.shape[0], device="cuda").T
        _block_scales[key] = (activation, torch.rand(weight.shape[0] // 128, blocks, device="cuda").T)
    activation, weights = _block_scales[key]
    return torch._scaled_mm(codes, weight.T, activation, weights, out_dtype=torch.bfloat16)


_block_scales: dict[int, tuple[Tensor, Tensor]] = {}


def _compiled(case: OperatorCase) -> Library:
    reference, outputs = OPERATORS[case.operator].reference, len(case.read) - 1 if case.read else None

    def read_outputs(*inputs: Tensor) -> tuple[Tensor, ...]:
        return reference(*inputs, **case.attributes)[:outputs]

    fused = torch.compile(read_outputs, dynamic=False)
    return Library("torch.compile", lambda inputs: fused(*inputs))


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
        _block_scales.clear()
        torch.cuda.empty_cache()
    environment = {**_environment(capability, commit), "samples": samples, "differences": differences, "clocks": clocks}
    report = {"environment": environment, "results": results}
    write_json(out, report)
    return report


def _measure(each: Measurement, capability: str, samples: int) -> tuple[dict[str, Any], float, dict[str, Any]]:
    """The result, the difference from PyTorch, and what the clock did while samples of kernel and library were taken."""
    case = each.case
    program = case.program(capability)
    difference = case.difference(program)
    first = case.inputs()
    size = _bytes(first) + _bytes(new_outputs(program, first))
    inputs = [first, *(case.inputs() for _ in range(copies_of(size) - 1))]
    outputs = [new_outputs(program, i) for i in inputs]
    candidates = {"kernel": captured([bind(program, i, o) for i, o in zip(inputs, outputs, strict=True)])}
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
        "gbytes_per_s": round(size / median / 1e3, 1),
        "library": name,
        "library_microseconds": round(statistics.median(taken["library"]), 3) if "library" in taken else None,
    }
    return result, difference, clock.summary()


def _captured_library(library: Library, inputs: list[list[Tensor]]) -> Captured:
    library.call(inputs[0])  # compiles, and says what it cannot do, outside of a capture
    return captured([lambda i=i: library.call(i) for i in inputs])  # type: ignore[misc]


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
