"""From files to a plan in TensorRT's hands: verified, fit for this machine, deserialized, and of the contract its record states."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..core.errors import GpuError
from ..core.graph_io import GraphIO
from .engine import Engine
from .machine import this_machine
from .plan_record import read_plan
from .plan_shapes import require_contract
from .preflight import preflight
from .signature import require_signature
from .tensorrt_api import load
from .verdict import inspect_with_verdict

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedPlan:
    """A plan on a GPU.

    Attributes:
        path: Where it came from; names it in errors.
        sha256: Of its content.
        io: Its contract.
        engine: The plan itself.
        device: Number of the GPU that holds its weights.
    """

    path: Path
    sha256: str
    io: GraphIO
    engine: Engine
    device: int


def load_plan(path: Path, trust: Sequence[Path] = ()) -> LoadedPlan:
    """Load a plan whose record lies beside it on the current GPU. What preflight remarks on becomes a logged warning.

    Args:
        trust: Public keys in PEM, one of which must have signed the plan with its record and verdict. Default: no signature is asked for.

    Raises:
        ArtifactError: The plan was changed or truncated, was built for another GPU or TensorRT, is not of its contract, or is not
            signed by a trusted key.
        GpuError: There is no GPU, no driver, or not enough memory.
        MissingExtraError: TensorRT is not installed.
    """
    content = read_plan(path)
    if trust:
        require_signature(path, trust, content)
    record = inspect_with_verdict(path, content)  # of these very bytes, even if another build replaces the file meanwhile
    for warning in preflight(record, this_machine(record.target)):
        _log.warning("%s: %s", path, warning)
    bindings = load(record.target)
    device = torch.cuda.current_device()
    try:
        engine = Engine(bindings, content, str(path), host_code=record.plugins is not None)
    except torch.OutOfMemoryError as error:
        raise out_of_memory(error, path) from error
    require_contract(record.io, engine.inputs, engine.outputs, str(path))
    return LoadedPlan(path, record.sha256, record.io, engine, device)


def out_of_memory(error: torch.OutOfMemoryError, plan: Path) -> GpuError:
    """The typed error for what PyTorch says when the GPU's memory is exhausted."""
    hint = "use fewer executions, or build the plan with a smaller largest batch or context"
    return GpuError(f"the GPU's memory is exhausted: {str(error).splitlines()[0]}", where=str(plan), hint=hint)
