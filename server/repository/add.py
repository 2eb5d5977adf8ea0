"""From a plan or an exported graph to a new version in a repository: files, record and verdict, and the description made of them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ...core.artifacts import files_in, sha256
from ...core.errors import ArtifactError, GateError
from ...core.graph_io import GraphIO, Role
from ...core.records import RECORD_NAME, read_record
from ...runtime.onnxruntime_runner import OnnxRuntimeRunner
from ...runtime.plan_record import PlanRecord, record_path
from ...runtime.signature import require_signature, signature_path
from ...runtime.verdict import inspect_with_verdict, verdict_files, verdict_path
from .batching import batching, read_times
from .limits import Limits, batch_of_every_context, context_buckets, limits_of, most_requests, require_every_batch, require_unambiguous
from .served_io import follows_catalogue
from .store import Repository
from .version import (
    GRAPH_FILE,
    PLAN_FILE,
    EngineName,
    Flavor,
    PlanFacts,
    Resources,
    VersionDescription,
    shared_memory_bytes,
    write_description,
)

SERVING_NAME, SCORING_NAME = "onerec", "onerec-scoring"
NOT_A_PLAN = "an exported graph on ONNX Runtime: the reference, for tests and for machines without a GPU"
GRAPH_LIMITS = Limits(min_batch=1, max_batch=32, min_context=1, max_context=3072)  # the papers serve contexts of about 3000 tokens
_ENTRY_FILE = "model.py"
_ENTRY = '''"""The entry point that the Python backend looks for; the package installed beside the server does the work."""

from onerec_trt.server.python_backend.model import TritonPythonModel as TritonPythonModel
'''


@dataclass(frozen=True)
class Options:
    """How a version is to be served.

    Args:
        flavor: `tensorrt` or `python`.
        name: Of the model. Default: by the form of the graph.
        times: JSON file with measured times of batches. Default: none.
        any_queue: Let any number of requests wait. Default: as many as the measured times say.
        instances: Executions at the same time, on each GPU. Default: 2 of a plan in the Python backend, where one prepares its batch
            while that of the other runs; else 1.
        gpus: The first so many of those that the server sees.
        graph_limits: What an exported graph takes. A plan's profiles say it themselves.
        unvalidated: Accept a plan that has not passed the gates. Default: refuse it.
        parameters: Settings of the Python backend.
        trust: Public keys, one of which must have signed the model. Default: no signature is asked for.
    """

    flavor: Flavor
    name: str | None = None
    times: Path | None = None
    any_queue: bool = False
    instances: int | None = None
    gpus: int = 1
    graph_limits: Limits = GRAPH_LIMITS
    unvalidated: bool = False
    parameters: dict[str, str] = field(default_factory=dict)
    trust: tuple[Path, ...] = ()


class _Source(NamedTuple):
    """A model as it lies on disk: its files by the names they get in the repository, and SHA-256 of those that were checked."""

    engine: EngineName
    io: GraphIO
    limits: tuple[Limits, ...]
    files: dict[str, Path]
    hashes: dict[str, str]
    plan: PlanFacts | None
    validated: bool
    reason: str
    gpu_memory: int | None = None


def add_version(repository: Repository, model: Path, options: Options) -> VersionDescription:
    """Add a plan or an exported graph as the next version of a model. Its first version is served at once, later ones when promoted.

    Args:
        repository: Where to.
        model: A `.plan` file, whose record lies beside it, an exported `.onnx` file, or the folder of an export.
        options: How to serve it.

    Raises:
        ArtifactError: The model does not match its record, is not signed by a trusted key, changes meanwhile, or the flavor cannot serve
            it.
        GateError: The plan has not passed the gates.
    """
    if options.trust:
        require_signature(_graph_file(model), options.trust)
    source = _plan(model) if model.suffix == ".plan" else _graph(model, options.graph_limits)
    _require_servable(source, model, options)
    name = options.name or (SERVING_NAME if source.io.has(Role.FOUND_ITEMS) else SCORING_NAME)
    with repository.new_version(name) as (version, folder):
        for file, origin in source.files.items():
            shutil.copyfile(origin, folder / file)
        if options.flavor == "python":
            (folder / _ENTRY_FILE).write_text(_ENTRY, encoding="utf-8")
        files = {str(path.relative_to(folder)): sha256(path) for path in files_in(folder)}
        _require_checked(source, files, model)
        if options.trust:
            require_signature(folder / _model_file(source), options.trust)
        description = _description(name, version, source, files, options)
        write_description(folder, description)
    repository.write_version_config(description)
    if not repository.config_path(name).exists():
        repository.promote(name, version)
    return description


def _model_file(source: _Source) -> str:
    return PLAN_FILE if source.engine == "tensorrt" else GRAPH_FILE


def _require_checked(source: _Source, copied: Mapping[str, str], model: Path) -> None:
    """The copies are of what was checked, which a build may have replaced meanwhile."""
    for file, digest in source.hashes.items():
        if copied[file] != digest:
            raise ArtifactError(f"{source.files[file].name} was changed while it was copied", where=str(model), hint="add it again")


def _description(name: str, version: int, source: _Source, files: dict[str, str], options: Options) -> VersionDescription:
    model_file = _model_file(source)
    # The Python backend divides what no profile takes at once; the stock backend runs whatever the server puts together.
    together = max(each.max_batch for each in source.limits) if options.flavor == "python" else batch_of_every_context(source.limits)
    times = read_times(options.times, files[model_file]) if options.times else None
    resources = _resources(source, options, together)
    return VersionDescription(
        name=name,
        version=version,
        flavor=options.flavor,
        engine=source.engine,
        model_file=model_file,
        files=files,
        io=source.io,
        limits=source.limits,
        context_buckets=() if options.flavor == "python" else context_buckets(source.io, source.limits),
        batching=batching(together, times, max(1, resources.gpus), limited=not options.any_queue),
        resources=resources,
        plan=source.plan,
        validated=source.validated,
        reason=source.reason,
        parameters=options.parameters,
    )


def _resources(source: _Source, options: Options, together: int) -> Resources:
    gpus = options.gpus if source.engine == "tensorrt" else 0
    each = options.instances or (2 if gpus and options.flavor == "python" else 1)
    instances = each * max(1, gpus)
    return Resources(
        gpus=gpus,
        model_bytes=sum(origin.stat().st_size for origin in source.files.values()),
        shared_memory_bytes=shared_memory_bytes(source.io, source.limits, together, instances) if options.flavor == "python" else 0,
        gpu_memory_bytes=source.gpu_memory and source.gpu_memory * each,  # instances share nothing
        instances=each,
    )


def _plan(path: Path) -> _Source:
    record = inspect_with_verdict(path)
    if record.target != "tensorrt":
        hint = "build one with `onerec-trt build RECIPE.yaml --target tensorrt` on the GPU it is to run on"
        raise ArtifactError("the server has no backend for plans of TensorRT-RTX", where=str(path), hint=hint)
    files = {PLAN_FILE: path, record_path(Path(PLAN_FILE)).name: record_path(path)} | _signature(path, PLAN_FILE)
    for verdict in verdict_files(path, record.sha256):
        own = verdict == verdict_path(path.absolute())
        files[verdict_path(Path(PLAN_FILE)).name if own else verdict.name] = verdict
    limits = limits_of(record.io, record.profiles)
    memory = record.gpu_memory.peak if record.gpu_memory else None
    hashes = {PLAN_FILE: record.sha256}
    return _Source("tensorrt", record.io, limits, files, hashes, _facts(record), record.validated, record.reason, memory)


def _facts(record: PlanRecord) -> PlanFacts:
    return PlanFacts(
        library_version=record.library_version,
        compute_capability=record.compute_capability,
        gpu=record.gpu,
        plugins=record.plugins is not None,
    )


def _graph(path: Path, limits: Limits) -> _Source:
    """An exported graph, checked against the record of its folder. Its weights lie in files beside it."""
    graph = _graph_file(path)
    if graph.suffix != ".onnx" or not graph.is_file():
        hint = "give a .plan file, an exported model.onnx, or the folder of an export"
        raise ArtifactError("this is neither a plan nor an exported graph", where=str(path), hint=hint)
    record = read_record(graph.parent)
    files = {GRAPH_FILE: graph, RECORD_NAME: graph.parent / RECORD_NAME}
    weights = {name: digest for name, digest in record.wrote.items() if name.endswith(".data")}
    files |= {name: graph.parent / name for name in weights} | _signature(graph, GRAPH_FILE)
    hashes = {GRAPH_FILE: record.wrote[graph.name], **weights}
    return _Source("onnxruntime", OnnxRuntimeRunner(graph, threads=1).io, (limits,), files, hashes, None, False, NOT_A_PLAN)


def _graph_file(path: Path) -> Path:
    return path / GRAPH_FILE if path.is_dir() else path


def _signature(model: Path, name: str) -> dict[str, Path]:
    """The signature beside a model, by its name beside the copy; none where there is none."""
    signature = signature_path(model)
    return {signature_path(Path(name)).name: signature} if signature.is_file() else {}


def _require_bindable(io: GraphIO, flavor: Flavor, where: str) -> None:
    """Resident inputs are those of a catalogue, and the flavor keeps them on the GPU."""
    if not io.resident:
        return
    if not follows_catalogue(io):
        names = ", ".join(tensor.name for tensor in io.resident)
        raise ArtifactError(f"no flavor binds the resident inputs {names}", where=where, hint="serve a model without resident inputs")
    if flavor == "tensorrt":
        size = sum(tensor.nbytes(1, 1) for tensor in io.resident)
        what = f"the stock TensorRT backend would copy the catalogue's index, {size / 1e6:.0f} MB, with every batch"
        raise ArtifactError(what, where=where, hint="take --flavor python, which keeps it on the GPU and swaps it while requests run")


def _require_servable(source: _Source, model: Path, options: Options) -> None:
    where = str(model)
    _require_bindable(source.io, options.flavor, where)
    if options.flavor == "tensorrt":
        if source.engine != "tensorrt":
            hint = "take --flavor python, or a plan"
            raise ArtifactError("the flavor 'tensorrt' serves plans, not exported graphs", where=where, hint=hint)
        require_unambiguous(source.limits, where)
    require_every_batch(source.limits, where)
    assert most_requests(source.limits, 1) >= 1
    if source.plan is not None and not source.validated and not options.unvalidated:
        hint = "run `onerec-trt validate --engine tensorrt` and keep the verdict beside the plan, or pass --unvalidated"
        raise GateError(f"the plan is not validated: {source.reason}", where=where, hint=hint)
