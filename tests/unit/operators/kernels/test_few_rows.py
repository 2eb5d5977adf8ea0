"""Few rows without a GPU: what splits of K and of the context promise in the interpreter, how they are chosen, scratch, refusals."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from onerec_trt.core.errors import BuildError
from onerec_trt.operators.kernels.fp8_linear import fp8_linear_add_case
from onerec_trt.operators.kernels.product import Product
from onerec_trt.operators.kernels.registry import FACTORIES, program_of
from onerec_trt.operators.launch.node import Node
from onerec_trt.operators.launch.program import InputType, Launch, Output, Program, Scratch, evaluated
from onerec_trt.operators.launch.tiles import GemmTile, Tiles

from .uncompiled import named

FEW = GemmTile(16, 16, 128, 1, 8, slices=8)
DOWN = Product("float8_e4m3fn", 1792, 7168, row_scales=True, residual=True)
INTERPRETED = "interpreted_few_rows.py"


@pytest.fixture(scope="module")
def outcomes(interpreted) -> list[dict]:
    return interpreted["products"]


def test_a_request_has_the_bits_it_has_alone_beside_longer_ones(interpreted):
    assert [each["parts"] for each in interpreted["attentions"]] == [10, 10], "two requests have parts without tokens"
    assert [each for each in interpreted["attentions"] if not (each["repeats"] and each["alone"] and each["empty"])] == []


def test_a_split_needs_a_second_launch_only_over_ctas(outcomes):
    assert [each["launches"] for each in outcomes] == [1, 2, 2] * 3


def test_the_same_input_gives_the_same_bits(outcomes):
    assert [each for each in outcomes if not each["repeats"]] == []


def test_a_row_has_the_bits_it_has_alone(outcomes):
    assert [each for each in outcomes if not each["alone"]] == []


def test_a_bad_row_is_bad_and_moves_no_bit_of_others(outcomes):
    assert [each for each in outcomes if each["moves"] or not each["spoils"]] == []


@pytest.mark.parametrize(
    ("k", "tile", "parts"), [(7168, FEW, 1), (14336, FEW, 2), (14336, replace(FEW, parts=3), 3), (7168, replace(FEW, n=64), 3)]
)
def test_parts_are_as_many_as_hold_their_weights(k, tile, parts):
    assert replace(DOWN, k=k).usable(tile).parts == parts


def program(*cuts: tuple[int, GemmTile]) -> Program:
    """Of a node whose table has these tiles, by rows."""
    entries = [entry for rows, tile in cuts for entry in fp8_linear_add_case(rows, 7168, 1792).entries("9.0", tile)]
    return program_of(fp8_linear_add_case(1, 7168, 1792), "9.0", Tiles(tuple(entries)), named)


def launches(of: Program, rows: int) -> tuple[Launch, ...]:
    return of.variant(shapes(rows)).launches


def shapes(rows: int) -> list[tuple[int, ...]]:
    return [(rows, 7168), (rows, 1), (1792, 7168), (1792,), (rows, 1792)]


def test_every_part_of_every_tile_has_a_cta():
    split = program((16, replace(FEW, parts=3)), (1024, GemmTile(64, 64, 128, 4, 4)))
    product, total = launches(split, 17)
    assert [each.kernel.entry for each in (product, total)] == ["gemm_few", "gemm_sum"]
    assert evaluated(product.grid, shapes(17)) == (2 * 112 * 3, 1, 1)
    assert evaluated(total.grid, shapes(17)) == (17 * 7, 1, 1)
    assert (product.arguments[2], total.arguments[:2]) == (Scratch(0), (Scratch(0), Output(0)))
    assert [each.kernel.entry for each in launches(split, 1000)] == ["gemm"]


def test_scratch_is_for_the_rows_that_are_split():
    split = program((16, replace(FEW, parts=3)), (1024, GemmTile(64, 64, 128, 4, 4)))
    (room,) = split.scratch
    assert [evaluated([room.bytes], shapes(rows)) for rows in (1, 128, 16384)] == [(1792 * 12,), (128 * 1792 * 12,), (128 * 1792 * 12,)]
    assert program((16, FEW)).scratch == ()
    (most,) = program((16, replace(FEW, parts=3)), (64, GemmTile(64, 64, 128, 4, 4, parts=2)), (1024, GemmTile(64, 64, 128, 4, 4))).scratch
    assert evaluated([most.bytes], shapes(16384)) == (256 * 1792 * 8,), "that of the rows which need most"
    (unbounded,) = program((16, GemmTile(64, 64, 128, 4, 4, parts=2))).scratch
    assert evaluated([unbounded.bytes], shapes(16384)) == (16384 * 1792 * 8,)


@pytest.mark.parametrize("computed", [2, 3], ids=["weight", "its scale"])
def test_weights_that_a_launch_writes_are_refused(computed):
    """The launch before may be the one that writes them, and a kernel reads them before it is over."""
    case = fp8_linear_add_case(1, 7168, 1792)
    inputs = tuple(InputType(each.dtype, each.shape) for each in case.inputs)
    constant = tuple(index in (2, 3) for index in range(len(inputs)))
    made = partial(Node, case.operator, inputs, case.attributes, "9.0", compile=named)
    assert FACTORIES[case.operator].program(made(constant=constant)) is not None
    without = tuple(each and index != computed for index, each in enumerate(constant))
    with pytest.raises(BuildError, match=f"input {computed} is computed in the graph, must be a constant"):
        FACTORIES[case.operator].program(made(constant=without))


@pytest.mark.parametrize("tile", [GemmTile(128, 128, 128, 5, 12, ctas=132, parts=2), replace(FEW, warps=4)], ids=["persistent", "slices"])
def test_a_cut_without_a_kernel_is_refused(tile):
    with pytest.raises(BuildError, match="no kernel for a product cut as") as caught:
        DOWN.build(tile, "9.0")
    assert "as many slices as warps or none" in caught.value.hint
