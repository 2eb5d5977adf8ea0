"""BeamStep's kernels without a GPU: exact selection in the interpreter, sizes, cubins for every compute capability, refusals."""

from __future__ import annotations

import pytest
from onerec_trt.core.errors import BuildError
from onerec_trt.operators.kernels.beam_select import MAX_KEYS
from onerec_trt.operators.kernels.beam_step import MAX_WIDTH, BeamShape, beam_step_program
from onerec_trt.operators.launch.compile import MAX_SHARED, Build, compiled
from onerec_trt.operators.launch.encoding import encode
from onerec_trt.operators.launch.node import Node
from onerec_trt.operators.launch.program import InputType, Kernel, Program, evaluated
from onerec_trt.operators.launch.tiles import CAPABILITIES

from .uncompiled import named

NORMALIZER_ERROR = 2e-6  # nat; sums of up to 3000 exponentials in FP32, beside FP64
SHAPES = (
    *((1, 8192, 1), (1, 8192, 512), (512, 8192, 512), (128, 8192, 256), (1024, 8192, 1024), (1024, 65536, 1024)),
    *((1, 32, 32), (7, 33, 130), (16, 129, 64), (1000, 9, 1000), (3, 1000, MAX_WIDTH)),
)
INTERPRETED = "interpreted_beam_step.py"


def test_the_selection_is_the_stable_sort_of_its_own_totals(interpreted):
    """Ties, all equal, -inf, NaN rows and odd scores included."""
    assert len(interpreted["outcomes"]) > 50
    assert [each for each in interpreted["outcomes"] if any(each["unequal"])] == []


def test_normalizers_are_those_of_the_logits(interpreted):
    assert [each for each in interpreted["outcomes"] if each["error"] > NORMALIZER_ERROR or not each["nan_agrees"]] == []


def test_a_bad_request_moves_no_bit_of_its_neighbors(interpreted):
    assert interpreted["neighbors_moved"] is False


def node(rows: int | None, vocabulary: int, width: int | None, capability: str = "9.0", compile_with=None, dtype="float16") -> Node:
    inputs = (InputType(dtype, (None, vocabulary)), InputType("float32", (None, rows)))
    attributes = {} if width is None else {"width": width}
    return Node("BeamStep", inputs, attributes, capability, compile=compile_with or named)


@pytest.mark.parametrize("sizes", SHAPES, ids=str)
def test_pieces_hold_whatever_is_kept(sizes):
    """Groups cover the tiles of a row, tiles the codebook, and each selection has enough keys for what it keeps."""
    shape = BeamShape(*sizes)
    assert shape.groups * shape.span >= shape.tiles > (shape.groups - 1) * shape.span
    assert shape.tiles * 128 >= shape.vocabulary > (shape.tiles - 1) * 128
    assert shape.rows * shape.groups <= shape.sizes[0]
    assert max(shape.sizes) <= MAX_KEYS
    for kept, size in zip((*shape.kept, shape.width), shape.sizes, strict=True):
        assert kept <= min(size, shape.width)


def test_four_launches_in_order():
    program = beam_step_program(node(512, 8192, 512))
    shapes = [(32 * 512, 8192), (32, 512)]
    launches = program.variant(shapes).launches
    assert [each.kernel.entry for each in launches] == ["beam_partials", "beam_totals", "beam_pick", "beam_finish"]
    assert evaluated(launches[2].grid, shapes) == (32, 1, 1)
    assert program.output_shapes(shapes) == ((32, 512),) * 3
    assert not any(buffer.clear for buffer in program.scratch)
    assert encode(program)


def test_no_requests_launch_nothing():
    program = beam_step_program(node(512, 8192, 512))
    shapes = [(0, 8192), (0, 512)]
    assert all(0 in evaluated(each.grid, shapes) for each in program.variant(shapes).launches)


@pytest.mark.parametrize(("rows", "vocabulary", "width"), [(1024, 262144, 1024), (3, 1000, MAX_WIDTH + 1)])
def test_what_no_selection_can_hold_is_built_natively(rows, vocabulary, width):
    assert beam_step_program(node(rows, vocabulary, width)) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((5, 8, 41), "cannot keep 41 of 40 candidates"),
        ((5, 8, 0), "cannot keep 0 of 40 candidates"),
        ((5, 8, None), "width is missing"),
        ((None, 8, 4), "dimension 1 of input 1 is dynamic"),
    ],
)
def test_what_is_no_beam_step_is_refused(arguments, message):
    with pytest.raises(BuildError, match=message) as caught:
        beam_step_program(node(*arguments))
    assert caught.value.where == "BeamStep"


def test_logits_of_another_type_are_refused():
    with pytest.raises(BuildError, match="input 0 is float32, must be float16"):
        beam_step_program(node(5, 8, 4, dtype="float32"))


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("sizes", [(512, 8192, 512), (7, 33, 130)], ids=str)
def test_every_compute_capability(cubins, capability, sizes):
    def compile_here(build: Build) -> Kernel:
        return compiled(build, cubins)

    program = beam_step_program(node(*sizes, capability=capability, compile_with=compile_here))
    assert isinstance(program, Program)
    for launch in program.variants[0].launches:
        assert launch.kernel.cubin.startswith(b"\x7fELF")
        assert launch.kernel.shared_bytes <= MAX_SHARED[capability]
