"""Beam steps that follow a catalogue, from their ahead-of-time cubins: against PyTorch, the ONNX function, and the catalogue itself."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from onerec_trt.models.catalogue_index import index_in_memory
from onerec_trt.operators.beam_step_items import constrained_beams, mask_of
from onerec_trt.operators.kernels import registry
from onerec_trt.operators.kernels.beam_step_items_cases import EXCLUDED, World, items_case, items_cases, random_catalogue, small_world
from onerec_trt.operators.launch.case import Case
from onerec_trt.operators.launch.launch import bind, new_outputs, new_scratch
from onerec_trt.operators.launch.program import Program
from onerec_trt.operators.registry import OPERATORS
from onerec_trt.operators.single_node import as_arrays, feed, single_node_model
from onerec_trt.runtime.item_rules import ItemRules
from onerec_trt.runtime.onnxruntime_runner import OnnxRuntimeRunner
from onerec_trt.tools.tuning.parity import this_capability
from torch import Tensor

from .repeats import captured, repeated, same_bits

LEVELS = (1, 2, 3)
CODEBOOK, ITEMS, REQUESTS, ROWS, WIDTH = 8192, 300_000, 4, 256, 512
CLASSES = 80
RUNS = 1000
NAN, INFINITY = float("nan"), float("inf")


def program_of(case: Case) -> Program:
    return registry.program_of(case, this_capability())


def run_once(program: Program, inputs: list[Tensor]) -> list[Tensor]:
    outputs, scratch = new_outputs(program, inputs), new_scratch(program, inputs)
    for each in (*outputs, *scratch):
        each.view(torch.uint8).fill_(0x55)
    bind(program, inputs, outputs, scratch)()
    return outputs


def on_gpu(inputs: list[Tensor]) -> list[Tensor]:
    return [each.cuda() for each in inputs]


@cache
def full_world() -> World:
    """A codebook of the published size; requests without rules, with seen items, with categories, with all of them and fewer beams."""
    catalogue = random_catalogue(CODEBOOK, ITEMS, seed=5)
    seen = tuple(catalogue.ids_n[:EXCLUDED].tolist())
    rules = (ItemRules(), ItemRules(excluded=seen), ItemRules(required=3), ItemRules(excluded=seen, forbidden=1, beams=100))
    return World(index_in_memory(catalogue, CODEBOOK, CLASSES), rules)


@cache
def full_case(level: int) -> Case:
    return items_case(level, full_world(), 1 if level == 1 else ROWS, WIDTH)


def hold(case: Case, inputs: list[Tensor], onnx: bool) -> None:
    """The kernel is the reference; with `onnx` also the function that travels in the file."""
    operator = OPERATORS[case.operator]
    actual = [each.cpu() for each in run_once(program_of(case), on_gpu(inputs))]
    given = as_arrays(inputs)
    expected = [as_arrays(list(operator.reference(*inputs, **case.attributes)))]
    if onnx:
        model = single_node_model(operator, inputs, case.attributes)
        expected.append(list(OnnxRuntimeRunner(model, threads=1)(feed(inputs)).values()))
    for each in expected:
        assert operator.compare(as_arrays(actual), each, given, case.attributes) <= operator.threshold


@pytest.mark.parametrize("level", LEVELS)
def test_small_catalogues_beside_the_reference_and_the_function(level):
    for trial in items_cases(level).ragged():
        torch.manual_seed(0)
        hold(trial.case, list(trial.inputs) or trial.case.tensors("cpu"), onnx=True)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", ["random", "ties", "rare", "NaN rows"])
def test_a_catalogue_of_full_width_beside_the_reference(level, kind):
    torch.manual_seed(level)
    case = full_case(level)
    logits, *others = case.tensors("cpu")
    if kind == "ties":
        logits, others[0] = logits.mul(0.5).round(), others[0].round()
    elif kind == "rare":
        logits = logits.masked_fill(torch.rand_like(logits, dtype=torch.float32) < 0.9, -INFINITY)
    elif kind == "NaN rows":
        logits[::3, 0], logits[1::7] = NAN, INFINITY
    hold(case, [logits, *others], onnx=False)


@pytest.mark.parametrize("level", LEVELS)
def test_every_beam_begins_an_item_and_nothing_better_is_left_out(level):
    """Without rules: as many candidates as there are, and what is found is what the reference finds of the same totals."""
    world = World(full_world().index, (ItemRules(),) * REQUESTS, CLASSES)
    case = items_case(level, world, 1 if level == 1 else ROWS, WIDTH)
    inputs = case.tensors("cpu")
    best, parent, token = (each.cpu() for each in run_once(program_of(case), on_gpu(inputs)))
    found = token >= 0
    prefix = [each.gather(1, parent) for each in inputs[2 : 1 + level]]
    codes = torch.stack([*prefix, token], -1)[found].numpy()
    assert world.index.begins_item(codes).all()
    mask = mask_of(inputs)
    candidates = mask.flatten(1).sum(1).clamp(max=WIDTH)
    assert torch.equal(found.sum(1), candidates)
    expected, _, _ = constrained_beams(inputs[0], inputs[1], mask, inputs[-2 if level < 3 else -3], WIDTH)
    assert np.allclose(best.numpy(), expected.numpy(), rtol=0, atol=1e-5)
    assert (best.diff(dim=1)[found[:, 1:]] <= 0).all()


@pytest.mark.parametrize("level", LEVELS)
def test_same_input_same_bits_also_from_a_graph(level):
    """Atomics come in another order every time."""
    case = full_case(level)
    program, inputs = program_of(case), on_gpu(case.tensors("cpu"))
    expected = run_once(program, inputs)
    assert all(same_bits(outputs, expected) for outputs in repeated(program, inputs, RUNS))
    assert same_bits(captured(program, inputs), expected)


@pytest.mark.parametrize("level", LEVELS)
def test_a_request_is_the_same_alone_and_beside_a_bad_one(level):
    case = full_case(level)
    inputs = on_gpu(case.tensors("cpu"))
    rows = case.rows // REQUESTS
    together = run_once(program_of(case), inputs)
    bad = inputs[0].clone()
    bad[:rows] = NAN
    beside = run_once(program_of(case), [bad, *inputs[1:]])
    for request in (1, REQUESTS - 1):
        alone = [
            (x[request * rows : (request + 1) * rows] if number == 0 else x[request : request + 1]).contiguous() if 0 in each.dynamic else x
            for number, (each, x) in enumerate(zip(case.inputs, inputs, strict=True))
        ]
        for single, among, other in zip(run_once(program_of(case), alone), together, beside, strict=True):
            assert torch.equal(single[0], among[request])
            assert torch.equal(other[request], among[request])


def test_a_request_without_any_allowed_item_finds_none():
    index = small_world(32, 60, 1).index
    world = World(index, (ItemRules(required=1 << 40), ItemRules()))
    for level in LEVELS:
        case = items_case(level, world, 1 if level == 1 else 6, 20)
        best, parent, token = run_once(program_of(case), on_gpu(case.tensors("cpu")))
        assert (best[0] == -INFINITY).all()
        assert (parent[0] == 0).all()
        assert (token[0] == -1).all()
        assert (token[1] >= 0).any()
