"""What the payload of a batch costs outside the model: the way that the Python backend takes, step by step, and the ways that it does not.

The server's requests lie in pageable memory, and DLPack lends them without a copy. A GPU reads only page-locked memory by itself, so the
backend lays a batch out there. Without that the driver copies each request on its way to the GPU, while the thread waits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from ...core.arrays import Array
from ...core.dtypes import DTYPES
from ...core.graph_io import GraphIO
from ...server.python_backend.checks import check_request
from ...server.python_backend.packing import fill
from ...server.repository.limits import Limits
from ...server.repository.served_io import context_io
from ..bench.sampling import interleaved_ms
from .batch_times import random_inputs

CHECKED = "requests checked"
LAID_OUT = "requests laid out in page-locked memory"
TO_GPU = "page-locked memory to the GPU"
FROM_GPU = "items to page-locked memory"
WAY_OF_A_BATCH = (CHECKED, LAID_OUT, TO_GPU, FROM_GPU)
STRAIGHT_TO_GPU = "instead: each request by itself to the GPU"
STRAIGHT_FROM_GPU = "instead: items to pageable memory"

_Run = Callable[[], object]


def payload_ms(io: GraphIO, context: int, batch: int, samples: int, *, on_gpu: bool) -> dict[str, list[float]]:
    """Milliseconds of each step for a batch of one-context requests, all steps in turns. A step has ended when its data are there.

    Args:
        io: Of the model. Where it follows a catalogue, rules are not part of what is timed here.
        context: Tokens of every request.
        batch: Requests.
        samples: Of each step.
        on_gpu: Without a GPU requests are checked, and laid out in the memory that there is.
    """
    io = context_io(io)
    whole = random_inputs(io, batch, context)
    requests = [{name: array[place : place + 1].copy() for name, array in whole.items()} for place in range(batch)]
    shapes = io.shapes(batch, context)
    room = {each.name: torch.empty(shapes[each.name], dtype=DTYPES[each.dtype].torch, pin_memory=on_gpu) for each in io.per_request}
    arrays = {name: tensor.numpy() for name, tensor in room.items()}
    limits = (Limits(min_batch=1, max_batch=batch, min_context=1, max_context=context),)
    runs: dict[str, _Run] = {
        CHECKED: partial(_check, io, limits, requests),
        LAID_OUT: partial(fill, io, arrays, requests),
    }
    if not on_gpu:
        return interleaved_ms(runs, samples, lambda: None)
    items = [torch.zeros(each.shape(batch, context), dtype=DTYPES[each.dtype].torch, device="cuda") for each in io.outputs]
    return interleaved_ms(runs | _transfers(room, requests, items), samples, torch.cuda.synchronize)


def _check(io: GraphIO, limits: Sequence[Limits], requests: Sequence[Mapping[str, Array]]) -> None:
    for each in requests:
        check_request(io, limits, each, "")


def _transfers(room: Mapping[str, Tensor], requests: Sequence[Mapping[str, Array]], items: Sequence[Tensor]) -> dict[str, _Run]:
    return {
        TO_GPU: lambda: [each.to("cuda", non_blocking=True) for each in room.values()],
        FROM_GPU: lambda: [each.to("cpu", non_blocking=True) for each in items],
        STRAIGHT_TO_GPU: lambda: [from_dlpack(array).to("cuda") for each in requests for array in each.values()],
        STRAIGHT_FROM_GPU: lambda: [each.cpu() for each in items],
    }
