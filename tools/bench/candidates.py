"""What a benchmark times: the PyTorch baseline in three ways, and plans; each takes a batch on the GPU and leaves its items there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from ...core.graph_io import Role
from ...models.config import OneRecConfig
from ...runtime.layer_times import PlaceTime
from ...runtime.tensorrt_runner import TensorRtRunner
from .case import Case
from .plans import SEED, BenchPlan
from .torch_baseline import TorchBaseline

EngineName = Literal["torch-eager", "torch-cuda-graph", "torch-compile", "tensorrt"]
TORCH_ENGINES: tuple[EngineName, ...] = ("torch-eager", "torch-cuda-graph", "torch-compile")
_WARM_UP = 3


Batch = Callable[[], Tensor]  # gives semantic IDs [B, W, 3] on the GPU


def torch_candidate(engine: EngineName, model: TorchBaseline, case: Case) -> Batch:
    """The baseline: eager, its launches captured in a CUDA graph, or compiled by torch.compile and captured too."""
    features, lengths = batch_features(case, model.config), case.lengths
    chosen = model.compiled() if engine == "torch-compile" else model

    def eager() -> Tensor:
        return chosen(features, lengths, case.beam)[0]

    return eager if engine == "torch-eager" else captured(eager)


class PlanCandidate:
    """A plan with its CUDA graph captured; inputs are copied in and items out, on the GPU."""

    def __init__(self, runner: TensorRtRunner, config: OneRecConfig, case: Case) -> None:
        self._runner = runner
        lengths = torch.tensor([case.lengths] * case.batch, device="cuda")
        io = runner.io
        self._inputs = {io.name(Role.CONTEXT_FEATURES): batch_features(case, config), io.name(Role.PATHWAY_LENGTHS): lengths}
        self._items = io.name(Role.FOUND_ITEMS)
        runner.warm_up(case.batch, case.context)

    def __call__(self) -> Tensor:
        sids: Tensor = self._runner(self._inputs)[self._items]
        return sids

    def layer_times(self) -> list[PlaceTime]:
        """Where the plan's time goes."""
        return self._runner.layer_times(self._inputs)


def load_runner(plan: BenchPlan) -> TensorRtRunner:
    return TensorRtRunner.load(plan.path, graphs=2)


def captured(run: Batch) -> Batch:
    """The same work as one CUDA graph; its result lies in the same memory each time."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


def batch_features(case: Case, config: OneRecConfig) -> Tensor:
    """Random features FP16 [B, S, F] on the GPU, the same for every candidate."""
    generator = torch.Generator("cuda").manual_seed(SEED)
    return torch.randn((case.batch, case.context, config.feature_width), generator=generator, device="cuda", dtype=torch.float16)


def shared_items(sids: Tensor, other: Tensor) -> float:
    """Share of a batch's items that another engine found too; semantic IDs [B, W, 3]."""
    return sum(_shared(mine, theirs) for mine, theirs in zip(sids.tolist(), other.tolist(), strict=True)) / len(sids)


def _shared(mine: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> float:
    found = set(map(tuple, theirs))
    return sum(tuple(item) in found for item in mine) / len(mine)
