"""Cases of gate and up with SwiGLU: products of deviation 1, so that SwiGLU bends and few codes saturate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F

from ..launch.case import MANY_ROWS, Case, Example, KernelCases, Library, Measurement, TileKey, Trial, Tuning, codes, half
from ..launch.node import HOPPER
from ..launch.tiles import GemmTile
from .fp8_linear import PROMOTIONS
from .moe_cases import SCALE, flipped_codes, hidden_scales, unit_weights
from .moe_scheme import Share
from .product import Product
from .product_cases import STEP_BYTES
from .warp_specialized import MULTIPROCESSORS

WIDTH, HIDDEN = 1408, 5632  # of a dense feed-forward of 4B-A0.5B
SIZES = ((WIDTH, HIDDEN), (1792, 7168))  # and of 1B
ROWS = (8, 32, 64, 128, 256, 512, 1024, MANY_ROWS)
APART = GemmTile(64, 64, 128, 4, 4)  # of the product alone: the launches are those of the parts
RAGGED = ((1, 96, 20), (37, 200, 36), (21, 64, 40))  # rows, K and H


def linear_swiglu_case(rows: int, k: int, hidden: int) -> Case:
    """LinearSwiGlu of [rows, k] and [2 hidden, k]."""
    product = Product("float16", 2 * hidden, k)
    return Case(
        "LinearSwiGlu",
        (half(rows, k), *unit_weights(Share.NONE, 1, 2 * hidden, k)),
        (rows, k, 2 * hidden),
        tile=_key(product, rows),
        flops=4 * rows * k * hidden,
    )


def fp8_linear_swiglu_quant_tensor_case(rows: int, k: int, hidden: int, promotion: int = 0) -> Case:
    """Fp8LinearSwiGluQuantTensor of [rows, k] and [2 hidden, k]."""
    product = Product("float8_e4m3fn", 2 * hidden, k, promotion=promotion)
    scale = Example("float32", (1,), lambda shape, device: torch.full(shape, SCALE, device=device), ())
    return Case(
        "Fp8LinearSwiGluQuantTensor",
        (codes(rows, k), scale, *unit_weights(Share.CHANNEL, 1, 2 * hidden, k), Example("float32", (1,), hidden_scales, ())),
        (rows, k, 2 * hidden),
        {"promotion": promotion},
        tile=_key(product, rows),
        flops=4 * rows * k * hidden,
        tolerance=flipped_codes(promotion or k, computed_scale=False),
    )


def _key(product: Product, rows: int) -> TileKey:
    return TileKey(f"{product.family}_swiglu", rows, (product.k, product.n))


def _trials(*makes: Callable[[int, int, int], Case]) -> Iterator[Trial]:
    for size in RAGGED:
        for make in makes:
            yield Trial(make(*size))  # of few rows, so in the launches of the parts


def _tuned(*makes: Callable[[int, int, int], Case]) -> Iterator[Tuning]:
    for size in SIZES:
        for rows in ROWS:
            for make in makes:
                case = make(rows, *size)
                assert case.tile is not None
                yield Tuning(case, (case.tile.family,))


def linear_swiglu_candidates(case: Case, capability: str) -> Iterator[GemmTile]:
    """The launches of the parts, and the kernel for both in walks of several lengths."""
    yield APART
    if capability == HOPPER:
        k = STEP_BYTES // case.tensors("meta")[0].element_size()
        for group in (4, 8, 16):
            for stages in (3, 4):
                yield GemmTile(128, 256, k, stages, 12, group, ctas=MULTIPROCESSORS)


def _fp16_library(inputs: list[torch.Tensor]) -> Callable[[], torch.Tensor]:
    x, weight = inputs

    def both(x: torch.Tensor) -> torch.Tensor:
        gate, up = (x @ weight.T).chunk(2, -1)
        return F.silu(gate) * up

    fused = torch.compile(both, dynamic=False)
    return lambda: fused(x)


def _fp8_library(inputs: list[torch.Tensor]) -> Callable[[], torch.Tensor]:
    """Row-wise scales, as PyTorch has no product with one scale of an activation and a scale per channel."""
    x, scale, weight, weight_scale, hidden_scale = inputs
    rows = scale.expand(x.shape[0], 1).contiguous()

    def activation(gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.float().chunk(2, -1)
        return (F.silu(gate) * up / hidden_scale).clamp(-448, 448).to(torch.float8_e4m3fn)

    fused = torch.compile(activation, dynamic=False)
    return lambda: fused(torch._scaled_mm(x, weight.T, rows, weight_scale[None], out_dtype=torch.bfloat16, use_fast_accum=True))


def _measured() -> Iterator[Measurement]:
    yield Measurement(linear_swiglu_case(MANY_ROWS, WIDTH, HIDDEN), "FP16", Library("torch.compile, both", _fp16_library))


def _fp8_measured() -> Iterator[Measurement]:
    library = Library("torch._scaled_mm, row-wise, fast accumulation, to BF16, then torch.compile", _fp8_library)
    for promotion, variant in ((0, "one scale, promotion never"), (128, "one scale, promotion every 128")):
        yield Measurement(fp8_linear_swiglu_quant_tensor_case(MANY_ROWS, WIDTH, HIDDEN, promotion), variant, library)


_FP8 = tuple(partial(fp8_linear_swiglu_quant_tensor_case, promotion=promotion) for promotion in PROMOTIONS)

LINEAR_SWIGLU_CASES = KernelCases(
    ragged=partial(_trials, linear_swiglu_case),
    of_model=lambda rows, width: (linear_swiglu_case(rows, width, 4 * width),),
    odd=lambda rows: (linear_swiglu_case(rows, 100, 36), linear_swiglu_case(rows, 192, 200)),
    tuned=partial(_tuned, linear_swiglu_case),
    candidates=linear_swiglu_candidates,
    measured=_measured,
)
FP8_LINEAR_SWIGLU_QUANT_TENSOR_CASES = KernelCases(
    ragged=partial(_trials, *_FP8),
    of_model=lambda rows, width: tuple(make(rows, width, 4 * width) for make in _FP8),
    odd=lambda rows: (*(make(rows, 256, 208) for make in _FP8), fp8_linear_swiglu_quant_tensor_case(rows, 200, 36)),
    tuned=partial(_tuned, *_FP8),
    candidates=linear_swiglu_candidates,
    measured=_fp8_measured,
)
