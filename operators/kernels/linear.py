"""Linear and LinearAdd on the GPU: FP16 products with FP32 accumulation; the residual is added before the one rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch

from ..launch.case import MANY_ROWS, Case, KernelCases, Library, Measurement, Trial, half
from ..launch.node import Node, expect, static
from ..launch.program import Program
from .product import Product, product_program
from .product_cases import SMALL, product_candidates, product_key, product_trials, product_tuning, residual_tuning


def linear_program(node: Node) -> Program:
    """Linear: x FP16 [..., K], weight FP16 [N, K] to FP16 [..., N]."""
    return _program(node, residual=None)


def linear_add_program(node: Node) -> Program:
    """LinearAdd: the same and residual FP16 [..., N]."""
    expect(node, 2, "float16")
    return _program(node, residual=2)


def _program(node: Node, residual: int | None) -> Program:
    for index in range(2):
        expect(node, index, "float16")
    product = Product("float16", static(node, 1, 0), static(node, 1, 1), residual=residual is not None)
    return product_program(node, product, weight=1, scales=None, residual=residual)


def linear_case(rows: int, k: int, n: int) -> Case:
    """Linear of [rows, k] and [n, k]."""
    key = product_key(Product("float16", n, k), rows)
    return Case("Linear", (half(rows, k), half(n, k, dynamic=())), (rows, k, n), tile=key, flops=2 * rows * k * n)


def linear_add_case(rows: int, k: int, n: int) -> Case:
    """LinearAdd of [rows, k], [n, k] and [rows, n]."""
    key = product_key(Product("float16", n, k, residual=True), rows)
    inputs = (half(rows, k), half(n, k, dynamic=()), half(rows, n))
    return Case("LinearAdd", inputs, (rows, k, n), tile=key, flops=2 * rows * k * n)


def _trials() -> Iterator[Trial]:
    yield from product_trials(linear_case)
    leading = (half(2, 3, 64, dynamic=(0, 1)), half(24, 64, dynamic=()))  # all dimensions but the last are rows
    yield Trial(replace(linear_case(6, 64, 24), inputs=leading), SMALL)


def _torch_addmm(inputs: list[torch.Tensor]) -> Callable[[], torch.Tensor]:
    x, weight, residual = inputs
    return lambda: torch.addmm(residual, x, weight.T)


def _measured() -> Iterator[Measurement]:
    for n in (1408, 5632):
        yield Measurement(linear_add_case(MANY_ROWS, 1408, n), "FP16, residual", Library("torch.addmm", _torch_addmm))


LINEAR_CASES = KernelCases(
    agreement="roundings",
    ragged=_trials,
    of_model=lambda rows, width: (linear_case(rows, width, 3 * width),),
    tuned=partial(product_tuning, linear_case),
    candidates=product_candidates,
)
LINEAR_ADD_CASES = KernelCases(
    agreement="roundings",
    ragged=partial(product_trials, linear_add_case),
    of_model=lambda rows, width: (linear_add_case(rows, 4 * width, width),),
    odd=lambda rows: (linear_add_case(rows, 100, 36), linear_add_case(rows, 32, 96)),
    tuned=partial(residual_tuning, linear_add_case, "linear"),
    candidates=product_candidates,
    measured=_measured,
)
