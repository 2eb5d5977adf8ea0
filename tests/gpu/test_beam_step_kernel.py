"""BeamStep from its ahead-of-time cubins: exact on its own totals, against PyTorch, equal bits over runs, beside bad rows and requests."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from onerec_trt.models.ordering import stable_topk
from onerec_trt.operators.kernels import registry
from onerec_trt.operators.kernels.beam_step_cases import beam_step_case
from onerec_trt.operators.launch.launch import bind, new_outputs, new_scratch
from onerec_trt.operators.launch.program import Program
from onerec_trt.operators.operator import Attributes
from onerec_trt.operators.registry import OPERATORS
from onerec_trt.operators.single_node import as_arrays
from onerec_trt.tools.tuning.parity import this_capability
from torch import Tensor

from .repeats import captured, repeated, same_bits

NORMALIZER = 2  # number of its scratch buffer
NORMALIZER_ERROR = 3e-6  # nat, beside FP64
RUNS = 1000
NAN, INFINITY = float("nan"), float("inf")
SIZES = (
    *((1, 32, 1), (1, 32, 32), (1, 8192, 1), (1, 8192, 128), (1, 8192, 512), (128, 8192, 256), (256, 8192, 512)),
    *((512, 8192, 512), (1024, 8192, 1024), (1000, 9, 1000), (37, 130, 700), (5, 65536, 1024), (16, 33, 528)),
)  # beams, codebook, width
INPUTS = ("random", "ties", "equal", "rare", "NaN rows", "odd scores")


@cache
def program_of(beam: int, codebook: int, width: int) -> Program:
    return registry.program_of(beam_step_case(2, beam, codebook, width), this_capability())


def run_once(program: Program, inputs: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Outputs, and the normalizers that the kernels found."""
    outputs, scratch = new_outputs(program, inputs), new_scratch(program, inputs)
    for each in (*outputs, *scratch):
        each.view(torch.uint8).fill_(0x55)
    bind(program, inputs, outputs, scratch)()
    return outputs, scratch[NORMALIZER].view(torch.float32)


def inputs_of(kind: str, requests: int, beam: int, codebook: int) -> list[Tensor]:
    torch.manual_seed(len(kind))
    logits = torch.randn(requests * beam, codebook, device="cuda").mul(3).half()
    scores = torch.rand(requests, beam, device="cuda").mul_(-8)
    if kind == "ties":
        return [logits.mul(0.5).round(), scores.round()]
    if kind == "equal":
        return [torch.zeros_like(logits), torch.zeros_like(scores)]
    if kind == "NaN rows":
        logits[::3, 0], logits[1::7] = NAN, INFINITY
    if kind in ("rare", "odd scores"):
        logits.masked_fill_(torch.rand_like(logits, dtype=torch.float32) < 0.95, -INFINITY)
    if kind == "odd scores":
        scores[0, ::2], scores[-1, 0], scores[0, -1] = -INFINITY, NAN, INFINITY
    return [logits, scores]


def unequal(outputs: list[Tensor], normalizer: Tensor, inputs: list[Tensor], width: int) -> int:
    """Places that are not those of the stable sort of (logit - normalizer) + score."""
    logits, scores = inputs
    requests, codebook = len(scores), logits.shape[1]
    count = 0
    for request in range(requests):
        rows = slice(request * scores.shape[1], (request + 1) * scores.shape[1])
        total = (logits[rows].float() - normalizer[rows, None]) + scores[request, :, None]
        best, flat = stable_topk(total.flatten(), width)
        for actual, expected in zip(outputs, (best, flat // codebook, flat % codebook), strict=True):
            count += int((~torch.isclose(actual[request], expected, rtol=0, atol=0, equal_nan=True)).sum())
    return count


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("kind", INPUTS)
def test_the_selection_is_the_stable_sort_of_its_own_totals(sizes, kind):
    beam, codebook, width = sizes
    program = program_of(*sizes)
    for requests in (1, 3) if beam * codebook > 1 << 20 else (1, 5, 32):
        inputs = inputs_of(kind, requests, beam, codebook)
        outputs, normalizer = run_once(program, inputs)
        assert unequal(outputs, normalizer, inputs, width) == 0
        exact = inputs[0].double().logsumexp(-1).float()
        assert torch.equal(normalizer.isnan(), ~exact.isfinite())
        assert (normalizer - exact)[exact.isfinite()].abs().amax().item() <= NORMALIZER_ERROR if exact.isfinite().any() else True


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("kind", ["random", "NaN rows"])
def test_it_is_its_reference(sizes, kind):
    case = beam_step_case(2, *sizes)
    inputs = inputs_of(kind, *((2, *sizes[:2])))
    attributes: Attributes = case.attributes
    operator = OPERATORS["BeamStep"]
    given = [each.cpu() for each in inputs]
    actual, _ = run_once(program_of(*sizes), inputs)
    arrays = [as_arrays(each) for each in ([out.cpu() for out in actual], operator.reference(*given, **attributes), given)]
    assert operator.compare(*arrays, attributes) <= operator.threshold


def test_a_batch_of_32():
    inputs = inputs_of("ties", 32, 512, 8192)
    outputs, normalizer = run_once(program_of(512, 8192, 512), inputs)
    assert unequal(outputs, normalizer, inputs, 512) == 0


@pytest.mark.parametrize("kind", ["random", "ties"])
def test_same_input_same_bits(kind):
    program, inputs = program_of(512, 8192, 512), inputs_of(kind, 8, 512, 8192)
    expected, _ = run_once(program, inputs)
    assert all(same_bits(outputs, expected) for outputs in repeated(program, inputs, RUNS))


def test_a_captured_launch_is_the_launch():
    program, inputs = program_of(128, 8192, 256), inputs_of("ties", 5, 128, 8192)
    expected, _ = run_once(program, inputs)
    assert same_bits(captured(program, inputs), expected)


def test_a_request_has_the_same_bits_in_every_batch():
    program, inputs = program_of(128, 8192, 256), inputs_of("random", 32, 128, 8192)
    together, _ = run_once(program, inputs)
    for request in (0, 7, 31):
        alone, _ = run_once(
            program, [inputs[0][request * 128 : (request + 1) * 128].contiguous(), inputs[1][request : request + 1].contiguous()]
        )
        assert all(torch.equal(a[0], b[request]) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("fill", [NAN, INFINITY, -INFINITY])
def test_a_bad_request_stays_alone_and_a_bad_row_takes_no_place(fill):
    program, inputs = program_of(128, 8192, 256), inputs_of("random", 5, 128, 8192)
    clean, _ = run_once(program, inputs)
    bad = inputs[0].clone()
    bad[2 * 128 : 3 * 128] = fill
    bad[4 * 128] = fill
    dirty, _ = run_once(program, [bad, inputs[1]])
    for a, b in zip(clean, dirty, strict=True):
        assert torch.equal(a[[0, 1, 3]], b[[0, 1, 3]])
    assert dirty[0][2].isnan().all()
    assert dirty[1][2].tolist() == [0] * 256
    assert dirty[2][2].tolist() == list(range(256))
    assert dirty[0][4].isfinite().all()
    assert (dirty[1][4] != 0).all()
