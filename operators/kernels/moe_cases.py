"""Cases of the mixture of experts: routing like a router's, weights of unit products, and how far sums of few bits may lead.

Letters: N tokens, S slots of a token, D channels of the model, H hidden channels, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import product as combinations

import torch
from torch import Tensor

from ...core.precision import BLOCK
from ..launch.case import (
    MANY_ROWS,
    Case,
    Example,
    Fill,
    KernelCases,
    Measurement,
    Part,
    TileKey,
    Trial,
    Tuning,
    codes,
    compiled_reference,
    half,
    scales,
)
from ..launch.node import HOPPER
from ..launch.tiles import ExpertTile, RouteTile, RowTile
from .fp8_linear import accumulator_loss
from .moe_library import grouped_products
from .moe_scheme import SCHEMES, Share
from .warp_specialized import MULTIPROCESSORS

EXPERTS, SLOTS, SHARED, WIDTH = 54, 4, 1, 1408  # of 4B-A0.5B: 53 routed experts, 3 of a token, and a shared one
RANK_AND_PLACE = "rank and place"  # tokens into the order of their experts
CODE, SCALE = 100.0, 0.006  # about the deviation of random codes, and the mean of random scales
STEP_SHARE = 0.086  # a step of E4M3 over a value, weighted by energy, of SiLU(gate) * up with both standard normal
GAIN = 1.6  # relative error of SiLU(gate) * up over that of gate and up, weighted in the same way
GAIN_WITH_SCALE = 2.25  # the same where the scale is computed from a value that moves as much
MEAN_OF_NORMAL = 0.798  # of its absolute value: sqrt(2 / pi)
SMALL = ExpertTile(16, 16, 32, 2, 2, 4)
ROW_WIDTHS = {"moe_rank": EXPERTS, "moe_place": WIDTH, "moe_hidden": WIDTH, "moe_combine": WIDTH}  # of launches beside the products


def flipped_codes(k: int, computed_scale: bool) -> float:
    """Difference that hidden activations may show because the tensor core sums FP8 products over K channels by itself.

    Promoted products are K of one step: a step's loss is a share of that step's sum alone, and losses add up by their squares.
    The accumulator moves each product by sigma = 2^-12 sqrt(K / 32) of itself at most (`accumulator_loss` is half its square), and
    hidden activations by GAIN sigma. A code flips with the probability |move| / step and is then a step away: on average the squared
    difference is |move| step, which is MEAN_OF_NORMAL GAIN sigma STEP_SHARE of the square of the value. The metric is half of that.
    """
    sigma = math.sqrt(2 * accumulator_loss(k))
    return MEAN_OF_NORMAL * (GAIN_WITH_SCALE if computed_scale else GAIN) * STEP_SHARE * sigma / 2


def moe_experts_case(
    operator: str, rows: int, d: int, h: int, experts: int = EXPERTS, slots: int = SLOTS, shared: int = SHARED, promotion: int = 0
) -> Case:
    """A node of `operator`; the last `shared` slots are the last experts. Blocks want H in whole ones."""
    scheme = SCHEMES[operator]
    k = -(-d // BLOCK) * BLOCK if scheme.x is Share.BLOCK else d
    weights = unit_weights(scheme.weight, experts, 2 * h, k) + unit_weights(scheme.weight, experts, d, h)
    hidden = (Example("float32", (experts,), hidden_scales, ()),) if scheme.hidden is Share.EXPERT else ()
    x = {
        Share.NONE: (half(rows, d),),
        Share.TENSOR: (codes(rows, k), scales(1, dynamic=())),
        Share.ROW: (codes(rows, k), scales(rows, 1)),
        Share.BLOCK: (codes(rows, k), scales(rows, k // BLOCK)),
    }[scheme.x]
    routing = (Example("int64", (rows, slots), partial(_index, experts, shared)), Example("float32", (rows, slots), _gates))
    step = promotion or (BLOCK if scheme.weight is Share.BLOCK else 0)  # channels that the tensor core sums by itself; 0: all of them
    summed, hidden_summed = (min(step, width) if step else width for width in (k, h))
    flipped = flipped_codes(summed, scheme.hidden is not Share.EXPERT) + accumulator_loss(hidden_summed)
    return Case(
        operator,
        (*x, *weights, *hidden, *routing, half(rows, d)),
        (rows, d, h, experts, slots),
        {"experts": experts, **({} if scheme.weight is Share.NONE else {"promotion": promotion})},
        tile=TileKey(scheme.family, rows, (d, h)),
        flops=6 * rows * slots * d * h,
        tolerance=0.0 if scheme.weight is Share.NONE else flipped,
    )


def moe_route_case(rows: int, d: int, experts: int, top_k: int, shared: int) -> Case:
    """Routing of so many tokens."""
    router = Example("float32", (experts, d), lambda shape, device: torch.randn(shape, device=device) * d**-0.5, ())
    bias = Example("float32", (experts,), lambda shape, device: torch.randn(shape, device=device) * 0.05, ())
    return Case(
        "MoeRoute",
        (half(rows, d), router, bias),
        (rows, d, experts, top_k + shared),
        {"top_k": top_k, "shared": shared},
        tile=TileKey("moe_route", rows, (d, experts)),
    )


def unit_weights(share: Share, experts: int, n: int, k: int) -> tuple[Example, ...]:
    """Stacked weights [E * N, K] whose products with inputs of deviation CODE * SCALE have about deviation 1, and their scales."""
    shape = (experts * n, k)
    if share is Share.NONE:
        return (Example("float16", shape, lambda s, device: torch.randn(s, device=device, dtype=torch.float16).mul_(k**-0.5), ()),)
    unit = k**-0.5 / (CODE * CODE * SCALE)
    around_unit: Fill = lambda s, device: torch.rand(s, device=device).add_(0.5).mul_(unit)  # noqa: E731
    if share is Share.CHANNEL:
        return codes(*shape, dynamic=()), Example("float32", shape[:1], around_unit, ())
    return codes(*shape, dynamic=()), Example("float32", (experts * n, -(-k // BLOCK)), partial(_of_blocks, experts, around_unit), ())


def _of_blocks(experts: int, fill: Fill, shape: tuple[int, ...], device: str) -> Tensor:
    """One value for BLOCK channels of an expert: blocks begin anew with each."""
    rows = shape[0] // experts
    blocks = fill((experts, -(-rows // BLOCK), shape[1]), device)
    return blocks.repeat_interleave(BLOCK, 1)[:, :rows].flatten(0, 1).contiguous()


def hidden_scales(shape: tuple[int, ...], device: str) -> Tensor:
    """With which few hidden values of deviation 0.4 saturate."""
    return torch.rand(shape, device=device).mul_(0.01).add_(0.005)


def _index(experts: int, shared: int, shape: tuple[int, ...], device: str) -> Tensor:
    """Different experts for each token, some of them liked better; shared ones last."""
    rows, slots = shape
    likely = torch.arange(1, experts - shared + 1, device=device).float().rsqrt().expand(rows, -1)
    routed = torch.multinomial(likely, slots - shared) if slots > shared else torch.empty(rows, 0, dtype=torch.int64, device=device)
    always = torch.arange(experts - shared, experts, device=device).expand(rows, -1)
    return torch.cat([routed, always], 1)


def _gates(shape: tuple[int, ...], device: str) -> Tensor:
    return torch.rand(shape, device=device).softmax(1)


def moe_experts_cases(operator: str) -> KernelCases:
    """Of MoeExperts or one of its FP8 forms."""
    make: Callable[..., Case] = partial(moe_experts_case, operator)
    promotions = (0, BLOCK) if SCHEMES[operator].weight is Share.CHANNEL else (0,)

    def ragged() -> Iterator[Trial]:
        for promotion in promotions:
            yield Trial(make(37, 161, BLOCK, 4, 3, 1, promotion), SMALL)

    def of_model(rows: int, width: int) -> Iterator[Case]:
        if width == WIDTH:
            yield from (make(rows, width, width, promotion=promotion) for promotion in promotions)

    def odd(rows: int) -> Iterator[Case]:
        yield make(rows, 200, BLOCK, 5, 2)
        yield make(rows, 640, 384, 8, 3, 0)

    def tuned() -> Iterator[Tuning]:
        for rows in (32, 128, 512, MANY_ROWS):
            yield Tuning(make(rows, WIDTH, WIDTH), (SCHEMES[operator].family,))
        if operator == "MoeExpertsFp8Row":  # which has all launches, whatever its tile
            for rows, (family, width) in combinations((32, MANY_ROWS), ROW_WIDTHS.items()):
                yield Tuning(replace(make(rows, WIDTH, WIDTH), tile=TileKey(family, rows, (width,))), (family,))

    def measured() -> Iterator[Measurement]:
        for rows in (32, MANY_ROWS):
            for promotion in promotions:
                case = make(rows, WIDTH, WIDTH, promotion=promotion)
                name = (
                    "promoted every 128 channels"
                    if promotion
                    else "never promoted"
                    if SCHEMES[operator].weight is not Share.NONE
                    else "FP16"
                )
                library = grouped_products(SCHEMES[operator], EXPERTS)
                yield Measurement(case, name, library, partial(_read_bytes, case), partial(expert_parts, case))

    return KernelCases(ragged=ragged, of_model=of_model, odd=odd, tuned=tuned, candidates=_candidates, measured=measured)


def expert_parts(case: Case, kernels: Sequence[str]) -> list[Part]:
    """What comes before the products, gate and up with the activation, down, and what comes behind; each product has its launch."""
    up, down = (number for number, kernel in enumerate(kernels) if kernel.startswith(("moe_up", "moe_gemm")))
    return [
        Part(RANK_AND_PLACE, tuple(range(up))),
        Part("up, with the activation", tuple(range(up, down)), case.flops * 2 // 3),
        Part("down", (down,), case.flops // 3),
        Part("combine", tuple(range(down + 1, len(kernels)))),
    ]


def _read_bytes(case: Case, inputs: list[Tensor]) -> int:
    """Bytes of the tokens, and of the weights of those experts that a token has chosen."""
    of_tokens = sum(x.nbytes for each, x in zip(case.inputs, inputs, strict=True) if each.dynamic)
    chosen = len(inputs[-3].unique()) / case.attributes["experts"]
    return of_tokens + round(chosen * (sum(x.nbytes for x in inputs) - of_tokens))


def _candidates(case: Case, capability: str) -> Iterator[ExpertTile | RowTile]:
    """Tiles of the products, or of a launch beside them."""
    assert case.tile is not None
    if case.tile.family == "moe_rank":
        yield from (RowTile(1, chunk, max(4, chunk // 512)) for chunk in (512, 1024, 4096, 8192))
        yield from (RowTile(tokens, 0, warps) for tokens, warps in ((32, 4), (64, 8)))  # by blocks of tokens
    elif case.tile.family in ROW_WIDTHS:
        for rows, chunk, warps in ((1, 256, 1), (1, 2048, 8), (4, 256, 4), (4, 512, 4), (4, 512, 8)):
            yield RowTile(rows, chunk, warps)
    elif capability == HOPPER and case.rows >= BLOCK:
        for up_m, down_m in combinations((128, 192), repeat=2):
            yield ExpertTile(up_m, down_m, 128, 3, 4, 12, MULTIPROCESSORS)
            yield ExpertTile(up_m, down_m, 128, 4, 4, 12, MULTIPROCESSORS)
        yield ExpertTile(128, 128, 128, 4, 5, 12, MULTIPROCESSORS)
    if case.tile.family not in ROW_WIDTHS and case.rows < MANY_ROWS // 4:
        for m, n, stages in ((16, 32, 4), (16, 32, 6), (16, 64, 3), (16, 64, 4), (64, 64, 3)):
            yield ExpertTile(m, m, n, stages, stages, 4)
    if case.tile.family not in ROW_WIDTHS and capability != HOPPER:
        yield ExpertTile(128, 128, 128, 2, 2, 8)
        yield ExpertTile(128, 128, 128, 3, 3, 8)


def _route_trials() -> Iterator[Trial]:
    for rows, d, experts, top_k, shared in ((1, 32, 6, 2, 1), (20, 200, 70, 8, 0)):
        for parts in (1, 3):
            yield Trial(moe_route_case(rows, d, experts, top_k, shared), RouteTile(16, 64, 2, 4, parts))


def _route_tuned() -> Iterator[Tuning]:
    for rows in (32, 512, 4096, MANY_ROWS):
        yield Tuning(moe_route_case(rows, WIDTH, EXPERTS - SHARED, SLOTS - SHARED, SHARED), ("moe_route",))


def _route_candidates(case: Case, _capability: str) -> Iterator[RouteTile]:
    """With few rows many CTAs share the channels of a token."""
    if case.rows < MANY_ROWS:
        for m, k, parts in ((16, 128, 11), (32, 128, 11), (64, 128, 11), (16, 128, 6), (32, 64, 4), (64, 64, 4)):
            yield RouteTile(m, k, 2 if k == BLOCK else 3, 4, parts)
    else:
        for m, k, stages, warps in ((16, 64, 3, 4), (32, 64, 3, 4), (64, 64, 3, 4), (64, 64, 4, 4), (128, 64, 3, 8), (128, 64, 4, 8)):
            yield RouteTile(m, k, stages, warps)
        yield RouteTile(64, 64, 3, 4, 2)


def _route_measured() -> Iterator[Measurement]:
    for rows in (32, MANY_ROWS):
        case = moe_route_case(rows, WIDTH, EXPERTS - SHARED, SLOTS - SHARED, SHARED)
        yield Measurement(case, "FP32 router", compiled_reference(case))


def _routes(rows: int, width: int) -> Iterator[Case]:
    if width == WIDTH:
        yield moe_route_case(rows, width, EXPERTS - SHARED, SLOTS - SHARED, SHARED)


MOE_ROUTE_CASES = KernelCases(
    ragged=_route_trials,
    of_model=_routes,
    odd=lambda rows: (moe_route_case(rows, 200, 70, 8, 2), moe_route_case(rows, 640, 256, 8, 1)),
    tuned=_route_tuned,
    candidates=_route_candidates,
    measured=_route_measured,
)
