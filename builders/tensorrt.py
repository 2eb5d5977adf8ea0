"""Plans of TensorRT for the GPU in this machine: serving graph and scoring graph, natively or with the operators' kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..core.artifacts import read_json, sha256, write_json
from ..core.errors import BuildError
from ..core.recipe import BuildOptions, Fp8Accumulation, Profile
from ..operators.launch.tiles import committed_tiles
from ..runtime.machine import Machine
from ..runtime.plan_record import (
    Fp8Gemms,
    PlanLayer,
    PlanRecord,
    PluginUse,
    TimingCacheUse,
    WeightBytes,
    facts_of_build,
    record_path,
)
from . import native_graph
from .block_scales import without_block_scales
from .child import build_in_child
from .fp8_coverage import count_fp8, require_fp8
from .fp8_gemms import multiplications, weight_bytes
from .functions import io_of, load_graph
from .host_library import HostLibrary, host_library
from .kernel_programs import Kernels
from .layer_report import computed_in_fp8, plan_layers
from .native_graph import NativeGraph
from .plan_names import plan_name
from .preconditions import WRONG_NATIVELY
from .profiles import corrected_profiles
from .stored_weights import stored_weights
from .timing_cache import cache_file
from .worker import Job

Form = Literal["serving", "scoring"]
GRAPHS: dict[Form, str] = {"serving": "model.onnx", "scoring": "scoring.onnx"}
FORMS = tuple(GRAPHS)

_COUNTED = "read from the engine inspector: multiplications whose kernel takes FP8 operands, in every profile, by ONNX node"
_UNREADABLE = "the engine inspector described no layer in detail"


@dataclass(frozen=True)
class Source:
    """An exported folder to build from, its precision, and the files that name its content."""

    exported: Path
    precision: str


@dataclass(frozen=True)
class PlanJob:
    """One plan to build: its file name, the graph it is made of, where that comes from, and the library that runs its kernels."""

    name: str
    form: Form
    source: Source
    graph: NativeGraph
    host: HostLibrary | None


def plan_jobs(
    source: Source,
    options: BuildOptions,
    machine: Machine,
    baseline: Source | None = None,
    forms: Sequence[Form] = FORMS,
) -> list[PlanJob]:
    """Every plan a recipe asks for of these forms of the graph, checked before the first build starts.

    Names: see `plan_names`; with a plan for each profile its own ranges, else those that all profiles span.

    Raises:
        BuildError: A graph cannot be built, a profile does not fit it, or a strict timing cache is missing.
        MissingExtraError: The recipe asks for plugins, and the plugin host cannot be compiled here.
    """
    _require_timings(options, machine)
    host = host_library(machine.library_version) if options.plugins else None
    serving = source.exported / GRAPHS["serving"]
    groups = _groups(options, corrected_profiles(options.profiles, io_of(load_graph(serving), serving), "tensorrt"))
    kernels = _kernels(machine, options.fp8_accumulation) if options.plugins else None
    jobs = []
    for each in (source, baseline) if baseline else (source,):
        for form in forms:
            for profiles in groups:
                name = plan_name(machine.compute_capability, profiles, baseline=each is baseline, scoring=form == "scoring")
                graph = native_graph.prepare(each.exported / GRAPHS[form], profiles, without_block_scales, kernels, WRONG_NATIVELY)
                jobs.append(PlanJob(name, form, each, graph, host))
    return jobs


def build_plan(job: PlanJob, options: BuildOptions, machine: Machine, folder: Path) -> PlanRecord:
    """Build one plan: writes `NAME.plan`, its record `NAME.json`, the inspector's report `layers-NAME.json` and the builder's log.

    Raises:
        BuildError: TensorRT refused, its process died, or less runs in FP8 than the recipe demands.
        OSError: A file cannot be written.
    """
    plan = folder / job.name
    log, layers_file, native = (
        folder / name for name in (f"builder-{plan.stem}.log", f"layers-{plan.stem}.json", f".partial-{plan.stem}.onnx")
    )
    native.write_bytes(job.graph.model.SerializeToString())

    def child_job(events: int) -> Job:
        return Job(
            graph=native.absolute(),
            beside=job.graph.source.absolute(),
            plan=plan.absolute(),
            target="tensorrt",
            compute_capability=None,
            profiles=job.graph.profiles,
            timing_cache=_cache(options, machine),
            strict_timing_cache=options.strict_timing_cache,
            layers=layers_file.absolute(),
            plugin_host=job.host.path.absolute() if job.host else None,
            events=events,
        )

    built = build_in_child(child_job, log, f"build {plan.stem}")
    native.unlink()
    layers = plan_layers(read_json(layers_file), multiplications(job.graph.model), job.graph.kernel_nodes)
    weights = weight_bytes(job.graph.model)
    timings = built["timing_cache"]
    record = PlanRecord(
        **facts_of_build(plan, built, job.graph.io, job.graph.profiles),
        target="tensorrt",
        compute_capability=machine.compute_capability,
        driver=machine.driver,
        gpu=machine.gpu,
        fp8_gemms=_fp8_gemms(job.graph, layers),
        weight_bytes=WeightBytes(graph=weights, plan=None),
        form=job.form,
        precision=job.source.precision,
        made_from={file: sha256(job.source.exported / file) for file in (GRAPHS[job.form], "record.json")},
        weight_ratio=round(plan.stat().st_size / (weights["fp8"] + weights["other"]), 3),
        stored_weights=stored_weights(plan, job.graph.model, job.graph.source),
        timing_cache=TimingCacheUse(**timings, strict=options.strict_timing_cache) if timings else None,
        layers=layers,
        plugins=_plugin_use(job, options),
    )
    require_fp8(record, options.fp8_coverage)
    write_json(record_path(plan), record.model_dump(mode="json"))
    return record


def _kernels(machine: Machine, accumulation: Fp8Accumulation = "fast") -> Kernels:
    from ..operators.kernels.registry import FACTORIES  # brings Triton along

    tiles = committed_tiles()
    if machine.multiprocessors:
        tiles = tiles.on(machine.multiprocessors)
    return Kernels(FACTORIES, machine.compute_capability, tiles, accumulation)


def _plugin_use(job: PlanJob, options: BuildOptions) -> PluginUse | None:
    if job.host is None:
        return None
    return PluginUse(
        host_sha256=job.host.sha256,
        nodes=dict(sorted(Counter(node.operator for node in job.graph.kernel_nodes).items())),
        fusions=dict(sorted(Counter(node.fusion for node in job.graph.fused_nodes).items())),
        fp8_accumulation=options.fp8_accumulation,
    )


def _groups(options: BuildOptions, profiles: tuple[Profile, ...]) -> list[tuple[Profile, ...]]:
    """Profiles by plan."""
    if not options.plan_per_profile:
        return [profiles]
    ranges = [(profile.batch[::2], profile.context[::2]) for profile in profiles]
    if len(set(ranges)) < len(ranges):
        raise BuildError("two profiles have the same ranges", where="build.profiles", hint="with plan_per_profile each needs its own")
    return [(profile,) for profile in profiles]


def _fp8_gemms(graph: NativeGraph, layers: Sequence[PlanLayer]) -> Fp8Gemms:
    found = computed_in_fp8(layers) if layers else None
    return count_fp8(graph.gemms, found, _UNREADABLE if found is None else _COUNTED)


def _cache(options: BuildOptions, machine: Machine) -> Path | None:
    return None if options.timing_cache is None else cache_file(options.timing_cache.absolute(), machine)


def _require_timings(options: BuildOptions, machine: Machine) -> None:
    cache = _cache(options, machine)
    if options.strict_timing_cache and cache is not None and not cache.is_file():
        hint = "copy it there from the machine that filled it, or build once with strict_timing_cache off"
        raise BuildError("strict_timing_cache is on, and there is no timing cache for this machine", where=str(cache), hint=hint)
