"""Kernel factories: outputs of their programs, variants by row count, odd strides, and what they refuse."""

from __future__ import annotations

from dataclasses import replace

import pytest
from onerec_trt.core.errors import BuildError
from onerec_trt.operators.kernels.registry import FACTORIES
from onerec_trt.operators.launch.compile import Build
from onerec_trt.operators.launch.node import EARLY_ROWS, Node
from onerec_trt.operators.launch.program import InputType, Int32, Kernel, Program, evaluated

from .uncompiled import Builds, named

X, WEIGHT = InputType("float16", (None, 1408)), InputType("float16", (1408,))
CODES, ROW_SCALE = InputType("float8_e4m3fn", (None, 1408)), InputType("float32", (None, 1))
CONTEXT, LENGTHS = InputType("float16", (None, 11, None, 128)), InputType("int64", (None,))
EPSILON = {"epsilon": 1e-6}


asked = Builds()


@pytest.fixture(autouse=True)
def builds() -> Builds:
    """What would be compiled."""
    asked.clear()
    return asked


def program_of(operator: str, *inputs: InputType, read: tuple[bool, ...] = (), **attributes: float) -> Program:
    return FACTORIES[operator].program(Node(operator, inputs, attributes, "9.0", read, compile=asked.named))


def fp8_linear(n: int, k: int, promotion: int = 0) -> Program:
    codes = InputType("float8_e4m3fn", (None, k))
    weight = (InputType("float8_e4m3fn", (n, k)), InputType("float32", (n,)))
    return program_of("Fp8Linear", codes, ROW_SCALE, *weight, promotion=promotion)


def test_a_norm_that_nobody_reads_is_no_output():
    assert len(program_of("RmsNormQuantRow", X, WEIGHT, **EPSILON).outputs) == 3
    assert len(program_of("RmsNormQuantRow", X, WEIGHT, read=(True, True, False), **EPSILON).outputs) == 2


def test_kernels_start_early_where_rows_are_few():
    def waiting(build: Build) -> Kernel:
        return replace(named(build), dependent=True)

    program = FACTORIES["RmsNorm"].program(Node("RmsNorm", (X, WEIGHT), EPSILON, "9.0", compile=waiting))
    program.check()
    for rows in (1, 64, EARLY_ROWS, EARLY_ROWS + 1, 16384):
        (launch,) = program.variant([(rows, 1408), (1408,)]).launches
        assert launch.kernel.dependent == (rows <= EARLY_ROWS)
    assert len(program.variants) == 2 * len(program_of("RmsNorm", X, WEIGHT, **EPSILON).variants)


def test_block_codes_are_padded_to_whole_blocks():
    program = program_of("RmsNormQuantBlock", InputType("float16", (None, 200)), InputType("float16", (200,)), **EPSILON)
    assert program.output_shapes([(3, 200), (200,)]) == ((3, 256), (3, 2), (3, 200))


def test_leading_dimensions_are_rows(builds):
    program = program_of("QuantRow", InputType("float16", (None, None, 64)))
    assert program.output_shapes([(2, 3, 64)]) == ((2, 3, 64), (2, 3, 1))
    grids = [evaluated(v.launches[0].grid, [(200, 300, 64)]) for v in program.variants]
    assert grids[-1][0] * int(builds[-1].constants["ROWS"]) == 60000


def test_every_row_count_has_a_variant_and_few_rows_a_small_tile(builds):
    program = fp8_linear(5632, 1408)
    tiles = [build.constants["M_TILE"] for build in builds]
    assert tiles == sorted(tiles)
    assert len(tiles) > 2
    for rows in (1, 16, 100, 1000, 16500):
        assert program.variant([(rows, 1408), (rows, 1), (5632, 1408), (5632,)])


def test_rows_of_zero_launch_nothing():
    program = fp8_linear(5632, 1408)
    shapes = [(0, 1408), (0, 1), (5632, 1408), (5632,)]
    assert evaluated(program.variant(shapes).launches[0].grid, shapes)[0] == 0


def test_odd_strides_go_without_descriptors(builds):
    fp8_linear(72, 200)
    assert {build.function for build in builds} == {"gemm_few", "gemm"}
    builds.clear()
    fp8_linear(64, 640)
    assert "gemm_sm90" in {build.function for build in builds}


def test_promotion_in_another_interval_is_refused():
    with pytest.raises(BuildError, match="promotion every 100 channels"):
        fp8_linear(64, 640, promotion=100)


def context_attention(rows: int, heads: int, groups: int, head: int = 128) -> Program:
    context = InputType("float16", (None, groups, None, head))
    return program_of("ContextAttention", InputType("float16", (None, heads * head)), context, context, LENGTHS, rows=rows)


def test_heads_that_share_keys_fill_a_tile_together(builds):
    for rows, groups in ((1, 14), (1, 2), (512, 14), (512, 2)):
        program = context_attention(rows, 14, groups, head=48)
        tile = int(builds[0].constants["M_TILE"])
        blocks = -(-rows * 14 // groups // tile)
        shapes = [(70 * rows, 14 * 48), (70, groups, 700, 48), (70, groups, 700, 48), (70,)]
        (launch,) = program.variant(shapes).launches
        assert evaluated(launch.grid, shapes) == (70 * groups * blocks, 1, 1)
        assert program.output_shapes(shapes) == ((70 * rows, 14 * 48),)
        assert (tile == 16) == (rows == 1)
        builds.clear()


def test_contexts_of_one_row_are_in_parts_as_long_as_whole_ones_leave_multiprocessors_idle(builds):
    program = context_attention(1, 14, 14)
    assert [build.function for build in builds] == ["attention", "attention_part", "attention_merge"]
    for requests, tokens, names in (
        (1, 1, ["attention_part", "attention_merge"]),
        (9, 700, ["attention_part", "attention_merge"]),
        (10, 700, ["attention"]),
        (10, 1, ["attention"]),
    ):
        shapes = [(requests, 14 * 128), (requests, 14, tokens, 128), (requests, 14, tokens, 128), (requests,)]
        launches = program.variant(shapes).launches
        assert [launch.kernel.entry for launch in launches] == names
        parts = -(-tokens // 128) if requests == 9 else 1
        assert evaluated(launches[0].grid, shapes) == (requests * 14, parts, 1)
    shapes = [(100, 14 * 128), (100, 14, 700, 128), (100, 14, 700, 128), (100,)]
    room = 9 * 6 * 14 * 4  # nine requests of six parts, whatever the batch
    assert evaluated([buffer.bytes for buffer in program.scratch], shapes) == (room * 128, room, room)


def test_a_warp_specialized_attention_has_tiles_of_one_warpgroup_as_long_as_all_run_at_once(builds):
    program = context_attention(512, 14, 2)
    assert [(build.function, build.constants["WARPGROUPS"]) for build in builds] == [("attention_sm90", 2), ("attention_sm90", 1)]
    assert len(program.variants) == 2
    for requests, variant, ctas in ((1, 0, 14 * 8), (2, 1, 2 * 14 * 4), (3, 1, 132)):
        shapes = [(requests * 512, 14 * 128), (requests, 2, 700, 128), (requests, 2, 700, 128), (requests,)]
        assert program.variant(shapes) is program.variants[variant]
        (launch,) = program.variant(shapes).launches
        assert evaluated(launch.grid, shapes) == (ctas, 1, 1)
        assert evaluated([a.value for a in launch.arguments if isinstance(a, Int32)], shapes) == (requests, 700)


def context_attention_fp8(rows: int, heads: int, groups: int, head: int = 128, tokens: int = 128) -> Program:
    keys, values = (InputType("float8_e4m3fn", (None, groups, None, *block)) for block in ((tokens, head), (head, tokens)))
    query, scale = InputType("float16", (None, heads * head)), InputType("float32", (1,))
    return program_of("ContextAttentionFp8", query, keys, scale, values, scale, LENGTHS, rows=rows)


def test_fp8_attention_has_the_tiles_of_attention(builds):
    program = context_attention_fp8(512, 14, 2)
    assert [(build.function, build.constants["WARPGROUPS"]) for build in builds] == [("attention_fp8_sm90", 2), ("attention_fp8_sm90", 1)]
    for requests, variant, ctas in ((1, 0, 14 * 8), (2, 1, 2 * 14 * 4), (3, 1, 132)):
        shapes = [(requests * 512, 14 * 128), (requests, 2, 6, 128, 128), (1,), (requests, 2, 6, 128, 128), (1,), (requests,)]
        assert program.variant(shapes) is program.variants[variant]
        (launch,) = program.variant(shapes).launches
        assert evaluated(launch.grid, shapes) == (ctas, 1, 1)
        assert evaluated([a.value for a in launch.arguments if isinstance(a, Int32)], shapes) == (requests, 6)
    builds.clear()
    for rows, head in ((1, 128), (512, 48)):
        context_attention_fp8(rows, 14, 2, head)
    assert {build.function for build in builds} == {"attention_fp8"}


def test_fp8_attention_refuses_other_blocks_of_tokens():
    with pytest.raises(BuildError, match="its inputs do not fit together"):
        context_attention_fp8(4, 2, 2, tokens=64)


@pytest.mark.parametrize(("operator", "block"), [("ContextKeyCodes", (128, 48)), ("ContextValueCodes", (48, 128))])
def test_codes_of_the_context_come_in_blocks_of_tokens(operator, block):
    inputs = (InputType("float16", (None, None, 96)), InputType("float16", (48,)), LENGTHS, InputType("float32", (1,)))
    program = program_of(operator, *inputs, epsilon=1e-6)
    shapes = [(3, 129, 96), (48,), (3,), (1,)]
    assert program.output_shapes(shapes) == ((3, 2, 2, *block),)
    (launch,) = program.variant(shapes).launches
    assert evaluated(launch.grid, shapes) == (3 * 2 * 2, 1, 1)


def test_short_rows_of_a_head_go_without_descriptors(builds):
    context_attention(128, 4, 4, head=4)
    context_attention(128, 4, 4, head=48)
    assert [build.constants["DESCRIPTORS"] for build in builds] == [False, True]
    assert builds[0].constants["HEAD_TILE"] == 16


def test_beams_have_one_cta_each():
    bos = InputType("float16", (None, 192))
    inputs = (InputType("float16", (None, 192)), bos, bos, InputType("int64", (None, 5)))
    program = program_of("BeamSelfAttention2", *inputs, rows=5, heads=2)
    shapes = [(15, 192), (3, 192), (6, 192), (3, 5)]
    (launch,) = program.variant(shapes).launches
    assert evaluated(launch.grid, shapes) == (15, 1, 1)
    assert program.output_shapes(shapes) == ((15, 64),)
    assert evaluated([a.value for a in launch.arguments if isinstance(a, Int32)], shapes) == (5, 2)


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes", "message"),
    [
        ("RmsNorm", (X, WEIGHT), {}, "epsilon is missing"),
        ("RmsNorm", (InputType("float32", (None, 64)), WEIGHT), EPSILON, "input 0 is float32, must be float16"),
        ("RmsNorm", (X,), EPSILON, "it has 1 inputs, needs 2"),
        ("QuantRow", (InputType("float16", (64, None)),), {}, "is dynamic"),
        ("SwiGlu", (InputType("float16", (None, 65)),), {}, "cannot be 65 wide"),
        ("ContextAttention", (X, CONTEXT, CONTEXT, LENGTHS), {}, "rows is missing"),
        ("ContextAttention", (X, CONTEXT, CONTEXT, CODES), {"rows": 1}, "input 3 is float8_e4m3fn, must be int64"),
        ("ContextAttention", (InputType("float16", (None, 1400)), CONTEXT, CONTEXT, LENGTHS), {"rows": 1}, "do not fit together"),
        ("BeamSelfAttention1", (X, X), {"rows": 1, "heads": 10}, "not 3 x 10 heads"),
        ("Linear", (X, InputType("float16", (64, 640))), {}, "do not fit together"),
        ("Fp8Linear", (CODES, ROW_SCALE, InputType("float8_e4m3fn", (64, 1408)), InputType("float32", (64,))), {}, "promotion is missing"),
        (
            "Fp8Linear",
            (CODES, ROW_SCALE, InputType("float8_e4m3fn", (64, 1408)), InputType("float32", (1,))),
            {"promotion": 0},
            "the last dimension of input 3 is 1, must be 64",
        ),
        ("LinearAdd", (X, InputType("float16", (64, 1408)), X), {}, "the last dimension of input 2 is 1408, must be 64"),
        ("RmsNorm", (X, InputType("float16", (64,))), EPSILON, "the last dimension of input 1 is 64, must be 1408"),
        ("RmsNormQuantRow", (X, InputType("float16", (64,))), EPSILON, "the last dimension of input 1 is 64, must be 1408"),
        (
            "BeamSelfAttention1",
            (InputType("float16", (None, 192)), InputType("float16", (None, 96))),
            {"rows": 1, "heads": 2},
            "the last dimension of input 1 is 96, must be 192",
        ),
    ],
)
def test_bad_nodes_are_named(operator, inputs, attributes, message):
    with pytest.raises(BuildError, match=message) as caught:
        program_of(operator, *inputs, **attributes)
    assert caught.value.where == operator
    assert caught.value.hint


def test_a_context_is_stored_head_by_head_and_cut_into_whole_heads(builds):
    chunk, weight = InputType("float16", (None, None, 1408)), InputType("float32", (128,))
    program = program_of("ContextNorm", chunk, weight, LENGTHS, **EPSILON)
    assert program.output_shapes([(3, 20, 1408), (128,), (3,)]) == ((3, 11, 20, 128),)
    heads = evaluated(program.variants[0].launches[0].grid, [(3, 20, 1408), (128,), (3,)])[0] * int(builds[0].constants["ROWS"])
    assert heads >= 3 * 20 * 11
    with pytest.raises(BuildError, match="no whole heads of 100"):
        program_of("ContextNorm", chunk, InputType("float32", (100,)), LENGTHS, **EPSILON)


def test_features_are_placed_in_rows_of_all_pathways(builds):
    features, lengths = InputType("float16", (None, None, 210)), InputType("int64", (None, 3))
    program = program_of("ContextFeatures", features, lengths, width=224)
    shapes = [(3, 20, 210), (3, 3)]
    assert program.output_shapes(shapes) == ((60, 672),)
    (launch,) = program.variant(shapes).launches
    assert evaluated(launch.grid, shapes)[0] * int(builds[0].constants["ROWS"]) >= 60
    assert builds[0].constants["DEPENDENT"], "the product after it starts early"
    with pytest.raises(BuildError, match="210 features do not fit into the 209 columns of a pathway"):
        program_of("ContextFeatures", features, lengths, width=209)
    with pytest.raises(BuildError, match="the 0 columns"):
        program_of("ContextFeatures", features, lengths)
    with pytest.raises(BuildError, match="input 1 is int32, must be int64"):
        program_of("ContextFeatures", features, InputType("int32", (None, 3)), width=224)
