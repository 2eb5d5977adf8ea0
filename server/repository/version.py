"""One version of a model in a repository, described in a file beside it: what it takes and gives, what it was made from, what it needs.

The server's configuration, the Python backend and manifests for clusters are all derived from this description.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

from ...core.artifacts import files_in, read_model, sha256, write_json
from ...core.errors import ArtifactError
from ...core.graph_io import GraphIO
from .batching import Batching
from .limits import Limits, longest_context
from .served_io import context_io

Flavor = Literal["tensorrt", "python"]
EngineName = Literal["tensorrt", "onnxruntime"]

DESCRIPTION_FILE = "version.json"
PLAN_FILE, GRAPH_FILE = "model.plan", "model.onnx"
_STUB_BYTES = 1 << 20  # of shared memory that the Python backend takes for an instance before any request
_AGAIN = "add the model to the repository again"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PlanFacts(_Part):
    """What a plan demands of the server: its TensorRT, its GPU, and whether code in the plan is allowed to run (`plugins`)."""

    library_version: str
    compute_capability: str
    gpu: str | None
    plugins: bool


class Resources(_Part):
    """What a server needs for this version.

    `gpus`: the first so many that the server sees; `model_bytes`: of its files; `shared_memory_bytes`: of /dev/shm; `gpu_memory_bytes`: on
    each GPU, None where it is not known; `instances`: executions at the same time on each GPU.
    """

    gpus: int
    model_bytes: int
    shared_memory_bytes: int
    gpu_memory_bytes: int | None
    instances: int

    @property
    def all_instances(self) -> int:
        """On all GPUs together, or on the CPU."""
        return self.instances * max(1, self.gpus)


class VersionDescription(_Part):
    """One version of a model.

    Args:
        name: Of the model, as clients spell it.
        version: Its number.
        flavor: `tensorrt`: the stock TensorRT backend; `python`: our runtime in the Python backend.
        engine: What runs the model.
        model_file: Name of the plan or ONNX file in the version's folder.
        files: SHA-256 of every file in the folder beside this description.
        io: The contract of the model's inputs and outputs.
        limits: What each optimization profile takes. An ONNX file has one entry.
        context_buckets: Context lengths that clients fill requests up to; empty where they need not.
        batching: What the dynamic batcher does.
        resources: What the server needs.
        plan: What the plan demands; None for an ONNX file.
        validated: Whether the gates have passed on this very file. `reason` says why not.
        parameters: Further settings of the Python backend, as strings.
    """

    name: str
    version: int
    flavor: Flavor
    engine: EngineName
    model_file: str
    files: dict[str, str]
    io: GraphIO
    limits: tuple[Limits, ...]
    context_buckets: tuple[int, ...]
    batching: Batching
    resources: Resources
    plan: PlanFacts | None
    validated: bool
    reason: str
    parameters: dict[str, str] = {}

    @model_validator(mode="after")
    def _names_its_model(self) -> VersionDescription:
        if self.model_file not in self.files:
            raise ValueError(f"the model file {self.model_file!r} is none of the version's files")
        return self

    @property
    def model_sha256(self) -> str:
        """Of the plan or ONNX file."""
        return self.files[self.model_file]


def shared_memory_bytes(io: GraphIO, limits: tuple[Limits, ...], max_batch: int, instances: int) -> int:
    """Bytes of /dev/shm that instances of the Python backend take: for each its own, and inputs and outputs of the largest batch."""
    tensors = (*context_io(io).per_request, *io.outputs)
    payload = sum(tensor.nbytes(max_batch, longest_context(limits)) for tensor in tensors)
    return instances * (_STUB_BYTES + payload)


def write_description(folder: Path, description: VersionDescription) -> None:
    """Write the description into a version's folder."""
    write_json(folder / DESCRIPTION_FILE, description.model_dump(mode="json"))


def read_description(folder: Path) -> VersionDescription:
    """The description of the version in a folder. Its files are not looked at; see `open_version`.

    Raises:
        ArtifactError: It is missing or malformed.
    """
    return read_model(folder / DESCRIPTION_FILE, VersionDescription, what="the version's description is malformed", hint=_AGAIN)


def open_version(folder: Path) -> VersionDescription:
    """The description of a version whose files are those that were put there.

    Raises:
        ArtifactError: A file is missing, unknown or changed, or the description is malformed.
    """
    description = read_description(folder)
    present = {str(path.relative_to(folder)): path for path in files_in(folder) if path.name != DESCRIPTION_FILE}
    present = {name: path for name, path in present.items() if "__pycache__" not in path.parts}  # Python's, made while serving
    for name in sorted(present.keys() ^ description.files.keys()):
        problem = "missing" if name in description.files else "not in the version's description"
        raise ArtifactError(f"file {problem}", where=str(folder / name), hint=_AGAIN)
    _require_hashes(present, description.files)
    return description


def _require_hashes(present: Mapping[str, Path], expected: Mapping[str, str]) -> None:
    for name, digest in expected.items():
        if sha256(present[name]) != digest:
            raise ArtifactError("the file does not match the version's description", where=str(present[name]), hint=_AGAIN)
