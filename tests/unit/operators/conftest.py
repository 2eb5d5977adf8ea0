"""Runs an operator's PyTorch reference and its ONNX function on identical inputs, and says how they must agree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from onerec_trt.operators import fp8
from onerec_trt.operators.operator import Array
from onerec_trt.operators.registry import OPERATORS
from onerec_trt.operators.single_node import as_arrays, feed, single_node_model
from onerec_trt.runtime.onnxruntime_runner import OnnxRuntimeRunner
from torch import Tensor


@pytest.fixture(scope="session")
def cubins(shared_folder: Path) -> Path:
    """Compiled kernels of this run, so that those of several tests are compiled once."""
    return shared_folder / "cubins"


class Outcome(NamedTuple):
    """Outputs of both implementations; E4M3 codes as the values they stand for."""

    torch: list[Array]
    onnx: list[Array]


def run_both(name: str, *inputs: Tensor, **attributes: int | float) -> Outcome:
    """Outputs of both, after checking that they have the types and shapes the operator promises."""
    operator = OPERATORS[name]
    meant = operator.reference(*inputs, **attributes)
    promised = operator.outputs(*inputs, **attributes)
    assert [(out.dtype, tuple(out.shape)) for out in meant] == [(spec.dtype, tuple(spec.shape)) for spec in promised]
    model = single_node_model(operator, inputs, attributes)
    computed = list(OnnxRuntimeRunner(model, threads=1)(feed(inputs)).values())
    expected = as_arrays(meant)
    assert [(out.dtype, out.shape) for out in computed] == [(out.dtype, out.shape) for out in expected]
    return Outcome(expected, computed)


def hold_together(name: str, *inputs: Tensor, **attributes: int | float) -> Outcome:
    """Both implementations, within the operator's own threshold."""
    outcome = run_both(name, *inputs, **attributes)
    operator = OPERATORS[name]
    difference = operator.compare(outcome.onnx, outcome.torch, as_arrays(inputs), attributes)
    assert difference <= operator.threshold, f"{name}: {difference:.2e} exceeds {operator.threshold:.0e}"
    return outcome


def hold_row_apart(name: str, good: tuple[Tensor, ...], bad: tuple[Tensor, ...], row: int, **attributes: int | float) -> None:
    """What `bad` changes in one row (or request) of the first axis shows there, and leaves every other row bit-identical, in both."""
    clean, poisoned = run_both(name, *good, **attributes), run_both(name, *bad, **attributes)
    for before, after in ((clean.torch, poisoned.torch), (clean.onnx, poisoned.onnx)):
        for first, second in zip(before, after, strict=True):
            assert np.array_equal(np.delete(first, row, 0), np.delete(second, row, 0))
        assert not np.isfinite(np.concatenate([out[row].ravel() for out in after])).all(), "the fault went unnoticed in its own row"


def random_half(*shape: int) -> Tensor:
    return torch.randn(*shape).half()


def random_weight_codes(outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
    """E4M3 codes [N, K] and FP32 scales [N] of a random weight that keeps variances."""
    codes, scale = fp8.quantize_rows(torch.randn(outputs, inputs) * inputs**-0.5)
    return codes, scale[:, 0]


@pytest.fixture(autouse=True)
def _deterministic() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def both() -> Callable[..., Outcome]:
    return run_both


@pytest.fixture(scope="session")
def hold() -> Callable[..., Outcome]:
    return hold_together


@pytest.fixture(scope="session")
def apart() -> Callable[..., None]:
    return hold_row_apart


@pytest.fixture(scope="session")
def half() -> Callable[..., Tensor]:
    return random_half


@pytest.fixture(scope="session")
def weight_codes() -> Callable[[int, int], tuple[Tensor, Tensor]]:
    return random_weight_codes


class Experts(NamedTuple):
    """FP32 weights of SwiGLU experts, separate as a model has them: gate and up [E, H, D], down [E, D, H]."""

    gate: Tensor
    up: Tensor
    down: Tensor

    def exact(self, x_ND: Tensor, index_NK: Tensor, weight_NK: Tensor, residual_ND: Tensor) -> Tensor:
        """FP64 [N, D], one token and one expert at a time: written to be seen through, not to be fast."""
        gate, up, down = (weight.double() for weight in self)
        total_ND = residual_ND.double().clone()
        for token, (numbers, gates) in enumerate(zip(index_NK.tolist(), weight_NK.tolist(), strict=True)):
            for number, strength in zip(numbers, gates, strict=True):
                x = x_ND[token].double()
                total_ND[token] += strength * (down[number] @ (torch.nn.functional.silu(gate[number] @ x) * (up[number] @ x)))
        return total_ND


class Routed(NamedTuple):
    """Tokens and where they go: x [N, D], index and weight [N, K], residual [N, D]."""

    x: Tensor
    index: Tensor
    weight: Tensor
    residual: Tensor


def random_experts(experts: int, width: int, hidden: int) -> Experts:
    gate, up = torch.randn(2, experts, hidden, width) * width**-0.5
    return Experts(gate, up, torch.randn(experts, width, hidden) * hidden**-0.5)


def random_routing(rows: int, width: int, experts: int, top_k: int) -> Routed:
    index = torch.stack([torch.randperm(experts)[:top_k] for _ in range(rows)])
    return Routed(random_half(rows, width), index, torch.rand(rows, top_k).softmax(1), random_half(rows, width))


@pytest.fixture(scope="session")
def make_experts() -> Callable[[int, int, int], Experts]:
    return random_experts


@pytest.fixture(scope="session")
def make_routing() -> Callable[[int, int, int, int], Routed]:
    return random_routing
