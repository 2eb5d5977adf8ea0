"""Fused kernels from their ahead-of-time cubins: against PyTorch, against the bits of their parts, and beside bad requests."""

from __future__ import annotations

import pytest
import torch
from onerec_trt.core.dtypes import of_torch
from onerec_trt.operators.kernels.registry import FACTORIES
from onerec_trt.operators.launch.launch import execute
from onerec_trt.operators.launch.node import Node
from onerec_trt.operators.launch.program import InputType, Program
from onerec_trt.operators.registry import OPERATORS
from onerec_trt.operators.single_node import as_arrays
from onerec_trt.tools.tuning.parity import this_capability
from torch import Tensor

from .repeats import repeated, same_bits

FUSED = ("BeamSelfAttention1QuantRow", "BeamSelfAttention2QuantRow", "BeamSelfAttention1QuantTensor", "BeamSelfAttention2QuantTensor")
SHAPES = ((1, 14, 128), (16, 23, 128), (130, 10, 64), (512, 14, 128), (7, 3, 48), (5, 1, 4))  # beams, heads, channels of a head
REQUESTS = 5
RUNS = 1000
ZERO_ROW = 2


def inputs_of(operator: str, beam: int, heads: int, head: int) -> list[Tensor]:
    """Random inputs; one row gives zeros."""
    torch.manual_seed(1)
    width = 3 * heads * head

    def normal(rows: int) -> Tensor:
        return torch.randn(rows, width, device="cuda", dtype=torch.float16)

    inputs = [normal(REQUESTS * beam), normal(REQUESTS)]
    if "Attention2" in operator:
        inputs += [normal(REQUESTS * beam), torch.randint(beam, (REQUESTS, beam), device="cuda")]
    for projections in inputs[: 3 if "Attention2" in operator else 2]:
        projections.unflatten(0, (REQUESTS, -1))[ZERO_ROW] = 0
    return [*inputs, torch.tensor([0.004], device="cuda")] if operator.endswith("Tensor") else inputs


def program_of(operator: str, inputs: list[Tensor], attributes: dict[str, int | float]) -> Program:
    """With a dynamic number of rows and requests."""
    types = tuple(InputType(of_torch(t.dtype).name, (None, *t.shape[1:]) if t.dim() > 1 else tuple(t.shape)) for t in inputs)
    program = FACTORIES[operator].program(Node(operator, types, attributes, this_capability()))
    assert program is not None
    return program


@pytest.mark.parametrize("operator", FUSED)
@pytest.mark.parametrize(("beam", "heads", "head"), SHAPES)
def test_a_fused_kernel_is_its_reference(operator, beam, heads, head):
    inputs, attributes = inputs_of(operator, beam, heads, head), {"rows": beam, "heads": heads}
    actual = execute(program_of(operator, inputs, attributes), inputs)
    declared = OPERATORS[operator]
    expected = declared.reference(*inputs, **attributes)
    arrays = [as_arrays([tensor.cpu() for tensor in tensors]) for tensors in (actual, expected)]
    assert declared.compare(*arrays, as_arrays([tensor.cpu() for tensor in inputs]), attributes) <= declared.threshold
    assert not arrays[0][0].reshape(REQUESTS, beam, -1)[ZERO_ROW].any()


@pytest.mark.parametrize("operator", FUSED)
@pytest.mark.parametrize(("beam", "heads", "head"), SHAPES)
def test_a_fused_kernel_gives_the_bits_of_the_kernels_of_its_parts(operator, beam, heads, head):
    inputs, attributes = inputs_of(operator, beam, heads, head), {"rows": beam, "heads": heads}
    attention, quant = operator[: operator.index("Quant")], operator[operator.index("Quant") :]
    scale = inputs[-1:] if quant == "QuantTensor" else []
    projections = inputs[: len(inputs) - len(scale)]
    attended = [*execute(program_of(attention, projections, attributes), projections), *scale]
    parts = execute(program_of(quant, attended, {}), attended)
    fused = execute(program_of(operator, inputs, attributes), inputs)
    assert same_bits(fused, parts)


@pytest.mark.parametrize("operator", FUSED)
def test_same_input_same_bits(operator):
    inputs = inputs_of(operator, 512, 14, 128)
    program = program_of(operator, inputs, {"rows": 512, "heads": 14})
    expected = execute(program, inputs)
    assert all(same_bits(outputs, expected) for outputs in repeated(program, inputs, RUNS))


@pytest.mark.parametrize("operator", FUSED)
def test_a_bad_request_stays_alone(operator):
    beam, bad = 130, 3
    inputs = inputs_of(operator, beam, 14, 128)
    program = program_of(operator, inputs, {"rows": beam, "heads": 14})
    poisoned = [tensor.clone() for tensor in inputs]
    for tensor in poisoned:
        if tensor.dtype == torch.float16:
            tensor.unflatten(0, (REQUESTS, -1))[bad] = float("nan")
    others = torch.arange(REQUESTS, device="cuda") != bad
    for clean, dirty in zip(execute(program, inputs), execute(program, poisoned), strict=True):
        assert torch.equal(*(tensor.view(torch.uint8).unflatten(0, (REQUESTS, beam))[others] for tensor in (clean, dirty)))
        assert dirty.float().unflatten(0, (REQUESTS, beam))[bad].isnan().all()
