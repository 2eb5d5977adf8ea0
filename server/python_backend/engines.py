"""What runs a version's model in the Python backend: a plan on its GPU, or an exported graph on the CPU. The same calls for both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from ...core.arrays import Array
from ...runtime.item_rules import open_rules
from ...runtime.item_runner import ResidentRunner
from ...runtime.onnxruntime_runner import OnnxRuntimeRunner
from ..repository.served_io import context_io
from ..repository.version import VersionDescription
from ..trust import require_trusted
from .pacing import Pacing
from .warm_up import outermost_shapes


class Engine(Protocol):
    """A loaded model."""

    @property
    def runner(self) -> ResidentRunner:
        """What runs batches of a graph that follows a catalogue, from the same memory."""

    @property
    def pacing(self) -> Pacing | None:
        """When to take batches. None: at once."""

    def shapes(self) -> list[tuple[int, int]]:
        """Requests and tokens of the batches that are to run before the model is ready."""

    def room(self, name: str, shape: tuple[int, ...]) -> Array:
        """Memory for an input of a batch, to be filled in place; it holds anything."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name, on the CPU."""

    def warm_up(self, shapes: Sequence[tuple[int, int]]) -> int:
        """Run batches of so many requests and tokens, so that the first real one is as fast as the next; gives how many are CUDA graphs."""


def load_engine(folder: Path, description: VersionDescription, device: int, trust: Sequence[Path] = ()) -> Engine:
    """Load the model of a version.

    Args:
        folder: The version's folder.
        description: The version's.
        device: Number of the GPU for a plan.
        trust: Public keys, one of which must have signed the model. Default: no signature is asked for.

    Raises:
        ArtifactError: The model was changed, does not fit this machine, or is not signed by a trusted key.
        GpuError: There is no GPU, or its memory is exhausted.
        MissingExtraError: What runs the model is not installed beside the server.
    """
    model = folder / description.model_file
    if description.engine == "onnxruntime":
        require_trusted(folder, description, trust)
        return OnnxRuntimeEngine(OnnxRuntimeRunner(model), description)
    from .tensorrt_engine import TensorRtEngine

    return TensorRtEngine(model, description, device, trust)


class OnnxRuntimeEngine:
    """An exported graph on the CPU."""

    pacing = None

    def __init__(self, runner: OnnxRuntimeRunner, description: VersionDescription) -> None:
        self.runner = runner
        self._limits = description.limits
        self._dtypes = {tensor.name: tensor.dtype for tensor in description.io.per_request}
        self._io = description.io

    def shapes(self) -> list[tuple[int, int]]:
        """The outermost ones."""
        return outermost_shapes(self._limits)

    def room(self, name: str, shape: tuple[int, ...]) -> Array:
        """Pages of zeros cost nothing until they are written."""
        return np.zeros(shape, self._dtypes[name])

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name."""
        return self.runner(inputs)

    def warm_up(self, shapes: Sequence[tuple[int, int]]) -> int:
        """ONNX Runtime allocates at the first use of a shape."""
        for batch, context in shapes:
            inputs = {name: self.room(name, shape) for name, shape in context_io(self._io).shapes(batch, context).items()}
            self.run(inputs | open_rules(self._io, batch))
        return 0
