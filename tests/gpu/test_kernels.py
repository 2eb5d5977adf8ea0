"""Every kernel, launched from its ahead-of-time cubin, against its operator's PyTorch reference; same input, same bits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import chain

import pytest
import torch
from onerec_trt.core.difference import difference
from onerec_trt.operators.launch.compile import Build, compile_many, compiled, default_cache
from onerec_trt.operators.launch.launch import bind, execute, new_outputs
from onerec_trt.operators.launch.program import Kernel, Program
from onerec_trt.operators.launch.tiles import Entry, GemmTile, Tiles
from onerec_trt.operators.registry import OPERATORS
from onerec_trt.tools.tuning.cases import EPSILON, OperatorCase, this_capability
from torch import Tensor

WIDTHS = (640, 896, 1408, 1792, 2304, 2944, 3584)  # of the eight published sizes
ROWS = (1, 130, 1000, 16500)
RUNS = 1000
CODES_ONLY = (True, True, False)


def row_cases(width: int) -> list[tuple[str, tuple[int, ...], dict[str, float], tuple[bool, ...]]]:
    return [
        ("RmsNorm", (width,), EPSILON, ()),
        ("RmsNormQuantRow", (width,), EPSILON, ()),
        ("RmsNormQuantRow", (width,), EPSILON, CODES_ONLY),
        ("RmsNormQuantTensor", (width,), EPSILON, ()),
        ("RmsNormQuantBlock", (width,), EPSILON, ()),
        ("QuantRow", (width,), {}, ()),
        ("QuantTensor", (width,), {}, ()),
        ("SwiGlu", (4 * width,), {}, ()),
        ("SwiGluQuantRow", (4 * width,), {}, ()),
        ("SwiGluQuantTensor", (4 * width,), {}, ()),
    ]


def product_cases(width: int) -> list[tuple[str, tuple[int, ...], dict[str, float], tuple[bool, ...]]]:
    return [
        ("Linear", (width, 3 * width), {}, ()),
        ("LinearAdd", (4 * width, width), {}, ()),
        ("Fp8Linear", (width, 3 * width), {"promotion": 0}, ()),
        ("Fp8LinearAdd", (4 * width, width), {"promotion": 0}, ()),
        ("Fp8Linear", (4 * width, width), {"promotion": 128}, ()),
        ("Fp8LinearAdd", (width, width), {"promotion": 128}, ()),
    ]


def described() -> list[tuple[str, tuple[int, ...], dict[str, float], tuple[bool, ...]]]:
    odd = [
        ("Fp8LinearAdd", (200, 72), {"promotion": 0}, ()),
        ("LinearAdd", (100, 36), {}, ()),
        ("RmsNormQuantRow", (100,), EPSILON, ()),
        ("Fp8LinearAdd", (64, 64), {"promotion": 0}, ()),  # one step of the main loop, as in the demo
        ("Fp8LinearAdd", (128, 96), {"promotion": 128}, ()),
        ("LinearAdd", (32, 96), {}, ()),
    ]
    return [*chain.from_iterable((*row_cases(width), *product_cases(width)) for width in WIDTHS), *odd]


ProgramOf = Callable[[OperatorCase], Program]


@pytest.fixture(scope="module")
def program_of() -> ProgramOf:
    """Programs whose kernels were compiled together, in parallel."""
    capability, cache = this_capability(), default_cache()  # by what they are made of: compiled once per version of the source
    builds: dict[str, Build] = {}

    def remember(build: Build) -> Kernel:
        builds[repr(build)] = build
        return Kernel(b"-", "-", build.warps, 0, 0)

    for operator, shape, attributes, read in described():
        OperatorCase(operator, 1, shape, attributes, read).program(capability, compile_with=remember)
    failures = [result for result in compile_many(builds.values(), cache).values() if not isinstance(result, Kernel)]
    assert failures == []
    return lambda case: case.program(capability, compile_with=partial(compiled, cache=cache))


@pytest.mark.parametrize(("operator", "shape", "attributes", "read"), described(), ids=str)
def test_kernel_is_its_reference(program_of, operator, shape, attributes, read):
    torch.manual_seed(1)
    for rows in ROWS:
        case = OperatorCase(operator, rows, shape, attributes, read)
        case.difference(program_of(case))  # raises above the threshold


def same_bits(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("operator", "shape", "attributes"),
    [
        ("RmsNormQuantRow", (1408,), EPSILON),
        ("SwiGluQuantRow", (5632,), {}),
        ("Fp8LinearAdd", (1408, 1408), {"promotion": 0}),
        ("Fp8LinearAdd", (1408, 1408), {"promotion": 128}),
        ("LinearAdd", (1408, 1408), {}),
    ],
    ids=str,
)
def test_same_input_same_bits(program_of, operator, shape, attributes):
    for rows, runs in ((16500, RUNS // 10), (130, RUNS)):
        case = OperatorCase(operator, rows, shape, attributes)
        program, inputs = program_of(case), case.inputs()
        expected = execute(program, inputs)
        outputs = new_outputs(program, inputs)
        run = bind(program, inputs, outputs)
        for _ in range(runs):
            for output in outputs:
                output.view(torch.uint8).fill_(0x55)
            run()
            assert same_bits(outputs, expected)


@pytest.mark.parametrize(("operator", "shape", "attributes", "read"), [*row_cases(1408), *product_cases(1408)], ids=str)
def test_a_bad_row_stays_alone(program_of, operator, shape, attributes, read):
    for rows, bad in ((37, 5), (4100, 4099)):
        case = OperatorCase(operator, rows, shape, attributes, read)
        program, inputs = program_of(case), case.inputs()
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
    ],
    ids=str,
)
def test_every_way_to_cut_a_product(tile, promotion):
    family = "fp8_linear_promoted_add" if promotion else "fp8_linear_add"
    shape = (1408, 1448)  # no tile divides N
    for rows in (1, 129, 3000, 16500):
        case = OperatorCase("Fp8LinearAdd", rows, shape, {"promotion": promotion})
        case.difference(case.program(this_capability(), Tiles((Entry(this_capability(), family, 1, shape, tile),))))


@pytest.mark.parametrize("operator", ["Fp8LinearAdd", "RmsNormQuantRow"])
def test_a_captured_launch_is_the_launch(program_of, operator):
    case = OperatorCase(operator, 4100, (1408, 1408) if operator.startswith("Fp8") else (1408,), {"promotion": 0, **EPSILON})
    program, inputs = program_of(case), case.inputs()
    expected = execute(program, inputs)
    outputs = new_outputs(program, inputs)
    run = bind(program, inputs, outputs)
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    for output in outputs:
        output.view(torch.uint8).fill_(0x55)
    graph.replay()
    torch.cuda.synchronize()
    assert same_bits(outputs, expected)


def test_a_static_scale_and_leading_dimensions(program_of):
    from onerec_trt.operators.kernels.registry import FACTORIES
    from onerec_trt.operators.launch.node import Node
    from onerec_trt.operators.launch.program import InputType

    inputs = OperatorCase("Fp8Linear", 60, (1408, 1408)).inputs()
    inputs[0], inputs[1] = inputs[0].view(3, 20, 1408), torch.tensor([0.01], device="cuda")
    names = ("float8_e4m3fn", "float32", "float8_e4m3fn", "float32")
    types = [InputType(name, tuple(tensor.shape)) for name, tensor in zip(names, inputs, strict=True)]
    types[0] = InputType("float8_e4m3fn", (None, None, 1408))
    program = FACTORIES["Fp8Linear"].program(Node("Fp8Linear", tuple(types), {"promotion": 0}, this_capability()))
    (expected,) = OPERATORS["Fp8Linear"].reference(*inputs, promotion=0)
    (actual,) = execute(program, inputs)
    threshold = OperatorCase("Fp8Linear", 60, (1408, 1408), {"promotion": 0}).threshold
    assert difference(actual.cpu().numpy(), expected.cpu().numpy()) <= threshold
