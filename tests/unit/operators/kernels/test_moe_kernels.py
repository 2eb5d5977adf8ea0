"""Kernels of the mixture of experts without a GPU: the interpreter, launches and sizes, cubins, refusals, and how far flips may lead."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from onerec_trt.core.difference import difference
from onerec_trt.core.errors import BuildError
from onerec_trt.operators import fp8
from onerec_trt.operators.kernels.fp8_linear import accumulator_loss
from onerec_trt.operators.kernels.moe_cases import flipped_codes, moe_experts_case, moe_route_case
from onerec_trt.operators.kernels.moe_experts import moe_experts_program
from onerec_trt.operators.kernels.moe_route import moe_route_program
from onerec_trt.operators.kernels.moe_scheme import EXPERTS_OF, SCHEMES
from onerec_trt.operators.kernels.registry import program_of
from onerec_trt.operators.launch.case import Case
from onerec_trt.operators.launch.compile import MAX_SHARED, compiled
from onerec_trt.operators.launch.program import InputType, evaluated
from onerec_trt.operators.launch.tiles import ExpertTile, Tiles, committed_tiles
from onerec_trt.operators.swiglu import swiglu_in_fp32
from torch import Tensor

from .uncompiled import Builds, named

FUSED = ("MoeExperts", "MoeExpertsFp8Tensor", "MoeExpertsFp8RowBlock", "MoeExpertsFp8Block")  # whose up product can compute the activation
INTERPRETED = "interpreted_moe.py"


def test_experts_are_their_reference(interpreted):
    assert {each["operator"] for each in interpreted["experts"]} == set(SCHEMES)
    assert [each for each in interpreted["experts"] if each["without_residual"] > each["threshold"]] == []


def test_a_bad_token_moves_no_bit_of_the_others(interpreted):
    assert len(interpreted["bad_rows"]) == len(SCHEMES)
    assert [each for each in interpreted["bad_rows"] if each["moved"]] == []


def test_experts_that_do_not_exist_are_left_out(interpreted):
    assert [each for each in interpreted["strangers"] if each["difference"] > each["threshold"]] == []


def test_combine_and_norm_in_one_launch_give_the_bits_of_two(interpreted):
    """Beside those of the operators apart: test_reference.py."""
    for each in interpreted["norms"]:
        quant = "_quant" if "Quant" in each["operator"] else ""
        assert each["launches"] == [f"moe_combine_norm{quant}"]
        assert each["equal"]
    assert {each["operator"] for each in interpreted["norms"]} == set(EXPERTS_OF)


def test_routes_are_their_reference(interpreted):
    """NaN, infinity and equal scores included."""
    assert [each for each in interpreted["routes"] if each["difference"] > each["threshold"] or not each["in_range"]] == []


def launches(operator: str, rows: int) -> list[str]:
    return launches_of(moe_experts_case(operator, rows, 1408, 1408), committed_tiles())


def launches_of(case: Case, tiles: Tiles) -> list[str]:
    program = program_of(case, "9.0", tiles, named)
    return [each.kernel.entry for each in program.variant([each.shape for each in case.inputs]).launches]


@pytest.mark.parametrize("operator", SCHEMES)
def test_the_activation_is_part_of_the_up_product_where_it_can_be(operator):
    product = ["moe_up_sm90"] if operator in FUSED else ["moe_gemm_sm90", "moe_hidden"]
    assert launches(operator, 16384) == ["moe_number", "moe_offset", "moe_place", *product, "moe_gemm_sm90", "moe_combine"]
    assert launches(operator, 32) == ["moe_rank", "moe_place", "moe_gemm", "moe_hidden", "moe_gemm", "moe_combine"]


def test_odd_widths_number_many_tokens_by_blocks_too():
    case = moe_experts_case("MoeExpertsFp8Row", 16384, 200, 136)
    without_descriptors = ["moe_gemm", "moe_hidden", "moe_gemm"]
    assert launches_of(case, committed_tiles()) == ["moe_number", "moe_offset", "moe_place", *without_descriptors, "moe_combine"]


@pytest.mark.parametrize(("up_rows", "activation"), [(128, ["moe_up_sm90"]), (192, ["moe_gemm_sm90", "moe_hidden"])])
def test_promoted_sums_leave_room_for_the_activation_with_two_consumers(up_rows, activation):
    case = moe_experts_case("MoeExpertsFp8RowBlock", 16384, 1408, 1408, promotion=128)
    tiles = committed_tiles().with_entries(case.entries("9.0", ExpertTile(up_rows, 192, 128, 4, 4, 12, 132)))
    assert launches_of(case, tiles)[3:-2] == activation


@pytest.mark.parametrize("rows", [1, 40, 5000, 16384])
def test_sorted_rows_fit_whatever_is_chosen(rows):
    """Most rows are needed where every expert that is chosen wastes all but one of its last ones."""
    case = moe_experts_case("MoeExpertsFp8RowBlock", rows, 1408, 1408)
    program = program_of(case, "9.0", compile_with=named)
    shapes = [each.shape for each in case.inputs]
    (codes,) = evaluated([program.scratch[6].bytes], shapes)
    align = 64 if rows > 256 else 16
    chosen = min(54, 4 * rows)
    each_expert = torch.tensor([1] * (chosen - 1) + [4 * rows - (chosen - 1)])
    assert codes >= 1408 * int((-(-each_expert // align) * align).sum())


def test_no_tokens_launch_no_tiles():
    case = moe_experts_case("MoeExpertsFp8RowBlock", 1, 1408, 1408)
    program = program_of(case, "9.0", compile_with=named)
    shapes = [(0, *each.shape[1:]) if 0 in each.dynamic else each.shape for each in case.inputs]
    grids = [evaluated(each.grid, shapes) for each in program.variant(shapes).launches]
    assert [0 in grid for grid in grids] == [False, False, True, True, True, True]


@pytest.mark.parametrize("operator", ["MoeRoute", *SCHEMES])
@pytest.mark.parametrize(("capability", "rows"), [("8.9", 32), ("9.0", 32), ("9.0", 16384), ("12.0", 16384)])
def test_every_compute_capability(cubins, operator, capability, rows):
    """The cubins of one variant of each."""
    case = moe_route_case(rows, 1408, 53, 3, 1) if operator == "MoeRoute" else moe_experts_case(operator, rows, 1408, 1408)
    builds = Builds()
    program = program_of(case, capability, compile_with=builds.numbered)
    for launch in program.variant([each.shape for each in case.inputs]).launches:
        kernel = compiled(builds[int(launch.kernel.entry)], cubins)
        assert kernel.cubin.startswith(b"\x7fELF")
        assert kernel.shared_bytes <= MAX_SHARED[capability]
        assert kernel.dependent == (capability != "8.9")


def changed(number: int, **changes: object) -> list[InputType]:
    """Types of a node in which one input is another."""
    types = [each.type for each in moe_experts_case("MoeExpertsFp8Row", 8, 128, 128).inputs]
    types[number] = replace(types[number], **changes)
    return types


@pytest.mark.parametrize(
    ("number", "changes", "message"),
    [
        (0, {"dtype": "float16"}, "input 0 is float16"),
        (3, {"shape": (55,)}, r"gate_up_scale is \[55\]"),
        (4, {"shape": (54 * 128, 64)}, r"down is \[6912, 64\]"),
        (6, {"dtype": "float32"}, "input 6 is float32, must be int64"),
        (7, {"shape": (None, 3)}, "the last dimension of input 7 is 3, must be 4"),
    ],
)
def test_what_are_no_experts_is_refused(number, changes, message):
    node = moe_experts_case("MoeExpertsFp8Row", 8, 128, 128).node("9.0", compile_with=named)
    with pytest.raises(BuildError, match=message) as caught:
        moe_experts_program(replace(node, inputs=tuple(changed(number, **changes))))
    assert caught.value.where == "MoeExpertsFp8Row"


@pytest.mark.parametrize(
    ("attributes", "message"),
    [({"experts": 54}, "promotion is missing"), ({"promotion": 0}, "experts is missing"), ({"experts": 54, "promotion": 64}, "every 64")],
)
def test_attributes_are_needed_and_known(attributes, message):
    node = moe_experts_case("MoeExpertsFp8Row", 8, 128, 128).node("9.0", compile_with=named)
    with pytest.raises(BuildError, match=message):
        moe_experts_program(replace(node, attributes=attributes))


def test_a_route_that_wants_more_than_there_is_is_refused():
    node = moe_route_case(8, 64, 5, 6, 0).node("9.0", compile_with=named)
    with pytest.raises(BuildError, match="top_k is 6 of 5 experts"):
        moe_route_program(node)


def test_a_tile_of_another_height_is_refused():
    case = moe_experts_case("MoeExpertsFp8RowBlock", 8, 1408, 1408)
    tiles = committed_tiles().with_entries(case.entries("9.0", ExpertTile(256, 128, 128, 4, 4, 12, 132)))
    with pytest.raises(BuildError, match="tiles of 256 rows"):
        program_of(case, "9.0", tiles, named)


def through_expert_scale(x: Tensor) -> Tensor:
    return fp8.quantize_tensor(x, torch.tensor(0.01)).float() * 0.01


def through_rows(x: Tensor) -> Tensor:
    codes, scale = fp8.quantize_rows(x)
    return codes.float() * scale


def through_blocks(x: Tensor) -> Tensor:
    return fp8.dequantize_row_blocks(*fp8.quantize_row_blocks(x))


@pytest.mark.parametrize(("through", "computed"), [(through_expert_scale, False), (through_rows, True), (through_blocks, True)])
@pytest.mark.parametrize("k", [1408, 5632])
def test_flipped_codes_lead_as_far_as_the_bound_says(k, through, computed):
    """Products moved as the accumulator moves them at most: independent and normal, sigma of themselves."""
    torch.manual_seed(0)
    sigma = (2 * accumulator_loss(k)) ** 0.5
    gate_up = torch.randn(512, 2 * 1408)
    moved = gate_up * (1 + sigma * torch.randn_like(gate_up))
    hidden, other = (through(swiglu_in_fp32(each.half())).numpy() for each in (gate_up, moved))
    bound = flipped_codes(k, computed)
    assert 0.7 * bound < difference(other, hidden) < bound
