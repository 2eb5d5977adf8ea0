"""Every kernel, launched from its ahead-of-time cubin, against its operator's PyTorch reference; same input, same bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import chain

import pytest
import torch
from onerec_trt.core.difference import difference
from onerec_trt.operators import fp8
from onerec_trt.operators.kernels import registry as programs
from onerec_trt.operators.kernels.fp8_linear import fp8_linear_add_case, fp8_linear_case
from onerec_trt.operators.kernels.linear import linear_add_case
from onerec_trt.operators.kernels.registry import FACTORIES
from onerec_trt.operators.kernels.rms_norm_quant import rms_norm_quant_row_case
from onerec_trt.operators.kernels.swiglu import swiglu_quant_row_case
from onerec_trt.operators.launch.case import Case, codes, scales
from onerec_trt.operators.launch.compile import Build, compile_many, compiled, default_cache
from onerec_trt.operators.launch.launch import execute
from onerec_trt.operators.launch.program import Kernel, Program
from onerec_trt.operators.launch.tiles import GemmTile, Tiles
from onerec_trt.tools.tuning.parity import difference_of, this_capability

from .repeats import captured, repeated, same_bits

WIDTHS = (640, 896, 1408, 1792, 2304, 2944, 3584)  # of the eight published sizes
ROWS = (1, 20, 100, 200, 400, 1000, 3000, 16500)  # one for every tile of a product; 1000 to 4096 start early in persistent kernels
RUNS = 1000


def cases(rows: int, operator: str, width: int | None) -> list[Case]:
    """Of a model of so many channels; without one, of odd sizes."""
    declared = FACTORIES[operator].cases
    return list(declared.odd(rows) if width is None else declared.of_model(rows, width))


TRIED = [(operator, width) for operator in FACTORIES for width in (*WIDTHS, None) if cases(1, operator, width)]


ProgramOf = Callable[[Case], Program]


def test_codes_and_scales_of_the_references_are_the_same_on_the_gpu():
    """Of FP16 rows: many values lie in the middle of two codes, and go the other way where the scale is off by its last bit."""
    torch.manual_seed(2)
    for x in (torch.randn(8192, 128).half(), torch.arange(1, 1 << 15).short().view(torch.float16)[:31743, None].contiguous()):
        on_cpu, on_gpu = fp8.quantize_rows(x), fp8.quantize_rows(x.cuda())
        assert same_bits(on_cpu, [each.cpu() for each in on_gpu])


@pytest.fixture(scope="module")
def program_of() -> ProgramOf:
    """Programs whose kernels were compiled together, in parallel."""
    capability, cache = this_capability(), default_cache()  # by what they are made of: compiled once per version of the source
    builds: dict[str, Build] = {}

    def remember(build: Build) -> Kernel:
        builds[repr(build)] = build
        return Kernel(b"-", "-", build.warps, 0, 0)

    for case in chain.from_iterable(cases(1, *tried) for tried in TRIED):
        programs.program_of(case, capability, compile_with=remember)
    failures = [result for result in compile_many(builds.values(), cache).values() if not isinstance(result, Kernel)]
    assert failures == []
    return lambda case: programs.program_of(case, capability, compile_with=partial(compiled, cache=cache))


@pytest.mark.parametrize(("operator", "width"), TRIED, ids=str)
def test_kernel_is_its_reference(program_of, operator, width):
    torch.manual_seed(1)
    for rows in ROWS:
        for case in cases(rows, operator, width):
            difference_of(case, program_of(case))  # raises above the threshold


@pytest.mark.parametrize(
    "make",
    [
        lambda rows: rms_norm_quant_row_case(rows, 1408),
        lambda rows: swiglu_quant_row_case(rows, 5632),
        lambda rows: fp8_linear_add_case(rows, 1408, 1408),
        lambda rows: fp8_linear_add_case(rows, 1408, 1408, 128),
        lambda rows: linear_add_case(rows, 1408, 1408),
    ],
)
def test_same_input_same_bits(program_of, make):
    for rows, runs in ((16500, RUNS // 10), (130, RUNS)):
        case = make(rows)
        program, inputs = program_of(case), case.tensors("cuda")
        expected = execute(program, inputs)
        assert all(same_bits(outputs, expected) for outputs in repeated(program, inputs, runs))


@pytest.mark.parametrize("operator", [operator for operator, width in TRIED if width == 1408])
@pytest.mark.parametrize(("rows", "bad"), [(37, 5), (4100, 4099)])
def test_a_bad_row_stays_alone(program_of, operator, rows, bad):
    for case in cases(rows, operator, 1408):
        assert case.requests is None, "every row stands alone"
        program, inputs = program_of(case), case.tensors("cuda")
        clean = execute(program, inputs)
        poisoned = [inputs[0].clone(), *inputs[1:]]
        poisoned[0].view(torch.uint8)[bad] = 0x7F  # NaN in E4M3; 0x7F7F is NaN in FP16
        others = torch.arange(rows, device="cuda") != bad
        dirty = execute(program, poisoned)
        assert same_bits([o.view(torch.uint8)[others] for o in dirty], [o.view(torch.uint8)[others] for o in clean])
        assert any(o.float()[bad].isnan().any() for o in dirty)


@pytest.mark.parametrize("promotion", [0, 128])
@pytest.mark.parametrize(
    "tile",
    [
        GemmTile(128, 128, 128, 5, 12, group=16, ctas=132),
        GemmTile(128, 128, 128, 2, 12, group=3, ctas=7),
        GemmTile(128, 64, 128, 4, 12, ctas=132),
        GemmTile(192, 128, 128, 4, 16, ctas=132),
        GemmTile(192, 128, 128, 3, 16, group=4, ctas=131),
        GemmTile(64, 64, 128, 4, 4),
        GemmTile(128, 128, 128, 3, 8),
        GemmTile(16, 16, 128, 1, 4, slices=4),
        GemmTile(16, 32, 128, 1, 4, slices=4),
        GemmTile(16, 16, 128, 1, 8, slices=8, parts=3),
        GemmTile(32, 32, 128, 8, 4, parts=4),
        GemmTile(64, 64, 128, 4, 4, parts=4),
        GemmTile(128, 64, 128, 4, 4, parts=2),
    ],
    ids=str,
)
def test_every_way_to_cut_a_product(tile, promotion):
    for rows in (1, 129, 3000, 16500):
        case = fp8_linear_add_case(rows, 1408, 1448, promotion)  # no tile divides N
        tiles = Tiles(tuple(case.entries(this_capability(), tile)))
        difference_of(case, programs.program_of(case, this_capability(), tiles))


@pytest.mark.parametrize("case", [fp8_linear_add_case(4100, 1408, 1408), rms_norm_quant_row_case(4100, 1408)], ids=lambda c: c.operator)
def test_a_captured_launch_is_the_launch(program_of, case):
    program, inputs = program_of(case), case.tensors("cuda")
    assert same_bits(captured(program, inputs), execute(program, inputs))


def test_a_static_scale_and_leading_dimensions(program_of):
    rows = fp8_linear_case(60, 1408, 1408)
    case = replace(rows, inputs=(codes(3, 20, 1408, dynamic=(0, 1)), scales(1, dynamic=()), *rows.inputs[2:]))
    program, inputs = program_of(case), case.tensors("cuda")
    (expected,), (actual,) = case.reference(inputs), execute(program, inputs)
    assert difference(actual.cpu().numpy(), expected.cpu().numpy()) <= case.threshold
