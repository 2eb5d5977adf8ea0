"""A launch program run again and again, and inside a CUDA graph: every bit of its outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from onerec_trt.operators.launch.launch import bind, new_outputs
from onerec_trt.operators.launch.program import Program
from torch import Tensor


def same_bits(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(first, second, strict=True))


def repeated(program: Program, inputs: Sequence[Tensor], runs: int) -> Iterator[list[Tensor]]:
    """Outputs of each run, the same buffers every time; they hold rubbish before."""
    outputs = new_outputs(program, inputs)
    run = bind(program, inputs, outputs)
    for _ in range(runs):
        _spoil(outputs)
        run()
        yield outputs


def captured(program: Program, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Outputs of a launch that is replayed from a CUDA graph."""
    outputs = new_outputs(program, inputs)
    run = bind(program, inputs, outputs)
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    _spoil(outputs)
    graph.replay()
    torch.cuda.synchronize()
    return outputs


def _spoil(outputs: Sequence[Tensor]) -> None:
    for output in outputs:
        output.view(torch.uint8).fill_(0x55)
