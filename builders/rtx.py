"""Plans of TensorRT-RTX: one per compute capability, built on any machine, with or without a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..core.artifacts import sha256, write_json
from ..core.recipe import BuildOptions, Profile
from ..core.records import RECORD_NAME
from ..runtime.plan_record import Fp8Gemms, PlanRecord, WeightBytes, facts_of_build, record_path
from ..runtime.tensorrt_api import load
from . import native_graph
from .child import build_in_child
from .fp8_coverage import count_fp8, require_fp8
from .fp8_gemms import QuantizedGemms, weight_bytes
from .functions import io_of, load_graph
from .native_graph import NativeGraph
from .plan_names import plan_name
from .preconditions import check_capabilities, has_fp8
from .profiles import corrected_profiles
from .program_text import ProgramFacts, read_program
from .worker import Job

MODEL = "model.onnx"
_COUNTED = "read from the compiled program in the plan: multiplications with two FP8 operands, by ONNX node"
_UNREADABLE = "the plan carries no program text that could be read; ask the engine inspector on its GPU"


class Origin(NamedTuple):
    """The exported folder that a plan is made of, and its precision."""

    exported: Path
    precision: str

    def files(self) -> dict[str, str]:
        """SHA-256 of what names its content."""
        return {file: sha256(self.exported / file) for file in (MODEL, RECORD_NAME)}


def prepare(model: Path, options: BuildOptions) -> tuple[NativeGraph, tuple[Profile, ...]]:
    """Inline and check a graph and the options, before any build starts; gives the profiles as they are built, too.

    Raises:
        BuildError: The graph or an option cannot be built; says why and what to do.
        MissingExtraError: TensorRT-RTX is not installed.
    """
    bindings = load("tensorrt-rtx")
    profiles = corrected_profiles(options.profiles, io_of(load_graph(model), model), "tensorrt-rtx")
    graph = native_graph.prepare(model, profiles)
    check_capabilities(bindings, options.compute_capabilities, fp8=has_fp8(graph.model))
    return graph, profiles


def build_plan(
    graph: NativeGraph,
    profiles: Sequence[Profile],
    compute_capability: str,
    fp8_coverage: float,
    folder: Path,
    origin: Origin,
) -> PlanRecord:
    """Build one plan, such as `sm89-b1-32-s2-3072.plan`: writes it, its record and the builder's log.

    Raises:
        BuildError: TensorRT refused, its process died, or less runs in FP8 than `fp8_coverage` demands.
        OSError: A file cannot be written.
    """
    plan = folder / plan_name(compute_capability, profiles)
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
        **facts_of_build(plan, built, graph.io, graph.profiles),
        target="tensorrt-rtx",
        compute_capability=compute_capability,
        driver=None,
        gpu=None,
        fp8_gemms=_fp8_gemms(graph.gemms, program),
        weight_bytes=WeightBytes(graph=weight_bytes(graph.model), plan=program.constant_bytes if program else None),
        precision=origin.precision,
        made_from=origin.files(),
    )
    require_fp8(record, fp8_coverage)
    write_json(record_path(plan), record.model_dump(mode="json"))
    return record


def _fp8_gemms(gemms: QuantizedGemms, program: ProgramFacts | None) -> Fp8Gemms:
    found = None if program is None else program.fp8_layers
    return count_fp8(gemms, found, _UNREADABLE if program is None else _COUNTED)
