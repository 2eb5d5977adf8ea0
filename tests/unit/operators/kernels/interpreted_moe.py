"""What interpreted.py does, for the kernels of mixture of experts: routing and the launch programs of all schemes, with ordinary loads."""

from __future__ import annotations

import json
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from interpreted import CAPABILITY, E4M3, builds, emulate_gpu, execute
from onerec_trt.core.difference import difference
from onerec_trt.core.dtypes import of_torch
from onerec_trt.core.precision import BLOCK
from onerec_trt.operators import fp8
from onerec_trt.operators.kernels.moe_norm_cases import moe_experts_norm_case, parts_of
from onerec_trt.operators.kernels.moe_scheme import EXPERTS_OF, SCHEMES
from onerec_trt.operators.kernels.registry import FACTORIES
from onerec_trt.operators.kernels.registry import program_of as kernel_program
from onerec_trt.operators.launch.node import Node
from onerec_trt.operators.launch.program import InputType, Program
from onerec_trt.operators.launch.tiles import Entry, ExpertTile, RouteTile, RowTile, Tiles
from onerec_trt.operators.operator import Attributes
from onerec_trt.operators.registry import OPERATORS
from torch import Tensor

SIZES = [  # rows, D, H, experts, slots, routing
    (1, 32, 17, 1, 1, "random"),
    (7, 96, 160, 5, 2, "random"),
]
MORE = [(20, 64, 33, 6, 3, "skewed"), (33, 64, 48, 5, 2, "one takes all")]  # several tiles of one expert


def tiles_of(width: int, experts: int) -> Tiles:
    tiles = {4: ExpertTile(16, 16, 32, 2, 2, 4), 20: ExpertTile(16, 16, 32, 3, 3, 4)}
    ranks = {4: RowTile(2, 32, 1), 20: RowTile(8, 0, 1)}  # by expert, and by blocks of tokens
    rows = {
        "moe_place": RowTile(4, 128, 1),
        "moe_hidden": RowTile(2, 128, 1),
        "moe_combine": RowTile(2, 64, 1),
    }
    entries = [Entry("9.0", scheme.family, number, (64, 64), tile) for scheme in SCHEMES.values() for number, tile in tiles.items()]
    entries += [Entry("9.0", "moe_rank", number, (64,), rank) for number, rank in ranks.items()]
    entries += [Entry("9.0", family, 1, (64,), row) for family, row in rows.items()]
    routes = {8: RouteTile(16, 64, 2, 4), 30: RouteTile(16, 64, 2, 4, parts=3)}
    entries += [Entry("9.0", "moe_route", rows, (width, experts), tile) for rows, tile in routes.items()]
    return Tiles(tuple(entries))


def types_of(operator: str, inputs: list[Tensor]) -> tuple[InputType, ...]:
    """With an open number of tokens: of x, its scales where each token has some, and routing and residual."""
    rows = [1] if operator in ("MoeExpertsFp8Row", "MoeExpertsFp8RowBlock", "MoeExpertsFp8Block") else []
    last = [] if operator == "MoeRoute" else [len(inputs) - number for number in (1, 2, 3)]
    return tuple(
        InputType(of_torch(each.dtype).name, (None, *each.shape[1:]) if number in (0, *rows, *last) else tuple(each.shape))
        for number, each in enumerate(inputs)
    )


def program_of(operator: str, inputs: list[Tensor], attributes: Attributes) -> Program:
    node = Node(operator, types_of(operator, inputs), attributes, "9.0", tiles=tiles_of(64, 8), compile=builds.numbered)
    return FACTORIES[operator].program(node)


def routing(rows: int, experts: int, slots: int, kind: str) -> tuple[Tensor, Tensor]:
    """Index [N, S] and weight [N, S]; the last slot is a shared expert where there are several."""
    likely = torch.ones(experts) if kind == "random" else torch.arange(1, experts + 1).float() ** -2
    index = torch.stack([torch.multinomial(likely, slots) for _ in range(rows)])
    if kind == "one takes all":
        index[:, 0], index[:, 1] = 2, 4
    return index, torch.rand(rows, slots).softmax(1)


def experts_inputs(operator: str, rows: int, d: int, h: int, experts: int, slots: int, kind: str, bad: int | None = None) -> list[Tensor]:
    x = torch.randn(rows, d).half().float()
    gate_up, down = torch.randn(experts * 2 * h, d) * d**-0.5, torch.randn(experts * d, h) * h**-0.5
    if bad is not None:
        x[bad, 3] = float("nan")
    routed = [*routing(rows, experts, slots, kind), torch.randn(rows, d).half()]
    if operator == "MoeExperts":
        return [x.half(), gate_up.half(), down.half(), *routed]
    if operator == "MoeExpertsFp8Block":
        return [
            *fp8.quantize_row_blocks(x),
            *_blocks(gate_up.view(2 * experts, h, d), True),
            *_blocks(down.view(experts, d, h), False),
            *routed,
        ]
    weights = [part for weight in (gate_up, down) for part in (fp8.quantize_rows(weight)[0], fp8.quantize_rows(weight)[1][:, 0])]
    if operator == "MoeExpertsFp8Tensor":
        scale = torch.tensor([0.01])
        return [fp8.quantize_tensor(x, scale), scale, *weights, torch.rand(experts) * 0.01 + 0.001, *routed]
    return [*fp8.quantize_rows(x), *weights, *routed]


def _blocks(weights: Tensor, pad: bool) -> tuple[Tensor, Tensor]:
    """Codes and expanded scales of stacked weights, each padded to whole blocks of rows where asked."""
    codes, scales = [], []
    for weight in weights:
        scale = fp8.scale_of(fp8.weight_block_amax(weight))
        missing = -len(weight) % BLOCK if pad else 0
        raw = fp8.quantize_weight_blocks(weight, scale).view(torch.uint8)
        codes.append(F.pad(raw, (0, 0, 0, missing)).view(E4M3))
        scales.append(F.pad(fp8.expand_block_scale(scale, len(weight)), (0, 0, 0, missing), value=1.0))
    return torch.cat(codes), torch.cat(scales)


def check_experts() -> Iterator[dict]:
    for operator, scheme in SCHEMES.items():
        for size in (*SIZES, *MORE) if operator == "MoeExpertsFp8RowBlock" else SIZES:
            inputs = experts_inputs(operator, *size)
            for promotion in (0, BLOCK) if size == SIZES[1] and scheme.operand != "float16" else (0,):
                attributes = {"experts": size[3], **({} if scheme.operand == "float16" else {"promotion": promotion})}
                (actual,) = execute(program_of(operator, inputs, attributes), inputs)
                (expected,) = OPERATORS[operator].reference(*inputs, **attributes)
                residual = inputs[-1].float()
                moved = difference((actual.float() - residual).numpy(), (expected.float() - residual).numpy())
                yield {
                    "case": f"{operator} {size} {attributes}",
                    "operator": operator,
                    "difference": difference(actual.numpy(), expected.numpy()),
                    "without_residual": moved,
                    "threshold": OPERATORS[operator].threshold,
                }


def bad_rows() -> Iterator[dict]:
    """Spoils one token; which other tokens then have other bits?"""
    for operator, scheme in SCHEMES.items():
        attributes = {"experts": 4, **({} if scheme.operand == "float16" else {"promotion": 0})}
        results = []
        for bad in (None, 5):
            torch.manual_seed(1)
            inputs = experts_inputs(operator, 11, 64, 48, 4, 2, "random", bad)
            results.append(execute(program_of(operator, inputs, attributes), inputs)[0])
        others = torch.arange(11) != 5
        clean, dirty = (result.view(torch.int16)[others] for result in results)
        yield {"case": operator, "moved": not torch.equal(clean, dirty) or not results[1][5].isnan().all()}


def strangers() -> Iterator[dict]:
    """Experts that do not exist are left out, as in the reference."""
    for operator in ("MoeExperts", "MoeExpertsFp8RowBlock"):
        inputs = experts_inputs(operator, 9, 64, 48, 4, 3, "random")
        index = inputs[-3]
        index[0], index[1, 1], index[2, 2], index[3, 0] = -1, 4, 1 << 32, -(1 << 40)
        attributes = {"experts": 4, **({} if operator == "MoeExperts" else {"promotion": 0})}
        (actual,) = execute(program_of(operator, inputs, attributes), inputs)
        (expected,) = OPERATORS[operator].reference(*inputs, **attributes)
        yield {"case": operator, "difference": difference(actual.numpy(), expected.numpy()), "threshold": OPERATORS[operator].threshold}


def norms() -> Iterator[dict]:
    """The launches behind the down product of experts with a norm; whether their bits are those of the kernels of the parts."""
    for operator in EXPERTS_OF:
        case = moe_experts_norm_case(operator, 7, 161, BLOCK, 5, 2)
        inputs = case.tensors("cpu")
        program = kernel_program(case, CAPABILITY, compile_with=builds.numbered)
        entries = [builds[int(launch.kernel.entry)].function for launch in program.variant([x.shape for x in inputs]).launches]
        launches = [name for name in entries if "combine" in name or "norm" in name]
        experts, norm = (kernel_program(part, CAPABILITY, compile_with=builds.numbered) for part in parts_of(case))
        (total,) = execute(experts, inputs[: len(experts.inputs)])
        parts = [total, *execute(norm, [total, *inputs[len(experts.inputs) :]])]
        results = zip(execute(program, inputs), parts, strict=True)
        equal = all(torch.equal(together.view(torch.uint8), apart.view(torch.uint8)) for together, apart in results)
        yield {"operator": operator, "launches": launches, "equal": equal}


def routes() -> Iterator[dict]:
    for rows, width, experts, top_k, shared in ((1, 32, 6, 2, 1), (37, 100, 53, 3, 1), (20, 200, 70, 8, 0), (5, 64, 3, 3, 2)):
        x, router, bias = torch.randn(rows, width).half(), torch.randn(experts, width) * width**-0.5, torch.randn(experts) * 0.1
        if rows == 37:
            x[3], x[4, 7], x[5, 0] = 0, float("nan"), float("inf")
            bias[:] = 0  # a row of zeros: all scores are equal
        attributes = {"top_k": top_k, "shared": shared}
        actual = execute(program_of("MoeRoute", [x, router, bias], attributes), [x, router, bias])
        expected = OPERATORS["MoeRoute"].reference(x, router, bias, **attributes)
        yield {
            "case": f"{rows} {width} {experts} {attributes}",
            "difference": OPERATORS["MoeRoute"].compare(
                *([t.numpy() for t in each] for each in (actual, expected, (x, router, bias))), attributes
            ),
            "threshold": OPERATORS["MoeRoute"].threshold,
            "unequal": int((actual[0] != expected[0]).sum()),
            "in_range": bool(((actual[0] >= 0) & (actual[0] < experts + shared)).all()),
        }


if __name__ == "__main__":
    emulate_gpu()
    torch.manual_seed(0)
    checks = {"experts": check_experts, "bad_rows": bad_rows, "strangers": strangers, "norms": norms, "routes": routes}
    print(json.dumps({name: list(check()) for name, check in checks.items()}))
