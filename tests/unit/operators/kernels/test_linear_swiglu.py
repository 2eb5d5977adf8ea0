"""Launch programs of gate and up with SwiGLU: one launch with many rows, those of the parts with few, and what is refused."""

from __future__ import annotations

import importlib
from dataclasses import replace
from functools import partial

import pytest
from onerec_trt.core.errors import BuildError
from onerec_trt.operators.kernels.linear_swiglu_cases import (
    fp8_linear_swiglu_quant_tensor_case,
    linear_swiglu_candidates,
    linear_swiglu_case,
)
from onerec_trt.operators.kernels.registry import FACTORIES, program_of
from onerec_trt.operators.launch.case import MANY_ROWS
from onerec_trt.operators.launch.node import NO_ADDRESS, Node
from onerec_trt.operators.launch.program import Input, InputType, Output, Program, Scratch, evaluated
from onerec_trt.operators.launch.tiles import GemmTile, Tiles, committed_tiles

from .uncompiled import Builds, named

FP8, SCALE = "Fp8LinearSwiGluQuantTensor", InputType("float32", (1,))
CODES, WEIGHT, WEIGHT_SCALE = InputType("float8_e4m3fn", (None, 256)), InputType("float8_e4m3fn", (416, 256)), InputType("float32", (416,))
FUSED = GemmTile(128, 256, 128, 4, 12, ctas=132)
PROMOTED = partial(fp8_linear_swiglu_quant_tensor_case, promotion=128)
by_case = pytest.mark.parametrize(
    "make", [linear_swiglu_case, fp8_linear_swiglu_quant_tensor_case, PROMOTED], ids=["FP16", "FP8", "promoted"]
)


@pytest.fixture
def builds() -> Builds:
    return Builds()


def functions_at(program: Program, case_rows: int, shapes: list[tuple[int, ...]]) -> list[str]:
    shapes = [(case_rows, *shapes[0][1:]), *shapes[1:]]
    return [launch.kernel.entry for launch in program.variant(shapes).launches]


def shapes_of(case) -> list[tuple[int, ...]]:
    return [each.shape for each in case.inputs]


@by_case
def test_many_rows_are_one_launch_and_others_those_of_the_parts(make):
    case = make(1, 1408, 5632)
    program, shapes = program_of(case, "9.0", compile_with=named), shapes_of(case)
    for rows in (256, 1000, MANY_ROWS):
        assert functions_at(program, rows, shapes) == ["moe_up_sm90"]
    for rows in (1, 20, 64, 512):
        *products, activation = functions_at(program, rows, shapes)
        assert activation == "swiglu"
        assert products
        assert all(name.startswith("gemm") for name in products)
    assert program.output_shapes([(7, 1408), *shapes[1:]]) == ((7, 5632),)


@pytest.mark.parametrize(
    ("make", "weight", "scales"),
    [(linear_swiglu_case, 1, (NO_ADDRESS,) * 3), (fp8_linear_swiglu_quant_tensor_case, 2, (Input(1), Input(3), Input(4)))],
    ids=["FP16", "FP8"],
)
def test_the_kernel_for_both_gets_weight_and_scales_in_their_places(builds, make, weight, scales):
    """No interpreter runs it."""
    case = make(1, 1408, 5632)
    shapes = [(MANY_ROWS, 1408), *shapes_of(case)[1:]]
    (launch,) = program_of(case, "9.0", compile_with=builds.named).variant(shapes).launches
    *tensors, rows = launch.arguments
    assert tensors == [Input(0), Input(weight), Output(0), *scales, NO_ADDRESS]
    assert evaluated([rows.value], shapes) == (MANY_ROWS,)
    kernel = importlib.import_module(builds[-1].module).moe_up_sm90
    variables = [name for name in kernel.arg_names if name not in builds[-1].constants]
    assert variables == ["x_RK", "weight_NK", "hidden_RH", "x_scale", "weight_scale", "hidden_scale", "table", "capacity"]


@by_case
def test_what_the_product_leaves_lies_in_scratch_as_long_as_the_launches_are_apart(make):
    case = make(1, 1408, 5632)
    program, shapes = program_of(case, "9.0", compile_with=named), shapes_of(case)
    sizes = [
        evaluated([buffer.bytes for buffer in program.scratch], [(rows, 1408), *shapes[1:]]) for rows in (10, 2 * MANY_ROWS, MANY_ROWS)
    ]
    assert sizes[0][-1] == 10 * 11264 * 2
    assert sizes[1] == sizes[2], "rows beyond those of few leave nothing"
    *_, product, activation = program.variant([(60, 1408), *shapes[1:]]).launches
    gate_up = Scratch(len(program.scratch) - 1)
    assert gate_up in product.arguments
    assert activation.arguments[:2] == (gate_up, Output(0))


@by_case
def test_the_grid_is_one_cta_per_tile_and_no_more_than_the_gpu_runs(make):
    case = make(1, 256, 208)
    program = program_of(case, "9.0", Tiles((*_others(), *case.entries("9.0", FUSED))), named)
    grids = []
    for rows in (0, 1, 129, 100_000):
        shapes = [(rows, 256), *shapes_of(case)[1:]]
        (launch,) = program.variant(shapes).launches
        grids.append(evaluated(launch.grid, shapes)[0])
    assert grids == [0, 2, 4, 132]


def test_the_table_says_where_the_parts_are_faster():
    case = linear_swiglu_case(4096, 1408, 5632)
    apart, fused = (
        program_of(case, "9.0", Tiles((*_others(), *case.entries("9.0", tile))), named) for tile in (GemmTile(64, 64, 64, 4, 4), FUSED)
    )
    assert {launch.kernel.entry for each in apart.variants for launch in each.launches} >= {"gemm_sm90", "swiglu"}
    assert {launch.kernel.entry for each in fused.variants for launch in each.launches} == {"moe_up_sm90"}
    assert fused.scratch == ()


def _others():
    return [entry for entry in committed_tiles().entries if not entry.family.endswith("_swiglu")]


@pytest.mark.parametrize(("k", "hidden"), [(200, 36), (250, 208), (256, 36)])
def test_strides_without_descriptors_are_the_launches_of_the_parts(builds, k, hidden):
    program_of(fp8_linear_swiglu_quant_tensor_case(1, k, hidden), "9.0", compile_with=builds.named)
    assert "moe_up_sm90" not in {build.function for build in builds}


@pytest.mark.parametrize("capability", ["8.9", "12.0"])
@by_case
def test_other_gpus_have_the_launches_of_the_parts(builds, make, capability):
    program_of(make(1, 1408, 5632), capability, compile_with=builds.named)
    assert {build.function for build in builds} >= {"gemm", "swiglu"}
    assert "moe_up_sm90" not in {build.function for build in builds}


@pytest.mark.parametrize(
    ("tile", "promotion", "message"),
    [
        (replace(FUSED, m=192, warps=16), 0, "no kernel for gate and up in tiles of 192 x 256"),
        (replace(FUSED, n=128), 0, "no kernel for gate and up in tiles of 128 x 128"),
        (replace(FUSED, group=0), 0, "walks of 0"),
        (FUSED, 64, "promotion every 64 channels, in steps of 128"),
        (replace(FUSED, k=64), 128, "promotion every 128 channels, in steps of 64"),
    ],
)
def test_what_no_kernel_does_is_refused(tile, promotion, message):
    case = fp8_linear_swiglu_quant_tensor_case(1, 256, 208, promotion)
    with pytest.raises(BuildError, match=message):
        program_of(case, "9.0", Tiles((*_others(), *case.entries("9.0", tile))), named)


@pytest.mark.parametrize(
    ("inputs", "attributes", "message"),
    [
        ((CODES, SCALE, WEIGHT, WEIGHT_SCALE), {"promotion": 0}, "it has 4 inputs, needs 5"),
        ((CODES, InputType("float32", (None, 1)), WEIGHT, WEIGHT_SCALE, SCALE), {"promotion": 0}, "a scale per row"),
        ((CODES, SCALE, WEIGHT, WEIGHT_SCALE, InputType("float32", (208,))), {"promotion": 0}, "input 4 is 208, must be 1"),
        ((CODES, SCALE, WEIGHT, InputType("float32", (208,)), SCALE), {"promotion": 0}, "input 3 is 208, must be 416"),
        ((CODES, SCALE, WEIGHT, WEIGHT_SCALE, SCALE), {}, "the attribute promotion is missing"),
        ((CODES, SCALE, InputType("float8_e4m3fn", (416, 128)), WEIGHT_SCALE, SCALE), {"promotion": 0}, "do not fit together"),
        ((CODES, SCALE, InputType("float8_e4m3fn", (3, 256)), InputType("float32", (3,)), SCALE), {"promotion": 0}, "cannot be 3 wide"),
    ],
)
def test_bad_nodes_are_named(inputs, attributes, message):
    with pytest.raises(BuildError, match=message) as caught:
        FACTORIES[FP8].program(Node(FP8, inputs, attributes, "9.0", compile=named))
    assert caught.value.where == FP8


def test_candidates_are_the_parts_and_the_kernel_for_both():
    case = linear_swiglu_case(MANY_ROWS, 1408, 5632)
    here, elsewhere = (list(linear_swiglu_candidates(case, capability)) for capability in ("9.0", "8.9"))
    assert {tile.ctas for tile in here} == {0, 132}
    assert {tile.ctas for tile in elsewhere} == {0}
    assert {tile.k for tile in here if tile.ctas} == {64}
