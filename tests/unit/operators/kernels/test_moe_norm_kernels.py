"""Launch programs of experts with the norm behind them: one launch for combine and norm, the norm's own tile and arithmetic, refusals.

test_moe_kernels.py and test_reference.py run them in the interpreter.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import triton
from onerec_trt.core.errors import BuildError
from onerec_trt.operators.kernels.moe_cases import moe_experts_case
from onerec_trt.operators.kernels.moe_experts_norm import moe_experts_norm_program
from onerec_trt.operators.kernels.moe_norm_cases import codes_only, moe_experts_norm_case
from onerec_trt.operators.kernels.moe_scheme import EXPERTS_OF
from onerec_trt.operators.kernels.registry import program_of
from onerec_trt.operators.kernels.rms_norm import rms_norm_case
from onerec_trt.operators.kernels.rms_norm_quant import rms_norm_quant_row_case, rms_norm_quant_tensor_case
from onerec_trt.operators.launch.case import Case
from onerec_trt.operators.launch.compile import MAX_SHARED, Build, compiled
from onerec_trt.operators.launch.node import EARLY_ROWS
from onerec_trt.operators.launch.program import Input, InputType, Kernel, Launch, Output, evaluated
from onerec_trt.operators.launch.tiles import CAPABILITIES, RowTile, committed_tiles

from .uncompiled import Builds, named

NORMS = {"RmsNorm": rms_norm_case, "RmsNormQuantTensor": rms_norm_quant_tensor_case, "RmsNormQuantRow": rms_norm_quant_row_case}
ROW = "MoeExpertsFp8RowRmsNormQuantRow"
WIDTH, SLOTS = 1408, 4
by_operator = pytest.mark.parametrize("operator", EXPERTS_OF)


def norm_of(operator: str) -> str:
    return operator.removeprefix(EXPERTS_OF[operator])


def case_of(operator: str, rows: int) -> Case:
    return codes_only(moe_experts_norm_case(operator, rows, WIDTH, WIDTH))


def launches_of(case: Case, capability: str = "9.0") -> list[tuple[Build, Launch]]:
    """Of the variant for the rows of a case, with what each kernel is compiled from."""
    builds = Builds()
    program = program_of(case, capability, compile_with=lambda build: replace(builds.numbered(build), dependent=True))
    variant = program.variant([each.shape for each in case.inputs])
    return [(builds[int(launch.kernel.entry)], launch) for launch in variant.launches]


def names_of(case: Case) -> list[str]:
    return [build.function for build, _ in launches_of(case)]


@by_operator
@pytest.mark.parametrize("rows", [1, 32, 257, EARLY_ROWS, EARLY_ROWS + 1, 16384])
def test_the_norm_has_no_launch_of_its_own(operator: str, rows: int) -> None:
    quant = "_quant" if "Quant" in operator else ""
    made = launches_of(case_of(operator, rows))
    names = [build.function for build, _ in made]
    own = names_of(moe_experts_case(EXPERTS_OF[operator], rows, WIDTH, WIDTH))
    assert names[-1] == f"moe_combine_norm{quant}"
    assert set(names[:-1]) - {"moe_rank", "moe_number", "moe_offset"} == set(own[:-1]) - {"moe_rank", "moe_number", "moe_offset"}
    assert {launch.kernel.dependent for _, launch in made} == {rows <= EARLY_ROWS}


@by_operator
@pytest.mark.parametrize(("capability", "rows"), product(CAPABILITIES, [1, 64, 1000, 16384]))
def test_the_norm_is_cut_as_by_itself(operator: str, capability: str, rows: int) -> None:
    ((norm, alone),) = launches_of(NORMS[norm_of(operator)](rows, WIDTH), capability)
    *_, (build, launch) = launches_of(moe_experts_norm_case(operator, rows, WIDTH, WIDTH), capability)
    assert dict(build.constants) == {**norm.constants, "SLOTS": SLOTS}
    assert (build.warps, build.registers, launch.grid) == (norm.warps, norm.registers, alone.grid)


def test_another_tile_of_the_norm_is_used_from_its_own_rows_on() -> None:
    tiles = committed_tiles()
    case = case_of(ROW, 100)
    entries = [each for each in tiles.entries if each.family == "rms_norm_quant" and each.shape == (WIDTH,)]
    tiles = tiles.with_entries([replace(entries[0], capability="9.0", rows=16, tile=RowTile(2, 256, 2))])
    program = program_of(case, "9.0", tiles, lambda build: Kernel(b"-", f"{build.function} {build.warps}", build.warps, 0, 0))
    for rows, kernel in ((16, "moe_combine_norm_quant 2"), (32, "moe_combine_norm_quant 2"), (33, "moe_combine_norm_quant 4")):
        shapes = [(rows, *each.shape[1:]) if 0 in each.dynamic else each.shape for each in case.inputs]
        assert program.variant(shapes).launches[-1].kernel.entry == kernel


@pytest.mark.parametrize("rows", [32, 16384])
def test_the_sum_is_the_first_output_and_the_norm_follows_it(rows: int) -> None:
    case = moe_experts_norm_case(ROW, rows, WIDTH, WIDTH)
    program = program_of(case, "9.0", compile_with=named)
    shapes = [each.shape for each in case.inputs]
    assert [each.dtype for each in program.outputs] == ["float16", "float8_e4m3fn", "float32", "float16"]
    assert program.output_shapes(shapes) == ((rows, WIDTH), (rows, WIDTH), (rows, 1), (rows, WIDTH))
    *_, last = program.variant(shapes).launches
    weight = Input(len(case.inputs) - 1)
    assert last.arguments[3:8] == (Output(0), weight, Output(1), Output(2), Output(3))


@by_operator
def test_a_norm_that_nobody_reads_is_no_output(operator: str) -> None:
    case = case_of(operator, 8)
    program = program_of(case, "9.0", compile_with=named)
    codes = {"RmsNorm": ["float16"], "RmsNormQuantTensor": ["float8_e4m3fn"], "RmsNormQuantRow": ["float8_e4m3fn", "float32"]}
    assert [each.dtype for each in program.outputs] == ["float16", *codes[norm_of(operator)]]
    *_, (build, _) = launches_of(case)
    assert build.constants.get("STORE_NORM", True) == (norm_of(operator) == "RmsNorm")


def test_no_tokens_launch_no_rows() -> None:
    case = case_of(ROW, 1)
    program = program_of(case, "9.0", compile_with=named)
    shapes = [(0, *each.shape[1:]) if 0 in each.dynamic else each.shape for each in case.inputs]
    assert 0 in evaluated(program.variant(shapes).launches[-1].grid, shapes)


def floating_point(kernel: Kernel, folder: Path) -> Counter[str]:
    """Instructions that decide a norm's bits: products, roots and reciprocals, exchanges between lanes, codes; and additions."""
    cubin = folder / f"{kernel.entry}.cubin"
    cubin.write_bytes(kernel.cubin)
    text = subprocess.run([triton.knobs.nvidia.nvdisasm.path, "-c", cubin], capture_output=True, text=True, check=True).stdout
    return Counter(re.findall(r"\b(FFMA|FMUL|FADD|MUFU\.\w+|SHFL\.\w+|F2FP\.\w*E4M3\w*)", text))


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("operator", ["MoeExpertsRmsNorm", "MoeExpertsFp8TensorRmsNormQuantTensor", ROW])
def test_the_fused_kernel_computes_the_norm_in_the_layout_of_the_part(cubins: Path, tmp_path: Path, operator: str, capability: str) -> None:
    """In another layout squares would be summed in another order, and some bits would differ from those of the parts."""
    ((norm, _),) = launches_of(NORMS[norm_of(operator)](64, WIDTH), capability)
    *_, (fused, _) = launches_of(moe_experts_norm_case(operator, 64, WIDTH, WIDTH), capability)
    kernels = [compiled(build, cubins) for build in (norm, fused)]
    alone, together = (floating_point(kernel, tmp_path) for kernel in kernels)
    of_lane = -(-WIDTH // int(norm.constants["CHUNK"])) * int(norm.constants["CHUNK"]) // (32 * norm.warps)
    assert alone["FFMA"] > of_lane
    assert together - alone == {"FADD": of_lane * (SLOTS + 1)}, "a token's rows and its residual"
    assert alone - together == {}
    assert kernels[1].shared_bytes <= MAX_SHARED[capability]
    assert kernels[1].dependent == (capability != "8.9")


@pytest.mark.parametrize(
    ("operator", "number", "changes", "message"),
    [
        (ROW, 9, {"dtype": "float8_e4m3fn"}, "input 9 is float8_e4m3fn, must be float16 or float32"),
        (ROW, 9, {"shape": (64,)}, "the last dimension of input 9 is 64, must be 128"),
        (ROW, 3, {"shape": (55,)}, r"gate_up_scale is \[55\]"),
        ("MoeExpertsFp8TensorRmsNormQuantTensor", 11, {"dtype": "float16"}, "input 11 is float16, must be float32"),
        ("MoeExpertsFp8TensorRmsNormQuantTensor", 11, {"shape": (128,)}, "the last dimension of input 11 is 128, must be 1"),
        ("MoeExpertsRmsNorm", 6, {"shape": (None,)}, "dimension -1 of input 6 is dynamic"),
    ],
)
def test_what_is_no_norm_is_refused(operator: str, number: int, changes: dict, message: str) -> None:
    node = moe_experts_norm_case(operator, 8, 128, 128).node("9.0", compile_with=named)
    types: list[InputType] = list(node.inputs)
    types[number] = replace(types[number], **changes)
    with pytest.raises(BuildError, match=message) as caught:
        moe_experts_norm_program(replace(node, inputs=tuple(types)))
    assert caught.value.where == operator


@pytest.mark.parametrize("missing", ["epsilon", "experts"])
def test_attributes_are_needed(missing: str) -> None:
    node = moe_experts_norm_case(ROW, 8, 128, 128).node("9.0", compile_with=named)
    attributes = {name: value for name, value in node.attributes.items() if name != missing}
    with pytest.raises(BuildError, match=f"the attribute {missing} is missing"):
        moe_experts_norm_program(replace(node, attributes=attributes))


def test_a_node_without_a_norm_is_refused() -> None:
    node = moe_experts_norm_case(ROW, 8, 128, 128).node("9.0", compile_with=named)
    with pytest.raises(BuildError, match="it has 9 inputs, needs 10"):
        moe_experts_norm_program(replace(node, inputs=node.inputs[:-1]))
