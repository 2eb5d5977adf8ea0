"""Cases of BeamStep: ragged codebooks with -inf and NaN, and the schedules that the benchmark shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..beam_step import beam_groups
from ..launch.case import Case, Example, KernelCases, Library, Measurement, Trial, half

CODEBOOK = 8192
MEASURED = ((32, 1, 512), (32, 512, 512), (1, 512, 512), (32, 1, 128), (32, 128, 256), (32, 256, 512))  # of 512-512-512 and 128-256-512


def beam_step_case(requests: int, rows: int, codebook: int, width: int) -> Case:
    """The `width` best of all candidates of `rows` beams."""
    return Case(
        "BeamStep",
        (half(requests * rows, codebook), Example("float32", (requests, rows), _scores)),
        (requests, rows, codebook),
        {**beam_groups(rows, codebook, width)},
        requests=requests,
    )


def _scores(shape: tuple[int, ...], device: str) -> Tensor:
    """As a step before leaves them: best first."""
    return torch.rand(shape, device=device).mul_(-10).sort(dim=1, descending=True).values


def _trials() -> Iterator[Trial]:
    for requests, rows, codebook, width in ((2, 1, 32, 20), (3, 5, 200, 128), (1, 7, 1030, 40)):
        case = beam_step_case(requests, rows, codebook, width)
        yield Trial(case)
        logits, scores = case.tensors("cpu")
        logits[0, :5], logits[-1, 3], scores[0, 0] = -torch.inf, torch.nan, -torch.inf
        yield Trial(case, inputs=(logits.mul(3), scores))


def _measured() -> Iterator[Measurement]:
    name = "log_softmax and topk of PyTorch, which leaves the order of equal scores open"
    for requests, rows, width in MEASURED:
        yield Measurement(beam_step_case(requests, rows, CODEBOOK, width), f"width {width}", Library(name, _torch_topk(width)))


def _torch_topk(width: int) -> Callable[[list[Tensor]], Callable[[], tuple[Tensor, ...]]]:
    def prepare(inputs: list[Tensor]) -> Callable[[], tuple[Tensor, ...]]:
        logits, scores = inputs

        def call() -> tuple[Tensor, ...]:
            total = (logits.float().log_softmax(-1).view(*scores.shape, -1) + scores[..., None]).flatten(1)
            best, flat = total.topk(width)
            return best, flat // logits.shape[1], flat % logits.shape[1]

        return call

    return prepare


BEAM_STEP_CASES = KernelCases(ragged=_trials, measured=_measured)
