"""The kernels that follow a catalogue, without a GPU: launches, cubins for every compute capability, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from onerec_trt.core.errors import BuildError
from onerec_trt.operators.kernels.beam_step_items import beam_step_items_program
from onerec_trt.operators.kernels.beam_step_items_cases import items_case, small_world
from onerec_trt.operators.launch.case import Case
from onerec_trt.operators.launch.compile import MAX_SHARED, compiled
from onerec_trt.operators.launch.encoding import encode
from onerec_trt.operators.launch.program import InputType
from onerec_trt.operators.launch.tiles import CAPABILITIES

from .uncompiled import named

CODEBOOK, REQUESTS, ROWS, WIDTH = 33, 2, 5, 20


def case_of(level: int) -> Case:
    return items_case(level, small_world(CODEBOOK, 60, REQUESTS), 1 if level == 1 else ROWS, WIDTH)


@pytest.mark.parametrize(
    ("level", "first"), [(1, ("items_partials_1",)), (2, ("items_rules_2", "items_partials_2")), (3, ("items_partials_3",))]
)
def test_the_mask_is_made_in_the_pass_over_the_logits(level: int, first: tuple[str, ...]) -> None:
    case = case_of(level)
    program = beam_step_items_program(case.node("9.0", compile_with=named))
    assert program is not None
    launches = program.variant([each.shape for each in case.inputs]).launches
    assert [each.kernel.entry for each in launches] == [*first, "beam_totals", "beam_pick", "beam_finish"]
    assert program.output_shapes([each.shape for each in case.inputs]) == ((REQUESTS, WIDTH),) * 3
    assert encode(program)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("level", [2, 3])
def test_every_compute_capability(tmp_path: Path, level: int, capability: str) -> None:
    program = beam_step_items_program(case_of(level).node(capability, compile_with=lambda build: compiled(build, tmp_path)))
    assert program is not None
    for launch in program.variants[0].launches:
        assert launch.kernel.cubin.startswith(b"\x7fELF")
        assert launch.kernel.shared_bytes <= MAX_SHARED[capability]


def test_what_does_not_follow_a_catalogue_is_refused() -> None:
    node = case_of(3).node("9.0", compile_with=named)
    with pytest.raises(BuildError, match="has 10 inputs, needs 11"):
        beam_step_items_program(replace(node, inputs=node.inputs[:-1]))
    with pytest.raises(BuildError, match="input 2 is int32, must be int64"):
        beam_step_items_program(replace(node, inputs=(*node.inputs[:2], InputType("int32", (None, ROWS)), *node.inputs[3:])))
    with pytest.raises(BuildError, match="not a bit for each pair"):
        beam_step_items_program(replace(node, inputs=(*node.inputs[:4], InputType("int32", (CODEBOOK, 3)), *node.inputs[5:])))
