"""Runs an operator's PyTorch meaning and its ONNX function on identical inputs, and says how they must agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from onerec_trt.engines.onnxruntime_runner import OnnxRuntimeRunner
from onerec_trt.operators import fp8
from onerec_trt.operators.operator import Array
from onerec_trt.operators.registry import OPERATORS
from onerec_trt.operators.single_node import as_arrays, feed, single_node_model
from torch import Tensor


class Outcome(NamedTuple):
    """Outputs of both implementations; E4M3 codes as the values they stand for."""

    torch: list[Array]
    onnx: list[Array]


def run_both(name: str, *inputs: Tensor, **attributes: int | float) -> Outcome:
    """Outputs of both, after checking that they have the types and shapes the operator promises."""
    operator = OPERATORS[name]
    meant = operator.meaning(*inputs, **attributes)
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
    codes, scale = fp8.quantise_rows(torch.randn(outputs, inputs) * inputs**-0.5)
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
