"""A plan on its GPU for the Python backend. Batches are put together in page-locked memory, from which the GPU copies by itself.

Instances on one GPU take turns. With two of them the GPU always has work: one instance's batch is checked, laid out and copied while
that of the other runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from ...core.arrays import Array
from ...core.dtypes import DTYPES
from ...core.graph_io import Role
from ...runtime.onnxruntime_runner import Deferred
from ...runtime.tensorrt_runner import TensorRtRunner
from ..repository.version import VersionDescription
from .gpu_turns import GpuTurns
from .lost_gpu import end_if_lost
from .pacing import Pacing
from .warm_up import graph_shapes, outermost_shapes


class TensorRtEngine:
    """A plan, loaded on one GPU."""

    def __init__(self, plan: Path, description: VersionDescription, device: int, trust: Sequence[Path]) -> None:
        self._device = torch.device("cuda", device)
        torch.cuda.set_device(self._device)
        graphs = graph_shapes(description)
        self._shapes = sorted({*outermost_shapes(description.limits), *graphs}, reverse=True)
        self._runner = TensorRtRunner.load(plan, graphs=len(self._shapes) if graphs else 0, capture_in_use=False, trust=trust)
        self._dtypes = {tensor.name: DTYPES[tensor.dtype].torch for tensor in description.io.per_request}
        self._lengths = description.io.name(Role.PATHWAY_LENGTHS)
        self._lent: dict[str, torch.Tensor] = {}
        turns = GpuTurns(os.getppid(), device, f"{description.name}-{description.version}")
        self.pacing = Pacing(turns, description.batching.preferred)
        self.runner = _RunnerInTurns(self._runner, self.run)

    def shapes(self) -> list[tuple[int, int]]:
        """The outermost ones, and those that become CUDA graphs; the largest first, so that what does not fit shows at once."""
        return self._shapes

    def room(self, name: str, shape: tuple[int, ...]) -> Array:
        """Page-locked memory, which PyTorch keeps for the next batch of this shape."""
        self._lent[name] = torch.empty(shape, dtype=self._dtypes[name], pin_memory=True)
        array: Array = self._lent[name].numpy()
        return array

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name, after waiting for the GPU. Inputs are the arrays that `room` gave last, or others."""
        try:
            return self._in_turn(inputs)
        except Exception:
            end_if_lost(self._device)
            raise

    def _in_turn(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        on_gpu = {name: self._on_gpu(name, array) for name, array in inputs.items()}
        torch.cuda.current_stream(self._device).synchronize()
        with self.pacing.turn(len(inputs[self._lengths])):
            outputs: dict[str, torch.Tensor] = self._runner(on_gpu)
            answers = {name: tensor.to("cpu", non_blocking=True) for name, tensor in outputs.items()}  # into page-locked memory
            torch.cuda.current_stream(self._device).synchronize()
        return {name: tensor.numpy() for name, tensor in answers.items()}

    def _on_gpu(self, name: str, array: Array) -> torch.Tensor:
        if name not in self._lent:  # such as encoded rules: from pageable memory the thread would wait for every copy by itself
            self.room(name, array.shape)[...] = array
        return self._lent.pop(name).to(self._device, non_blocking=True)

    def warm_up(self, shapes: Sequence[tuple[int, int]]) -> int:
        """TensorRT allocates and loads kernels at the first use of a shape; graphs are captured.

        Then each shape runs as a served batch does: that takes page-locked memory, and shows how long its turn lasts.
        """
        for batch, context in shapes:
            self._runner.warm_up(batch, context)
        for batch, context in shapes:
            inputs = {name: self.room(name, shape) for name, shape in self._runner.io.shapes(batch, context).items()}
            for array in inputs.values():
                array[...] = 0
            self.run(inputs)
        return self._runner.graphs


class _RunnerInTurns:
    """The runner for a graph that follows a catalogue. A batch ends before its submission does, so that a swap waits for one at most."""

    def __init__(self, runner: TensorRtRunner, run: Callable[[Mapping[str, Array]], dict[str, Array]]) -> None:
        self._runner, self._run = runner, run
        self.io, self.stage_residents, self.bind_staged = runner.io, runner.stage_residents, runner.bind_staged

    def submit(self, inputs: Mapping[str, Array]) -> Deferred:
        outputs = self._run(inputs)
        return Deferred(lambda: outputs)
