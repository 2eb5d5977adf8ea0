"""The record beside a plan: what it was built for, what it runs in FP8, and whether the gates have run on it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..core.artifacts import read_json, sha256
from ..core.errors import ArtifactError, first_problem
from ..core.graph_io import GraphIO
from .tensorrt_api import ShapeRange, Target

RESIDENT_BUFFERS = 2  # of a resident input: runtime/resident_inputs.py says what for


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Fp8Gemms(_Part):
    """FP8 matrix multiplications: expected from the graph, found in the plan (null: could not be read), and how they were counted.

    `missing` names the expected ones that the plan runs in another type. `dequantized` counts those that have an FP8
    operand and are not meant to run in FP8: their block scales have no native form, so they run in the wider type.
    """

    expected: int
    found: int | None
    missing: tuple[str, ...]
    dequantized: int
    how: str


class WeightBytes(_Part):
    """Bytes of the weights: in the graph (FP8, others, all with FP16 instead of FP8) and in the plan by type.

    `plan` is null when it could not be read.
    """

    graph: dict[str, int]
    plan: dict[str, int] | None


class StoredWeights(_Part):
    """Large weights of the graph, looked for in the plan byte by byte.

    `searched`: how many there are; `found`: those the plan stores as the graph does; `duplicated`: name and number of
    copies of those it stores more than once. A weight stored in another layout or type is not found.
    """

    searched: int
    found: int
    duplicated: dict[str, int]


class GpuMemory(_Part):
    """Bytes on the GPU while one execution runs a batch of the largest shapes; `plan`: weights and code, as the file has them.

    Another execution of the same plan needs `scratch` and `tensors` (inputs and outputs of a batch) again. `resident`: the resident
    inputs, which all executions share, in their two buffers.
    """

    plan: int
    scratch: int
    tensors: int
    resident: int = 0
    peak: int


class PlanLayer(_Part):
    """A layer of the plan that computes matrix multiplications, as the engine inspector describes it.

    `nodes`: the ONNX nodes it computes, such as `step0.blocks.0.cross.q/MatMul`; `kernel`: the tactic's name;
    `inputs` and `outputs`: data type and shape, at the typical shapes of a plan's only profile, -1 for what is dynamic in one with
    several; `kind`: the inspector's layer type.
    """

    profile: int
    name: str
    kind: str
    nodes: tuple[str, ...]
    kernel: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    in_fp8: bool


class TimingCacheUse(_Part):
    """The timing cache a build read and left: hashes before (null: there was none) and after it, and its size."""

    file: str
    sha256_before: str | None
    sha256: str | None
    bytes: int
    strict: bool


class PluginUse(_Part):
    """The plugin host in the plan, and the nodes it runs by operator.

    `fusions`: how many nodes each fusion made; `fp8_accumulation`: the recipe's, of the FP8 products that kernels compute.
    """

    host_sha256: str
    nodes: dict[str, int]
    fusions: dict[str, int]
    fp8_accumulation: Literal["fast", "promoted"]


class PlanRecord(_Part):
    """Facts of one plan.

    `io`: the contract of its inputs and outputs; `profiles`: for each the (minimum, typical, maximum) shape of every input.
    `peak_memory_bytes`: of the build's process, on the host. `form`: the serving graph or the scoring graph; `precision`: that of the
    graph; `made_from`: SHA-256 of the exported files. `builder_warnings`: what the builder warned of, without what it says of every graph.
    Known only of plans built on their GPU: `driver` and `gpu`; `weight_ratio`, the plan's size over the bytes of the graph's weights;
    `gpu_memory`, `layers`, `stored_weights` and `timing_cache`. `plugins` is null where everything is native; a plan with plugins
    carries their library, and loading it runs that library's code.
    `validated` and `reason` are not stored: `verdict.inspect_with_verdict` sets them by the verdict beside the plan.
    """

    plan: str
    sha256: str
    bytes: int
    target: Target
    library_version: str
    compute_capability: str
    driver: str | None
    gpu: str | None
    io: GraphIO
    profiles: tuple[dict[str, ShapeRange], ...]
    builder_flags: tuple[str, ...]
    fp8_gemms: Fp8Gemms
    weight_bytes: WeightBytes
    build_seconds: float
    peak_memory_bytes: int
    gpu_memory: GpuMemory | None = None
    form: Literal["serving", "scoring"] = "serving"
    precision: str | None = None
    made_from: dict[str, str] = {}
    weight_ratio: float | None = None
    stored_weights: StoredWeights | None = None
    timing_cache: TimingCacheUse | None = None
    layers: tuple[PlanLayer, ...] = ()
    plugins: PluginUse | None = None
    builder_warnings: tuple[str, ...] = ()
    validated: bool = Field(False, exclude=True)
    reason: str = Field("", exclude=True)


def facts_of_build(plan: Path, built: Mapping[str, Any], io: GraphIO, profiles: Sequence[Mapping[str, ShapeRange]]) -> dict[str, Any]:
    """What the record of any plan says of its file and its build; `built` is the worker's last event."""
    return {
        "plan": plan.name,
        "sha256": sha256(plan),
        "bytes": plan.stat().st_size,
        "library_version": built["version"],
        "io": io,
        "profiles": tuple(profiles),
        "builder_flags": tuple(built["builder_flags"]),
        "build_seconds": built["build_seconds"],
        "peak_memory_bytes": built["peak_memory_bytes"],
        "gpu_memory": _gpu_memory(plan.stat().st_size, built["scratch_bytes"], io, profiles),
        "builder_warnings": tuple(built["warnings"]),
    }


def _gpu_memory(plan: int, scratch: int | None, io: GraphIO, profiles: Sequence[Mapping[str, ShapeRange]]) -> GpuMemory | None:
    if scratch is None:
        return None
    sizes = [io.sizes({tensor.name: profile[tensor.name][2] for tensor in io.per_request}) for profile in profiles]
    tensors = sum(max(each.nbytes(*size) for size in sizes) for each in (*io.per_request, *io.outputs))
    resident = RESIDENT_BUFFERS * sum(each.nbytes(*sizes[0]) for each in io.resident)
    return GpuMemory(plan=plan, scratch=scratch, tensors=tensors, resident=resident, peak=plan + scratch + tensors + resident)


def _not_found(plan: Path) -> ArtifactError:
    if plan.is_dir():
        return ArtifactError("this is a folder, a plan is a file", where=str(plan), hint="give a .plan file in it")
    return ArtifactError("plan not found", where=str(plan), hint="run `onerec-trt build`")


def record_path(plan: Path) -> Path:
    """Where the record of a plan lies."""
    return plan.with_suffix(".json")


def read_plan(plan: Path) -> bytes:
    """Read a plan.

    Raises:
        ArtifactError: It is missing.
    """
    try:
        return plan.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise _not_found(plan) from None


def _stored(values: Any) -> Any:
    """What counts of a record: only a verdict says that a plan is validated, whatever is written into its record."""
    return {key: value for key, value in values.items() if key not in ("validated", "reason")} if isinstance(values, dict) else values


def inspect_plan(plan: Path, content: bytes | None = None) -> PlanRecord:
    """Read a plan's record and check the plan against it.

    Args:
        content: What the caller has read of the plan and is about to use. Default: the file as it is.

    Raises:
        ArtifactError: The plan or its record is missing, the record is malformed, or the plan was truncated or changed.
    """
    if content is None and not plan.is_file():
        raise _not_found(plan)
    path = record_path(plan)
    try:
        record = PlanRecord.model_validate(_stored(read_json(path)))
    except ValidationError as error:
        raise ArtifactError(
            f"the plan's record is malformed: {first_problem(error)}", where=str(path), hint="build the plan again"
        ) from None
    size = plan.stat().st_size if content is None else len(content)
    if size != record.bytes:
        problem = f"the plan has {size} bytes, its record says {record.bytes}"
        raise ArtifactError(problem, where=str(plan), hint="copy it again, or build it again")
    digest = sha256(plan) if content is None else hashlib.sha256(content).hexdigest()
    if digest != record.sha256:
        raise ArtifactError("the plan does not match its record", where=str(plan), hint="copy it again, or build it again")
    return record
