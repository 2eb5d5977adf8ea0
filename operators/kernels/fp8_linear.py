"""Fp8Linear and Fp8LinearAdd on the GPU: E4M3 products, both scales and the residual in the epilogue, one rounding to FP16."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch

from ...core.errors import BuildError
from ..launch.case import MANY_ROWS, Case, KernelCases, Library, Measurement, Trial, Tuning, codes, half, scales
from ..launch.node import Node, expect, static
from ..launch.program import Program
from .product import Product, product_program
from .product_cases import product_candidates, product_key, product_trials, product_tuning, residual_tuning

PROMOTIONS = (0, 128)
STEP_CHANNELS = 32  # that an FP8 tensor core instruction adds to the accumulator at a time
STEP_LOSS = 2.0**-12  # of the sum, at most, in each of them


def fp8_linear_program(node: Node) -> Program:
    """Fp8Linear: codes [..., K], scale FP32 [1] or [..., 1], weight codes [N, K], weight scale FP32 [N] to FP16 [..., N]."""
    return _program(node, residual=None)


def fp8_linear_add_program(node: Node) -> Program:
    """Fp8LinearAdd: the same and residual FP16 [..., N]."""
    expect(node, 4, "float16")
    return _program(node, residual=4)


def _program(node: Node, residual: int | None) -> Program:
    for index, dtype in enumerate(("float8_e4m3fn", "float32", "float8_e4m3fn", "float32")):
        expect(node, index, dtype)
    if "promotion" not in node.attributes:
        raise BuildError("the attribute promotion is missing", where=node.operator, hint="correct the graph")
    product = Product(
        "float8_e4m3fn",
        n=static(node, 2, 0),
        k=static(node, 2, 1),
        row_scales=len(node.inputs[1].shape) > 1,
        residual=residual is not None,
        promotion=int(node.attributes["promotion"]),
    )
    return product_program(node, product, weight=2, scales=(1, 3), residual=residual)


def fp8_linear_case(rows: int, k: int, n: int, promotion: int = 0) -> Case:
    """Fp8Linear of [rows, k] and [n, k] with a scale per row."""
    inputs = (codes(rows, k), scales(rows, 1), codes(n, k, dynamic=()), scales(n, dynamic=()))
    key = product_key(Product("float8_e4m3fn", n, k, promotion=promotion), rows)
    return Case(
        "Fp8Linear",
        inputs,
        (rows, k, n),
        {"promotion": promotion},
        tile=key,
        flops=2 * rows * k * n,
        tolerance=0.0 if promotion else accumulator_loss(k),
    )


def fp8_linear_add_case(rows: int, k: int, n: int, promotion: int = 0) -> Case:
    """Fp8LinearAdd: the same with a residual [rows, n]."""
    case = fp8_linear_case(rows, k, n, promotion)
    key = product_key(Product("float8_e4m3fn", n, k, residual=True, promotion=promotion), rows)
    return replace(case, operator="Fp8LinearAdd", inputs=(*case.inputs, half(rows, n)), tile=key)


def accumulator_loss(k: int) -> float:
    """Difference that an FP8 accumulator which is never promoted may show.

    Hopper's keeps 13 bits behind the leading one (arXiv 2412.19437, section 3.3.2): each step loses at most the last of them,
    2^-13 to 2^-12 of the sum. Losses of random products are independent, so their squares add up; the metric is half of that.
    """
    return k / STEP_CHANNELS * STEP_LOSS**2 / 2


def _static(rows: int, k: int, n: int, promotion: int) -> Case:
    """With one scale for all rows."""
    case = fp8_linear_add_case(rows, k, n, promotion)
    return replace(case, inputs=(case.inputs[0], scales(1, dynamic=()), *case.inputs[2:]))


def _trials(make: Callable[..., Case]) -> Iterator[Trial]:
    yield from product_trials(*(partial(make, promotion=promotion) for promotion in PROMOTIONS))


def _tuned() -> Iterator[Tuning]:
    for promotion in PROMOTIONS:
        yield from product_tuning(partial(fp8_linear_case, promotion=promotion))


def _add_tuned() -> Iterator[Tuning]:
    yield from residual_tuning(fp8_linear_add_case, "fp8_linear")
    yield from residual_tuning(partial(fp8_linear_add_case, promotion=128), "fp8_linear_promoted", few_rows=())


def _measured() -> Iterator[Measurement]:
    row_wise = Library("torch._scaled_mm, row-wise, fast accumulation, to BF16, without the residual", _row_wise)
    block_wise = Library("torch._scaled_mm, 1x128 x 128x128 blocks, to BF16, without the residual", _block_wise)
    for n in (1408, 4224, 5632):
        yield Measurement(fp8_linear_add_case(MANY_ROWS, 1408, n), "row scales, residual, promotion never", row_wise)
        yield Measurement(fp8_linear_add_case(MANY_ROWS, 1408, n, 128), "row scales, residual, promotion every 128", block_wise)


def _row_wise(inputs: list[torch.Tensor]) -> Callable[[], torch.Tensor]:
    x, scale, weight, weight_scale = inputs[:4]
    return lambda: torch._scaled_mm(x, weight.T, scale, weight_scale[None], out_dtype=torch.bfloat16, use_fast_accum=True)


def _block_wise(inputs: list[torch.Tensor]) -> Callable[[], torch.Tensor]:
    """With random scales, as many as a quantizer would make."""
    x, _, weight, _ = inputs[:4]
    blocks = weight.shape[1] // 128
    scale = torch.rand(blocks, x.shape[0], device=x.device).T
    weight_scale = torch.rand(weight.shape[0] // 128, blocks, device=x.device).T
    return lambda: torch._scaled_mm(x, weight.T, scale, weight_scale, out_dtype=torch.bfloat16)


FP8_LINEAR_CASES = KernelCases(
    agreement="roundings",
    ragged=partial(_trials, fp8_linear_case),
    of_model=lambda rows, width: (fp8_linear_case(rows, width, 3 * width), fp8_linear_case(rows, 4 * width, width, 128)),
    tuned=_tuned,
    candidates=product_candidates,
)
FP8_LINEAR_ADD_CASES = KernelCases(
    agreement="roundings",
    ragged=partial(_trials, _static),
    of_model=lambda rows, width: (fp8_linear_add_case(rows, 4 * width, width), fp8_linear_add_case(rows, width, width, 128)),
    odd=lambda rows: (
        fp8_linear_add_case(rows, 200, 72),
        fp8_linear_add_case(rows, 64, 64),  # one step of the main loop, as in the demo
        fp8_linear_add_case(rows, 128, 96, 128),
    ),
    tuned=_add_tuned,
    candidates=product_candidates,
    measured=_measured,
)
