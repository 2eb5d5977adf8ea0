"""Plans of TensorRT-RTX: one per compute capability, built on any machine, with or without a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx

from ..core.artefacts import sha256, write_json
from ..core.errors import BuildError
from ..core.recipe import BuildOptions
from ..core.tensorrt_api import ShapeRange, load
from .child import build_in_child
from .fp8_gemms import QuantisedGemms, quantised_gemms, weight_bytes
from .functions import inline_functions, load_graph
from .plan_record import NOT_VALIDATED, Fp8Gemms, PlanRecord, PlanTensor, WeightBytes, record_path
from .preconditions import check_capabilities, check_graph, has_fp8
from .profiles import profile_shapes
from .program_text import ProgramFacts, read_program
from .worker import Job

_COUNTED = "read from the compiled program in the plan: multiplications with two FP8 operands, by ONNX node"
_UNREADABLE = "the plan carries no program text that could be read; ask the engine inspector on its GPU"


@dataclass(frozen=True)
class NativeGraph:
    """A graph ready for a native build: functions inlined, checked, external data still beside `source`."""

    source: Path
    model: onnx.ModelProto
    profiles: list[dict[str, ShapeRange]]
    gemms: QuantisedGemms


def plan_name(compute_capability: str) -> str:
    """File name of the plan for a compute capability: '8.9' gives 'sm89.plan'."""
    return f"sm{compute_capability.replace('.', '')}.plan"


def prepare(model: Path, options: BuildOptions) -> NativeGraph:
    """Inline and check a graph and the options, before any build starts.

    Raises:
        BuildError: The graph or an option cannot be built; says why and what to do.
        MissingExtraError: TensorRT-RTX is not installed.
    """
    graph = inline_functions(load_graph(model))
    check_capabilities(load(options.target), options.compute_capabilities, fp8=has_fp8(graph))
    check_graph(graph, model)
    return NativeGraph(model, graph, profile_shapes(graph, options.profiles), quantised_gemms(graph))


def build_plan(graph: NativeGraph, compute_capability: str, folder: Path) -> PlanRecord:
    """Build one plan: writes `sm89.plan`, its record `sm89.json` and the log `builder-sm89.log`.

    Raises:
        BuildError: TensorRT refused, its process died, or a multiplication meant for FP8 runs in another type.
        OSError: A file cannot be written.
    """
    plan = folder / plan_name(compute_capability)
    log = folder / f"builder-{plan.stem}.log"
    native = folder / f".partial-{plan.stem}.onnx"
    native.write_bytes(graph.model.SerializeToString())

    def job(events: int) -> Job:
        return Job(
            graph=native.absolute(),
            beside=graph.source.absolute(),
            plan=plan.absolute(),
            target="tensorrt-rtx",
            compute_capability=compute_capability,
            profiles=graph.profiles,
            events=events,
        )

    built = build_in_child(job, log, f"build {plan.stem}")
    native.unlink()
    program = read_program(plan)
    record = PlanRecord(
        plan=plan.name,
        sha256=sha256(plan),
        bytes=plan.stat().st_size,
        target="tensorrt-rtx",
        library_version=built["version"],
        compute_capability=compute_capability,
        driver=None,
        gpu=None,
        tensors=tuple(PlanTensor(**tensor) for tensor in built["tensors"]),
        profiles=tuple(graph.profiles),
        builder_flags=tuple(built["builder_flags"]),
        fp8_gemms=_fp8_gemms(graph.gemms, program),
        weight_bytes=WeightBytes(graph=weight_bytes(graph.model), plan=program.constant_bytes if program else None),
        build_seconds=built["build_seconds"],
        peak_memory_bytes=built["peak_memory_bytes"],
        validated=False,
        reason=NOT_VALIDATED,
    )
    _require_fp8(record)
    write_json(record_path(plan), record.model_dump(mode="json"))
    return record


def _fp8_gemms(gemms: QuantisedGemms, program: ProgramFacts | None) -> Fp8Gemms:
    expected, dequantised = len(gemms.in_fp8), len(gemms.dequantised)
    if program is None:
        return Fp8Gemms(expected=expected, found=None, missing=(), dequantised=dequantised, how=_UNREADABLE)
    missing = tuple(name for name in gemms.in_fp8 if name not in program.fp8_layers)
    return Fp8Gemms(expected=expected, found=expected - len(missing), missing=missing, dequantised=dequantised, how=_COUNTED)


def _require_fp8(record: PlanRecord) -> None:
    if missing := record.fp8_gemms.missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise BuildError(
            f"{len(missing)} of {record.fp8_gemms.expected} matrix multiplications meant for FP8 do not run in FP8: {shown}",
            where=record.plan,
            hint="compare their Q/DQ with a layer that does; a node between DequantizeLinear and MatMul breaks the fusion",
        )
