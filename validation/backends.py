"""The backends the gates run on: the exported graphs in ONNX Runtime, or the plans built from them on their GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

from ..core.arrays import Array
from ..core.artifacts import sha256
from ..core.errors import ArtifactError
from ..core.graph_io import GraphIO
from ..export.stage import SCORING_FILE, SERVING_FILE
from ..runtime.item_index import ItemIndex
from ..runtime.onnxruntime_runner import OnnxRuntimeRunner
from ..runtime.plan_record import PlanRecord, inspect_plan
from ..runtime.plan_shapes import choose_profile, largest_batch_and_context
from ..runtime.tensorrt_runner import TensorRtRunner
from .catalogue import bound
from .requests_feed import Runner

EngineName = Literal["onnxruntime", "tensorrt"]
ENGINES: tuple[EngineName, ...] = ("onnxruntime", "tensorrt")


@dataclass(frozen=True)
class Trial:
    """One way to run an engine: what its gates are marked with, requests per batch, and how to load a runner of each form."""

    label: str
    batch_size: int
    serving: Callable[[], Runner]
    scoring: Callable[[], Runner]


@dataclass(frozen=True)
class UnderTest:
    """An engine and every way it is to be run.

    Attributes:
        engine: Its name.
        trials: The ways.
        plans: By file name the plans that may run.
        ran: Plan and number of the profile of every batch so far.
    """

    engine: EngineName
    trials: tuple[Trial, ...]
    plans: Mapping[str, PlanRecord] = field(default_factory=dict)
    ran: set[tuple[str, int]] = field(default_factory=set)

    @property
    def unseen(self) -> dict[str, list[int]]:
        """Numbers of the profiles that no batch has taken, of every plan that has some."""
        missing = {name: [n for n in range(len(plan.profiles)) if (name, n) not in self.ran] for name, plan in self.plans.items()}
        return {name: numbers for name, numbers in missing.items() if numbers}


FindIndex = Callable[[], ItemIndex | None]  # asked where a serving graph is loaded


def onnxruntime_under_test(exported: Path, batch_size: int, index: FindIndex) -> UnderTest:
    """The exported graphs on CPU."""
    trial = Trial(
        "",
        batch_size,
        lambda: bound(OnnxRuntimeRunner(exported / SERVING_FILE), index()),
        lambda: OnnxRuntimeRunner(exported / SCORING_FILE),
    )
    return UnderTest("onnxruntime", (trial,))


def tensorrt_under_test(exported: Path, plans: Path, precision: str, max_context: int, index: FindIndex) -> UnderTest:
    """The plans of the exported graphs, once at the largest batch of every profile that takes the longest context.

    Raises:
        ArtifactError: There is no plan of one of the forms, a plan does not match its record, or none takes the longest context.
    """
    serving, scoring = (plans_of(exported, plans, precision, form) for form in ("serving", "scoring"))
    batches = _largest_batches(serving.values(), max_context)
    if not batches:
        problem = f"no plan takes {max_context} tokens, the longest context of the recipe"
        raise ArtifactError(problem, where=str(plans), hint="run `onerec-trt build RECIPE.yaml --target tensorrt` again")
    ran: set[tuple[str, int]] = set()

    @cache
    def load(form: str) -> PlanSet:  # once for all trials: a plan of several GB takes seconds
        return PlanSet(list(serving if form == "serving" else scoring), ran, index)

    trials = tuple(
        Trial(f"batch {batch}" if len(batches) > 1 else "", batch, partial(load, "serving"), partial(load, "scoring")) for batch in batches
    )
    return UnderTest("tensorrt", trials, {path.name: record for path, record in (serving | scoring).items()}, ran)


def plans_of(exported: Path, plans: Path, precision: str, form: str) -> dict[Path, PlanRecord]:
    """Plans in a folder that were built from these exported files in this precision and form, with their records.

    Raises:
        ArtifactError: There is none, or a plan does not match its record.
    """
    records = {path: inspect_plan(path) for path in sorted(plans.glob("*.plan"))}
    export_record = sha256(exported / "record.json")
    found = {
        path: record
        for path, record in records.items()
        if (record.target, record.form, record.precision) == ("tensorrt", form, precision)
        and record.made_from.get("record.json") == export_record
    }
    if not found:
        problem = f"there is no {form} plan of TensorRT built from {exported}"
        raise ArtifactError(problem, where=str(plans), hint="run `onerec-trt build RECIPE.yaml --target tensorrt` on this machine")
    return found


class PlanSet:
    """Several plans of one graph as one runner: each batch goes to the narrowest profile of any of them.

    Args:
        plans: Their paths.
        ran: Gets the plan's name and the number of the profile of every batch.
        index: The catalogue, for plans that follow one.
    """

    def __init__(self, plans: Sequence[Path], ran: set[tuple[str, int]], index: FindIndex) -> None:
        self._ran = ran
        runners = [TensorRtRunner.load(plan) for plan in plans]
        for runner in runners:
            bound(runner, index() if runner.io.resident else None)
        self._io = runners[0].io
        self._profiles = [(runner, number, profile) for runner in runners for number, profile in enumerate(runner.engine.profiles)]

    @property
    def io(self) -> GraphIO:
        """The contract of the graph, which all of them were built from."""
        return self._io

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Any]:
        """Outputs by name.

        Raises:
            RequestError: No plan takes these shapes.
        """
        shapes = {name: tuple(array.shape) for name, array in inputs.items()}
        where = ", ".join(dict.fromkeys(runner.plan.name for runner, _, _ in self._profiles))
        runner, number, _ = self._profiles[choose_profile(self._io, [profile for _, _, profile in self._profiles], shapes, where)]
        outputs = runner(inputs)
        self._ran.add((runner.plan.name, number))
        return outputs


def _largest_batches(plans: Iterable[PlanRecord], context: int) -> list[int]:
    """The largest batches of the profiles that take the longest context."""
    largest = [largest_batch_and_context(plan.io, profile) for plan in plans for profile in plan.profiles]
    return sorted({batch for batch, longest in largest if longest >= context})
