"""`onerec-trt bench`: plans against PyTorch on the same weights, interleaved in one run, and against the physical limit.

Full sizes with random weights: speed does not depend on their values. A run whose baseline is slower than it was before does
not count.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...calibration.random_checkpoint import RandomWeights
from ...core.artifacts import write_json
from ...core.recipe import Profile
from ...models.config import OneRecConfig
from ...models.requests import MAX_CONTEXT
from ...runtime.layer_times import PlaceTime
from ...runtime.machine import Machine, this_machine
from ..clock import ClockWatch
from ..environment import software
from .candidates import EngineName, PlanCandidate, load_runner, shared_items, torch_candidate
from .case import Case
from .parts import PARTS, part_of
from .plans import SEED, BenchPlan, make_plan, precision_of
from .random_scales import SCALES_FROM
from .result import Result, Sampled, invalid_because, limits_ms, result_of
from .roofline import Gpu, gpu_of
from .sampling import interleaved_ms, summary, sustained_ms
from .torch_baseline import TorchBaseline

_PLACES_KEPT = 30  # of a plan's layer times; the rest is small


@dataclass(frozen=True)
class BenchOptions:
    """What to measure.

    Args:
        models: Configurations by name.
        cases: Batch shapes.
        recipes: Of the plans: precisions, with `+kernels` where operators run their kernels.
        engines: Ways to run the PyTorch baseline.
        samples: Of each candidate.
        folder: Keeps checkpoints, graphs, plans and kernel timings; what is there already is not made again.
        commit: Of the product. Default: read from git.
    """

    models: dict[str, OneRecConfig]
    cases: tuple[Case, ...]
    recipes: tuple[str, ...]
    engines: tuple[EngineName, ...]
    samples: int
    folder: Path
    commit: str = ""


@dataclass(frozen=True)
class _Measured:
    """What was measured of one model and shape: results, the share of items each candidate has in common with the first, where the
    time of each plan goes, by its recipe, what the clock did meanwhile, and each candidate by itself."""

    results: list[Result]
    shared: dict[str, float]
    layers: dict[str, list[PlaceTime]]
    clock: dict[str, Any]
    alone: list[dict[str, Any]]


def bench(options: BenchOptions, out: Path) -> dict[str, Any]:
    """Make what is missing, measure, and write the result; gives it, too.

    Raises:
        GpuError: There is no GPU, or its memory is exhausted.
        MissingExtraError: TensorRT is not installed.
        CalibrationError, BuildError, ArtifactError: A plan cannot be made.
    """
    machine = this_machine("tensorrt")
    gpu, cases = gpu_of(machine.gpu), options.cases
    plans = prepare(options)
    results: list[Result] = []
    agreement, layers, clocks, alone = [], [], [], []
    for model, config in options.models.items():
        baseline = TorchBaseline(RandomWeights(config, SEED)) if options.engines else None
        for case in cases:
            measured = _measure(options, model, config, case, baseline, plans[model, case.beam], gpu)
            results += measured.results
            agreement.append({"model": model, **case.as_json(), "share_of_items_of_the_first": measured.shared})
            clocks.append({"model": model, **case.as_json(), **measured.clock})
            alone += [{"model": model, **case.as_json(), **each} for each in measured.alone]
            layers += [
                {"model": model, "recipe": recipe, **case.as_json(), **_layers(times, _median_of(measured.results, recipe))}
                for recipe, times in measured.layers.items()
            ]
        del baseline
        _free()
    environment = {
        **_environment(options, machine),
        "agreement": agreement,
        "layer_times": layers,
        "clocks": clocks,
        "alone": alone,
        "limits_of": gpu.name,
        "limits_ms": [{"model": m, **case.as_json(), **limits_ms(c, case, gpu)} for m, c in options.models.items() for case in cases],
        "plans": [_plan_facts(model, plan) for (model, _), made in plans.items() for plan in made],
        "invalid_because": (problems := invalid_because(results, machine.gpu)),
        "valid": not problems,
    }
    report = {"environment": environment, "results": [result.model_dump(mode="json") for result in results]}
    write_json(out, report)
    return report


def prepare(options: BenchOptions) -> dict[tuple[str, tuple[int, int, int]], list[BenchPlan]]:
    """The plans of every model and beam, made or found.

    Raises:
        GpuError, CalibrationError, BuildError, ArtifactError: A plan cannot be made.
    """
    this_machine("tensorrt")  # says that there is no GPU before hours of work
    plans = {}
    for model, config in options.models.items():
        for beam in dict.fromkeys(case.beam for case in options.cases):
            profiles = _profiles([case for case in options.cases if case.beam == beam])
            folder, timings = options.folder / f"{model}-{'-'.join(map(str, beam))}", options.folder / "timings"
            plans[model, beam] = [make_plan(config, name, beam, profiles, folder, timings) for name in options.recipes]
    return plans


def _profiles(cases: Sequence[Case]) -> list[Profile]:
    """One for each batch size, tuned for its shortest context."""
    typical: dict[int, int] = {}
    for case in cases:
        typical[case.batch] = min(case.context, typical.get(case.batch, case.context))
    return [Profile(batch=(1, batch, batch), context=(1, context, MAX_CONTEXT)) for batch, context in sorted(typical.items())]


def _measure(
    options: BenchOptions,
    model: str,
    config: OneRecConfig,
    case: Case,
    baseline: TorchBaseline | None,
    plans: Sequence[BenchPlan],
    gpu: Gpu,
) -> _Measured:
    candidates: dict[Sampled, Callable[[], Tensor]] = {}
    if baseline is not None:
        for engine in options.engines:
            candidates[Sampled(engine, "bf16", None)] = torch_candidate(engine, baseline, case)
    running = {plan.recipe: PlanCandidate(load_runner(plan), config, case) for plan in plans}
    for plan in plans:
        candidates[Sampled("tensorrt", plan.recipe, plan.record.sha256)] = running[plan.recipe]
    by_name = {sampled.name: run for sampled, run in candidates.items()}
    with ClockWatch() as clock:
        taken = interleaved_ms(by_name, options.samples, torch.cuda.synchronize)
    alone = [_alone(sampled, run) for sampled, run in candidates.items()]
    items = {name: run().clone() for name, run in by_name.items()}
    first = next(iter(items.values()))
    shared = {name: round(shared_items(first, sids), 4) for name, sids in items.items()}
    results = [result_of(model, config, case, sampled, taken[sampled.name], gpu) for sampled in candidates]
    layers = {recipe: plan.layer_times() for recipe, plan in running.items()}
    del candidates, running, by_name, items, first
    _free()
    return _Measured(results, shared, layers, clock.summary(), alone)


def _alone(sampled: Sampled, run: Callable[[], Tensor]) -> dict[str, Any]:
    """One candidate back to back, with nothing between its batches: its sustained latency, and the clock and power that are its own."""
    with ClockWatch() as clock:
        samples = sustained_ms(run, torch.cuda.synchronize)
    return {
        "engine": sampled.engine,
        "recipe": sampled.recipe,
        "batches": len(samples),
        "latency_ms": summary(samples),
        **clock.summary(),
    }


def _median_of(results: Sequence[Result], recipe: str) -> float:
    """Milliseconds of a plan."""
    return next(result.latency_ms.median for result in results if result.engine == "tensorrt" and result.recipe == recipe)


def _layers(times: Sequence[PlaceTime], median_ms: float) -> dict[str, Any]:
    """The slowest places, the sum of all by part, and that sum over the median latency."""
    milliseconds = sum(time.milliseconds for time in times)
    by_part = dict.fromkeys(PARTS, 0.0)
    for time in times:
        by_part[part_of(time.places)] += time.milliseconds
    return {
        "milliseconds": round(milliseconds, 3),
        "of_latency": round(milliseconds / median_ms, 4),
        "parts": {part: round(taken, 3) for part, taken in by_part.items()},
        "places": [time.model_dump(mode="json") for time in times[:_PLACES_KEPT]],
    }


def _free() -> None:
    """CUDA graphs and plans hold each other in cycles; the next candidates need their memory."""
    gc.collect()
    torch.cuda.empty_cache()


def _plan_facts(model: str, plan: BenchPlan) -> dict[str, Any]:
    record = plan.record
    return {
        "model": model,
        "recipe": plan.recipe,
        "sha256": record.sha256,
        "bytes": record.bytes,
        "weight_ratio": record.weight_ratio,
        "build_seconds": record.build_seconds,
        "fp8_gemms": {"expected": record.fp8_gemms.expected, "found": record.fp8_gemms.found},
        "profiles": [dict(profile) for profile in record.profiles],
    }


def _environment(options: BenchOptions, machine: Machine) -> dict[str, Any]:
    tools = ("onerec-trt", "torch", "triton", "onnx", "onnxscript", "numpy")
    return {
        **{name: value for name, value in asdict(machine).items() if name not in ("target", "library_version")},
        "tensorrt": machine.library_version,
        **software(tools, options.commit),
        "weights": "random" + (f"; fp8-static: {SCALES_FROM}" if "fp8-static" in map(precision_of, options.recipes) else ""),
        "timing": "wall clock from inputs on the GPU to items on the GPU, candidates in turns, in an order drawn anew for every round; "
        "alone: after that, one candidate back to back",
        "models": {name: config.model_dump(mode="json") for name, config in options.models.items()},
    }
