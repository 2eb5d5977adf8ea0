"""Whole plans that follow a catalogue beside open ones, of the same random weights: time of a batch, valid items, swaps under load."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...core.arrays import Array
from ...core.errors import RecipeError
from ...core.graph_io import GraphIO, Role
from ...core.recipe import Profile
from ...models.config import OneRecConfig
from ...models.requests import MAX_CONTEXT
from ...runtime.item_index import ItemIndex
from ...runtime.item_rules import OPEN, ItemRules, RuleEncoder
from ...runtime.item_runner import ItemRunner
from ...runtime.tensorrt_runner import TensorRtRunner
from ..bench.candidates import batch_features
from ..bench.case import Case, parse_case
from ..bench.command import model_of
from ..bench.plans import RECIPES, WITH_KERNELS, BenchPlan, ItemsName, make_plan
from ..bench.sampling import interleaved_ms
from .item_host import host_ms, items_found
from .item_swaps import swaps_under_load

BACK_TO_BACK = 4  # batches of a sample: the GPU is as busy as in a server under load
SAMPLES = 30
SWAPS, BATCHES = 20, 60
Say = Callable[[str], None]
Rules = dict[str, Sequence[ItemRules]]  # of each request of a batch, by what they are called


@dataclass(frozen=True)
class PlanBench:
    """What to measure.

    Args:
        model: Name of the configuration.
        config: The model. All published sizes have the codebook of the catalogue.
        recipe: Of both plans, such as 'fp8-row-block+kernels'.
        cases: Batch shapes, all of one beam.
        samples: Of each candidate.
        folder: Keeps weights, graphs, plans and kernel timings; what is there already is not made again.
    """

    model: str
    config: OneRecConfig
    recipe: str
    cases: tuple[Case, ...]
    samples: int
    folder: Path


def plan_bench(size: str, layers: int, recipe: str, cases: Sequence[str], folder: Path, samples: int = SAMPLES) -> PlanBench:
    """What the words of a command ask for.

    Raises:
        RecipeError: A word is unknown, the recipe is without kernels, or batch shapes have several beams.
    """
    (model, config), shapes = model_of(size, layers), tuple(map(parse_case, cases))
    if recipe not in RECIPES or not recipe.endswith(WITH_KERNELS):
        problem = f"there is no {recipe!r}" if recipe not in RECIPES else f"beams of {recipe!r} follow no catalogue: it is without kernels"
        choice = ", ".join(name for name in RECIPES if name.endswith(WITH_KERNELS))
        raise RecipeError(problem, where="--recipe", hint=f"choose among {choice}")
    if len({shape.beam for shape in shapes}) > 1:
        raise RecipeError("the batch shapes have several beams", where="--case", hint="measure one beam after the other")
    return PlanBench(model, config, recipe, shapes, samples, folder)


def make_plans(options: PlanBench) -> dict[ItemsName, BenchPlan]:
    """Both plans, made or found. They share kernel timings, so that what is alike in both runs the same kernels.

    Raises:
        GpuError, CalibrationError, BuildError, ArtifactError: A plan cannot be made.
    """
    (beam,) = {case.beam for case in options.cases}
    profiles = [Profile(batch=(1, case.batch, case.batch), context=(1, case.context, MAX_CONTEXT)) for case in options.cases]
    folder, timings = options.folder / f"{options.model}-{'-'.join(map(str, beam))}", options.folder / "timings"
    kinds: tuple[ItemsName, ...] = ("open", "catalogue")
    return {items: make_plan(options.config, options.recipe, beam, profiles, folder, timings, items) for items in kinds}


def measure_plans(
    options: PlanBench, indexes: Sequence[ItemIndex], rules_of: Callable[[int], ItemRules], say: Say = print
) -> dict[str, Any]:
    """Make the plans and measure every batch shape.

    Args:
        options: What to measure.
        indexes: The catalogue, and another one to swap it with.
        rules_of: Rules of a request, by its place, for the case with rules.
        say: Told what was measured.

    Raises:
        GpuError, CalibrationError, BuildError, ArtifactError: A plan cannot be made or run.
    """
    plans = make_plans(options)
    runners = {items: TensorRtRunner.load(plan.path, graphs=len(options.cases)) for items, plan in plans.items()}
    results = []
    for case in options.cases:
        rules: Rules = {"no rules": [OPEN] * case.batch, "rules": [rules_of(place) for place in range(case.batch)]}
        ItemRunner(runners["catalogue"], indexes[0])  # binds the catalogue
        result = {**case.as_json(), **_speed(options, case, runners, indexes[0], rules)}
        say(f"{options.model} {case.as_json()}: {result['milliseconds']} ms, ratio {result['ratio']}, valid {result['valid']}")
        light = [ItemRules(excluded=each.excluded[:16], forbidden=each.forbidden) for each in rules["rules"]]
        inputs = {name: tensor.cpu().numpy() for name, tensor in _context(options, case, runners["catalogue"].io).items()}
        result["swap"] = swaps_under_load(
            runners["catalogue"], indexes, inputs, light, swaps=SWAPS, batches=BATCHES, synchronize=torch.cuda.synchronize
        )
        say(f"swap: { {name: value for name, value in result['swap'].items() if name != 'gaps_ms_beside_swaps'} }")
        results.append(result)
    facts = {items: {"sha256": plan.record.sha256, "bytes": plan.record.bytes} for items, plan in plans.items()}
    del runners
    gc.collect()
    torch.cuda.empty_cache()
    return {"model": options.model, "recipe": options.recipe, "plans": facts, "cases": results}


def _speed(options: PlanBench, case: Case, runners: Mapping[ItemsName, TensorRtRunner], index: ItemIndex, rules: Rules) -> dict[str, Any]:
    """Milliseconds of a batch with inputs and outputs on the GPU, and what the host does around it."""
    io = runners["catalogue"].io
    context, encoder = _context(options, case, io), RuleEncoder(index, io)
    inputs = {"open": context} | {name: context | _on_gpu(encoder.inputs(each)) for name, each in rules.items()}
    runner_of = {name: runners["open" if name == "open" else "catalogue"] for name in inputs}
    for runner in runners.values():
        runner.warm_up(case.batch, case.context)
    runs = {name: _BackToBack(runner_of[name], inputs[name]) for name in inputs}
    sums = interleaved_ms(runs, options.samples, torch.cuda.synchronize, warm_up=2)
    taken = {name: [each / BACK_TO_BACK for each in samples] for name, samples in sums.items()}
    medians = {name: statistics.median(samples) for name, samples in taken.items()}
    found = {name: runner_of[name](inputs[name])[io.name(Role.FOUND_ITEMS)].cpu().numpy() for name in rules}
    return {
        "samples_ms": {name: [round(sample, 4) for sample in samples] for name, samples in taken.items()},
        "milliseconds": {name: round(each, 3) for name, each in medians.items()},
        "ratio": {name: round(medians[name] / medians["open"], 4) for name in rules},
        "beam_steps_ms": {name: _beam_steps_ms(runner_of[name], inputs[name]) for name in inputs},
        "valid": {name: valid_items(index, found[name], each) for name, each in rules.items()},
        "host_ms": {name: host_ms(index, io, found[name], each) for name, each in rules.items()},
    }


class _BackToBack:
    """Several batches, one behind the other."""

    def __init__(self, runner: TensorRtRunner, inputs: Mapping[str, Tensor]) -> None:
        self._runner, self._inputs = runner, inputs

    def __call__(self) -> None:
        for _ in range(BACK_TO_BACK):
            self._runner(self._inputs)


def valid_items(index: ItemIndex, sids_BW3: NDArray[np.int64], rules: Sequence[ItemRules]) -> dict[str, int]:
    """Semantic IDs that a batch found, those of items in the catalogue, and those of items that the request's rules allow."""
    found = sids_BW3[..., 0] >= 0
    known = index.entries_of(sids_BW3)[found] >= 0
    allowed = sum(int((np.diff(each.rows) > 0).sum()) for each in items_found(index, sids_BW3, rules))
    return {"found": int(found.sum()), "in the catalogue": int(known.sum()), "allowed": allowed}


def _beam_steps_ms(runner: TensorRtRunner, inputs: Mapping[str, Tensor]) -> float:
    """What TensorRT's own timing says of the beam steps."""
    return round(sum(place.milliseconds for place in runner.layer_times(inputs) if place.places == "beam"), 4)


def _context(options: PlanBench, case: Case, io: GraphIO) -> dict[str, Tensor]:
    """Features and lengths of a batch, on the GPU."""
    lengths = torch.tensor([case.lengths] * case.batch, device="cuda")
    return {io.name(Role.CONTEXT_FEATURES): batch_features(case, options.config), io.name(Role.PATHWAY_LENGTHS): lengths}


def _on_gpu(arrays: Mapping[str, Array]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array).cuda() for name, array in arrays.items()}
